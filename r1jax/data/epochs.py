"""Documents in packed rows, epoch by epoch: what every training on given texts goes through."""

from collections.abc import Mapping, Sequence

from r1jax.data.packing import Document, plan
from r1jax.data.sources import problem_order
from r1jax.run import Run


class Epochs:
    """Every epoch packs the documents in an order of its own, a function of the seed; the rows
    that do not fill a last batch are dropped.

    Attributes:
      documents: in the order of their indices.
      steps: batches of each epoch.
    """

    def __init__(
        self, documents: Sequence[Document], *, row_tokens: int, batch_rows: int, epochs: int,
        seed: int,
    ):  # fmt: skip
        self.documents, self._seed = documents, seed
        self._row_tokens, self._batch_rows = row_tokens, batch_rows
        self.steps = [len(self._rows(e)) // batch_rows for e in range(epochs)]
        self._at = [(e, at) for e, count in enumerate(self.steps) for at in range(count)]
        self._now: tuple[int, list[list[int]]] = (-1, [])  # the epoch asked for last

    def __len__(self) -> int:
        return len(self._at)

    def batch(self, step: int) -> list[list[int]]:
        """The rows of a step, counted from 0, as indices of documents."""
        epoch, at = self._at[step]
        if epoch != self._now[0]:
            self._now = epoch, self._rows(epoch)
        return self._now[1][at * self._batch_rows : (at + 1) * self._batch_rows]

    def _rows(self, epoch: int) -> list[list[int]]:
        order = problem_order(len(self.documents), self._seed, epoch)
        packed = plan([len(self.documents[i].tokens) for i in order], self._row_tokens)
        return [[int(order[i]) for i in row] for row in packed]


def example_epochs(
    run: Run, examples: Sequence[Mapping[str, str]], *, row_tokens: int, batch_rows: int,
    epochs: int,
) -> Epochs:  # fmt: skip
    """The Epochs of examples. Raises ValueError for one longer than a row, and for too few for a
    single batch."""
    documents = [run.document(e["question"], e["response"]) for e in examples]
    found = Epochs(
        documents, row_tokens=row_tokens, batch_rows=batch_rows, epochs=epochs, seed=run.seed
    )
    if not all(found.steps):
        raise ValueError(
            f"{len(examples)} examples fill fewer than batch_rows={batch_rows} rows of "
            f"row_tokens={row_tokens}; lower one of them"
        )
    return found
