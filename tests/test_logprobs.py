import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.logprobs import entropy, token_logprobs


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
