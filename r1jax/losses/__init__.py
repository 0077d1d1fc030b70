"""Losses: pure functions of arrays that return (loss, metrics).

`LOSSES` names the policy losses, which share one signature, for configs to choose from.
"""

from r1jax.losses.distillation import distillation_loss
from r1jax.losses.grpo import dapo_loss, dr_grpo_loss, grpo_loss, gspo_loss
from r1jax.losses.importance import truncated_importance
from r1jax.losses.kl import k1, k2, k3
from r1jax.losses.preference import preference_loss
from r1jax.losses.sft import sft_loss

LOSSES = {
    "grpo": grpo_loss,
    "dr_grpo": dr_grpo_loss,
    "dapo": dapo_loss,
    "gspo": gspo_loss,
}

__all__ = [
    "LOSSES",
    "dapo_loss",
    "distillation_loss",
    "dr_grpo_loss",
    "grpo_loss",
    "gspo_loss",
    "k1",
    "k2",
    "k3",
    "preference_loss",
    "sft_loss",
    "truncated_importance",
]
