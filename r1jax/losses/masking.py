"""What every loss does first: padding out, counts in."""

import jax.numpy as jnp

from r1jax.types import Array, Counts


def as_float(x: Array) -> Array:
    """`x` in float32, or in its own type where that is wider (bfloat16 is widened).

    Integers and booleans get jax's default float type, float64 under `jax.enable_x64`.
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x.astype(float)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def inside(x: Array, mask: Array) -> Array:
    """`x` where `mask` is set, elsewhere 0, in at least float32.

    Put in front of any arithmetic, this keeps whatever the padding holds (NaN, inf)
    out of the value and out of the gradient. Masking the result instead would not:
    the gradient of the arithmetic is then 0 · NaN.
    """
    return jnp.where(mask, as_float(x), 0)


def divisors(mask_BT: Array, whole: Counts | None) -> Counts:
    """What sums over rows and over tokens are divided by to become means.

    These are the counts of `whole` or, without it, of the arrays at hand: all rows, and
    the tokens under the mask. Never below 1, so that a batch with nothing in it has
    the mean 0 instead of NaN.
    """
    if whole is None:
        whole = Counts(rows=mask_BT.shape[0], tokens=jnp.sum(mask_BT))
    return Counts(*(jnp.maximum(as_float(count), 1) for count in whole))
