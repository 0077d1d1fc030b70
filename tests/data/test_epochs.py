"""Batches of packed documents, epoch by epoch."""

from r1jax.data.epochs import Epochs
from r1jax.data.packing import Document

# Ten documents of four tokens: rows of eight hold two, so an epoch has five rows.
DOCUMENTS = [Document([i] * 4, 1) for i in range(10)]


def epochs(seed=0, batch_rows=2):
    return Epochs(DOCUMENTS, row_tokens=8, batch_rows=batch_rows, epochs=3, seed=seed)


def test_whole_batches_of_every_epoch():
    found = epochs()
    assert found.steps == [2, 2, 2] and len(found) == 6  # the fifth row fills no batch
    for epoch in range(3):
        rows = [row for step in (0, 1) for row in found.batch(2 * epoch + step)]
        assert [len(row) for row in rows] == [2] * 4
        assert len({i for row in rows for i in row}) == 8  # none twice
    assert len(epochs(batch_rows=6)) == 0


def test_a_batch_is_a_function_of_seed_and_step():
    found = epochs()
    forwards = [found.batch(step) for step in range(6)]
    assert [found.batch(step) for step in reversed(range(6))] == forwards[::-1]
    assert [epochs().batch(step) for step in range(6)] == forwards
    assert forwards[:2] != forwards[2:4]  # an order of its own for each epoch
    assert [epochs(seed=1).batch(step) for step in range(6)] != forwards
