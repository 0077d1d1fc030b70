"""Problem sources: where questions and their true answers come from, and in which order.

A problem is a plain dict that JSON can hold:
    id        unique in its source
    question  what the model is asked
    answer    bare text; for code the empty string, for open requests a reference or that
    grader    'math' (also when absent), 'choice' (the answer is a letter from A to J, the
              question lists the options), 'code', or 'open' (no one answer is right)
    language, tests, limits   what the judge of code needs (`rewards.code`)
    checks    demands on the final answer that a program can verify (`rewards.checks`); all met
              is what solves an open request
    avoid     words that may stand nowhere in the response
    reply_in  a language of `rewards.language`, where it is not the question's
    source    the name of the format it was read by
A bad row stops the loading with a message that names the file, the line, the field and the
mend: better now than as a reward of 0 later.
"""

import difflib
import hashlib
import json
import pathlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from importlib import resources
from typing import Any

import numpy as np

from r1jax.data.benchmarks import FORMATS, GSM8K_MARK, after_mark
from r1jax.data.rows import Row, file_rows, kind, present, text, tfds_rows
from r1jax.data.tasks import TASKS
from r1jax.rewards.checks import check_fields
from r1jax.rewards.graders import GRADERS, grader_of
from r1jax.rewards.language import LANGUAGES

__all__ = [
    "BENCHMARKS", "FORMATS", "GSM8K_MARK", "Loaded", "Problem", "batch_indices",
    "benchmark_name", "benchmark_names", "check_problem", "checksum", "checksums", "fingerprint",
    "load", "load_benchmarks", "load_parts", "load_problems", "parse_mixture", "problem_order",
]  # fmt: skip

Problem = dict[str, Any]

# Files in r1jax/data/tasks.
BENCHMARKS: dict[str, str] = {
    "mini_aime": "mini_aime_test.jsonl",
    "mini_aime_dev": "mini_aime_dev.jsonl",
    "mini_world": "mini_world_test.jsonl",
    "mini_world_dev": "mini_world_dev.jsonl",
    "mini_general": "mini_general_test.jsonl",
    "mini_general_dev": "mini_general_dev.jsonl",
}

_QUESTION = ("question", "problem")
_ANSWER = ("answer", "final_answer")
_DEMANDS = ("checks", "avoid")
_SHOWN = 5  # unreadable answers in a message


@dataclass(frozen=True)
class Loaded:
    """What a source gave.

    Attributes:
      source: as it was named.
      problems: in the source's order.
      rows: how many rows were read for them.
      dropped: what was left out: `duplicate` (rows whose question came before), `conflicting`
        (questions with two different answers, left out altogether), `ungradable` (problems).
    """

    source: str
    problems: list[Problem]
    rows: int
    dropped: dict[str, int]


def load_problems(source: str, *, limit: int | None = None) -> list[Problem]:
    """Reads the problems of a source, in its order.

    Args:
      source: one of
        - a name in BENCHMARKS;
        - `task:NAME:COUNT`, training problems of a synthetic family in `data.tasks`;
        - `tfds:NAME[/config]:SPLIT`, a TensorFlow dataset in the array_record format, read
          without TensorFlow (TFDS_DATA_DIR says where it lies);
        - the path of a .jsonl file, one object a line; or of a .json file with a list of
          objects, a .csv file with a header, a .parquet file (needs pyarrow);
        - `NAME:PATH` or `NAME:tfds:…` with NAME in FORMATS: the published files of that
          benchmark or training set (`data.benchmarks`);
        - several of these, `SOURCE*WEIGHT + SOURCE*WEIGHT` (see `parse_mixture`): the problems
          of all, one source after the other. `data.mixing` draws from them by weight.
      limit: read only so many problems from the start, of each source. None reads all.

    Without a NAME, the question is the field `question` or `problem`. The answer is `answer`
    or `final_answer`, a string or an integer; where it holds `####` (GSM8K) what follows the
    last one, without commas; open requests need none. The fields `grader`, `language`, `tests`,
    `limits`, `checks`, `avoid`, `reply_in` and `source` are taken over. The id is the field `id`
    if there is one (after `NAME/`, where a format has a NAME), otherwise the name of the source
    and the number of the line.

    Raises:
      ValueError: the source or a row cannot be used; says which, where and what to do. Answers
        that no grader can read are counted first and reported together.
    """
    return [problem for part in load_parts(source, limit=limit) for problem in part.problems]


def load_parts(source: str, *, limit: int | None = None) -> list[Loaded]:
    """As `load_problems`, with what each part of a mixture gave."""
    parts = [load(part, limit=limit) for part, _ in parse_mixture(source)]
    seen: dict[str, str] = {}
    for part in parts:
        for problem in part.problems:
            if (first := seen.setdefault(problem["id"], part.source)) != part.source:
                raise ValueError(
                    f"{source}: id {problem['id']!r} is in {first} and in {part.source}; give "
                    "every problem a field 'id' of its own"
                )
    return parts


def load(source: str, *, limit: int | None = None, drop_ungradable: bool = False) -> Loaded:
    """As `load_problems`, of one source, with the counts of what was left out.

    Args:
      drop_ungradable: leave out, and count, problems whose answer no grader can read, instead
        of raising ValueError.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} leaves nothing to read; use 1 or more, or None for all")
    name, rest = _format(source)
    read, deduplicate = _problem, False
    if name:
        read, deduplicate = FORMATS[name].read, FORMATS[name].deduplicate
    kept: dict[str, tuple[str, Problem]] = {}  # by id: where, problem
    places: dict[str, str] = {}  # by id: where its answer stands
    questions: dict[str, Problem] = {}
    conflicting: set[str] = set()  # ids
    rows = duplicates = 0
    for where, fallback, fields in _rows(rest):
        rows += 1
        problem = _identified(where, name, fallback, read(where, fields))
        if deduplicate:
            first = questions.setdefault(" ".join(problem["question"].split()), problem)
            if first is not problem:
                duplicates += 1
                if first["answer"] != problem["answer"]:
                    conflicting.add(first["id"])
                continue
        if problem["id"] in kept:
            raise ValueError(
                f"{where}: id {problem['id']!r} was already used at {kept[problem['id']][0]}; "
                "give every problem an id of its own"
            )
        kept[problem["id"]] = where, problem
        places[problem["id"]] = where if name else f"{where}: field {_gold_field(fields)!r}"
        if len(kept) == limit:
            break
    found = [(places[i], problem) for i, (_, problem) in kept.items() if i not in conflicting]
    dropped = Counter(duplicate=duplicates, conflicting=len(conflicting))
    problems = _gradable(source, found, dropped if drop_ungradable else None)
    if not problems:
        raise ValueError(f"{source}: there are no problems in it; expected one JSON object a line")
    return Loaded(source, problems, rows, {why: n for why, n in dropped.items() if n})


def parse_mixture(source: str) -> list[tuple[str, Fraction]]:
    """(source, weight) of each part of `SOURCE*WEIGHT + SOURCE*WEIGHT + …`.

    The plus signs stand between spaces; a weight is a positive decimal number, 1 when absent.
    It is a share of the draws, whatever the sizes: `a.jsonl*2 + b.jsonl` takes two problems of
    a for each one of b.

    Raises:
      ValueError: an empty part, a weight of 0, the same source twice.
    """
    parts: dict[str, Fraction] = {}
    for part in re.split(r"\s\+\s", source):
        name, weight = part.strip(), Fraction(1)
        if match := re.fullmatch(r"(.*?)\s*\*\s*([0-9]+(?:\.[0-9]+)?)", name, re.DOTALL):
            name, weight = match[1], Fraction(match[2])
        if not name or name.startswith("+ ") or name.endswith(" +"):
            raise ValueError(
                f"{source!r}: a part has no source; write SOURCE*WEIGHT + SOURCE*WEIGHT"
            )
        if not weight:
            raise ValueError(
                f"{source!r}: the weight of {name} is 0; make it larger or leave it out"
            )
        if name in parts:
            raise ValueError(f"{source!r}: {name} is there twice; name it once, with one weight")
        parts[name] = weight
    return list(parts.items())


# --- names, what was read --------------------------------------------------------------


def benchmark_name(source: str) -> str:
    """The `<benchmark>` of metric names: a known name, a format's name, or the file's stem.

    Of a mixture those of its parts, joined.
    """
    if source in BENCHMARKS:
        return source
    parts = [part for part, _ in parse_mixture(source)]
    if parts != [source]:
        return "+".join(map(benchmark_name, parts))
    return _format(source)[0] or pathlib.Path(source.replace(":", "_")).stem


def benchmark_names(sources: Sequence[str]) -> list[str]:
    """`benchmark_name` of each; where several would share it, with their file's stem behind.

    Raises:
      ValueError: two are still the same.
    """
    counts = Counter(map(benchmark_name, sources))
    names = []
    for source in sources:
        name = benchmark_name(source)
        if counts[name] > 1 and _format(source)[0]:
            name = f"{name}_{benchmark_name(_format(source)[1])}"
        if name in names:
            raise ValueError(
                f"benchmarks {sources[names.index(name)]} and {source} are both called {name!r}; "
                "rename one of the files"
            )
        names.append(name)
    return names


def load_benchmarks(
    sources: Sequence[str], *, limit: int | None = None
) -> dict[str, list[Problem]]:
    """`load_problems` of each, by `benchmark_names`."""
    names = benchmark_names(sources)
    return {n: load_problems(s, limit=limit) for n, s in zip(names, sources, strict=True)}


def fingerprint(problems: Sequence[Mapping[str, Any]]) -> str:
    """SHA-256 (hex) of the rows in their order; the order of fields does not matter."""
    digest = hashlib.sha256()
    for problem in problems:
        digest.update(json.dumps(dict(problem), sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def checksum(path: str | pathlib.Path) -> str:
    """SHA-256 (hex) of a file's bytes. Raises OSError where it cannot be read."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksums(source: str) -> dict[str, str]:
    """`checksum` by path of every file that a source names; {} for tfds, tasks, BENCHMARKS."""
    paths = [_format(part)[1] for part, _ in parse_mixture(source)]
    return {
        path: checksum(path)
        for path in paths
        if path not in BENCHMARKS and not path.startswith(("tfds:", "task:"))
    }


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


def _format(source: str) -> tuple[str, str]:
    """(name of the format or '', the source behind it)."""
    name, colon, rest = source.partition(":")
    return (name, rest) if colon and name in FORMATS else ("", source)


def _rows(source: str) -> Iterator[Row]:
    if source.startswith("tfds:"):
        return tfds_rows(source)
    if source.startswith("task:"):
        return _task_rows(source)
    if source in BENCHMARKS:
        file = resources.files("r1jax") / "data" / "tasks" / BENCHMARKS[source]
        shown = f"r1jax/data/tasks/{BENCHMARKS[source]}"
    else:
        file, shown = pathlib.Path(source), source
    if not file.is_file():
        head = source.partition(":")[0]
        close = difflib.get_close_matches(head, [*BENCHMARKS, *FORMATS], n=1)
        raise ValueError(
            f"{shown}: there is no such file; give the path of a .jsonl file, NAME:PATH with a "
            f"name of {', '.join(FORMATS)}, tfds:NAME:SPLIT, task:NAME:COUNT, or one of "
            f"{', '.join(BENCHMARKS)}" + (f" (did you mean {close[0]!r}?)" if close else "")
        )
    return file_rows(shown, file)


def _task_rows(source: str) -> Iterator[Row]:
    """Training problems of a synthetic family; part of its definition, so of no seed but 0."""
    _, name, count = [*source.split(":"), "", ""][:3]
    if name not in TASKS or not count.isdecimal() or int(count) < 1:
        raise ValueError(
            f"{source}: write task:NAME:COUNT, e.g. task:mini_aime:4096; names: {', '.join(TASKS)}"
        )
    for i, problem in enumerate(TASKS[name].problems(0, int(count)), start=1):
        yield f"{source}, problem {i}", problem["id"], problem


# --- problems --------------------------------------------------------------------------


def _problem(where: str, fields: Mapping[str, Any]) -> Problem:
    """A problem from a row of the project's own fields."""
    question = text(where, fields, present(where, fields, _QUESTION))
    grader = fields.get("grader", "math")
    if not isinstance(grader, str) or grader not in GRADERS:
        raise ValueError(
            f"{where}: field 'grader' is {kind(grader)}; write one of {', '.join(GRADERS)}"
        )
    problem = {"question": question}
    if grader == "code":
        problem |= {"answer": "", "grader": grader, "language": text(where, fields, "language")}
        problem["tests"] = fields[present(where, fields, ["tests"])]
        if fields.get("limits") is not None:
            problem["limits"] = fields["limits"]
    elif grader == "open":
        problem |= {"answer": _reference(where, fields), "grader": grader}
    else:
        answer = text(where, fields, present(where, fields, _ANSWER), integer=True)
        problem["answer"] = after_mark(answer) if GSM8K_MARK in answer else answer
        if "grader" in fields:
            problem["grader"] = grader
    problem |= _demands(where, fields)
    if (reply_in := fields.get("reply_in")) is not None:
        if not isinstance(reply_in, str) or reply_in not in LANGUAGES:
            raise ValueError(
                f"{where}: field 'reply_in' is {kind(reply_in)}; write one of "
                f"{', '.join(LANGUAGES)}"
            )
        problem["reply_in"] = reply_in
    if isinstance(fields.get("source"), str):
        problem["source"] = fields["source"]
    return problem | ({"id": fields["id"]} if "id" in fields else {})


def _demands(where: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that say what a response is to do or to avoid, where there are any."""
    demands = {name: fields[name] for name in _DEMANDS if fields.get(name) is not None}
    try:
        check_fields(demands)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return demands


def _reference(where: str, fields: Mapping[str, Any]) -> str:
    """What an open request's answer is compared with by a judge; it may have none."""
    name = next((name for name in _ANSWER if fields.get(name) not in (None, "")), None)
    return text(where, fields, name, integer=True) if name else ""


def _identified(where: str, name: str, fallback: str, problem: Problem) -> Problem:
    """`problem` with its id first; in a format also with its name."""
    identity = fallback
    if "id" in problem:
        identity = text(where, problem, "id", integer=True)
        if name:
            identity = f"{name}/{identity}"
    named = {"source": name} if name else {}
    return {"id": identity} | problem | {"id": identity} | named


def _gold_field(fields: Mapping[str, Any]) -> str:
    """The field that a row in the project's own fields is graded by."""
    names = {"code": ("tests",), "open": _QUESTION}.get(fields.get("grader"), _ANSWER)
    return next(name for name in names if name in fields)


def check_problem(problem: Mapping[str, Any]) -> None:
    """Raises ValueError unless the problem's grader can read its answer or tests."""
    grader_of(problem).check(problem)


def _gradable(source: str, found, dropped: Counter | None) -> list[Problem]:
    """The problems of (where, problem) pairs that their graders can read.

    Raises ValueError with the count and the first few of the others, or with `dropped` counts
    them there.
    """
    problems, bad = [], []
    for where, problem in found:
        try:
            check_problem(problem)
        except ValueError as error:
            bad.append(f"{where}: {error}")
        else:
            problems.append(problem)
    if dropped is not None:
        dropped["ungradable"] = len(bad)
    elif len(bad) == 1:
        raise ValueError(bad[0])
    elif bad:
        more = f"\n  and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise ValueError(
            f"{source}: {len(bad)} of {len(problems) + len(bad)} problems cannot be graded; mend "
            "or delete these rows:\n  " + "\n  ".join(bad[:_SHOWN]) + more
        )
    return problems
