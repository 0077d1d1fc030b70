"""Matrix products of rows with their group's own matrix: the inner loop of sparse experts.

`jax.lax.ragged_dot` is native on TPU. Elsewhere XLA expands it into a dense product with
every group (64 groups: 64 times the operations, counted by XLA's own cost analysis on
CPU; the default on GPU too, see openxla/xla pull request 45996), so there blocks of rows
are multiplied one after the other, each with its one matrix, as many as the groups need.
"""

import jax
import jax.numpy as jnp

from r1jax.types import Array


def grouped_matmul(x_Nd: Array, w_Edf: Array, sizes_E: Array) -> Array:
    """[N, f]: the first sizes_E[0] rows times w[0], the next sizes_E[1] rows times w[1], …

    Rows after the last group give 0. Differentiable in x and w.
    """
    return jax.lax.platform_dependent(
        x_Nd, w_Edf, sizes_E.astype(jnp.int32), tpu=_ragged, default=blocked_matmul
    )


def _ragged(x_Nd, w_Edf, sizes_E):
    y_Nf = jax.lax.ragged_dot(x_Nd, w_Edf, sizes_E)
    return jnp.where(_within(x_Nd, sizes_E), y_Nf, 0)


@jax.custom_vjp
def blocked_matmul(x_Nd: Array, w_Edf: Array, sizes_E: Array) -> Array:
    """`grouped_matmul` as a loop over blocks of rows, of about the mean group's size.

    A block that ends past its group computes rows of the next one wrongly, whose own
    block then overwrites them: so blocks need no alignment and nothing is copied.
    """
    size = _block_size(x_Nd, w_Edf)
    x = jnp.pad(x_Nd, ((0, size), (0, 0)))

    def write(y, block):
        group, row, _ = block
        w = jax.lax.dynamic_index_in_dim(w_Edf, group, keepdims=False)
        part = jnp.matmul(jax.lax.dynamic_slice_in_dim(x, row, size), w)
        return jax.lax.dynamic_update_slice_in_dim(y, part, row, 0)

    y = jnp.zeros((x.shape[0], w_Edf.shape[2]), jnp.result_type(x_Nd, w_Edf))
    y = _over_blocks(write, y, sizes_E, size)[: x_Nd.shape[0]]
    return jnp.where(_within(x_Nd, sizes_E), y, 0)


def _forward(x_Nd, w_Edf, sizes_E):
    return blocked_matmul(x_Nd, w_Edf, sizes_E), (x_Nd, w_Edf, sizes_E)


def _backward(kept, grad_Nf):
    x_Nd, w_Edf, sizes_E = kept
    size = _block_size(x_Nd, w_Edf)
    x, grad = (jnp.pad(a, ((0, size), (0, 0))) for a in (x_Nd, grad_Nf))

    def add(grad_w, block):
        group, row, count = block
        inside = (jnp.arange(size) < count)[:, None]
        x_b = jnp.where(inside, jax.lax.dynamic_slice_in_dim(x, row, size), 0)
        grad_b = jnp.where(inside, jax.lax.dynamic_slice_in_dim(grad, row, size), 0)
        part = jnp.matmul(x_b.T, grad_b, preferred_element_type=jnp.float32)
        return grad_w.at[group].add(part)

    # Many blocks add up in one group: in float32, whatever the type of the weights.
    grad_w = _over_blocks(add, jnp.zeros(w_Edf.shape, jnp.float32), sizes_E, size)
    grad_x = blocked_matmul(grad_Nf, w_Edf.swapaxes(1, 2), sizes_E)
    return grad_x, grad_w.astype(w_Edf.dtype), None


blocked_matmul.defvjp(_forward, _backward)


def _block_size(x_Nd, w_Edf) -> int:
    """A power of two from 8 to 128, near the rows a group has on average."""
    mean = max(1, x_Nd.shape[0] // w_Edf.shape[0])
    return min(128, max(8, 1 << (mean - 1).bit_length()))


def _over_blocks(body, carry, sizes_E, size: int):
    """body(carry, (group, first row, rows left in the group)) over every group's blocks."""
    sizes_E = jnp.asarray(sizes_E)
    blocks_E = -(-sizes_E // size)
    last_block_E, last_row_E = jnp.cumsum(blocks_E), jnp.cumsum(sizes_E)

    def step(i, carry):
        group = jnp.searchsorted(last_block_E, i, side="right")
        done = (i - (last_block_E[group] - blocks_E[group])) * size
        row = last_row_E[group] - sizes_E[group] + done
        return body(carry, (group, row, sizes_E[group] - done))

    return jax.lax.fori_loop(0, last_block_E[-1], step, carry)


def _within(x_Nd, sizes_E):
    return (jnp.arange(x_Nd.shape[0]) < jnp.sum(sizes_E))[:, None]


def sorted_by_group(group_n: Array, groups: int) -> tuple[Array, Array]:
    """(order_n, sizes_E): rows in the order of their group, and how many each group has.

    Group numbers outside of 0 … groups-1 come last and are not counted.
    """
    known = (group_n >= 0) & (group_n < groups)
    group_n = jnp.where(known, group_n, groups)
    return jnp.argsort(group_n, stable=True), jnp.bincount(group_n, length=groups + 1)[:groups]
