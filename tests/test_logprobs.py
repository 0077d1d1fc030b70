import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from r1jax import logprobs
from r1jax.logprobs import entropy, head_logprobs, token_logprobs
from r1jax.sharding import BATCH, rows


def wraps(f):
    return [f, jax.jit(f, static_argnames="temperature")]


def reference_logprobs(logits_BTV, tokens_BT, temperature):
    """Plain Python, one position at a time."""
    B, T, _ = logits_BTV.shape
    out = np.zeros((B, T))
    for b in range(B):
        for t in range(T):
            z = [float(x) / temperature for x in logits_BTV[b, t]]
            top = max(z)
            out[b, t] = z[tokens_BT[b, t]] - top - math.log(sum(math.exp(x - top) for x in z))
    return out


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    logits_BTV = 3 * rng.standard_normal((2, 3, 5)).astype(np.float32)
    return logits_BTV, rng.integers(0, 5, (2, 3))


@pytest.mark.parametrize("f", wraps(token_logprobs))
def test_by_hand(f):
    # odds 1 : 2 : 5, so probabilities 1/8, 2/8, 5/8; at temperature 0.5 the odds are squared:
    # 1 : 4 : 25, out of 30
    logits = np.log(np.array([[[1, 2, 5]] * 3], np.float32))
    tokens = np.array([[0, 1, 2]])
    np.testing.assert_allclose(f(logits, tokens), np.log([[1 / 8, 2 / 8, 5 / 8]]), rtol=1e-6)
    got = f(logits, tokens, temperature=0.5)
    np.testing.assert_allclose(got, np.log([[1 / 30, 4 / 30, 25 / 30]]), rtol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.6, 2])
@pytest.mark.parametrize("f", wraps(token_logprobs))
def test_against_python_loops(f, batch, temperature):
    got = f(*batch, temperature=temperature)
    np.testing.assert_allclose(got, reference_logprobs(*batch, temperature), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_gradient_against_automatic_differentiation(batch, temperature):
    logits, tokens = batch
    weight = np.arange(6.0, dtype=np.float32).reshape(2, 3)

    def plain(x):
        logp = jax.nn.log_softmax(x / temperature)
        return jnp.sum(weight * jnp.take_along_axis(logp, tokens[..., None], axis=-1)[..., 0])

    def ours(x):
        return jnp.sum(weight * token_logprobs(x, tokens, temperature=temperature))

    want = jax.grad(plain)(jnp.asarray(logits))
    for wrap in (lambda f: f, jax.jit):
        got = wrap(jax.grad(ours))(jnp.asarray(logits))
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_masked_positions_get_no_gradient_even_from_nan(batch):
    logits, tokens = batch
    mask = np.array([[1, 1, 0], [0, 0, 0]])
    poisoned = jnp.where(mask[..., None], logits, jnp.nan)
    grad = jax.grad(
        lambda x: jnp.sum(jnp.where(mask, token_logprobs(x, tokens), 0)), allow_int=False
    )(poisoned)
    assert bool(jnp.all(jnp.isfinite(grad)))
    np.testing.assert_array_equal(np.any(grad != 0, axis=-1), mask)


def test_float32_out_of_bfloat16_in(batch):
    logits, tokens = batch
    rounded = jnp.asarray(logits, jnp.bfloat16)
    got, vjp = jax.vjp(lambda x: token_logprobs(x, tokens), rounded)
    assert got.dtype == jnp.float32
    want = reference_logprobs(np.asarray(rounded, np.float32), tokens, 1.0)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert vjp(got)[0].dtype == jnp.bfloat16


def test_large_logits_and_ruled_out_tokens():
    logits = jnp.array([[[1e4, 1e4, -jnp.inf]]])
    logp, grad = jax.value_and_grad(lambda x: token_logprobs(x, np.array([[1]])).sum())(logits)
    np.testing.assert_allclose(logp, -math.log(2), rtol=1e-6)
    np.testing.assert_allclose(grad, [[[-0.5, 0.5, 0]]], rtol=1e-6)
    assert float(token_logprobs(logits, np.array([[2]]))[0, 0]) == -math.inf


@pytest.mark.parametrize("token", [-1, 5])
def test_unknown_tokens_show(batch, token):
    logits, _ = batch
    got = token_logprobs(logits, np.array([[0, 1, token]] * 2))
    np.testing.assert_array_equal(np.isnan(got), [[False, False, True]] * 2)


@pytest.mark.parametrize("f", wraps(token_logprobs))
def test_temperature_may_be_traced(f, batch):
    traced = jax.jit(lambda t: token_logprobs(*batch, temperature=t))(0.7)
    np.testing.assert_allclose(traced, f(*batch, temperature=0.7), rtol=1e-5)


def test_backward_keeps_nothing_large_but_the_logits():
    # Automatic differentiation would keep the probabilities as well, in float32.
    logits, tokens = jnp.zeros((1, 8, 1000), jnp.bfloat16), jnp.zeros((1, 8), int)
    _, vjp = jax.vjp(functools.partial(token_logprobs, tokens_BT=tokens), logits)
    large = [x for x in jax.tree.leaves(vjp) if x.size >= logits.size]
    assert [x.dtype for x in large] == [jnp.bfloat16]


def full_logprobs(hidden_BTD, table_DV, tokens_BT, *, temperature=1.0):
    """What `head_logprobs` is to equal, from all logits at once."""
    wide = jnp.promote_types(hidden_BTD.dtype, jnp.float32)
    table = table_DV.astype(hidden_BTD.dtype)
    logits_BTV = jnp.matmul(hidden_BTD, table, preferred_element_type=wide)
    return token_logprobs(logits_BTV, tokens_BT, temperature=temperature)


def with_gradients(f, wanted=("hidden_BTD", "table_DV", "temperature"), **settings):
    """Jitted (hidden, table, tokens, weight, temperature) -> (log-probabilities, gradients).

    The gradients are those of the weighted sum.
    """

    def value(arguments, others, tokens, weight):
        logp = f(tokens_BT=tokens, **arguments, **others, **settings)
        return jnp.sum(jnp.where(weight == 0, 0, weight * logp)), logp

    @jax.jit
    def program(hidden, table, tokens, weight, temperature=1.0):
        given = {"hidden_BTD": hidden, "table_DV": table, "temperature": temperature}
        arguments = {k: given.pop(k) for k in wanted}
        grads, logp = jax.grad(value, has_aux=True)(arguments, given, tokens, weight)
        return logp, *(grads[k] for k in wanted)

    return program


def head_batch(B=2, T=7, D=4, V=5, dtype=np.float32):
    """(hidden, table, tokens, weight), of which every third weight is 0."""
    rng = np.random.default_rng(0)
    hidden_BTD = rng.standard_normal((B, T, D)).astype(dtype)
    table_DV = 0.5 * rng.standard_normal((D, V)).astype(dtype)
    weight_BT = rng.standard_normal((B, T)).astype(dtype)
    weight_BT[:, ::3] = 0
    return hidden_BTD, table_DV, rng.integers(0, V, (B, T)), weight_BT


def assert_all_close(got, want, **tolerance):
    for x, y in zip(got, want, strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_allclose(np.float64(x), np.float64(y), **tolerance)


@pytest.mark.parametrize("chunk", [1, 3, 7, 100, None])
def test_head_is_as_with_all_logits(chunk):
    batch = head_batch()
    *want, _ = with_gradients(full_logprobs)(*batch, 0.7)
    *got, of_temperature = with_gradients(head_logprobs, chunk=chunk)(*batch, 0.7)
    assert_all_close(got, want, rtol=2e-6, atol=2e-6)
    assert of_temperature == 0


def test_head_in_float64():
    with jax.enable_x64(True):
        batch = head_batch(dtype=np.float64)
        want = with_gradients(full_logprobs)(*batch)
        assert want[0].dtype == jnp.float64
        got = with_gradients(head_logprobs, chunk=3)(*batch)
    assert_all_close(got, want, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("chunk", [3, None])
def test_head_lets_nothing_of_masked_positions_into_gradients(chunk):
    hidden, table, tokens, weight = head_batch()
    poisoned = np.where(weight[..., None] == 0, np.float32([np.nan, np.inf, -np.inf, 1]), hidden)
    unknown = np.where(weight == 0, -1, tokens)
    program = with_gradients(head_logprobs, chunk=chunk)
    _, *want = program(hidden, table, tokens, weight, 0.7)
    _, *got = program(poisoned, table, unknown, weight, 0.7)
    assert_all_close(got, want, rtol=0)
    np.testing.assert_array_equal(np.any(got[0] != 0, axis=-1), weight != 0)


@pytest.mark.parametrize("token", [-1, 5])
def test_head_shows_unknown_tokens(token):
    hidden, table, tokens, weight = head_batch()
    tokens[0, 6] = token
    got, *_ = with_gradients(head_logprobs, chunk=3)(hidden, table, tokens, weight, 0.7)
    np.testing.assert_array_equal(np.isnan(got), (np.arange(14) == 6).reshape(2, 7))


def test_head_of_bfloat16():
    hidden, *others = head_batch()
    hidden = jnp.asarray(hidden, jnp.bfloat16)
    want_logp, *want = with_gradients(full_logprobs)(hidden, *others)
    logp, *got = with_gradients(head_logprobs, chunk=3)(hidden, *others)
    assert [x.dtype for x in (logp, *got[:2])] == [jnp.float32, jnp.bfloat16, jnp.float32]
    assert_all_close([logp], [want_logp], rtol=1e-5, atol=1e-6)
    assert_all_close(got, want, rtol=0.02, atol=0.02)


def test_head_adds_up_the_gradient_of_a_bfloat16_table_in_float32():
    # Two equal logits: each of 1024 positions adds ½. In bfloat16 128 + ½ is 128.
    hidden, table = jnp.ones((1, 1024, 1), jnp.bfloat16), jnp.zeros((1, 2), jnp.bfloat16)
    program = with_gradients(head_logprobs, chunk=1)
    _, _, grad, _ = program(hidden, table, np.zeros((1, 1024), int), np.ones((1, 1024), np.float32))
    assert grad.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.float32(grad), [[512, -512]])


def test_head_keeps_two_numbers_a_token():
    hidden, table, tokens, _ = head_batch(B=1, T=8, D=2, V=1000)
    _, vjp = jax.vjp(
        lambda h, w: head_logprobs(h, w, tokens, chunk=2), jnp.asarray(hidden), jnp.asarray(table)
    )
    sizes = sorted(x.size for x in jax.tree.leaves(vjp) if x.ndim)
    assert sizes == [8, 8, 8, hidden.size, table.size]  # the first are the tokens


def test_head_computes_no_gradient_of_a_frozen_table():
    both, frozen = (
        with_gradients(head_logprobs, wanted, chunk=3).lower(*head_batch()).compile().as_text()
        for wanted in (("hidden_BTD", "table_DV"), ("hidden_BTD",))
    )
    assert frozen.count(" dot(") == both.count(" dot(") - 1


def test_head_chunks_by_the_number_of_logits(monkeypatch, mesh8):
    hidden, table, tokens, _ = head_batch(T=7, V=6)
    monkeypatch.setattr(logprobs, "LOGITS_AT_ONCE", 3 * 2 * 6 + 11)  # three positions, hardly four
    assert "length=3" in str(jax.make_jaxpr(head_logprobs)(hidden, table, tokens))
    with jax.set_mesh(mesh8):  # eight times as many: no loop
        assert "length=" not in str(jax.make_jaxpr(head_logprobs)(hidden, table, tokens))


def test_head_on_a_mesh(mesh8):
    # Rows over 4 devices, the vocabulary over 2.
    B, T, D, V, chunk = 8, 100, 16, 512, 3
    batch = head_batch(B, T, D, V)
    wanted = ("hidden_BTD", "table_DV")
    want = with_gradients(full_logprobs, wanted)(*batch)
    by_rows = rows(mesh8)
    layouts = (by_rows, NamedSharding(mesh8, P("fsdp", "tensor")), by_rows, by_rows)
    with jax.set_mesh(mesh8):
        arrays = jax.device_put(batch, layouts)
        full, cut = (
            program.lower(*arrays).compile()
            for program in (
                with_gradients(full_logprobs, wanted),
                with_gradients(head_logprobs, wanted, chunk=chunk, layout=(BATCH, "tensor")),
            )
        )
        got = cut(*arrays)
    assert_all_close(got, want, rtol=1e-5, atol=1e-5)
    used, of_full = (p.memory_analysis().temp_size_in_bytes for p in (cut, full))
    assert of_full >= 4 * B * T * V // 8
    assert used < of_full / 4

    # In the loop devices exchange sums over a chunk's positions, but no tables or logits.
    exchanged = re.findall(r"= (.*) (?:all-|reduce-scatter|collective-).*while/body", cut.as_text())
    assert exchanged
    for shape in re.findall(r"\w+\[([\d,]+)\]", " ".join(exchanged)):
        assert math.prod(map(int, shape.split(","))) <= B // 4 * chunk * D


def test_head_errors():
    hidden, table, tokens, _ = head_batch()
    with pytest.raises(ValueError, match="tokens_BT"):
        head_logprobs(hidden, table, tokens[:, :2])
    with pytest.raises(ValueError, match="table_DV"):
        head_logprobs(hidden, table.T, tokens)
    with pytest.raises(ValueError, match="hidden_BTD"):
        head_logprobs(hidden[0], table, tokens)
    with pytest.raises(ValueError, match="temperature=0"):
        head_logprobs(hidden, table, tokens, temperature=0)
    with pytest.raises(ValueError, match="chunk=0"):
        head_logprobs(hidden, table, tokens, chunk=0)


@pytest.mark.parametrize("f", wraps(entropy))
def test_entropy_by_hand(f):
    # uniform over 4: log 4. Odds 1 : 1 : 2 with a ruled-out fourth: 2 · ¼ log 4 + ½ log 2.
    # A certain token: 0.
    logits = np.array(
        [[[7, 7, 7, 7], [0, 0, math.log(2), -np.inf], [0, 1e4, 0, 0]]], dtype=np.float32
    )
    want = [[math.log(4), 1.5 * math.log(2), 0]]
    np.testing.assert_allclose(f(logits), want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("f", wraps(entropy))
def test_entropy_at_a_temperature(f):
    # odds 1 : 3 at temperature 0.5 are 1 : 9
    logits = np.log(np.array([[[1, 3]]], np.float32))
    want = -0.1 * math.log(0.1) - 0.9 * math.log(0.9)
    np.testing.assert_allclose(f(logits, temperature=0.5), [[want]], rtol=1e-6)


def test_entropy_gradient_is_finite_and_right():
    # dH/dz_v = −p_v (log p_v + H)
    logits = jnp.array([[[0.0, 1.0, -jnp.inf]]])
    grad = jax.grad(lambda x: entropy(x).sum())(logits)
    p = np.array([1, math.e]) / (1 + math.e)
    want = -p * (np.log(p) - np.sum(p * np.log(p)))
    np.testing.assert_allclose(grad, [[[*want, 0]]], rtol=1e-5)


def test_errors(batch):
    logits, tokens = batch
    with pytest.raises(ValueError, match="tokens_BT"):
        token_logprobs(logits, tokens[:, :2])
    with pytest.raises(ValueError, match="logits_BTV"):
        token_logprobs(logits[0], tokens)
    with pytest.raises(ValueError, match="logits_BTV"):
        entropy(logits[0])
    for f in (lambda **kw: token_logprobs(*batch, **kw), lambda **kw: entropy(logits, **kw)):
        with pytest.raises(ValueError, match="temperature=0"):
            f(temperature=0)


def test_bfloat16_gradient_of_a_tied_table():
    # Transposed outside: a product that XLA's CPU lacks, if it is folded in.
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.standard_normal((1, 64, 32)), jnp.bfloat16)
    embed = jnp.asarray(rng.standard_normal((40, 32)) / 6, jnp.float32)
    tokens = rng.integers(0, 40, (1, 64))

    def gradient(transpose):
        def loss(table):
            return head_logprobs(hidden, table.T if transpose else table, tokens).sum()

        return jax.jit(jax.grad(loss))

    tied = gradient(True)(embed)
    np.testing.assert_allclose(tied, gradient(False)(embed.T).T, rtol=0, atol=0.05)
    assert np.abs(tied).max() > 1
