"""Examples to imitate: questions with whole responses, for supervised fine-tuning."""

import json
from pathlib import Path

from r1jax.data.sources import GSM8K_MARK

Example = dict[str, str]  # 'question' and 'response'


def load_examples(path: str, *, limit: int | None = None) -> list[Example]:
    """Reads a .jsonl file of examples, one object a line.

    A row has the strings `question` and `response`; or it is GSM8K's, with a worked
    `answer` that ends in `#### number`: the work becomes the reasoning and the number the
    boxed answer, in the tags.

    Raises ValueError naming file, line and field.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file; give the path of a .jsonl file of examples")
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
