"""Labels of steps by Monte Carlo: how often the model's own continuations of a prefix end right.

Nobody says which step is wrong. A step is as good as the chance that what follows it leads to
the right answer, estimated by the share of `continuations` that do (arXiv:2312.08935, section
3.2). Its label is that share ("soft"), or whether any of them does ("hard"). The last step ends
the response: its label is whether this one is right.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from r1jax.search.requests import Tokens
from r1jax.search.steps import step_ends

LABELS = ("hard", "soft")


class Labelled(NamedTuple):
    """A response with the share of right continuations after each of its steps."""

    problem: int  # its index
    sample: int
    tokens: Tokens
    ends: tuple[int, ...]  # the steps' last tokens
    shares: tuple[float, ...]  # one a step, the last 0 or 1

    def labels(self, kind: str) -> list[float]:
        """A label a step, by `kind` of LABELS."""
        return [float(s > 0) if kind == "hard" else s for s in self.shares]

    def row(self) -> dict[str, Any]:
        """As a JSON object."""
        return self._asdict()

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Labelled":
        return cls(
            row["problem"], row["sample"], *(tuple(row[k]) for k in ("tokens", "ends", "shares"))
        )


def prefixes(
    responses: Mapping[tuple[int, int], Tokens], boundaries: frozenset[int]
) -> dict[tuple[int, Tokens], tuple[int, int]]:
    """What is to be continued of (problem, sample): responses, as (problem, prefix).

    All beginnings that end with a step, but whole responses; each once, in order of first use.
    With where that is: the sample, and the index of the prefix's last token.
    """
    found: dict[tuple[int, Tokens], tuple[int, int]] = {}
    for (problem, sample), tokens in responses.items():
        for end in step_ends(tokens, boundaries)[:-1]:
            found.setdefault((problem, tokens[: end + 1]), (sample, end))
    return found


def label(
    responses: Mapping[tuple[int, int], Tokens],
    right: Mapping[tuple[int, int], bool],
    shares: Mapping[tuple[int, Tokens], float],
    boundaries: frozenset[int],
) -> Iterable[Labelled]:
    """Responses with the `shares` of their prefixes, and at the end whether they are `right`."""
    for (problem, sample), tokens in responses.items():
        ends = step_ends(tokens, boundaries)
        own = [shares[problem, tokens[: end + 1]] for end in ends[:-1]]
        own.append(float(right[problem, sample]))
        yield Labelled(problem, sample, tokens, tuple(ends), tuple(own))
