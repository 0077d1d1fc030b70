"""Attention by blocks against attention under the whole mask, values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.models.blocks import BLOCK, Blocks, causal, filled, pairs
from r1jax.models.layers import attend
from r1jax.sharding import rows

T, SCALE = 8 * BLOCK, 0.3
# Packed rows as (segment, prefix, tokens), in order; what is left of a row is padding.
ROWS = {
    "one segment in all blocks": [(1, 1, T)],
    "responses to one prompt": [(1, 1, 40), (2, 1, 30), (3, 1, 70), (4, 1, 5), (5, 1, 50)],
    "many in a block": [
        (1, 1, 3), (2, 1, 4), (3, 1, 1), (4, 4, 2), (5, 4, 9), (6, 6, 1), (7, 6, 1), (8, 6, 40)
    ],
    # Blocks 2 to 4 hold nothing that the last response sees.
    "a prompt far before": [(1, 1, 45), (2, 2, 50), (3, 2, 75), (4, 1, 60)],
    "prompts by turns": [(1, 1, 33), (2, 2, 31), (3, 1, 20), (4, 2, 40), (5, 1, 64), (6, 2, 10)],
    "segments of their own": [(1, 1, 64), (2, 2, 1), (3, 3, 95), (4, 4, 96)],
    "padding": [],
    # Segment 2 is a response of no tokens; the last one ends with the row.
    "tokens alone, and full": [(1, 1, 1), (3, 1, 1), (4, 4, 30), (5, 4, 222), (6, 1, 2)],
}  # fmt: skip
SHAPES = {  # H, K, width of keys, of values
    "equal": (2, 2, 8, 8),
    "grouped": (4, 2, 8, 8),
    "narrow_values": (2, 2, 12, 8),
}


def laid_out(parts):
    """(segments, prefix) of a row."""
    whole = [*parts, (0, 0, T - sum(n for *_, n in parts))]
    return tuple(np.repeat([p[i] for p in whole], [p[2] for p in whole]) for i in (0, 1))


SEGMENTS, PREFIX = (np.stack(x) for x in zip(*map(laid_out, ROWS.values()), strict=True))
REAL = SEGMENTS > 0


def seen(segment_T, prefix_T):
    """Bool [T, T], by the definition: who is seen earlier, in one's own segment or its prefix."""
    own = segment_T[:, None] == segment_T[None, :]
    return (own | (prefix_T[:, None] == segment_T[None, :])) & np.tri(len(segment_T), dtype=bool)


def listed(segments_BT=SEGMENTS, prefix_BT=PREFIX):
    """The rows' pairs, [B, n, 2]: as many for each as the longest list, and three more."""
    each = [pairs(*row) for row in zip(segments_BT, prefix_BT, strict=True)]
    most = max(map(len, each)) + 3
    return np.stack([filled(row, most, segments_BT.shape[1] // BLOCK) for row in each])


def inputs(shape, dtype=jnp.float32):
    """q, k, v of the rows and a cotangent of the result, which is 0 on padding."""
    (H, K, h, v), B = shape, len(ROWS)
    rng = np.random.default_rng(0)
    sizes = (B, H, T, h), (B, K, h, T), (B, K, T, v), (B, H, T, v)
    *x, cotangent = (rng.standard_normal(s) for s in sizes)
    cotangent *= REAL[:, None, :, None]
    return [jnp.asarray(a, dtype) for a in (*x, cotangent)]


@functools.cache
def program(by_blocks):
    """Jitted (q, k, v, cotangent, *who sees whom) -> the result and three gradients."""

    @jax.jit
    def run(q, k, v, cotangent, *who):
        see = Blocks(*who) if by_blocks else who[0]
        out, back = jax.vjp(lambda q, k, v: attend(q, k, v, see, SCALE), q, k, v)
        return out, *back(cotangent)

    return run


def by_mask(x):
    mask = np.stack([seen(*row) for row in zip(SEGMENTS, PREFIX, strict=True)])[:, None]
    return program(False)(*x, mask)


def by_blocks(x):
    return program(True)(*x, SEGMENTS, PREFIX, listed())


NAMES = ("out", "dq", "dk", "dv")


def real(name, *arrays):
    """Results with 0 for padding."""
    where = REAL[:, None, None, :] if name == "dk" else REAL[:, None, :, None]
    return [np.where(where, np.float32(a), 0) for a in arrays]


def assert_same(ours, want, atol=1e-5):
    """Equal where there are tokens; finite everywhere, and gradients of padding exactly 0."""
    for name, a, b in zip(NAMES, ours, want, strict=True):
        assert np.isfinite(a).all(), name
        np.testing.assert_allclose(*real(name, a, b), rtol=0, atol=atol, err_msg=name)
        if name != "out":
            np.testing.assert_array_equal(*real(name, a), a)


@pytest.mark.parametrize("shape", SHAPES)
def test_attention_by_blocks_is_attention_under_the_mask(shape):
    x = inputs(SHAPES[shape])
    want = by_mask(x)
    assert all(np.std(y) > 0.1 for y in want)  # nothing that zeros would agree with
    assert_same(by_blocks(x), want)


def test_of_one_row(mesh1):
    # What a device computes at a time, in the usual case.
    x = inputs(SHAPES["grouped"])
    see = SEGMENTS, PREFIX, listed()
    with jax.set_mesh(mesh1):
        got = [program(True)(*(a[i : i + 1] for a in (*x, *see))) for i in range(len(ROWS))]
    assert_same([np.concatenate(y) for y in zip(*got, strict=True)], by_mask(x))


def test_without_jit():
    # The first two blocks of a row, of one head, against the definition in numpy.
    t = 2 * BLOCK
    q, k, v, _ = (np.asarray(a[3:4, :1], np.float64) for a in inputs(SHAPES["narrow_values"]))
    q, k, v = q[:, :, :t], k[..., :t], v[:, :, :t]
    segments, prefix = SEGMENTS[3:4, :t], PREFIX[3:4, :t]
    weights = np.exp(np.where(seen(segments[0], prefix[0]), SCALE * (q @ k), -np.inf))
    want = weights / weights.sum(axis=-1, keepdims=True) @ v
    see = Blocks(segments, prefix, listed(segments, prefix))
    got = see.attend(*(jnp.float32(a) for a in (q, k, v)), SCALE)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_scores_far_apart():
    # Of scores in the hundreds only the largest of all blocks counts: exp of the others, by
    # the largest of their own block, would be infinite or counted in full.
    q, k, v, cotangent = inputs(SHAPES["grouped"])
    x = 100 * q, k, v, cotangent
    # dk is a sum of up to 256 products of the hundredfold q.
    for name, a, b in zip(NAMES, by_blocks(x), by_mask(x), strict=True):
        size = max(1.0, float(np.abs(b).max()))
        np.testing.assert_allclose(*real(name, a / size, b / size), atol=1e-4, err_msg=name)


def test_padding_of_a_row_is_seen_by_nobody():
    x = inputs(SHAPES["grouped"])
    at_k, at_v = (
        np.where(REAL[:, None, None, :], 0, 1e3),
        np.where(REAL, 0, 1e3)[:, None, :, None],
    )
    poisoned = x[0] + jnp.float32(at_v), x[1] + jnp.float32(at_k), x[2] + jnp.float32(at_v), x[3]
    for name, a, b in zip(NAMES, by_blocks(poisoned), by_blocks(x), strict=True):
        np.testing.assert_array_equal(*real(name, a, b), err_msg=name)


def test_more_padding_of_the_list_changes_nothing():
    x = inputs(SHAPES["grouped"])
    few = listed()
    N = T // BLOCK
    more = np.concatenate([few, np.tile([[[N, 0]]], (len(ROWS), 5, 1))], axis=1)
    for a, b in zip(by_blocks(x), program(True)(*x, SEGMENTS, PREFIX, more), strict=True):
        np.testing.assert_array_equal(a, b)


def test_all_pairs_are_as_good_as_the_fewest():
    # For rows that nobody has looked into: pairs in which no token sees another add nothing.
    x = inputs(SHAPES["grouped"])
    every = causal(len(ROWS), T)
    assert every.shape == (len(ROWS), 8 * 9 // 2, 2) and every.dtype == np.int32
    for row in every:
        assert row.tolist() == brute_force(*laid_out(ROWS["one segment in all blocks"]))
    assert_same(program(True)(*x, SEGMENTS, PREFIX, every), by_mask(x))


def test_in_bfloat16_the_error_is_that_of_the_plain_path():
    x = inputs(SHAPES["grouped"], jnp.bfloat16)
    exact = by_mask([a.astype(jnp.float32) for a in x])
    for name, a, b, want in zip(NAMES, by_blocks(x), by_mask(x), exact, strict=True):
        assert a.dtype == b.dtype == jnp.bfloat16
        errors = real(name, *(np.float32(y) - np.float32(want) for y in (a, b)))
        ours, plain = (np.sqrt(np.mean(e**2)) for e in errors)
        assert 0 < ours < 1.25 * plain, name


def test_scores_of_bfloat16_keep_float32():
    # Scores 256.5 and 256: bfloat16 would round both to 256, and weigh both tokens alike.
    # The value is 1 at the first and 0 at the second: the output is the first one's weight.
    half = functools.partial(jnp.asarray, dtype=jnp.bfloat16)
    k, v = np.zeros((1, 1, 2, BLOCK)), np.zeros((1, 1, BLOCK, 1))
    k[..., :2], v[0, 0, 0] = [[256, 256], [0.5, 0]], 1
    segments = np.where(np.arange(BLOCK) < 2, 1, 0)[None]
    see = Blocks(segments, segments, listed(segments, segments))
    out = see.attend(half(np.ones((1, 1, BLOCK, 2))), half(k), half(v), 1.0)
    assert float(out[0, 0, 1, 0]) == pytest.approx(1 / (1 + np.exp(-0.5)), rel=2**-8)


def test_on_eight_devices(mesh8):
    x = inputs(SHAPES["grouped"])
    want = by_mask(x)
    with jax.set_mesh(mesh8):
        given = jax.device_put((*x, SEGMENTS, PREFIX, listed()), rows(mesh8))
        run = program(True).lower(*given).compile()
        got = jax.block_until_ready(run(*given))
    assert_same(got, want)
    # Rows stay where they are, forward and backward.
    sent = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
    assert not [name for name in sent if name in run.as_text()]


# Lists of pairs.


def brute_force(segment_T, prefix_T):
    """Pairs of blocks in which a token that is not padding sees another; each block's own."""
    see = seen(segment_T, prefix_T) & (segment_T > 0)[:, None]
    N = len(segment_T) // BLOCK
    see_NN = see.reshape(N, BLOCK, N, BLOCK).any(axis=(1, 3)) | np.eye(N, dtype=bool)
    return np.argwhere(see_NN).tolist()  # ascending by queries, then by keys


def random_row(rng):
    """Segments of any lengths, each of its own or a response to any prompt before."""
    prompts, parts, left, segment = [], [], T, 0
    while left and rng.random() > 0.1:
        segment += 1 + int(rng.random() < 0.1)  # a response of no tokens takes a number
        n = min(left, int(rng.choice([1, 5, 31, 32, 33, 64, 100])))
        new = not prompts or rng.random() < 0.4
        prompts += [segment] * new
        parts.append((segment, segment if new else int(rng.choice(prompts)), n))
        left -= n
    return laid_out(parts)


@pytest.mark.parametrize("name", ROWS)
def test_pairs_are_those_that_see_each_other(name):
    row = laid_out(ROWS[name])
    assert pairs(*row).tolist() == brute_force(*row)


def test_pairs_of_any_rows():
    rng = np.random.default_rng(3)
    for _ in range(60):
        row = random_row(rng)
        assert pairs(*row).tolist() == brute_force(*row)


def test_pairs_are_filled_up_to_a_number():
    row = laid_out(ROWS["responses to one prompt"])
    real = brute_force(*row)
    N = T // BLOCK
    padded = filled(pairs(*row), len(real) + 4, len(row[0]) // BLOCK)
    assert padded.dtype == np.int32 and padded.tolist() == real + [[N, 0]] * 4
    assert (np.diff(padded[:, 0]) >= 0).all()  # the sums over a query's pairs take this as given
    fewer = filled(pairs(*row), len(real) - 4, len(row[0]) // BLOCK)
    assert fewer.tolist() == real  # no fewer than there are
