import numpy as np
import pytest

from r1jax.data.packing import Document, pack, plan


def first_fit(lengths, size):
    """The rule, said again in plain Python."""
    rows = []
    for i, length in enumerate(lengths):
        row = next((r for r in rows if sum(lengths[j] for j in r) + length <= size), None)
        if row is None:
            rows.append(row := [])
        row.append(i)
    return rows


@pytest.mark.parametrize(
    ("lengths", "rows"),
    [
        ([], []),
        ([10], [[0]]),
        ([6, 6, 4], [[0, 2], [1]]),  # the third goes back into the first row
        ([5, 5, 5, 5], [[0, 1], [2, 3]]),  # exactly full
        ([9, 2, 1, 8], [[0, 2], [1, 3]]),
    ],
)
def test_plan_by_hand(lengths, rows):
    assert plan(lengths, 10) == rows


def test_plan_is_first_fit():
    rng = np.random.default_rng(0)
    for _ in range(20):
        lengths = rng.integers(1, 40, rng.integers(1, 60)).tolist()
        rows = plan(lengths, 40)
        assert rows == first_fit(lengths, 40)
        assert sorted(i for row in rows for i in row) == list(range(len(lengths)))


def test_a_document_longer_than_a_row():
    with pytest.raises(ValueError, match="document 2 has 11 tokens, more than the 10 of a row"):
        plan([10, 1, 11], 10)


def test_pack_by_hand():
    documents = [
        Document([1, 5, 6, 2], 2), Document([1, 7, 2], 1), Document([1, 8], 2), Document([9], 1)
    ]  # fmt: skip
    packed = pack(documents, [[1, 0], [2]], 8)
    assert packed.tokens_BT.tolist() == [[1, 7, 2, 1, 5, 6, 2, 0], [1, 8, 0, 0, 0, 0, 0, 0]]
    assert packed.segments_BT.tolist() == [[1, 1, 1, 2, 2, 2, 2, 0], [1, 1, 0, 0, 0, 0, 0, 0]]
    assert packed.positions_BT.tolist() == [[0, 1, 2, 0, 1, 2, 3, 0], [0, 1, 0, 0, 0, 0, 0, 0]]
    assert packed.mask_BT.tolist() == [[0, 1, 1, 0, 0, 1, 1, 0], [0] * 8]
    dtypes = [x.dtype for x in packed]
    assert dtypes == [np.int32, np.int32, np.int32, np.float32]


def test_documents_can_be_read_back():
    rng = np.random.default_rng(1)
    documents = [
        Document(rng.integers(1, 99, n).tolist(), int(rng.integers(1, n + 1)))
        for n in rng.integers(1, 20, 50)
    ]
    rows = plan([len(d.tokens) for d in documents], 20)
    packed = pack(documents, rows, 20)
    for r, members in enumerate(rows):
        for segment, i in enumerate(members, start=1):
            inside = packed.segments_BT[r] == segment
            assert packed.tokens_BT[r, inside].tolist() == documents[i].tokens
            assert packed.positions_BT[r, inside].tolist() == list(range(inside.sum()))
            trained = packed.mask_BT[r, inside] == 1
            assert trained.tolist() == [t >= documents[i].prompt for t in range(inside.sum())]
        assert (packed.segments_BT[r] > 0).sum() == sum(len(documents[i].tokens) for i in members)
    padding = packed.segments_BT == 0
    assert not packed.mask_BT[padding].any() and not packed.tokens_BT[padding].any()


def test_a_documents_first_token_is_never_trained_on():
    # Nothing of its own stands before it: what would predict it is another document's end.
    packed = pack([Document([5, 6], 0), Document([7, 8], 0)], [[0, 1]], 6)
    assert packed.mask_BT.tolist() == [[0, 1, 0, 1, 0, 0]]


def test_rows_without_documents():
    packed = pack([], [[], []], 4)
    assert all(x.shape == (2, 4) and not x.any() for x in packed)
