"""Choosing among finished responses: by scores of their steps, and by votes.

Sources: aggregation of a response's step scores as in arXiv:2305.20050 (product, minimum) and
arXiv:2312.08935 (minimum; votes weighted by scores).
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

AGGREGATES: dict[str, Callable[[Sequence[float]], float]] = {
    "last": lambda scores: float(scores[-1]),
    "min": lambda scores: float(min(scores)),
    "mean": lambda scores: float(np.mean(scores)),
    "product": lambda scores: float(math.prod(scores)),
}


def best(scores: Sequence[float]) -> int:
    """Index of the highest score; the first of equals. Raises ValueError without any."""
    if not len(scores):
        raise ValueError("no responses to choose from; give at least one")
    return int(np.argmax(np.asarray(scores)))


def vote(
    answers: Sequence[str | None],
    weights: Sequence[float] | None = None,
    *,
    equal: Callable[[str, str], bool],
) -> int | None:
    """Index of the first response whose answer has most weight (default: each counts 1).

    Equivalent answers (`equal(earlier, answer)`) vote together, a tie goes to the answer seen
    first, and None, an unreadable answer, never wins: None where there is nothing else.
    """
    weights = [1.0] * len(answers) if weights is None else weights
    first: dict[str, int] = {}
    total: dict[str, float] = {}
    for i, (answer, weight) in enumerate(zip(answers, weights, strict=True)):
        if answer is None:
            continue
        kind = answer
        if answer not in first:
            kind = next((known for known in first if equal(known, answer)), answer)
        first.setdefault(kind, i)
        total[kind] = total.get(kind, 0.0) + weight
    return first[max(total, key=total.__getitem__)] if total else None
