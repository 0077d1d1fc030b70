"""Making a base model: the gate opens on skill, and stopping anywhere loses nothing."""

import dataclasses
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from r1jax.data.tasks import TASKS, mini_aime, mini_world
from r1jax.data.tasks.mini_aime import Probe
from r1jax.stages import pretrain
from r1jax.stages.pretrain import Gate, PretrainConfig


def letter(rng):
    return "abcdefgh"[rng.integers(8)]


@dataclasses.dataclass(frozen=True)
class ToyWeb:
    noise: float = 0.5


# The textbook says `a=xy`: x whatever the question, then y. The web says `zzz`.
TOY = SimpleNamespace(
    Web=ToyWeb,
    textbook_document=lambda rng: (letter(rng), "xy"),
    web_document=lambda rng, web: (letter(rng), "zzz"),
    probes=lambda seed, count: {
        "repair": [Probe("a", "", "x")] * count,  # what follows `a=`
        "resume": [Probe("b", "x", "y")] * count,
    },
)


@pytest.fixture(autouse=True)
def toy_task(monkeypatch):
    monkeypatch.setitem(TASKS, "toy", TOY)


def settings(gate=None, **changes):
    # Every 4 steps until both skills are at 0.9; then 3 steps of web.
    gate = dict(repair=0.9, resume=0.9, probes=8, every=4, max_steps=80) | (gate or {})
    return PretrainConfig(
        **dict(
            task="toy", row_tokens=16, textbook_rows=4, textbook_lr=2e-2, web_rows=4, web_steps=3,
            optimizer="adamw", warmup_steps=1, log_every=1, checkpoint_every=2, gate=Gate(**gate),
        )
        | changes
    )  # fmt: skip


def assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def measured(rows):
    return {r["step"]: (r["skill/repair"], r["skill/resume"]) for r in rows if "skill/repair" in r}


@pytest.fixture
def whole(place):
    """An uninterrupted run: (parameters, place)."""
    here = place("whole")
    return pretrain.run(settings(), here.run), here


def test_the_gate_opens_on_skill_and_the_web_follows(whole):
    _, here = whole
    rows, skills = here.metrics, measured(here.metrics)
    *before, closed, last = skills
    assert before, "learned too soon to show that the gate waits"
    assert all(step % 4 == 0 for step in (*before, closed))
    assert all(min(skills[step]) < 0.9 for step in before)
    assert min(skills[closed]) >= 0.9
    assert last == closed + 3 == rows[-1]["step"]  # measured once more at the end
    assert [row["step"] for row in rows] == list(range(1, last + 1))
    assert max(here.checkpoints) == last


def test_learning_rates_of_the_two_halves():
    config = settings(warmup_steps=1, textbook_lr=0.02, web_lr=0.01, web_steps=4)
    rate = pretrain._learning_rate
    # Textbook: (s + 1)/2 up to 1. Web, from step 10: a cosine, 1, ½(1 + √½), ½, …
    assert [rate(config, s, None) for s in (0, 1, 2)] == [0.01, 0.02, 0.02]
    assert [rate(config, s, 10) for s in (10, 11, 12)] == pytest.approx(
        [0.01, 0.01 * (1 + 0.5**0.5) / 2, 0.005]
    )


def test_documents_are_of_the_step_alone(place):
    here = place()
    config = settings()

    def texts(step, web):
        batch = pretrain._batch(config, here.run, step, web=web)
        assert batch.tokens_BT.shape == (4, 16)
        assert batch.segments_BT.max(axis=1).min() >= 1  # no row is empty
        return [here.run.tokenizer.decode(row) for row in batch.tokens_BT]

    assert texts(3, False) == texts(3, False)
    assert len({tuple(texts(step, False)) for step in range(8)}) == 8
    assert all(re.fullmatch("([a-h]=xy)+", text) for text in texts(3, False))
    assert all(re.fullmatch("([a-h]=zzz)+", text) for text in texts(3, True))


def test_a_gate_that_is_never_met(place):
    gate = dict(repair=1.1, resume=0.5, every=2, max_steps=4)
    here = place()
    with pytest.raises(RuntimeError) as error:
        pretrain.run(settings(gate, textbook_lr=1e-5), here.run)
    message = str(error.value)
    assert message.startswith("stage: the skill gate was not met in 4 steps: measured {'repair': ")
    assert "wanted repair=1.1 resume=0.5; raise gate.max_steps" in message
    assert here.metrics[-1]["step"] == 3  # what came before is on disk


def test_stopped_and_resumed_equals_uninterrupted(place, stopped, whole):
    want, here = whole
    closed = list(measured(here.metrics))[-2]  # even, like the steps with checkpoints
    resumed_from = {3: 2, closed: closed - 2, closed + 1: closed, closed + 3: closed + 2}
    for stop_at, newest in resumed_from.items():
        with pytest.raises(stopped):
            pretrain.run(settings(), place(f"stop{stop_at}", stop_at=stop_at).run)
        again = place(f"stop{stop_at}")
        assert max(again.checkpoints) == newest
        assert_equal(pretrain.run(settings(), again.run), want)
        assert again.metrics == here.metrics


def test_rows_that_the_mesh_cannot_cut(place, mesh8):
    with pytest.raises(ValueError, match="web_rows=6 is not divisible by the 4 pieces"):
        pretrain.run(settings(web_rows=6), place(mesh=mesh8).run)


def test_the_webs_composition_is_the_tasks_own():
    assert settings(web=dict(noise=0.1)).web == ToyWeb(noise=0.1)
    assert PretrainConfig().web == mini_aime.Web()
    config = PretrainConfig(task="mini_world", web=dict(guess=0.5, check=0.04, mixed=0))
    assert config.web == mini_world.Web(guess=0.5, check=0.04, mixed=0)
    assert dataclasses.replace(config, web_steps=5).web == config.web  # a Web is taken as it is


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(web=dict(mixed=0.1)), "web.mixed is unknown for task mini_aime; known: guess, "),
        (dict(web=dict(gues=0.1)), "did you mean 'guess'?"),
        (dict(web=dict(guess="much")), "web.guess='much' must be a number"),
        (dict(web=dict(guess=True)), "web.guess=True must be a number"),
        (dict(web=dict(guess=0.9)), "guess + sloppy + careful + check = 1.46, must be 1"),
        (dict(web=3), "web=3 must be settings by name"),
        (dict(task="mini_world", web=mini_aime.Web()), "must be settings by name"),
        (dict(task="mini_general"), "has no base corpus; tasks with one: mini_aime, mini_world"),
    ],
)
def test_a_composition_that_is_none(changes, message):
    with pytest.raises(ValueError) as error:
        PretrainConfig(**changes)
    assert message in str(error.value)
