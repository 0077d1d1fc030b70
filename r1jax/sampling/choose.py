"""Choosing a token: temperature, nucleus (top-p), and an exact draw by the inverse CDF.

One uniform number decides a token, so a draw can be checked: it may differ between
machines only where the number lies within rounding of the boundary between two
candidates. The log-probability returned is that of the distribution drawn from.
"""

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.types import Array


def choose(
    logits_BV: Array, uniform_B: Array, *, temperature: float | Array, top_p: float | Array
) -> tuple[Array, Array]:
    """(token_B, logp_B) drawn from softmax(logits / temperature) cut to its nucleus.

    The nucleus is the smallest set of most likely tokens with mass >= top_p
    (arXiv:1904.09751). `temperature` 0, as a number of Python's, takes the most likely token,
    whose log-probability is then 0. Arrays serve one program for all settings.
    """
    if isinstance(temperature, int | float) and temperature == 0:
        token_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
        return token_B, jnp.zeros(token_B.shape, jnp.float32)
    logp_BV = jax.nn.log_softmax(logits_BV.astype(jnp.float32) / temperature, axis=-1)
    p_BV = jnp.exp(logp_BV)

    def cut(p_BV):
        return jnp.where(nucleus(p_BV, top_p), p_BV, 0.0)

    p_BV = jax.lax.cond(jnp.less(top_p, 1), cut, lambda p_BV: p_BV, p_BV)
    token_B = inverse_cdf(p_BV, uniform_B)
    logp_B = jnp.take_along_axis(logp_BV, token_B[:, None], axis=-1)[:, 0]
    mass_B = jnp.where(jnp.less(top_p, 1), jnp.sum(p_BV, axis=-1), 1.0)
    return token_B, logp_B - jnp.log(mass_B)


def nucleus(p_BV: Array, top_p: float | Array) -> Array:
    """Boolean mask of the fewest most likely tokens with mass >= top_p, equals together.

    The least probability kept is found by bisection over the bit patterns of float32
    (monotone for p >= 0), 30 sums over the vocabulary: on CPU a sort takes ten times
    as long.
    """

    def halve(_, bounds):
        low_B, high_B = bounds  # mass of {p >= low} is enough, of {p >= high} it is not
        middle_B = (low_B + high_B) // 2
        least_B = jax.lax.bitcast_convert_type(middle_B, jnp.float32)
        mass_B = jnp.sum(jnp.where(p_BV >= least_B[:, None], p_BV, 0.0), axis=-1)
        enough_B = mass_B >= top_p
        return jnp.where(enough_B, middle_B, low_B), jnp.where(enough_B, high_B, middle_B)

    low_B = jnp.zeros(p_BV.shape[0], jnp.int32)
    above_one = int(np.float32(1.1).view(np.int32))  # a sum of p may round above 1
    low_B, _ = jax.lax.fori_loop(0, 31, halve, (low_B, jnp.full_like(low_B, above_one)))
    return p_BV >= jax.lax.bitcast_convert_type(low_B, jnp.float32)[:, None]


def inverse_cdf(p_BV: Array, uniform_B: Array) -> Array:
    """The token at which the cumulative sum of p passes uniform · Σp; never one with p = 0.

    In two levels, blocks and then tokens of the block, which reads p twice instead of
    writing a cumulative sum over the whole vocabulary.
    """
    B, V = p_BV.shape
    block = 16 if V <= 4096 else 128
    p_Bnm = jnp.pad(p_BV, ((0, 0), (0, -V % block))).reshape(B, -1, block)
    mass_Bn = jnp.sum(p_Bnm, axis=-1)
    target_B = uniform_B * jnp.sum(mass_Bn, axis=-1)
    n_B, before_B = _pass(mass_Bn, target_B)
    p_Bm = jnp.take_along_axis(p_Bnm, n_B[:, None, None], axis=1)[:, 0]
    m_B, _ = _pass(p_Bm, target_B - before_B)
    return (n_B * block + m_B).astype(jnp.int32)


def _pass(mass_Bn: Array, target_B: Array) -> tuple[Array, Array]:
    """First index with any mass whose cumulative mass exceeds the target, and the mass before it.

    Rounding may leave the target at or above the whole mass: the last index with any
    mass is taken then. Or below what stood before a block: its first with any mass is.
    """
    cumulative_Bn = jnp.cumsum(mass_Bn, axis=-1)
    some_Bn = mass_Bn > 0
    passed_Bn = some_Bn & (cumulative_Bn > target_B[:, None])
    last_B = mass_Bn.shape[-1] - 1 - jnp.argmax(some_Bn[:, ::-1], axis=-1)
    index_B = jnp.where(jnp.any(passed_Bn, axis=-1), jnp.argmax(passed_Bn, axis=-1), last_B)
    before_Bn = cumulative_Bn - mass_Bn
    return index_B, jnp.take_along_axis(before_Bn, index_B[:, None], axis=-1)[:, 0]
