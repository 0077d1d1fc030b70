"""What a run writes as it goes: metrics.jsonl, samples.jsonl, TensorBoard events, a progress bar.

A line of metrics.jsonl is one object: `step`, `stage`, `wall_s`, then flat metrics. On
resume the lines after the checkpoint are dropped, since the steps that wrote them run
again; so the file reads as if nothing had stopped.
"""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm


class Writer:
    """Writes the metrics and samples of one run; use as a context manager."""

    def __init__(self, workdir: str | Path, *, tensorboard: bool = True, progress: bool = True):
        self.workdir = Path(workdir)
        self.progress = progress
        self._start = time.monotonic() - _last_wall(self.workdir / "metrics.jsonl")
        self._events = None
        if tensorboard:
            # Not SummaryWriter: its thread dies on a full disk, and the next metrics then wait
            # for it for ever.
            from tensorboardX.event_file_writer import EventsWriter

            folder = self.workdir / "tensorboard"
            folder.mkdir(exist_ok=True)
            self._events = EventsWriter(str(folder / "events"), f".{os.getpid()}")
        self._files = {}

    def __enter__(self):
        return self

    def __exit__(self, kind=None, *_):
        # On a full disk closing fails too; that must not hide what the run ends for.
        hidden = (OSError,) if kind else ()
        with contextlib.suppress(*hidden), contextlib.ExitStack() as stack:
            for file in self._files.values():
                stack.callback(file.close)
            if self._events is not None:
                stack.callback(self._events.close)

    def metrics(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """One line of metrics.jsonl; non-finite values are written as null."""
        values = {k: _number(v) for k, v in values.items()}
        wall = round(time.monotonic() - self._start, 3)
        self._line("metrics.jsonl", {"step": step, "stage": stage, "wall_s": wall} | values)
        if self._events is not None:
            self._scalars(stage, step, values)

    def _scalars(self, stage: str, step: int, values: Mapping[str, float | None]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        with _mend(self.workdir / "tensorboard"):
            for name, value in values.items():
                if value is not None:
                    summary = scalar(f"{stage}/{name}".replace("@", "_at_"), value)
                    event = Event(wall_time=time.time(), step=step, summary=summary)
                    self._events.write_event(event)
            self._events.flush()

    def sample(self, stage: str, step: int, sample: Mapping) -> None:
        """One line of samples.jsonl."""
        self._line("samples.jsonl", {"step": step, "stage": stage} | dict(sample))

    def _line(self, name: str, row: dict) -> None:
        with _mend(self.workdir / name):
            if name not in self._files:
                self._files[name] = (self.workdir / name).open("a", encoding="utf-8")
            self._files[name].write(json.dumps(row, ensure_ascii=False) + "\n")
            self._files[name].flush()

    def rewind(self, stage: str, step: int) -> None:
        """Drops the lines of `stage` from after `step`, and torn last lines."""
        for name in ("metrics.jsonl", "samples.jsonl"):
            path = self.workdir / name
            if name in self._files:
                self._files.pop(name).close()
            if not path.exists():
                continue
            kept = [r for r in read_lines(path) if r["stage"] != stage or r["step"] <= step]
            replace(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in kept))

    def bar(
        self, total: int | None, description: str, *, done: int = 0, unit: str = "step"
    ) -> tqdm:
        """`progress_bar`, unless the run is to be silent."""
        return progress_bar(total, description, done=done, unit=unit, disable=not self.progress)


def progress_bar(
    total: int | None, description: str, *, done: int = 0, unit: str = "step", disable: bool = False
) -> tqdm:
    """A progress bar on stderr (plain lines now and then where it is no terminal)."""
    return tqdm(
        total=total, desc=description, initial=done, unit=unit, file=sys.stderr, disable=disable,
        dynamic_ncols=True, mininterval=0.2 if sys.stderr.isatty() else 10.0,
    )  # fmt: skip


@contextlib.contextmanager
def _mend(path: Path):
    try:
        yield
    except OSError as error:
        raise OSError(
            f"writing {path} failed: {error}. Free some space and run the same command again "
            "to go on from the newest checkpoint"
        ) from error


def replace(path: Path, content: str | bytes) -> None:
    """Writes a whole file, so that a reader or a crash finds the old one or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(temporary, path)


def read_lines(path: str | Path) -> list[dict]:
    """Rows of a JSON-lines file; a torn last line (a killed run's, without its end) is left out.

    Raises ValueError, naming file and line, for any other line that is no JSON.
    """
    rows = []
    # Bytes: a character may be torn too. Not splitlines(), which for texts also splits at U+2028
    # and its like, which a model may write.
    for number, line in enumerate(Path(path).read_bytes().split(b"\n")[:-1], start=1):
        try:
            rows.append(json.loads(line.decode()))
        except ValueError as error:  # of the JSON or of the UTF-8
            raise ValueError(
                f"{path}, line {number} is no JSON ({error}): restore the file from a copy, or "
                "mend or delete the line"
            ) from error
    return rows


def _last_wall(path: Path) -> float:
    rows = read_lines(path) if path.exists() else []
    return rows[-1].get("wall_s", 0.0) if rows else 0.0


def _number(value) -> float | int | None:
    value = value if isinstance(value, int) else float(value)
    return value if math.isfinite(value) else None
