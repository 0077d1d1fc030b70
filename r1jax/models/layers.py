"""The parts of a decoder block: linear maps with adapters, RMSNorm, attention, SwiGLU.

flax.linen holds one block's parameters and its forward pass; stacking blocks is
`decoder.py`'s. Only the `params` collection is used.

Attention is computed heads-first ([B, K, …]): on CPU XLA's batched products are
several times faster than over [B, T, K, …].

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


def flat(x: Array) -> Array:
    """[..., D] as [N, D].

    Over two axes XLA's gradients with respect to weights and scales are a product and a sum
    over rows; over more, on CPU, they take 2.5 and 15 times as long.
    """
    return x.reshape(-1, x.shape[-1])


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
        axes, x = x.shape[:-1], flat(x)
        y = jnp.matmul(x, self.param("kernel", init, (x.shape[-1], self.features)))
        if self.bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,))[None]
        if adapter := _adapter(self):
            y = y + jnp.matmul(jnp.matmul(x, adapter[0]), adapter[1])
        return y.reshape(*axes, -1)


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
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],)).astype(x.dtype)
        x32 = flat(x).astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        return (x32.astype(x.dtype) * scale[None]).reshape(x.shape)


def attend(q_BHTh: Array, k_BKhs: Array, v_BKsv: Array, see, scale: float) -> Array:
    """Softmax attention with grouped queries, [B, H, T, v]; scores in float32.

    `see` is a mask [B, 1, T, s], or something that knows how to attend by itself. Query
    heads H = K · (heads per kv head) are folded into the query axis, so that keys and values
    are read once for their whole group.
    """
    if hasattr(see, "attend"):
        return see.attend(q_BHTh, k_BKhs, v_BKsv, scale)
    B, H, T, h = q_BHTh.shape
    K = k_BKhs.shape[1]
    q = (q_BHTh * scale).reshape(B, K, H // K * T, h)
    scores = jnp.matmul(q, k_BKhs, preferred_element_type=jnp.float32)
    scores = scores.reshape(B, K, H // K, T, -1)
    scores = jnp.where(see[:, :, None], scores, NEGATIVE)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_BKsv.dtype)
    out = jnp.matmul(weights.reshape(B, K, H // K * T, -1), v_BKsv)
    return out.reshape(B, H, T, -1)


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
    def __call__(self, x_BTD, rope, see, cache=None):
        """(attention of x over itself, or over (a cache's layer, length_B); what it leaves).

        That is (k, v) of x, or the layer with x written.
        """
        B, T, D = x_BTD.shape

        def project(name, heads):
            y = Linear(heads * self.head_dim, bias=self.bias, name=name)(x_BTD)
            return y.reshape(B, T, heads, self.head_dim).transpose(0, 2, 1, 3)

        q, k = project("query", self.heads), project("key", self.kv_heads)
        v = project("value", self.kv_heads)
        if self.qk_norm:
            q = RMSNorm(self.norm_eps, name="query_norm")(q)
            k = RMSNorm(self.norm_eps, name="key_norm")(k)
        q, k, scale = rotate(q, *rope), rotate(k, *rope).swapaxes(2, 3), self.head_dim**-0.5
        if cache is None:
            left, out = (k, v), attend(q, k, v, see, scale)
        else:
            layer, length_B = cache
            left = layer.write(k, v, length_B)
            out = left.attend(q, see, length_B, scale)
        out = out.transpose(0, 2, 1, 3).reshape(B, T, -1)
        return Linear(D, scale=self.out_scale, name="out")(out), left


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
