"""Problem sources: where questions and their true answers come from, and in which order.

A problem is a plain dict with the strings 'id' (unique in its source), 'question' and
'answer' (bare, readable by `rewards.math`). A bad row stops the loading with a message that
names the file, the line, the field and the mend: better now than as a reward of 0 later.
"""

import difflib
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from itertools import islice
from typing import Any

import numpy as np

from r1jax.data.tasks import TASKS
from r1jax.rewards.math import check_gold

Problem = dict[str, str]
Row = tuple[str, str, Mapping[str, Any]]  # where it stands (for errors), fallback id, fields

# Files in r1jax/data/tasks.
BENCHMARKS: dict[str, str] = {
    "mini_aime": "mini_aime_test.jsonl",
    "mini_aime_dev": "mini_aime_dev.jsonl",
}

_QUESTION = ("question", "problem")
_ANSWER = ("answer", "final_answer")
GSM8K_MARK = "####"  # in GSM8K the answer field is a worked solution, the result after this


def load_problems(source: str, *, limit: int | None = None) -> list[Problem]:
    """Reads the problems of a source, in its order.

    Args:
      source: one of
        - a name in BENCHMARKS;
        - `task:NAME:COUNT`, training problems of a synthetic family in `data.tasks`;
        - `tfds:NAME[/config]:SPLIT`, a TensorFlow dataset in the array_record format, read
          without TensorFlow (TFDS_DATA_DIR says where it lies);
        - the path of a .jsonl file, one object a line.
      limit: read only so many problems from the start. None reads all.

    The question is the field `question` or `problem`. The answer is `answer` or
    `final_answer`, a string or an integer; where it holds `####` (GSM8K) what follows the
    last one, without commas. The id is the field `id` if there is one, otherwise the name of
    the source and the number of the line.

    Raises:
      ValueError: the source or a row cannot be used; says which, where and what to do.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} leaves nothing to read; use 1 or more, or None for all")
    rows = _rows(source)
    problems: list[Problem] = []
    seen: dict[str, str] = {}
    for where, name, fields in islice(rows, limit):
        problem = _problem(where, name, fields)
        if problem["id"] in seen:
            raise ValueError(
                f"{where}: id {problem['id']!r} was already used at {seen[problem['id']]}; "
                "give every problem an id of its own"
            )
        seen[problem["id"]] = where
        problems.append(problem)
    if not problems:
        raise ValueError(f"{source}: there are no problems in it; expected one JSON object a line")
    return problems


def benchmark_name(source: str) -> str:
    """The `<benchmark>` of metric names: a known name, or the file's stem."""
    return source if source in BENCHMARKS else pathlib.Path(source.replace(":", "_")).stem


def fingerprint(problems: Sequence[Mapping[str, Any]]) -> str:
    """SHA-256 (hex) of the rows in their order; the order of fields does not matter."""
    digest = hashlib.sha256()
    for problem in problems:
        digest.update(json.dumps(dict(problem), sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


# --- order -----------------------------------------------------------------------------


def problem_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order of n problems in an epoch: an int64 permutation, fixed by its arguments.

    Sorts the raw output of a bit generator, which numpy promises to keep between versions,
    unlike its shuffles.
    """
    _check_non_negative(n=n, seed=seed, epoch=epoch)
    return np.argsort(np.random.PCG64([seed, epoch]).random_raw(n), kind="stable")


def batch_indices(n: int, batch: int, step: int, seed: int) -> np.ndarray:
    """Indices (int64, [batch]) of the step-th batch of an endless, reshuffled stream.

    The stream is problem_order(n, seed, 0), problem_order(n, seed, 1), … end to end, and
    step s takes the positions [s·batch, (s+1)·batch). So each epoch has every problem once,
    and a run that resumes at step s needs to know nothing but s. A batch may straddle two
    epochs, and then hold a problem twice, once from each.

    Raises:
      ValueError: n or batch below 1; a negative step or seed.
    """
    if n < 1 or batch < 1:
        raise ValueError(f"n={n} problems in batches of {batch}: both must be at least 1")
    _check_non_negative(step=step, seed=seed)
    first, last = step * batch, (step + 1) * batch - 1  # positions in the stream
    epochs = range(first // n, last // n + 1)
    stream = np.concatenate([problem_order(n, seed, epoch) for epoch in epochs])
    return stream[first - epochs[0] * n :][:batch]


def _check_non_negative(**values: int) -> None:
    for name, value in values.items():
        if value < 0:
            raise ValueError(f"{name}={value} is negative; use 0 or more")


# --- rows ------------------------------------------------------------------------------


def _rows(source: str) -> Iterator[Row]:
    if source.startswith("tfds:"):
        return _tfds_rows(source)
    if source.startswith("task:"):
        return _task_rows(source)
    if source in BENCHMARKS:
        file = resources.files("r1jax") / "data" / "tasks" / BENCHMARKS[source]
        shown = f"r1jax/data/tasks/{BENCHMARKS[source]}"
    else:
        file, shown = pathlib.Path(source), source
    if not file.is_file():
        close = difflib.get_close_matches(source, BENCHMARKS, n=1)
        raise ValueError(
            f"{shown}: there is no such file; give the path of a .jsonl file, "
            f"tfds:NAME:SPLIT, task:NAME:COUNT, or one of {', '.join(BENCHMARKS)}"
            + (f" (did you mean {close[0]!r}?)" if close else "")
        )
    return _jsonl_rows(shown, file)


def _task_rows(source: str) -> Iterator[Row]:
    """Training problems of a synthetic family; part of its definition, so of no seed but 0."""
    _, name, count = [*source.split(":"), "", ""][:3]
    if name not in TASKS or not count.isdecimal() or int(count) < 1:
        raise ValueError(
            f"{source}: write task:NAME:COUNT, e.g. task:mini_aime:4096; names: {', '.join(TASKS)}"
        )
    for i, problem in enumerate(TASKS[name].problems(0, int(count)), start=1):
        yield f"{source}, problem {i}", problem["id"], problem


def _jsonl_rows(name: str, file: Traversable) -> Iterator[Row]:
    """Rows of a file, called `name` in errors. Blank lines are skipped and still counted."""
    stem = pathlib.PurePath(name).stem
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{name}, line {number}"
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")  # byte order mark
            if not line.strip():
                continue
            try:
                fields = json.loads(line.decode())
            except (ValueError, RecursionError) as error:  # bad UTF-8 is a ValueError too
                raise ValueError(
                    f"{where}: not JSON ({error}); write one object a line, in UTF-8"
                ) from error
            if not isinstance(fields, dict):
                raise ValueError(
                    f"{where}: not an object but {_kind(fields)}; "
                    'write {"question": …, "answer": …} on each line'
                )
            yield where, f"{stem}/{number}", fields


def _tfds_rows(source: str) -> Iterator[Row]:
    head, bracket, part = source.removeprefix("tfds:").partition("[")  # train[:10%] has a colon
    name, _, split = head.rpartition(":")
    if not name or not split:
        raise ValueError(f"{source}: no dataset or no split in it; write tfds:NAME[/config]:SPLIT")
    split += bracket + part
    try:
        import tensorflow_datasets as tfds  # slow to import, and wanted by few
    except ImportError as error:
        raise ValueError(f"{source} needs tensorflow_datasets ({error}); install it") from error
    try:
        records = tfds.data_source(name, split=split)
    except Exception as error:  # its errors have no common base
        raise ValueError(
            f"{source}: tensorflow_datasets cannot open it ({error}); check the name, the split "
            "and TFDS_DATA_DIR, and prepare it with file_format='array_record'"
        ) from error
    for number in range(len(records)):
        where = f"{source}, row {number + 1}"
        record = records[number].items()
        fields = {field: _from_tfds(where, field, value) for field, value in record}
        yield where, f"{name}/{split}/{number + 1}", fields


def _from_tfds(where: str, field: str, value: Any) -> Any:
    """Text arrives as bytes and integers as numpy scalars."""
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: field {field!r} is not UTF-8 text ({error})") from error


# --- fields ----------------------------------------------------------------------------


def _problem(where: str, name: str, fields: Mapping[str, Any]) -> Problem:
    question = _text(where, fields, _present(where, fields, _QUESTION))
    answer_field = _present(where, fields, _ANSWER)
    answer = _text(where, fields, answer_field, integer=True)
    identity = _text(where, fields, "id", integer=True) if "id" in fields else name
    if GSM8K_MARK in answer:
        answer = answer.rpartition(GSM8K_MARK)[2].strip().replace(",", "")
    try:
        check_gold(answer)
    except ValueError as error:
        raise ValueError(f"{where}: field {answer_field!r}: {error}") from error
    return {"id": identity, "question": question, "answer": answer}


def _present(where: str, fields: Mapping[str, Any], names: Sequence[str]) -> str:
    """The first of `names` that is a field."""
    for name in names:
        if name in fields:
            return name
    wanted = " or ".join(map(repr, names))
    there = ", ".join(map(repr, fields)) or "none"
    raise ValueError(f"{where}: no field {wanted} (fields there: {there}); add or rename one")


def _text(where: str, fields: Mapping[str, Any], name: str, *, integer: bool = False) -> str:
    """A field as text that is not blank. An integer becomes its digits, where allowed."""
    value = fields[name]
    if integer and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        wanted = "a string or an integer" if integer else "a string"
        raise ValueError(f"{where}: field {name!r} is {_kind(value)}; write it as {wanted}")
    if not value.strip():
        raise ValueError(f"{where}: field {name!r} is empty; fill it in or delete the row")
    if any("\ud800" <= char <= "\udfff" for char in value):  # JSON can spell half a character
        raise ValueError(f"{where}: field {name!r} holds a lone surrogate; write valid Unicode")
    return value


def _kind(value: Any) -> str:
    """A value and its type, short enough for a message."""
    if value is None:
        return "null"
    shown = repr(value)
    return f"{type(value).__name__} {shown if len(shown) <= 40 else shown[:37] + '...'}"
