"""The words around the numbers of a derivation, by language."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Wording:
    """Phrases of one language; `{}` is where the number or expression goes."""

    ask: str = "What is {} modulo a thousand?"
    step: str = "{}"  # a line of the derivation
    check: str = "wait, check"  # the line before a re-check
    guess: str = "about {}"
    summary: str = "the answer is {}."

    def question(self, start: int, terms: tuple[int, ...]) -> str:
        return self.ask.format(f"{start:03d}{_sum(terms)}")

    def line(self, value: int, terms: list[int], result: int) -> str:
        return self.step.format(f"{value:03d}{_sum(terms)}={result:03d}")

    def recheck(self, value: int, term: int, result: int) -> str:
        """The units first, with what is carried or borrowed in sight, then the whole number."""
        units, digit = value % 10, abs(term)
        if term < 0 and units < digit:
            units += 10  # borrowed
        return f"{self.check}\n{units:02d}{term:+d}={units + term:02d},{result:03d}"

    def about(self, value: int) -> str:
        return self.guess.format(f"{value:03d}")

    def finish(self, lines: list[str], value: int, *, tagged: bool, summary: bool = False) -> str:
        """The response: the lines, then the boxed value, in a sentence where `summary`."""
        body, result = "\n".join(lines), f"\\boxed{{{value:03d}}}"
        if summary:
            result = self.summary.format(result)
        if tagged:
            return f"<think>{body}\n</think>\n<answer>{result}</answer>"
        return f"{body}\n{result}"


def _sum(terms) -> str:
    return "".join(f"{t:+d}" for t in terms)


PLAIN = Wording()
# Every step has a word, so that the language of a derivation can be told.
WORDINGS: dict[str, Wording] = {
    "en": Wording(step="so {}"),
    "zh": Wording(
        ask="{}除以一千的余数是多少？",
        step="得{}",
        check="等等，检查",
        guess="大约{}",
        summary="答案是{}。",
    ),
}


def translate(line: str, target: Wording) -> str | None:
    """A line of a derivation, in any wording, in that of `target`.

    Numbers stay. None for a line that is in no wording.
    """
    if _RECHECK.fullmatch(line):
        return line
    for wording in (PLAIN, *WORDINGS.values()):
        if line == wording.check:
            return target.check
        for ours, theirs, numbers in (
            (wording.step, target.step, _STEP),
            (wording.guess, target.guess, _NUMBER),
        ):
            before, after = ours.split("{}")
            inner = line.removeprefix(before).removesuffix(after)
            if line == ours.format(inner) and numbers.fullmatch(inner):
                return theirs.format(inner)
    return None


def boxed(text: str) -> int | None:
    """The number of a result in its box, bare or in a sentence; None for any other text."""
    if not (box := _BOX.search(text)):
        return None
    known = ["{}", *(wording.summary for wording in WORDINGS.values())]
    return int(box[1]) if text in [w.format(box[0]) for w in known] else None


# [0-9], not \d: digits of other scripts are not what is written here.
_STEP = re.compile("[0-9]{3}(?:[+-][1-9])+=[0-9]{3}")
_RECHECK = re.compile("[0-9]{2}[+-][1-9]=[0-9]{2},[0-9]{3}")
_NUMBER = re.compile("[0-9]{3}")
_BOX = re.compile(r"\\boxed\{([0-9]{1,3})\}")
