"""What every decoder does around its blocks: embed, mask, run the blocks, norm, unembed.

A family gives one or more stacks of equal blocks. A stack's parameters have a leading
layer axis; its blocks run under `lax.scan` (training: one block is compiled, whatever the
depth) or unrolled over a per-layer cache (decoding).
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from r1jax.models.layers import RMSNorm
from r1jax.sharding import BATCH, Rules, constrain, path_name
from r1jax.types import Array


class Cache(NamedTuple):
    """Keys and values of the tokens so far, a layer an entry; slots are shared by all rows.

    Rows are left-padded, so every row's next token goes into the same slot. With
    multi-head latent attention `k` holds the shared rotary key and `v` the latent, K = 1.
    """

    k: tuple[Array, ...]  # [B, K, h, s]
    v: tuple[Array, ...]  # [B, K, s, h]
    start_B: Array  # int32: first slot that holds a token of the row, i.e. its left padding
    length: Array  # int32 scalar: slots filled


class Context(NamedTuple):
    """What all blocks of a forward pass are given beside the activations."""

    rope: tuple[Array, Array]  # cos and sin
    mask_B1Ts: Array  # what may be attended to
    real_BT: Array  # bool: tokens, not padding


class Stack(NamedTuple):
    """`layers` equal blocks: block(x_BTD, context, cache) -> x_BTD, (k, v), statistics."""

    block: nn.Module
    layers: int


class Decoder:
    """Functions of (parameters, tokens). A family is a frozen dataclass that fills in these:"""

    config: object  # with vocabulary, width, norm_eps, tied, dtype, remat
    rules: Rules  # layouts of its parameters

    def stacks(self) -> dict[str, Stack]:
        """The stacks, in order, by the name of their parameters."""
        raise NotImplementedError

    def rope(self, positions_BT: Array) -> tuple[Array, Array]:
        raise NotImplementedError

    def cache_widths(self) -> tuple[int, int, int]:
        """(K, width of a key, width of a value) of a layer's cache entry."""
        raise NotImplementedError

    def rebalance(self, params, statistics):
        """Parameters after what a family changes by other means than gradients."""
        return params

    def init(self, key: Array) -> dict:
        """Random float32 parameters: embedding N(0, 1/D), outputs scaled by 1/√(2L)."""
        c, stacks = self.config, self.stacks()
        embed_key, unembed_key, block_key = jax.random.split(key, 3)
        positions = jnp.zeros((1, 1), jnp.int32)
        x, one = jnp.zeros((1, 1, c.width)), jnp.ones((1, 1, 1, 1), bool)
        context = Context(self.rope(positions), one, one[0, 0])
        keys = jax.random.split(block_key, sum(s.layers for s in stacks.values()))
        params, at = {}, 0
        for name, stack in stacks.items():
            make = jax.vmap(lambda key: stack.block.init(key, x, context)["params"])  # noqa: B023
            params[name] = make(keys[at : at + stack.layers])
            at += stack.layers
        normal = c.width**-0.5
        params["embed"] = normal * jax.random.normal(embed_key, (c.vocabulary, c.width))
        params["final_norm"] = {"scale": jnp.ones((c.width,))}
        if not c.tied:
            params["unembed"] = normal * jax.random.normal(unembed_key, (c.width, c.vocabulary))
        return params

    def apply(self, params, tokens_BT, *, positions_BT=None, segments_BT=None, cache=None):
        """Logits [B, T, V] of the next token, float32; with a cache also the longer cache.

        `segments_BT` (0 is padding) keeps packed sequences and padding apart: a token
        sees earlier tokens of its own segment only. `positions_BT` default to 0, 1, …,
        from the row's first token where there is a cache.
        """
        hidden, cache, _ = self.forward(
            params, tokens_BT, positions_BT=positions_BT, segments_BT=segments_BT, cache=cache
        )
        logits = self.logits(params, hidden)
        return logits if cache is None else (logits, cache)

    def forward(self, params, tokens_BT, *, positions_BT=None, segments_BT=None, cache=None):
        """(final normalised activations [B, T, D], longer cache or None, statistics).

        Arguments as for `apply`. Statistics are what `rebalance` reads, summed over the
        tokens that are not padding: additive over micro-batches.
        """
        c = self.config
        B, T = tokens_BT.shape
        real_BT = jnp.ones((B, T), bool)
        if cache is None:
            if positions_BT is None:
                positions_BT = jnp.broadcast_to(jnp.arange(T), (B, T))
            mask = jnp.tril(jnp.ones((1, 1, T, T), bool))
            if segments_BT is not None:
                mask &= segments_BT[:, None, :, None] == segments_BT[:, None, None, :]
                real_BT = segments_BT > 0
        else:
            slot_T = cache.length + jnp.arange(T)
            if positions_BT is None:
                positions_BT = jnp.maximum(slot_T[None, :] - cache.start_B[:, None], 0)
            slot_s = jnp.arange(cache.v[0].shape[2])
            mask = (slot_s[None, :] <= slot_T[:, None])[None, None]
            mask &= slot_s[None, None, None, :] >= cache.start_B[:, None, None, None]
        context = Context(self.rope(positions_BT), mask, real_BT)
        # Collect the table first: gathering from one cut over the vocabulary rematerialises it.
        embed = constrain(params["embed"], None, None)
        x = constrain(embed[tokens_BT].astype(c.dtype), BATCH, None, None)
        run = self._scan if cache is None else self._unroll
        x, cache, statistics = run(params, x, context, cache)
        return RMSNorm(c.norm_eps).apply({"params": params["final_norm"]}, x), cache, statistics

    def _scan(self, params, x, context, _):
        statistics = {}
        for name, stack in self.stacks().items():

            def step(x, block, stack=stack):
                x, _, counted = stack.block.apply({"params": _cast(block, x.dtype)}, x, context)
                return x, counted

            step = jax.checkpoint(step) if self.config.remat else step
            x, statistics[name] = jax.lax.scan(step, x, params[name])
        return x, None, statistics

    def _unroll(self, params, x, context, cache):
        ks, vs = [], []
        for name, stack in self.stacks().items():
            for i in range(stack.layers):
                block = _cast(jax.tree.map(lambda p: p[i], params[name]), x.dtype)  # noqa: B023
                kv = (cache.k[len(ks)], cache.v[len(vs)], cache.length)
                x, (k, v), _ = stack.block.apply({"params": block}, x, context, kv)
                ks.append(k)
                vs.append(v)
        length = cache.length + jnp.int32(context.mask_B1Ts.shape[2])
        return x, Cache(tuple(ks), tuple(vs), cache.start_B, length), {}

    def logits(self, params, hidden):
        """Float32 logits [..., V] of final activations [..., D]."""
        table = params["embed"].T if self.config.tied else params["unembed"]
        return jnp.matmul(hidden, table.astype(hidden.dtype), preferred_element_type=jnp.float32)

    def empty_cache(self, start_B: Array, slots: int) -> Cache:
        """A cache of `slots` free slots for rows left-padded by `start_B` tokens."""
        (K, key, value), B = self.cache_widths(), start_B.shape[0]
        layers = range(sum(stack.layers for stack in self.stacks().values()))
        k = tuple(jnp.zeros((B, K, key, slots), self.config.dtype) for _ in layers)
        v = tuple(jnp.zeros((B, K, slots, value), self.config.dtype) for _ in layers)
        return Cache(k, v, start_B, jnp.int32(0))


def _cast(block, dtype):
    """A block's parameters in the type of the activations; routers stay float32."""

    def one(path, p):
        return p.astype(jnp.float32 if "router" in path_name(path) else dtype)

    return jax.tree_util.tree_map_with_path(one, block)


def check_shape(config, names: tuple[str, ...]) -> None:
    """Raises ValueError for what no decoder's config may hold; `names` must be at least 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name}={getattr(config, name)} must be at least 1")
    if config.dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype={config.dtype!r} must be 'float32' or 'bfloat16'")


def output_scale(layers: int) -> float:
    """Of the initial weights that write into the residual stream: 1/√(2L)."""
    return 1 / math.sqrt(2 * layers)


def parameter_count(params) -> int:
    return sum(math.prod(p.shape) for p in jax.tree.leaves(params))
