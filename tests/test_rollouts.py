import numpy as np
import pytest

from r1jax.rollouts import LENGTH_MULTIPLE, cut, join, policy_batch
from r1jax.types import Rollout


def rollout(lengths, width=4, longest=70, first=100):
    """Row i has the prompt [first + i] * (1 + i % width) and the response tokens 1, 2, …"""
    B, lengths = len(lengths), np.array(lengths, np.int32)
    prompt_BT, prompt_length_B = np.zeros((B, width), np.int32), 1 + np.arange(B) % width
    for i, n in enumerate(prompt_length_B):
        prompt_BT[i, width - n :] = first + i
    inside = np.arange(longest)[None, :] < lengths[:, None]
    tokens_BT = np.where(inside, 1 + np.arange(longest)[None, :], 0).astype(np.int32)
    logp_BT = np.where(inside, -0.5 - np.arange(B)[:, None], 0).astype(np.float32)
    return Rollout(prompt_BT, prompt_length_B, tokens_BT, logp_BT, lengths, lengths == longest)


def test_mask_is_the_response():
    mask = rollout([3, 0, 5], longest=5).mask_BT
    assert mask.tolist() == [[1, 1, 1, 0, 0], [0] * 5, [1] * 5] and mask.dtype == np.float32


def test_joined_rollouts_keep_their_rows():
    a, b = rollout([1, 2], width=4), rollout([3, 4, 5], width=7, first=200)
    both = join([a, b])
    assert both.prompt_BT.shape == (5, 7)
    assert both.prompt_BT[:2].tolist() == [[0] * 6 + [100], [0] * 5 + [101] * 2]
    np.testing.assert_array_equal(both.prompt_BT[2:], b.prompt_BT)
    for name in ("prompt_length_B", "tokens_BT", "logp_BT", "length_B", "truncated_B"):
        expected = np.concatenate([getattr(a, name), getattr(b, name)])
        np.testing.assert_array_equal(getattr(both, name), expected)


@pytest.mark.parametrize("size", [1, 3, 4, 5, 16])
def test_micro_batches_hold_every_row_once_the_long_ones_first(size):
    lengths = [5, 40, 70, 1, 33, 0, 32, 64]
    chosen = np.array([0, 1, 2, 4, 6, 7, 5])  # all but row 3
    parts = list(cut(rollout(lengths), chosen, size))
    rows = np.concatenate([rows_b for rows_b, _ in parts])
    real = rows[rows >= 0]
    assert sorted(real) == sorted(chosen)
    assert [lengths[i] for i in real] == [70, 64, 40, 33, 32, 5, 0]
    assert (rows < 0).sum() == -len(chosen) % size
    for rows_b, R in parts:
        longest = max(lengths[i] for i in rows_b if i >= 0)
        assert len(rows_b) == size and longest <= R <= 70
        assert R - longest < LENGTH_MULTIPLE and (R % LENGTH_MULTIPLE == 0 or R == 70)


def test_a_micro_batch_has_its_rows_and_nothing_of_the_padding():
    r = rollout([2, 40, 3], width=4)
    adv_B, ref_logp_BT = np.array([0.5, -1.0, 2.0], np.float32), r.logp_BT - 1
    batch = policy_batch(r, np.array([2, 0, -1]), 5, adv_B, ref_logp_BT)
    assert batch.tokens_BT[:2].tolist() == [
        [0, 102, 102, 102, 1, 2, 3, 0, 0], [0, 0, 0, 100, 1, 2, 0, 0, 0]
    ]  # fmt: skip
    assert batch.start_B[:2].tolist() == [1, 3]  # the first prompt token
    assert batch.mask_BR.tolist() == [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [0] * 5]
    assert batch.adv_B.tolist() == [2.0, 0.5, 0.0]
    assert batch.old_logp_BR[0].tolist() == [-2.5, -2.5, -2.5, 0, 0]
    np.testing.assert_array_equal(batch.ref_logp_BR[:2], ref_logp_BT[[2, 0], :5])
    assert policy_batch(r, np.array([1]), 64, adv_B, None).ref_logp_BR is None
