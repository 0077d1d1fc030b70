import jax
import numpy as np
import pytest

from r1jax.shapes import check_axes


def test_returns_the_size_of_each_letter():
    assert check_axes(logp_BT=np.ones((2, 3)), adv_B=[1, 2]) == {"B": 2, "T": 3}


def test_names_the_array_with_a_wrong_number_of_axes():
    with pytest.raises(ValueError, match=r"adv_B has shape \(2, 1\), but needs 1 axis \(B\)"):
        check_axes(adv_B=np.ones((2, 1)))
    with pytest.raises(ValueError, match=r"logp_BT has shape \(2,\), but needs 2 axes \(B, T\)"):
        check_axes(logp_BT=np.ones(2))


def test_names_both_arrays_that_disagree():
    with pytest.raises(ValueError, match=r"old_logp_BT .* axis T is 4, but 3 in logp_BT"):
        check_axes(logp_BT=np.ones((2, 3)), old_logp_BT=np.ones((2, 4)))


def test_raises_while_jit_traces():
    with pytest.raises(ValueError, match="adv_B"):
        jax.jit(lambda x: check_axes(adv_B=x)["B"])(np.ones((2, 1)))
