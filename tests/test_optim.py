import math

import jax
import numpy as np
import optax
import pytest

from r1jax.optim import OPTIMIZERS, adamw, cosine, muon, warmup

SHAPES = {
    "embed": (6, 4),
    "blocks": {
        "mlp": {"up": {"kernel": (2, 4, 6)}, "down": {"kernel": (2, 6, 4)}},
        "query": {"kernel": (2, 4, 4), "bias": (2, 4)},
        "norm": {"scale": (2, 4)},
    },
    "final_norm": {"scale": (4,)},
}


def tree(seed, size=1.0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: np.float32(size * rng.standard_normal(shape)),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def kernels(tree):
    b = tree["blocks"]
    return [b["mlp"]["up"]["kernel"], b["mlp"]["down"]["kernel"], b["query"]["kernel"]]


@pytest.mark.parametrize(
    ("step", "steps", "share"),
    [(0, 0, 1), (9, 0, 1), (0, 1, 0.5), (1, 1, 1), (0, 4, 0.2), (3, 4, 0.8), (4, 4, 1), (99, 4, 1)],
)
def test_warmup(step, steps, share):
    assert warmup(step, steps) == pytest.approx(share, abs=1e-15)


@pytest.mark.parametrize(
    ("step", "steps", "end", "share"),
    [
        (0, 10, 0.1, 1),
        (5, 10, 0.0, 0.5),
        (5, 10, 0.2, 0.6),  # half of the way from 1 to 0.2
        (2, 6, 0.0, 0.75),  # (1 + cos 60°) / 2
        (4, 6, 0.0, 0.25),
        (10, 10, 0.1, 0.1),
        (11, 10, 0.1, 0.1),
        (0, 0, 0.3, 1),
        (1, 0, 0.3, 0.3),
    ],
)
def test_cosine(step, steps, end, share):
    assert cosine(step, steps, end) == pytest.approx(share, abs=1e-15)


def run(optimizer, scale, steps=3, size=0.1):
    """Parameters after some updates that `scale` is applied to."""
    params = tree(0)
    state = optimizer.init(params)
    for step in range(steps):
        updates, state = optimizer.update(tree(step + 1, size), state, params)
        params = optax.apply_updates(params, jax.tree.map(lambda u: scale * u, updates))
    return params


def test_a_rate_applied_afterwards_is_the_rate_of_adamw():
    # Powers of two: scaling is exact, whatever is multiplied first.
    mine = run(adamw(weight_decay=0.5, clip_norm=1e9), np.float32(2**-6))
    decayed = {"embed": True, "blocks": {
        "mlp": {"up": {"kernel": True}, "down": {"kernel": True}},
        "query": {"kernel": True, "bias": False}, "norm": {"scale": False},
    }, "final_norm": {"scale": False}}  # fmt: skip
    theirs = run(optax.adamw(2**-6, b2=0.95, weight_decay=0.5, mask=decayed), 1)
    jax.tree.map(np.testing.assert_array_equal, mine, theirs)


def test_a_rate_applied_afterwards_is_the_rate_of_muon():
    dimensions = optax.contrib.MuonDimensionNumbers(1, 2)
    specs = {"embed": None, "blocks": {
        "mlp": {"up": {"kernel": dimensions}, "down": {"kernel": dimensions}},
        "query": {"kernel": dimensions, "bias": None}, "norm": {"scale": None},
    }, "final_norm": {"scale": None}}  # fmt: skip
    theirs = optax.contrib.muon(
        2**-6, adam_b2=0.95, weight_decay=0.5, muon_weight_dimension_numbers=lambda _: specs
    )
    mine = run(muon(weight_decay=0.5, clip_norm=1e9), np.float32(2**-6))
    jax.tree.map(np.testing.assert_array_equal, mine, run(theirs, 1))


def first_update(optimizer, gradients, params=None):
    params = tree(0) if params is None else params
    return optimizer.update(gradients, optimizer.init(params), params)[0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_scales_and_biases_do_not_decay(name):
    # With no gradient the update is the decay alone: -0.3 of the matrices, nothing of the rest
    # (the blocks' scales and biases have two axes as well: layers come first).
    params, zeros = tree(0), jax.tree.map(np.zeros_like, tree(0))
    update = first_update(OPTIMIZERS[name](weight_decay=0.3), zeros, params)
    for got, param in zip(kernels(update), kernels(params), strict=True):
        np.testing.assert_allclose(got, -0.3 * param, rtol=1e-6)
    for got in (
        update["blocks"]["query"]["bias"], update["blocks"]["norm"]["scale"],
        update["final_norm"]["scale"],
    ):  # fmt: skip
        assert not np.any(got)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_decay_unless_asked_for(name):
    zeros = jax.tree.map(np.zeros_like, tree(0))
    assert not any(np.any(u) for u in jax.tree.leaves(first_update(OPTIMIZERS[name](), zeros)))


def test_adamw_by_hand():
    # First step: m/(1-b1) = g and v/(1-b2) = g², so -g/|g|: the sign, whatever the size.
    gradients = tree(5)
    update = first_update(adamw(), gradients)
    jax.tree.map(
        lambda u, g: np.testing.assert_allclose(u, -np.sign(g), rtol=1e-4), update, gradients
    )


def test_gradients_are_clipped_by_their_global_norm():
    # Second moments remember sizes: after a gradient of norm 1 one of norm 4 is scaled to 1.
    def second(clip_norm, factor):
        optimizer, params = adamw(clip_norm=clip_norm), tree(0)
        unit = jax.tree.map(lambda g: g / optax.tree.norm(tree(1)), tree(1))
        _, state = optimizer.update(unit, optimizer.init(params), params)
        return optimizer.update(jax.tree.map(lambda g: factor * g, unit), state, params)[0]

    for clipped, unit in zip(*map(jax.tree.leaves, (second(1, 4), second(1e9, 1))), strict=True):
        np.testing.assert_allclose(clipped, unit, rtol=1e-5)
    assert not np.allclose(second(1e9, 4.0)["embed"], second(1e9, 1.0)["embed"], rtol=0.1)


def test_muon_orthogonalises_each_layer_of_the_blocks():
    # Five steps of Newton-Schulz map every singular value s of G/|G| by the polynomial
    # 3.4445 s - 4.7750 s³ + 2.0315 s⁵, and leave the singular vectors: done here by an SVD.
    # A matrix with more outputs than inputs is scaled by √(outputs/inputs).
    gradients = tree(7)
    update = first_update(muon(), gradients)
    for got, gradient in zip(kernels(update), kernels(gradients), strict=True):
        for layer, g in zip(np.asarray(got), gradient.astype(np.float64), strict=True):
            u, s, vh = np.linalg.svd(g / np.linalg.norm(g), full_matrices=False)
            for _ in range(5):
                s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
            assert (s > 0.3).all() and (s < 1.3).all()  # nearly orthogonal
            stretch = math.sqrt(max(1, g.shape[1] / g.shape[0]))
            np.testing.assert_allclose(layer, -stretch * (u * s) @ vh, rtol=0, atol=1e-4)


def test_muon_leaves_the_rest_to_adam():
    # Adam's first step (with Nesterov's look ahead) is a multiple of the sign.
    gradients = tree(7)
    update = first_update(muon(), gradients)
    for got, gradient in (
        (update["embed"], gradients["embed"]),
        (update["blocks"]["query"]["bias"], gradients["blocks"]["query"]["bias"]),
        (update["blocks"]["norm"]["scale"], gradients["blocks"]["norm"]["scale"]),
        (update["final_norm"]["scale"], gradients["final_norm"]["scale"]),
    ):
        # m̂ = 0.9 · 0.1 g / (1 - 0.9²) + 0.1 g / (1 - 0.9)
        np.testing.assert_allclose(got, -(0.09 / 0.19 + 1) * np.sign(gradient), rtol=1e-4)
