"""Preference pairs: a question, a response that is preferred and one that is not."""

import hashlib
import pathlib
from collections import Counter
from collections.abc import Iterable, Sequence

from r1jax.data.rows import Row, file_rows, text
from r1jax.data.tasks import TASKS

Pair = dict[str, str]  # 'question', 'chosen' and 'rejected', both whole responses

FIELDS = ("question", "chosen", "rejected")
ASPECTS = ("helpful", "harmless")


def load_pairs(source: str) -> list[Pair]:
    """Reads the pairs of a source, in its order.

    Args:
      source: the path of a file of objects with the texts `question`, `chosen` and `rejected`
        (.jsonl, or what else `data.rows.file_rows` reads), or `task:NAME:ASPECT:COUNT`, pairs
        of a synthetic family in `data.tasks`, with ASPECT helpful or harmless. Other fields
        are left out.

    Raises:
      ValueError: no such source, a row without one of the texts, or one that prefers a
        response to itself; names the file, the line and the field.
    """
    pairs = []
    for where, _, fields in _rows(source):
        pair = {name: text(where, fields, name) for name in FIELDS}
        if pair["chosen"] == pair["rejected"]:
            raise ValueError(
                f"{where}: fields 'chosen' and 'rejected' are the same text, which prefers "
                "nothing; delete the row"
            )
        pairs.append(pair)
    if not pairs:
        raise ValueError(f"{source}: there are no pairs in it; expected one JSON object a line")
    return pairs


def split(
    pairs: Sequence[Pair], share: float, *, seed: int, most: int
) -> tuple[list[Pair], list[Pair]]:
    """(for training, held out): about `share` of the pairs is held out, `most` at most.

    By question: all pairs of one question are on the same side. Questions are held out in the
    order of their hashes with the seed, until the share is filled: with more pairs most
    questions stay where they were. One with too many pairs is passed over; where all are,
    pairs are held out instead. Both parts keep the order of `pairs`.

    Raises:
      ValueError: `share` is not in [0, 1), or it is positive and there are fewer than 2 pairs.
    """
    if not 0 <= share < 1:
        raise ValueError(f"share={share}: need at least 0 and less than 1")
    wanted = min(max(1, round(share * len(pairs))), most) if share else 0
    if wanted and len(pairs) < 2:
        raise ValueError(f"{len(pairs)} pairs cannot be split; give more, or hold none out")
    counts = Counter(pair["question"] for pair in pairs)
    held = _first(counts, wanted, seed)
    if not wanted or held:
        sides = [pair["question"] in held for pair in pairs]
    else:
        rows = ["\0".join(pair[name] for name in FIELDS) for pair in pairs]
        order = sorted(range(len(rows)), key=lambda i: (_hash(rows[i], seed), i))
        chosen = set(order[: min(wanted, len(pairs) - 1)])
        sides = [i in chosen for i in range(len(pairs))]
    kept, out = [], []
    for pair, is_out in zip(pairs, sides, strict=True):
        (out if is_out else kept).append(pair)
    return kept, out


def _first(counts: Counter, wanted: int, seed: int) -> set[str]:
    """Questions in the order of their hashes that together have `wanted` pairs or fewer.

    One with too many is passed over; never all questions.
    """
    held, size = set(), 0
    for question in sorted(counts, key=lambda q: _hash(q, seed)):
        if size + counts[question] <= min(wanted, counts.total() - 1):
            held.add(question)
            size += counts[question]
    return held


def _hash(value: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\0{value}".encode()).digest()


def _rows(source: str) -> Iterable[Row]:
    if source.startswith("task:"):
        return _task_rows(source)
    file = pathlib.Path(source)
    if not file.is_file():
        raise ValueError(
            f"{source}: there is no such file; give the path of a .jsonl file of pairs, or "
            "task:NAME:ASPECT:COUNT"
        )
    return file_rows(source, file)


def _task_rows(source: str) -> Iterable[Row]:
    """Pairs of a synthetic family; part of its definition, so of no seed but 0."""
    _, name, aspect, count = parts if len(parts := source.split(":")) == 4 else [""] * 4
    known = [task for task in TASKS if hasattr(TASKS[task], "pairs")]
    if name not in known or aspect not in ASPECTS or not count.isdecimal() or int(count) < 1:
        raise ValueError(
            f"{source}: write task:NAME:ASPECT:COUNT, with NAME of {', '.join(known) or 'none'} "
            f"and ASPECT of {', '.join(ASPECTS)}"
        )
    for i, pair in enumerate(TASKS[name].pairs(0, int(count), aspect), start=1):
        yield f"{source}, pair {i}", f"{name}/{i}", pair
