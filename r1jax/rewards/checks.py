"""Verifiable demands on a final answer, as data in a problem's row.

A row's `checks` is a list of objects, each with a `kind` of CHECKS and the fields of that kind:

    {"kind": "contains", "texts": ["hello", "good day"]}      one of the texts occurs
    {"kind": "avoids", "texts": ["fig"]}                      none of them does
    {"kind": "count", "text": "thank you", "low": 1, "high": 1}    it occurs so many times
    {"kind": "words_at_most", "words": 12}                    by `rewards.language.words`
    {"kind": "language", "language": "en", "share": 0.5}      least share of its words
    {"kind": "list_of", "items": ["cat", "dog", "cow"], "least": 2}    different ones of them
    {"kind": "sequence", "items": ["three", "one"], "among": ["one", …]}    these and no others
                                                              of `among`, in this order

A text occurs regardless of case, and whole: `fig` is not in `figure`. Characters that are
written without spaces (Chinese) have no such borders. All kinds take linear time and never
raise on an answer.

Source: instructions that a program can verify, arXiv:2311.07911; the kinds are our own.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite
from numbers import Real
from typing import Any

from r1jax.rewards.hints import hint
from r1jax.rewards.language import LANGUAGES, consistency, words
from r1jax.rewards.sections import visible

Check = Mapping[str, Any]
_LETTER = r"[^\W\u2e80-\u9fff]"  # letters and digits of scripts with borders between words


def occurrences(texts: Sequence[str], answer: str) -> list[str]:
    """Those of `texts` that occur in `answer`, from left to right, the longest at each place."""
    found = _pattern(tuple(texts)).finditer(answer.casefold())
    by_form = {text.casefold(): text for text in texts}
    return [by_form[match[0]] for match in found]


@lru_cache(maxsize=1024)
def _pattern(texts: tuple[str, ...]) -> re.Pattern:
    return re.compile("|".join(map(_whole, sorted(texts, key=len, reverse=True))))


def _whole(text: str) -> str:
    """A pattern for `text` that is not part of a longer word."""
    text = text.casefold()
    before = f"(?<!{_LETTER})" if re.match(_LETTER, text[0]) else ""
    after = f"(?!{_LETTER})" if re.match(_LETTER, text[-1]) else ""
    return before + re.escape(text) + after


# --- kinds -----------------------------------------------------------------------------


def _contains(check: Check, answer: str) -> bool:
    return bool(occurrences(check["texts"], answer))


def _avoids(check: Check, answer: str) -> bool:
    return not occurrences(check["texts"], answer)


def _count(check: Check, answer: str) -> bool:
    return check["low"] <= len(occurrences([check["text"]], answer)) <= check["high"]


def _words_at_most(check: Check, answer: str) -> bool:
    return words(answer).total() <= check["words"]


def _language(check: Check, answer: str) -> bool:
    return consistency(answer, check["language"]) >= check["share"]


def _list_of(check: Check, answer: str) -> bool:
    return len(set(occurrences(check["items"], answer))) >= check["least"]


def _sequence(check: Check, answer: str) -> bool:
    return occurrences(check["among"], answer) == check["items"]


# --- fields ----------------------------------------------------------------------------


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_texts(value: Any) -> bool:
    """Texts that differ, also in case: what was found is told apart by its text."""
    if not isinstance(value, list) or not value or not all(map(_is_text, value)):
        return False
    return len({text.casefold() for text in value}) == len(value)


def _is_items(value: Any) -> bool:
    """As texts, but the same may come again."""
    return isinstance(value, list) and bool(value) and all(map(_is_text, value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_share(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    return isfinite(value) and 0 < value <= 1


@dataclass(frozen=True)
class Kind:
    """One kind of check.

    Attributes:
      met: (check, final answer) to whether the answer meets it.
      fields: what a check of this kind has, each with a test of its value and what to write.
    """

    met: Callable[[Check, str], bool]
    fields: Mapping[str, tuple[Callable[[Any], bool], str]]


_TEXT = (_is_text, "a text that shows something")
_TEXTS = (_is_texts, "a list of different texts")
_ITEMS = (_is_items, "a list of texts")
_NUMBER = (_is_number, "an integer, 0 or more")
_SHARE = (_is_share, "a number above 0, at most 1")
_NAME = (
    lambda value: isinstance(value, str) and value in LANGUAGES,
    f"one of {', '.join(LANGUAGES)}",
)

CHECKS: dict[str, Kind] = {
    "contains": Kind(_contains, {"texts": _TEXTS}),
    "avoids": Kind(_avoids, {"texts": _TEXTS}),
    "count": Kind(_count, {"text": _TEXT, "low": _NUMBER, "high": _NUMBER}),
    "words_at_most": Kind(_words_at_most, {"words": _NUMBER}),
    "language": Kind(_language, {"language": _NAME, "share": _SHARE}),
    "list_of": Kind(_list_of, {"items": _TEXTS, "least": _NUMBER}),
    "sequence": Kind(_sequence, {"items": _ITEMS, "among": _TEXTS}),
}


# --- of a problem ----------------------------------------------------------------------


def check_all(checks: Sequence[Check], answer: str) -> list[bool]:
    """For each check whether `answer`, the final section of a response, meets it.

    The checks are those of a row that `check_fields` has passed.
    """
    return [CHECKS[check["kind"]].met(check, answer) for check in checks]


def share_met(checks: Sequence[Check], answer: str | None) -> float:
    """Share (0 to 1) of the checks that a final answer meets.

    0.0 without checks, without an answer and for one that shows nothing: being short is no
    merit of saying nothing.
    """
    if not checks or answer is None or not visible(answer):
        return 0.0
    return sum(check_all(checks, answer)) / len(checks)


def check_fields(problem: Mapping[str, Any]) -> None:
    """Raises ValueError, with the mend, unless the fields `checks` and `avoid` are well made."""
    checks = problem.get("checks")
    if checks is not None:
        if not isinstance(checks, list):
            raise ValueError(f"field 'checks' is {checks!r:.60}; write a list of objects, or none")
        for i, check in enumerate(checks):
            _check_check(f"checks[{i}]", check)
    avoid = problem.get("avoid")
    if avoid is not None and avoid != [] and not _is_texts(avoid):
        raise ValueError(f"field 'avoid' is {avoid!r:.60}; write {_TEXTS[1]}, or leave it out")


def _check_check(where: str, check: Any) -> None:
    if not isinstance(check, Mapping) or "kind" not in check:
        raise ValueError(f"{where} is {check!r:.60}; write an object with a field 'kind'")
    name = check["kind"]
    if not isinstance(name, str) or name not in CHECKS:
        raise ValueError(f"{where}: unknown kind {name!r:.60}{hint(name, CHECKS)}")
    fields = CHECKS[name].fields
    for field in check:
        if field != "kind" and field not in fields:
            raise ValueError(f"{where}: unknown field {field!r} of {name!r}{hint(field, fields)}")
    for field, (valid, wanted) in fields.items():
        if field not in check:
            raise ValueError(f"{where}: field {field!r} of {name!r} is absent; write {wanted}")
        if not valid(check[field]):
            raise ValueError(f"{where}: field {field!r} is {check[field]!r:.60}; write {wanted}")
    if name == "count" and check["low"] > check["high"]:
        raise ValueError(f"{where}: low={check['low']} is above high={check['high']}; swap them")
    if name == "list_of" and check["least"] > len(check["items"]):
        raise ValueError(
            f"{where}: least={check['least']} of {len(check['items'])} items; list more of them"
        )
    if name == "sequence" and not set(check["items"]) <= set(check["among"]):
        raise ValueError(f"{where}: some of 'items' are not in 'among'; add them there")
