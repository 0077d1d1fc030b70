"""Rewards: pure functions of a problem and a response, in plain Python.

A reward is a function `(problem, response) -> float`. A new one is a module here and an
entry in REWARDS; an experiment picks by name and weight. Nothing in this package imports
jax, so that worker processes start fast and hold no device (see `pool`).

Source: the rule rewards of arXiv:2501.12948, section 2.2.2, and their plain sum.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite  # not `import math`: that name is the module beside this one
from numbers import Real
from typing import Any

from r1jax.rewards import filters, length, sections
from r1jax.rewards.checks import occurrences, share_met
from r1jax.rewards.format import format_reward
from r1jax.rewards.graders import grader_of, share_passed
from r1jax.rewards.hints import hint
from r1jax.rewards.language import consistency, language_of
from r1jax.rewards.sections import THINK


@dataclass(frozen=True)
class Response:
    """One completion of a problem's prompt.

    Attributes:
      text: the decoded completion, without the prompt and without the end token.
      tokens: its length in tokens, the end token included.
      truncated: it met the length limit before an end token.
      think_opened: the prompt already ended in `<think>`.
      limit: the most tokens it could have had; 0: not known.
    """

    text: str
    tokens: int = 0
    truncated: bool = False
    think_opened: bool = False
    limit: int = 0


Problem = Mapping[str, Any]  # 'id', 'question', 'answer', and what a reward may want besides
Reward = Callable[[Problem, Response], float]


def whole_text(response: Response) -> str:
    """The response with the think tag that its prompt opened.

    A completion that starts inside the reasoning and never leaves it gives no answer;
    that can only be seen with the tag in place.
    """
    return THINK + response.text if response.think_opened else response.text


def accuracy(problem: Problem, response: Response) -> float:
    """1.0 when the response solves the problem, else 0.0, by the problem's grader (`graders`).

    Raises ValueError for a problem that cannot be graded; loaders check that beforehand.
    """
    return grader_of(problem).grade(problem, whole_text(response))


def tests_passed(problem: Problem, response: Response) -> float:
    """Share of a programming problem's tests that the response's program passes; 0 for others."""
    return share_passed(problem, whole_text(response))


def language(problem: Problem, response: Response) -> float:
    """Share of the reasoning's words in the language of the question (`problem['reply_in']`)."""
    target = problem.get("reply_in") or language_of(problem["question"])
    return consistency(whole_text(response), target)


def overlong(problem: Problem, response: Response) -> float:
    """From 0 down to -1 over the last fifth of the tokens that the run allows."""
    del problem
    return length.overlong(response.tokens, response.limit) if response.limit else 0.0


def repetition(problem: Problem, response: Response) -> float:
    """Minus the share of repeated passages."""
    del problem
    return -length.repetition(response.text)


def well_formed(problem: Problem, response: Response) -> float:
    """1.0 when the completion is reasoning and answer in their tags, else 0.0."""
    del problem
    return format_reward(response.text, think_opened=response.think_opened)


def readable(problem: Problem, response: Response) -> float:
    """1.0 when a person can read it: well-formed, in one language, with a summary; else 0.0.

    That is: reasoning and answer in their tags, no filter of `rewards.filters` rejects it, and
    the final section has words, at least half of them in the language of the question
    (`problem['reply_in']`).
    """
    text, question = whole_text(response), problem["question"]
    target, final = problem.get("reply_in") or language_of(question), sections.final(text)
    if not well_formed(problem, response) or final is None:
        return 0.0
    if filters.rejections(question, [text], reply_in=target)[0] is not None:
        return 0.0
    return float(consistency(final, target) >= 0.5)


def helpful(problem: Problem, response: Response) -> float:
    """Share of the problem's `checks` that the final section meets; 0.0 without either."""
    return share_met(problem.get("checks") or [], sections.final(whole_text(response)))


def harmless(problem: Problem, response: Response) -> float:
    """0.0 when a word of the problem's `avoid` occurs anywhere in the response, else 1.0."""
    avoid = problem.get("avoid")
    return float(not avoid or not occurrences(avoid, whole_text(response)))


REWARDS: dict[str, Reward] = {
    "accuracy": accuracy,
    "format": well_formed,
    "language": language,
    "tests_passed": tests_passed,
    "overlong": overlong,
    "repetition": repetition,
    "readable": readable,
    "helpful": helpful,
    "harmless": harmless,
}


def check_weights(weights: Mapping[str, float]) -> None:
    """Raises ValueError unless every name is a reward and every weight a finite number.

    A weight of 0 is allowed: the reward is measured and not paid.
    """
    if not weights:
        raise ValueError(f"no rewards given; choose from {', '.join(REWARDS)}")
    for name, weight in weights.items():
        if name not in REWARDS:
            raise ValueError(f"unknown reward {name!r}{hint(name, REWARDS)}")
        if isinstance(weight, bool) or not isinstance(weight, Real) or not isfinite(weight):
            raise ValueError(f"weight of reward {name!r} is {weight!r}; give a finite number")


def score(problem: Problem, response: Response, weights: Mapping[str, float]) -> dict[str, float]:
    """Every reward named in `weights`, their weighted sum and whether one failed.

    Returns the value of each reward under its name, before weighting; `total`, the sum of
    weight times value; and `errors`, 1.0 when a reward raised or returned something that is
    not finite (it then counts 0) and 0.0 otherwise. What the model wrote never raises here.

    Raises:
      ValueError: `weights` does not pass `check_weights`.
    """
    check_weights(weights)
    parts: dict[str, float] = {}
    errors = 0.0
    for name in weights:
        try:
            value = float(REWARDS[name](problem, response))
        except Exception:
            value = float("nan")
        if not isfinite(value):
            value, errors = 0.0, 1.0
        parts[name] = value
    total = sum(weight * parts[name] for name, weight in weights.items())
    return parts | {"total": float(total), "errors": errors}


def failed(weights: Mapping[str, float]) -> dict[str, float]:
    """What `score` returns when no reward could be computed at all."""
    return dict.fromkeys(weights, 0.0) | {"total": 0.0, "errors": 1.0}
