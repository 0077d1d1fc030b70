"""Log-probabilities and entropy of a categorical distribution over tokens."""

import jax
import jax.numpy as jnp

from r1jax.shapes import check_axes
from r1jax.types import Array


def token_logprobs(logits_BTV: Array, tokens_BT: Array, *, temperature: float = 1.0) -> Array:
    """Log-probability (nats) of each token: `log_softmax(logits / temperature)[token]`.

        logp_bt = z_bt,token − log Σ_v exp(z_btv)        z = logits / temperature

    `logits_BTV[b, t]` is the prediction for `tokens_BT[b, t]`: the caller does the shift by
    one. The temperature has to be the one that the tokens are sampled at, or ratios
    compare two different policies.

    Computed in float32 (float64 for float64 logits). Forward keeps no array of the size
    of the logits but the logits themselves, backward builds their gradient in one
    pass. Where the incoming gradient is 0 (masked positions), so is that of the logits,
    even if they are NaN. No gradient goes to the temperature.

    Returns:
        logp_BT. NaN where a token is outside of 0..V−1: wrong ids show, and padding ids
        such as −1 are harmless under a mask.

    Raises:
        ValueError: shapes disagree, or the temperature is not positive (at 0 sampling is
            greedy and has no log-probabilities).
    """
    check_axes(logits_BTV=logits_BTV, tokens_BT=tokens_BT)
    _check_temperature(temperature)
    return _gather_log_softmax(jnp.asarray(logits_BTV), jnp.asarray(tokens_BT), temperature)


def entropy(logits_BTV: Array, *, temperature: float = 1.0) -> Array:
    """Entropy in nats of `softmax(logits / temperature)` at each position.

        H_bt = −Σ_v p_btv log p_btv

    Between 0 and log V. Tokens ruled out by a logit of −inf add 0. Computed in float32
    (float64 for float64 logits).

    Returns:
        entropy_BT.

    Raises:
        ValueError: `logits_BTV` has not three axes, or the temperature is not positive.
    """
    check_axes(logits_BTV=logits_BTV)
    _check_temperature(temperature)
    logp_BTV = jax.nn.log_softmax(_scaled(jnp.asarray(logits_BTV), temperature), axis=-1)
    possible_BTV = jnp.isfinite(logp_BTV) | jnp.isnan(logp_BTV)
    logp_BTV = jnp.where(possible_BTV, logp_BTV, 0)
    return -jnp.sum(jnp.where(possible_BTV, jnp.exp(logp_BTV) * logp_BTV, 0), axis=-1)


def _check_temperature(temperature) -> None:
    if isinstance(temperature, int | float) and not temperature > 0:
        raise ValueError(f"temperature={temperature} has to be positive")


def _scaled(logits: Array, temperature) -> Array:
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32)) / temperature


@jax.custom_vjp
def _gather_log_softmax(logits_BTV, tokens_BT, temperature):
    return _forward(logits_BTV, tokens_BT, temperature)[0]


def _forward(logits_BTV, tokens_BT, temperature):
    scaled_BTV = _scaled(logits_BTV, temperature)
    top_BT = jnp.max(scaled_BTV, axis=-1)
    log_sum_BT = jnp.log(jnp.sum(jnp.exp(scaled_BTV - top_BT[..., None]), axis=-1))
    # Gather first, widen after: the other way round is a float32 copy of all logits.
    picked_BT = jnp.take_along_axis(logits_BTV, tokens_BT[..., None], axis=-1, mode="clip")[..., 0]
    known_BT = (tokens_BT >= 0) & (tokens_BT < logits_BTV.shape[-1])
    # In this order: top + log_sum would lose the digits of log_sum next to large logits.
    logp_BT = (_scaled(picked_BT, temperature) - top_BT) - log_sum_BT
    logp_BT = jnp.where(known_BT, logp_BT, jnp.nan)
    return logp_BT, (logits_BTV, tokens_BT, temperature, top_BT, log_sum_BT)


def _backward(kept, grad_BT):
    # Automatic differentiation would keep exp(z) from the forward pass, and scatter the
    # gathered part into an array of zeros: two more arrays of the size of the logits.
    logits_BTV, tokens_BT, temperature, top_BT, log_sum_BT = kept
    shifted_BTV = _scaled(logits_BTV, temperature) - top_BT[..., None]
    prob_BTV = jnp.exp(shifted_BTV - log_sum_BT[..., None])
    vocabulary_BTV = jax.lax.broadcasted_iota(tokens_BT.dtype, logits_BTV.shape, 2)
    picked_BTV = vocabulary_BTV == tokens_BT[..., None]
    scale_BT1 = (grad_BT / temperature)[..., None]
    grad_BTV = jnp.where(scale_BT1 == 0, 0, scale_BT1 * (picked_BTV - prob_BTV))
    return grad_BTV.astype(logits_BTV.dtype), None, None


_gather_log_softmax.defvjp(_forward, _backward)
