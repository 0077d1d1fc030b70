"""Reward models: what a batch's loss is of, what is held out, and stopping half-way."""

import dataclasses
import logging
import math
from pathlib import Path

import jax
import numpy as np
import pytest

import r1jax.models
from r1jax import checkpoints
from r1jax.data.sources import problem_order
from r1jax.models import scoring
from r1jax.models.families import abstract_params, make_model
from r1jax.scoring import Scorer, scored_document
from r1jax.sharding import make_mesh
from r1jax.stages import preference
from r1jax.stages.preference import PreferenceConfig, measure

# Preferred is what has an x where the other has a y. With begin token, question, "=" and end
# token 8 tokens each: a row of 20 holds two.
PAIRS = [
    {"question": q, "chosen": f"{a}x{b}{q}", "rejected": f"{a}y{b}{q}"}
    for q in "abcdefghij"
    for a, b in ("mn", "op")
]  # 10 questions, 20 pairs
PROGRAMS = {}


@pytest.fixture(autouse=True)
def compile_once(monkeypatch):
    """Shares the jitted programs of stages with equal settings; none here changes the optimiser."""

    def step(model, optimizer, loss, make=preference.scoring_step):
        key = model, loss.keywords["margin"]
        if key not in PROGRAMS:
            PROGRAMS[key] = make(model, optimizer, loss)
        return PROGRAMS[key]

    def scorer(run, model):
        key = run.mesh, model
        if key not in PROGRAMS:
            PROGRAMS[key] = Scorer(run, model, batch_tokens=512)
        return PROGRAMS[key]

    monkeypatch.setattr(preference, "scoring_step", step)
    monkeypatch.setattr(preference, "Scorer", scorer)


def settings(**changes):
    return PreferenceConfig(
        **dict(
            pairs="unused", scope="whole", row_tokens=20, batch_pairs=4, epochs=2, lr=1e-2,
            held_out=0.2, log_every=1,
        )
        | changes
    )  # fmt: skip


def train(here, config, params, pairs=PAIRS):
    return preference.run(config, here.run, pairs, params)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_steps_rates_and_learning(place, tiny):
    here = place()
    # A fifth of the 20 pairs is held out, 2 questions whole: 16 pairs are 4 steps of 4 pairs.
    params = train(here, settings(epochs=10, lr_end=1e-3, warmup_steps=2), tiny[1])
    rows = here.metrics
    assert [row["step"] for row in rows] == list(range(1, 41))
    # Warm-up (s + 1)/3, then 1; cosine from 1 to a tenth: 0.1 + 0.9·½(1 + cos(π s/40))
    want = [
        1e-2 * min(1, (s + 1) / 3) * (0.1 + 0.45 * (1 + math.cos(math.pi * s / 40)))
        for s in range(40)
    ]
    assert [row["lr"] for row in rows] == pytest.approx(want)
    # A head of zeros: every pair a tie, −log σ(0) = log 2.
    assert rows[0]["loss/total"] == pytest.approx(math.log(2))
    assert rows[0]["loss/accuracy"] == 0.5 and rows[0]["loss/margin"] == 0
    # Questions that it has never seen, with one letter that tells.
    last = rows[-1]
    assert last["preference/accuracy"] == 1 and last["preference/margin"] > 1
    assert last["preference/loss"] < 0.2 and last["loss/total"] < 0.2
    assert list(here.checkpoints) == [40]
    assert not np.array_equal(params["embed"], tiny[1]["embed"])


@pytest.mark.parametrize("margin", [0.0, 1.5])
def test_a_batchs_loss_is_that_of_its_pairs_one_by_one(place, tiny, margin):
    """Step 2 against the checkpoint of step 1: no rows, segments or gathered ends."""
    here = place()
    config = settings(held_out=0, epochs=1, steps=2, checkpoint_every=1, margin=margin)
    train(here, config, tiny[1])
    model, params = scoring.load(here.checkpoints[1], mesh=here.run.mesh)
    score = jax.jit(lambda tokens_BT: scoring.scores(model, params, tokens_BT))

    def end(pair, side):
        tokens = scored_document(here.run, pair["question"], pair[side], "whole").tokens
        return float(score(np.array([tokens]))[0, -1])

    batch = [PAIRS[i] for i in problem_order(20, 0, 0)[4:8]]
    leads = np.array([end(p, "chosen") - end(p, "rejected") for p in batch])
    row = here.metrics[1]
    want = np.log1p(np.exp(-(leads - margin))).mean()
    assert row["loss/total"] == pytest.approx(want, rel=1e-4)
    assert row["loss/margin"] == pytest.approx(leads.mean(), rel=1e-3)
    assert row["loss/accuracy"] == np.mean(leads > 0)


def test_metrics_of_pairs_by_hand():
    """Differences 2, 0, −1 and 3: σ(|d|) = 0.8808, 0.5, 0.7311, 0.9526."""

    class Given:
        def ends(self, params, documents):
            return np.float32([3, 1, 0.5, 0.5, -1, 0, 3, 0])

    got = measure(Given(), None, [("chosen", "rejected")] * 4)
    assert got == {
        "preference/accuracy": (1 + 0.5 + 0 + 1) / 4,
        "preference/margin": (2 + 0 - 1 + 3) / 4,
        # log(1 + e^-2) = 0.126928, log 2, log(1 + e) = 1.313262, log(1 + e^-3) = 0.048587
        "preference/loss": pytest.approx((0.126928 + 0.693147 + 1.313262 + 0.048587) / 4, abs=1e-6),
        # Each in a bin of its own: |1 − 0.8808|, |0.5 − 0.5|, |0 − 0.7311|, |1 − 0.9526|.
        "preference/calibration_error": pytest.approx((0.1192 + 0 + 0.7311 + 0.0474) / 4, abs=1e-4),
    }
    assert measure(Given(), None, []) == {}


@pytest.mark.parametrize(("steps", "taken"), [(0, 8), (3, 3), (100, 8)])
def test_steps_cut_epochs_short(place, tiny, steps, taken):
    here = place()
    train(here, settings(steps=steps, log_every=100), tiny[1])
    assert [row["step"] for row in here.metrics] == [taken]


def test_held_out_pairs_are_never_trained_on(place, tiny, monkeypatch):
    packed = []
    monkeypatch.setattr(
        preference, "pack", lambda docs, rows, n, pack=preference.pack: packed.append(
            [tuple(d.tokens) for d in docs]
        ) or pack(docs, rows, n)
    )  # fmt: skip
    here = place()
    train(here, settings(), tiny[1])
    every = {
        tuple(scored_document(here.run, p["question"], p[side], "whole").tokens): p["question"]
        for p in PAIRS
        for side in ("chosen", "rejected")
    }
    epochs = [[t for batch in packed[at : at + 4] for t in batch] for at in (0, 4)]
    assert sorted(epochs[0]) == sorted(epochs[1]) and epochs[0] != epochs[1]
    assert len(set(epochs[0])) == 32  # of 16 pairs, every one once
    seen = {every[t] for t in epochs[0]}
    assert len(seen) == 8  # the two questions that are missing are held out


def test_operations_are_counted(place, tiny):
    """8 responses a step of 8 tokens. A token's products in a layer: queries and what they give
    16·16 each, keys and values 16·8 each, three of 16·24 in the feed-forward; attention
    2·4·(4 + 4) for each of (8 + 1)/2 tokens on average. Forward and twice that backward."""
    here = place()
    train(here, settings(steps=3), tiny[1])
    products = 2 * (2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 24) + 2 * 4 * (4 + 4) * 4.5
    step = 3 * (8 * 8) * 2 * products
    assert [row["compute/flops"] for row in here.metrics] == pytest.approx(
        [step, 2 * step, 3 * step]
    )


def test_nothing_held_out_measures_nothing(place, tiny):
    here = place()
    train(here, settings(held_out=0, steps=1), tiny[1])
    assert not [name for name in here.metrics[0] if name.startswith("preference/")]


@pytest.mark.parametrize("stop_at", [3, 7])  # in the first and in the second epoch
def test_stopped_and_resumed_equals_uninterrupted(place, tiny, stopped, stop_at):
    config = settings(checkpoint_every=2)
    whole = place("whole")
    want = train(whole, config, tiny[1])
    with pytest.raises(stopped):
        train(place("parts", stop_at=stop_at), config, tiny[1])
    again = place("parts")
    assert max(again.checkpoints) == stop_at - 1
    assert_equal(train(again, config, tiny[1]), want)
    assert again.metrics == whole.metrics


def test_a_finished_stage_does_nothing_and_says_its_scope(place, tiny):
    here = place()
    want = train(here, settings(steps=3), tiny[1])
    before = here.metrics
    assert_equal(train(place(), settings(steps=3), tiny[1]), want)
    assert here.metrics == before
    folder = here.checkpoints[3]
    assert checkpoints.load_meta(folder)["scoring"] == {"scope": "whole"}
    assert_equal(scoring.load(folder, mesh=here.run.mesh)[1], want)


class Tags:
    """A tokenizer of a token a character, of 29 of them."""

    alphabet = "</>=abcdefghijklmnopqrstuvwxy"
    pad_id, bos_id, eos_id, stop_ids, specials = 0, 1, 2, (2,), ()

    def encode(self, text):
        return [3 + self.alphabet.index(c) for c in text]


def test_pairs_that_the_scope_shows_as_the_same_are_left_out(place, tiny, caplog):
    """Two of three differ in their reasoning alone."""
    pairs = [
        {"question": q, "chosen": f"<think>c</think>{q}", "rejected": f"<think>a</think>{end}"}
        for q, end in zip("abc" * 4, "abd" * 4, strict=True)
    ]
    here = place()
    here.run = dataclasses.replace(here.run, tokenizer=Tags())
    config = settings(held_out=0, epochs=1, row_tokens=40, scope="final")
    with caplog.at_level(logging.WARNING, "r1jax"):
        preference.check(config, here.run, pairs)
        assert not caplog.text  # the run says it
        train(here, config, tiny[1], pairs)
    assert "8 of 12 pairs left out: chosen and rejected are the same" in caplog.text
    assert [row["step"] for row in here.metrics] == [1]  # 4 pairs: one step


def test_too_few_pairs(place, tiny):
    message = r"16 pairs to train on \(of 20\) are fewer than batch_pairs=17; lower it, or give"
    preference.check(settings(batch_pairs=16), place().run, PAIRS)
    with pytest.raises(ValueError, match=message):
        preference.check(settings(batch_pairs=17), place().run, PAIRS)
    with pytest.raises(ValueError, match=message):
        train(place(), settings(batch_pairs=17), tiny[1])


def test_a_response_longer_than_a_row(place, tiny):
    # Begin token, question, "=", 20 letters, end token.
    long = [*PAIRS, {"question": "z", "chosen": "b", "rejected": "b" * 20}]
    message = r"a response to 'z' has 24 tokens with its prompt, more"
    with pytest.raises(ValueError, match=message):
        preference.check(settings(), place().run, long)
    with pytest.raises(ValueError, match=message):
        train(place(), settings(), tiny[1], long)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scope": "steps"}, "scope='steps' is unknown; known: final, whole"),
        ({"optimizer": "sgd"}, "optimizer='sgd' is unknown; known: adamw, muon"),
        ({"batch_pairs": 0}, "batch_pairs=0 must be at least 1"),
        ({"log_every": 0}, "log_every=0 must be at least 1"),
        ({"steps": -1}, "steps=-1 must not be negative"),
        ({"margin": -0.5}, "margin=-0.5 must not be negative"),
        ({"lr": 0}, "lr=0 must be positive"),
        ({"held_out": 1}, "held_out=1 must be a share below 1; 0 holds nothing out"),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        settings(**changes)


# --- families and meshes ---------------------------------------------------------------

FIXTURES = Path(__file__).parents[1] / "models/fixtures"
RATE = 0.01  # of the selection bias


def assert_agree(rows, rows8):
    assert len(rows) == len(rows8) > 0
    for a, b in zip(rows, rows8, strict=True):
        for metric in a.keys() - {"stage"}:
            assert a[metric] == pytest.approx(b[metric], rel=1e-4, abs=2e-5), metric


def test_one_device_and_eight_agree(place, tiny, mesh8):
    one, eight = place("one"), place("eight", mesh=mesh8)
    train(one, settings(epochs=1, lr=1e-3), tiny[1])
    with jax.set_mesh(mesh8):
        params = jax.device_put(
            tiny[1], jax.tree.map(lambda s: s.sharding, abstract_params(tiny[0], mesh8))
        )
        cut = train(eight, settings(epochs=1, lr=1e-3), params)
    assert_agree(one.metrics, eight.metrics)
    assert "tensor" in cut["blocks"]["attention"]["out"]["kernel"].sharding.spec
    assert len(cut["score"]["weight"].sharding.device_set) == 8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3", "deepseek_v3_yarn_shards_mtp"])
def test_families_agree_on_one_device_and_on_eight(name, mesh1, place):
    deepseek = name.startswith("deepseek")
    eight = make_mesh(fsdp=2, expert=2, tensor=2) if deepseek else make_mesh(fsdp=4, tensor=2)
    results = []
    for mesh in (mesh1, eight):
        model, params = r1jax.models.load(FIXTURES / name, mesh=mesh, dtype="float32")
        more = {"balance_rate": RATE} if deepseek else {}
        model = make_model(dataclasses.replace(model.config, context=64, **more))
        here = place(str(mesh.size), mesh=mesh)
        here.run = dataclasses.replace(here.run, model=model)
        with jax.set_mesh(mesh):
            got = train(here, settings(epochs=1, lr=1e-4), params)
        results.append((here.metrics, got))
    (rows, one), (rows8, cut) = results
    assert_agree(rows, rows8)
    assert rows[-1]["preference/loss"] < math.log(2)
    if deepseek:
        # 4 updates have moved every bias by the rate, up, down or not.
        before = r1jax.models.load(FIXTURES / name, mesh=mesh1, dtype="float32")[1]
        bias, start = (p["blocks"]["router"]["bias"] for p in (one, before))
        moves = (np.asarray(bias) - np.asarray(start)) / RATE
        np.testing.assert_allclose(moves, moves.round(), atol=1e-4)
        assert 1 <= np.abs(moves).max() <= 4.001
        np.testing.assert_allclose(bias, cut["blocks"]["router"]["bias"], atol=1e-6)
