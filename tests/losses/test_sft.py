import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.losses import sft_loss
from r1jax.types import Counts

LOGP = np.array([[-1.0, -2.0, -4.0], [-0.5, -8.0, -8.0], [-8.0, -8.0, -8.0]], np.float32)
MASK = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
@pytest.mark.parametrize("dtype", [np.float32, bool])
def test_mean_over_tokens(wrap, dtype):
    # (1 + 2 + 4 + 0.5) / 4 tokens; a mean over rows first would be (7/3 + 0.5) / 2
    loss, metrics = wrap(sft_loss)(LOGP, MASK.astype(dtype))
    assert float(loss) == 7.5 / 4
    assert float(metrics["nll"]) == 7.5 / 4


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_padding_reaches_neither_value_nor_gradient(poison):
    logp = np.where(MASK, LOGP, poison)
    loss, grad = jax.value_and_grad(lambda x: sft_loss(x, MASK)[0])(jnp.asarray(logp))
    assert float(loss) == 7.5 / 4
    np.testing.assert_array_equal(grad, -0.25 * MASK)


def test_nothing_to_learn_is_zero():
    loss, grad = jax.value_and_grad(lambda x: sft_loss(x, MASK * 0)[0])(jnp.asarray(LOGP))
    assert float(loss) == 0
    np.testing.assert_array_equal(grad, 0)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_micro_batches_sum_to_the_whole(wrap):
    whole = Counts(rows=3, tokens=4)
    padding = np.full((2, 3), np.nan, np.float32)
    pieces = [
        (LOGP[:1], MASK[:1]),
        (np.concatenate([LOGP[1:], padding]), np.concatenate([MASK[1:], np.zeros((2, 3), int)])),
    ]
    results = [wrap(sft_loss)(*piece, whole=whole) for piece in pieces]
    assert sum(float(loss) for loss, _ in results) == 7.5 / 4
    assert sum(float(metrics["nll"]) for _, metrics in results) == 7.5 / 4


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="mask_BT"):
        sft_loss(LOGP, MASK[:2])
    with pytest.raises(ValueError, match="logp_BT"):
        sft_loss(LOGP[0], MASK[0])
