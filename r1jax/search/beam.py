"""Beam search over steps, guided by a process reward model.

From every one of `width` begun responses `expansions` next steps are sampled, and the `width`
best of all of them by score stay. (arXiv:2408.03314, section 5.2, which counts
width × expansions as the number of samples.)
"""

from collections.abc import Callable, Sequence

from r1jax.search.requests import Candidate, Found, Grow, Purse, Score, Search, Tokens


def beam_search(
    *,
    width: int,
    expansions: int,
    budget: float,
    finished: Callable[[Tokens], bool],
    aggregate: Callable[[Sequence[float]], float],
    reserve: float = 0.0,
) -> Search:
    """Beams until `budget` tokens are generated: when one is done, another begins.

    A beam is done when the best `width` responses that it knows are all finished. A finished
    one keeps its place among them until better ones take it. `aggregate` makes a response's
    score of those of its steps; the best response is the finished one with the highest.
    `reserve` is about what it takes to complete a response (see `Purse`).
    """
    purse, candidates, live = Purse(budget, reserve), [], [((), 0.0)]
    while purse.open(candidates):
        # The first step has one prefix to start from, and as many samples as every other.
        live, done = [((), 0.0)], []
        while live and purse.open(candidates):
            count = expansions if live[0][0] else width * expansions
            request = Grow([tokens for tokens, _ in live], [count] * len(live))
            answer = yield request
            purse.pay(request, answer)
            # The same step sampled twice is one branch.
            grown = list(dict.fromkeys(tokens for group in answer for tokens in group))
            request = Score(grown, "process")
            steps = yield request
            purse.read(request)
            scored = [(t, aggregate(s)) for t, s in zip(grown, steps, strict=True)]
            new = [Candidate(*pair) for pair in scored if finished(pair[0])]
            candidates += new
            done += new
            ranked = sorted([*done, *(p for p in scored if not finished(p[0]))], key=_score)[:width]
            done = [Candidate(*pair) for pair in ranked if finished(pair[0])]
            live = [pair for pair in ranked if not finished(pair[0])]
    if not candidates:
        request = Grow([live[0][0]], [1], whole=True)
        answer = yield request
        purse.pay(request, answer)
        candidates = [Candidate(answer[0][0], live[0][1])]
    top = min(candidates, key=_score)
    return Found(candidates, top.tokens, purse.generated, purse.scored)


def _score(pair) -> float:
    return -pair[1]  # sorting is stable: of equals the first stays
