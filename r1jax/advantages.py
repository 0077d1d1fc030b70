"""Advantages: how much better a response is than its siblings."""

import operator

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.shapes import check_axes
from r1jax.types import Array

# Rewards of a group that differ by no more than this, relative to the largest of them or
# to 1, are equal up to rounding: sums of the same terms in another order, in float32.
DUST = 1e-6


def group_relative(reward_B: Array, group_size: int, *, normalise_std: bool = True) -> Array:
    """Advantage of each response relative to the group that answered the same prompt.

        A_i = (r_i − mean(r)) / std(r)        mean and population std (ddof 0) of i's group

    or A_i = r_i − mean(r) with `normalise_std=False` (arXiv:2503.20783). DeepSeek-R1
    (arXiv:2501.12948), equation 3.

    A group whose rewards are all equal, rounding dust included (spread at most 1e-6 of the
    largest magnitude, or of 1), carries no signal: exactly 0 in both cases. Nothing is
    added to the std, so any other group has mean 0 and variance 1.

    Args:
        reward_B: total rewards, the rows of a group next to each other: prompts by group,
            row-major. Integers and booleans are fine.
        group_size: G, responses per prompt.

    Returns:
        Advantages [B], of the unit of the rewards or of none: a jax array if `reward_B` is
        one (also under `jit`), else a numpy array. Floating types keep theirs, but
        float16 and bfloat16 are widened to float32.

    Raises:
        ValueError: `reward_B` has not one axis, `group_size` is below 1, or it does not
            divide the number of rewards (a group would be torn apart).
    """
    check_axes(reward_B=reward_B)
    size, group_size = np.shape(reward_B)[0], operator.index(group_size)
    if group_size < 1:
        raise ValueError(f"group_size={group_size} has to be at least 1")
    if size % group_size:
        fewer = size - size % group_size
        raise ValueError(
            f"{size} rewards are not divisible by group_size={group_size}; pass whole groups, "
            f"{f'{fewer} or ' if fewer else ''}{fewer + group_size} rewards"
        )

    xp = jnp if isinstance(reward_B, jax.Array) else np
    reward_B = xp.asarray(reward_B)
    is_floating = jnp.issubdtype(reward_B.dtype, jnp.floating)  # numpy's misses bfloat16
    if not is_floating or reward_B.dtype.itemsize < 4:
        reward_B = reward_B.astype(xp.float32 if is_floating else float)

    reward_PG = reward_B.reshape(size // group_size, group_size)
    low_P1 = xp.min(reward_PG, axis=1, keepdims=True)
    spread_P1 = xp.max(reward_PG, axis=1, keepdims=True) - low_P1
    scale_P1 = xp.maximum(xp.max(xp.abs(reward_PG), axis=1, keepdims=True), 1)
    equal_P1 = spread_P1 <= DUST * scale_P1

    # From the smallest reward up: keeps the digits of small differences between large rewards.
    above_PG = reward_PG - low_P1
    adv_PG = above_PG - xp.mean(above_PG, axis=1, keepdims=True)
    if normalise_std:
        variance_P1 = xp.mean(xp.square(adv_PG), axis=1, keepdims=True)
        adv_PG = adv_PG / xp.sqrt(xp.where(equal_P1, 1, variance_P1))
    return xp.where(equal_P1, 0, adv_PG).reshape(size)
