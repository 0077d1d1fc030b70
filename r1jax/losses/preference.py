"""Reward models from preference pairs."""

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.losses.masking import as_float, inside
from r1jax.shapes import check_axes
from r1jax.types import Array, Counts


def preference_loss(
    chosen_B: Array,
    rejected_B: Array,
    *,
    margin: float | Array = 0.0,
    mask_B: Array | None = None,
    whole: Counts | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Bradley-Terry: mean over pairs of the negative log-probability of the choice, in nats.

        −(1/pairs) Σ_i log σ(chosen_i − rejected_i − margin_i)

    The loss of the helpfulness and harmlessness reward models (DeepSeek-R1,
    arXiv:2501.12948, section 2.3.4, after DeepSeek-V3); the form with a margin is
    Llama 2's (arXiv:2307.09288, equation 2).

    Args:
        chosen_B: scores of the preferred responses.
        rejected_B: scores of the others, pair by pair.
        margin: by how much a choice should win; one number, or one a pair [B].
        mask_B: 1 (or True) on pairs, 0 on padding, which may hold anything; all pairs
            if left out. Unlike an empty row of the policy losses a padding pair counts nowhere.
        whole: counts of the whole batch if this is a micro-batch of it, where `rows` is
            the number of pairs; loss and metrics then sum to those of the whole.

    Returns:
        The loss, 0 without any pair, and the metrics `accuracy` (share of pairs with the
        chosen one scored higher; a tie counts half, so that a constant score has 0.5) and
        `margin` (mean of chosen − rejected).

    Raises:
        ValueError: shapes disagree.
    """
    arrays = {"chosen_B": chosen_B, "rejected_B": rejected_B}
    if mask_B is not None:
        arrays["mask_B"] = mask_B
    if np.ndim(margin):
        arrays["margin_B"] = margin
    size = check_axes(**arrays)["B"]
    mask_B = jnp.ones(size, bool) if mask_B is None else jnp.asarray(mask_B) != 0
    pairs = jnp.maximum(as_float(jnp.sum(mask_B) if whole is None else whole.rows), 1)

    def mean(x_B):
        return jnp.sum(inside(x_B, mask_B)) / pairs

    lead_B = inside(chosen_B, mask_B) - inside(rejected_B, mask_B)
    margin_B = inside(jnp.broadcast_to(jnp.asarray(margin), (size,)), mask_B)
    loss = mean(-jax.nn.log_sigmoid(lead_B - margin_B))
    return loss, {
        "accuracy": mean(jnp.where(lead_B == 0, 0.5, lead_B > 0)),
        "margin": mean(lead_B),
    }
