"""Functions of the logits `hidden @ table` that never hold them as a whole.

Logits are made for some positions of every row at a time. Chunks are cut along T because on a
mesh B is spread over the devices, and is to stay so. `layout` is (the axes that B is cut over,
the one that V is) of the mesh that is set, or None.
"""

import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

Layout = tuple[tuple[str, ...], str] | None


def positions_at_once(rows: int, vocabulary: int, logits: int) -> int:
    """Positions of every row whose logits number `logits` a device, at least 1."""
    devices = max(1, _mesh().size)  # 0 where no mesh is set
    return max(1, logits * devices // max(1, rows * vocabulary))


def on_mesh(layout: Layout) -> Layout:
    """`layout`, or None where no mesh is set."""
    return None if _mesh().empty else layout


def by_chunks(some, chunk, carry, *arrays):
    """`some(carry, *arrays) -> (carry, outputs)`, of equal chunks of axis 1 one by one.

    Without a loop where one chunk is all. Chunks are made equal by zeros at the end.
    """
    T = arrays[0].shape[1]
    count = max(1, -(-T // chunk))
    if count == 1:
        return some(carry, *arrays)
    size = -(-T // count)

    def cut(x):
        x = jnp.pad(x, [(0, 0), (0, count * size - T)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], count, size, *x.shape[2:]), 1, 0)

    def join(y):
        y = jnp.moveaxis(y, 0, 1)
        return y.reshape(y.shape[0], count * size, *y.shape[3:])[:, :T]

    carry, out = jax.lax.scan(lambda c, x: some(c, *x), carry, [cut(x) for x in arrays])
    return carry, jax.tree.map(join, out)


def map_logits(some, chunk, layout, hidden_BTD, table_DV, *arrays):
    """`some(logits_BcV, *arrays)` of all chunks joined: arrays [B, T, …]."""
    table = laid_out_table(table_DV, hidden_BTD.dtype, layout)

    def one(_, hidden_BcD, *rest):
        return None, some(chunk_logits(hidden_BcD, table), *rest)

    return by_chunks(one, chunk, None, hidden_BTD, *arrays)[1]


def gradients(of_logits, chunk, layout, hidden_BTD, table_DV, grad_BT, *arrays):
    """(grad_BTD, grad_DV), where `of_logits(logits_BcV, grad_Bc, *arrays)` is the logits' own.

    Positions whose `grad_BT` is 0 add nothing, NaN or infinite as `hidden_BTD` may be there.
    """
    B = hidden_BTD.shape[0]
    table = laid_out_table(table_DV, hidden_BTD.dtype, layout)
    # The table's gradient is a sum over rows, which lie on many devices. Each device adds up
    # its own (axis n), and the sums meet after the last chunk, not after every one.
    n = math.prod(_mesh().shape[axis] for axis in layout[0]) if layout else 1
    n = n if B % n == 0 else 1

    def some(grad_nDV, hidden_BcD, grad_Bc, *rest):
        grad_BcV = of_logits(chunk_logits(hidden_BcD, table), grad_Bc, *rest).astype(table.dtype)
        grad_BcD = _product("bcv,dv->bcd", grad_BcV, table).astype(hidden_BcD.dtype)
        clean_BcD = jnp.where(grad_Bc[..., None] == 0, 0, hidden_BcD)  # NaN · 0 would be NaN
        by_device = (x.reshape(n, B // n, *x.shape[1:]) for x in (clean_BcD, grad_BcV))
        grad_nDV += _product("nbcd,nbcv->ndv", *by_device)
        return _lay_out(grad_nDV, layout and (layout[0], None, layout[1])), grad_BcD

    zeros_nDV = jnp.zeros((n, *table.shape), wide(table.dtype))
    grad_nDV, grad_BTD = by_chunks(some, chunk, zeros_nDV, hidden_BTD, grad_BT, *arrays)
    # A tied table is transposed. Folded into the product that is one which XLA's CPU lacks
    # (bfloat16 x bfloat16 = float32).
    grad_nDV = jax.lax.optimization_barrier(grad_nDV)
    return grad_BTD, grad_nDV.sum(0).astype(table_DV.dtype)


def chunk_logits(hidden_BcD, table_DV):
    """Logits [B, c, V] in float32 (float64 for float64)."""
    return _product("bcd,dv->bcv", hidden_BcD, table_DV)


def laid_out_table(table_DV, dtype, layout: Layout):
    """The table in the type of the activations, gathered over the devices that hold rows.

    Once: left to itself the compiler gathers the gradient of all rows' logits instead, in every
    chunk.
    """
    return _lay_out(table_DV.astype(dtype), layout and (None, layout[1]))


def wide(dtype):
    return jnp.promote_types(dtype, jnp.float32)


def _lay_out(x, spec):
    return jax.lax.with_sharding_constraint(x, P(*spec)) if spec else x


def _mesh():
    return jax.sharding.get_abstract_mesh()


def _product(axes, a, b):
    return jnp.einsum(axes, a, b, preferred_element_type=wide(a.dtype))
