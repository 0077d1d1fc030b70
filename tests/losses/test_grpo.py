"""The policy losses against the formulas, written out again in plain Python loops."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.advantages import group_relative
from r1jax.losses import LOSSES, dapo_loss, dr_grpo_loss, grpo_loss, gspo_loss
from r1jax.types import Counts

METRICS = {
    "policy",
    "kl",
    "ratio_mean",
    "clip_fraction",
    "clip_fraction_low",
    "clip_fraction_high",
    "approx_kl_old",
}
SETTINGS = {"clip_eps": (0.2, 0.28), "kl_coef": 0.04}
WRAPS = [pytest.param(lambda f: f, id="plain"), pytest.param(jax.jit, id="jit")]


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=LOSSES)
def name(request):
    return request.param


def batch(seed=3, B=6, T=7):
    """logp, old, ref, adv, mask in float64: both advantage signs, both clip sides, gaps, and
    one row with nothing under the mask."""
    rng = np.random.default_rng(seed)
    logp = -rng.exponential(1.0, (B, T))
    old = logp + 0.4 * rng.standard_normal((B, T))
    ref = logp + 0.5 * rng.standard_normal((B, T))
    adv = rng.standard_normal(B)
    mask = (rng.random((B, T)) < 0.7).astype(np.float64)
    mask[3] = 0
    return logp, old, ref, adv, mask


def reference(name, logp, old, ref, adv, mask, *, clip_eps, kl_coef, length_constant=None):
    """Loss and metrics, straight from the formulas. All rows and all tokens are the batch."""
    low, high = clip_eps if isinstance(clip_eps, tuple) else (clip_eps, clip_eps)
    B, T = logp.shape
    tokens = sum(mask[i, t] for i in range(B) for t in range(T))
    out = dict.fromkeys(METRICS, 0.0)
    for i in range(B):
        where = [t for t in range(T) if mask[i, t]]
        for t in where:
            ratio = math.exp(logp[i, t] - old[i, t])
            if name == "gspo":
                ratio = math.exp(sum(logp[i, s] - old[i, s] for s in where) / len(where))
            clipped = min(max(ratio, 1 - low), 1 + high)
            weight = {
                "grpo": 1 / (B * len(where)),
                "gspo": 1 / (B * len(where)),
                "dr_grpo": 1 / (B * (length_constant or T)),
                "dapo": 1 / tokens,
            }[name]
            r = math.exp(ref[i, t] - logp[i, t])
            out["policy"] -= weight * min(ratio * adv[i], clipped * adv[i])
            out["kl"] += weight * (r - math.log(r) - 1)
            out["ratio_mean"] += ratio / tokens
            out["clip_fraction_low"] += (adv[i] < 0 and ratio < 1 - low) / tokens
            out["clip_fraction_high"] += (adv[i] > 0 and ratio > 1 + high) / tokens
            d = logp[i, t] - old[i, t]
            out["approx_kl_old"] += (math.exp(d) - d - 1) / tokens
    out["clip_fraction"] = out["clip_fraction_low"] + out["clip_fraction_high"]
    return out["policy"] + kl_coef * out["kl"], out


def gradient(name, arrays, wrap=lambda f: f, **settings):
    """Gradient in logp_BT."""
    logp, *rest = arrays
    f = wrap(jax.grad(lambda x: LOSSES[name](x, *rest, **settings)[0]))
    return np.asarray(f(jnp.asarray(logp)))


def golden():
    """FACTS B: lengths 2, 3, 6, 1; one group with rewards 1, 0, 0, 1."""
    i, t = np.arange(4.0)[:, None], np.arange(6.0)[None, :]
    logp = -0.1 * (1 + i + t)
    old = logp - 0.3 * np.sin(i + 2 * t)
    ref = logp + 0.2 * np.cos(2 * i + t)
    mask = (t < np.array([2, 3, 6, 1])[:, None]).astype(np.float64)
    return logp, old, ref, group_relative(np.array([1.0, 0, 0, 1]), 4), mask


@pytest.mark.parametrize("wrap", WRAPS)
def test_golden_vector(x64, wrap):
    loss, _ = wrap(lambda *a: grpo_loss(*a, clip_eps=0.2, kl_coef=0.04))(*golden())
    assert float(loss) == pytest.approx(-0.02110149, abs=1e-7 / 10)


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("clip_eps", [0.2, (0.1, 0.3), (1.0, 0.2), 10, 0.0])
def test_against_python_loops(x64, name, clip_eps, wrap):
    if name == "gspo" and clip_eps == 0.2:
        clip_eps = 0.05  # its ratios move less: let the clip bite
    settings = {"clip_eps": clip_eps, "kl_coef": 0.04}
    arrays = batch()
    loss, metrics = wrap(lambda *a: LOSSES[name](*a, **settings))(*arrays)
    want_loss, want = reference(name, *arrays, **settings)
    assert float(loss) == pytest.approx(want_loss, abs=1e-12)
    assert {k: float(v) for k, v in metrics.items()} == pytest.approx(want, abs=1e-12)


def test_the_batch_of_the_tests_reaches_every_case():
    metrics = reference("grpo", *batch(), **SETTINGS)[1]
    assert metrics["clip_fraction_low"] > 0.05 and metrics["clip_fraction_high"] > 0.05
    metrics = reference("gspo", *batch(), clip_eps=0.05, kl_coef=0.0)[1]
    assert metrics["clip_fraction_low"] > 0 and metrics["clip_fraction_high"] > 0


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("clip_eps", [0.05, 10])
def test_gradient_against_finite_differences(x64, name, clip_eps, wrap):
    arrays = batch(seed=1, B=5, T=4)
    settings = {"clip_eps": clip_eps, "kl_coef": 0.04}
    got = gradient(name, arrays, wrap, **settings)
    h = 1e-6
    for index in np.ndindex(got.shape):
        values = []
        for step in (h, -h):
            moved = arrays[0].copy()
            moved[index] += step
            values.append(reference(name, moved, *arrays[1:], **settings)[0])
        assert got[index] == pytest.approx((values[0] - values[1]) / (2 * h), abs=1e-6)


def test_float32_is_close_to_float64(name):
    arrays = [x.astype(np.float32) for x in batch()]
    loss, _ = LOSSES[name](*arrays, **SETTINGS)
    assert loss.dtype == jnp.float32
    assert float(loss) == pytest.approx(reference(name, *batch(), **SETTINGS)[0], abs=1e-6)


def test_half_precision_is_computed_in_float32(name):
    arrays = [jnp.asarray(x, jnp.bfloat16) for x in batch()]
    loss, metrics = LOSSES[name](*arrays, **SETTINGS)
    want, _ = reference(name, *(np.asarray(x, np.float64) for x in arrays), **SETTINGS)
    assert float(loss) == pytest.approx(want, abs=1e-6)
    assert {x.dtype for x in metrics.values()} == {jnp.dtype(jnp.float32)}


# --- padding ---------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("poison", [[np.nan], [np.inf, -np.inf, 1e30, -1e30, np.nan]])
def test_padding_reaches_neither_value_nor_gradient(x64, name, poison, wrap):
    logp, old, ref, adv, mask = batch()
    rng = np.random.default_rng(0)
    poisoned = [np.where(mask == 1, x, rng.choice(poison, x.shape)) for x in (logp, old, ref)]
    # The row with nothing under the mask is all padding, its advantage too.
    poisoned += [np.where(mask.any(axis=1), adv, poison[0]), mask]
    loss, metrics = wrap(lambda *a: LOSSES[name](*a, **SETTINGS))(*poisoned)
    want_loss, want = reference(name, logp, old, ref, adv, mask, **SETTINGS)
    assert float(loss) == pytest.approx(want_loss, abs=1e-12)
    assert {k: float(v) for k, v in metrics.items()} == pytest.approx(want, abs=1e-12)
    got = gradient(name, poisoned, wrap, **SETTINGS)
    np.testing.assert_array_equal(got[mask == 0], 0)
    np.testing.assert_array_equal(got, gradient(name, batch(), wrap, **SETTINGS))


def test_only_the_policy_gets_a_gradient(name):
    arrays = [jnp.asarray(x, jnp.float32) for x in batch()]
    grads = jax.grad(lambda *a: LOSSES[name](*a, **SETTINGS)[0], argnums=(0, 1, 2, 3))(*arrays)
    assert bool(jnp.any(grads[0] != 0))
    for grad in grads[1:]:
        np.testing.assert_array_equal(grad, 0)


def test_on_policy_the_old_array_may_be_the_new_one(x64):
    # ρ = 1 everywhere, and still the gradient is that of ρ: −A_i / (rows · |o_i|)
    logp, _, _, adv, mask = batch()
    got = jax.grad(lambda x: grpo_loss(x, x, None, adv, mask, clip_eps=0.2, kl_coef=0)[0])(logp)
    length = np.maximum(mask.sum(axis=1), 1)
    np.testing.assert_allclose(got, -(adv / length / 6)[:, None] * mask, atol=1e-15)


def test_empty_rows_count_in_the_mean_over_rows(x64):
    # One token, ρ = 1, A = 2, in one row of four: −2 / 4. A token mean does not see them.
    zeros = np.zeros((4, 3))
    mask = zeros.copy()
    mask[0, 0] = 1
    arrays = (zeros, zeros, zeros, np.full(4, 2.0), mask)
    assert float(grpo_loss(*arrays, **SETTINGS)[0]) == -0.5
    assert float(gspo_loss(*arrays, **SETTINGS)[0]) == -0.5
    assert float(dr_grpo_loss(*arrays, **SETTINGS)[0]) == pytest.approx(-0.5 / 3, abs=1e-15)
    assert float(dapo_loss(*arrays, **SETTINGS)[0]) == -2.0


def test_nothing_under_the_mask_is_zero(name):
    *arrays, mask = (jnp.full(x.shape, jnp.nan) for x in batch())
    arrays = (*arrays, jnp.zeros(mask.shape))
    loss, metrics = LOSSES[name](*arrays, **SETTINGS)
    assert [float(loss), *map(float, metrics.values())] == [0.0] * (1 + len(METRICS))
    np.testing.assert_array_equal(gradient(name, arrays, **SETTINGS), 0)


@pytest.mark.parametrize("dtype", [bool, np.int32, np.float32])
def test_mask_types(name, dtype):
    *arrays, mask = batch()
    loss, _ = LOSSES[name](*arrays, mask.astype(dtype), **SETTINGS)
    assert float(loss) == pytest.approx(reference(name, *batch(), **SETTINGS)[0], abs=1e-6)


# --- micro-batches ---------------------------------------------------------------------


@pytest.mark.parametrize("wrap", WRAPS)
def test_micro_batches_sum_to_the_whole(x64, name, wrap):
    """Uneven pieces, each padded to 4 rows and 9 columns with NaN."""
    arrays = batch()
    whole = Counts(rows=6, tokens=int(arrays[-1].sum()))
    extra = {"length_constant": 7} if name == "dr_grpo" else {}
    want_loss, want = reference(name, *arrays, **SETTINGS, **extra)
    want_grad = gradient(name, arrays, **SETTINGS, **extra)

    loss, totals = 0.0, dict.fromkeys(METRICS, 0.0)
    for rows in (slice(0, 1), slice(1, 5), slice(5, 6)):
        piece = []
        for x in arrays:
            fill = 0 if x is arrays[-1] else np.nan
            pad = [(0, 4 - len(x[rows]))] + [(0, 2)] * (x.ndim - 1)
            piece.append(np.pad(x[rows], pad, constant_values=fill))
        f = wrap(lambda *a: LOSSES[name](*a[:-1], **SETTINGS, **extra, whole=a[-1]))
        part, metrics = f(*piece, whole)
        loss += float(part)
        totals = {k: totals[k] + float(v) for k, v in metrics.items()}
        grad = gradient(name, piece, **SETTINGS, **extra, whole=whole)
        np.testing.assert_allclose(grad[: len(want_grad[rows]), :7], want_grad[rows], atol=1e-15)

    assert loss == pytest.approx(want_loss, abs=1e-12)
    assert totals == pytest.approx(want, abs=1e-12)


def test_dr_grpo_length_constant(x64):
    arrays = batch()
    for constant in (7, 100.0):
        loss, metrics = dr_grpo_loss(*arrays, **SETTINGS, length_constant=constant)
        want_loss, want = reference("dr_grpo", *arrays, **SETTINGS, length_constant=constant)
        assert float(loss) == pytest.approx(want_loss, abs=1e-12)
        assert float(metrics["kl"]) == pytest.approx(want["kl"], abs=1e-12)


def test_dr_grpo_refuses_a_constant_that_depends_on_the_cut():
    with pytest.raises(ValueError, match=r"needs length_constant when whole is given.*T=7"):
        dr_grpo_loss(*batch(), **SETTINGS, whole=Counts(rows=6, tokens=30))
    with pytest.raises(ValueError, match="length_constant=0 has to be positive"):
        dr_grpo_loss(*batch(), **SETTINGS, length_constant=0)


# --- clipping --------------------------------------------------------------------------


def one_token(name, log_ratio, adv, dtype=np.float32, **settings):
    """Loss and gradient of a batch of one token with kl_coef 0."""

    def loss(logp):
        mask = jnp.ones((1, 1))
        old, adv_B = jnp.full((1, 1), -1.0, dtype), jnp.full(1, adv, dtype)
        return LOSSES[name](logp, old, None, adv_B, mask, kl_coef=0, **settings)[0]

    value, grad = jax.value_and_grad(loss)(jnp.full((1, 1), log_ratio - 1, dtype))
    return float(value), float(grad[0, 0])


@pytest.mark.parametrize(
    ("adv", "ratio", "value", "slope"),
    [
        # min(ρ A, clip(ρ, 0.8, 1.3) A), negated; slope in log π is −ρ A unless clipped
        (2.0, 1.5, -2.6, 0.0),  # good and already more likely: clipped above
        (2.0, 1.25, -2.5, -2.5),
        (2.0, 0.5, -1.0, -1.0),  # good but less likely: not clipped
        (-2.0, 0.5, 1.6, 0.0),  # bad and already less likely: clipped below
        (-2.0, 0.85, 1.7, 1.7),
        (-2.0, 1.5, 3.0, 3.0),  # bad but more likely: not clipped
        (-2.0, 50.0, 100.0, 100.0),  # however much
        (0.0, 1.5, 0.0, 0.0),
    ],
)
def test_which_side_is_clipped(x64, name, adv, ratio, value, slope):
    got = one_token(name, math.log(ratio), adv, np.float64, clip_eps=(0.2, 0.3))
    assert got == pytest.approx((value, slope), abs=1e-12)


@pytest.mark.parametrize("adv", [1.0, -1.0])
def test_at_the_boundary_a_token_is_not_clipped(name, adv):
    # ε = 0 and ρ = 1: on policy, on both boundaries at once
    assert one_token(name, 0.0, adv, clip_eps=0.0) == (-adv, -adv)


@pytest.mark.parametrize("log_ratio", [89.0, 1e3, 1e30, np.inf])
def test_clipped_overflow_has_gradient_zero(name, log_ratio):
    """exp(89) is inf in float32."""
    value, slope = one_token(name, log_ratio, 1.0, clip_eps=0.2)
    assert (value, slope) == (pytest.approx(-1.2), 0.0)
    assert one_token(name, log_ratio, 0.0, clip_eps=0.2) == (0.0, 0.0)
    value, slope = one_token(name, -log_ratio, -1.0, clip_eps=0.2)
    assert (value, slope) == (pytest.approx(0.8), 0.0)


@pytest.mark.parametrize("log_ratio", [3.0, 10.0, 20.0, 39.0])
def test_large_ratios_with_a_negative_advantage_are_exact(name, log_ratio):
    value, slope = one_token(name, log_ratio, -1.0, clip_eps=0.2)
    assert (value, slope) == pytest.approx((math.exp(log_ratio),) * 2, rel=1e-5)


@pytest.mark.parametrize("log_ratio", [41.0, 100.0, 1e6])
def test_beyond_anything_real_they_are_finite_and_still_pushed_down(name, log_ratio):
    value, slope = one_token(name, log_ratio, -1.0, clip_eps=0.2)
    assert value == pytest.approx(math.exp(40) * (log_ratio - 39), rel=1e-5)
    assert slope == pytest.approx(math.exp(40), rel=1e-5)


def test_the_papers_clip_of_ten_has_no_lower_bound(x64):
    # 1 − 10 < 0 < ρ: nothing to clip below; above, at 11
    got = one_token("grpo", math.log(1e-3), -1.0, np.float64, clip_eps=10)
    assert got == pytest.approx((1e-3, 1e-3), abs=1e-15)
    got = one_token("grpo", math.log(10.9), 1.0, np.float64, clip_eps=10)
    assert got == pytest.approx((-10.9, -10.9), abs=1e-12)
    got = one_token("grpo", math.log(11.1), 1.0, np.float64, clip_eps=10)
    assert got == pytest.approx((-11, 0), abs=1e-12)


def test_infinite_epsilon_clips_nothing(x64):
    for adv, ratio in [(1.0, 1e4), (-1.0, 1e-4)]:
        got = one_token("grpo", math.log(ratio), adv, np.float64, clip_eps=math.inf)
        assert got == pytest.approx((-adv * ratio, -adv * ratio), rel=1e-12)


def test_gspo_clips_the_sequence_not_the_token(x64):
    # Two tokens with ratios 4 and ¼: the sequence's is 1, unclipped, and both are trained.
    logp = np.log([[4.0, 0.25]])
    arrays = (logp, np.zeros((1, 2)), None, np.ones(1), np.ones((1, 2)))
    settings = {"clip_eps": 0.2, "kl_coef": 0}
    np.testing.assert_allclose(gradient("gspo", arrays, **settings), [[-0.5, -0.5]], atol=1e-12)
    np.testing.assert_allclose(gradient("grpo", arrays, **settings), [[0, -0.125]], atol=1e-12)


# --- rewards, penalty, arguments -------------------------------------------------------


def test_equal_rewards_train_nothing(name):
    logp, old, _, _, mask = (x.astype(np.float32) for x in batch())
    adv = group_relative(np.array([0.1 + 0.2, 0.3, 0.3, 1, 1, 1]), 3)
    arrays = (logp, old, None, adv, mask)
    loss, _ = LOSSES[name](*arrays, clip_eps=0.2, kl_coef=0)
    assert float(loss) == 0
    np.testing.assert_array_equal(gradient(name, arrays, clip_eps=0.2, kl_coef=0), 0)


def test_the_penalty_pulls_towards_the_reference_in_expectation(x64, name):
    """Over tokens sampled from π: with k1 for k3 the expected gradient would be zero."""
    logits, ref_logp = jnp.array([0.3, -1.2, 2.0]), jnp.log(jnp.array([0.5, 0.3, 0.2]))
    prob = np.asarray(jax.nn.softmax(logits))

    def loss(logits, token):
        logp = jax.nn.log_softmax(logits)[token].reshape(1, 1)
        ref = ref_logp[token].reshape(1, 1)
        one = jnp.ones((1, 1))
        return LOSSES[name](logp, logp, ref, jnp.zeros(1), one, clip_eps=0.2, kl_coef=1.0)[0]

    got = sum(prob[token] * jax.grad(loss)(logits, token) for token in range(3))
    # E[k3] as a loss has the gradient of KL(π_ref‖π): π − π_ref in the logits
    np.testing.assert_allclose(got, prob - np.exp(ref_logp), atol=1e-12)


def test_no_reference_needs_no_penalty(name):
    logp, old, ref, adv, mask = batch()
    with_ref = LOSSES[name](logp, old, ref, adv, mask, clip_eps=0.2, kl_coef=0)
    without = LOSSES[name](logp, old, None, adv, mask, clip_eps=0.2, kl_coef=0.0)
    assert float(with_ref[0]) == float(without[0]) == float(without[1]["policy"])
    assert set(with_ref[1]) == METRICS
    assert set(without[1]) == METRICS - {"kl"}
    with pytest.raises(ValueError, match=r"ref_logp_BT is None but kl_coef=0\.1"):
        LOSSES[name](logp, old, None, adv, mask, clip_eps=0.2, kl_coef=0.1)


def test_coefficient_zero_ignores_an_infinite_penalty():
    logp, old, ref, adv, mask = batch()
    loss, _ = grpo_loss(logp, old, np.full_like(ref, np.inf), adv, mask, clip_eps=0.2, kl_coef=0)
    assert math.isfinite(float(loss))


def test_coefficient_may_be_traced(name):
    f = jax.jit(lambda kl_coef: LOSSES[name](*batch(), clip_eps=0.2, kl_coef=kl_coef)[0])
    want, _ = LOSSES[name](*batch(), clip_eps=0.2, kl_coef=0.3)
    assert float(f(0.3)) == pytest.approx(float(want), abs=1e-6)


@pytest.mark.parametrize(
    "index, array", list(enumerate(["logp", "old_logp", "ref_logp", "adv", "mask"]))
)
@pytest.mark.parametrize("wrap", WRAPS)
def test_shapes_are_checked(name, index, array, wrap):
    def message(change):
        arrays = list(batch())
        arrays[index] = change(arrays[index])
        with pytest.raises(ValueError) as error:
            wrap(lambda *a: LOSSES[name](*a, **SETTINGS))(*arrays)
        return str(error.value)

    suffix = "_B" if array == "adv" else "_BT"
    assert array + suffix in message(lambda x: x[..., None])  # adv of shape [B, 1], say
    assert array + suffix in message(lambda x: x[:1])


@pytest.mark.parametrize("clip_eps", [-0.1, (0.2, -0.1), (0.2,), (0.1, 0.2, 0.3), math.nan])
def test_clip_eps_is_checked(name, clip_eps):
    with pytest.raises(ValueError, match="clip_eps="):
        LOSSES[name](*batch(), clip_eps=clip_eps, kl_coef=0.04)
    LOSSES[name](*batch(), clip_eps=[0.2, 0.3], kl_coef=0.04)  # a pair may be a list
