"""Log-probabilities and entropy of a categorical distribution over tokens.

The functions that the optimiser differentiates have gradients of their own: automatic
differentiation would keep several arrays of the size of the logits, the largest there are.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from r1jax import head
from r1jax.head import wide
from r1jax.shapes import check_axes
from r1jax.types import Array

LOGITS_AT_ONCE = 2**25  # on a device: 128 MB in float32; half and twice of it are no faster


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


def head_logprobs(
    hidden_BTD: Array,
    table_DV: Array,
    tokens_BT: Array,
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
    layout: tuple[tuple[str, ...], str] | None = None,
) -> Array:
    """`token_logprobs` of the logits `hidden @ table`, which never exist as a whole.

        logp_bt = z_bt,token − log Σ_v exp(z_btv)        z_bt = hidden_bt · table / temperature

    The logits of a vocabulary are most of the memory of an update. Here they are made for
    `chunk` positions of every row at a time, forward and once more backward, and what is
    kept for the gradient is two numbers a token beside the arguments. Chunks are cut along
    T because on a mesh B is spread over the devices, and is to stay so.

    The table is used in the type of `hidden_BTD`; products add up in float32 (float64 for
    float64), the gradient of a bfloat16 table too. Where the incoming gradient is 0 (masked
    positions), nothing of `hidden_BTD` reaches any gradient, NaN or infinite as it may be,
    and its own is 0. No gradient goes to the temperature; that of a frozen table is not
    computed, under `jit`.

    Args:
        chunk: positions, any number from 1; need not divide T. By default as many as hold
            `LOGITS_AT_ONCE` logits a device. Results depend on it only in rounding.
        layout: the axes that B is cut over, and the one that V is, of the mesh that is set.
            Changes no result. Without it devices exchange, in every chunk, arrays of the
            size of the table; with it only at the beginning and the end. Nothing where no
            mesh is set.

    Returns:
        logp_BT, as of `token_logprobs`: NaN where a token is outside of 0..V−1.

    Raises:
        ValueError: shapes disagree, or temperature or chunk is not positive.
    """
    check_axes(hidden_BTD=hidden_BTD, table_DV=table_DV, tokens_BT=tokens_BT)
    _check_temperature(temperature)
    if chunk is None:
        rows, vocabulary = np.shape(tokens_BT)[0], np.shape(table_DV)[1]
        chunk = head.positions_at_once(rows, vocabulary, LOGITS_AT_ONCE)
    if chunk < 1:
        raise ValueError(f"chunk={chunk} has to be positive")
    arrays = map(jnp.asarray, (hidden_BTD, table_DV, tokens_BT))
    return _head_gather_log_softmax(chunk, head.on_mesh(layout), *arrays, temperature)


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
    return logits.astype(wide(logits.dtype)) / temperature


def _gather(logits_BTV, tokens_BT, temperature):
    """Log-probability of each token; the maximum and the log-sum that it was normalised by."""
    scaled_BTV = _scaled(logits_BTV, temperature)
    top_BT = jnp.max(scaled_BTV, axis=-1)
    log_sum_BT = jnp.log(jnp.sum(jnp.exp(scaled_BTV - top_BT[..., None]), axis=-1))
    # Gather first, widen after: the other way round is a float32 copy of all logits.
    picked_BT = jnp.take_along_axis(logits_BTV, tokens_BT[..., None], axis=-1, mode="clip")[..., 0]
    known_BT = (tokens_BT >= 0) & (tokens_BT < logits_BTV.shape[-1])
    # In this order: top + log_sum would lose the digits of log_sum next to large logits.
    logp_BT = (_scaled(picked_BT, temperature) - top_BT) - log_sum_BT
    return jnp.where(known_BT, logp_BT, jnp.nan), top_BT, log_sum_BT


def _logits_gradient(logits_BTV, tokens_BT, temperature, top_BT, log_sum_BT, grad_BT):
    # Automatic differentiation would keep exp(z) from the forward pass, and scatter the
    # gathered part into an array of zeros: two more arrays of the size of the logits.
    shifted_BTV = _scaled(logits_BTV, temperature) - top_BT[..., None]
    prob_BTV = jnp.exp(shifted_BTV - log_sum_BT[..., None])
    vocabulary_BTV = jax.lax.broadcasted_iota(tokens_BT.dtype, logits_BTV.shape, 2)
    picked_BTV = vocabulary_BTV == tokens_BT[..., None]
    scale_BT1 = (grad_BT / temperature)[..., None]
    grad_BTV = jnp.where(scale_BT1 == 0, 0, scale_BT1 * (picked_BTV - prob_BTV))
    return grad_BTV.astype(logits_BTV.dtype)


@jax.custom_vjp
def _gather_log_softmax(logits_BTV, tokens_BT, temperature):
    return _gather(logits_BTV, tokens_BT, temperature)[0]


def _forward(logits_BTV, tokens_BT, temperature):
    logp_BT, *norm = _gather(logits_BTV, tokens_BT, temperature)
    return logp_BT, (logits_BTV, tokens_BT, temperature, *norm)


def _backward(kept, grad_BT):
    return _logits_gradient(*kept, grad_BT), None, None


_gather_log_softmax.defvjp(_forward, _backward)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _head_gather_log_softmax(chunk, layout, hidden_BTD, table_DV, tokens_BT, temperature):
    return _head_forward(chunk, layout, hidden_BTD, table_DV, tokens_BT, temperature)[0]


def _head_forward(chunk, layout, hidden_BTD, table_DV, tokens_BT, temperature):
    def some(logits_BcV, tokens_Bc):
        return _gather(logits_BcV, tokens_Bc, temperature)

    logp_BT, *norm = head.map_logits(some, chunk, layout, hidden_BTD, table_DV, tokens_BT)
    return logp_BT, (hidden_BTD, table_DV, tokens_BT, temperature, *norm)


def _head_backward(chunk, layout, kept, grad_BT):
    hidden_BTD, table_DV, tokens_BT, temperature, *norm = kept

    def of_logits(logits_BcV, grad_Bc, tokens_Bc, top_Bc, log_sum_Bc):
        return _logits_gradient(logits_BcV, tokens_Bc, temperature, top_Bc, log_sum_Bc, grad_Bc)

    grad_BTD, grad_DV = head.gradients(
        of_logits, chunk, layout, hidden_BTD, table_DV, grad_BT, tokens_BT, *norm
    )
    return grad_BTD, grad_DV, None, None


_head_gather_log_softmax.defvjp(_head_forward, _head_backward)
