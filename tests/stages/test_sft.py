"""Supervised fine-tuning: what is a step, what is a rate, and stopping half-way."""

import math

import jax
import numpy as np
import pytest

from r1jax.stages import sft
from r1jax.stages.sft import SftConfig

# Nine tokens each: begin, question, "=", five letters, end. Rows of 20 tokens hold two.
EXAMPLES = [
    {"question": q, "response": q * 5} for q in "abcdefghijkl"
]  # 12 documents: 6 rows, so 3 steps of 2 rows an epoch


def settings(**changes):
    return SftConfig(
        **dict(
            examples="unused", row_tokens=20, batch_rows=2, epochs=2, lr=1e-2, lr_end=1e-3,
            log_every=1,
        )
        | changes
    )  # fmt: skip


def train(here, config, params=None, examples=EXAMPLES):
    return sft.run(config, here.run, examples, params)


def assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_steps_rates_and_a_falling_loss(place, tiny):
    here = place()
    params = train(here, settings(epochs=10, warmup_steps=2), tiny[1])
    rows = here.metrics
    assert [row["step"] for row in rows] == list(range(1, 31))  # 10 epochs of 3 steps
    # Warm-up (s + 1)/3, then 1; cosine from 1 to a tenth: 0.1 + 0.9·½(1 + cos(π s/30))
    want = [
        1e-2 * min(1, (s + 1) / 3) * (0.1 + 0.45 * (1 + math.cos(math.pi * s / 30)))
        for s in range(30)
    ]
    assert [row["lr"] for row in rows] == pytest.approx(want)
    first, last = (np.mean([row["loss/nll"] for row in part]) for part in (rows[:3], rows[-3:]))
    assert last < first / 2
    assert list(here.checkpoints) == [30]
    assert not np.array_equal(params["embed"], tiny[1]["embed"])


@pytest.mark.parametrize(("steps", "taken"), [(0, 6), (4, 4), (6, 6), (100, 6)])
def test_steps_cut_epochs_short(place, tiny, steps, taken):
    here = place()
    train(here, settings(steps=steps, log_every=100), tiny[1])
    assert [row["step"] for row in here.metrics] == [taken]


def test_rows_that_do_not_fill_a_batch_are_left_out(place, tiny):
    here = place()  # 12 documents in 6 rows: one step of 4 rows an epoch
    train(here, settings(batch_rows=4), tiny[1])
    assert [row["step"] for row in here.metrics] == [1, 2]


def test_every_epoch_has_its_own_order_of_all_examples(place, tiny, monkeypatch):
    batches = []
    monkeypatch.setattr(
        sft, "pack", lambda docs, members, n, pack=sft.pack: batches.append(members)
        or pack(docs, members, n)
    )  # fmt: skip
    here = place()
    train(here, settings(), tiny[1])
    epochs = [[i for step in batches[at : at + 3] for row in step for i in row] for at in (0, 3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(12))
    assert epochs[0] != epochs[1]


def test_without_given_parameters_it_starts_from_random_ones(place):
    one, two = place("a"), place("b")
    other = place("c", seed=1)
    config = settings(epochs=1, steps=1)
    a, b, c = (train(p, config) for p in (one, two, other))
    assert_equal(a, b)
    assert not np.array_equal(a["embed"], c["embed"])


@pytest.mark.parametrize("stop_at", [2, 5])  # in the first and in the second epoch
def test_stopped_and_resumed_equals_uninterrupted(place, tiny, stopped, stop_at):
    config = settings(checkpoint_every=2)
    whole = place("whole")
    want = train(whole, config, tiny[1])
    with pytest.raises(stopped):
        train(place("parts", stop_at=stop_at), config, tiny[1])
    again = place("parts")
    assert max(again.checkpoints, default=0) == (stop_at - 1) // 2 * 2
    assert_equal(train(again, config, tiny[1]), want)
    assert again.metrics == whole.metrics


def test_a_finished_stage_does_nothing(place, tiny):
    here = place()
    want = train(here, settings(), tiny[1])
    before = here.metrics
    assert_equal(train(place(), settings(), tiny[1]), want)
    assert here.metrics == before


def train_with(here, config, examples=EXAMPLES):
    sft.run(config, here.run, examples)


def check_with(here, config, examples=EXAMPLES):
    sft.check(config, here.run, examples)


def test_what_passes_the_check(place):
    check_with(place(), settings(batch_rows=6))  # all 6 rows


def test_too_few_examples(place):
    message = "12 examples fill fewer than batch_rows=8 rows of row_tokens=20; lower one of them"
    for call in (train_with, check_with):
        with pytest.raises(ValueError, match=message):
            call(place(), settings(batch_rows=8))


def test_an_example_longer_than_a_row(place):
    # Begin token, question, "=", 20 letters, end token.
    long = [*EXAMPLES, {"question": "a", "response": "b" * 20}]
    for call in (train_with, check_with):
        with pytest.raises(ValueError, match=r"has 24 tokens, more than the 20 of a row"):
            call(place(), settings(), long)


def test_rows_that_the_mesh_cannot_cut(place, mesh8):
    for call in (train_with, check_with):
        with pytest.raises(ValueError, match="batch_rows=2 is not divisible by the 4 pieces"):
            call(place(mesh=mesh8), settings())
