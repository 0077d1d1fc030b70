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

from r1jax.data.tasks.wording import PLAIN, Wording
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


@dataclass(frozen=True)
class Step:
    """One line of a derivation, and what its re-check gave."""

    before: int
    terms: list[int]
    result: int
    recheck: int | None = None

    def lines(self, wording: Wording, check: Wording) -> list[str]:
        """The texts, the re-check in the words of `check`."""
        texts = [wording.line(self.before, self.terms, self.result)]
        if self.recheck is not None:
            texts.append(check.recheck(self.before, self.terms[0], self.recheck))
        return texts


@dataclass(frozen=True)
class Derivation:
    """How somebody came to `value`; a guess has no steps."""

    steps: list[Step]
    value: int
    tagged: bool

    def __str__(self) -> str:
        lines = [line for step in self.steps for line in step.lines(PLAIN, PLAIN)]
        lines = lines or [PLAIN.about(self.value)]
        return PLAIN.finish(lines, self.value, tagged=self.tagged)


def question(problem: Problem) -> str:
    return PLAIN.question(*problem)


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
    return question(problem), str(textbook_derivation(rng, problem))


def web_document(rng: np.random.Generator, web: Web) -> tuple[str, str]:
    """(question, response) of the web corpus."""
    problem = draw(rng)
    return question(problem), str(web_derivation(rng, problem, web))


def textbook_derivation(rng: np.random.Generator, problem: Problem) -> Derivation:
    """A derivation whose wrong lines are mended at once, and whose value is right."""
    value, terms = problem
    steps = []
    for term in terms:
        checked = rng.random() < 0.4
        wrong = checked and rng.random() < 0.65
        right = _add(value, term)
        # Never a forgotten carry: one among the lines read can keep carries from being learned.
        first = _slip(rng, value, term, carry=False) if wrong else right
        steps.append(Step(value, [term], first, right if checked else None))
        value = right
    return Derivation(steps, value, tagged=True)


def web_derivation(rng: np.random.Generator, problem: Problem, web: Web) -> Derivation:
    """A derivation in one of WEB_STYLES, with their slips."""
    style = rng.choice(WEB_STYLES, p=[web.guess, web.sloppy, web.careful, web.check])
    tagged = rng.random() < web.tagged
    value, terms = problem[0], list(problem[1])
    if style == "guess":
        value = (answer(problem) + int(rng.integers(-30, 31))) % MODULUS
        return Derivation([], value, tagged)
    steps = []
    while terms:
        count = min(len(terms), int(rng.integers(2, 4))) if style == "sloppy" else 1
        chunk, terms = terms[:count], terms[count:]
        before, first, recheck = value, _first_pass(rng, value, chunk, web), None
        if style == "check" and rng.random() < web.check_rate:
            slip = rng.random() < web.recheck_slip
            recheck = _slip(rng, before, chunk[0], carry=False) if slip else _add(before, chunk[0])
        steps.append(Step(before, chunk, first, recheck))
        value = first if recheck is None else recheck
    return Derivation(steps, value, tagged)


def probes(seed: int, count: int) -> dict[str, list[Probe]]:
    """Tests of the two skills that checking needs, with `count` probes each.

    `repair`: after a wrong first pass, the re-check gives the right value.
    `resume`: after a mended line, the next operation is the right one, from the mended
    value. A base with both is one that reinforcement learning can lift.
    """
    rng = np.random.default_rng([seed, 2])
    pairs = [probe_pair(rng, draw(rng), PLAIN) for _ in range(count)]
    return dict(zip(("repair", "resume"), map(list, zip(*pairs, strict=True)), strict=True))


def probe_pair(rng: np.random.Generator, problem: Problem, wording: Wording) -> tuple[Probe, Probe]:
    """(repair, resume) at a random line of the problem but the last."""
    (value, terms), at = problem, int(rng.integers(len(problem[1]) - 1))
    lines = []
    for term in terms[:at]:
        lines.append(wording.line(value, [term], _add(value, term)))
        value = _add(value, term)
    term, right = terms[at], _add(value, terms[at])
    wrong = _slip(rng, value, term, carry=rng.random() < 0.5)
    lines.append(wording.line(value, [term], wrong))
    recheck = wording.recheck(value, term, right)
    begun, newline, expected = recheck.partition("\n")
    asked, before = wording.question(*problem), "<think>" + "\n".join(lines) + "\n"
    # A first pass may slip: what follows is expected without its result.
    following = wording.line(right, [terms[at + 1]], 0)[:-3]
    return (
        Probe(asked, before + begun + newline, expected),
        Probe(asked, f"{before}{recheck}\n", following),
    )


def _add(value: int, term: int) -> int:
    return (value + term) % MODULUS


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
