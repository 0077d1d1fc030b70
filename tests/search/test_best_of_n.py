"""Choosing among finished responses."""

import pytest

from r1jax.search.best_of_n import AGGREGATES, best, vote


def same(a, b):
    return a.strip() == b.strip()


@pytest.mark.parametrize(
    ("name", "want"),
    # 0.5 · 0.2 · 0.8 = 0.08; (0.5 + 0.2 + 0.8) / 3 = 0.5
    [("last", 0.8), ("min", 0.2), ("mean", 0.5), ("product", 0.08)],
)
def test_aggregates(name, want):
    assert AGGREGATES[name]([0.5, 0.2, 0.8]) == pytest.approx(want)


def test_every_aggregate_of_a_single_step_is_its_score():
    assert {f([0.3]) for f in AGGREGATES.values()} == {0.3}


def test_best_is_the_first_of_equals():
    assert best([0.1, 0.7, 0.7]) == 1
    with pytest.raises(ValueError, match="no responses"):
        best([])


def test_votes_count_equivalent_answers_together():
    assert vote(["1", "2", " 2"], equal=same) == 1  # the first that said so
    assert vote(["1", "2"], equal=same) == 0  # a tie: seen first
    assert vote([None, None, "3"], equal=same) == 2
    assert vote([None], equal=same) is None


def test_weights_decide_between_votes():
    answers = ["1", "1", "1", "2"]
    assert vote(answers, [0.2, 0.2, 0.2, 0.5], equal=same) == 0  # 0.6 against 0.5
    assert vote(answers, [0.1, 0.1, 0.2, 0.5], equal=same) == 3  # 0.4 against 0.5
    assert vote(answers, [1, 1, 1, 1], equal=same) == vote(answers, equal=same)
