"""Process reward models: labels whose truth is known, the loss by hand, and stopping half-way."""

import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import scoring as scorers
from r1jax.models.scoring import load_params
from r1jax.rewards import REWARDS
from r1jax.search import engine
from r1jax.search.labels import Labelled
from r1jax.stages import process
from r1jax.stages.process import ProcessConfig, StepBatch, step_loss
from r1jax.writers import read_lines

NEW, K = 8, 4
PROBLEMS = [{"id": str(i), "question": q, "answer": "1"} for i, q in enumerate("abcdefgh")]
EARLY = "abcdefghijklm"  # half of the letters


def begins_early(problem, response):
    """What a prefix decides: whether the first letter is of the first half."""
    return float(response.text[:1] in EARLY and response.text != "")


PROGRAMS = {}


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    """A toy for the accuracy; and programs that are compiled once for all tests here."""
    monkeypatch.setitem(REWARDS, "accuracy", begins_early)

    def once(module, name):
        make = getattr(module, name)

        def shared(*given, **rest):
            key = (name, *(x for x in (*given, *rest.values()) if hash_of(x)))
            if key not in PROGRAMS:
                PROGRAMS[key] = make(*given, **rest)
            return PROGRAMS[key]

        monkeypatch.setattr(module, name, shared)

    once(engine, "Sampler")
    update = process.scoring_step
    monkeypatch.setattr(
        process, "scoring_step",
        lambda model, optimizer, loss: PROGRAMS.setdefault(model, update(model, optimizer, loss)),
    )  # fmt: skip
    read = scorers.Scorer.__init__

    def scorer(self, run, model, **rest):
        read(self, run, model, **rest)
        self._scores = PROGRAMS.setdefault(("scores", model), self._scores)

    monkeypatch.setattr(scorers.Scorer, "__init__", scorer)


def hash_of(x):
    try:
        return hash(x) is not None
    except TypeError:
        return False


def settings(**changes):
    return ProcessConfig(
        **dict(
            problems="unused", max_tokens=NEW, row_tokens=32, samples=3, continuations=K,
            separator="e", held_out=2, problems_at_once=3, rows=32, chunk=4, batch_rows=2,
            epochs=2, lr=1e-2, lr_end=1e-3, log_every=1, checkpoint_every=100,
        )
        | changes
    )  # fmt: skip


def train(here, tiny, **changes):
    return process.run(settings(**changes), here.run, PROBLEMS, tiny[1])


def labels(here):
    path = here.run.workdir / "data" / "stage.labels.jsonl"
    return [Labelled.of(row) for row in read_lines(path)[1:]]


def assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_labels_of_prefixes_that_decide_everything(place, tiny):
    here = place()
    train(here, tiny)
    made, decode = labels(here), here.run.tokenizer.decode
    assert [(x.problem, x.sample) for x in made] == list(itertools.product(range(8), range(3)))
    steps = 0
    for x in made:
        assert list(x.ends[:-1]) == [
            i for i, token in enumerate(x.tokens[:-1]) if decode([token]) == "e"
        ]
        assert x.ends[-1] == len(x.tokens) - 1
        # Continuations of a prefix with a letter in it are all right, or all wrong.
        for end, share in zip(x.ends, x.shares, strict=True):
            if begun := decode(x.tokens[: end + 1]):
                assert share == float(begun[0] in EARLY)
        steps += len(x.ends) - 1
    assert steps >= 3  # the model does say e
    assert 0 < np.mean([x.shares[-1] for x in made]) < 1


def test_shares_are_those_of_the_continuations(place, tiny, monkeypatch):
    seen = []

    def last_letter(problem, response):
        seen.append((problem["id"], response.text))
        return float(response.text[-1:] in EARLY)

    monkeypatch.setitem(REWARDS, "accuracy", last_letter)
    here = place()
    train(here, tiny, problems_at_once=8)
    made, decode = labels(here), here.run.tokenizer.decode
    count, at = len(made), len(made)  # first the responses are graded, then what continues them
    states = {}
    for x in made:
        assert seen[x.problem * 3 + x.sample] == (str(x.problem), decode(x.tokens))
        for end, share in zip(x.ends[:-1], x.shares, strict=False):
            states.setdefault((x.problem, x.tokens[: end + 1]), share)
    for (problem, prefix), share in states.items():
        continued = seen[at : at + K]
        assert all(p == str(problem) and text.startswith(decode(prefix)) for p, text in continued)
        assert share == np.mean([text[-1:] in EARLY for _, text in continued])
        at += K
    assert at == len(seen) and len(states) * K == len(seen) - count
    assert {s for s in states.values() if 0 < s < 1}  # some are undecided


def test_the_loss_by_hand():
    score_BT = jnp.array([[math.nan, math.log(3), 5.0], [0.0, math.inf, -math.log(4)]])
    zeros = np.zeros((2, 3), int)
    batch = StepBatch(
        zeros, zeros, zeros,
        label_BT=np.array([[1, 1, 1], [0.5, 1, 0]], np.float32),
        mask_BT=np.array([[0, 1, 0], [1, 0, 1]], np.float32),
    )  # fmt: skip
    # σ(log 3) = 3/4 for a right step, σ(0) = ½ for half a one, 1 − σ(−log 4) = 4/5 for a wrong one.
    want = -(math.log(3 / 4) + math.log(1 / 2) + math.log(4 / 5)) / 3
    for f in (step_loss, jax.jit(step_loss)):
        loss, found = f(score_BT, batch)
        assert float(loss) == pytest.approx(want, rel=1e-6)
        assert float(found["nll"]) == float(loss)
    grad_BT = jax.grad(lambda s: step_loss(s, batch)[0])(score_BT)
    # (σ(s) − y) / steps under the mask, exactly 0 elsewhere
    np.testing.assert_allclose(
        grad_BT, [[0, (3 / 4 - 1) / 3, 0], [0, 0, (1 / 5) / 3]], rtol=1e-6, atol=0
    )


def test_a_batch_without_steps_has_no_loss():
    zeros = np.zeros((1, 2), np.float32)
    empty = StepBatch(zeros, zeros, zeros, zeros, zeros)
    assert float(step_loss(jnp.full((1, 2), jnp.nan), empty)[0]) == 0


def test_it_learns_what_the_first_letter_decides(place, tiny):
    here = place()
    train(here, tiny, epochs=30)
    first, last = here.metrics[0], here.metrics[-1]
    assert first["process/nll"] == pytest.approx(math.log(2))  # all scores are 0
    assert first["process/auc"] == 0.5 and first["process/brier"] == 0.25
    assert last["process/auc"] > 0.95 and last["process/brier"] < 0.2
    assert last["process/positive"] == first["process/positive"]


def test_scopes_differ_in_their_labels_alone(place, tiny):
    for name, scope in (("a", "steps"), ("b", "value")):
        train(place(name), tiny, scope=scope)
    a, b = (place(name) for name in "ab")
    assert labels(a) == labels(b)
    for here, scope in ((a, "steps"), (b, "value")):
        (folder,) = here.checkpoints.values()
        meta = json.loads((folder / "meta" / "metadata").read_text())
        assert meta["scoring"] == {"scope": scope}
    assert (settings().kind, settings(scope="value").kind) == ("hard", "soft")
    assert settings(labels="soft").kind == "soft"


def test_a_checkpoint_opens_as_a_score_model(place, tiny):
    here = place()
    params = train(here, tiny)
    loaded = load_params(here.run.workdir / "checkpoints/stage", here.run.model, here.run.mesh)
    assert_equal(loaded, params)
    assert np.abs(params["score"]["weight"]).max() > 0


def test_stopped_in_training_and_resumed_equals_uninterrupted(place, tiny, stopped):
    whole = place("whole")
    want = train(whole, tiny, checkpoint_every=2)
    with pytest.raises(stopped):
        train(place("parts", stop_at=3), tiny, checkpoint_every=2)
    again = place("parts")
    assert list(again.checkpoints) == [2]
    assert_equal(train(again, tiny, checkpoint_every=2), want)
    assert again.metrics == whole.metrics


def test_stopped_in_labelling_and_resumed_equals_uninterrupted(place, tiny, monkeypatch):
    whole = place("whole")
    want = train(whole, tiny)
    path = whole.run.workdir / "data" / "stage.labels.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    parts = place("parts")
    other = parts.run.workdir / "data" / "stage.labels.jsonl"
    other.parent.mkdir()
    # Two parts of 3 problems with 3 responses, one more response, and half a line.
    other.write_text("".join(lines[:20]) + lines[20][:9])
    asked = []
    part = process._Labeller.part
    monkeypatch.setattr(
        process._Labeller, "part",
        lambda self, params, chosen, pool: asked.append(chosen) or part(self, params, chosen, pool),
    )  # fmt: skip
    assert_equal(train(parts, tiny), want)
    assert asked == [range(6, 8)]
    assert other.read_text() == path.read_text()


def test_labels_do_not_depend_on_the_problems_beside(place, tiny, monkeypatch):
    # What the last letter decides: the shares are those of the drawn continuations.
    monkeypatch.setitem(REWARDS, "accuracy", lambda _, r: float(r.text[-1:] in EARLY))
    made = []
    for at_once in (2, 4):
        here = place(str(at_once))
        train(here, tiny, problems_at_once=at_once, epochs=1)
        made.append(labels(here))
    assert made[0] == made[1]
    assert any(0 < share < 1 for x in made[0] for share in x.shares[:-1])


def test_every_place_to_continue_from_has_keys_of_its_own(place, tiny, monkeypatch):
    here, named = place(), []
    call = engine.Growth.__call__

    def naming(self, params, states, count, key, ids, **rest):
        if any(tokens for _, tokens in states):  # not the responses themselves
            named.extend(zip(states, ids, strict=True))
        return call(self, params, states, count, key, ids, **rest)

    monkeypatch.setattr(engine.Growth, "__call__", naming)
    train(here, tiny, epochs=1)
    assert len({i for _, i in named}) == len(named) >= 3
    made = {(x.problem, x.sample): x for x in labels(here)}
    for (problem, prefix), i in named:
        place_of, end = divmod(i, NEW)
        # Three samples a problem.
        assert divmod(place_of, 3)[0] == problem
        x = made[divmod(place_of, 3)]
        assert x.tokens[: end + 1] == prefix and end in x.ends[:-1]


def test_labels_of_other_settings_are_made_anew(place, tiny):
    here = place()
    train(here, tiny)
    before = labels(here)
    train(place(), tiny, temperature=0.5)
    assert labels(here) != before


def test_a_finished_stage_does_nothing(place, tiny):
    want = train(place(), tiny)
    before = place().metrics
    assert_equal(train(place(), tiny), want)
    assert place().metrics == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scope": "final"}, "scope='final' is unknown"),
        ({"labels": "firm"}, "labels='firm' is unknown"),
        ({"continuations": 0}, "continuations=0 must be at least 1"),
        ({"temperature": 0.0}, "temperature=0.0 must be positive"),
        ({"row_tokens": 9}, "row_tokens=9 is less than .* raise it to 11"),
        ({"held_out": 8}, "8 problems, of which held_out=8"),
        ({"max_tokens": 61, "row_tokens": 64}, "that exceeds the model's context of 64"),
        # 6 problems that are not held out, 3 responses each
        ({"batch_rows": 19}, "18 responses fill fewer than batch_rows=19"),
        ({"separator": "!"}, "no token of the tokenizer holds the separator '!'"),
        # 8 · 2^29 = 2^32 places
        ({"samples": 2**29}, "places to continue from, more than the 2147483648"),
    ],
)
def test_settings_that_cannot_work(place, tiny, changes, message):
    here = place()
    with pytest.raises(ValueError, match=message):
        process.check(settings(**changes), here.run, PROBLEMS)
    with pytest.raises(ValueError, match=message):
        train(here, tiny, **changes)
    assert not list(here.run.workdir.iterdir())  # nothing has been sampled


def test_responses_that_turn_out_too_short_to_fill_a_batch(place, tiny):
    """Of 8 tokens at most with a prompt of 3: two or more share a row of 32, 18 never fill 18."""
    process.check(settings(batch_rows=18), place().run, PROBLEMS)
    with pytest.raises(ValueError, match="18 responses fill fewer than batch_rows=18 rows of"):
        train(place(), tiny, batch_rows=18)
