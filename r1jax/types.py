"""Array dataclasses that cross module borders, and the axis letters.

Array names end in their axes, one letter each:

    B sequences (rows)   P prompts   G group (samples of one prompt)   T tokens
    V vocabulary         L layers    D model width                     F feed-forward
    H query heads        K key-value heads
    lower case for what is left (h: head width, s: cache slots)

`logp_BT` is therefore a float32 array of log-probabilities (nats), rows by tokens.
Host-side numpy arrays follow the same rule.
"""

from typing import NamedTuple

import jax
import numpy as np

Array = jax.Array | np.ndarray


class Counts(NamedTuple):
    """How large the whole batch is that a micro-batch is part of.

    Losses divide by these instead of by their own size, so that the sum over
    micro-batches of every loss and metric is the value of the whole batch, however
    it was cut and padded.
    """

    rows: Array | int  # sequences, empty ones included, padding rows excluded
    tokens: Array | int  # trained tokens (mask entries that are 1)
