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


class Rollout(NamedTuple):
    """Responses on the host, row-major over prompts × group."""

    prompt_BT: np.ndarray  # int32, left-padded
    prompt_length_B: np.ndarray
    tokens_BT: np.ndarray  # int32 response, end token included, right-padded
    logp_BT: np.ndarray  # float32, of the distribution sampled from; 0 on padding
    length_B: np.ndarray  # response tokens, end token included
    truncated_B: np.ndarray  # bool: stopped at max_tokens without an end token

    @property
    def mask_BT(self) -> np.ndarray:
        columns = np.arange(self.tokens_BT.shape[1])
        return (columns[None, :] < self.length_B[:, None]).astype(np.float32)


class TrainState(NamedTuple):
    params: dict
    opt_state: tuple
    step: Array  # int32 scalar: updates made


class PolicyBatch(NamedTuple):
    """X packed rows of T tokens that hold N responses each, of at most R tokens.

    A row is prompts, each followed by responses to it; a prompt stands there once for all of
    them. Segments number prompts and responses; responses name their prompt's segment as
    prefix, prompts their own. What a row has no use for is padding: segment 0, mask 0.
    """

    tokens_XT: Array
    positions_XT: Array
    segments_XT: Array
    prefix_XT: Array | None  # None: every response has its prompt, in one segment
    before_XT: Array  # where the token stands that predicts this one
    at_XNR: Array  # where a response's tokens stand
    mask_XNR: Array  # 1 on response tokens, the end token included
    adv_XN: Array
    old_logp_XNR: Array
    ref_logp_XNR: Array | None
    pairs_Xn2: Array | None  # for attention by blocks (`models.blocks`)
