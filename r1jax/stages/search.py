"""Searches compared with plain sampling at equal numbers of generated tokens.

The budget of a question is what N plain samples take on average. Plain sampling spends it on N
responses, of which one is taken (pass@1), or that vote, with or without a process reward
model's scores; guided beam search and Monte Carlo tree search spend it on steps.

Source: what arXiv:2501.12948, section 4.2, tried for R1 and left out.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from r1jax import metrics
from r1jax.data.mixing import Mixture
from r1jax.rewards import Response, whole_text
from r1jax.rewards.graders import check_ready, grader_of
from r1jax.rewards.pool import RewardPool
from r1jax.run import Run
from r1jax.sampling.engine import SamplingConfig
from r1jax.search.beam import beam_search
from r1jax.search.best_of_n import AGGREGATES, best, vote
from r1jax.search.engine import MOST_PREFIXES, Growth, StepScorer, drive
from r1jax.search.mcts import RULES, tree_search
from r1jax.search.requests import Found, Tokens
from r1jax.search.steps import boundary_ids
from r1jax.writers import replace

SAMPLED = ("majority", "best_of_n", "weighted_vote")
SEARCHED = ("beam", "mcts", "mcts_rollout")
ANSWERS = ("vote", "best", "visits")
NEEDS = {
    "best_of_n": "process_model", "weighted_vote": "process_model", "beam": "process_model",
    "mcts": "value_model", "mcts_rollout": "value_model",
}  # fmt: skip


@dataclass(frozen=True)
class SearchConfig:
    """`methods` on `problems`, with budgets of as many tokens as each of `samples` responses.

    Beam search tries `expansions` next steps of each response that it keeps, and keeps as many
    as make `samples` new ones in `beams` beams one after the other: guided responses are longer
    than plain ones. The tree has at most `tree_expansions` children a node, and no more than a
    quarter of samples (2 at least), or one expansion would cost a small budget. `aggregate` makes
    a response's score of those of its steps. Steps end with `separator`, or after `step_tokens`.
    Of what a search has finished the `answer` is a vote weighted by scores, the one of highest
    score ("best"), or in a tree where the path of most visits leads ("visits").
    """

    problems: str
    max_tokens: int
    process_model: str = ""
    value_model: str = ""
    samples: tuple[int, ...] = (4, 16, 64)
    methods: tuple[str, ...] = (*SAMPLED, *SEARCHED)
    temperature: float = 1.0
    top_p: float = 1.0
    separator: str = "\n"
    step_tokens: int = 32
    aggregate: str = "last"
    expansions: int = 2
    beams: int = 16
    tree_expansions: int = 16
    rule: str = "puct"
    exploration: float = 1.0
    answer: str = "vote"
    workers: int = 0
    rows: int = 256
    chunk: int = 32
    cache_mb: int = 0

    def __post_init__(self):
        for name, known in (
            ("aggregate", tuple(AGGREGATES)), ("rule", RULES), ("answer", ANSWERS),
        ):  # fmt: skip
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name}={value!r} is unknown; known: {', '.join(known)}")
        if unknown := [m for m in self.methods if m not in (*SAMPLED, *SEARCHED)]:
            known = ", ".join((*SAMPLED, *SEARCHED))
            raise ValueError(f"method {unknown[0]!r} is unknown; known: {known}")
        for name in ("step_tokens", "expansions", "beams", "tree_expansions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if not self.samples or min(self.samples) < 1:
            raise ValueError(f"samples={self.samples}: give at least one number of 1 or more")
        most = max(self.samples)
        if odd := [n for n in self.samples if most % n]:
            raise ValueError(
                f"samples={self.samples}: {odd[0]} does not divide {most}, the number of samples "
                "that is drawn once and cut into groups for the others"
            )
        if most // self.expansions > MOST_PREFIXES:
            raise ValueError(
                f"samples of {most} with expansions={self.expansions} make a beam wider than "
                f"{MOST_PREFIXES}; raise expansions"
            )
        if self.workers < 0:
            raise ValueError(f"workers={self.workers} must not be negative")
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature} must be positive to search")
        for method in self.methods:
            if (field := NEEDS.get(method)) and not getattr(self, field):
                raise ValueError(f"method {method!r} needs {field}; name it, or leave it out")
        self.sampling  # noqa: B018 - its own checks

    @property
    def sampling(self) -> SamplingConfig:
        return SamplingConfig(
            self.max_tokens, temperature=self.temperature, top_p=self.top_p, rows=self.rows,
            chunk=self.chunk, cache_mb=self.cache_mb,
        )  # fmt: skip


def run(
    config: SearchConfig,
    run: Run,
    problems: Sequence[Mapping] | Mixture,
    params,
    process_params=None,
    value_params=None,
) -> dict[str, Any]:
    """Compares the methods; returns what is written to `results/STAGE.json`.

    `rows` has one entry for every method and number of samples: `budget` and `generated` (tokens
    a question, meant and measured), `scored` (tokens that score models read), `accuracy` with
    its 95% interval over questions (`low`, `high`), and `covered`, the share of questions to
    which any finished response is right. `aggregates` has the accuracy of best-of-N by every way
    to score a response. Rows are written as they are found, and not searched again.
    Raises ValueError for what `check` finds.
    """
    check(config, run, problems)
    problems = problems.problems if isinstance(problems, Mixture) else list(problems)
    models = {"process": process_params, "value": value_params}
    with RewardPool({"accuracy": 1.0}, config.workers) as pool:
        comparison = _Comparison(config, run, problems, params, models, pool)
        return comparison()


def check(config: SearchConfig, run: Run, problems: Sequence[Mapping] | Mixture) -> None:
    """Raises ValueError, before anything is sampled, for settings that cannot work.

    These are prompts that leave no room for a response and a step in the model's context, a
    separator that no token holds, and answers that have to vote but cannot.
    """
    problems = problems.problems if isinstance(problems, Mixture) else list(problems)
    check_ready(problems)
    prompts = [run.prompt(p["question"]) for p in problems]
    run.sampler(config.sampling).check(prompts)
    _growth(config, run, prompts)
    plain = [m for m in ("majority", "weighted_vote") if m in config.methods]
    searched = config.answer == "vote" and any(m in config.methods for m in SEARCHED)
    for problem in problems if plain or searched else ():
        grader = grader_of(problem)
        if grader.answer is None or grader.equal is None:
            mends = [f"leave {' and '.join(plain)} out of methods"] if plain else []
            mends += ["set answer='best'"] if searched else []
            raise ValueError(
                f"answers to problem {problem['id']!r} cannot vote; {' and '.join(mends)}"
            )


def _growth(config: SearchConfig, run: Run, prompts: Sequence[Sequence[int]]) -> Growth:
    boundaries = boundary_ids(run.tokenizer, config.separator)
    return Growth(run, config.sampling, boundaries, step_tokens=config.step_tokens, prompts=prompts)


class _Answer(NamedTuple):
    """Outcome of one method on one question."""

    accuracy: float
    covered: float
    generated: float
    scored: float


class _Comparison:
    def __init__(self, config: SearchConfig, run: Run, problems, params, models, pool):
        self.config, self.run, self.problems = config, run, problems
        self.params, self.models, self.pool = params, models, pool
        prompts = [run.prompt(p["question"]) for p in problems]
        self.growth = _growth(config, run, prompts)
        self.scorer = StepScorer(run, boundary_ids(run.tokenizer, config.separator), prompts)
        self.path = run.workdir / "results" / f"{run.stage}.json"
        self._graded: dict[tuple[int, Tokens], bool] = {}
        self.results = self._kept()

    def __call__(self) -> dict[str, Any]:
        config, known = self.config, {(r["method"], r["samples"]) for r in self.results["rows"]}
        if not known:
            self._sampled()
        for samples in config.samples:
            for method in config.methods:
                if method in SEARCHED and (method, samples) not in known:
                    self._searched(method, samples)
        values = {
            f"search/{r['method']}@{r['samples']}": r["accuracy"] for r in self.results["rows"]
        }
        self.run.writer.rewind(self.run.stage, -1)
        self.run.writer.metrics(self.run.stage, 0, values)
        return self.results

    def _kept(self) -> dict[str, Any]:
        """What was found before with the same settings."""
        settings = json.loads(json.dumps(asdict(self.config) | {"seed": self.run.seed}))
        if self.path.exists():
            found = json.loads(self.path.read_text())
            if found["settings"] == settings:
                return found
        return {
            "stage": self.run.stage, "questions": len(self.problems), "settings": settings,
            "rows": [],
        }  # fmt: skip

    def _write(self) -> None:
        self.path.parent.mkdir(exist_ok=True)
        replace(self.path, json.dumps(self.results, indent=2) + "\n")

    def _row(self, method: str, samples: int, answers: Sequence[_Answer]) -> None:
        accuracy, covered, generated, scored = np.array(answers, float).T
        low, high = metrics.bootstrap_interval(accuracy)
        self.results["rows"].append({
            "method": method, "samples": samples, "budget": samples * self.results["length"],
            "generated": float(generated.mean()), "scored": float(scored.mean()),
            "accuracy": float(accuracy.mean()), "low": low, "high": high,
            "covered": float(covered.mean()),
        })  # fmt: skip

    # --- plain sampling ----------------------------------------------------------------

    def _sampled(self) -> None:
        """One set of responses for all methods that choose among whole ones."""
        config, most = self.config, max(self.config.samples)
        bar = self.run.writer.bar(
            most * len(self.problems), f"{self.run.stage} (sampling)", unit="response"
        )
        with bar:
            groups = self.growth(
                self.params, [(p, ()) for p in range(len(self.problems))], most,
                self.run.key("sampling"), range(len(self.problems)), whole=True,
                on_done=bar.update,
            )  # fmt: skip
        self.results["length"] = float(np.mean([len(t) for group in groups for t in group]))
        self._grade([(p, t) for p, group in enumerate(groups) for t in group])
        scores = None
        if any(m in config.methods for m in ("best_of_n", "weighted_vote")):
            flat = [(p, t) for p, group in enumerate(groups) for t in group]
            scores = iter(self.scorer(self.models["process"], flat))
            scores = [[next(scores) for _ in group] for group in groups]
        self._row("sampling", 1, [self._of_groups(p, g, 1, _first) for p, g in enumerate(groups)])
        for samples in config.samples:
            for method in config.methods:
                if method in SAMPLED:
                    choose = partial(self._choose, method, config.aggregate)
                    read = None if method == "majority" else scores
                    self._row(method, samples, self._chosen(groups, read, samples, choose))
        if "best_of_n" in config.methods:
            self.results["aggregates"] = {
                name: {
                    str(n): float(np.mean([
                        a.accuracy for a in self._chosen(
                            groups, scores, n, partial(self._choose, "best_of_n", name)
                        )
                    ])) for n in config.samples
                } for name in AGGREGATES
            }  # fmt: skip
        self._write()

    def _chosen(self, groups, scores, samples: int, choose: Callable) -> list[_Answer]:
        return [
            self._of_groups(p, group, samples, choose, None if scores is None else scores[p])
            for p, group in enumerate(groups)
        ]

    def _of_groups(self, problem: int, group, samples: int, choose: Callable, scores=None):
        """Mean over the parts of `samples` responses that a question's group is cut into."""
        answers = []
        for at in range(0, len(group), samples):
            part = group[at : at + samples]
            given = None if scores is None else scores[at : at + samples]
            index = choose(problem, part, given)
            right = [self._graded[problem, tokens] for tokens in part]
            answers.append(_Answer(
                float(index is not None and right[index]), float(any(right)),
                sum(map(len, part)), 0 if scores is None else sum(map(len, part)),
            ))  # fmt: skip
        return _Answer(*np.mean(answers, axis=0))

    def _choose(self, method: str, aggregate: str, problem: int, part, scores) -> int | None:
        if method == "majority":
            return self._vote(problem, part)
        weights = [AGGREGATES[aggregate](steps) for steps in scores]
        return best(weights) if method == "best_of_n" else self._vote(problem, part, weights)

    def _vote(self, problem: int, responses: Sequence[Tokens], weights=None) -> int | None:
        grader = grader_of(self.problems[problem])
        answers = [grader.answer(whole_text(self._response(t))) for t in responses]
        return vote(answers, weights, equal=grader.equal)

    # --- search ------------------------------------------------------------------------

    def _searched(self, method: str, samples: int) -> None:
        """Runs one kind of search on all questions."""
        run, budget = self.run, samples * self.results["length"]
        searches = {p: self._search(method, samples, budget) for p in range(len(self.problems))}
        with run.writer.bar(
            len(searches), f"{run.stage} ({method}, {samples})", unit="question"
        ) as bar:
            found = drive(
                searches, partial(run.key, method, samples), partial(self.growth, self.params),
                lambda model, states: self.scorer(self.models[model], states), bar.update,
            )  # fmt: skip
        self._grade([(p, c.tokens) for p, f in found.items() for c in f.candidates])
        self._row(method, samples, [self._found(p, f) for p, f in found.items()])
        self._write()

    def _search(self, method: str, samples: int, budget: float) -> Iterator:
        config = self.config
        if method == "beam":
            return beam_search(
                width=max(1, samples // (config.expansions * config.beams)),
                expansions=config.expansions,
                budget=budget, finished=self.growth.finished,
                aggregate=AGGREGATES[config.aggregate], reserve=self.results["length"],
            )  # fmt: skip
        return tree_search(
            expansions=min(config.tree_expansions, max(2, samples // 4)),
            budget=budget, finished=self.growth.finished,
            rule=config.rule, exploration=config.exploration,
            answer="visits" if config.answer == "visits" else "value",
            evaluate="rollout" if method == "mcts_rollout" else "value",
            reserve=self.results["length"],
        )  # fmt: skip

    def _found(self, problem: int, found: Found) -> _Answer:
        tokens = [c.tokens for c in found.candidates]
        best = found.best
        if self.config.answer == "vote":
            index = self._vote(problem, tokens, [c.score for c in found.candidates])
            best = best if index is None else tokens[index]
        right = [self._graded[problem, t] for t in tokens]
        return _Answer(
            float(self._graded[problem, best]), float(any(right)), found.generated, found.scored
        )

    # --- grading -----------------------------------------------------------------------

    def _response(self, tokens: Tokens) -> Response:
        truncated = not self.growth.ended(tokens)
        return self.run.response(tokens, truncated, self.config.max_tokens)

    def _grade(self, asked: Sequence[tuple[int, Tokens]]) -> None:
        new = [key for key in dict.fromkeys(asked) if key not in self._graded]
        graded = self.pool.score_all(
            [self.problems[p] for p, _ in new], [self._response(t) for _, t in new]
        )
        self._graded |= {k: bool(g["accuracy"]) for k, g in zip(new, graded, strict=True)}


def _first(problem: int, part, scores) -> int:
    return 0
