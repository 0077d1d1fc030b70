"""Rewards by models in GRPO: whom they score, when, and what they are added to."""

import numpy as np
import pytest

from r1jax.data.mixing import Mixture
from r1jax.rewards import REWARDS
from r1jax.stages import grpo

RULED = [{"id": f"r{c}", "question": c, "answer": "1"} for c in "abcd"]
OPEN = [{"id": f"o{c}", "question": c, "answer": "", "grader": "open"} for c in "wxyz"]
P, G = 4, 4


@pytest.fixture
def made(place, tiny, monkeypatch):
    """Runs the stage: (metrics, what the scorer was asked by step)."""
    monkeypatch.setitem(REWARDS, "tokens", lambda _, r: float(r.tokens))
    monkeypatch.setitem(REWARDS, "two", lambda *_: 2.0)

    def run(name="a", *, late=None, problems=RULED, ahead=False, stop_at=None, **preference):
        here, asked = place(name, stop_at=stop_at), []

        def scorer(problems, responses):
            asked.append([p["question"] for p in problems])
            return np.float32([r.text.count("e") for r in responses])

        config = grpo.GrpoConfig(
            problems="", steps=4, max_tokens=6, prompts_per_rollout=P, group_size=G,
            rewards={"tokens": 1.0}, row_tokens=64, lr=1e-2, checkpoint_every=1, rows=16, chunk=4,
            ahead=ahead, importance_cap=2.0 if ahead else 0.0,
            preference=grpo.PreferenceRewards(
                models={"model": "m"}, weights={"model": 0.5}, **preference
            ),
        )  # fmt: skip
        mixture = late and Mixture({str(i): p for i, p in enumerate(late)},
                                   {str(i): 1 for i in range(len(late))}, 0)  # fmt: skip
        grpo.run(config, here.run, tiny[1], problems, late=mixture, scorers={"model": scorer})
        return here.metrics, asked

    return run


def test_models_score_open_problems_in_the_last_steps(made):
    rows, asked = made(late=[RULED, OPEN], last=2, rules={"two": 3.0})
    # Two sources by turns: half of the questions of a step are open, from the third step on.
    assert len(asked) == 2
    assert all(len(a) == P // 2 * G and set(a) <= set("wxyz") for a in asked)
    for row in rows[:2]:
        assert "reward/model" not in row and "reward/two" not in row
        assert row["reward/total"] == row["reward/tokens"]
    for row in rows[2:]:
        assert row["reward/two"] == 2.0
        # Half of the responses have their tokens for a reward, the others 3 · 2 + 0.5 · model.
        open_total = 6 + 0.5 * row["reward/model"]
        assert row["reward/total"] == pytest.approx((row["reward/tokens"] + open_total) / 2)


def test_models_may_score_all_problems(made):
    rows, asked = made(on="all")
    assert [len(a) for a in asked] == [P * G] * 4
    for row in rows:
        total = row["reward/tokens"] + 0.5 * row["reward/model"]
        assert row["reward/total"] == pytest.approx(total)


def test_open_problems_before_the_last_part_have_their_rules_alone(made):
    rows, asked = made(problems=OPEN, last=1, rules={"two": 1.0})
    assert len(asked) == 1
    assert [row["reward/total"] for row in rows[:3]] == [2.0] * 3
    assert rows[3]["reward/total"] == pytest.approx(2 + 0.5 * rows[3]["reward/model"])


@pytest.mark.parametrize("ahead", [False, True])
def test_stopped_in_the_last_part_and_resumed(made, stopped, ahead):
    how = dict(late=[RULED, OPEN], last=2, ahead=ahead)
    whole, _ = made("whole", **how)
    for stop_at in (2, 3):
        with pytest.raises(stopped):
            made("stopped", stop_at=stop_at, **how)
    again, _ = made("stopped", **how)
    assert again == whole
    flops = [row["compute/flops"] for row in whole]
    assert all(np.diff([0, *flops]) > 0)  # the sum so far


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(models={"a": "m"}, weights={"b": 1.0}), "give every model its weight"),
        (dict(models={}, weights={}), "at least one model"),
        (dict(models={"a": "m"}, weights={"a": float("nan")}), "finite"),
        (dict(models={"a": "m"}, weights={"a": 1.0}, on="some"), "on='some'"),
        (dict(models={"a": "m"}, weights={"a": 1.0}, last=-1), "last=-1"),
        (dict(models={"helpful": "m"}, weights={"helpful": 1.0}, rules={"helpful": 1.0}),
         "a model and a rule"),
        (dict(models={"a": "m"}, weights={"a": 1.0}, rules={"x": 1.0}), "unknown reward 'x'"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        grpo.PreferenceRewards(**settings)


def test_more_steps_with_models_than_there_are(made):
    with pytest.raises(ValueError, match=r"preference\.last=9 is more than steps=4"):
        made(last=9)


def test_a_model_that_was_not_given(place, tiny):
    config = grpo.GrpoConfig(
        problems="", steps=1, max_tokens=4, prompts_per_rollout=4, group_size=2,
        preference=grpo.PreferenceRewards(models={"model": "m"}, weights={"model": 1.0}),
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"has the models \['model'\], given: \[\]"):
        grpo.run(config, place().run, tiny[1], RULED)
