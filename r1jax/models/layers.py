"""The parts of a decoder block: linear maps with adapters, RMSNorm, attention, SwiGLU.

flax.linen holds one block's parameters and its forward pass; stacking blocks is
`decoder.py`'s. Only the `params` collection is used.

Attention is computed heads-first ([B, K, …]): on CPU XLA's batched products are
several times faster than over [B, T, K, …]. The decode cache keeps keys as
[B, K, h, s] and values as [B, K, s, h], so that one new query needs no transposition.

A low-rank adapter (`lora.py`) is three more leaves beside a kernel. Where they are in the
parameters a layer adds them; without them it is the plain layer, so switching adapters
off is leaving leaves out.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from r1jax.models.rope import rotate
from r1jax.types import Array

NEGATIVE = -1e30  # a masked score: exp gives exactly 0, and no row of a cache is ever all -inf


class Linear(nn.Module):
    """x W + b, and x A (s B) where the parameters hold an adapter (arXiv:2106.09685)."""

    features: int
    bias: bool = False
    scale: float = 0.0  # of initial weights: N(0, scale²/in); 0: the library's default for 1

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.lecun_normal()
        if self.scale:
            init = nn.initializers.variance_scaling(self.scale**2, "fan_in", "normal")
        y = jnp.matmul(x, self.param("kernel", init, (x.shape[-1], self.features)))
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = y + bias.reshape((1,) * (x.ndim - 1) + (-1,))
        if adapter := _adapter(self):
            y = y + jnp.matmul(jnp.matmul(x, adapter[0]), adapter[1])
        return y


class Matrix(nn.Module):
    """The kernel [rows, features] of a linear map itself, its adapter added."""

    features: int

    @nn.compact
    def __call__(self, rows: int):
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (rows, self.features))
        if adapter := _adapter(self):
            kernel = kernel + jnp.matmul(*adapter)
        return kernel


def _adapter(module: nn.Module) -> tuple[Array, Array] | None:
    """A [in, r] and s B [r, out], where the module's parameters have them."""
    if not module.has_variable("params", "lora_a"):
        return None
    a, b, s = (module.get_variable("params", f"lora_{name}") for name in ("a", "b", "scale"))
    return a, b * s


class RMSNorm(nn.Module):
    """x / rms(x) · scale, in float32 (arXiv:1910.07467)."""

    eps: float

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        return x32.astype(x.dtype) * scale.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


def attend(q_BHTh: Array, k_BKhs: Array, v_BKsv: Array, mask_B1Ts: Array, scale: float) -> Array:
    """Softmax attention with grouped queries, [B, H, T, v]; scores in float32.

    Query heads H = K · (heads per kv head) are folded into the query axis, so that
    keys and values are read once for their whole group.
    """
    B, H, T, h = q_BHTh.shape
    K = k_BKhs.shape[1]
    q = (q_BHTh * scale).reshape(B, K, H // K * T, h)
    scores = jnp.matmul(q, k_BKhs, preferred_element_type=jnp.float32)
    scores = scores.reshape(B, K, H // K, T, -1)
    scores = jnp.where(mask_B1Ts[:, :, None], scores, NEGATIVE)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_BKsv.dtype)
    out = jnp.matmul(weights.reshape(B, K, H // K * T, -1), v_BKsv)
    return out.reshape(B, H, T, -1)


def write_cache(cache, k_BKhT: Array, v_BKTv: Array):
    """(k, v) of a (k, v, slot) cache after T tokens are written at `slot`; as given without one."""
    if cache is None:
        return k_BKhT, v_BKTv
    k, v, slot = cache
    return (
        jax.lax.dynamic_update_slice(k, k_BKhT.astype(k.dtype), (0, 0, 0, slot)),
        jax.lax.dynamic_update_slice(v, v_BKTv.astype(v.dtype), (0, 0, slot, 0)),
    )


class Attention(nn.Module):
    """Grouped-query attention; `qk_norm` normalises queries and keys by head (Qwen3)."""

    heads: int
    kv_heads: int
    head_dim: int
    bias: bool
    qk_norm: bool
    norm_eps: float
    out_scale: float

    @nn.compact
    def __call__(self, x_BTD, rope, mask_B1Ts, cache=None):
        """Attends over x itself, or over a (k, v, slot) cache into which x is written at slot."""
        B, T, D = x_BTD.shape

        def project(name, heads):
            y = Linear(heads * self.head_dim, bias=self.bias, name=name)(x_BTD)
            return y.reshape(B, T, heads, self.head_dim).transpose(0, 2, 1, 3)

        q, k = project("query", self.heads), project("key", self.kv_heads)
        v = project("value", self.kv_heads)
        if self.qk_norm:
            q = RMSNorm(self.norm_eps, name="query_norm")(q)
            k = RMSNorm(self.norm_eps, name="key_norm")(k)
        k, v = write_cache(cache, rotate(k, *rope).swapaxes(2, 3), v)
        out = attend(rotate(q, *rope), k, v, mask_B1Ts, self.head_dim**-0.5)
        out = out.transpose(0, 2, 1, 3).reshape(B, T, -1)
        return Linear(D, scale=self.out_scale, name="out")(out), (k, v)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x)) (arXiv:2002.05202)."""

    width: int
    out_scale: float

    @nn.compact
    def __call__(self, x):
        gate = Linear(self.width, name="gate")(x)
        up = Linear(self.width, name="up")(x)
        down = Linear(x.shape[-1], scale=self.out_scale, name="down")
        return down(nn.silu(gate) * up)
