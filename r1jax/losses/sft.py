"""Supervised fine-tuning: cross-entropy on the response tokens."""

import jax.numpy as jnp

from r1jax.losses.masking import divisors, inside
from r1jax.shapes import check_axes
from r1jax.types import Array, Counts


def sft_loss(
    logp_BT: Array, mask_BT: Array, *, whole: Counts | None = None
) -> tuple[Array, dict[str, Array]]:
    """Mean negative log-likelihood over all tokens under the mask, in nats per token.

        −(1/Σ_it mask_it) Σ_it mask_it log π_it

    A token mean: long responses weigh more, and rows may be packed sequences. It is the loss
    of the cold start, of the second fine-tuning and of distillation (DeepSeek-R1,
    arXiv:2501.12948, sections 2.3 and 2.4).

    Args:
        logp_BT: log-probabilities (nats) of the target tokens.
        mask_BT: 1 (or True) on the tokens to learn, the end token included. Anything may
            stand in `logp_BT` elsewhere, NaN too; its gradient is exactly 0 there.
        whole: counts of the whole batch if this is a micro-batch of it; loss and metrics
            then sum to those of the whole. Only `whole.tokens` is used.

    Returns:
        The loss, 0 if nothing is under the mask, and the metric `nll`, which is the loss.

    Raises:
        ValueError: the arrays are not two of the same shape [B, T].
    """
    check_axes(logp_BT=logp_BT, mask_BT=mask_BT)
    mask_BT = jnp.asarray(mask_BT) != 0
    loss = -jnp.sum(inside(logp_BT, mask_BT)) / divisors(mask_BT, whole).tokens
    return loss, {"nll": loss}
