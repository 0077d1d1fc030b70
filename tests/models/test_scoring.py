"""Score models: what a score is of, their layout, and finding them again on disk."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from r1jax import models
from r1jax.checkpoints import CheckpointError, Checkpoints
from r1jax.learner import init_state
from r1jax.models import scoring
from r1jax.models.families import make_model
from r1jax.optim import OPTIMIZERS
from r1jax.sharding import path_name
from r1jax.types import TrainState


@pytest.fixture(scope="module")
def scored(tiny):
    """(model, params with a head that is not 0)."""
    model, params = tiny
    rng = np.random.default_rng(5)
    head = {"weight": jnp.float32(rng.standard_normal(16)), "bias": jnp.float32(0.25)}
    return model, {**params, "score": head}


def test_a_new_head_scores_everything_0(tiny):
    model, params = tiny
    tokens_BT = np.arange(24).reshape(2, 12) % model.config.vocabulary
    score_BT = scoring.scores(model, scoring.with_score(params), tokens_BT)
    assert score_BT.dtype == jnp.float32
    np.testing.assert_array_equal(score_BT, np.zeros((2, 12)))
    assert "score" not in params


def test_scores_are_a_linear_map_of_the_final_activations(scored):
    """Against the language model itself: its logits are a linear map of the same activations."""
    model, params = scored
    tokens_BT = np.arange(20).reshape(2, 10) % model.config.vocabulary
    weight = np.asarray(params["score"]["weight"])
    untied = make_model(dataclasses.replace(model.config, tied=False))
    table = np.zeros((16, 32), np.float32)
    table[:, 7] = weight
    logits_BTV = untied.apply({**params, "unembed": jnp.asarray(table)}, tokens_BT)
    score_BT = scoring.scores(model, params, tokens_BT)
    np.testing.assert_allclose(score_BT, np.asarray(logits_BTV)[..., 7] + 0.25, atol=1e-5)


def test_a_score_is_of_what_came_before_in_its_segment(scored):
    model, params = scored
    one, two = [3, 4, 5, 6], [7, 8, 9]
    tokens = np.array([[*one, *two, 0]])
    segments, positions = np.array([[1] * 4 + [2] * 3 + [0]]), np.array([[0, 1, 2, 3, 0, 1, 2, 0]])
    [packed] = np.asarray(
        scoring.scores(model, params, tokens, positions_BT=positions, segments_BT=segments)
    )
    [alone] = np.asarray(scoring.scores(model, params, np.array([two])))
    np.testing.assert_allclose(packed[4:7], alone, atol=1e-5)
    [shorter] = np.asarray(scoring.scores(model, params, np.array([one[:2]])))
    np.testing.assert_allclose(packed[:2], shorter, atol=1e-5)


def test_activations_of_half_precision_are_scored_in_full(scored):
    model, params = scored
    half = make_model(dataclasses.replace(model.config, dtype="bfloat16"))
    tokens_BT = np.arange(12)[None] % 32
    hidden_BTD, _, _ = half.forward(params, tokens_BT)
    assert hidden_BTD.dtype == jnp.bfloat16
    want = np.asarray(hidden_BTD, np.float64) @ np.asarray(params["score"]["weight"], np.float64)
    got = scoring.scores(half, params, tokens_BT)
    np.testing.assert_allclose(got, want + 0.25, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimisers_take_the_head_for_a_vector(scored, name):
    """One step along a gradient that is 1 everywhere moves all of the head by the rate.

    Adam's first step is the sign of the gradient (1 / √1, up to epsilon). The one beside
    Muon looks ahead by the momentum b1 = 0.9: 1 + 0.9 · (1 − 0.9) / (1 − 0.9²) = 1 + 0.09 / 0.19.
    Muon itself would orthogonalise what it takes for a matrix.
    """
    first = {"adamw": 1.0, "muon": 1 + 0.09 / 0.19}[name]
    _, params = scored
    params = {k: params[k] for k in ("embed", "final_norm", "score")}
    optimizer = OPTIMIZERS[name](clip_norm=1e9)

    @jax.jit
    def step(params):
        ones = jax.tree.map(jnp.ones_like, params)
        updates, _ = optimizer.update(ones, optimizer.init(params), params)
        return optax.apply_updates(params, updates)

    moved = step(params)["score"]
    for leaf, before in params["score"].items():
        np.testing.assert_allclose(moved[leaf], before - first, atol=1e-4)


def test_every_device_has_the_head(scored, mesh8):
    model, params = scored
    state = init_state(model, OPTIMIZERS["adamw"](), mesh8, params=params)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    of_head = [x for path, x in leaves if "score" in path_name(path)]
    assert len(of_head) == 6  # weight and bias, and Adam's two moments of each
    assert all(x.sharding.is_fully_replicated and len(x.devices()) == 8 for x in of_head)


def test_an_unknown_scope():
    with pytest.raises(ValueError, match="scope='all' is unknown; known: final, whole, steps, val"):
        scoring.about("all")


@pytest.fixture(scope="module")
def saved(scored, tmp_path_factory):
    """Folder with a score model, `scores`, and a language model, `words`, both at step 3."""
    model, params = scored
    folder = tmp_path_factory.mktemp("saved")
    about = {"model": models.describe(model)}
    words = {k: v for k, v in params.items() if k != "score"}
    for name, tree, more in (("scores", params, scoring.about("whole")), ("words", words, {})):
        with Checkpoints(folder / name, about=about | more) as checkpoints:
            checkpoints.save(TrainState(tree, (), jnp.int32(3)), {})
    return folder


def test_saved_and_loaded(saved, scored, mesh1, mesh8):
    for mesh in (mesh1, mesh8):
        model, params = scoring.load(saved / "scores", mesh=mesh)
        assert model.config == scored[0].config
        jax.tree.map(np.testing.assert_array_equal, params, scored[1])
        assert params["score"]["weight"].sharding.mesh == mesh
    assert "tensor" in str(params["embed"].sharding.spec)
    assert scoring.read_scope(saved / "scores" / "3") == "whole"


def test_in_half_precision_the_head_stays_in_full(saved, mesh1):
    _, params = scoring.load(saved / "scores", mesh=mesh1, dtype="bfloat16")
    assert params["embed"].dtype == jnp.bfloat16
    assert params["score"]["weight"].dtype == jnp.float32


def test_a_language_model_is_no_score_model(saved, mesh1):
    message = f"{re.escape(str(saved / 'words' / '3'))} holds no score model"
    for call in (lambda p: scoring.load(p, mesh=mesh1), scoring.read_scope):
        with pytest.raises(CheckpointError, match=message):
            call(saved / "words")


def test_a_score_model_on_another_model(saved, scored, mesh1):
    other = make_model(dataclasses.replace(scored[0].config, mlp=32))
    with pytest.raises(CheckpointError, match=r"another model:\n  mlp: 24 -> 32"):
        scoring.load_params(saved / "scores", other, mesh1)


def test_the_scope_stands_in_the_meta(saved):
    meta = json.loads((saved / "scores" / "3" / "meta" / "metadata").read_text())
    assert meta["scoring"] == {"scope": "whole"}
