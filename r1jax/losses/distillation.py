"""Distillation against a teacher's distribution over tokens."""

import jax.numpy as jnp

from r1jax.losses.masking import divisors, inside
from r1jax.shapes import check_axes
from r1jax.types import Array, Counts


def distillation_loss(
    divergence_BT: Array, mask_BT: Array, *, whole: Counts | None = None
) -> tuple[Array, dict[str, Array]]:
    """Mean divergence from the teacher over all tokens under the mask, in nats per token.

        (1/Σ_it mask_it) Σ_it mask_it D_it

    with D forward KL, reverse KL or the generalised Jensen-Shannon divergence between the
    two next-token distributions (`r1jax.divergence`). On given responses with the forward one
    it is cross-entropy against soft targets; on the student's own responses it is on-policy
    distillation (GKD, arXiv:2306.13649, equation 4 and algorithm 1), where the samples are
    constants: no gradient goes through what was sampled.

    Args:
        divergence_BT: divergences at the positions that predict the tokens.
        mask_BT: 1 (or True) on the tokens to learn, the end token included. Anything may
            stand in `divergence_BT` elsewhere, NaN too; its gradient is exactly 0 there.
        whole: counts of the whole batch if this is a micro-batch of it; loss and metrics
            then sum to those of the whole. Only `whole.tokens` is used.

    Returns:
        The loss, 0 if nothing is under the mask, and the metric `divergence`, which is the loss.

    Raises:
        ValueError: the arrays are not two of the same shape [B, T].
    """
    check_axes(divergence_BT=divergence_BT, mask_BT=mask_BT)
    mask_BT = jnp.asarray(mask_BT) != 0
    loss = jnp.sum(inside(divergence_BT, mask_BT)) / divisors(mask_BT, whole).tokens
    return loss, {"divergence": loss}
