"""Evaluation metrics and their uncertainty. numpy only: no device, no jax."""

import math
import operator
import re
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np

# What counts as a number when answers are compared: an integer, a decimal or a fraction of
# integers. No exponents: `1e999999999` would be a value of a billion digits.
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+|\d+/\d+)")
_LONGEST_NUMBER = 1_000  # characters; longer answers are compared as text


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that at least one of k responses is right, from n of which c are.

        1 − C(n − c, k) / C(n, k)

    The unbiased estimate for one question (arXiv:2107.03374, equation 1), in exact integer
    arithmetic: the float nearest to it for any n. With k = 1 it is c / n, the mean
    correctness, which is the paper's pass@1 whatever number of responses it is from.

    Raises:
        ValueError: not 1 ≤ k ≤ n, or not 0 ≤ c ≤ n.
    """
    n, c, k = operator.index(n), operator.index(c), operator.index(k)
    if not 0 <= c <= n:
        raise ValueError(f"c={c} right responses of n={n}: need 0 <= c <= n")
    if not 1 <= k <= n:
        raise ValueError(f"k={k} with n={n} responses: need 1 <= k <= n; sample at least k")
    # C(n − c, k) / C(n, k) = C(n − k, c) / C(n, c): take the one with the smaller numbers.
    drawn, other = (k, c) if k <= c else (c, k)
    ways = math.comb(n, drawn)
    return (ways - math.comb(n - other, drawn)) / ways


def cons_at_k(
    answers: Sequence[str | None],
    gold: str,
    k: int,
    *,
    equal: Callable[[str, str], bool] | None = None,
) -> float:
    """Whether the majority vote of the first k answers is right: 1.0 or 0.0, for one question.

    Equivalent answers vote together. A tie goes to the answer that was seen first. None, an
    unreadable answer, never wins; if there is nothing else the result is 0. This is
    cons@k of the paper (arXiv:2501.12948, section 2.2.4): majority voting.

    Args:
        answers: extracted answers, in the order they were sampled; at least k.
        gold: the right answer.
        k: how many vote.
        equal: `equal(reference, answer)`, where the reference is an answer seen earlier, or
            the gold. An answer is compared with the first one of each kind. By default,
            numbers (integers, decimals, fractions) are equal if their exact values are
            (042, 42, 42.0, 84/2), and anything else if the text is, outer white space aside.

    Raises:
        ValueError: not 1 ≤ k ≤ len(answers).
    """
    if not 1 <= k <= len(answers):
        raise ValueError(
            f"k={k} with {len(answers)} answers: need 1 <= k <= {len(answers)}; sample at least k"
        )
    equal = _same_value if equal is None else equal
    votes: dict[str, int] = {}  # by the first answer of its kind; dicts keep the order
    for answer in answers[:k]:
        if answer is not None:
            # The same text needs no comparison: `equal` may be an expensive grader.
            same = (first for first in votes if equal(first, answer))
            kind = answer if answer in votes else next(same, answer)
            votes[kind] = votes.get(kind, 0) + 1
    if not votes:
        return 0.0
    winner = max(votes, key=votes.__getitem__)  # the first of those with most votes
    return float(bool(equal(gold, winner)))


def standard_error(values: Sequence[float] | np.ndarray) -> float:
    """Standard error of the mean of `values`, one per question: sample std (ddof 1) / √n.

    NaN for a single question: one value says nothing about the spread.

    Raises:
        ValueError: `values` is empty, not one-dimensional, or not finite.
    """
    values = _per_question(values)
    if len(values) == 1:
        return math.nan
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Confidence interval (low, high) of the mean of `values`, one per question.

    Percentile bootstrap: draw as many questions as there are, with replacement, take the
    mean, `resamples` times; the interval holds the middle `level` of these means. The
    questions are resampled, not the responses to one question, which are not independent
    of each other. The same seed gives the same interval.

    Raises:
        ValueError: `values` is empty, not one-dimensional, or not finite; `level` is not
            between 0 and 1; `resamples` is below 1.
    """
    values = _per_question(values)
    if not 0 < level < 1:
        raise ValueError(f"level={level}: need a share between 0 and 1, such as 0.95")
    if resamples < 1:
        raise ValueError(f"resamples={resamples}: need at least 1")
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    rows = max(1, 1_000_000 // len(values))  # draw in blocks of about 8 MB
    for start in range(0, resamples, rows):
        block = means[start : start + rows]
        block[:] = values[rng.integers(len(values), size=(len(block), len(values)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def calibration_error(
    confidence: Sequence[float] | np.ndarray,
    right: Sequence[float] | np.ndarray,
    *,
    bins: int = 10,
) -> float:
    """Expected calibration error: how far confidence is from the share that is right.

        Σ_b (n_b / n) |mean right in b − mean confidence in b|

    over `bins` intervals of equal width that divide [0, 1]; a confidence on a border belongs
    to the upper one, 1 to the last. 0 is perfect; 1 is certain and always wrong
    (arXiv:1706.04599, equation 3).

    Args:
        confidence: the probability that was given to what was predicted.
        right: whether it was so: 1 or 0, or a share between (a tie may count half).

    Raises:
        ValueError: not two lists of the same length, nothing in them, values outside of
            [0, 1], or `bins` below 1.
    """
    confidence, right = np.asarray(confidence, float), np.asarray(right, float)
    if confidence.ndim != 1 or confidence.shape != right.shape or not len(right):
        raise ValueError(
            f"confidence has shape {confidence.shape}, right {right.shape}: need one of each "
            "for every prediction"
        )
    for name, values in (("confidence", confidence), ("right", right)):
        if not ((values >= 0) & (values <= 1)).all():  # NaN is neither
            bad = int(np.flatnonzero(~((values >= 0) & (values <= 1)))[0])
            raise ValueError(f"{name}[{bad}] is {values[bad]}: need a share between 0 and 1")
    if bins < 1:
        raise ValueError(f"bins={bins}: need at least 1")
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    gap = np.bincount(bin_of, right - confidence, minlength=bins)  # n_b (right − confidence)
    return float(np.abs(gap).sum() / len(right))


def auc(score: Sequence[float] | np.ndarray, positive: Sequence[bool] | np.ndarray) -> float:
    """Area under the ROC curve: how well scores tell positive ones from negative ones.

    The probability that a positive one has a higher score than a negative one, ties counting
    half: the Mann-Whitney statistic over the number of pairs, from ranks. NaN where there are
    only positive or only negative ones, and where a score is NaN.

    Raises:
        ValueError: not two lists of the same length.
    """
    score, positive = np.asarray(score, float), np.asarray(positive, bool)
    if score.ndim != 1 or score.shape != positive.shape:
        raise ValueError(
            f"score has shape {score.shape}, positive {positive.shape}: need one of each for "
            "everything that is scored"
        )
    count = int(positive.sum())
    pairs = count * (len(positive) - count)
    if not pairs or np.isnan(score).any():
        return math.nan
    _, index, counts = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[index]  # equals share their mean rank
    return float((rank[positive].sum() - count * (count + 1) / 2) / pairs)


def _per_question(values) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"values have shape {values.shape}: need one value per question")
    if not np.isfinite(values).all():
        bad = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ValueError(f"value {values[bad]} of question {bad} is not finite")
    return values


def _same_value(reference: str, answer: str) -> bool:
    a, b = _value(reference), _value(answer)
    return a == b


def _value(answer: str) -> Fraction | str:
    """The exact number that an answer spells, else its text without outer white space."""
    text = answer.strip()
    if len(text) <= _LONGEST_NUMBER and _NUMBER.fullmatch(text):
        try:
            return Fraction(text)
        except ZeroDivisionError:
            pass
    return text
