"""Frequencies against the papers' formulas a pair at a time, and what rotations keep."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.models.rope import (
    RopeScaling,
    frequencies,
    rope_angles,
    rotate,
    rotate_neighbours,
)

LLAMA31 = RopeScaling("llama3", 8.0, original_context=8192)
V3 = RopeScaling("yarn", 40.0, original_context=4096, mscale=1.0, mscale_all_dim=1.0)


def plain(dim, theta):
    return [theta ** (-2 * i / dim) for i in range(dim // 2)]


def test_frequencies_without_scaling():
    # θ^(−2i/h) with θ = 10,000 and h = 8: 1, 1/10, 1/100, 1/1000
    np.testing.assert_allclose(frequencies(8, 10_000.0, None), [1, 0.1, 0.01, 0.001], rtol=1e-12)


def test_linear_divides_every_frequency():
    found = frequencies(12, 500.0, RopeScaling("linear", 2.5))
    np.testing.assert_allclose(found, [f / 2.5 for f in plain(12, 500.0)], rtol=1e-12)


@pytest.mark.parametrize(
    "scaling",
    [LLAMA31, RopeScaling("llama3", 32.0, 4096, low_freq_factor=2.0, high_freq_factor=16.0)],
    ids=["3.1", "other"],
)
def test_llama3_against_a_loop(scaling):
    s, expected, blended = scaling, [], 0
    for f in plain(128, 500_000.0):
        wavelength = 2 * math.pi / f
        if wavelength < s.original_context / s.high_freq_factor:
            expected.append(f)
        elif wavelength > s.original_context / s.low_freq_factor:
            expected.append(f / s.factor)
        else:
            smooth = (s.original_context / wavelength - s.low_freq_factor) / (
                s.high_freq_factor - s.low_freq_factor
            )
            expected.append((1 - smooth) * f / s.factor + smooth * f)
            blended += 1
    assert blended >= 5
    np.testing.assert_allclose(frequencies(128, 500_000.0, s), expected, rtol=1e-12)


def test_llama31_keeps_wavelengths_below_2048_and_stretches_those_above_8192_eightfold():
    before = np.array(plain(128, 500_000.0))
    wavelength, ratio = 2 * math.pi / before, frequencies(128, 500_000.0, LLAMA31) / before
    # 2π · 500,000^(i/64) reaches 2048 at i = 64 ln(2048/2π)/ln(500,000) = 28.2, 8192 at 35.0
    short, long = wavelength < 2048, wavelength > 8192
    assert (short.sum(), long.sum()) == (29, 29)
    np.testing.assert_allclose(ratio[short], 1, rtol=1e-12)
    np.testing.assert_allclose(ratio[long], 1 / 8, rtol=1e-12)
    between = ratio[~short & ~long]
    assert (np.diff(between) < 0).all() and between.max() < 1 and between.min() > 1 / 8


def pair_that_turns(turns, dim, theta, context):
    """Where context · θ^(−2i/dim) / 2π = turns, by bisection over i."""
    low, high = -4.0 * dim, 4.0 * dim
    for _ in range(200):
        middle = (low + high) / 2
        more = context * theta ** (-2 * middle / dim) / (2 * math.pi) > turns
        low, high = (middle, high) if more else (low, middle)
    return low


@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize(
    ("dim", "theta", "scaling"),
    [
        (64, 10_000.0, V3),
        (32, 150_000.0, RopeScaling("yarn", 32.0, 4096, beta_fast=16.0, beta_slow=2.0)),
        (8, 10_000.0, RopeScaling("yarn", 4.0, 16)),  # even pair 0 turns less than beta_fast
        (8, 10.0, RopeScaling("yarn", 4.0, 1024)),  # the slowest pair turns more than beta_slow
    ],
    ids=["v3", "other", "slow", "fast"],
)
def test_yarn_against_a_loop(dim, theta, scaling, truncate):
    s = dataclasses.replace(scaling, truncate=truncate)
    first, last = (
        pair_that_turns(turns, dim, theta, s.original_context)
        for turns in (s.beta_fast, s.beta_slow)
    )
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    expected = []
    for i, f in enumerate(plain(dim, theta)):
        stretched = min(1, max(0, (i - first) / (last - first)))
        expected.append(f * (1 - stretched) + f / s.factor * stretched)
    np.testing.assert_allclose(frequencies(dim, theta, s), expected, rtol=1e-9)


def test_yarn_of_deepseek_v3_by_hand():
    # 64 ln(4096 / (2π · 32)) / (2 ln 10,000) = 10.47 and, for one turn, 22.51: pairs up to 10
    # are kept, those from 23 divided by 40, and of pair i between (i − 10)/13 is stretched.
    kept = [1.0] * 11 + [1 - (i - 10) / 13 for i in range(11, 23)] + [0.0] * 9
    ratio = frequencies(64, 10_000.0, V3) / np.array(plain(64, 10_000.0))
    np.testing.assert_allclose(ratio, [k + (1 - k) / 40 for k in kept], rtol=1e-12)


def test_yarn_whose_bands_meet_is_a_step():
    # 8 ln(63 / 2π√10) / (2 ln 10) = 4 (log10(10.03) − 1/2) = 2.005 is both ends of the ramp.
    s = RopeScaling("yarn", 4.0, 63, beta_fast=10**0.5, beta_slow=10**0.5, truncate=False)
    ratio = frequencies(8, 10.0, s) / np.array(plain(8, 10.0))
    np.testing.assert_allclose(ratio, [1, 1, 1, 1 / 4], rtol=1e-12)


@pytest.mark.parametrize(
    ("settings", "rotation", "softmax"),
    [
        # 0.1 ln 40 + 1 = 1.3688879; its square 1.8738542
        (dict(mscale=1.0, mscale_all_dim=1.0), 1.0, 1.8738542),  # V3
        (dict(), 1.3688879, 1.0),
        (dict(mscale=0.707), 1.3688879, 1.0),  # without the other it is not read
        # 0.0707 ln 40 + 1 = 1.2608038; squared 1.5896261
        (dict(mscale_all_dim=0.707), 1.3688879, 1.5896261),
        (dict(mscale=1.0, mscale_all_dim=0.707), 1.3688879 / 1.2608038, 1.5896261),
        (dict(attention_factor=1.25), 1.25, 1.0),
        (dict(attention_factor=1.25, mscale=1.0, mscale_all_dim=1.0), 1.25, 1.8738542),
    ],
)
def test_yarns_scales_by_hand(settings, rotation, softmax):
    s = RopeScaling("yarn", 40.0, original_context=4096, **settings)
    assert s.rotation_scale == pytest.approx(rotation, rel=1e-6)
    assert s.softmax_scale == pytest.approx(softmax, rel=1e-6)


def test_only_yarn_has_scales():
    for kind in ("linear", "llama3"):
        s = RopeScaling(kind, 40.0, 4096, mscale=1.0, mscale_all_dim=2.0, attention_factor=3.0)
        assert (s.rotation_scale, s.softmax_scale) == (1.0, 1.0)


def angles(positions, dim=8, scaling=None):
    return rope_angles(np.asarray(positions, np.int32)[None], dim, 100.0, scaling)


def vectors(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_angles_are_position_times_frequency():
    cos, sin = angles([0, 3, 70], scaling=RopeScaling("yarn", 2.0, 16))
    assert cos.shape == sin.shape == (1, 1, 3, 4) and cos.dtype == sin.dtype == np.float32
    turn = frequencies(8, 100.0, RopeScaling("yarn", 2.0, 16))
    scale = 0.1 * math.log(2) + 1
    for t, position in enumerate([0, 3, 70]):
        for i in range(4):
            # A float32 angle of at most 70 is off by at most 4e-6.
            assert cos[0, 0, t, i] == pytest.approx(scale * math.cos(position * turn[i]), abs=1e-5)
            assert sin[0, 0, t, i] == pytest.approx(scale * math.sin(position * turn[i]), abs=1e-5)


def test_rotation_of_a_quarter():
    # Frequencies 1 and 1/10 at an angle of π/2 and 0: the first pair's (a, b) becomes (−b, a).
    x = np.array([1, 2, 3, 4], np.float32).reshape(1, 1, 1, 4)
    cos, sin = (np.array(v, np.float32).reshape(1, 1, 1, 2) for v in ([0, 1], [1, 0]))
    np.testing.assert_array_equal(rotate(x, cos, sin).ravel(), [-3, 2, 1, 4])
    np.testing.assert_array_equal(rotate_neighbours(x, cos, sin).ravel(), [-2, 1, 3, 4])


def test_the_two_pairings_are_one_rotation_of_permuted_dimensions():
    x, halves = vectors(2, 3, 5, 8), [0, 2, 4, 6, 1, 3, 5, 7]
    rope = angles(range(5))
    np.testing.assert_array_equal(
        rotate(x[..., halves], *rope), rotate_neighbours(x, *rope)[..., halves]
    )


@pytest.mark.parametrize("turned", [rotate, rotate_neighbours])
def test_rotations_keep_norms_and_scores_see_differences_of_positions_only(turned):
    q, k = vectors(1, 1, 1, 8), vectors(1, 1, 1, 8, seed=1)

    def score(i, j):
        return float(np.sum(turned(q, *angles([i])) * turned(k, *angles([j]))))

    for position in (0, 1, 17):
        norm = np.linalg.norm(turned(q, *angles([position])))
        assert norm == pytest.approx(np.linalg.norm(q), rel=1e-6)
    assert score(9, 4) == pytest.approx(score(5, 0), abs=1e-5)
    assert score(60, 55) == pytest.approx(score(5, 0), abs=1e-4)
    assert abs(score(9, 4) - score(4, 9)) > 0.1 and abs(score(9, 4) - score(9, 5)) > 0.1


def test_yarn_lengthens_rotated_vectors_by_its_scale():
    x = vectors(1, 2, 3, 8)
    cos, sin = angles(range(3), scaling=RopeScaling("yarn", 4.0, 16, attention_factor=1.5))
    for turned in (rotate, rotate_neighbours):
        lengths = np.linalg.norm(turned(x, cos, sin), axis=-1)
        np.testing.assert_allclose(lengths, 1.5 * np.linalg.norm(x, axis=-1), rtol=1e-6)


@pytest.mark.parametrize("turned", [rotate, rotate_neighbours])
def test_rotation_keeps_the_type(turned):
    assert turned(jnp.ones((1, 1, 2, 8), jnp.bfloat16), *angles(range(2))).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(kind="ntk", factor=2.0), "kind='ntk' is not one of linear, llama3, yarn"),
        (dict(kind="linear", factor=0.5), "factor=0.5 must be at least 1"),
        (dict(kind="linear", factor=math.nan), "factor=nan must be at least 1"),
        (dict(kind="llama3", factor=2.0), "kind='llama3' needs original_context, in tokens"),
        (dict(kind="yarn", factor=2.0), "kind='yarn' needs original_context, in tokens"),
        (
            dict(kind="llama3", factor=2.0, original_context=8, high_freq_factor=1.0),
            "high_freq_factor=1.0 must exceed low_freq_factor=1.0, and both must be positive",
        ),
        (
            dict(kind="llama3", factor=2.0, original_context=8, low_freq_factor=0.0),
            "high_freq_factor=4.0 must exceed low_freq_factor=0.0, and both must be positive",
        ),
    ],
)
def test_bad_scalings(settings, message):
    with pytest.raises(ValueError, match=message):
        RopeScaling(**settings)
