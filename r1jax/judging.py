"""Whether responses are correct: a rule says so, or a model where no rule decides."""

from collections import Counter
from collections.abc import Iterable, Mapping

from r1jax.compute import sampling_flops
from r1jax.rewards import Problem, Response, sections, whole_text
from r1jax.rewards.graders import is_open
from r1jax.rewards.judge import judge_question, verdict
from r1jax.rewards.pool import RewardPool
from r1jax.run import Run
from r1jax.sampling.engine import SamplingConfig

GRADED = {"accuracy": 1.0}  # the rewards of a pool that a `Verifier` can use


def needs_judge(problem: Problem) -> bool:
    """Whether no rule decides: not even checks of what the answer has to be like."""
    return is_open(problem) and not problem.get("checks")


def prediction(response: Response) -> str | None:
    """What a response finally says; None where it says nothing, or was cut short."""
    final = None if response.truncated else sections.final(whole_text(response))
    return final if final is not None and sections.visible(final) else None


class Judge:
    """Asks a model, greedily, whether predictions say the same as their references.

    `tokens` and `flops` count what it has written, and what that took (`compute`).
    """

    def __init__(self, run: Run, params, *, max_tokens: int, rows: int = 512, cache_mb: int = 0):
        self.run, self.params, self.tokens, self.flops = run, params, 0, 0.0
        self._room = run.model.config.context - max_tokens
        self._sampler = run.sampler(
            SamplingConfig(max_tokens, temperature=0.0, rows=rows, cache_mb=cache_mb)
        )

    def __call__(self, pairs: Iterable[tuple[Problem, Response]]) -> list[bool | None]:
        """Verdicts on responses that have a prediction, by the references of their problems.

        None where the judge said neither yes nor no, or came to no end, or would have to read
        more than its context holds.
        """
        prompts = [
            self.run.prompt(judge_question(p["question"], p["answer"], prediction(response)))
            for p, response in pairs
        ]
        fitting = [i for i, prompt in enumerate(prompts) if len(prompt) <= self._room]
        said: list[bool | None] = [None] * len(prompts)
        if not fitting:
            return said
        rollout = self._sampler(
            self.params, [prompts[i] for i in fitting], self.run.key("judge"), prompt_ids=fitting
        )
        answers = self.run.responses(rollout)
        for i, answer in zip(fitting, answers, strict=True):
            said[i] = None if answer.truncated else verdict(whole_text(answer))
        lengths = [answer.tokens for answer in answers]
        self.tokens += sum(lengths)
        read = [len(prompts[i]) for i in fitting]
        self.flops += sampling_flops(self.run.model.config, read, lengths)
        return said


class Verifier:
    """Says of responses whether they are correct; rules work in the pool while others are sampled.

    `judge` is for open problems: what it does not clearly accept is wrong. `counts` has
    `judged`, `judged_unparsed` (without a verdict) and `grading_errors`.
    """

    def __init__(self, pool: RewardPool, judge: Judge | None):
        self.pool, self.judge, self.counts = pool, judge, Counter()
        self._open: dict[int, tuple[Problem, Response]] = {}

    def begin(self, pairs: Mapping[int, tuple[Problem, Response]]) -> None:
        """Starts on responses, by a number of the caller's."""
        ruled = {number: pair for number, pair in pairs.items() if not needs_judge(pair[0])}
        self._open.update({number: pairs[number] for number in pairs.keys() - ruled.keys()})
        self.pool.begin(ruled)

    def finish(self) -> dict[int, bool]:
        """Of all responses begun since the last time."""
        graded, open_ = self.pool.finish(), dict(sorted(self._open.items()))
        self._open = {}
        correct = {number: parts["accuracy"] == 1 for number, parts in graded.items()}
        correct |= dict.fromkeys(open_, False)
        asked = {n: pair for n, pair in open_.items() if prediction(pair[1]) is not None}
        said = self.judge(asked.values()) if asked else []
        correct |= {number: yes is True for number, yes in zip(asked, said, strict=True)}
        self.counts.update(
            judged=len(asked), judged_unparsed=said.count(None),
            grading_errors=int(sum(parts["errors"] for parts in graded.values())),
        )  # fmt: skip
        return correct
