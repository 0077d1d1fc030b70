"""What a policy step learns from: questions answered by the policy, and the answers judged.

A round is a batch of questions with a group of responses to each. Rules score the responses in the
pool's workers while others are still decoded; models score what no rule decides, when all are
there.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from r1jax import compute
from r1jax.advantages import group_relative
from r1jax.data.mixing import Mixture
from r1jax.rewards import Response, check_weights, reflection
from r1jax.rewards.graders import check_ready, is_open
from r1jax.rewards.pool import RewardPool
from r1jax.run import Run
from r1jax.sampling.engine import Sampler
from r1jax.types import Rollout

ON = ("open", "all")
Scorer = Callable[[Sequence[Mapping], Sequence[Response]], np.ndarray]


@dataclass(frozen=True)
class PreferenceRewards:
    """Rewards by models, for what no rule decides (arXiv:2501.12948, section 2.3.4).

    `models` names score models (stages or folders) by the reward that they give, `weights` weighs
    them. They score the responses to open problems (grader `open`), or to all with `on="all"`;
    open problems have the rule rewards of `rules` beside them, the others those of the stage.
    All this holds in the last `last` steps (0: in all), which draw from `problems` where that is
    set: longer use invites reward hacking (the paper's later version has it in the last 400
    of 1,700 steps, second-hand).
    """

    models: Mapping[str, str]
    weights: Mapping[str, float]
    rules: Mapping[str, float] = field(default_factory=dict)
    problems: str = ""
    last: int = 0
    on: str = "open"

    def __post_init__(self):
        if self.models.keys() != self.weights.keys() or not self.models:
            raise ValueError(
                f"models {list(self.models)} and weights {list(self.weights)}: give every model "
                "its weight, and at least one model"
            )
        if self.on not in ON:
            raise ValueError(f"on={self.on!r} is unknown; known: {', '.join(ON)}")
        if self.last < 0:
            raise ValueError(f"last={self.last} must not be negative; 0 is all steps")
        if self.rules:
            check_weights(self.rules)
        if not all(math.isfinite(weight) for weight in self.weights.values()):
            raise ValueError(f"weights={dict(self.weights)} must be finite numbers")
        if both := self.models.keys() & self.rules.keys():
            raise ValueError(f"{sorted(both)[0]!r} is a model and a rule; rename the model")


class Begun(NamedTuple):
    """A round of questions with its responses, which are being judged."""

    rollout: Rollout
    problems: list[Mapping]  # one a question
    responses: list[Response]
    restarts: int  # of the pool's workers before


class Questions:
    """A stream of problems, and their prompts as token ids."""

    def __init__(self, problems: Sequence[Mapping] | Mixture, run: Run):
        if not isinstance(problems, Mixture):
            problems = Mixture({"": problems}, {"": 1}, run.seed)
        self.stream, self.problems = problems, problems.problems
        check_ready(self.problems)
        self.prompts = [run.prompt(p["question"]) for p in self.problems]


class Rounds:
    """Samples and judges the rounds of one stage, whose settings are `config` (a GrpoConfig)."""

    def __init__(
        self, config, run: Run, sampler: Sampler, problems, late, scorers: Mapping[str, Scorer]
    ):
        wanted = config.preference.models.keys() if config.preference else set()
        if wanted != scorers.keys():
            raise ValueError(f"preference has the models {list(wanted)}, given: {list(scorers)}")
        self.config, self.run, self.sampler, self.scorers = config, run, sampler, scorers
        self.early = Questions(problems, run)
        self.late = self.early if late is None else Questions(late, run)
        self.prompts = self.early.prompts + self.late.prompts
        sampler.check(self.prompts)

    def sample(self, params, step: int, position: int, pool: RewardPool) -> Begun:
        """One round of questions, answered by `params`; the pool has begun to judge it."""
        config, run = self.config, self.run
        P, G = config.prompts_per_rollout, config.group_size
        questions = self.late if self.preferring(step) else self.early
        chosen = questions.stream.indices(position, P)
        problems = [questions.problems[i] for i in chosen]
        responses, restarts = {}, pool.restarts

        def score(done) -> None:
            """Hands finished responses to the pool, while others are still decoded."""
            new = {
                row: run.response(*response, config.max_tokens) for row, response in done.items()
            }
            responses.update(new)
            pool.begin({row: (problems[row // G], new[row]) for row in new})

        rollout = self.sampler(
            params, [questions.prompts[i] for i in chosen], run.key("rollout"),
            prompt_ids=position * P + np.arange(P), group_size=G, on_done=score,
        )  # fmt: skip
        return Begun(rollout, problems, [responses[row] for row in range(P * G)], restarts)

    def preferring(self, step: int) -> bool:
        """Whether rewards by models are used in a step (counted from 0)."""
        preference = self.config.preference
        if preference is None:
            return False
        return not preference.last or step >= self.config.steps - preference.last

    def judged(self, begun: Begun, step: int, pool: RewardPool):
        """(rollout, adv_B, metrics) of a round, when all its responses are scored."""
        rollout, G, scored = begun.rollout, self.config.group_size, pool.finish()
        parts = self.rewards(begun, step, [scored[row] for row in range(len(scored))])
        total_B = np.array([p["total"] for p in parts], np.float32)
        adv_B = group_relative(total_B, G, normalise_std=self.config.normalise_std)
        names = dict.fromkeys(name for p in parts for name in p)
        values = {f"reward/{k}": float(np.mean([p[k] for p in parts if k in p])) for k in names}
        values["reward/errors"] = float(sum(p["errors"] for p in parts))
        values["reward/restarts"] = float(pool.restarts - begun.restarts)
        tokens = float(rollout.length_B.sum())
        values |= {
            "rollout/length": float(rollout.length_B.mean()),
            "rollout/truncated": float(rollout.truncated_B.mean()),
            "rollout/reflections": _mean(reflection.count(r.text) for r in begun.responses),
            "rollout/zero_variance": float(1 - adv_B.reshape(-1, G).any(axis=1).mean()),
            "rollout/entropy": -float(rollout.logp_BT.sum()) / tokens,
            "rollout/tokens": tokens,
            "compute/flops": compute.sampling_flops(
                self.run.model.config, rollout.prompt_length_B, rollout.length_B, group_size=G
            ),
        }
        return rollout, adv_B, values

    def rewards(self, begun: Begun, step: int, scored: Sequence[Mapping[str, float]]):
        """Every response's rewards, as far as its problem has them, with `total` and `errors`."""
        preference, G = self.config.preference, self.config.group_size
        if preference is None:
            return scored
        problems, parts = [p for p in begun.problems for _ in range(G)], []
        for problem, values in zip(problems, scored, strict=True):
            weights = preference.rules if is_open(problem) else self.config.rewards
            own = {name: values[name] for name in weights}
            total = sum(weight * own[name] for name, weight in weights.items())
            parts.append(own | {"total": total, "errors": values["errors"]})
        if not self.preferring(step):
            return parts
        rows = [i for i, p in enumerate(problems) if preference.on == "all" or is_open(p)]
        for name, scorer in self.scorers.items():
            given = scorer([problems[i] for i in rows], [begun.responses[i] for i in rows])
            for i, value in zip(rows, given.tolist(), strict=True):
                parts[i][name] = value
                parts[i]["total"] += preference.weights[name] * value
        return parts


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
