"""The estimators, and what each is worth as a loss, by summing over a small vocabulary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.losses.kl import exp_bounded, k1, k2, k3

LOGITS = np.array([0.3, -1.2, 2.0, 0.0])
REF_LOGITS = np.array([-0.5, 0.4, 1.1, 0.9])


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def log_softmax(x):
    return x - np.log(np.sum(np.exp(x)))


def divergence(p_log, q_log):
    return float(np.sum(np.exp(p_log) * (p_log - q_log)))


def expected(estimator):
    """Expectation over tokens from π of the estimate, and of its gradient in the logits."""
    ref_logp = log_softmax(REF_LOGITS)
    value, grad = 0.0, np.zeros(4)
    for token, prob in enumerate(np.exp(log_softmax(LOGITS))):
        v, g = jax.value_and_grad(
            lambda logits, token=token: estimator(
                jax.nn.log_softmax(logits)[token], ref_logp[token]
            )
        )(jnp.asarray(LOGITS))
        value, grad = value + prob * float(v), grad + prob * np.asarray(g)
    return value, grad


def numerical_gradient(f, x, h=1e-6):
    eye = np.eye(len(x)) * h
    return np.array([(f(x + e) - f(x - e)) / (2 * h) for e in eye])


def test_values_by_hand():
    # log π = −1, log π_ref = −1.5: d = −0.5, k1 = 0.5, k2 = 0.125,
    # k3 = exp(−0.5) + 0.5 − 1 = 0.10653066
    logp, ref_logp = jnp.array([-1.0]), jnp.array([-1.5])
    np.testing.assert_allclose(k1(logp, ref_logp), [0.5], atol=1e-12)
    np.testing.assert_allclose(k2(logp, ref_logp), [0.125], atol=1e-12)
    np.testing.assert_allclose(k3(logp, ref_logp), [0.10653066], atol=1e-8)


@pytest.mark.parametrize("estimator", [k1, k3])
def test_unbiased_as_a_value(estimator):
    want = divergence(log_softmax(LOGITS), log_softmax(REF_LOGITS))
    assert expected(estimator)[0] == pytest.approx(want, abs=1e-12)


def test_k1_as_a_loss_has_no_expected_gradient():
    np.testing.assert_allclose(expected(k1)[1], 0, atol=1e-12)


def test_k2_as_a_loss_descends_the_reverse_divergence():
    want = numerical_gradient(lambda x: divergence(log_softmax(x), log_softmax(REF_LOGITS)), LOGITS)
    np.testing.assert_allclose(expected(k2)[1], want, atol=1e-8)
    assert np.abs(want).max() > 0.1  # so that 0 would not pass


def test_k3_as_a_loss_descends_the_forward_divergence():
    want = numerical_gradient(lambda x: divergence(log_softmax(REF_LOGITS), log_softmax(x)), LOGITS)
    np.testing.assert_allclose(expected(k3)[1], want, atol=1e-8)
    assert np.abs(want).max() > 0.1


def test_k3_keeps_its_digits_in_float32():
    # d²/2 for small d: with d = 2⁻¹² that is 2⁻²⁵ = 2.98e-8, where exp(d) − d − 1 gives 0.
    value = k3(jnp.float32(-1.0), jnp.float32(-1.0 + 2**-12))
    np.testing.assert_allclose(value, 2.0**-25, rtol=1e-3)


def test_k3_is_not_negative_and_jit_agrees():
    d = jnp.linspace(-50, 60, 1001)
    value = k3(jnp.zeros_like(d), d)
    assert bool(jnp.all(value >= 0))
    np.testing.assert_allclose(jax.jit(k3)(jnp.zeros_like(d), d), value, rtol=1e-12)


@pytest.mark.parametrize("d", [39.0, 40.0, 41.0, 1e4])
def test_k3_far_out_is_finite_and_still_pulls_back(d):
    # value: eᵈ − d − 1 up to 40, then e⁴⁰ (d − 39) − d − 1; slope in log π: 1 − e^min(d, 40)
    value, slope = jax.value_and_grad(k3)(-d, 0.0)
    tangent = np.exp(40.0) * (d - 39) - d - 1
    np.testing.assert_allclose(value, np.exp(d) - d - 1 if d <= 40 else tangent, rtol=1e-12)
    np.testing.assert_allclose(slope, 1 - np.exp(min(d, 40.0)), rtol=1e-12)


def test_exp_bounded_is_exp_and_then_its_tangent():
    x = jnp.array([-jnp.inf, -100.0, 0.0, 39.9, 40.0, 42.0, 1e5])
    want = [*np.exp(x[:5]), 3 * np.exp(40.0), np.exp(40.0) * (1e5 - 39)]
    np.testing.assert_allclose(exp_bounded(x), want, rtol=1e-12)
    slope = jax.vmap(jax.grad(exp_bounded))(x[1:])
    np.testing.assert_allclose(slope, np.exp(np.minimum(x[1:], 40.0)), rtol=1e-12)
    assert bool(jnp.isfinite(exp_bounded(jnp.float32(1e6))))
