"""A Llama/Qwen2-style decoder as pure functions of its parameters.

One block is written in flax.linen (`layers.py`); its parameters are stacked on a
leading layer axis, and the blocks run under `lax.scan` (training: one block is
compiled, whatever the depth) or unrolled over a per-layer cache (decoding).
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from r1jax.models.layers import Attention, RMSNorm, SwiGLU, rope_angles
from r1jax.sharding import BATCH, Rules, constrain
from r1jax.types import Array

RULES: Rules = (
    (r"embed$", P("tensor", "fsdp")),
    (r"unembed$", P("fsdp", "tensor")),
    (r"(query|key|value|gate|up)/kernel$", P(None, "fsdp", "tensor")),
    (r"(query|key|value)/bias$", P(None, "tensor")),
    (r"(out|down)/kernel$", P(None, "tensor", "fsdp")),
    (r"scale$", P()),
)


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of a decoder; `context` is the longest sequence (prompt and response, tokens)."""

    vocabulary: int
    width: int = 64
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    mlp: int = 192
    context: int = 2048
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    qkv_bias: bool = True
    tied: bool = True
    dtype: str = "float32"  # of activations; parameters are kept in float32
    remat: bool = False  # recompute a block's activations in the backward pass

    def __post_init__(self):
        for name in (
            "vocabulary", "width", "layers", "heads", "kv_heads", "head_dim", "mlp", "context",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads={self.heads} is not divisible by kv_heads={self.kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even (rotary pairs)")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype={self.dtype!r} must be 'float32' or 'bfloat16'")


class Cache(NamedTuple):
    """Keys and values of the tokens so far, a layer an entry; slots are shared by all rows.

    Rows are left-padded, so every row's next token goes into the same slot.
    """

    k: tuple[Array, ...]  # [B, K, h, s]
    v: tuple[Array, ...]  # [B, K, s, h]
    start_B: Array  # int32: first slot that holds a token of the row, i.e. its left padding
    length: Array  # int32 scalar: slots filled


class Block(nn.Module):
    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BTD, rope, mask_B1Ts, cache=None):
        c = self.config
        scale = 1 / math.sqrt(2 * c.layers)
        attention = Attention(c.heads, c.kv_heads, c.head_dim, c.qkv_bias, scale, name="attention")
        y, kv = attention(RMSNorm(c.norm_eps, name="attention_norm")(x_BTD), rope, mask_B1Ts, cache)
        x_BTD = x_BTD + y
        x_BTD = x_BTD + SwiGLU(c.mlp, scale, name="mlp")(
            RMSNorm(c.norm_eps, name="mlp_norm")(x_BTD)
        )
        return constrain(x_BTD, BATCH, None, None), kv


@dataclass(frozen=True)
class Transformer:
    """The model: a config, and functions of (parameters, tokens)."""

    config: TransformerConfig
    rules: Rules = field(default=RULES, repr=False)

    def init(self, key: Array) -> dict:
        """Random float32 parameters: embedding N(0, 1/D), outputs scaled by 1/√(2L)."""
        c = self.config
        embed_key, unembed_key, block_key = jax.random.split(key, 3)
        x, positions = jnp.zeros((1, 1, c.width)), jnp.zeros((1, 1), jnp.int32)
        rope, mask = rope_angles(positions, c.head_dim, c.rope_theta), jnp.ones((1, 1, 1, 1), bool)

        def block(key):
            return Block(c).init(key, x, rope, mask)["params"]

        normal = c.width**-0.5
        params = {
            "embed": normal * jax.random.normal(embed_key, (c.vocabulary, c.width)),
            "blocks": jax.vmap(block)(jax.random.split(block_key, c.layers)),
            "final_norm": {"scale": jnp.ones((c.width,))},
        }
        if not c.tied:
            params["unembed"] = normal * jax.random.normal(unembed_key, (c.width, c.vocabulary))
        return params

    def apply(self, params, tokens_BT, *, positions_BT=None, segments_BT=None, cache=None):
        """Logits [B, T, V] of the next token, float32; with a cache also the longer cache.

        `segments_BT` (0 is padding) keeps packed sequences and padding apart: a token
        sees earlier tokens of its own segment only. `positions_BT` default to 0, 1, …,
        from the row's first token where there is a cache.
        """
        hidden = self.hidden(
            params, tokens_BT, positions_BT=positions_BT, segments_BT=segments_BT, cache=cache
        )
        if cache is None:
            return self.logits(params, hidden)
        return self.logits(params, hidden[0]), hidden[1]

    def hidden(self, params, tokens_BT, *, positions_BT=None, segments_BT=None, cache=None):
        """Final normalised activations [B, T, D]; arguments and cache as for `apply`."""
        c = self.config
        B, T = tokens_BT.shape
        if cache is None:
            if positions_BT is None:
                positions_BT = jnp.broadcast_to(jnp.arange(T), (B, T))
            mask = jnp.tril(jnp.ones((1, 1, T, T), bool))
            if segments_BT is not None:
                mask &= segments_BT[:, None, :, None] == segments_BT[:, None, None, :]
        else:
            slot_T = cache.length + jnp.arange(T)
            if positions_BT is None:
                positions_BT = jnp.maximum(slot_T[None, :] - cache.start_B[:, None], 0)
            slot_s = jnp.arange(cache.v[0].shape[2])
            mask = (slot_s[None, :] <= slot_T[:, None])[None, None]
            mask &= slot_s[None, None, None, :] >= cache.start_B[:, None, None, None]

        rope = rope_angles(positions_BT, c.head_dim, c.rope_theta)
        # Collect the table first: gathering from one cut over the vocabulary rematerialises it.
        embed = constrain(params["embed"], None, None)
        x = constrain(embed[tokens_BT].astype(c.dtype), BATCH, None, None)
        if cache is None:
            x = self._scan(params["blocks"], x, rope, mask)
        else:
            x, cache = self._unroll(params["blocks"], x, rope, mask, cache)
        x = RMSNorm(c.norm_eps).apply({"params": params["final_norm"]}, x)
        return x if cache is None else (x, cache)

    def _scan(self, blocks, x, rope, mask):
        def step(x, block):
            return Block(self.config).apply({"params": _cast(block, x.dtype)}, x, rope, mask)[
                0
            ], None

        return jax.lax.scan(jax.checkpoint(step) if self.config.remat else step, x, blocks)[0]

    def _unroll(self, blocks, x, rope, mask, cache):
        ks, vs = [], []
        for i, (k, v) in enumerate(zip(cache.k, cache.v, strict=True)):
            block = _cast(jax.tree.map(lambda p: p[i], blocks), x.dtype)  # noqa: B023
            x, (k, v) = Block(self.config).apply(
                {"params": block}, x, rope, mask, (k, v, cache.length)
            )
            ks.append(k)
            vs.append(v)
        length = cache.length + jnp.int32(mask.shape[2])
        return x, Cache(tuple(ks), tuple(vs), cache.start_B, length)

    def logits(self, params, hidden):
        """Float32 logits [..., V] of final activations [..., D]."""
        table = params["embed"].T if self.config.tied else params["unembed"]
        return jnp.matmul(hidden, table.astype(hidden.dtype), preferred_element_type=jnp.float32)

    def empty_cache(self, start_B: Array, slots: int) -> Cache:
        """A cache of `slots` free slots for rows left-padded by `start_B` tokens."""
        c, B = self.config, start_B.shape[0]
        k = tuple(jnp.zeros((B, c.kv_heads, c.head_dim, slots), c.dtype) for _ in range(c.layers))
        v = tuple(jnp.zeros((B, c.kv_heads, slots, c.head_dim), c.dtype) for _ in range(c.layers))
        return Cache(k, v, start_B, jnp.int32(0))


def _cast(tree, dtype):
    return jax.tree.map(lambda p: p.astype(dtype), tree)


def parameter_count(params) -> int:
    return sum(p.size for p in jax.tree.leaves(params))
