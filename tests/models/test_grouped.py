"""Products by group against a loop over rows, and that no more is computed than needed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.models import grouped
from r1jax.models.grouped import blocked_matmul, grouped_matmul, sorted_by_group

D, F = 6, 7
# (rows, sizes). 40 rows in 5 groups make blocks of 8 rows.
CASES = {
    "even": (40, [8, 8, 8, 8, 8]),
    "uneven": (40, [1, 17, 0, 13, 9]),
    "empty_groups": (40, [0, 0, 40, 0, 0]),
    "first_and_last": (40, [3, 0, 0, 0, 37]),
    "none": (40, [0, 0, 0, 0, 0]),
    "left_over": (40, [4, 0, 9, 2, 0]),
    "block_and_one": (40, [9, 7, 0, 16, 1]),
    "small": (3, [1, 0, 2, 0, 0]),
    "one_row": (1, [0, 0, 0, 1, 0]),
    "no_rows": (0, [0, 0, 0, 0, 0]),
    "one_group": (300, [300]),  # blocks of 128
    "wide_blocks": (300, [131, 160]),  # 150 rows a group on average: blocks of 128
    "many_groups": (50, [n % 4 for n in range(32)]),  # 48 of the 50 rows
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return make(*CASES[request.param])


def make(N, sizes, seed=0):
    """x, w, sizes and a cotangent; NaN in the rows that are left over."""
    rng = np.random.default_rng(seed)
    x, grad = (rng.standard_normal((N, n)).astype(np.float32) for n in (D, F))
    x[sum(sizes) :] = grad[sum(sizes) :] = np.nan
    w = rng.standard_normal((len(sizes), D, F)).astype(np.float32)
    return x, w, np.array(sizes, np.int32), grad


def looped(x, w, sizes, grad):
    """(y, gradient in x, gradient in w), in float64."""
    x, w, grad = (np.asarray(a, np.float64) for a in (x, w, grad))
    y, grad_x, grad_w = np.zeros(grad.shape), np.zeros(x.shape), np.zeros(w.shape)
    at = 0
    for group, count in enumerate(sizes):
        for row in range(at, at + count):
            y[row] = x[row] @ w[group]
            grad_x[row] = w[group] @ grad[row]
            grad_w[group] += np.outer(x[row], grad[row])
        at += count
    return y, grad_x, grad_w


def value_and_gradients(matmul):
    def run(x, w, sizes, grad):
        y, pull = jax.vjp(lambda x, w: matmul(x, w, sizes), x, w)
        return y, *pull(grad)

    return run


@functools.cache
def compiled(matmul):
    return jax.jit(value_and_gradients(matmul))


def check(found, expected, tolerance=1e-5):
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        size = max(1, np.abs(b).max(initial=0))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * size)


@pytest.mark.parametrize("matmul", [blocked_matmul, grouped_matmul])
def test_value_and_gradients_against_a_loop(case, matmul):
    check(compiled(matmul)(*case), looped(*case))


def test_rows_left_over_give_exactly_0():
    y, grad_x, _ = compiled(blocked_matmul)(*make(*CASES["left_over"]))
    assert not y[15:].any() and not grad_x[15:].any()
    assert np.abs(y[:15]).max(axis=1).min() > 0


def test_not_a_number_of_a_row_stays_in_its_row_and_its_groups_gradient():
    x, w, sizes, grad = make(40, [5, 6, 29, 0, 0])
    x[7] = np.nan
    y, grad_x, grad_w = compiled(blocked_matmul)(x, w, sizes, grad)
    assert np.isnan(y[7]).all() and np.isfinite(np.delete(y, 7, axis=0)).all()
    assert np.isfinite(grad_x).all()
    assert np.isnan(grad_w[1]).all() and np.isfinite(np.delete(grad_w, 1, axis=0)).all()


def test_without_jit():
    case = [jnp.asarray(a) for a in make(*CASES["uneven"])]
    for matmul in (blocked_matmul, grouped_matmul):
        check(value_and_gradients(matmul)(*case), looped(*case))


def test_gradients_are_those_of_ragged_dot():
    case = make(40, [1, 17, 0, 13, 9], seed=3)
    check(compiled(blocked_matmul)(*case), compiled(jax.lax.ragged_dot)(*case))


@pytest.mark.parametrize("name", ["uneven", "left_over", "none", "small"])
def test_what_runs_on_tpu_is_the_same_function(name):
    x, w, sizes, grad = make(*CASES[name])
    x, grad = np.nan_to_num(x), np.nan_to_num(grad, nan=5)  # what CPU makes of NaN is not asked
    check(compiled(grouped._ragged)(x, w, sizes, grad), looped(x, w, sizes, grad))


def test_what_a_tpu_leaves_in_rows_left_over_becomes_0(monkeypatch):
    x, w, sizes, _ = make(*CASES["left_over"])
    monkeypatch.setattr(jax.lax, "ragged_dot", lambda x, w, sizes: jnp.full((40, F), jnp.nan))
    y = grouped._ragged(x, w, sizes)
    assert np.isnan(y[:15]).all() and not y[15:].any()


def test_random_sizes():
    rng = np.random.default_rng(0)
    for seed in range(20):
        cuts = np.sort(rng.integers(0, 41, 5))
        case = make(40, np.diff(cuts, prepend=0).tolist(), seed)
        check(compiled(blocked_matmul)(*case), looped(*case))


def test_bfloat16_keeps_its_type_and_is_near():
    x, w, sizes, grad = make(*CASES["uneven"])
    half = [jnp.asarray(a, jnp.bfloat16) for a in (x, w, grad)]
    found = compiled(grouped_matmul)(half[0], half[1], sizes, half[2])
    assert {a.dtype for a in found} == {jnp.dtype(jnp.bfloat16)}
    expected = looped(half[0], half[1], sizes, half[2])
    # Rounding of the result: half of 2⁻⁷ of its size; sums of three blocks are rounded thrice.
    check([np.asarray(a, np.float32) for a in found], expected, tolerance=3 * 2**-8)


def test_blocks_are_about_a_groups_mean_size():
    def size(rows, groups):
        return grouped._block_size(np.zeros((rows, D)), np.zeros((groups, D, F)))

    assert [size(rows, 4) for rows in (0, 4, 32, 36, 64, 68, 256, 512, 10**6)] == [
        8, 8, 8, 16, 16, 32, 64, 128, 128,
    ]  # fmt: skip


@pytest.mark.parametrize("sizes", [s for _, s in CASES.values()], ids=CASES)
def test_every_row_is_in_one_block_and_no_group_has_more_than_it_needs(sizes):
    sizes, blocks = np.array(sizes, np.int32), sum(-(-n // 8) for n in sizes)

    def record(carry, block):
        at, seen = carry
        return at + 1, seen.at[at].set(jnp.stack([jnp.int32(v) for v in block]))

    seen = jnp.zeros((blocks + 1, 3), jnp.int32)
    count, seen = jax.jit(lambda n: grouped._over_blocks(record, (0, seen), n, 8))(sizes)
    wanted, first = [], 0
    for group, n in enumerate(sizes):
        wanted += [(group, first + done, n - done) for done in range(0, n, 8)]
        first += n
    assert count == blocks and [tuple(s) for s in seen[:-1].tolist()] == wanted


def flops(matmul, *shapes):
    arguments = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes[:2]]
    arguments += [jax.ShapeDtypeStruct(s, jnp.int32) for s in shapes[2:]]
    return jax.jit(matmul).lower(*arguments).compile().cost_analysis()["flops"]


def test_ragged_dot_multiplies_with_every_group_on_cpu_and_ours_does_not():
    # The fact that blocks exist for. XLA counts one pass of a loop: here blocks of 64 and of 8.
    def of(matmul, groups):
        return flops(matmul, (128, 32), (groups, 32, 32), (groups,))

    one = flops(jnp.matmul, (128, 32), (32, 32))
    assert one == pytest.approx(2 * 128 * 32 * 32, rel=0.01)
    assert of(jax.lax.ragged_dot, 16) >= 8 * one
    assert of(blocked_matmul, 16) <= of(blocked_matmul, 2) < 2 * one


@pytest.mark.parametrize("seed", range(3))
def test_sorting_by_group_is_stable_and_puts_unknown_groups_last(seed):
    groups = np.random.default_rng(seed).integers(-2, 7, 50)
    order, sizes = sorted_by_group(jnp.asarray(groups), 5)
    wanted = [[i for i, g in enumerate(groups) if g == group] for group in range(5)]
    unknown = [i for i, g in enumerate(groups) if not 0 <= g < 5]
    assert unknown and order.tolist() == [i for rows in [*wanted, unknown] for i in rows]
    assert sizes.tolist() == [len(w) for w in wanted]


def test_sorting_where_no_group_is_known():
    order, sizes = sorted_by_group(jnp.array([9, -1, 5]), 2)
    assert order.tolist() == [0, 1, 2] and sizes.tolist() == [0, 0]


def test_a_large_groups_gradient_is_summed_in_float32():
    # 600 blocks of 128 rows of ones, each adding 128. Summed in bfloat16, whose numbers have 8
    # bits, it would stand still at 128 · 2⁸ = 32,768, where the next number is 256 away.
    rows = 128 * 600
    x, w = jnp.ones((rows, 1), jnp.bfloat16), jnp.ones((1, 1, 1), jnp.bfloat16)

    def total(w):
        return blocked_matmul(x, w, jnp.array([rows])).astype(jnp.float32).sum()

    assert float(jax.grad(total)(w)[0, 0, 0]) == 76_800 == 600 * 128
