"""Every document is parsed and its arithmetic done again, from the text alone."""

import hashlib
import json
import math
import re
from importlib import resources
from typing import NamedTuple

import numpy as np
import pytest

from r1jax.data.tasks import TASKS, mini_aime
from r1jax.data.tasks.mini_aime import Web

QUESTION = re.compile(r"What is (\d{3})((?:[+-][1-9]){3,6}) modulo a thousand\?")
TAGGED = re.compile(r"<think>(.*)\n</think>\n<answer>\\boxed\{(\d{3})\}</answer>", re.DOTALL)
BARE = re.compile(r"(.*)\n\\boxed\{(\d{3})\}", re.DOTALL)
LINE = re.compile(r"(\d{3})((?:[+-][1-9])+)=(\d{3})")
RECHECK = re.compile(r"(\d\d)([+-][1-9])=(\d\d),(\d{3})")
DOCUMENTS = 3000


class Line(NamedTuple):
    before: int
    terms: list[int]
    result: int
    recheck: int | None  # the value that a re-check gives


class Document(NamedTuple):
    start: int
    terms: list[int]
    lines: list[Line]
    about: int | None
    boxed: int
    tagged: bool

    @property
    def answer(self):
        return (self.start + sum(self.terms)) % 1000

    @property
    def style(self):
        if self.about is not None:
            return "guess"
        if any(len(line.terms) > 1 for line in self.lines):
            return "sloppy"
        return "check" if any(line.recheck is not None for line in self.lines) else "careful"


def parse_question(text):
    start, terms = QUESTION.fullmatch(text).groups()
    terms = [int(t) for t in re.findall("[+-].", terms)]
    assert len({abs(t) for t in terms}) == len(terms)
    return int(start), terms


def parse(question, response):
    """The document, whose form and order of terms is checked; its results are not."""
    start, terms = parse_question(question)
    match = TAGGED.fullmatch(response)
    body, boxed = (match or BARE.fullmatch(response)).groups()
    if about := re.fullmatch(r"about (\d{3})", body):
        return Document(start, terms, [], int(about[1]), int(boxed), match is not None)
    lines, texts = [], iter(body.split("\n"))
    for text in texts:
        if text == "wait, check":
            line = lines.pop()
            assert len(line.terms) == 1 and line.recheck is None
            units, term, sum_of_units, value = RECHECK.fullmatch(next(texts)).groups()
            # Units of the number before, ten more to borrow from only where they are too few.
            assert int(term) == line.terms[0]
            borrowed = 10 if line.before % 10 + int(term) < 0 else 0
            assert int(units) == line.before % 10 + borrowed
            assert int(sum_of_units) == int(units) + int(term)
            lines.append(line._replace(recheck=int(value)))
        else:
            before, these, result = LINE.fullmatch(text).groups()
            these = [int(t) for t in re.findall("[+-].", these)]
            lines.append(Line(int(before), these, int(result), None))
    assert [t for line in lines for t in line.terms] == terms
    value = start
    for line in lines:  # each goes on from what was last written
        assert line.before == value
        value = line.result if line.recheck is None else line.recheck
    assert value == int(boxed)
    return Document(start, terms, lines, None, int(boxed), match is not None)


def right(line):
    return (line.before + sum(line.terms)) % 1000


def digits_off(a, b):
    return sum(x != y for x, y in zip(f"{a:03d}", f"{b:03d}", strict=True))


def near(count, total, share):
    """Within four standard errors: a true share fails once in 16,000 times."""
    return abs(count - total * share) <= 4 * math.sqrt(total * share * (1 - share))


@pytest.fixture(scope="module")
def textbook():
    rng = np.random.default_rng(0)
    return [parse(*mini_aime.textbook_document(rng)) for _ in range(DOCUMENTS)]


@pytest.fixture(scope="module")
def web():
    rng = np.random.default_rng(1)
    return [parse(*mini_aime.web_document(rng, Web())) for _ in range(DOCUMENTS)]


def test_textbook_never_leaves_a_wrong_line_standing(textbook):
    wrong = rechecked = total = 0
    for document in textbook:
        assert document.tagged and document.boxed == document.answer
        for line in document.lines:
            assert len(line.terms) == 1
            final = line.result if line.recheck is None else line.recheck
            assert final == right(line)
            total += 1
            rechecked += line.recheck is not None
            wrong += line.result != right(line)
            # a slip is one digit
            assert digits_off(line.result, right(line)) <= 1
    assert near(rechecked, total, 0.4) and near(wrong, rechecked, 0.65)


def test_shares_of_styles(web):
    shares = Web()
    for style in ("guess", "sloppy", "careful", "check"):
        count = sum(d.style == style for d in web)
        # 0.1⁴ of the checkers check nothing and pass as careful: far below the error
        assert near(count, DOCUMENTS, getattr(shares, style)), style
    assert near(sum(d.tagged for d in web), DOCUMENTS, shares.tagged)


def test_guesses_are_near(web):
    off = [(d.about - d.answer + 500) % 1000 - 500 for d in web if d.style == "guess"]
    assert min(off) >= -30 and max(off) <= 30
    # uniform over 61 values: variance (61² - 1)/12 = 310
    assert abs(np.mean(off)) < 4 * math.sqrt(310 / len(off))
    assert np.var(off) == pytest.approx(310, rel=0.15)


def test_rates_of_slips(web):
    shares, single = Web(), [
        line for d in web if d.style in ("careful", "check") for line in d.lines
    ]  # fmt: skip
    carried = [line for line in single if right(line) // 10 != line.before // 10]
    plain = [line for line in single if right(line) // 10 == line.before // 10]
    assert len(carried) > 500 and len(plain) > 500
    # Where nothing is carried, a slip is a digit wrong.
    assert near(sum(x.result != right(x) for x in plain), len(plain), shares.random_slip)
    assert all(digits_off(x.result, right(x)) <= 1 for x in plain)

    def forgotten(line):
        return line.before // 10 * 10 + right(line) % 10

    # Where something is, it may be forgotten; if not, a digit may be wrong, which is by chance
    # (1 in 27, where one digit carries) the same number: at most 0.1% of all.
    share = (1 - shares.carry_slip) * (1 - shares.random_slip)
    assert near(sum(x.result == right(x) for x in carried), len(carried), share)
    share = shares.carry_slip + (1 - shares.carry_slip) * shares.random_slip / 27
    assert near(sum(x.result == forgotten(x) for x in carried), len(carried), share)


def test_checkers_check_most_lines_and_are_mostly_right(web):
    shares, lines = Web(), [line for d in web if d.style == "check" for line in d.lines]
    checked = [line for line in lines if line.recheck is not None]
    # Documents without any check are not seen here: 0.1³ at most are missing.
    assert near(len(checked), len(lines), shares.check_rate)
    wrong = sum(line.recheck != right(line) for line in checked)
    assert near(wrong, len(checked), shares.recheck_slip)
    # ... and the first pass before a check is as sloppy as any.
    assert sum(line.result != right(line) for line in checked) > 0.2 * len(checked)


def test_sloppy_lines_take_two_or_three_operations(web):
    lines = [d.lines for d in web if d.style == "sloppy"]
    assert {len(x.terms) for document in lines for x in document[:-1]} == {2, 3}
    assert {len(document[-1].terms) for document in lines} == {1, 2, 3}


def test_a_model_of_the_web_answers_few_and_some(web):
    answered = np.mean([d.boxed == d.answer for d in web])
    assert 0.05 < answered < 0.25  # reinforcement learning needs some, and room


def test_composition_is_a_setting():
    rng = np.random.default_rng(2)
    only = Web(
        guess=0, sloppy=0, careful=0, check=1, check_rate=1, random_slip=0, carry_slip=0,
        recheck_slip=0, tagged=0,
    )  # fmt: skip
    for _ in range(50):
        document = parse(*mini_aime.web_document(rng, only))
        assert not document.tagged and document.boxed == document.answer
        assert all(line.recheck == line.result == right(line) for line in document.lines)
    with pytest.raises(ValueError, match=r"guess \+ sloppy \+ careful \+ check = 1.2, must be 1"):
        Web(guess=0.5, sloppy=0.5, careful=0.1, check=0.1)


def test_documents_are_functions_of_the_generator():
    def some(seed):
        rng = np.random.default_rng(seed)
        texts = [mini_aime.textbook_document(rng), mini_aime.web_document(rng, Web())]
        return [*texts, mini_aime.web_document(rng, Web()), mini_aime.textbook_document(rng)]

    assert some(5) == some(5)
    assert len({*some(5), *some(6)}) == 8  # and the generator moves on
    assert mini_aime.corpus(3, 20) == mini_aime.corpus(3, 20) != mini_aime.corpus(4, 20)


def test_a_tokenizers_corpus_has_both_kinds_with_their_prompts():
    texts = mini_aime.corpus(0, 40)
    assert len(texts) == 80
    prompts, responses = texts[::2], texts[1::2]
    for prompt, response, kind in zip(prompts, responses, ["textbook", "web"] * 20, strict=True):
        question = re.fullmatch("User: (.*) Assistant:", prompt)[1]
        document = parse(question, response)
        assert kind == "web" or document.style in ("check", "careful")
    assert any("about" in r for r in responses[1::2])


def rows_of(name):
    text = (resources.files("r1jax.data.tasks") / f"{name}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_fixed_test_files():
    test, dev = rows_of("mini_aime_test"), rows_of("mini_aime_dev")
    assert (len(test), len(dev)) == (120, 128)
    for name, rows in (("mini_aime_test", test), ("mini_aime_dev", dev)):
        for i, row in enumerate(rows):
            start, terms = parse_question(row["question"])
            assert row["answer"] == str((start + sum(terms)) % 1000)
            assert row["id"] == f"{name}/{i}" and set(row) == {"id", "question", "answer"}
    questions = [row["question"] for row in test + dev]
    assert len(set(questions)) == 248  # no question twice, the files disjoint
    assert mini_aime.held_out() == set(questions)


def test_problems():
    rows = TASKS["mini_aime"].problems(0, 2000)
    counts = dict.fromkeys(range(3, 7), 0)
    for i, row in enumerate(rows):
        start, terms = parse_question(row["question"])
        assert row == {
            "id": f"mini_aime/{i}",
            "question": row["question"],
            "answer": str((start + sum(terms)) % 1000),
        }
        counts[len(terms)] += 1
    assert len({row["question"] for row in rows}) == 2000
    assert all(near(count, 2000, 1 / 4) for count in counts.values())
    assert mini_aime.problems(0, 30) == rows[:30] != mini_aime.problems(1, 30)


def test_nothing_generated_is_held_out(textbook, web, monkeypatch):
    held_out = mini_aime.held_out()
    problems = [row["question"] for row in mini_aime.problems(1, 2000)]
    probes = [p.question for kind in mini_aime.probes(1, 200).values() for p in kind]
    drawn = [f"What is {d.start:03d}{''.join(f'{t:+d}' for t in d.terms)} modulo a thousand?"
             for d in textbook + web]  # fmt: skip
    assert held_out.isdisjoint([*problems, *probes, *drawn])
    # With 4 billion problems that says little of the filter: hold out what would come next.
    rng = np.random.default_rng(9)
    coming = [mini_aime.question(mini_aime.draw(rng)) for _ in range(3)]
    monkeypatch.setattr(mini_aime, "held_out", lambda: frozenset(coming[:2]))
    assert mini_aime.question(mini_aime.draw(np.random.default_rng(9))) == coming[2]


def test_draws_cover_what_they_should():
    rng = np.random.default_rng(10)
    drawn = [mini_aime.draw(rng) for _ in range(2000)]
    digits = [abs(t) for _, terms in drawn for t in terms]
    assert all(near(digits.count(d), len(digits), 1 / 9) for d in range(1, 10))
    signs = [t > 0 for _, terms in drawn for t in terms]
    assert near(sum(signs), len(signs), 1 / 2)
    starts = [start for start, _ in drawn]
    assert min(starts) < 10 and max(starts) > 990
    assert near(sum(s < 500 for s in starts), 2000, 1 / 2)


def test_probes_expect_what_is_right():
    probes = mini_aime.probes(0, 300)
    assert list(probes) == ["repair", "resume"] and all(len(p) == 300 for p in probes.values())
    places = set()
    for repair, resume in zip(probes["repair"], probes["resume"], strict=True):
        assert repair.question == resume.question
        start, terms = parse_question(repair.question)
        *lines, empty = repair.response.removeprefix("<think>").split("\n")
        assert lines[-1] == "wait, check" and empty == ""
        value = start
        for i, text in enumerate(lines[:-1]):
            before, term, result = LINE.fullmatch(text).groups()
            assert int(before) == value and int(term) == terms[i]
            value = (value + terms[i]) % 1000
            # every line is right but the last, which is what there is to repair
            assert (int(result) == value) == (i < len(lines) - 2)
        places.add(i)
        units, term, sum_of_units, mended = RECHECK.fullmatch(repair.expected).groups()
        assert int(term) == terms[i] and int(mended) == value
        assert int(units) % 10 == int(before) % 10
        assert int(sum_of_units) == int(units) + terms[i] and int(sum_of_units) % 10 == value % 10
        # The other continues after the mended line, up to the next result.
        assert resume.response == f"{repair.response}{repair.expected}\n"
        assert resume.expected == f"{value:03d}{terms[i + 1]:+d}="
    assert places == {0, 1, 2, 3, 4}
    assert mini_aime.probes(0, 300) == probes != mini_aime.probes(1, 300)


# SHA-256 of what was generated when the figures of R1-Zero were measured: they are figures of
# this world, and a change of it, even of the order of draws, makes them those of another.
FIXED = {
    "textbook": "8a407cd25041d4500b3156c726d0a7cf2c53b98f2a6f657734dfbc4618b79401",
    "web": "1e14704696092e948db9690b536dd8c6ce3b0a35c1f1f2e1dcf2c35156bd34bc",
    "problems": "6ce9f7f2578b4c977f074de5244368f1f801209686dc2c49aa986404486c96aa",
    "corpus": "e47aa2423d6c779eefe362f7aea919274824ccfb9c236a8a94f37dd98807b547",
    "probes": "1e5fcc38ad6acec1907f3fc546485e89426a357114cf444dcae528895d68a10b",
}


def test_the_world_is_the_one_that_was_measured():
    rng = np.random.default_rng(0)
    generated = {
        "textbook": [mini_aime.textbook_document(rng) for _ in range(500)],
        "web": [mini_aime.web_document(rng, Web()) for _ in range(500)],
        "problems": mini_aime.problems(0, 500),
        "corpus": mini_aime.corpus(0, 500),
        "probes": {
            kind: [[p.question, p.response, p.expected] for p in probes]
            for kind, probes in mini_aime.probes(0, 200).items()
        },
    }
    hashes = {k: hashlib.sha256(json.dumps(v).encode()).hexdigest() for k, v in generated.items()}
    assert hashes == FIXED
