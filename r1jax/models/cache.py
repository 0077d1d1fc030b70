"""The keys and values of tokens so far: what a row's next token attends to.

Row b fills its first `length_B[b]` slots; what later slots hold is never read. Rows may
differ in length, so that one can take the place of another at any time. A layer's entry
knows its own layout:

    Slots   keys [B, K, h, s], values [B, K, s, h]: one new query needs no transposition. Every
            row is read to the longest one's end. For CPUs, where heads behind slots took 8 to
            20 times as long, for GPUs, and for latent attention (rotary key and latent, K = 1).
    Pages   keys and values interleaved in pages of 128 slots, of which the TPU's kernel reads
            each row's own and no more (`kernels.ragged_decode`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from r1jax.models import kernels
from r1jax.models.layers import attend
from r1jax.sharding import BATCH
from r1jax.types import Array


class Slots(NamedTuple):
    """A layer's keys and values."""

    k: Array  # [B, K, h, s]
    v: Array  # [B, K, s, h]

    @property
    def window(self) -> int:
        """Slots a row."""
        return self.v.shape[2]

    def write(self, k_BKhT: Array, v_BKTv: Array, length_B: Array) -> "Slots":
        """With T more tokens a row."""
        row_B1, slot_T = jnp.arange(len(length_B))[:, None], jnp.arange(v_BKTv.shape[2])
        slot_BT = length_B[:, None] + slot_T[None, :]
        # On CPU this is as fast as writing one slot of all rows, if it is told all this.
        told = {"mode": "promise_in_bounds", "unique_indices": True, "indices_are_sorted": True}
        k_BThK, v_BTKv = k_BKhT.transpose(0, 3, 1, 2), v_BKTv.transpose(0, 2, 1, 3)
        return Slots(
            self.k.at[row_B1, :, :, slot_BT].set(k_BThK.astype(self.k.dtype), **told),
            self.v.at[row_B1, :, slot_BT].set(v_BTKv.astype(self.v.dtype), **told),
        )

    def attend(self, q_BHTh: Array, see, length_B: Array, scale: float) -> Array:
        """Of the T tokens last written."""
        return attend(q_BHTh, self.k, self.v, see, scale)

    def fit(self, kept_b: Array, window: int) -> "Slots":
        """The rows `kept_b`, with so many slots."""
        return Slots(_fit(self.k, kept_b, window, 3), _fit(self.v, kept_b, window, 2))

    def insert(self, prompts: "Slots", row_R: Array, source_R: Array) -> "Slots":
        """With the prompts `source_R` copied to the rows `row_R`; to none where that is -1."""
        # Where prompts are padded further than there are slots, no padding is copied.
        T, row_R = min(prompts.window, self.window), _places(row_R, len(self.v))
        k, v = prompts.k[..., :T], prompts.v[:, :, :T]
        return Slots(
            self.k.at[row_R, :, :, :T].set(k[source_R], mode="drop"),
            self.v.at[row_R, :, :T].set(v[source_R], mode="drop"),
        )


class Pages(NamedTuple):
    """A layer's keys and values, alternating along 2K."""

    pages: Array  # [B, P, page, 2K, h]

    @property
    def window(self) -> int:
        return self.pages.shape[1] * self.pages.shape[2]

    def write(self, k_BKhT: Array, v_BKTv: Array, length_B: Array) -> "Pages":
        """With one more token a row."""
        if v_BKTv.shape[2] != 1:
            raise ValueError(f"{v_BKTv.shape[2]} tokens at a time: pages take one, Slots more")
        flat = self.pages.reshape(-1, *self.pages.shape[2:])
        flat = kernels.write_page(flat, k_BKhT[..., 0], v_BKTv[:, :, 0], length_B)
        return Pages(flat.reshape(self.pages.shape))

    def attend(self, q_BHTh: Array, see, length_B: Array, scale: float) -> Array:
        flat = self.pages.reshape(-1, *self.pages.shape[2:])
        return kernels.ragged_decode(q_BHTh[:, :, 0], flat, length_B + 1, scale=scale)[:, :, None]

    def fit(self, kept_b: Array, window: int) -> "Pages":
        return Pages(_fit(self.pages, kept_b, -(-window // kernels.PAGE), 1))

    def insert(self, prompts: Slots, row_R: Array, source_R: Array) -> "Pages":
        k_PKTh = prompts.k.swapaxes(2, 3)
        new = kernels.pages_of(k_PKTh, prompts.v, prompts.window)
        new = new.reshape(len(k_PKTh), -1, *new.shape[1:])
        place_R, P = _places(row_R, len(self.pages)), min(new.shape[1], self.pages.shape[1])
        return Pages(self.pages.at[place_R, :P].set(new[source_R, :P], mode="drop"))


def layout(mesh: Mesh, kv_heads: int, *, paged: bool) -> NamedSharding:
    """Of every array of a cache: rows cut, and heads where the tensor axis divides them."""
    heads = "tensor" if kv_heads % mesh.shape["tensor"] == 0 else None
    return NamedSharding(mesh, P(BATCH, None, None, heads) if paged else P(BATCH, heads))


class Cache(NamedTuple):
    layers: tuple[Slots | Pages, ...]
    length_B: Array  # int32: slots filled


def empty(
    layers: int, rows: int, slots: int, widths: tuple[int, int, int], dtype, *, paged: bool = False
) -> Cache:
    """Free slots; `widths`: kv heads, width of a key, of a value."""
    K, key, value = widths
    if paged:
        shape = (rows, -(-slots // kernels.PAGE), kernels.PAGE, 2 * K, key)
        entries = tuple(Pages(jnp.zeros(shape, dtype)) for _ in range(layers))
    else:
        k, v = (rows, K, key, slots), (rows, K, slots, value)
        entries = tuple(Slots(jnp.zeros(k, dtype), jnp.zeros(v, dtype)) for _ in range(layers))
    return Cache(entries, jnp.zeros(rows, jnp.int32))


def _fit(x: Array, kept_b: Array, size: int, axis: int) -> Array:
    x = jax.lax.slice_in_dim(x, 0, min(size, x.shape[axis]), axis=axis)[kept_b]
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, size - x.shape[axis])
    return jnp.pad(x, widths)


def _places(row_R: Array, rows: int) -> Array:
    """-1 as a place that does not exist."""
    return jnp.where(row_R < 0, rows, row_R)
