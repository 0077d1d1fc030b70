"""Slots and pages against numpy, and whole models that decode from them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.models import kernels
from r1jax.models.cache import Pages, Slots, empty
from r1jax.models.decoder import Decoder
from r1jax.models.layers import attend
from r1jax.models.transformer import Transformer, TransformerConfig

B, K, H, WIDTH = 5, 2, 4, 128  # the kernel has no heads of another width
LENGTH = np.array([0, 3, 127, 128, 255])  # of 256 slots: a page's first and last ones too


def some(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def slots(rows=B, window=256, h=WIDTH, v=WIDTH, seed=0):
    return Slots(
        jnp.asarray(some(rows, K, h, window, seed=seed)),
        jnp.asarray(some(rows, K, window, v, seed=seed + 1)),
    )


def pages(of: Slots) -> Pages:
    """The same keys and values: key 0, value 0, key 1, value 1 of every slot."""
    rows, heads, window, h = of.v.shape
    both = np.stack([np.asarray(of.k).swapaxes(2, 3), of.v], axis=2).reshape(rows, 2 * heads, -1, h)
    over = -window % kernels.PAGE
    both = np.pad(both, ((0, 0), (0, 0), (0, over), (0, 0))).swapaxes(1, 2)
    return Pages(jnp.asarray(both.reshape(rows, -1, kernels.PAGE, 2 * heads, h)))


def of_pages(entry: Pages) -> Slots:
    rows, _, _, heads, h = entry.pages.shape
    both = np.asarray(entry.pages).reshape(rows, -1, heads, h)
    return Slots(both[:, :, 0::2].transpose(0, 2, 3, 1), both[:, :, 1::2].swapaxes(1, 2))


def equal(a, b):
    assert type(a) is type(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@functools.cache
def jitted(name, **static):
    return jax.jit(lambda entry, *given: getattr(entry, name)(*given), **static)


# Slots.


@pytest.mark.parametrize("T", [1, 3])
def test_tokens_are_written_behind_those_of_their_row(T):
    # Keys and values of unlike width, as latent attention's.
    before, length = slots(window=9, h=4, v=6), np.array([0, 2, 5, 6, 1])
    k, v = some(B, K, 4, T, seed=7), some(B, K, T, 6, seed=8)
    want = jax.tree.map(np.array, before)
    for b in range(B):
        for t in range(T):
            want.k[b, :, :, length[b] + t] = k[b, :, :, t]
            want.v[b, :, length[b] + t] = v[b, :, t]
    equal(jitted("write")(before, k, v, length), Slots(*map(jnp.asarray, want)))


def test_what_is_written_takes_the_type_of_the_cache():
    cache = empty(1, B, 8, (K, 4, 6), jnp.bfloat16).layers[0]
    after = cache.write(some(B, K, 4, 1), some(B, K, 1, 6), jnp.zeros(B, jnp.int32))
    assert after.k.dtype == after.v.dtype == jnp.bfloat16
    np.testing.assert_array_equal(after.k[..., 0], some(B, K, 4, 1)[..., 0].astype(jnp.bfloat16))


@pytest.mark.parametrize("window", [5, 9, 12])
@pytest.mark.parametrize("kept", [[3, 0], [0, 1, 2, 3, 4], [4, 4, 1, 0, 0, 2, 3]], ids=str)
def test_rows_and_slots_that_are_kept(kept, window):
    before = slots(window=9, h=4, v=6)
    after = jitted("fit", static_argnums=2)(before, np.array(kept), window)
    assert after.window == window
    n = min(9, window)
    for row, source in enumerate(kept):
        np.testing.assert_array_equal(after.k[row, :, :, :n], before.k[source, :, :, :n])
        np.testing.assert_array_equal(after.v[row, :, :n], before.v[source, :, :n])
    # What is new is empty.
    assert after.k.shape == (len(kept), K, 4, window) and not after.k[..., n:].any()
    assert after.v.shape == (len(kept), K, window, 6) and not after.v[:, :, n:].any()


@pytest.mark.parametrize("T", [3, 9, 12])  # shorter than the window, as long, and padded beyond
def test_prompts_are_copied_to_their_rows(T):
    before, prompts = slots(window=9, h=4, v=6), slots(3, T, 4, 6, seed=5)
    rows, sources = np.array([4, -1, 0, 2, -1]), np.array([2, 1, 2, 0, 0])
    want, n = jax.tree.map(np.array, before), min(T, 9)
    for row, source in zip(rows, sources, strict=True):
        if row >= 0:
            want.k[row, :, :, :n] = prompts.k[source, :, :, :n]
            want.v[row, :, :n] = prompts.v[source, :, :n]
    equal(jitted("insert")(before, prompts, rows, sources), Slots(*map(jnp.asarray, want)))


# Pages are slots in another layout.


def test_a_window_of_pages_is_a_number_of_pages():
    assert slots(window=9).window == 9
    for wanted, held in ((1, 128), (128, 128), (129, 256)):
        cache = empty(2, 3, wanted, (K, WIDTH, WIDTH), jnp.bfloat16, paged=True)
        assert [layer.window for layer in cache.layers] == [held] * 2
        assert cache.layers[0].pages.dtype == jnp.bfloat16
        assert cache.length_B.tolist() == [0, 0, 0]
    equal(of_pages(pages(slots())), jax.tree.map(np.asarray, slots()))


def test_a_token_in_pages():
    k, v = some(B, K, WIDTH, 1, seed=7), some(B, K, 1, WIDTH, seed=8)
    want = jitted("write")(slots(), k, v, LENGTH)
    equal(jitted("write")(pages(slots()), k, v, LENGTH), pages(want))


def test_rows_that_are_full_are_not_written():
    k, v = some(B, K, WIDTH, 1, seed=7), some(B, K, 1, WIDTH, seed=8)
    full = np.where(np.arange(B) == 2, 256, LENGTH)
    got = of_pages(jitted("write")(pages(slots()), k, v, full))
    want = jitted("write")(slots(), k, v, LENGTH)
    for b in range(B):
        other = slots() if b == 2 else want
        np.testing.assert_array_equal(got.k[b], other.k[b])


def test_pages_take_one_token_at_a_time():
    with pytest.raises(ValueError, match="2 tokens at a time: pages take one, Slots more"):
        pages(slots()).write(some(B, K, WIDTH, 2), some(B, K, 2, WIDTH), jnp.asarray(LENGTH))


@pytest.mark.parametrize("window", [100, 128, 200, 256, 300])
def test_pages_that_are_kept(window):
    kept = np.array([3, 0, 0, 4])
    got = jitted("fit", static_argnums=2)(pages(slots()), kept, window)
    whole = -(-window // 128) * 128
    equal(got, pages(jitted("fit", static_argnums=2)(slots(), kept, whole)))


@pytest.mark.parametrize("T", [3, 130, 300])
def test_prompts_are_copied_to_pages(T):
    prompts = slots(3, T, seed=5)
    given = prompts, np.array([4, -1, 0, 2, -1]), np.array([2, 1, 2, 0, 0])
    want = jitted("insert")(slots(), *given)
    got = of_pages(jitted("insert")(pages(slots()), *given))
    # A prompt's last page is copied whole: behind its end stands nothing.
    n = min(T, 256)
    np.testing.assert_array_equal(got.k[..., :n], want.k[..., :n])
    np.testing.assert_array_equal(got.v[:, :, :n], want.v[:, :, :n])
    for row in (1, 3):
        np.testing.assert_array_equal(got.k[row], slots().k[row])


def reference_kernel(*given, **settings):
    """The library's own definition of what its kernel computes."""
    from jax.experimental.pallas.ops.tpu import ragged_paged_attention as library

    return library.ref_ragged_paged_attention(*given, **settings)


def test_a_query_sees_its_rows_tokens_in_either_layout(monkeypatch):
    monkeypatch.setattr(kernels, "_ragged_kernel", reference_kernel)
    q = jnp.asarray(some(B, H, 1, WIDTH, seed=3))
    written = slots()
    # Of length + 1 tokens, the last just written. What follows must not matter.
    behind = np.arange(256)[None, :] > LENGTH[:, None]
    written = Slots(
        jnp.where(behind[:, None, None], 1e3, written.k),
        jnp.where(behind[:, None, :, None], 1e3, written.v),
    )
    see = jnp.asarray(~behind[:, None, None])
    scale = WIDTH**-0.5
    want = np.zeros((B, H, 1, WIDTH))
    for b in range(B):
        for head in range(H):
            n, kv = LENGTH[b] + 1, head // (H // K)
            odds = np.exp(np.float64(q[b, head, 0]) @ written.k[b, kv, :, :n] * scale)
            want[b, head, 0] = odds @ np.float64(written.v[b, kv, :n]) / odds.sum()
    length = jnp.asarray(LENGTH)
    for entry, mask in ((written, see), (pages(written), None)):
        got = entry.attend(q, mask, length, scale)
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=0, atol=5e-6)


# Decoding.


def traceable_kernel(q_BHh, pages, length_B, page_indices, *rest, sm_scale):
    """The kernel's definition for one query a row, as one may trace it."""
    kv_BsNh = pages[page_indices].reshape(len(q_BHh), -1, *pages.shape[2:])
    k, v = kv_BsNh[:, :, 0::2], kv_BsNh[:, :, 1::2]
    see = jnp.arange(kv_BsNh.shape[1])[None, :] < length_B[:, None]
    keys = k.transpose(0, 2, 3, 1), v.swapaxes(1, 2)
    return attend(q_BHh[:, :, None], *keys, see[:, None, None], sm_scale)[:, :, 0]


def test_greedy_decoding_from_pages_is_that_from_slots(random_params, monkeypatch):
    """Prompts of 1, 60 and 125 tokens, and 8 more: over the end of a page."""
    monkeypatch.setattr(kernels, "_ragged_kernel", traceable_kernel)
    model = Transformer(
        TransformerConfig(
            vocabulary=32, width=16, layers=2, heads=2, kv_heads=1, head_dim=128, mlp=8, context=160
        )
    )
    params = random_params(model)
    rows = np.random.default_rng(0).integers(0, 32, (3, 133)).astype(np.int32)
    length = np.array([1, 60, 125])
    # All but the last token is prefilled, the last is the first that is fed.
    prompts = jax.jit(model.prefill)(params, rows[:, :128], length - 1)
    step = jax.jit(lambda params, tokens, cache: model.apply(params, tokens, cache=cache))
    decoding = jax.jit(model.unstacked)(params)
    results = {}
    for paged in (False, True):
        cache = model.empty_cache(3, 256, paged=paged)
        assert {type(layer) for layer in cache.layers} == {Pages if paged else Slots}
        everyone = jnp.arange(3), jnp.arange(3)
        cache = cache._replace(
            layers=tuple(
                jitted("insert")(jax.tree.map(lambda x: x + 1e3, layer), prompt, *everyone)
                for layer, prompt in zip(cache.layers, prompts.layers, strict=True)
            ),
            length_B=jnp.asarray(length - 1),
        )
        token, out = rows[np.arange(3), length - 1], []
        for _ in range(8):
            logits, cache = step(decoding, token[:, None], cache)
            out.append(np.asarray(logits[:, 0]))
            token = out[-1].argmax(axis=-1).astype(np.int32)
        assert cache.length_B.tolist() == (length + 7).tolist()
        results[paged] = np.stack(out)
    np.testing.assert_array_equal(results[True].argmax(-1), results[False].argmax(-1))
    np.testing.assert_allclose(results[True], results[False], rtol=0, atol=2e-5)
    # And that of the whole sequences without a cache.
    whole = np.array(rows)
    for b, n in enumerate(length):
        whole[b, n : n + 8] = results[False][:, b].argmax(-1)
    logits = np.asarray(jax.jit(model.apply)(params, whole))
    want = np.stack([logits[b, n - 1 : n + 7] for b, n in enumerate(length)], axis=1)
    np.testing.assert_allclose(results[False], want, rtol=0, atol=5e-5)


@pytest.mark.parametrize(
    ("platform", "head_dim", "paged"),
    [("tpu", 128, True), ("tpu", 64, False), ("cpu", 128, False), ("gpu", 128, False)],
)
def test_which_platforms_decode_from_pages(platform, head_dim, paged):
    model = Transformer(TransformerConfig(vocabulary=8, head_dim=head_dim), platform=platform)
    assert model.paged is paged


def test_values_of_another_width_are_not_for_pages(monkeypatch):
    monkeypatch.setattr(Decoder, "cache_widths", lambda self: (1, 128, 256))
    assert not Decoder.paged.fget(_OnTpu())


class _OnTpu(Decoder):
    config, platform, head_width = TransformerConfig(vocabulary=8), "tpu", 128
