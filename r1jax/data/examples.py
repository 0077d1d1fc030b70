"""Examples to imitate: questions with whole responses, for supervised fine-tuning."""

import json
from collections.abc import Sequence
from pathlib import Path

from r1jax.data.sources import GSM8K_MARK
from r1jax.data.tasks import TASKS

Example = dict[str, str]  # 'question' and 'response'


def load_examples(source: str | Sequence[str], *, limit: int | None = None) -> list[Example]:
    """Reads examples, in their order.

    Args:
      source: the path of a .jsonl file of examples, one object a line; or `task:NAME:COUNT`, the
        given examples of a synthetic family in `data.tasks`; or several of these, whose
        examples follow each other.
      limit: read only so many from the start, of each source. None reads all.

    A row has the strings `question` and `response`; or it is GSM8K's, with a worked
    `answer` that ends in `#### number`: the work becomes the reasoning and the number the
    boxed answer, in the tags.

    Raises ValueError naming file, line and field.
    """
    if not isinstance(source, str):
        return [example for one in source for example in load_examples(one, limit=limit)]
    if source.startswith("task:"):
        return _of_task(source)[:limit]
    return _of_file(source, limit)


def _of_task(source: str) -> list[Example]:
    """Part of the family's definition, so of no seed but 0."""
    _, name, count, *more = [*source.split(":"), "", ""]
    known = [name for name, task in TASKS.items() if hasattr(task, "examples")]
    if name not in known or not count.isdecimal() or int(count) < 1 or any(more):
        raise ValueError(
            f"{source}: write task:NAME:COUNT; names that have examples: {', '.join(known) or '-'}"
        )
    return [
        {field: _text(f"{source}, example {i}", row, field) for field in ("question", "response")}
        for i, row in enumerate(TASKS[name].examples(0, int(count)), start=1)
    ]


def _of_file(path: str, limit: int | None) -> list[Example]:
    if not Path(path).is_file():
        raise ValueError(
            f"{path}: no such file; give the path of a .jsonl file of examples, or task:NAME:COUNT"
        )
    examples = []
    # Not splitlines(): that also splits at U+2028 and its like, which JSON strings may hold.
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        if limit is not None and len(examples) == limit:
            break
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: not JSON ({error}); write one object a line") from error
        if not isinstance(row, dict):
            raise ValueError(f"{where}: a {type(row).__name__}, not an object")
        examples.append(
            {"question": _text(where, row, "question"), "response": _response(where, row)}
        )
    if not examples:
        raise ValueError(f"{path}: there are no examples in it")
    return examples


def _response(where: str, row: dict) -> str:
    if "response" in row or GSM8K_MARK not in str(row.get("answer", "")):
        return _text(where, row, "response")
    work, _, number = row["answer"].rpartition(GSM8K_MARK)
    boxed = number.strip().replace(",", "")
    return f"<think>{work.strip()}</think>\n<answer>\\boxed{{{boxed}}}</answer>"


def _text(where: str, row: dict, field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        found = "missing" if value is None else f"{value!r}"
        raise ValueError(f"{where}: field {field!r} is {found}; it must be a non-empty string")
    return value
