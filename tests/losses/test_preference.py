import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.losses import preference_loss
from r1jax.types import Counts

CHOSEN = np.array([1.0, 0.0, 2.0, 3.0], np.float32)
REJECTED = np.array([0.0, 2.0, 2.0, 1.0], np.float32)  # leads 1, −2, 0, 2


def nll(lead):
    return math.log1p(math.exp(-lead))


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_mean_over_pairs(wrap):
    loss, metrics = wrap(preference_loss)(CHOSEN, REJECTED)
    assert float(loss) == pytest.approx((nll(1) + nll(-2) + nll(0) + nll(2)) / 4, rel=1e-6)
    assert float(metrics["accuracy"]) == 2.5 / 4  # two won, one lost, a tie for half
    assert float(metrics["margin"]) == 1 / 4


def test_no_preference_costs_log_two():
    loss, metrics = preference_loss(np.zeros(3), np.zeros(3))
    assert float(loss) == pytest.approx(math.log(2), rel=1e-6)
    assert float(metrics["accuracy"]) == 0.5


@pytest.mark.parametrize("margin", [0.5, np.full(4, 0.5, np.float32)])
def test_margin_moves_the_loss_and_not_the_metrics(margin):
    loss, metrics = preference_loss(CHOSEN, REJECTED, margin=margin)
    want = (nll(0.5) + nll(-2.5) + nll(-0.5) + nll(1.5)) / 4
    assert float(loss) == pytest.approx(want, rel=1e-6)
    assert float(metrics["margin"]) == 1 / 4


def test_gradient_is_the_probability_of_the_wrong_choice():
    # d/d chosen of −log σ(lead) is −σ(−lead)
    grad = jax.grad(lambda x: preference_loss(x, REJECTED)[0])(jnp.asarray(CHOSEN))
    want = [-1 / (1 + math.exp(lead)) / 4 for lead in (1, -2, 0, 2)]
    np.testing.assert_allclose(grad, want, rtol=1e-6)


def test_large_leads_stay_finite():
    loss, grad = jax.value_and_grad(lambda x: preference_loss(x, jnp.zeros(2))[0])(
        jnp.array([1e4, -1e4])
    )
    assert float(loss) == 1e4 / 2
    np.testing.assert_array_equal(grad, [0, -0.5])


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_padding_counts_nowhere(wrap):
    pad = np.full(2, np.nan, np.float32)
    mask = np.array([1, 1, 1, 1, 0, 0])

    def loss_of(chosen):
        rejected = np.concatenate([REJECTED, pad])
        return preference_loss(
            chosen, rejected, margin=np.concatenate([np.zeros(4), pad]), mask_B=mask
        )

    (loss, metrics), grad = wrap(jax.value_and_grad(loss_of, has_aux=True))(
        jnp.concatenate([CHOSEN, pad])
    )
    want_loss, want_metrics = preference_loss(CHOSEN, REJECTED)
    np.testing.assert_allclose(loss, want_loss, rtol=1e-6)
    np.testing.assert_array_equal(grad[4:], 0)
    assert bool(jnp.all(grad[:4] != 0))
    for name, want in want_metrics.items():
        np.testing.assert_allclose(metrics[name], want, rtol=1e-6)


def test_micro_batches_sum_to_the_whole():
    whole = Counts(rows=4, tokens=0)
    pad = np.full(2, np.nan, np.float32)
    results = [
        preference_loss(CHOSEN[:3], REJECTED[:3], whole=whole),
        preference_loss(
            np.append(CHOSEN[3:], pad),
            np.append(REJECTED[3:], pad),
            mask_B=np.array([True, False, False]),
            whole=whole,
        ),
    ]
    loss, metrics = preference_loss(CHOSEN, REJECTED)
    assert sum(float(r[0]) for r in results) == pytest.approx(float(loss), rel=1e-6)
    for name in metrics:
        total = sum(float(r[1][name]) for r in results)
        assert total == pytest.approx(float(metrics[name]), rel=1e-6)


def test_no_pairs_are_zero():
    loss, metrics = preference_loss(CHOSEN, REJECTED, mask_B=np.zeros(4))
    assert float(loss) == 0
    assert {float(x) for x in metrics.values()} == {0.0}


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("rejected_B", {"rejected_B": REJECTED[:3]}),
        ("chosen_B", {"chosen_B": CHOSEN[:, None]}),
        ("mask_B", {"mask_B": np.ones(3)}),
        ("margin_B", {"margin": np.ones(3)}),
    ],
)
def test_shapes_are_checked(name, kwargs):
    with pytest.raises(ValueError, match=name):
        preference_loss(**{"chosen_B": CHOSEN, "rejected_B": REJECTED, **kwargs})
