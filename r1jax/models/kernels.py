"""Attention by the kernels of platforms, beside the plain path (`layers.attend`).

Each is a pure function of arrays, with what `attend` computes as its result; which one a
platform is to use is said in one place, `training_kernel` and `decode_kernel`. Kernels are
opaque to the compiler, which would gather their operands on every device. Where a mesh is
set each device therefore runs its own over its rows and its heads (`jax.shard_map`); no
device needs what another has, so nothing is sent.

Pallas is imported where it is used: it takes a third of a second, and CPUs need none of it.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from r1jax.sharding import BATCH, batch_axis_size
from r1jax.types import Array

LANES = 128  # width of a TPU's registers: what its kernels cut the last axes into
PAGE = 128  # slots of a page. A page is one copy into fast memory, so not few
HEADS = P(BATCH, "tensor", None, None)  # [B, H, T, h], and the same for K
PAGES = P(BATCH, None, "tensor", None)  # [B · P, page, 2K, h]


class Splash(NamedTuple):
    """Packed rows for `layers.attend`, by `splash`."""

    segments_BT: Array

    def attend(self, q_BHTh: Array, k_BKhT: Array, v_BKTv: Array, scale: float) -> Array:
        return splash(q_BHTh, k_BKhT.swapaxes(2, 3), v_BKTv, self.segments_BT, scale=scale)


class Cudnn(NamedTuple):
    """A mask for `layers.attend`, by `cudnn`."""

    mask_B1TT: Array

    def attend(self, q_BHTh: Array, k_BKhT: Array, v_BKTv: Array, scale: float) -> Array:
        return cudnn(q_BHTh, k_BKhT.swapaxes(2, 3), v_BKTv, self.mask_B1TT, scale=scale)


def training_kernel(platform: str, dtype, head_width: int) -> Literal["splash", "cudnn", "plain"]:
    """What computes attention over whole sequences of rows, forward and backward.

    platform: of the mesh's devices (`device.platform`); head_width: of queries and keys.

    - `tpu`: `splash`, of any width and both types: no score ever leaves the chip, and blocks
      above the diagonal are left out. Its segments keep packed sequences apart, no more:
      rows in which segments share a prefix are for the plain path.
    - `gpu`, `cuda`: `cudnn` in 16 bits, where the width is a multiple of 8 up to 128. cuDNN has
      no float32, and widths up to 256 from Hopper on only, which the platform's name does
      not tell. ROCm calls itself `gpu` too and has no cuDNN: there use the plain path.
    - all else, `cpu` first: `plain`. Pallas would be interpreted.
    """
    dtype = jnp.dtype(dtype)
    if platform == "tpu" and dtype in (jnp.float32, jnp.bfloat16):
        return "splash"
    if platform in ("gpu", "cuda") and dtype in (jnp.bfloat16, jnp.float16):
        return "cudnn" if head_width % 8 == 0 and head_width <= 128 else "plain"
    return "plain"


def decode_kernel(platform: str, dtype, head_width: int) -> Literal["ragged", "plain"]:
    """What computes attention of one new token a row over the cache.

    - `tpu`: `ragged` where the width is a multiple of 128: each row reads its own pages up to
      its own length, where the plain path reads every row to the longest one's. The kernel has
      no narrower heads; padding them to 128 would double what is read, and take that back.
    - all else: `plain`. jax's decode kernel for GPUs is deprecated.

    Keys and values must be equally wide: latent attention (DeepSeek) is for the plain path.
    """
    whole = head_width % LANES == 0
    ragged = platform == "tpu" and jnp.dtype(dtype) in (jnp.float32, jnp.bfloat16) and whole
    return "ragged" if ragged else "plain"


def splash(
    q_BHTh: Array, k_BKTh: Array, v_BKTv: Array, segments_BT: Array, *, scale: float,
    interpret: bool = False,
) -> Array:  # fmt: skip
    """TPU: causal attention within segments, [B, H, T, v]; differentiable in q, k and v.

    A token sees the earlier tokens of its own segment, and itself. Padding (segment 0) is a
    segment like others: its results are finite, and the plain path's.

    Keys and values are not repeated for their group: the kernel looks up the kv head of each
    query head. Heads of any width go in as they are, values may be narrower than keys. T is
    padded to a multiple of 128 here, which copies: pack rows to multiples of 512 tokens, the
    largest block. `interpret` runs the kernel step by step, on any platform.

    Raises ValueError where the mesh does not divide rows and heads.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    T = q_BHTh.shape[2]
    over = -T % LANES
    if over:  # after all tokens, so that causality hides it from them
        q_BHTh, k_BKTh, v_BKTv = (
            jnp.pad(x, ((0, 0), (0, 0), (0, over), (0, 0))) for x in (q_BHTh, k_BKTh, v_BKTv)
        )
        segments_BT = jnp.pad(segments_BT, ((0, 0), (0, over)))
    b = _block(T + over)
    sizes = library.BlockSizes(
        block_q=b, block_kv=b, block_q_dkv=b, block_kv_dkv=b, block_q_dq=b, block_kv_dq=b
    )

    def rows(q_BHTh, k_BKTh, v_BKTv, segments_BT):
        causal = library.CausalMask((T + over, T + over))
        kernel = library.make_splash_mha(
            library.MultiHeadMask([causal] * q_BHTh.shape[1]),
            block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret,
        )  # fmt: skip

        def row(q, k, v, segments):
            return kernel(q, k, v, library.SegmentIds(segments, segments))

        return jax.vmap(row)(q_BHTh, k_BKTh, v_BKTv, segments_BT)

    _check_cut(q_BHTh.shape[0], q_BHTh.shape[1], k_BKTh.shape[1])
    run = _per_device(rows, (HEADS, HEADS, HEADS, P(BATCH, None)), HEADS)
    return run(q_BHTh * scale, k_BKTh, v_BKTv, segments_BT)[:, :, :T]


def cudnn(
    q_BHTh: Array, k_BKTh: Array, v_BKTv: Array, mask_B1TT: Array, *, scale: float,
    implementation: str = "cudnn",
) -> Array:  # fmt: skip
    """NVIDIA: cuDNN's attention under a mask, [B, H, T, v]; differentiable in q, k and v.

    cuDNN takes the mask as a bias in the type of the queries, so B · T² numbers are held, but
    no score of any head. Every row of the mask must have a true entry. Its limits, which jax
    checks (jax/_src/cudnn/fused_attention_stablehlo.py, 0.10.2): bfloat16 or float16; widths
    that are multiples of 8, up to 128, from Hopper on up to 256; T even for the gradient.
    Values narrower than keys are padded here. `implementation` is `jax.nn`'s: "xla" computes
    the same, anywhere.

    cuDNN's call has a rule for partitioning of its own, but that one refuses layouts which
    differ between queries and keys, as the compiler may choose them: hence by device.
    """
    width = v_BKTv.shape[-1]
    v_BKTh = jnp.pad(v_BKTv, ((0, 0), (0, 0), (0, 0), (0, k_BKTh.shape[-1] - width)))

    def rows(q_BHTh, k_BKTh, v_BKTh, mask_B1TT):
        out_BTHh = jax.nn.dot_product_attention(
            *(x.swapaxes(1, 2) for x in (q_BHTh, k_BKTh, v_BKTh)),
            mask=mask_B1TT, scale=scale, implementation=implementation,
        )  # fmt: skip
        return out_BTHh.swapaxes(1, 2)

    _check_cut(q_BHTh.shape[0], q_BHTh.shape[1], k_BKTh.shape[1])
    mask = P(BATCH if mask_B1TT.shape[0] > 1 else None, None, None, None)
    run = _per_device(rows, (HEADS, HEADS, HEADS, mask), HEADS)
    return run(q_BHTh, k_BKTh, v_BKTh, mask_B1TT)[..., :width]


def pages_of(k_BKTh: Array, v_BKTh: Array, slots: int, *, page: int = PAGE) -> Array:
    """Pages [B · P, page, 2K, h] of a cache whose rows begin with these keys and values.

    Row b owns pages b · P … b · P + P - 1, P = ⌈slots / page⌉: its slot s is slot s % page of
    page b · P + s // page. Along 2K heads alternate, key 0, value 0, key 1, value 1, …: a cut
    into K or fewer pieces keeps a head's key with its value. Prompts begin at slot 0.
    """
    (B, K, T, h), per_row = k_BKTh.shape, -(-slots // page)
    if slots < T:
        raise ValueError(f"{T} tokens do not fit into {slots} slots; use slots={T} or more")

    def rows(k_BKTh, v_BKTh):
        B, K = k_BKTh.shape[:2]
        kv_BTKh2 = jnp.stack([k_BKTh, v_BKTh], axis=2).reshape(B, 2 * K, T, h).swapaxes(1, 2)
        kv = jnp.pad(kv_BTKh2, ((0, 0), (0, per_row * page - T), (0, 0), (0, 0)))
        return kv.reshape(B * per_row, page, 2 * K, h)

    _check_cut(B, K, K)
    return _per_device(rows, (HEADS, HEADS), PAGES)(k_BKTh, v_BKTh)


def write_page(pages: Array, k_BKh: Array, v_BKh: Array, slot_B: Array) -> Array:
    """Pages after one more token a row, written at the row's slot; nothing where it has none.

    In place where the caller's jit donates the pages or carries them through a loop. Slots
    of the row's number of slots and more are not written: so a finished row is left alone.
    """

    def rows(pages, k_BKh, v_BKh, slot_B):
        B, K, h = k_BKh.shape
        kv = jnp.stack([k_BKh, v_BKh], axis=2).reshape(B, 2 * K, h).astype(pages.dtype)
        cache = pages.reshape(B, -1, 2 * K, h)
        told = {"mode": "drop", "unique_indices": True, "indices_are_sorted": True}
        return cache.at[jnp.arange(B), slot_B].set(kv, **told).reshape(pages.shape)

    _check_cut(k_BKh.shape[0], k_BKh.shape[1], k_BKh.shape[1])
    token = P(BATCH, "tensor", None)
    run = _per_device(rows, (PAGES, token, token, P(BATCH)), PAGES)
    return run(pages, k_BKh, v_BKh, slot_B)


def ragged_decode(
    q_BHh: Array, pages: Array, length_B: Array, *, scale: float, kernel: Callable | None = None
) -> Array:
    """TPU: attention [B, H, h] of one query a row over the first `length_B` slots of its pages.

    `pages` are `pages_of`'s, the current token already written. Lengths are held within
    1 … slots: the kernel leaves an empty row's result as it finds it. `kernel` is a function
    of the form of `jax.experimental.pallas.ops.tpu.ragged_paged_attention`, the default.

    Raises ValueError where the mesh does not divide rows and heads, for widths that are not
    multiples of 128, and (the kernel's own) for numbers of kv heads a device it has no tiles
    for: 1, 2, 4, 8 and multiples of 8 it has.
    """
    if q_BHh.shape[-1] % LANES:
        raise ValueError(
            f"head width {q_BHh.shape[-1]} is not a multiple of {LANES}, as the kernel needs; "
            "use the plain path (decode_kernel says so)"
        )
    kernel = _ragged_kernel if kernel is None else kernel
    slots = pages.shape[0] // q_BHh.shape[0] * pages.shape[1]

    def rows(q_BHh, pages, length_B):
        # numpy: known when traced, which the module's reference implementation asks for.
        B = q_BHh.shape[0]
        page_indices = np.arange(pages.shape[0], dtype=np.int32).reshape(B, -1)
        first_query = np.arange(B + 1, dtype=np.int32)
        count = np.array([B], np.int32)
        return kernel(q_BHh, pages, length_B, page_indices, first_query, count, sm_scale=scale)

    _check_cut(q_BHh.shape[0], q_BHh.shape[1], pages.shape[2] // 2)
    query = P(BATCH, "tensor", None)
    run = _per_device(rows, (query, PAGES, P(BATCH)), query)
    return run(q_BHh, pages, jnp.clip(length_B, 1, slots).astype(jnp.int32))


def _ragged_kernel(q_BHh, pages, length_B, page_indices, first_query, count, *, sm_scale):
    """The kernel, with blocks for decoding.

    Left out, blocks come from a table by the kind of `jax.devices()[0]`, which is no TPU where
    one compiles ahead of time. The kernel multiplies all queries of a block with every row's
    keys and drops what is not the row's, so blocks of queries are small: 8 rows, one tile.
    It copies whole blocks of pages however short a row is: about 512 slots.
    """
    from jax.experimental.pallas.ops.tpu import ragged_paged_attention as library

    page, per_row = pages.shape[1], page_indices.shape[1]
    return library.ragged_paged_attention(
        q_BHh, pages, length_B, page_indices, first_query, count, sm_scale=sm_scale,
        num_kv_pages_per_block=min(per_row, max(1, 512 // page)),
        num_queries_per_block=min(8, q_BHh.shape[0]),
    )  # fmt: skip


def _check_cut(rows: int, heads: int, kv_heads: int) -> None:
    """Raises ValueError, with the mend, where the mesh that is set cannot cut these evenly."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return
    pieces, tensor = batch_axis_size(mesh), mesh.shape["tensor"]
    if rows % pieces:
        raise ValueError(
            f"{rows} rows are not divisible by the {pieces} pieces that the mesh cuts a batch "
            f"into; use {rows + -rows % pieces} rows"
        )
    if heads % tensor or kv_heads % tensor:
        raise ValueError(
            f"config.mesh.tensor={tensor} does not divide {heads} heads and {kv_heads} kv heads; "
            f"use tensor={np.gcd(tensor, np.gcd(heads, kv_heads))}, or the plain path"
        )


def _per_device(f: Callable, in_specs: tuple, out_specs: P) -> Callable:
    """f over each device's part of the mesh that is set; f itself without one."""
    if jax.sharding.get_abstract_mesh().empty:
        return f
    # Results of kernels say nothing of the axes that they vary over, so this is not checked.
    return jax.shard_map(f, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _block(T: int) -> int:
    """The largest of the kernel's block lengths that divides T, itself a multiple of 128."""
    return next(b for b in (512, 384, 256, 128) if T % b == 0)
