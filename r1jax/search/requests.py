"""What a search asks for, and what it comes to.

A search of one problem is a generator: it yields a request, is sent its answer, and returns a
`Found`. Responses, whole or begun, are tuples of token ids, end token included.
"""

from collections.abc import Generator, Sized
from typing import NamedTuple

Tokens = tuple[int, ...]


class Grow(NamedTuple):
    """`counts[i]` samples of what follows `prefixes[i]`: one step, or all up to the end.

    Answer: for every prefix the list of its continuations, each with the prefix in front.
    """

    prefixes: list[Tokens]
    counts: list[int]
    whole: bool = False


class Score(NamedTuple):
    """Scores of begun responses by a model, after each of their steps.

    Answer: for every response the list of its steps' scores, in (0, 1).
    """

    responses: list[Tokens]
    model: str  # "process" or "value"


class Candidate(NamedTuple):
    """A finished response, and how good the search holds it to be."""

    tokens: Tokens
    score: float


class Found(NamedTuple):
    """The outcome of a search: the candidates in the order in which they were finished."""

    candidates: list[Candidate]
    best: Tokens  # the search's own choice
    generated: int  # tokens sampled
    scored: int  # tokens read by a score model


Search = Generator[Grow | Score, list, Found]


class Purse:
    """Counts a search's tokens against its budget of generated ones.

    A request may be made while at least half of what the last one cost is left, so that
    searches spend the budget in the mean, neither more nor less. As long as no response is
    finished, `reserve` tokens are kept to complete one.
    """

    def __init__(self, budget: float, reserve: float = 0.0):
        self.budget, self.reserve = budget, reserve
        self.generated, self.scored, self._last = 0, 0, 0

    def open(self, candidates: Sized) -> bool:
        """Whether there is something left to search with, with these responses finished."""
        kept = 0 if candidates else self.reserve
        return self.generated + self._last / 2 + kept <= self.budget

    def pay(self, request: Grow, answer: list[list[Tokens]]) -> None:
        """Books the tokens that `answer` has beyond the prefixes."""
        cost = sum(
            len(grown) - len(prefix)
            for prefix, group in zip(request.prefixes, answer, strict=True)
            for grown in group
        )
        self.generated += cost
        self._last = cost

    def merge(self, before: int) -> None:
        """Takes all requests since `before` tokens had been generated for one."""
        self._last = self.generated - before

    def read(self, request: Score) -> None:
        self.scored += sum(map(len, request.responses))
