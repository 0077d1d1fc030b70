"""Rollouts on the host: joining them, and cutting them into micro-batches for an update."""

from collections.abc import Iterator, Sequence

import numpy as np

from r1jax.types import PolicyBatch, Rollout

LENGTH_MULTIPLE = 32  # responses are cut to a multiple of this: fewer shapes to compile


def join(rollouts: Sequence[Rollout]) -> Rollout:
    """Rollouts as one; prompts are left-padded to the widest."""
    width = max(r.prompt_BT.shape[1] for r in rollouts)
    padded = [
        r._replace(prompt_BT=np.pad(r.prompt_BT, ((0, 0), (width - r.prompt_BT.shape[1], 0))))
        for r in rollouts
    ]
    return Rollout(*(np.concatenate(x) for x in zip(*padded, strict=True)))


def cut(rollout: Rollout, rows_b: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Micro-batches of rows alike in length: (`size` rows, padded with -1; response columns).

    Long rows come first, so that each micro-batch is only as wide as its own longest.
    """
    length_B, widest = rollout.length_B, rollout.tokens_BT.shape[1]
    by_length = rows_b[np.argsort(-length_B[rows_b], kind="stable")]
    for at in range(0, len(by_length), size):
        micro_b = by_length[at : at + size]
        R = int(length_B[micro_b].max())
        padded_b = np.pad(micro_b, (0, size - len(micro_b)), constant_values=-1)
        yield padded_b, min(R + -R % LENGTH_MULTIPLE, widest)


def policy_batch(
    rollout: Rollout, rows_b: np.ndarray, R: int, adv_B: np.ndarray, ref_logp_BT: np.ndarray | None
) -> PolicyBatch:
    """The given rows with R response columns; rows -1 are padding, without mask or advantage."""
    real = (rows_b >= 0).astype(np.float32)
    width = rollout.prompt_BT.shape[1]
    mask_BR = (np.arange(R)[None, :] < rollout.length_B[rows_b][:, None]) * real[:, None]
    return PolicyBatch(
        tokens_BT=np.concatenate(
            [rollout.prompt_BT[rows_b], rollout.tokens_BT[rows_b, :R]], axis=1
        ),
        start_B=(width - rollout.prompt_length_B[rows_b]).astype(np.int32),
        old_logp_BR=rollout.logp_BT[rows_b, :R],
        ref_logp_BR=None if ref_logp_BT is None else ref_logp_BT[rows_b, :R],
        adv_B=adv_B[rows_b] * real,
        mask_BR=mask_BR.astype(np.float32),
    )
