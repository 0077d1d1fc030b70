"""Axis checks that read the axes off the array names."""

import numpy as np


def check_axes(**arrays) -> dict[str, int]:
    """Check that arrays agree on their axes; return the size of each axis letter.

    Every keyword ends in its axes (`logp_BT`, `adv_B`), as `r1jax.types` defines them:
    one letter an axis. Only shapes are read, so the check costs nothing under `jit`.

    Raises:
        ValueError: an array has another number of axes than its name says, or two
            arrays give different sizes to one letter.
    """
    sizes: dict[str, int] = {}
    first: dict[str, str] = {}
    for name, array in arrays.items():
        axes = name.rsplit("_", 1)[-1]
        shape = np.shape(array)
        if len(shape) != len(axes):
            wanted = "axis" if len(axes) == 1 else "axes"
            raise ValueError(
                f"{name} has shape {shape}, but needs {len(axes)} {wanted} ({', '.join(axes)})"
            )
        for axis, size in zip(axes, shape, strict=True):
            if sizes.setdefault(axis, size) != size:
                raise ValueError(
                    f"{name} has shape {shape}: its axis {axis} is {size}, "
                    f"but {sizes[axis]} in {first[axis]}"
                )
            first.setdefault(axis, name)
    return sizes
