"""Beam search against a made-up language: steps are single digits, three of them a response."""

import pytest

from r1jax.search.beam import beam_search
from r1jax.search.best_of_n import AGGREGATES
from r1jax.search.requests import Grow, Purse, Score

LENGTH = 3


def finished(tokens):
    return len(tokens) == LENGTH


def play(search, grow, score):
    """Answers a search's requests; (what it found, the requests)."""
    requests, answer = [], None
    try:
        while True:
            request = search.send(answer)
            requests.append(request)
            if isinstance(request, Score):
                answer = [score(t) for t in request.responses]
            else:
                answer = [
                    grow(t, n, request.whole)
                    for t, n in zip(request.prefixes, request.counts, strict=True)
                ]
    except StopIteration as end:
        return end.value, requests


def in_turn(tokens, count, whole):
    """The digits 0, 1, 2 … in turn, one step each, or zeros to the end."""
    if whole:
        return [(*tokens, *[0] * (LENGTH - len(tokens)))] * count
    return [(*tokens, i % 10) for i in range(count)]


def value(tokens):
    """Scores after every step: the share of its digit in nine, so 9 9 9 is best."""
    return [digit / 9 for digit in tokens]


def search(**settings):
    given = dict(width=2, expansions=3, budget=16, finished=finished, aggregate=AGGREGATES["mean"])
    return beam_search(**given | settings)


def test_the_best_prefixes_are_kept_and_others_are_not_continued():
    found, requests = play(search(), in_turn, value)
    # 2 · 3 first steps: 0 … 5, of which 4 and 5 stay. Of each three next ones, 0 1 2; the means
    # of 52, 51, 50, 42, … are 7/2, 6/2, 5/2, 6/2: 52 and of the equal ones the first, 51.
    grown = [r.prefixes for r in requests if isinstance(r, Grow)]
    assert grown == [[()], [(5,), (4,)], [(5, 2), (5, 1)]]
    assert found.best == (5, 2, 2)
    # A token a step: 6 in each of three rounds, and all of them are scored once.
    assert found.generated == 18
    assert found.scored == 6 * 1 + 6 * 2 + 6 * 3


def test_with_one_beam_and_one_expansion_it_is_plain_sampling():
    found, requests = play(search(width=1, expansions=1, budget=3), in_turn, value)
    assert found.best == (0, 0, 0)
    assert [r.counts for r in requests if isinstance(r, Grow)] == [[1]] * 3


def test_equal_samples_are_one_branch():
    _, requests = play(search(), lambda t, n, whole: [(*t, 7)] * n, value)
    assert [r.responses for r in requests if isinstance(r, Score)][:2] == [[(7,)], [(7, 7)]]


def test_a_finished_response_keeps_its_place_until_better_ones_take_it():
    # "9" ends at once; everything else goes on with worse and worse digits.
    def short(tokens):
        return tokens[-1:] == (9,) or len(tokens) == LENGTH

    def grow(tokens, count, whole):
        return [(*tokens, digit) for digit in ((9, 8, 3) if not tokens else (1, 0))][:count]

    found, requests = play(search(finished=short, budget=8), grow, value)
    grown = [r.prefixes for r in requests if isinstance(r, Grow)]
    assert grown[1] == [(8,)]  # (9,) has one of the two places
    assert found.best == (9,)


def test_what_is_left_of_the_budget_goes_into_another_beam():
    found, requests = play(search(budget=36), in_turn, value)
    # 18 tokens a beam; in front of the third one 36 + 6/2 is more than 36.
    assert found.generated == 36
    assert sum(r.prefixes == [()] for r in requests if isinstance(r, Grow)) == 2
    assert len(found.candidates) == 12


def test_a_budget_too_small_for_a_response_completes_the_best():
    found, requests = play(search(budget=5), in_turn, value)
    # 6 tokens are spent after the first step: the best of these is sampled to the end.
    assert requests[-1] == Grow([(5,)], [1], whole=True)
    assert found.best == (5, 0, 0)
    assert found.generated == 8


def test_a_purse_closes_when_half_a_request_is_no_longer_left():
    purse = Purse(10, reserve=3)
    request = Grow([(1,)], [2])
    purse.pay(request, [[(1, 2, 3), (1, 2, 3)]])  # two times two tokens
    assert purse.generated == 4 and purse.open([])  # 4 + 4/2 + 3 = 9
    purse.pay(request, [[(1, 2, 3), (1, 2, 3)]])
    assert purse.generated == 8 and purse.open(["a response"])  # 8 + 4/2 = 10
    assert not purse.open([])  # three more to complete one
    purse.pay(request, [[(1, 2), (1,)]])
    assert purse.generated == 9 and purse.open(["a response"])  # 9 + 1/2
    purse.merge(4)  # all since then, 5 tokens, were one request
    assert not purse.open(["a response"])


def test_tokens_are_reserved_to_complete_a_response():
    # 6 tokens a round and three rounds: with 4 of 19 kept the last is not begun (12 + 3 + 4),
    # but with one fewer kept it is.
    stopped, _ = play(search(budget=18, reserve=4), in_turn, value)
    assert stopped.generated == 12 + 1
    whole, _ = play(search(budget=18, reserve=3), in_turn, value)
    assert whole.generated == 18


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_scores_are_aggregated_over_the_steps(aggregate):
    found, _ = play(search(aggregate=AGGREGATES[aggregate]), in_turn, value)
    top = max(found.candidates, key=lambda c: c.score)
    assert top.tokens == found.best
    assert top.score == pytest.approx(AGGREGATES[aggregate](value(found.best)))
