"""The paper's evaluation: k samples a question, pass@1, majority vote, length.

PAPER: arXiv:2501.12948, section 3 (temperature 0.6, top-p 0.95, pass@1 as the mean over
samples, cons@k as the majority vote).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from r1jax import metrics
from r1jax.rewards import REWARDS, Response, reflection
from r1jax.rewards.math import equivalent, extract
from r1jax.rewards.sections import THINK
from r1jax.run import Run
from r1jax.sampling.engine import SamplingConfig


@dataclass(frozen=True)
class EvaluateConfig:
    """`benchmarks` are problem sources; `every` counts RL steps between evaluations."""

    benchmarks: tuple[str, ...]
    max_tokens: int
    samples: int = 16
    temperature: float = 0.6
    top_p: float = 0.95
    rows: int = 512
    cache_mb: int = 0  # memory for keys and values while decoding (0: whatever `rows` take)
    every: int = 8

    def __post_init__(self):
        if not self.benchmarks:
            raise ValueError("benchmarks is empty; name at least one problem source")
        for name in ("samples", "every", "rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        self.sampling  # noqa: B018 - its own checks

    @property
    def sampling(self) -> SamplingConfig:
        return SamplingConfig(
            self.max_tokens, temperature=self.temperature, top_p=self.top_p, rows=self.rows,
            cache_mb=self.cache_mb,
        )  # fmt: skip


class Evaluator:
    """Evaluates parameters of one model on named benchmarks; compiles once.

    Raises ValueError at construction for a prompt that does not fit the model's context.
    """

    def __init__(self, config: EvaluateConfig, run: Run, problems: Mapping[str, Sequence[Mapping]]):
        self.config, self.run, self.problems = config, run, problems
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
            responses, scores = self.respond(params, name, step)
            values |= {f"eval/{name}/{k}": v for k, v in scores.items()}
            for i, response in enumerate(responses[0][:4]):
                self.run.writer.sample(
                    self.run.stage, step,
                    {"benchmark": name, "id": problems[0]["id"], "sample": i,
                     "question": problems[0]["question"], "answer": problems[0]["answer"],
                     "response": response.text, "tokens": response.tokens,
                     "truncated": response.truncated},
                )  # fmt: skip
        return values

    def respond(self, params, name: str, step: int, *, on_tokens=None):
        """(responses by question, scores) of one benchmark."""
        problems, k = self.problems[name], self.config.samples
        rollout = self._sampler(
            params, self._prompts[name], self.run.key("eval", name, step),
            group_size=k, on_tokens=on_tokens,
        )  # fmt: skip
        flat = self.run.responses(rollout)
        responses = [flat[i * k : (i + 1) * k] for i in range(len(problems))]
        return responses, score(problems, responses)


def score(problems: Sequence[Mapping], responses: Sequence[Sequence[Response]]) -> dict[str, float]:
    """pass@1, cons@k, their 95% intervals over questions, length, truncation, reflection."""
    k = len(responses[0])
    correct_Pk = np.array(
        [[REWARDS["accuracy"](p, r) for r in group]
         for p, group in zip(problems, responses, strict=True)]
    )  # fmt: skip
    consensus_P = np.array(
        [metrics.cons_at_k([_answer(r) for r in group], p["answer"], k, equal=equivalent)
         for p, group in zip(problems, responses, strict=True)]
    )  # fmt: skip
    flat = [r for group in responses for r in group]
    values = {}
    for name, per_question in (("pass@1", correct_Pk.mean(axis=1)), (f"cons@{k}", consensus_P)):
        low, high = metrics.bootstrap_interval(per_question)
        values |= {name: float(per_question.mean()), f"{name}_low": low, f"{name}_high": high}
    return values | {
        "length": float(np.mean([r.tokens for r in flat])),
        "truncated": float(np.mean([r.truncated for r in flat])),
        "reflections": float(np.mean([reflection.count(r.text) for r in flat])),
    }


def _answer(response: Response) -> str | None:
    return extract(THINK + response.text if response.think_opened else response.text)
