import jax
import jax.numpy as jnp
import numpy as np

from r1jax.losses.masking import as_float, divisors, inside
from r1jax.types import Counts


def test_as_float_widens_and_never_narrows():
    assert as_float(jnp.ones(2, jnp.bfloat16)).dtype == jnp.float32
    assert as_float(np.ones(2, np.int32)).dtype == jnp.float32
    with jax.enable_x64(True):
        assert as_float(np.ones(2, np.float64)).dtype == jnp.float64


def test_inside_keeps_padding_out_of_value_and_gradient():
    x = jnp.array([1.0, jnp.nan, jnp.inf])
    mask = np.array([1, 0, 0])
    value, grad = jax.value_and_grad(lambda x: jnp.sum(jnp.exp(inside(x, mask)) - 1))(x)
    np.testing.assert_allclose(value, np.e - 1, rtol=1e-6)
    np.testing.assert_allclose(grad, [np.e, 0, 0], rtol=1e-6)


def test_divisors_are_counts_of_the_arrays_or_of_the_whole():
    mask_BT = jnp.array([[True, True], [False, False]])
    assert divisors(mask_BT, None) == (2, 2)  # the empty row counts as a row
    assert divisors(mask_BT, Counts(rows=5, tokens=9)) == (5, 9)


def test_divisors_are_never_zero():
    assert divisors(jnp.zeros((0, 3), bool), None) == (1, 1)
    assert divisors(jnp.zeros((2, 3), bool), Counts(0, 0)) == (1, 1)
