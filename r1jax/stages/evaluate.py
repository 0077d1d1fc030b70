"""The paper's evaluation: k samples a question, pass@1, majority vote, length.

PAPER: arXiv:2501.12948, section 3 (temperature 0.6, top-p 0.95, pass@1 as the mean over
samples, cons@k as the majority vote).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from r1jax import metrics
from r1jax.rewards import Response, check_weights, reflection, whole_text
from r1jax.rewards.graders import check_ready, grader_of
from r1jax.rewards.pool import RewardPool
from r1jax.run import Run
from r1jax.sampling.engine import SamplingConfig
from r1jax.writers import replace

GRADED = {"accuracy": 1.0}


@dataclass(frozen=True)
class EvaluateConfig:
    """`benchmarks` are problem sources; `every` counts RL steps between evaluations.

    `workers` processes grade responses while others are sampled (0: this process). `measure` are
    rewards whose means are reported beside the accuracy. The `stages` that are named
    are evaluated at their end whatever their kind, and their last responses are kept in
    `responses/STAGE.BENCHMARK.jsonl`.
    """

    benchmarks: tuple[str, ...]
    max_tokens: int
    samples: int = 16
    temperature: float = 0.6
    top_p: float = 0.95
    rows: int = 512
    cache_mb: int = 0  # memory for keys and values while decoding (0: whatever `rows` take)
    every: int = 8
    workers: int = 0
    measure: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()

    def __post_init__(self):
        if not self.benchmarks:
            raise ValueError("benchmarks is empty; name at least one problem source")
        for name in ("samples", "every", "rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.workers < 0:
            raise ValueError(f"workers={self.workers} must not be negative")
        check_weights(self.graded)
        self.sampling  # noqa: B018 - its own checks

    @property
    def graded(self) -> dict[str, float]:
        """What every response is graded by: accuracy, and what is measured beside it."""
        return GRADED | {name: 0.0 for name in self.measure if name not in GRADED}

    @property
    def sampling(self) -> SamplingConfig:
        return SamplingConfig(
            self.max_tokens, temperature=self.temperature, top_p=self.top_p, rows=self.rows,
            cache_mb=self.cache_mb,
        )  # fmt: skip


class Evaluator:
    """Evaluates parameters of one model on named benchmarks; compiles once.

    Raises ValueError at construction for a prompt that does not fit the model's context, and
    where programs are to be judged and this machine cannot.
    """

    def __init__(self, config: EvaluateConfig, run: Run, problems: Mapping[str, Sequence[Mapping]]):
        self.config, self.run, self.problems = config, run, problems
        for rows in problems.values():
            check_ready(rows)
        self._sampler = run.sampler(config.sampling)
        self._prompts = {
            name: [run.prompt(p["question"]) for p in rows] for name, rows in problems.items()
        }
        for prompts in self._prompts.values():
            self._sampler.check(prompts)

    def __call__(self, params, step: int) -> dict[str, float]:
        """`eval/<benchmark>/…` metrics; one question's responses go to samples.jsonl."""
        values = {}
        for name, problems in self.problems.items():
            responses, graded, scores = self.respond(params, name, step)
            values |= {f"eval/{name}/{k}": v for k, v in scores.items()}
            if self.run.stage in self.config.stages:
                self._keep(name, responses, graded)
            for i, response in enumerate(responses[0][:4]):
                self.run.writer.sample(
                    self.run.stage, step,
                    {"benchmark": name, "id": problems[0]["id"], "sample": i,
                     "question": problems[0]["question"], "answer": problems[0]["answer"],
                     "response": response.text, "tokens": response.tokens,
                     "truncated": response.truncated},
                )  # fmt: skip
        return values

    def _keep(self, name: str, responses, graded) -> None:
        """Writes the responses to a benchmark, with their grades."""
        rows, graded = [], iter(graded)
        for problem, group in zip(self.problems[name], responses, strict=True):
            about = {"id": problem["id"], "question": problem["question"]}
            for i, response in enumerate(group):
                values = next(graded)
                grades = {k: values[k] for k in self.config.graded}
                rows.append(
                    about | {"sample": i, "answer": problem["answer"], "text": whole_text(response),
                    "tokens": response.tokens, "truncated": response.truncated} | grades
                )  # fmt: skip
        folder = self.run.workdir / "responses"
        folder.mkdir(exist_ok=True)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        replace(folder / f"{self.run.stage}.{name}.jsonl", lines)

    def respond(
        self,
        params,
        name: str,
        step: int,
        *,
        kept: Mapping[int, Sequence[Response]] = {},
        on_tokens: Callable | None = None,
        on_responses: Callable[[dict[tuple[int, int], Response]], None] | None = None,
    ):
        """(responses by question, the grades of each, scores) of one benchmark.

        `kept` has the responses to some questions (by index) from before: those are not
        sampled again. A question's responses do not depend on which others are asked.
        `on_responses({(question, sample): response})` is called as they finish.
        """
        problems, k = self.problems[name], self.config.samples
        asked = [i for i in range(len(problems)) if i not in kept]
        responses = {(i, j): r for i, group in kept.items() for j, r in enumerate(group)}
        with RewardPool(self.config.graded, self.config.workers) as pool:
            pool.begin({i * k + j: (problems[i], r) for (i, j), r in responses.items()})

            def take(done) -> None:
                new = {
                    (asked[row // k], row % k): self.run.response(*response)
                    for row, response in done.items()
                }
                responses.update(new)
                pool.begin({i * k + j: (problems[i], r) for (i, j), r in new.items()})
                if on_responses:
                    on_responses(new)

            if asked:
                self._sampler(
                    params, [self._prompts[name][i] for i in asked],
                    self.run.key("eval", name, step), prompt_ids=asked, group_size=k,
                    on_tokens=on_tokens, on_done=take,
                )  # fmt: skip
            graded = pool.finish()
        groups = [[responses[i, j] for j in range(k)] for i in range(len(problems))]
        graded = [graded[row] for row in sorted(graded)]
        return groups, graded, summary(problems, groups, graded, self.config.measure)


def score(
    problems: Sequence[Mapping], responses: Sequence[Sequence[Response]], *, workers: int = 0
) -> dict[str, float]:
    """Grades the responses to each problem; see `summary`."""
    check_ready(problems)
    flat = [(p, r) for p, group in zip(problems, responses, strict=True) for r in group]
    with RewardPool(GRADED, workers) as pool:
        return summary(problems, responses, pool.score_all(*zip(*flat, strict=True)))


def summary(
    problems: Sequence[Mapping],
    responses: Sequence[Sequence[Response]],
    graded: Sequence[Mapping[str, float]],
    measure: Sequence[str] = (),
) -> dict[str, float]:
    """What graded responses (k to each problem; `graded` one after the other) amount to.

    pass@1 is the mean over all responses, with its standard error and 95% interval over
    questions; pass@2, 4, … up to k the unbiased estimates; cons@k the majority vote, where
    answers can vote. Then length in tokens, share truncated, reflective words a response,
    the means of the grades in `measure`, and how many gradings failed and so counted as wrong.
    """
    k = len(responses[0])
    correct_Pk = np.array([g["accuracy"] for g in graded]).reshape(len(problems), k)
    values = {}
    for j in _powers(k):
        per_question = [metrics.pass_at_k(k, int(c), j) for c in correct_Pk.sum(axis=1)]
        values |= _with_interval(f"pass@{j}", per_question)
    if len(problems) > 1:
        values["pass@1_se"] = metrics.standard_error(correct_Pk.mean(axis=1))
    votes = [_consensus(*given) for given in zip(problems, responses, correct_Pk, strict=True)]
    if None not in votes:
        values |= _with_interval(f"cons@{k}", votes)
    flat = [r for group in responses for r in group]
    return (
        values
        | {
            "length": float(np.mean([r.tokens for r in flat])),
            "truncated": float(np.mean([r.truncated for r in flat])),
            "reflections": float(np.mean([reflection.count(r.text) for r in flat])),
            "errors": float(sum(g["errors"] for g in graded)),
        }
        | {name: float(np.mean([g[name] for g in graded])) for name in measure}
    )


def _powers(k: int) -> list[int]:
    """1, 2, 4, … and k."""
    return [*(1 << i for i in range((k - 1).bit_length())), k]


def _with_interval(name: str, per_question: Sequence[float]) -> dict[str, float]:
    low, high = metrics.bootstrap_interval(per_question)
    return {name: float(np.mean(per_question)), f"{name}_low": low, f"{name}_high": high}


def _consensus(problem: Mapping, group: Sequence[Response], correct_k) -> float | None:
    grader, gold = grader_of(problem), problem["answer"]
    if grader.answer is None:
        return None
    answers = [grader.answer(whole_text(r)) for r in group]
    right = dict(zip(answers, map(bool, correct_k), strict=True))

    def equal(reference: str, answer: str) -> bool:
        # An answer is right when it was graded so: the gold may say more (`18 apples`) than a
        # comparison of two answers knows.
        return right[answer] if reference == gold else grader.equal(reference, answer)

    return metrics.cons_at_k(answers, gold, len(group), equal=equal)
