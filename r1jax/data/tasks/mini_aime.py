"""mini-AIME: integer answers 0 to 999, as at AIME, from chains of additions modulo 1000.

A problem starts at 0 … 999 and adds or subtracts 3 to 6 different one-digit numbers (so
that a term can be found again by its digit). Numbers in derivations have three digits. The
text that a base model learns from comes in two corpora:

- *textbook*: one operation a line, some lines followed by a re-check, which adds the units
  first and so has the carry in sight. A wrong line occurs only before its re-check,
  which mends it: the reader learns arithmetic, and that checking works. (With re-checks
  that only repeat the line, carries were learned after 1,200 steps on some seeds and not
  after 3,000 on another.)
- *web*: what people write. Most guess, are sloppy (several operations in a line) or
  careful but slip; few check. A model of this text answers few problems, though it
  has the skill to answer nearly all: reinforcement learning has something to find.

Every document is a function of its random generator. Problems of the two fixed test
files (`mini_aime_test.jsonl`, and `mini_aime_dev.jsonl` for tuning) are never drawn.
"""

import functools
import json
from dataclasses import dataclass
from importlib import resources

import numpy as np

from r1jax.templates import TEMPLATES

MODULUS = 1000
WEB_STYLES = ("guess", "sloppy", "careful", "check")


@dataclass(frozen=True)
class Web:
    """Composition of the web corpus; shares are of documents, rates of operations."""

    guess: float = 0.44
    sloppy: float = 0.24
    careful: float = 0.22
    check: float = 0.10
    check_rate: float = 0.9  # lines that a checker re-checks
    random_slip: float = 0.06  # a digit wrong, on the first pass
    carry_slip: float = 0.65  # of the operations with a carry: forgotten, on the first pass
    recheck_slip: float = 0.015
    tagged: float = 0.8  # documents with <think> and <answer> tags

    def __post_init__(self):
        total = self.guess + self.sloppy + self.careful + self.check
        if abs(total - 1) > 1e-6:
            raise ValueError(f"web: guess + sloppy + careful + check = {total:g}, must be 1")


@dataclass(frozen=True)
class Probe:
    """A text to continue, and the beginning that a skilled continuation has."""

    question: str
    response: str
    expected: str


Problem = tuple[int, tuple[int, ...]]


def question(problem: Problem) -> str:
    start, terms = problem
    return f"What is {start:03d}{''.join(f'{t:+d}' for t in terms)} modulo a thousand?"


def answer(problem: Problem) -> int:
    start, terms = problem
    return (start + sum(terms)) % MODULUS


def draw(rng: np.random.Generator) -> Problem:
    """A problem that is in neither test file."""
    while True:
        count = rng.integers(3, 7)
        magnitudes = 1 + rng.permutation(9)[:count]
        signs = rng.integers(0, 2, count)
        terms = tuple(int(m if s else -m) for m, s in zip(magnitudes, signs, strict=True))
        problem = (int(rng.integers(MODULUS)), terms)
        if question(problem) not in held_out():
            return problem


def row(problem: Problem, name: str) -> dict:
    """A problem row as every source gives it."""
    return {"id": name, "question": question(problem), "answer": str(answer(problem))}


def problems(seed: int, count: int) -> list[dict]:
    """`count` distinct training problems."""
    rng, seen = np.random.default_rng([seed, 1]), {}
    while len(seen) < count:
        seen.setdefault(draw(rng))
    return [row(p, f"mini_aime/{i}") for i, p in enumerate(seen)]


def corpus(seed: int, documents: int = 2000) -> list[str]:
    """Texts of both corpora, prompts included, for training a tokenizer."""
    rng, texts = np.random.default_rng([seed, 3]), []
    for i in range(documents):
        text = web_document(rng, Web()) if i % 2 else textbook_document(rng)
        texts += [TEMPLATES["r1_zero_short"].render(text[0]), text[1]]
    return texts


@functools.cache
def held_out() -> frozenset[str]:
    """Questions of the two test files."""
    folder = resources.files("r1jax.data.tasks")
    return frozenset(
        json.loads(line)["question"]
        for name in ("mini_aime_test.jsonl", "mini_aime_dev.jsonl")
        for line in (folder / name).read_text().splitlines()
    )


def textbook_document(rng: np.random.Generator) -> tuple[str, str]:
    """(question, response) of the textbook corpus."""
    problem = draw(rng)
    lines, value = [], problem[0]
    for term in problem[1]:
        checked = rng.random() < 0.4
        wrong = checked and rng.random() < 0.65
        # Never a forgotten carry: one among the lines read can keep carries from being learned.
        first = _slip(rng, value, term, carry=False) if wrong else _add(value, term)
        lines.append(_line(value, [term], first))
        value_after = _add(value, term)
        if checked:
            lines.append(_recheck(value, term, value_after))
        value = value_after
    return question(problem), _finish(lines, value, tagged=True)


def web_document(rng: np.random.Generator, web: Web) -> tuple[str, str]:
    """(question, response) of the web corpus."""
    problem = draw(rng)
    style = rng.choice(WEB_STYLES, p=[web.guess, web.sloppy, web.careful, web.check])
    tagged = rng.random() < web.tagged
    value, terms = problem[0], list(problem[1])
    if style == "guess":
        value = (answer(problem) + int(rng.integers(-30, 31))) % MODULUS
        return question(problem), _finish([f"about {value:03d}"], value, tagged)
    lines = []
    while terms:
        count = min(len(terms), int(rng.integers(2, 4))) if style == "sloppy" else 1
        chunk, terms = terms[:count], terms[count:]
        before, value = value, _first_pass(rng, value, chunk, web)
        lines.append(_line(before, chunk, value))
        if style == "check" and rng.random() < web.check_rate:
            slip = rng.random() < web.recheck_slip
            value = _slip(rng, before, chunk[0], carry=False) if slip else _add(before, chunk[0])
            lines.append(_recheck(before, chunk[0], value))
    return question(problem), _finish(lines, value, tagged)


def probes(seed: int, count: int) -> dict[str, list[Probe]]:
    """Tests of the two skills that checking needs, with `count` probes each.

    `repair`: after a wrong first pass, the re-check gives the right value.
    `resume`: after a mended line, the next operation is the right one, from the mended
    value. A base with both is one that reinforcement learning can lift.
    """
    rng, found = np.random.default_rng([seed, 2]), {"repair": [], "resume": []}
    for _ in range(count):
        problem = draw(rng)
        (value, terms), at = problem, int(rng.integers(len(problem[1]) - 1))
        lines = []
        for term in terms[:at]:
            lines.append(_line(value, [term], _add(value, term)))
            value = _add(value, term)
        term, right = terms[at], _add(value, terms[at])
        lines.append(_line(value, [term], _slip(rng, value, term, carry=rng.random() < 0.5)))
        recheck = _recheck(value, term, right)
        begun, newline, expected = recheck.partition("\n")
        before = "<think>" + "\n".join(lines) + "\n"
        found["repair"].append(Probe(question(problem), before + begun + newline, expected))
        following = _line(right, [terms[at + 1]], 0)[:-3]  # a first pass may slip: not its result
        found["resume"].append(Probe(question(problem), f"{before}{recheck}\n", following))
    return found


def _add(value: int, term: int) -> int:
    return (value + term) % MODULUS


def _line(value: int, terms: list[int], result: int) -> str:
    return f"{value:03d}{''.join(f'{t:+d}' for t in terms)}={result:03d}"


def _recheck(value: int, term: int, result: int) -> str:
    """The units first, with what is carried or borrowed in sight, then the whole number."""
    units, digit = value % 10, abs(term)
    if term < 0 and units < digit:
        units += 10  # borrowed
    return f"wait, check\n{units:02d}{term:+d}={units + term:02d},{result:03d}"


def _slip(rng: np.random.Generator, value: int, term: int, *, carry: bool) -> int:
    """A wrong result: the carry forgotten where there is one and `carry`, else a wrong digit."""
    right = _add(value, term)
    forgotten = value // 10 * 10 + right % 10
    if carry and forgotten != right:
        return forgotten
    place = 10 ** int(rng.integers(3))
    digit = right // place % 10
    return right + ((digit + int(rng.integers(1, 10))) % 10 - digit) * place


def _first_pass(rng: np.random.Generator, value: int, terms: list[int], web: Web) -> int:
    for term in terms:
        right = _add(value, term)
        carried = right // 10 != value // 10
        if carried and rng.random() < web.carry_slip:
            value = _slip(rng, value, term, carry=True)
        elif rng.random() < web.random_slip:
            value = _slip(rng, value, term, carry=False)
        else:
            value = right
    return value


def _finish(lines: list[str], value: int, tagged: bool) -> str:
    body, boxed = "\n".join(lines), f"\\boxed{{{value:03d}}}"
    if tagged:
        return f"<think>{body}\n</think>\n<answer>{boxed}</answer>"
    return f"{body}\n{boxed}"
