"""Kernels of platforms against the plain path: interpreted, by stand-ins, or compiled for TPUs."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.models import kernels
from r1jax.models.kernels import cudnn, pages_of, ragged_decode, splash, write_page
from r1jax.models.layers import attend

# Lengths of a row's segments; what is left of its T tokens is padding, wherever a 0 stands.
PACKINGS = {
    "one": (128, [[128]]),
    "several": (128, [[50, 1, 30, 47], [128], [3, 0, 90], [127, 0]]),
    "padding": (128, [[0], [1, 0], [0, 64, 0, 20, 0], [100, 28]]),
    "not_of_128": (72, [[40, 30, 0], [72]]),
}
SHAPES = {"equal": (2, 2, 8, 8), "grouped": (4, 2, 8, 8), "narrow_values": (4, 4, 24, 16)}


def segments_of(T, rows):
    """int32 [B, T]: 1, 2, …; each 0 takes an equal share of the row's padding."""
    out = np.zeros((len(rows), T), np.int32)
    for row, lengths in zip(out, rows, strict=True):
        gaps, at = T - sum(lengths), 0
        for n, length in enumerate(lengths, 1):
            row[at : at + length] = n
            at += length if length else gaps // lengths.count(0)
    return out


def mask_of(segments_BT):
    same = segments_BT[:, :, None] == segments_BT[:, None, :]
    return (same & np.tril(np.ones_like(same[0]))[None])[:, None]


def inputs(B, T, H, K, h, v, dtype=np.float32, seed=0):
    """q, k, v and a cotangent of the result."""
    rng = np.random.default_rng(seed)
    shapes = (B, H, T, h), (B, K, T, h), (B, K, T, v), (B, H, T, v)
    return [jnp.asarray(rng.standard_normal(s), dtype) for s in shapes]


def result_and_gradients(f, q, k, v, cotangent):
    """Named arrays, of one jitted program."""

    @jax.jit
    def run(q, k, v, cotangent):
        out, back = jax.vjp(f, q, k, v)
        return out, *back(cotangent)

    return dict(zip(("out", "dq", "dk", "dv"), run(q, k, v, cotangent), strict=True))


def plain(mask_B1TT, scale):
    return lambda q, k, v: attend(q, k.swapaxes(2, 3), v, mask_B1TT, scale)


def assert_same(ours, want, atol=2e-5):
    for name in want:
        a, b = (np.asarray(x[name], np.float32) for x in (ours, want))
        np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=name)


def splashed(segments_BT, scale):
    return lambda q, k, v: splash(q, k, v, segments_BT, scale=scale, interpret=True)


@pytest.mark.parametrize(
    ("packing", "shape"),
    [
        ("one", "equal"),
        ("several", "grouped"),
        ("padding", "narrow_values"),
        ("not_of_128", "grouped"),
    ],
)
def test_splash_is_the_plain_path(packing, shape):
    T, rows = PACKINGS[packing]
    segments = segments_of(T, rows)
    x = inputs(len(rows), T, *SHAPES[shape])
    want = result_and_gradients(plain(mask_of(segments), 0.3), *x)
    # Padding too: its tokens see one another in both.
    assert_same(result_and_gradients(splashed(segments, 0.3), *x), want)


def test_splash_of_several_blocks(monkeypatch):
    monkeypatch.setattr(kernels, "_block", lambda T: 128)  # T = 256: one of four is left out
    segments = segments_of(256, [[100, 0, 60, 56]])
    x = inputs(1, 256, *SHAPES["grouped"])
    want = result_and_gradients(plain(mask_of(segments), 0.3), *x)
    assert_same(result_and_gradients(splashed(segments, 0.3), *x), want)


def test_splash_in_16_bits():
    """Results are below 4, where neighbours in bfloat16 are 2^-6 apart."""
    segments = segments_of(*PACKINGS["several"])
    q, k, v, _ = inputs(4, 128, *SHAPES["grouped"], dtype=jnp.bfloat16)
    out = jax.jit(splashed(segments, 0.3))(q, k, v)
    assert out.dtype == jnp.bfloat16
    want = plain(mask_of(segments), 0.3)(*(x.astype(jnp.float32) for x in (q, k, v)))
    np.testing.assert_allclose(np.asarray(out, np.float32), want, rtol=0, atol=2**-5)


@pytest.mark.parametrize("mesh", ["mesh1", "mesh8"])
def test_splash_on_a_mesh(mesh, request):
    segments = segments_of(*PACKINGS["several"])
    x = inputs(4, 128, *SHAPES["grouped"])
    want = result_and_gradients(plain(mask_of(segments), 0.3), *x)
    with jax.set_mesh(request.getfixturevalue(mesh)):
        assert_same(result_and_gradients(splashed(segments, 0.3), *x), want)


def test_lengths_of_blocks():
    assert [kernels._block(T) for T in (128, 256, 384, 640, 768, 4096)] == [
        128, 256, 384, 128, 384, 512,
    ]  # fmt: skip


@pytest.mark.parametrize("mesh", [None, "mesh8"])
@pytest.mark.parametrize("rows", [1, 4])
def test_call_of_cudnn_is_the_plain_path(mesh, rows, request):
    """By jax's own XLA implementation of the same call; `rows` of masks, 1 for all."""
    mask = mask_of(segments_of(*PACKINGS["several"])[:rows])
    x = inputs(4, 128, *SHAPES["narrow_values" if mesh is None else "grouped"])
    want = result_and_gradients(plain(mask, 0.3), *x)

    def ours(q, k, v):
        return cudnn(q, k, v, mask, scale=0.3, implementation="xla")

    with jax.set_mesh(request.getfixturevalue(mesh)) if mesh else contextlib.nullcontext():
        assert_same(result_and_gradients(ours, *x), want)


def test_cudnn_is_called_on_each_device(mesh8, monkeypatch):
    """Lowered for CUDA without one: forward and backward calls, of a device's rows and heads."""
    library = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    if not hasattr(library, "check_cudnn_version"):
        pytest.skip("jax asks for cuDNN's version in another way")
    monkeypatch.setattr(library, "check_cudnn_version", lambda: 91000)
    q, k, v, cotangent = inputs(8, 64, 12, 2, 128, 128, jnp.bfloat16)
    mask = mask_of(segments_of(64, [[40, 24]] * 8))

    @jax.jit
    def run(q, k, v, cotangent):
        out, back = jax.vjp(lambda *x: cudnn(*x, mask, scale=0.1), q, k, v)
        return out, back(cotangent)

    with jax.set_mesh(mesh8):
        text = run.trace(q, k, v, cotangent).lower(lowering_platforms=("cuda",)).as_text()
    forward, backward = (line for line in text.splitlines() if "__cudnn$fmha" in line)
    assert "ScaleBiasSoftmax(" in forward and "ScaleBiasSoftmaxBackward(" in backward
    # 8 rows over 4 pieces, 12 heads and 2 kv heads over 2: [B, T, heads, h].
    for line in forward, backward:
        assert "(tensor<2x64x6x128xbf16>, tensor<2x64x1x128xbf16>" in line


def paged(q_BHh, pages, length_B, page_indices, first_query, count, *, sm_scale):
    """The kernel's definition for one query a row, as one may trace it."""
    del first_query, count
    kv = pages[page_indices]
    kv = kv.reshape(len(page_indices), -1, *kv.shape[3:])  # [B, s, 2K, h]
    seen = jnp.arange(kv.shape[1])[None, :] < length_B[:, None]
    k, v = kv[:, :, 0::2], kv[:, :, 1::2]
    out = attend(
        q_BHh[:, :, None], k.transpose(0, 2, 3, 1), v.swapaxes(1, 2), seen[:, None, None], sm_scale
    )
    return out[:, :, 0]


LENGTHS = np.array([1, 16, 17, 40, 33, 8, 31, 32])


def decoding(H=4, K=2, T=40, h=128):
    """q of the tokens that follow LENGTHS, and keys and values of all tokens."""
    rng = np.random.default_rng(1)
    shapes = (8, H, h), (8, K, T + 1, h), (8, K, T + 1, h)
    return [jnp.asarray(rng.standard_normal(s), jnp.float32) for s in shapes]


def decode(q_BHh, k_BKsh, v_BKsh, kernel):
    """Pages of 16 after prompts of LENGTHS and one more token each, and attention over them."""
    slot = jnp.asarray(LENGTHS)
    inside = np.arange(40)[None, None, :, None] < LENGTHS[:, None, None, None]
    k, v = (jnp.where(inside, x[:, :, :40], 1e3) for x in (k_BKsh, v_BKsh))  # right padding
    pages = pages_of(k, v, 60, page=16)
    token = (x[np.arange(8), :, LENGTHS] for x in (k_BKsh, v_BKsh))
    pages = jax.jit(write_page, donate_argnums=0)(pages, *token, slot)
    return pages, ragged_decode(q_BHh, pages, slot + 1, scale=0.1, kernel=kernel)


def test_pages_are_what_the_kernel_reads():
    from jax.experimental.pallas.ops.tpu import ragged_paged_attention as library

    q, k, v = decoding()
    seen = np.arange(41)[None, :] <= LENGTHS[:, None]
    want = attend(q[:, :, None], k.swapaxes(2, 3), v, seen[:, None, None], 0.1)[:, :, 0]
    for kernel in (library.ref_ragged_paged_attention, paged):
        pages, out = decode(q, k, v, kernel)
        np.testing.assert_allclose(out, want, rtol=0, atol=2e-6)
    assert pages.shape == (8 * 4, 16, 4, 128)  # 60 slots are 4 pages
    # Row 3, slot 40: its third page, slot 8. Key and value of kv head 1.
    np.testing.assert_array_equal(pages[3 * 4 + 2, 8, 2:], jnp.stack([k[3, 1, 40], v[3, 1, 40]]))


@pytest.mark.parametrize("mesh", ["mesh1", "mesh8"])
def test_pages_on_a_mesh(mesh, request):
    x = decoding()
    pages, out = decode(*x, paged)
    with jax.set_mesh(request.getfixturevalue(mesh)):
        on_mesh, out_on_mesh = decode(*x, paged)
    np.testing.assert_array_equal(on_mesh, pages)
    np.testing.assert_allclose(out_on_mesh, out, rtol=0, atol=2e-6)


def test_rows_without_a_slot_are_left_alone():
    pages = pages_of(*decoding()[1:], 48, page=16)
    token = jnp.full((8, 2, 128), 7.0)
    slots = jnp.where(jnp.arange(8) == 5, 47, 48)
    after = np.asarray(jax.jit(write_page)(pages, token, token, slots))
    want = np.array(pages)
    want[5 * 3 + 2, 15] = 7
    np.testing.assert_array_equal(after, want)


def test_lengths_are_held_within_the_slots():
    given = []

    def kernel(q_BHh, pages, length_B, *rest, sm_scale):
        given.append(length_B)
        return q_BHh

    pages = jnp.zeros((8 * 3, 16, 4, 128))
    lengths = jnp.array([0, 1, 47, 48, 49, 1000, 5, 6])
    ragged_decode(jnp.zeros((8, 4, 128)), pages, lengths, scale=1.0, kernel=kernel)
    assert given[0].tolist() == [1, 1, 47, 48, 48, 48, 5, 6] and given[0].dtype == jnp.int32


@pytest.mark.parametrize(
    ("platform", "dtype", "width", "training", "decoding"),
    [
        ("tpu", "bfloat16", 128, "splash", "ragged"),
        ("tpu", "float32", 256, "splash", "ragged"),
        ("tpu", jnp.bfloat16, 64, "splash", "plain"),
        ("tpu", "float16", 128, "plain", "plain"),
        ("gpu", "bfloat16", 128, "cudnn", "plain"),
        ("cuda", jnp.float16, 64, "cudnn", "plain"),
        ("gpu", "float32", 128, "plain", "plain"),
        ("gpu", "bfloat16", 192, "plain", "plain"),
        ("gpu", "bfloat16", 100, "plain", "plain"),
        ("cpu", "bfloat16", 128, "plain", "plain"),
    ],
)
def test_what_a_platform_uses(platform, dtype, width, training, decoding):
    assert kernels.training_kernel(platform, dtype, width) == training
    assert kernels.decode_kernel(platform, dtype, width) == decoding


def test_what_cannot_be_cut(mesh8):
    """mesh8 cuts rows in 4 and heads in 2."""
    q, k, v, _ = inputs(6, 8, 4, 2, 8, 8)
    segments = jnp.ones((6, 8), jnp.int32)
    with jax.set_mesh(mesh8):
        with pytest.raises(ValueError, match="6 rows .* 4 pieces .* use 8 rows"):
            splash(q, k, v, segments, scale=1.0)
        with pytest.raises(ValueError, match="tensor=2 does not divide 4 heads and 1 kv heads"):
            splash(q[:4], k[:4, :1], v[:4, :1], segments[:4], scale=1.0)
        with pytest.raises(ValueError, match="use tensor=1"):
            cudnn(q[:4, :3], k[:4, :1], v[:4, :1], jnp.ones((4, 1, 8, 8), bool), scale=1.0)
        with pytest.raises(ValueError, match="1 kv heads"):
            pages_of(k[:4, :1], v[:4, :1], 16)


def test_what_pages_refuse():
    with pytest.raises(ValueError, match="41 tokens do not fit into 40 slots; use slots=41"):
        pages_of(*decoding()[1:], 40)
    with pytest.raises(ValueError, match="head width 64 is not a multiple of 128"):
        ragged_decode(jnp.zeros((1, 2, 64)), jnp.zeros((1, 16, 4, 64)), jnp.ones(1), scale=1.0)


# Run by itself: libtpu wants a process without fake devices.
COMPILE = """
import json, sys
import jax, jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec as P
from r1jax.models import kernels
from r1jax.sharding import BATCH, make_mesh

topology = topologies.get_topology_desc(platform="tpu", topology_name=sys.argv[1])
mesh = make_mesh(data=1, fsdp=2, tensor=2, devices=topology.devices)

def array(shape, spec, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

def compiled(f, *x, donate=()):
    with jax.set_mesh(mesh):
        program = jax.jit(f, donate_argnums=donate).lower(*x).compile()
    memory, text = program.memory_analysis(), program.as_text()
    sent = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
    return dict(
        kernels=text.count('custom_call_target="tpu_custom_call"'),
        sent=[name for name in sent if name in text],
        arguments=memory.argument_size_in_bytes, results=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes, temporary=memory.temp_size_in_bytes,
    )

def training(q, k, v, segments, cotangent):
    f = lambda q, k, v: kernels.splash(q, k, v, segments, scale=128**-0.5)
    return jax.vjp(f, q, k, v)[1](cotangent)

def decoding(pages, q, k, v, length):
    pages = kernels.write_page(pages, k, v, length - 1)
    return kernels.ragged_decode(q, pages, length, scale=128**-0.5), pages

q, k = (array((2, heads, 4096, 128), kernels.HEADS) for heads in (12, 2))
segments = array((2, 4096), P(BATCH), jnp.int32)
pages = array((256 * 32, 128, 2 * 2, 128), kernels.PAGES)
token = [array((256, heads, 128), P(BATCH, "tensor")) for heads in (12, 2, 2)]
length = array((256,), P(BATCH), jnp.int32)
print(json.dumps(dict(
    training=compiled(training, q, k, k, segments, q),
    decoding=compiled(decoding, pages, *token, length, donate=0),
)))
"""


@pytest.fixture(scope="module", params=["v5e:2x2", "v5p:2x2x1"])
def on_tpu(request, compile_for_tpu):
    """What Qwen2.5-1.5B's attention compiles to on four chips: rows in 2, heads in 2."""
    return compile_for_tpu(COMPILE, request.param)


@pytest.mark.slow
def test_splash_compiles_for_tpus(on_tpu):
    q, kv, segments = 6 * 4096 * 128 * 2, 4096 * 128 * 2, 4096 * 4  # bytes a device, one row
    got = on_tpu["training"]
    assert got["kernels"] == 3 and not got["sent"]  # forward; of keys and values; of queries
    assert got["arguments"] == 2 * q + 2 * kv + segments
    assert 0 <= got["results"] - (q + 2 * kv) < 1024  # the tuple's own
    # Scaled queries, the result, and the sum of its exponentials in 128 lanes (a v5e keeps
    # most in fast memory). The scores, 4 H T² bytes, would be 384 MiB.
    assert got["temporary"] <= 2 * q + 6 * 4096 * 128 * 4


@pytest.mark.slow
def test_ragged_decode_compiles_for_tpus(on_tpu):
    pages = 128 * 4096 * 2 * 128 * 2  # rows, slots, one key and one value, width, bytes
    q, kv, length = 128 * 6 * 128 * 2, 128 * 128 * 2, 128 * 4
    got = on_tpu["decoding"]
    assert got["kernels"] == 1 and not got["sent"]
    assert got["arguments"] == pages + q + 2 * kv + length
    assert got["aliased"] == pages  # written in place
    assert 0 <= got["results"] - (pages + q) < 1024
    assert got["temporary"] < pages / 100  # nothing of them is copied
