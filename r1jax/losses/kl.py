"""Three estimates of KL(π‖π_ref), each from one token sampled from π.

All three are per token, in nats, of any shape, with d = log π_ref − log π on the sampled
token (J. Schulman, "Approximating KL divergence", 2020). GRPO uses k3 (DeepSeekMath,
arXiv:2402.03300, equation 4).

As a *value*, k1 and k3 are unbiased: E_π[k1] = E_π[k3] = KL(π‖π_ref). As a *loss*, what
counts is the expected gradient with the sample held fixed, which is another matter:

    k1   E_π[∇ log π] = 0                      no signal at all: only noise
    k2   E_π[−d ∇ log π] = ∇ KL(π‖π_ref)       the reverse divergence
    k3   E_π[(1 − eᵈ) ∇ log π] = ∇ KL(π_ref‖π)  the forward divergence
"""

import jax.numpy as jnp

from r1jax.types import Array

# exp is continued by its tangent from here on. A token sampled from π_old has probability
# π_old, hence a ratio π/π_old ≤ 1/π_old, which passes e⁴⁰ less often than V·e⁻⁴⁰ (below
# 1e-11 for a vocabulary of a million): nothing real is bent. And e⁴⁰ squared still
# fits in float32, so neither do gradient norms or Adam's second moment overflow.
LARGEST_LOG_RATIO = 40.0


def exp_bounded(x: Array) -> Array:
    """exp(x) up to x = 40, from there its tangent e⁴⁰ (1 + x − 40).

    Equal to exp for every ratio that occurs, finite for every finite x, and the slope
    stays e⁴⁰ beyond: a token far out is still pushed back, not let go.
    """
    bent = jnp.minimum(x, LARGEST_LOG_RATIO)
    # Not x − bent: that is NaN where x = −inf, and exp(−inf) is simply 0.
    beyond = jnp.maximum(x - LARGEST_LOG_RATIO, 0)
    return jnp.exp(bent) * (1 + beyond)


def k1(logp: Array, ref_logp: Array) -> Array:
    """log π − log π_ref: unbiased, of either sign. A metric, never a loss.

    As a loss its gradient is ∇ log π whatever the reference is, and that is 0 in
    expectation: Σ_v π_v ∇ log π_v = ∇ Σ_v π_v = ∇ 1 = 0.
    """
    return logp - ref_logp


def k2(logp: Array, ref_logp: Array) -> Array:
    """½ (log π − log π_ref)²: biased but never negative; its gradient is right."""
    return 0.5 * jnp.square(logp - ref_logp)


def k3(logp: Array, ref_logp: Array) -> Array:
    """eᵈ − d − 1 with d = log π_ref − log π: unbiased and never negative.

    Computed as (eᵈ − 1) − d, because eᵈ − d − 1 loses every digit in float32 once
    the policies are close (|d| < 3e-4). Beyond d = 40 exp goes on as its tangent.
    """
    d = ref_logp - logp
    bent = jnp.minimum(d, LARGEST_LOG_RATIO)
    beyond = jnp.maximum(d - LARGEST_LOG_RATIO, 0)
    return jnp.expm1(bent) + jnp.exp(bent) * beyond - d
