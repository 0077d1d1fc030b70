"""Sparse experts as in DeepSeek-V3 (arXiv:2412.19437, section 2.1.2).

Nothing is dropped: every token gets all its experts, so results do not depend on what
else is in the batch. On a mesh, tokens are gathered over the expert axis, every part
computes what its own experts owe them, and the sums go back to where the tokens are.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from r1jax.models.grouped import grouped_matmul, sorted_by_group
from r1jax.sharding import BATCH, batch_axis_size
from r1jax.types import Array


class Router(nn.Module):
    """Chooses experts by sigmoid score plus bias, weighs them by the score alone.

    The bias only steers the choice, so that load can be balanced without touching the
    gradient (`Deepseek.rebalance`). A group counts with its two best experts; only the
    best `groups_per_token` groups are chosen from.
    """

    experts: int
    per_token: int
    groups: int
    groups_per_token: int
    normalise: bool
    scale: float

    @nn.compact
    def __call__(self, x_BTD):
        """(expert_BTk int32, weight_BTk float32)."""
        x = x_BTD.astype(jnp.float32)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.experts))
        bias = self.param("bias", nn.initializers.zeros, (self.experts,))
        score_BTE = nn.sigmoid(jnp.matmul(x, kernel))
        choice_BTE = jax.lax.stop_gradient(score_BTE + bias.reshape(1, 1, -1))
        grouped = choice_BTE.reshape(*choice_BTE.shape[:2], self.groups, -1)
        best_two_BTg = jax.lax.top_k(grouped, min(2, grouped.shape[-1]))[0].sum(-1)
        _, group_BTg = jax.lax.top_k(best_two_BTg, self.groups_per_token)
        open_BTg = jax.nn.one_hot(group_BTg, self.groups, dtype=bool).any(axis=-2)
        choice = jnp.where(open_BTg[..., None], grouped, -jnp.inf).reshape(choice_BTE.shape)
        _, expert_BTk = jax.lax.top_k(choice, self.per_token)
        weight_BTk = jnp.take_along_axis(score_BTE, expert_BTk, axis=-1)
        if self.normalise:
            weight_BTk = weight_BTk / (weight_BTk.sum(-1, keepdims=True) + 1e-20)
        return expert_BTk, weight_BTk * self.scale


class Experts(nn.Module):
    """One SwiGLU an expert; kernels are [E, in, out]."""

    experts: int
    width: int
    out_scale: float

    @nn.compact
    def __call__(self, x_BTD, expert_BTk, weight_BTk):
        """Σ_k weight_k · expert_k(x), [B, T, D]."""
        D, E, F = x_BTD.shape[-1], self.experts, self.width
        init = nn.initializers.lecun_normal(batch_axis=0)
        small = nn.initializers.variance_scaling(
            self.out_scale**2, "fan_in", "normal", batch_axis=0
        )
        gate, up, down = (
            _Kernel(how, shape, name=name)()
            for name, how, shape in (
                ("gate", init, (E, D, F)), ("up", init, (E, D, F)), ("down", small, (E, F, D)),
            )
        )  # fmt: skip
        if self.is_initializing():
            return x_BTD
        mesh = jax.sharding.get_abstract_mesh()
        weight_BTk = weight_BTk.astype(x_BTD.dtype)
        if mesh.empty:
            return _mixture(x_BTD, expert_BTk, weight_BTk, gate, up, down, 0)
        B = x_BTD.shape[0]
        # shard_map cuts evenly: fill the rows up (a notebook may well ask for one).
        more = -B % batch_axis_size(mesh)
        tokens = (jnp.pad(a, ((0, more), (0, 0), (0, 0))) for a in (x_BTD, expert_BTk, weight_BTk))
        inner, outer = P("expert", None, "tensor"), P("expert", "tensor", None)
        return jax.shard_map(
            _on_each_device,
            in_specs=(P(BATCH), P(BATCH), P(BATCH), inner, inner, outer),
            out_specs=P(BATCH),
            check_vma=False,
        )(*tokens, gate, up, down)[:B]


class _Kernel(nn.Module):
    initializer: object
    shape: tuple[int, ...]

    @nn.compact
    def __call__(self):
        return self.param("kernel", self.initializer, self.shape)


def _on_each_device(x, expert, weight, gate, up, down):
    """This device's rows of the sum, from its experts, and its columns of their width."""
    x, expert, weight = (
        jax.lax.all_gather(a, "expert", axis=0, tiled=True) for a in (x, expert, weight)
    )
    first = jax.lax.axis_index("expert") * gate.shape[0]
    y = _mixture(x, expert, weight, gate, up, down, first)
    y = jax.lax.psum(y, "tensor")
    return jax.lax.psum_scatter(y, "expert", scatter_dimension=0, tiled=True)


def _mixture(x_BTD, expert_BTk, weight_BTk, gate_EDF, up_EDF, down_EFD, first) -> Array:
    """What the experts numbered first, first + 1, … add to each token."""
    (B, T, D), k = x_BTD.shape, expert_BTk.shape[-1]
    order_n, sizes_E = sorted_by_group((expert_BTk - first).reshape(-1), gate_EDF.shape[0])
    back_n = jnp.argsort(order_n)
    # Repeating first makes both permutations one to one: gradients need no adding up there.
    x_nD = jnp.repeat(x_BTD.reshape(-1, D), k, axis=0)[order_n]
    hidden = nn.silu(grouped_matmul(x_nD, gate_EDF, sizes_E))
    y_nD = grouped_matmul(hidden * grouped_matmul(x_nD, up_EDF, sizes_E), down_EFD, sizes_E)
    y = y_nD[back_n].reshape(B * T, k, D) * weight_BTk.reshape(B * T, k, 1)
    return y.sum(axis=1).reshape(B, T, D)
