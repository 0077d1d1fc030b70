"""Optimisers: AdamW behind a clip by global norm, with warm-up and a cosine tail."""

import optax


def learning_rate(
    lr: float, *, warmup_steps: int = 0, decay_steps: int | None = None, end_lr: float = 0.0
) -> optax.Schedule:
    """Linear warm-up to `lr`, then constant, or a cosine to `end_lr` by `decay_steps`."""
    if decay_steps is None:
        return optax.join_schedules(
            [optax.linear_schedule(lr / (warmup_steps + 1), lr, warmup_steps),
             optax.constant_schedule(lr)],
            [warmup_steps],
        )  # fmt: skip
    return optax.warmup_cosine_decay_schedule(
        lr / (warmup_steps + 1), lr, warmup_steps, decay_steps, end_lr
    )


def adamw(
    schedule: optax.Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.95,
    weight_decay: float = 0.0,
    clip_norm: float = 1.0,
) -> optax.GradientTransformation:
    """Clip by global norm, Adam, decoupled decay of matrices (not of scales and biases)."""

    def matrices(params):
        import jax

        return jax.tree.map(lambda p: p.ndim >= 2, params)

    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(schedule, b1=b1, b2=b2, weight_decay=weight_decay, mask=matrices),
    )
