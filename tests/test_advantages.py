import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from r1jax.advantages import group_relative

KINDS = {
    "numpy": lambda r, g, **kw: group_relative(np.asarray(r), g, **kw),
    "jax": lambda r, g, **kw: group_relative(jnp.asarray(r), g, **kw),
    "jit": lambda r, g, **kw: jax.jit(lambda x: group_relative(x, g, **kw))(np.asarray(r)),
}


@pytest.fixture(params=KINDS)
def advantages(request):
    return KINDS[request.param]


def test_population_std_by_hand(advantages):
    # group 1: mean 0.25, variance (0.75² + 3 · 0.25²)/4 = 3/16, std √3/4:
    #   0.75 / (√3/4) = √3, −0.25 / (√3/4) = −1/√3. With ddof 1 it would be 1.5 and −0.5.
    # group 2: mean 0.5, std 0.5: ±1.
    got = advantages([1.0, 0, 0, 0, 1, 0, 0, 1], 4)
    third = -(3**-0.5)
    np.testing.assert_allclose(got, [3**0.5, third, third, third, 1, -1, -1, 1], rtol=1e-6)


def test_without_std(advantages):
    got = advantages([1.0, 0, 0, 0, 4, 2, 2, 4], 4, normalise_std=False)
    np.testing.assert_allclose(got, [0.75, -0.25, -0.25, -0.25, 1, -1, -1, 1], rtol=1e-6)


def test_rows_of_a_group_are_next_to_each_other(advantages):
    # As [prompt, group]: (0, 1) and (5, 9). Interleaved would be (0, 5) and (1, 9).
    np.testing.assert_allclose(advantages([0.0, 1, 5, 9], 2), [-1, 1, -1, 1], rtol=1e-6)
    got = advantages([0.0, 1, 5, 9], 2, normalise_std=False)
    np.testing.assert_allclose(got, [-0.5, 0.5, -2, 2], rtol=1e-6)


@pytest.mark.parametrize("normalise_std", [True, False])
@pytest.mark.parametrize(
    "group",
    [
        [1.0, 1.0, 1.0],
        [0.0, 0.0, 0.0],
        [0.1 + 0.2, 0.3, 0.3],  # 0.30000000000000004 and 0.3
        [0.3, 0.3 + 1e-7, 0.3],
        [-1e6, -1e6 + 0.1, -1e6],  # about one digit of float32 at this size
    ],
)
def test_equal_rewards_are_exactly_zero_dust_or_not(advantages, group, normalise_std):
    got = np.asarray(advantages([*group, 0.0, 1, 2], 3, normalise_std=normalise_std))
    np.testing.assert_array_equal(got[:3], 0)
    assert (got[3:] != 0).tolist() == [True, False, True]  # the other group is untouched


def test_small_real_differences_are_kept(advantages):
    np.testing.assert_allclose(advantages([0.5, 0.501], 2), [-1, 1], rtol=1e-5)


def test_group_of_one_has_no_signal(advantages):
    np.testing.assert_array_equal(advantages([1.0, 0, 3], 1), 0)


def test_no_rewards(advantages):
    assert advantages(np.zeros(0, np.float32), 4).shape == (0,)


def test_integers_and_booleans(advantages):
    np.testing.assert_array_equal(advantages([1, 0, 0, 1], 4), [1, -1, -1, 1])
    np.testing.assert_array_equal(advantages([True, False], 2), [1, -1])


@pytest.mark.parametrize("half", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_widened(advantages, half):
    got = advantages(np.array([1, 0, 0, 0], half), 4)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got[0], 3**0.5, rtol=1e-6)


def test_numpy_stays_numpy_and_jax_stays_jax():
    got = group_relative([1.0, 0.0], 2)
    assert isinstance(got, np.ndarray) and got.dtype == np.float64
    assert isinstance(group_relative(jnp.array([1.0, 0.0]), 2), jax.Array)


def test_equal_rewards_have_a_finite_gradient():
    grad = jax.grad(lambda r: jnp.sum(jnp.square(group_relative(r, 2))))(jnp.ones(4))
    np.testing.assert_array_equal(grad, 0)


def test_torn_groups_are_refused(advantages):
    with pytest.raises(ValueError, match=r"10 rewards are not divisible by group_size=4.* 8 or 12"):
        advantages(np.zeros(10), 4)
    # A micro-batch smaller than a group: the rows of one group would be spread over two.
    with pytest.raises(
        ValueError, match=r"2 rewards are not divisible by group_size=4.* 4 rewards"
    ):
        advantages(np.zeros(2), 4)


def test_other_errors(advantages):
    with pytest.raises(ValueError, match="group_size=0"):
        advantages(np.zeros(4), 0)
    with pytest.raises(ValueError, match=r"reward_B has shape \(2, 2\)"):
        advantages(np.zeros((2, 2)), 2)
    with pytest.raises(TypeError):
        advantages(np.zeros(4), 2.0)
