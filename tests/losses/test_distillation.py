import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.losses import distillation_loss
from r1jax.types import Counts

DIVERGENCE = np.array([[0.5, 1.0, 2.0], [0.25, 8.0, 8.0], [8.0, 8.0, 8.0]], np.float32)
MASK = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
@pytest.mark.parametrize("dtype", [np.float32, bool])
def test_mean_over_tokens(wrap, dtype):
    # (0.5 + 1 + 2 + 0.25) / 4 tokens; a mean over rows first would be (3.5/3 + 0.25) / 2
    loss, metrics = wrap(distillation_loss)(DIVERGENCE, MASK.astype(dtype))
    assert float(loss) == 3.75 / 4
    assert metrics == {"divergence": loss}


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_padding_reaches_neither_value_nor_gradient(poison):
    divergence = jnp.asarray(np.where(MASK, DIVERGENCE, poison))
    loss, grad = jax.value_and_grad(lambda x: distillation_loss(x, MASK)[0])(divergence)
    assert float(loss) == 3.75 / 4
    np.testing.assert_array_equal(grad, 0.25 * MASK)


def test_nothing_to_learn_is_zero():
    nothing = np.zeros_like(MASK)
    loss, grad = jax.value_and_grad(lambda x: distillation_loss(x, nothing)[0])(
        jnp.asarray(DIVERGENCE)
    )
    assert float(loss) == 0
    np.testing.assert_array_equal(grad, 0)


def test_micro_batches_sum_to_the_whole():
    whole = Counts(rows=3, tokens=4)
    padding = np.full((2, 3), np.nan, np.float32)
    pieces = [
        (DIVERGENCE[:1], MASK[:1]),
        (np.concatenate([DIVERGENCE[1:], padding]), np.concatenate([MASK[1:], 0 * MASK[:2]])),
    ]
    results = [distillation_loss(*piece, whole=whole) for piece in pieces]
    assert sum(float(loss) for loss, _ in results) == 3.75 / 4
    assert sum(float(metrics["divergence"]) for _, metrics in results) == 3.75 / 4


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="mask_BT"):
        distillation_loss(DIVERGENCE, MASK[:2])
    with pytest.raises(ValueError, match="divergence_BT"):
        distillation_loss(DIVERGENCE[0], MASK[0])
