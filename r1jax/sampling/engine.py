"""Rollouts: prefill once a prompt, then decode in chunks inside jit; the host only schedules.

Prompts are left-padded, so all rows write the same cache slot. Between chunks the host
drops finished rows by halving the batch and lengthens the cache by a chunk, so short
responses do not wait for long ones and attention does not read what is not there yet.
A handful of shapes is compiled.

The number that decides a token is a function of (key, prompt id, sample id, position)
alone: not of the batch, the slot, the chunk length or the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from r1jax.models.decoder import Cache, Decoder
from r1jax.sampling.choose import choose
from r1jax.sharding import batch_axis_size, replicated, rows
from r1jax.types import Array, Rollout

PROMPT_MULTIPLE = 8  # prompts are padded to a multiple of this: fewer shapes to compile


@dataclass(frozen=True)
class SamplingConfig:
    """How to sample; `max_tokens` counts the end token, `rows` are decoded at a time."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    rows: int = 512
    chunk: int = 32

    def __post_init__(self):
        if self.max_tokens < 1 or self.rows < 1 or self.chunk < 1:
            raise ValueError(
                f"max_tokens={self.max_tokens}, rows={self.rows}, chunk={self.chunk} "
                "must all be at least 1"
            )
        if self.temperature < 0:
            raise ValueError(f"temperature={self.temperature} must not be negative")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be in (0, 1]")


class State(NamedTuple):
    """What decoding carries from chunk to chunk."""

    cache: Cache
    logits_BV: Array  # of the next token
    key_B: Array  # a row's key: fold in the position and draw
    done_B: Array  # the end token is out, or the row is only padding
    position: Array  # int32 scalar: response tokens so far


class Sampler:
    """Jitted sampling of one model, ended by any of `stop_ids`; reusable over parameters."""

    def __init__(
        self,
        model: Decoder,
        config: SamplingConfig,
        *,
        stop_ids: Sequence[int],
        pad_id: int,
        mesh: Mesh,
    ):
        self.model, self.config, self.mesh = model, config, mesh
        self.stop_ids, self.pad_id = tuple(stop_ids), pad_id
        self._prefill = jax.jit(self._prefill_fn, static_argnums=(4, 5))
        self._decode = jax.jit(self._decode_fn, static_argnums=2, donate_argnums=1)
        self._reshape = jax.jit(self._reshape_fn, static_argnums=2)

    def __call__(
        self,
        params,
        prompts: Sequence[Sequence[int]],
        key: Array,
        *,
        prompt_ids: Sequence[int] | None = None,
        group_size: int = 1,
        on_tokens=None,
    ) -> Rollout:
        """Samples `group_size` responses to each prompt (token ids, begin token included).

        `prompt_ids` (default 0, 1, …) name the prompts in the random keys.
        `on_tokens({row: ids})` is called with the new tokens of every chunk.
        Raises ValueError for an empty prompt, or one whose response cannot fit the
        model's context.
        """
        self.check(prompts)
        prompt_ids = range(len(prompts)) if prompt_ids is None else prompt_ids
        if len(prompt_ids) != len(prompts):
            raise ValueError(f"{len(prompt_ids)} prompt_ids for {len(prompts)} prompts")
        width = max(len(p) for p in prompts)
        width += -width % PROMPT_MULTIPLE
        pieces = batch_axis_size(self.mesh)
        at_a_time = max(1, self.config.rows // group_size)
        at_a_time = min(at_a_time, len(prompts))
        at_a_time += -at_a_time % pieces
        parts = []
        for at in range(0, len(prompts), at_a_time):
            batch = slice(at, at + at_a_time)
            parts.append(
                self._batch(
                    params, prompts[batch], key, prompt_ids[batch], group_size,
                    at_a_time, width, on_tokens and partial(_shifted, on_tokens, at * group_size),
                )
            )  # fmt: skip
        return Rollout(*(np.concatenate(x) for x in zip(*parts, strict=True)))

    def check(self, prompts: Sequence[Sequence[int]]) -> None:
        """Raises ValueError, before any compilation, where a prompt cannot be sampled from."""
        if not prompts:
            raise ValueError("no prompts to sample from")
        context, new = self.model.config.context, self.config.max_tokens
        for i, prompt in enumerate(prompts):
            if not prompt:
                raise ValueError(f"prompt {i} is empty")
            if len(prompt) + new > context:
                raise ValueError(
                    f"prompt {i} has {len(prompt)} tokens; with max_tokens={new} that exceeds the "
                    f"model's context of {context}: shorten it, or lower max_tokens"
                )

    def _batch(self, params, prompts, key, prompt_ids, G, P, width, on_tokens) -> Rollout:
        c, B = self.config, len(prompts) * G
        prompt_PT = np.full((P, width), self.pad_id, np.int32)
        start_P = np.full(P, width - 1, np.int32)  # a padding prompt is one token long
        for i, prompt in enumerate(prompts):
            start_P[i] = width - len(prompt)
            prompt_PT[i, start_P[i] :] = prompt
        ids_P = np.zeros(P, np.int32)
        ids_P[: len(prompts)] = prompt_ids
        layout = rows(self.mesh)
        state = self._prefill(
            params,
            jax.device_put(prompt_PT, layout),
            jax.device_put(start_P, layout),
            (jax.device_put(ids_P, layout), jax.device_put(key, replicated(self.mesh))),
            G,
            len(prompts),
        )
        tokens_BT = np.full((B, c.max_tokens), self.pad_id, np.int32)
        logp_BT = np.zeros((B, c.max_tokens), np.float32)
        length_B = np.zeros(B, np.int32)
        finished_B = np.zeros(B, bool)
        owner_b = np.arange(P * G)  # which row a slot of the device batch holds; B or more: none
        owner_b[B:] = B
        pieces, floor = batch_axis_size(self.mesh), min(len(owner_b), c.rows // 8)
        for at in range(0, c.max_tokens, c.chunk):
            steps = min(c.chunk, c.max_tokens - at)
            alive_b = np.flatnonzero(owner_b < B)
            size = len(owner_b)
            while size % (2 * pieces) == 0 and size // 2 >= max(len(alive_b), floor):
                size //= 2
            dead_b = np.flatnonzero(owner_b == B)
            index_b = np.sort(np.concatenate([alive_b, dead_b[: size - len(alive_b)]]))
            owner_b = owner_b[index_b]
            slots = bucket(width + at + steps)
            state = self._reshape(state, jax.device_put(index_b, layout), slots)
            state, (token_bt, logp_bt, count_b) = self._decode(params, state, steps)
            token_bt, logp_bt, count_b, done_b = jax.device_get(
                (token_bt, logp_bt, count_b, state.done_B)
            )
            real = owner_b < B
            owner = owner_b[real]
            tokens_BT[owner, at : at + steps] = token_bt[real]
            logp_BT[owner, at : at + steps] = logp_bt[real]
            length_B[owner] += count_b[real]
            finished_B[owner] |= done_b[real]
            owner_b[done_b] = B
            if on_tokens is not None:
                counted = zip(owner, token_bt[real], count_b[real], strict=True)
                on_tokens({int(row): ids[:n] for row, ids, n in counted if n})
            if (owner_b == B).all():
                break
        repeat = partial(np.repeat, repeats=G, axis=0)
        n = len(prompts)
        return Rollout(
            repeat(prompt_PT[:n]), repeat(width - start_P[:n]), tokens_BT, logp_BT,
            length_B, ~finished_B,
        )  # fmt: skip

    def _prefill_fn(self, params, prompt_PT, start_P, ids_and_key, G, real) -> State:
        ids_P, key = ids_and_key
        P, T = prompt_PT.shape
        hidden_PTD, cache, _ = self.model.forward(
            params, prompt_PT, cache=self.model.empty_cache(start_P, T)
        )
        logits_PV = self.model.logits(params, hidden_PTD[:, -1])

        def rows_of(x):
            return jnp.repeat(x, G, axis=0, total_repeat_length=P * G)

        cache = Cache(
            jax.tree.map(rows_of, cache.k), jax.tree.map(rows_of, cache.v),
            rows_of(cache.start_B), cache.length,
        )  # fmt: skip
        key_P = jax.vmap(partial(jax.random.fold_in, key))(ids_P)
        key_PG = jax.vmap(lambda k: jax.vmap(partial(jax.random.fold_in, k))(jnp.arange(G)))(key_P)
        key_B = key_PG.reshape((P * G, *key_PG.shape[2:]))
        done_B = jnp.arange(P * G) >= real * G
        return State(cache, rows_of(logits_PV), key_B, done_B, jnp.int32(0))

    def _reshape_fn(self, state: State, index_b, slots: int) -> State:
        """Keeps the rows `index_b` and lengthens the cache to `slots`."""
        k = tuple(
            jnp.pad(x[index_b], ((0, 0), (0, 0), (0, 0), (0, slots - x.shape[3])))
            for x in state.cache.k
        )
        v = tuple(
            jnp.pad(x[index_b], ((0, 0), (0, 0), (0, slots - x.shape[2]), (0, 0)))
            for x in state.cache.v
        )
        cache = Cache(k, v, state.cache.start_B[index_b], state.cache.length)
        return State(
            cache, state.logits_BV[index_b], state.key_B[index_b], state.done_B[index_b],
            state.position,
        )  # fmt: skip

    def _decode_fn(self, params, state: State, steps: int):
        """Up to `steps` tokens a row: (state, (tokens_BT, logp_BT, tokens written a row))."""
        B = state.done_B.shape[0]
        out = (
            jnp.full((B, steps), self.pad_id, jnp.int32),
            jnp.zeros((B, steps), jnp.float32),
            jnp.zeros((B,), jnp.int32),
        )

        def going(carry):
            i, state, _ = carry
            return (i < steps) & ~jnp.all(state.done_B)

        def step(carry):
            i, state, (tokens, logps, count) = carry
            uniform_B = jax.vmap(
                lambda key: jax.random.uniform(jax.random.fold_in(key, state.position))
            )(state.key_B)
            token_B, logp_B = choose(
                state.logits_BV, uniform_B,
                temperature=self.config.temperature, top_p=self.config.top_p,
            )  # fmt: skip
            token_B = jnp.where(state.done_B, self.pad_id, token_B)
            logp_B = jnp.where(state.done_B, 0.0, logp_B)
            tokens = jax.lax.dynamic_update_slice(tokens, token_B[:, None], (0, i))
            logps = jax.lax.dynamic_update_slice(logps, logp_B[:, None], (0, i))
            count = count + ~state.done_B
            done_B = state.done_B | jnp.isin(token_B, jnp.array(self.stop_ids, jnp.int32))
            hidden, cache, _ = self.model.forward(params, token_B[:, None], cache=state.cache)
            logits_BV = self.model.logits(params, hidden[:, 0])
            state = State(cache, logits_BV, state.key_B, done_B, state.position + 1)
            return i + 1, state, (tokens, logps, count)

        _, state, out = jax.lax.while_loop(going, step, (jnp.int32(0), state, out))
        return state, out


def bucket(slots: int) -> int:
    """Cache length for `slots` tokens: as they are up to 256, then four sizes a doubling.

    Every length is a program to compile: 32,768 tokens need some 30, and read at most a
    quarter more than there is.
    """
    if slots <= 256:
        return slots
    step = 1 << (slots - 1).bit_length() - 3
    return slots + -slots % step


def _shifted(on_tokens, first: int, new: dict) -> None:
    on_tokens({first + row: ids for row, ids in new.items()})
