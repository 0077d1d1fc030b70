"""Attention in packed rows, block by block: only pairs of blocks that see each other.

A row is cut into blocks of 32 tokens. The host lists the pairs (queries' block, keys' block)
in which any token sees another (`pairs`); scores are taken for those alone and the softmax
runs over a query's pairs. So a packed row costs what its sequences cost, and a prompt shared
by a group stands in the row once. Plain XLA: what a CPU has, where scores of whole rows cost
more than the matrix products of a small model. On accelerators see `kernels.py`.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.models.layers import NEGATIVE
from r1jax.types import Array

BLOCK = 32


class Blocks(NamedTuple):
    """Who sees whom in packed rows, block by block; T is a multiple of BLOCK."""

    segments_BT: Array
    prefix_BT: Array
    pairs_Bn2: Array  # int32 (block of queries, ascending; block of keys); padding: (T/BLOCK, 0)

    def attend(self, q_BHTh: Array, k_BKhT: Array, v_BKTv: Array, scale: float) -> Array:
        """As `layers.attend` under the mask that segments and prefixes make."""
        arguments = (q_BHTh * scale, k_BKhT, v_BKTv, *self)
        if jax.sharding.get_abstract_mesh().size <= 1:
            return _attend(*arguments)
        one = jax.vmap(lambda *row: _attend(*(x[None] for x in row))[0])
        return one(*arguments)  # row by row, so that rows stay where they are


def causal(B: int, T: int) -> np.ndarray:
    """All pairs [B, n, 2] of causal attention, for rows that nobody has looked into."""
    of_q, of_k = np.tril_indices(T // BLOCK)
    return np.broadcast_to(np.stack([of_q, of_k], axis=-1).astype(np.int32), (B, len(of_q), 2))


def _attend(q_BHTh, k_BKhT, v_BKTv, segments_BT, prefix_BT, pairs_Bn2):
    """Blocks of all rows as one list."""
    (B, H, T, h), (K, v) = q_BHTh.shape, (k_BKhT.shape[1], v_BKTv.shape[-1])
    b, N, rep = BLOCK, T // BLOCK, H // K
    first_B1 = jnp.arange(B, dtype=jnp.int32)[:, None] * N
    pairs = _Pairs(
        (jnp.minimum(pairs_Bn2[..., 0], N - 1) + first_B1).reshape(-1),
        (pairs_Bn2[..., 1] + first_B1).reshape(-1),
        (pairs_Bn2[..., 0] < N).reshape(-1),
    )
    out = _attend_blocks(
        q_BHTh.reshape(B, K, rep, N, b, h).transpose(0, 3, 1, 2, 4, 5).reshape(-1, K, rep * b, h),
        k_BKhT.reshape(B, K, h, N, b).transpose(0, 3, 1, 2, 4).reshape(-1, K, h, b),
        v_BKTv.reshape(B, K, N, b, v).transpose(0, 2, 1, 3, 4).reshape(-1, K, b, v),
        (segments_BT.reshape(-1), prefix_BT.reshape(-1), pairs),
    )  # fmt: skip
    return out.reshape(B, N, K, rep, b, v).transpose(0, 2, 3, 1, 4, 5).reshape(B, H, T, v)


class _Pairs(NamedTuple):
    of_q: Array  # the block of queries in the list of all, ascending
    of_k: Array
    real: Array  # bool: not padding

    def sum_up(self, x_n: Array, N: int) -> Array:
        """Over the pairs of each block of queries."""
        return jax.ops.segment_sum(x_n, self.of_q, N, indices_are_sorted=True)


@jax.custom_vjp
def _attend_blocks(q_NKqh, k_NKhb, v_NKbv, see):
    """Attention of blocks; q = heads of a kv head times tokens of a block."""
    return _forward(q_NKqh, k_NKhb, v_NKbv, see)[0]


def _forward(q_NKqh, k_NKhb, v_NKbv, see):
    N, pairs = len(q_NKqh), see[-1]
    scores_nKqb = _scores(q_NKqh, k_NKhb, see)
    most_NKq = jax.ops.segment_max(scores_nKqb.max(axis=-1), pairs.of_q, N, indices_are_sorted=True)
    weight_nKqb = jnp.exp(scores_nKqb - most_NKq[pairs.of_q][..., None])
    total_NKq = pairs.sum_up(weight_nKqb.sum(axis=-1), N)
    out_nKqv = _product(weight_nKqb.astype(v_NKbv.dtype), v_NKbv[pairs.of_k])
    out_NKqv = (pairs.sum_up(out_nKqv, N) / total_NKq[..., None]).astype(v_NKbv.dtype)
    return out_NKqv, (q_NKqh, k_NKhb, v_NKbv, see, out_NKqv, most_NKq + jnp.log(total_NKq))


def _backward(kept, grad_NKqv):
    # The scores are taken again: kept, they would be the largest arrays of a training step.
    q_NKqh, k_NKhb, v_NKbv, see, out_NKqv, log_sum_NKq = kept
    N, pairs = len(q_NKqh), see[-1]
    scores_nKqb = _scores(q_NKqh, k_NKhb, see)
    weight_nKqb = jnp.exp(scores_nKqb - log_sum_NKq[pairs.of_q][..., None])
    grad_nKqv = grad_NKqv[pairs.of_q]
    inner_NKq = jnp.sum(grad_NKqv * out_NKqv, axis=-1, dtype=jnp.float32)
    slope_nKqb = _product(grad_nKqv, v_NKbv[pairs.of_k].swapaxes(2, 3))
    slope_nKqb = weight_nKqb * (slope_nKqb - inner_NKq[pairs.of_q][..., None])
    weight, slope = (x.astype(q_NKqh.dtype) for x in (weight_nKqb, slope_nKqb))
    to_k = partial(jax.ops.segment_sum, segment_ids=pairs.of_k, num_segments=N)
    grads = (
        pairs.sum_up(_product(slope, k_NKhb[pairs.of_k].swapaxes(2, 3)), N),
        to_k(_product(q_NKqh[pairs.of_q].swapaxes(2, 3), slope)),
        to_k(_product(weight.swapaxes(2, 3), grad_nKqv)),
    )
    return (*(x.astype(q_NKqh.dtype) for x in grads), None)


_attend_blocks.defvjp(_forward, _backward)


def _product(a, b):
    """A batched product in float32, whose operands XLA computes first.

    What it fuses into small products on CPU makes them three times as slow.
    """
    a, b = jax.lax.optimization_barrier((a, b))
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def _scores(q_NKqh, k_NKhb, see):
    """Scores of the pairs in float32, [n, K, q, b], very low where a token does not see another."""
    (_, K, q, _), (segment_t, prefix_t, pairs) = q_NKqh.shape, see
    scores = _product(q_NKqh[pairs.of_q], k_NKhb[pairs.of_k])
    q_nb, k_nb = (
        of[:, None] * BLOCK + jnp.arange(BLOCK)[None, :] for of in (pairs.of_q, pairs.of_k)
    )
    see_nbb = segment_t[q_nb][:, :, None] == segment_t[k_nb][:, None, :]
    see_nbb |= prefix_t[q_nb][:, :, None] == segment_t[k_nb][:, None, :]
    see_nbb &= (q_nb[:, :, None] >= k_nb[:, None, :]) & pairs.real[:, None, None]
    scores = scores.reshape(-1, K, q // BLOCK, BLOCK, BLOCK)
    return jnp.where(see_nbb[:, None, None], scores, NEGATIVE).reshape(-1, K, q, BLOCK)


def pairs(segment_T: np.ndarray, prefix_T: np.ndarray) -> np.ndarray:
    """The pairs [n, 2] of a packed row, on the host."""
    first, last, out = {}, {}, []  # block of a segment's first token, and of its last
    blocks = [set(np.unique(ids).tolist()) for ids in segment_T.reshape(-1, BLOCK)]
    before = [set(np.unique(ids).tolist()) for ids in prefix_T.reshape(-1, BLOCK)]
    for block, segments in enumerate(blocks):
        for segment in segments:
            first.setdefault(segment, block)
            last[segment] = block
    for block, segments in enumerate(blocks):
        seen = {block}  # padding sees its own block, so as to see something
        for segment in (segments | before[block]) - {0}:
            seen.update(range(first[segment], min(last[segment], block) + 1))
        out += [(block, other) for other in sorted(seen)]
    return np.array(out, np.int32)


def filled(pairs_n2: np.ndarray, least: int, blocks: int) -> np.ndarray:
    """The pairs of a row of so many blocks, and padding up to `least`."""
    padding = np.array([[blocks, 0]] * max(0, least - len(pairs_n2)), np.int32).reshape(-1, 2)
    return np.concatenate([pairs_n2, padding])
