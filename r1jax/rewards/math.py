"""Accuracy of mathematical answers: extract, read, compare exactly.

The paper's accuracy reward (arXiv:2501.12948, section 2.2.2) wants the final answer in a
required form, here a `\\boxed{…}`. Three steps, each usable alone:

    extract(response)  -> the text of the last box of the final answer, or None
    number(text)       -> its exact value as a Fraction, or None
    equivalent(a, b)   -> whether two answer texts have the same value

An answer is one number: an integer, a decimal, a fraction, a percentage or a power of ten,
in LaTeX or in plain text. Everything else (several alternatives, a bound, a unit, words)
is not read and so is never right. To teach the grader another kind of answer, extend
`number` to return another comparable value.

Values are compared as rationals, never as floats. Work is bounded: extraction is linear in
the response, and reading looks at no more than MAX_CHARS characters and powers of ten up to
MAX_EXPONENT. No signals, no subprocesses, no evaluation of text: any thread will do.
"""

import re
import unicodedata
from fractions import Fraction

from r1jax.rewards import sections

MAX_CHARS = 200  # longest text read as a number
MAX_EXPONENT = 1000  # largest power of ten, in absolute value
MAX_DEPTH = 32  # deepest braces inside a box


def grade(gold: str, response: str) -> bool:
    """Whether the final answer of `response` has the value of `gold`.

    Args:
      gold: the true answer as bare text, without a box (`42`, `\\frac{1}{3}`, `1,234`).
      response: the whole completion, reasoning included. When the prompt has already
        opened `<think>`, put the tag back in front: without any think tag the whole
        text counts as answer.

    Never raises on a string. False for a gold that cannot be read (see `check_gold`).

    Raises:
      TypeError: gold is not a string.
    """
    if not isinstance(gold, str):
        raise TypeError(f"gold must be a string, not {gold!r}; use str(gold)")
    answer = extract(response)
    return answer is not None and equivalent(gold, answer)


def check_gold(gold: str) -> None:
    """Raises ValueError, naming the gold, unless `grade` can read it. For loaders."""
    if not isinstance(gold, str):
        raise ValueError(f"answer {gold!r} is not a string; write it as {str(gold)!r}")
    if number(gold) is None:
        shown = gold if len(gold) <= 60 else gold[:57] + "..."
        raise ValueError(
            f"answer {shown!r} cannot be graded: write one number, such as 42, -3.5, 2/3, 5% or 1e6"
        )


def equivalent(a: str, b: str) -> bool:
    """Whether two answer texts are numbers of exactly the same value."""
    value = number(a)
    return value is not None and value == number(b)


# --- extract ---------------------------------------------------------------------------

# An escaped character is consumed whole, so that \{ and \} are not braces and a line break
# (\\) does not lend its second backslash to what follows.
_BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
_FONT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mathit)\s*\{([^{}]*)\}")
_PLACEHOLDERS = frozenset({
    "", "answer", "the answer", "your answer", "your answer here", "answer here",
    "final answer", "your final answer", "final answer here", "your final answer here",
    "result", "number", "value", "\\ldots", "\\dots", "\\cdots", "\\square", "\\box",
})  # fmt: skip


def extract(response: str) -> str | None:
    """The text inside the last box of the final answer, or None.

    Only the final section counts (`sections.final`). There the last `\\boxed{…}` wins, and
    a box inside a box belongs to the outer one. None when there is no box, when the last
    is not closed, or when it nests deeper than MAX_DEPTH. Placeholders, empty or saying
    only "answer" or "...", are passed over: they repeat the instruction.
    """
    final = sections.final(response)
    if final is None:
        return None
    boxes = [box for box in _boxes(final) if box is None or not _is_placeholder(box)]
    if not boxes or boxes[-1] is None:
        return None
    answer = boxes[-1].strip()
    return answer if _depth(answer) <= MAX_DEPTH else None


def _boxes(text: str) -> list[str | None]:
    """Contents of the outermost boxes in the order they open; None for one never closed.

    A box inside an unclosed one stands for itself: a slip early in the text does not
    swallow what comes after it.
    """
    stack: list[int | None] = []  # where the content of each open brace starts, if a box
    spans: list[tuple[int, int]] = []  # (start, end) of the closed boxes, inner ones first
    for match in _BRACES.finditer(text):
        token = match[0]
        if token == "{":
            stack.append(None)
        elif token == "}":
            start = stack.pop() if stack else None
            if start is not None:
                while spans and spans[-1][0] > start:  # boxes inside this one
                    spans.pop()
                spans.append((start, match.start()))
        elif token[-1] == "{" and len(token) > 2:  # \boxed{, not the escape \{
            stack.append(match.end())
    unclosed = [(start, -1) for start in stack if start is not None]
    return [text[i:j] if j >= 0 else None for i, j in sorted(spans + unclosed)]


def _is_placeholder(box: str) -> bool:
    if len(box) > MAX_CHARS:
        return False
    return _FONT.sub(r"\1", box).strip(" \t\r\n._?…*#-<>[]()").casefold() in _PLACEHOLDERS


def _depth(text: str) -> int:
    depth = deepest = 0
    for token in _BRACES.findall(text):
        if token[-1] == "{" and token != "\\{":
            depth += 1
        elif token == "}":
            depth -= 1
        deepest = max(deepest, depth)
    return deepest


# --- read ------------------------------------------------------------------------------

_WHOLE = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)"  # 0,123 is a decimal in disguise: no
_DECIMAL = rf"(?:{_WHOLE}(?:\.[0-9]*)?|\.[0-9]+)"
_SIGNED = rf"\s*[+-]?\s*{_DECIMAL}\s*"
_EXPONENT = r"(?:[+-]?[0-9]{1,6}|\{\s*[+-]?[0-9]{1,6}\s*\})"
_POWER = rf"10\s*\^\s*(?P<power>{_EXPONENT})"
_SIGN = re.compile(r"\s*([+-]?)\s*(.*)", re.DOTALL)
_DOLLAR = re.compile(r"^([+-]?\s*)\$\s*|\s*\$$")
_THIN = re.compile(r"(?<=[0-9])\\,(?=[0-9]{3})")
# (pattern of an unsigned number); at most one matches a text.
_SCIENTIFIC = re.compile(
    rf"(?P<mantissa>{_DECIMAL})(?:[eE](?P<e>[+-]?[0-9]{{1,6}})|\s*\*\s*{_POWER})?"
)
_POWER_OF_TEN = re.compile(_POWER)
_SLASH = re.compile(rf"(?P<over>{_DECIMAL})\s*/\s*(?P<under>{_DECIMAL})")
_FRAC = re.compile(
    rf"\\frac\s*(?:\{{(?P<over>{_SIGNED})\}}|(?P<over1>[0-9]))"
    rf"\s*(?:\{{(?P<under>{_SIGNED})\}}|(?P<under1>[0-9]))"
)

_CHARACTERS = str.maketrans(
    dict.fromkeys("−‐‑‒–—―", "-")
    | dict.fromkeys("⁄∕", "/")
    | dict.fromkeys("×·⋅∙∗", "*")
    | dict.fromkeys("\u2009\u202f\u200a", r"\,")  # thin and hair spaces, as in 1 234
    | {"。": "."}
)
_COMMANDS = (
    ("{,}", ","), (r"\!", ""), (r"\ ", " "), (r"\;", " "), (r"\:", " "),
    (r"\qquad", " "), (r"\quad", " "), (r"\displaystyle", ""),
    (r"\%", "%"), (r"\$", "$"), (r"\times", "*"), (r"\cdot", "*"),
    (r"\dfrac", r"\frac"), (r"\tfrac", r"\frac"), (r"\cfrac", r"\frac"),
)  # fmt: skip
_WRAPPERS = (("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("{", "}"), (r"\boxed{", "}"))


def number(text: str) -> Fraction | None:
    """The exact value of a text that is one number and nothing else; otherwise None.

    Reads `42`, `-042.50`, `1,234`, `.5`, `2/3`, `\\frac{2}{3}`, `½`, `1.5e3`,
    `1.5\\times10^{3}`, `5%` (a twentieth, so not 5), with `$`, `\\$` or a final full stop
    around them, in any Unicode digits, minus signs and spaces. None beyond MAX_CHARS
    characters or MAX_EXPONENT; None for a zero denominator.
    """
    text = text.strip()
    if len(text) > MAX_CHARS:
        return None
    text = _plain(text)
    percent = text.endswith("%")
    sign, body = _SIGN.fullmatch(text.removesuffix("%").rstrip()).groups()
    value = _unsigned(body)
    if value is None:
        return None
    value = -value if sign == "-" else value
    return value / 100 if percent else value


def _plain(text: str) -> str:
    """`text` in ASCII where it can be, with one spelling for what LaTeX has several of."""
    text = "".join(map(_ascii, text)).translate(_CHARACTERS)
    for command, replacement in _COMMANDS:
        text = text.replace(command, replacement)
    text = _THIN.sub(",", text).replace(r"\,", " ").strip()
    for _ in range(4):  # delimiters within delimiters, a full stop outside or inside them
        if text.endswith(".") and not text.endswith(".."):
            text = text[:-1]
        text = _unwrap(text)
    return _DOLLAR.sub(r"\1", text, count=1).strip()


def _ascii(char: str) -> str:
    """One character's plain equivalent, `""` for an invisible one, else itself.

    Not NFKC, which turns 5² into 52 and 1½ into 11/2: other digits and the wide and narrow
    forms are mapped, a fraction character becomes a `\\frac`, superscripts stay as they are.
    """
    if char.isascii():
        return char
    kind = unicodedata.category(char)
    if kind == "Nd":
        return str(unicodedata.decimal(char))
    if kind == "Cf" or "\ufe00" <= char <= "\ufe0f":  # zero width, direction, variation marks
        return ""
    form, _, rest = unicodedata.decomposition(char).partition(" ")
    if form in ("<wide>", "<narrow>", "<small>"):
        return chr(int(rest, 16))
    if form == "<fraction>":
        over, _, under = unicodedata.normalize("NFKC", char).partition("⁄")
        return rf"\frac{{{over}}}{{{under}}}" if under else char
    if kind == "Zs" and char not in "\u2009\u202f\u200a":
        return " "
    return char


def _unwrap(text: str) -> str:
    """`text` without a delimiter at each end, if it has them.

    They need not be a pair: what is left of `{1}/{2}`, `1}/{2`, is no number either.
    """
    for left, right in _WRAPPERS:
        if len(text) >= len(left) + len(right) and text.startswith(left) and text.endswith(right):
            return text[len(left) : -len(right)].strip()
    return text


def _unsigned(body: str) -> Fraction | None:
    """The value of a number without sign and percent sign, or None."""
    if match := _SCIENTIFIC.fullmatch(body):
        exponent = match["e"] or match["power"] or "0"
        return _scaled(_decimal(match["mantissa"]), exponent)
    if match := _POWER_OF_TEN.fullmatch(body):
        return _scaled(Fraction(1), match["power"])
    if match := _SLASH.fullmatch(body):
        over, under = _decimal(match["over"]), _decimal(match["under"])
    elif match := _FRAC.fullmatch(body):
        over = _decimal(match["over"] or match["over1"])
        under = _decimal(match["under"] or match["under1"])
    else:
        return None
    return over / under if under else None


def _scaled(mantissa: Fraction, exponent: str) -> Fraction | None:
    power = int(exponent.strip("{} \t\r\n"))
    return mantissa * Fraction(10) ** power if abs(power) <= MAX_EXPONENT else None


def _decimal(text: str) -> Fraction:
    """The value of a text of the _SIGNED pattern."""
    sign, digits = _SIGN.fullmatch(text.replace(",", "").strip()).groups()
    whole, _, places = digits.partition(".")
    value = Fraction(int(whole + places), 10 ** len(places))
    return -value if sign == "-" else value
