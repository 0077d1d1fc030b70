"""Divergences by hand, against automatic differentiation, and in chunks."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from r1jax import divergence as module
from r1jax.divergence import head_divergence, token_divergence
from r1jax.losses import distillation_loss
from r1jax.sharding import BATCH, rows

KINDS = [("forward", 0.5), ("reverse", 0.5), ("jsd", 0.5), ("jsd", 0.1)]
each_kind = pytest.mark.parametrize(("kind", "beta"), KINDS)


def logits(B=2, T=5, V=7, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return tuple(2 * rng.standard_normal((B, T, V)).astype(dtype) for _ in range(2))


def heads(B=2, T=7, D=4, d=6, V=11, seed=0):
    """Activations and table of the student, and of a wider teacher."""
    rng = np.random.default_rng(seed)
    shapes = (B, T, D), (D, V), (B, T, d), (d, V)
    return tuple(rng.standard_normal(s).astype(np.float32) for s in shapes)


def written_out(student, teacher, kind, beta, temperature=1.0):
    """From probabilities, for automatic differentiation."""
    q, p = (jax.nn.softmax(x / temperature, axis=-1) for x in (student, teacher))
    m = beta * p + (1 - beta) * q

    def kl(a, b):
        return jnp.sum(a * jnp.log(a / b), axis=-1)

    match kind:
        case "forward":
            return kl(p, q)
        case "reverse":
            return kl(q, p)
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(
    ("kind", "beta", "want"),
    [
        # Student ¼, ¾ and teacher ½, ½.
        ("forward", 0.5, 0.5 * math.log(2) + 0.5 * math.log(2 / 3)),
        ("reverse", 0.5, 0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2)),
        # M = ½(½ + ¼), ½(½ + ¾) = 3/8, 5/8
        ("jsd", 0.5, 0.25 * (math.log(4 / 3) + math.log(4 / 5))
         + 0.5 * (0.25 * math.log(2 / 3) + 0.75 * math.log(6 / 5))),
        # M = 0.2·½ + 0.8·¼, 0.2·½ + 0.8·¾ = 0.3, 0.7
        ("jsd", 0.2, 0.2 * 0.5 * (math.log(5 / 3) + math.log(5 / 7))
         + 0.8 * (0.25 * math.log(5 / 6) + 0.75 * math.log(15 / 14))),
    ],
)  # fmt: skip
def test_by_hand(jit, kind, beta, want):
    student, teacher = np.log([[[1.0, 3.0]]]), np.log([[[2.0, 2.0]]])
    function = partial(token_divergence, divergence=kind, beta=beta)
    got = (jax.jit(function) if jit else function)(student, teacher)
    np.testing.assert_allclose(got, [[want]], rtol=1e-5)


def test_temperature_by_hand():
    # Odds 1 : 3 at temperature ½ are 1 : 9; the teacher's stay 1 : 1.
    student, teacher = np.log([[[1.0, 3.0]]]), np.zeros((1, 1, 2))
    got = token_divergence(student, teacher, divergence="forward", temperature=0.5)
    np.testing.assert_allclose(got, [[0.5 * math.log(5) + 0.5 * math.log(5 / 9)]], rtol=1e-5)


@each_kind
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_value_and_gradient_are_those_written_out(kind, beta, temperature):
    with jax.enable_x64(True):
        student, teacher = (jnp.asarray(x) for x in logits(dtype=np.float64))
        weight = jnp.asarray(np.random.default_rng(1).standard_normal((2, 5)))

        def ours(x):
            given = {"divergence": kind, "beta": beta, "temperature": temperature}
            return jnp.sum(weight * token_divergence(x, teacher, **given))

        def theirs(x):
            return jnp.sum(weight * written_out(x, teacher, kind, beta, temperature))

        got, want = (jax.jit(jax.value_and_grad(f))(student) for f in (ours, theirs))
        np.testing.assert_allclose(got[0], want[0], rtol=1e-12)
        np.testing.assert_allclose(got[1], want[1], atol=1e-12)
        assert np.abs(want[1]).max() > 0.02


def test_forward_has_the_gradient_of_cross_entropy_against_the_teacher():
    student, teacher = logits()

    def cross_entropy(x):
        return -jnp.sum(jax.nn.softmax(teacher) * jax.nn.log_softmax(x))

    got = jax.grad(lambda x: token_divergence(x, teacher, divergence="forward").sum())(student)
    np.testing.assert_allclose(got, jax.grad(cross_entropy)(student), atol=1e-6)


def test_reverse_on_policy_is_the_expected_log_ratio_of_samples():
    # KL(Q‖P) = E_Q[log Q − log P], and its gradient E_Q[(log Q − log P) ∇ log Q], both over
    # tokens that the student samples: here summed over all of them.
    student, teacher = (x[0, :1] for x in logits())
    ratio = jax.nn.log_softmax(student) - jax.nn.log_softmax(teacher)
    q = jax.nn.softmax(student)

    def surrogate(x):
        return jnp.sum(jax.lax.stop_gradient(q * ratio) * jax.nn.log_softmax(x))

    value, grad = jax.value_and_grad(
        lambda x: token_divergence(x[None], teacher[None], divergence="reverse").sum()
    )(jnp.asarray(student))
    np.testing.assert_allclose(value, jnp.sum(q * ratio), rtol=1e-5)
    np.testing.assert_allclose(grad, jax.grad(surrogate)(student), atol=1e-6)


def test_jsd_goes_from_forward_to_reverse():
    # D_β/β → KL(P‖Q) for β → 0, D_β/(1 − β) → KL(Q‖P) for β → 1, both to first order in the rest.
    with jax.enable_x64(True):
        student, teacher = logits(dtype=np.float64)
        for kind, beta, share in (("forward", 1e-6, 1e-6), ("reverse", 1 - 1e-6, 1e-6)):
            got = token_divergence(student, teacher, divergence="jsd", beta=beta) / share
            want = token_divergence(student, teacher, divergence=kind)
            np.testing.assert_allclose(got, want, rtol=1e-3)


@each_kind
def test_equal_models_do_not_differ(kind, beta):
    student, _ = logits()
    value, grad = jax.value_and_grad(
        lambda x: token_divergence(x, student, divergence=kind, beta=beta).sum()
    )(jnp.asarray(student))
    np.testing.assert_allclose(value, 0, atol=1e-6)
    np.testing.assert_allclose(grad, 0, atol=1e-6)


def test_ruled_out_tokens():
    # Student ½, ½, 0; teacher 1, 0, 0.
    student, teacher = np.array([[[0, 0, -np.inf]]]), np.array([[[0, -np.inf, -np.inf]]])

    def of(kind, s, t):
        return float(token_divergence(s, t, divergence=kind)[0, 0])

    assert of("forward", student, teacher) == pytest.approx(math.log(2))
    assert of("reverse", student, teacher) == math.inf
    assert of("forward", teacher, student) == math.inf
    # M = ¾, ¼: ½ log 4/3 + ½ (½ log 2/3 + ½ log 2)
    want = 0.5 * math.log(4 / 3) + 0.25 * (math.log(2 / 3) + math.log(2))
    assert of("jsd", student, teacher) == pytest.approx(want)
    grad = jax.grad(lambda x: token_divergence(x, teacher, divergence="forward").sum())(student)
    np.testing.assert_allclose(grad, [[[-0.5, 0.5, 0]]], atol=1e-6)
    assert math.isnan(of("jsd", student, np.full((1, 1, 3), np.nan)))


@each_kind
def test_nan_under_no_mask_reaches_nothing(kind, beta):
    hidden, table, teacher_hidden, teacher_table = map(jnp.asarray, heads())
    mask = jnp.asarray(np.random.default_rng(1).integers(0, 2, (2, 7)))
    poisoned = [jnp.where(mask[..., None], x, jnp.nan) for x in (hidden, teacher_hidden)]

    def loss(hidden, table, teacher_hidden):
        divergence = head_divergence(
            hidden, table, teacher_hidden, teacher_table, divergence=kind, beta=beta, chunk=2
        )
        return distillation_loss(divergence, mask)[0]

    program = jax.jit(jax.value_and_grad(loss, (0, 1)))
    clean = program(hidden, table, teacher_hidden)
    got = program(poisoned[0], table, poisoned[1])
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(clean), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.any(np.asarray(got[1][0])[np.asarray(mask) == 0])

    student, teacher = (jnp.where(mask[..., None], x, jnp.nan) for x in logits(T=7))
    grad = jax.grad(
        lambda x: distillation_loss(token_divergence(x, teacher, divergence=kind, beta=beta), mask)[
            0
        ]
    )(student)
    assert not np.any(np.asarray(grad)[np.asarray(mask) == 0])
    assert np.all(np.isfinite(grad))


def both(arrays, mask, **given):
    """Value and gradients of a weighted sum: from the heads, and from whole logits."""
    hidden, table, teacher_hidden, teacher_table = arrays
    chunk = given.pop("chunk", None)

    def chunked(hidden, table):
        parts = head_divergence(hidden, table, teacher_hidden, teacher_table, chunk=chunk, **given)
        return jnp.sum(mask * parts)

    def plain(hidden, table):
        parts = token_divergence(hidden @ table, teacher_hidden @ teacher_table, **given)
        return jnp.sum(mask * parts)

    return (jax.jit(jax.value_and_grad(f, (0, 1)))(hidden, table) for f in (chunked, plain))


@each_kind
@pytest.mark.parametrize("chunk", [1, 3, 100, None])  # 3 does not divide 7
def test_chunks_change_nothing(kind, beta, chunk):
    mask = np.random.default_rng(1).standard_normal((2, 7)).astype(np.float32)
    got, want = both(heads(), mask, divergence=kind, beta=beta, temperature=0.8, chunk=chunk)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_nothing_reaches_the_teacher():
    arrays = tuple(map(jnp.asarray, heads()))
    grads = jax.grad(lambda *x: head_divergence(*x).sum(), (0, 1, 2, 3))(*arrays)
    assert np.any(grads[0]) and np.any(grads[1])
    assert not np.any(grads[2]) and not np.any(grads[3])


def test_types_may_differ():
    # A float32 student of a bfloat16 teacher, whose logits are those of its rounded numbers.
    hidden, table, teacher_hidden, teacher_table = map(jnp.asarray, heads())
    half = teacher_hidden.astype(jnp.bfloat16)
    got = head_divergence(hidden, table, half, teacher_table)
    rounded = (x.astype(jnp.bfloat16).astype(jnp.float32) for x in (half, teacher_table))
    np.testing.assert_allclose(got, head_divergence(hidden, table, *rounded), rtol=1e-4)
    assert got.dtype == jnp.float32


def test_chunks_by_the_number_of_logits(monkeypatch):
    arrays = heads(T=7, V=6)
    # Of both models three positions, hardly four.
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", 2 * 3 * 2 * 6 + 11)
    assert "length=3" in str(jax.make_jaxpr(head_divergence)(*arrays))


def test_on_a_mesh(mesh8):
    # Rows over 4 devices, the vocabulary over 2; in the loop no tables or logits are exchanged.
    B, T, D, d, V, chunk = 8, 100, 16, 24, 512, 3
    arrays = heads(B, T, D, d, V)

    def program(function, **given):
        def loss(hidden, table, *teacher):
            return jnp.mean(function(hidden, table, *teacher, divergence="reverse", **given))

        return jax.jit(jax.value_and_grad(loss, (0, 1)))

    def plain(hidden, table, teacher_hidden, teacher_table, **given):
        return token_divergence(hidden @ table, teacher_hidden @ teacher_table, **given)

    want = program(plain)(*arrays)
    by_rows, cut = rows(mesh8), NamedSharding(mesh8, P("fsdp", "tensor"))
    with jax.set_mesh(mesh8):
        placed = jax.device_put(arrays, (by_rows, cut, by_rows, cut))
        chunked = program(head_divergence, chunk=chunk, layout=(BATCH, "tensor"))
        compiled, full = (p.lower(*placed).compile() for p in (chunked, program(plain)))
        got = compiled(*placed)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    used, of_full = (p.memory_analysis().temp_size_in_bytes for p in (compiled, full))
    assert used < of_full / 4
    loops = re.findall(
        r"= (.*) (?:all-|reduce-scatter|collective-).*while/body", compiled.as_text()
    )
    assert loops
    for shape in re.findall(r"\w+\[([\d,]+)\]", " ".join(loops)):
        assert math.prod(map(int, shape.split(","))) <= B // 4 * chunk * d


def test_errors():
    student, teacher = logits()
    with pytest.raises(ValueError, match="teacher_BTV"):
        token_divergence(student, teacher[..., :-1])
    with pytest.raises(ValueError, match="divergence='backward' is unknown; known: forward, "):
        token_divergence(student, teacher, divergence="backward")
    for beta in (0, 1, -0.5):
        with pytest.raises(ValueError, match=f"beta={beta} has to lie between 0 and 1"):
            token_divergence(student, teacher, divergence="jsd", beta=beta)
    with pytest.raises(ValueError, match="temperature=0"):
        token_divergence(student, teacher, temperature=0)
    hidden, table, teacher_hidden, teacher_table = heads()
    with pytest.raises(ValueError, match="teacher_table_dV"):
        head_divergence(hidden, table, teacher_hidden, teacher_table[:, :-1])
    with pytest.raises(ValueError, match="chunk=0"):
        head_divergence(hidden, table, teacher_hidden, teacher_table, chunk=0)
