"""What a stage that makes a file in batches has made so far."""

import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np

from r1jax.data.sources import fingerprint

log = logging.getLogger("r1jax")


class BatchProgress:
    """Rows of the batches done, on disk; a context manager for adding more.

    A file of JSON lines: what it is about; then the rows of each batch and, behind them, that
    it is complete, with its counts. What a kill left of a batch is cut off when it is opened
    again. A file about something else is begun anew.

    Attributes:
      batches: the counts of the complete batches.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]):
        self.path, self.batches = path, []
        self._about = json.loads(json.dumps(about))  # tuples are lists in a file
        self._file = None

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        end = self._read() if self.path.exists() else 0
        self._file = self.path.open("ab")
        self._file.truncate(end)
        if not end:
            self._write([{"about": self._about}])
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, rows: Iterable[Mapping], counts: Mapping[str, int]) -> None:
        """Another batch is complete."""
        self._write([*rows, {"batch": len(self.batches), "counts": dict(counts)}])
        self.batches.append(dict(counts))

    def finish(self, path: Path, more: Iterable[Mapping] = ()) -> None:
        """Writes the rows of all batches, then `more`, to `path`; a reader finds all or nothing.

        Then the progress is deleted.
        """
        temporary = path.with_name(path.name + ".tmp")
        with self.path.open("rb") as lines, temporary.open("wb") as out:
            for line in lines:
                if not json.loads(line).keys() & {"about", "batch"}:
                    out.write(line)
            out.write(_lines(more))
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, path)
        self.path.unlink()

    def _read(self) -> int:
        """Takes down the complete batches; where in the file they end."""
        end = at = 0
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines):
                at += len(line)
                try:
                    row = json.loads(line) if line.endswith(b"\n") else None
                except ValueError:
                    row = None
                if not isinstance(row, dict):
                    break  # a kill's
                if number == 0:
                    if row.get("about") != self._about:
                        log.warning("%s is of another run of this stage; beginning anew", self.path)
                        return 0
                    end = at
                if "batch" in row:
                    self.batches.append(row["counts"])
                    end = at
        return end

    def _write(self, rows: Iterable[Mapping]) -> None:
        self._file.write(_lines(rows))
        self._file.flush()
        os.fsync(self._file.fileno())


def signature(params) -> str:
    """A few numbers of every weight, hashed (hex): training has changed them, if only a little.

    The same for every mesh.
    """

    def few(x) -> list[float]:
        row = x[(0,) * (x.ndim - 1)] if x.ndim else x.reshape(1)
        return np.asarray(row[:8], np.float32).tolist()

    leaves = jax.tree_util.tree_leaves_with_path(params)
    return fingerprint([{jax.tree_util.keystr(path): few(x) for path, x in leaves}])


def _lines(rows: Iterable[Mapping]) -> bytes:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return text.encode("utf-8", "replace")
