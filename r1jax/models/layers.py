"""The parts of a decoder block: RMSNorm, rotary positions, attention, SwiGLU.

flax.linen holds one block's parameters and its forward pass; stacking blocks is
`transformer.py`'s. Only the `params` collection is used.

Attention is computed heads-first ([B, K, …]): on CPU XLA's batched products are
several times faster than over [B, T, K, …]. The decode cache keeps keys as
[B, K, h, s] and values as [B, K, s, h], so that one new query needs no transposition.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from r1jax.types import Array

NEGATIVE = -1e30  # a masked score: exp gives exactly 0, and no row of a cache is ever all -inf


class RMSNorm(nn.Module):
    """x / rms(x) · scale, in float32 (arXiv:1910.07467)."""

    eps: float

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        return x32.astype(x.dtype) * scale.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


def rope_angles(positions_BT: Array, head_dim: int, theta: float) -> tuple[Array, Array]:
    """cos and sin, [B, 1, T, h/2], of the rotary embedding (arXiv:2104.09864)."""
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle = positions_BT[:, None, :, None].astype(jnp.float32) * frequency.reshape(1, 1, 1, -1)
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BKTh: Array, cos: Array, sin: Array) -> Array:
    """Rotates the pairs (i, i + h/2), as Llama and Qwen do."""
    a, b = jnp.split(x_BKTh, 2, axis=-1)
    cos, sin = cos.astype(x_BKTh.dtype), sin.astype(x_BKTh.dtype)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def attend(q_BHTh: Array, k_BKhs: Array, v_BKsh: Array, mask_B1Ts: Array) -> Array:
    """Softmax attention with grouped queries, [B, H, T, h]; scores in float32.

    Query heads H = K · (heads per kv head) are folded into the query axis, so that
    keys and values are read once for their whole group.
    """
    B, H, T, h = q_BHTh.shape
    K = k_BKhs.shape[1]
    q = (q_BHTh * h**-0.5).reshape(B, K, H // K * T, h)
    scores = jnp.matmul(q, k_BKhs, preferred_element_type=jnp.float32)
    scores = scores.reshape(B, K, H // K, T, -1)
    scores = jnp.where(mask_B1Ts[:, :, None], scores, NEGATIVE)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_BKsh.dtype)
    out = jnp.matmul(weights.reshape(B, K, H // K * T, -1), v_BKsh)
    return out.reshape(B, H, T, h)


class Attention(nn.Module):
    heads: int
    kv_heads: int
    head_dim: int
    bias: bool
    out_scale: float

    @nn.compact
    def __call__(self, x_BTD, rope, mask_B1Ts, cache=None):
        """Attends over x itself, or over a (k, v, slot) cache into which x is written at slot."""
        B, T, D = x_BTD.shape

        def project(name, heads):
            y = nn.Dense(heads * self.head_dim, use_bias=self.bias, name=name)(x_BTD)
            return y.reshape(B, T, heads, self.head_dim).transpose(0, 2, 1, 3)

        q = rotate(project("query", self.heads), *rope)
        k = rotate(project("key", self.kv_heads), *rope).swapaxes(2, 3)
        v = project("value", self.kv_heads)
        if cache is not None:
            k_cache, v_cache, slot = cache
            k = jax.lax.dynamic_update_slice(k_cache, k.astype(k_cache.dtype), (0, 0, 0, slot))
            v = jax.lax.dynamic_update_slice(v_cache, v.astype(v_cache.dtype), (0, 0, slot, 0))
        out = attend(q, k, v, mask_B1Ts).transpose(0, 2, 1, 3).reshape(B, T, -1)
        init = nn.initializers.variance_scaling(self.out_scale**2, "fan_in", "normal")
        return nn.Dense(D, use_bias=False, kernel_init=init, name="out")(out), (k, v)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x)) (arXiv:2002.05202)."""

    width: int
    out_scale: float

    @nn.compact
    def __call__(self, x):
        gate = nn.Dense(self.width, use_bias=False, name="gate")(x)
        up = nn.Dense(self.width, use_bias=False, name="up")(x)
        init = nn.initializers.variance_scaling(self.out_scale**2, "fan_in", "normal")
        down = nn.Dense(x.shape[-1], use_bias=False, kernel_init=init, name="down")
        return down(nn.silu(gate) * up)
