"""Drawing a token: exact shares, exact support, and log-probabilities of what was drawn from."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.sampling.choose import choose, inverse_cdf, nucleus

BELOW_ONE = 1 - 2**-24  # jax.random.uniform gives multiples of 2⁻²³ in [0, 1)
draw = jax.jit(inverse_cdf)
cut = jax.jit(nucleus, static_argnums=1)


def probabilities(V, seed, zeros=0.0, power=4):
    rng = np.random.default_rng(seed)
    p = rng.exponential(size=V) ** power
    p[rng.random(V) < zeros] = 0
    p[rng.integers(V)] = 1
    return (p / p.sum()).astype(np.float32)


def drawn(p, uniforms, rows=2048):
    """Tokens for many uniforms, in batches of one shape."""
    padded = np.resize(uniforms, (-(-len(uniforms) // rows), rows)).astype(np.float32)
    p_BV = jnp.broadcast_to(p, (rows, len(p)))
    return np.concatenate([draw(p_BV, u) for u in padded])[: len(uniforms)]


def around(p):
    """Uniforms at the boundaries between tokens, and one float to either side."""
    cdf = (np.cumsum(p, dtype=np.float64) / np.sum(p, dtype=np.float64)).astype(np.float32)
    both = np.nextafter(cdf, np.float32(0)), np.nextafter(cdf, np.float32(2))
    return np.clip(np.unique([0, BELOW_ONE, *cdf, *both[0], *both[1]]), 0, BELOW_ONE)


# 37 and 300 take blocks of 16, 5,000 of 128; none is a multiple of its block.
@pytest.mark.parametrize("V", [37, 300, 5000])
@pytest.mark.parametrize("zeros", [0.5, 0.99])
def test_never_a_token_without_probability(V, zeros):
    # Two levels of cumulative sums round differently: at a boundary the second may be
    # asked for less than what stands before its block, and took the block's first token.
    for seed in range(10):
        p = probabilities(V, seed, zeros)
        assert (p[drawn(p, around(p))] > 0).all()


@pytest.mark.parametrize("uniform", [0.0, 2**-23, BELOW_ONE])
@pytest.mark.parametrize("V", [1, 16, 37, 5000])
def test_a_single_possible_token_is_always_drawn(V, uniform):
    for token in {0, V // 2, V - 1}:
        p_BV = np.zeros((1, V), np.float32)
        p_BV[0, token] = 1e-6  # unnormalised, as after a cut
        assert draw(p_BV, np.float32([uniform]))[0] == token


@pytest.mark.parametrize("V", [37, 300])
def test_shares_of_a_grid_of_uniforms_are_the_probabilities(V):
    # Of N points i/N an interval of length p holds N·p, give or take less than one point.
    N, p = 2**14, probabilities(V, seed=1, zeros=0.3, power=1)
    counts = np.bincount(drawn(p, np.arange(N) / N), minlength=V)
    exact = N * p / p.sum(dtype=np.float64)
    assert np.abs(counts - exact).max() <= 1
    assert (counts > 0).sum() > 20


def test_large_vocabulary_against_numpy():
    # The token that a float64 cumulative sum gives, but where the uniform is within rounding
    # (1e-6) of a boundary.
    V, N = 5000, 2**14
    p = probabilities(V, seed=2, zeros=0.3)
    uniforms = (np.arange(N) + 0.37) / N
    cdf = np.cumsum(p, dtype=np.float64) / np.sum(p, dtype=np.float64)
    expected = np.searchsorted(cdf, uniforms, side="right")
    at = drawn(p, uniforms)
    differs = at != expected
    assert np.abs(cdf[np.minimum(at, expected)] - uniforms)[differs].max(initial=0) < 1e-6
    assert differs.mean() < 0.01


def test_unnormalised_mass_is_scaled():
    p, uniforms = probabilities(37, seed=3), (np.arange(2048) + 0.5) / 2048
    np.testing.assert_array_equal(drawn(p * np.float32(0.125), uniforms), drawn(p, uniforms))


def nucleus_by_sorting(p, top_p):
    order = np.argsort(-p, kind="stable")
    enough = np.searchsorted(np.cumsum(p[order], dtype=np.float64), top_p)
    return p >= p[order[min(enough, len(p) - 1)]]


@pytest.mark.parametrize("V", [5, 37, 5000])
@pytest.mark.parametrize("top_p", [1e-6, 0.1, 0.5, 0.9, 0.95, 0.999])
def test_nucleus_against_sorting(V, top_p):
    p_BV = np.stack([probabilities(V, seed, zeros=0.2) for seed in range(8)])
    expected = np.stack([nucleus_by_sorting(p, top_p) for p in p_BV])
    np.testing.assert_array_equal(cut(p_BV, top_p), expected)


@pytest.mark.parametrize(
    ("p", "top_p", "kept"),
    [
        # equals stand or fall together: one of the three 0.2 would do
        ([0.3, 0.2, 0.2, 0.2, 0.1], 0.5, [1, 1, 1, 1, 0]),
        ([0.25, 0.25, 0.25, 0.25], 0.1, [1, 1, 1, 1]),
        # mass exactly top_p is enough (all are powers of two: no rounding)
        ([0.125, 0.5, 0.25, 0.125], 0.75, [0, 1, 1, 0]),
        ([0.125, 0.5, 0.25, 0.125], 0.75001, [1, 1, 1, 1]),
        # the most likely token stays, however small top_p
        ([0.1, 0.2, 0.7], 1e-9, [0, 0, 1]),
        # a sum just below top_p by rounding keeps everything with any mass
        ([0.5, 0.49999, 0.0], 0.99999999, [1, 1, None]),
    ],
)
def test_nucleus_by_hand(p, top_p, kept):
    mask = np.asarray(cut(np.float32([p]), top_p))[0]
    for got, wanted in zip(mask, kept, strict=True):
        assert wanted is None or got == wanted


@functools.cache
def chooser(temperature, top_p):
    return jax.jit(functools.partial(choose, temperature=temperature, top_p=top_p))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_p", [0.5, 0.9, 1.0])
def test_log_probabilities_are_of_the_cut_tempered_distribution(temperature, top_p):
    rng, B, V = np.random.default_rng(4), 512, 37
    logits_BV = np.float32(2 * rng.standard_normal((B, V)))
    uniform_B = np.float32(rng.random(B))
    token_B, logp_B = chooser(temperature, top_p)(logits_BV, uniform_B)
    assert token_B.dtype == jnp.int32 and logp_B.dtype == jnp.float32
    p_BV = np.exp(logits_BV.astype(np.float64) / temperature)
    p_BV /= p_BV.sum(axis=1, keepdims=True)
    if top_p < 1:
        p_BV *= np.stack([nucleus_by_sorting(p, top_p) for p in p_BV])
    p_BV /= p_BV.sum(axis=1, keepdims=True)
    expected = np.array([np.searchsorted(np.cumsum(p), u, side="right") for p, u in
                         zip(p_BV, uniform_B, strict=True)])  # fmt: skip
    np.testing.assert_array_equal(token_B, expected)
    np.testing.assert_allclose(logp_B, np.log(p_BV[np.arange(B), token_B]), rtol=0, atol=2e-6)


def test_temperature_zero_takes_the_most_likely():
    logits_BV = np.float32([[0, 3, 2], [5, 1, 5], [-1e30, -1e30, -2e30]])
    for uniform in (0.0, 0.5, BELOW_ONE):
        token_B, logp_B = chooser(0, 0.5)(logits_BV, np.full(3, uniform, np.float32))
        assert token_B.tolist() == [1, 0, 0]  # of equals the first
        assert logp_B.tolist() == [0, 0, 0]


def test_extreme_logits_stay_finite():
    # softmax of [1e4, 0, -inf] is [1, 0, 0] in floating point
    logits_BV = np.float32([[1e4, 0, -np.inf]] * 2)
    for top_p in (0.9, 1.0):
        token_B, logp_B = chooser(1.0, top_p)(logits_BV, np.float32([0, BELOW_ONE]))
        assert token_B.tolist() == [0, 0] and logp_B.tolist() == [0, 0]


def test_bfloat16_logits_are_drawn_from_in_float32():
    logits_BV = jnp.asarray(np.random.default_rng(5).standard_normal((64, 37)), jnp.bfloat16)
    uniform_B = np.float32(np.arange(64) / 64)
    half = chooser(0.7, 0.9)(logits_BV, uniform_B)
    full = chooser(0.7, 0.9)(logits_BV.astype(jnp.float32), uniform_B)
    for a, b in zip(half, full, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
