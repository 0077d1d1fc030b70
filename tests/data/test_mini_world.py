"""Every document is parsed and done again from its text alone: arithmetic, words, languages."""

import json
import math
import re
from importlib import resources
from typing import NamedTuple

import numpy as np
import pytest

from r1jax.data.sources import load_problems
from r1jax.data.tasks import TASKS, mini_aime, mini_general, mini_world
from r1jax.data.tasks.mini_world import Web
from r1jax.data.tokenizers import train_sentencepiece
from r1jax.rewards.filters import FILTERS
from r1jax.rewards.format import format_reward
from r1jax.rewards.language import consistency
from r1jax.rewards.math import grade

QUESTION = {
    "en": re.compile(r"What is (\d{3})((?:[+-][1-9]){3,6}) modulo a thousand\?"),
    "zh": re.compile(r"(\d{3})((?:[+-][1-9]){3,6})除以一千的余数是多少？"),
}
STEP = {"en": re.compile(r"so (.*)"), "zh": re.compile(r"得(.*)")}
CHECK = {"wait, check": "en", "等等，检查": "zh"}
GUESS = {"en": re.compile(r"about (\d{3})"), "zh": re.compile(r"大约(\d{3})")}
SUMMARY = {"en": "the answer is {}.", "zh": "答案是{}。"}
RUDE = {"silly": "en", "dumb": "en", "笨": "zh", "傻": "zh"}
EQUATION = re.compile(r"(\d{3})((?:[+-][1-9])+)=(\d{3})")
RECHECK = re.compile(r"(\d\d)([+-][1-9])=(\d\d),(\d{3})")
DOCUMENTS = 4000
# No other texts, and no slips that would have to be told apart: for counting the shares.
PLAIN_SHARES = dict(general=0.0, recheck_slip=0.0)


class Document(NamedTuple):
    language: str  # of the question
    answer: int
    steps: list[str]  # language of each line
    checks: list[str]  # language of each re-check
    guess: str | None  # its language
    rude: list[str]  # languages of the rude words
    summary: str | None  # its language
    tagged: bool
    value: int
    terms: list[int]
    mended: bool  # every re-check gives the right value


def in_language(patterns, text):
    for language, pattern in patterns.items():
        if match := pattern.fullmatch(text):
            return language, match
    return None


def parse(question, response):
    """The document. Asserts its form, and that each line goes on from the one before."""
    language, asked = in_language(QUESTION, question)
    start, terms = int(asked[1]), [int(t) for t in re.findall("[+-].", asked[2])]
    tagged = response.startswith("<think>")
    if tagged:
        body, result = response.removeprefix("<think>").split("\n</think>\n<answer>")
        assert result.endswith("</answer>")
        result = result.removesuffix("</answer>")
    else:
        body, _, result = response.rpartition("\n")
    box = re.search(r"\\boxed\{(\d{3})\}", result)
    summary = None
    if result != box[0]:
        summary = next(name for name, s in SUMMARY.items() if result == s.format(box[0]))
    steps, checks, rude, guess, done = [], [], [], None, []
    before, value, mended, texts = start, start, True, iter(body.split("\n"))
    for text in texts:
        if text in RUDE:
            rude.append(RUDE[text])
        elif text in CHECK:
            checks.append(CHECK[text])
            units, term, total, again = RECHECK.fullmatch(next(texts)).groups()
            assert int(term) == done[-1]
            borrowed = 10 if before % 10 + int(term) < 0 else 0
            assert int(units) == before % 10 + borrowed
            assert int(total) == int(units) + int(term)
            mended &= int(again) == (before + int(term)) % 1000
            value = int(again)
        elif found := in_language(GUESS, text):
            guess, value = found[0], int(found[1][1])
        else:
            name, line = in_language(STEP, text)
            first, these, result = EQUATION.fullmatch(line[1]).groups()
            assert int(first) == value
            before, value = value, int(result)
            done += [int(t) for t in re.findall("[+-].", these)]
            steps.append(name)
    assert done == ([] if guess else terms) and value == int(box[1])
    return Document(
        language, (start + sum(terms)) % 1000, steps, checks, guess, rude, summary, tagged,
        value, terms, mended,
    )  # fmt: skip


def near(count, total, share):
    """Within four standard errors: a true share fails once in 16,000 times."""
    return abs(count - total * share) <= 4 * math.sqrt(total * share * (1 - share))


@pytest.fixture(scope="module")
def textbook():
    rng = np.random.default_rng(0)
    documents = [mini_world.textbook_document(rng) for _ in range(1200)]
    problems = [d for d in documents if mini_world.problem_of(d[0])]
    assert near(len(documents) - len(problems), len(documents), mini_world.GENERAL_TEXTS)
    return [parse(*document) for document in problems]


@pytest.fixture(scope="module")
def web():
    rng = np.random.default_rng(1)
    return [parse(*mini_world.web_document(rng, Web(**PLAIN_SHARES))) for _ in range(DOCUMENTS)]


def test_the_textbook_is_right_and_in_one_language(textbook):
    for document in textbook:
        assert document.tagged and document.value == document.answer and document.mended
        assert {*document.steps, *document.checks} == {document.language}
        assert document.rude == [] and document.summary is None
    assert near(sum(d.language == "zh" for d in textbook), len(textbook), 1 / 2)
    checks = [name for d in textbook for name in d.checks]
    assert 0.4 < checks.count("zh") / len(checks) < 0.6  # both phrases are taught


def test_shares_of_the_web(web):
    shares = Web()
    assert near(sum(d.language == "zh" for d in web), len(web), 1 / 2)
    assert near(sum(d.summary is not None for d in web), len(web), shares.summary)
    for checks, share in ((False, shares.rude / 6), (True, shares.rude)):
        these = [d for d in web if bool(d.checks) == checks]
        assert near(sum(bool(d.rude) for d in these), len(these), share)
    # A text is changed from a line on, or from its start: its last line is in the other language.
    last = [d.guess or d.steps[-1] for d in web]
    changed = sum(name != d.language for name, d in zip(last, web, strict=True))
    assert near(changed, len(web), shares.mixed)
    assert all(d.summary in (None, name) for name, d in zip(last, web, strict=True))
    assert all(set(d.rude) <= {d.language} and len(d.rude) <= 1 for d in web)


def test_a_text_changes_its_language_once_and_stays(web):
    turns = 0
    for document in web:
        if document.steps:
            changes = [a != b for a, b in zip(document.steps, document.steps[1:], strict=False)]
            assert sum(changes) <= 1
            if document.steps[0] != document.language:
                assert not any(changes)
            turns += sum(changes)
    assert turns > 100


def test_checks_are_english_whatever_the_question(web):
    for language in ("en", "zh"):
        checkers = [d for d in web if d.checks and d.language == language]
        assert all(len(set(d.checks)) == 1 for d in checkers)  # a habit of the writer
        english = sum(d.checks[0] == "en" for d in checkers)
        assert near(english, len(checkers), Web().english_checks)


def test_a_checker_asked_in_chinese_mixes():
    # With English checks alone and no other mixing, a Chinese text of n checked lines has n
    # Chinese words (得, a character) and 2n English ones (wait, check): a share of 1/3.
    only = Web(guess=0, sloppy=0, careful=0, check=1, check_rate=1, tagged=1, mixed=0, rude=0,
               english_checks=1, general=0, summary=0)  # fmt: skip
    rng = np.random.default_rng(3)
    for _ in range(20):
        question, response = mini_world.web_document(rng, only)
        if QUESTION["zh"].fullmatch(question):
            assert consistency(response, "zh") == pytest.approx(1 / 3)
        else:
            assert consistency(response, "en") == 1.0


def test_general_documents_are_mixed_in():
    rng = np.random.default_rng(4)
    documents = [mini_world.web_document(rng, Web(general=0.3)) for _ in range(1000)]
    others = [q for q, _ in documents if in_language(QUESTION, q) is None]
    assert near(len(others), 1000, 0.3)


def test_settings_out_of_range():
    with pytest.raises(ValueError, match=r"web: mixed=1.5 must be from 0 to 1"):
        Web(mixed=1.5)
    with pytest.raises(ValueError, match=r"guess \+ sloppy \+ careful \+ check = 1.5"):
        Web(guess=0.94)


def test_documents_are_functions_of_the_generator():
    def some(seed):
        rng = np.random.default_rng(seed)
        web = [mini_world.web_document(rng, Web()) for _ in range(3)]
        return [*web, mini_world.textbook_document(rng)]

    assert some(5) == some(5) != some(6)
    assert mini_world.corpus(3, 20) == mini_world.corpus(3, 20) != mini_world.corpus(4, 20)


def test_examples_are_readable_right_and_checked():
    rows = mini_world.examples(0, 200)
    checked = 0
    for i, row in enumerate(rows):
        document = parse(row["question"], row["response"])
        assert document.language == ("en", "zh")[i % 2]
        assert document.value == document.answer and document.tagged
        assert document.summary == document.language and document.rude == []
        assert {*document.steps, *document.checks} == {document.language}
        assert consistency(row["response"], document.language) == 1.0
        assert not any(reject(row["question"], row["response"]) for reject in FILTERS.values())
        checked += len(document.checks)
        assert mini_world.readable(row, row["response"]) == row["response"]  # already is
    lines = sum(len(parse(r["question"], r["response"]).terms) for r in rows)
    # 0.9 of the lines, and more: a text with a slip in a line that nobody checked is left out.
    assert checked / lines > 0.9
    assert mini_world.examples(0, 20) == rows[:20] != mini_world.examples(1, 20)


# --- the readable pattern --------------------------------------------------------------

MIXED = (
    "<think>得123+4=126\nwait, check\n03+4=07,127\nso 127-5=122\n笨\n等等，检查\n07-5=02,122\n"
    "</think>\n<answer>\\boxed{122}</answer>"
)
READABLE = {
    "en": "<think>so 123+4=126\nwait, check\n03+4=07,127\nso 127-5=122\nsilly\nwait, check\n"
    "07-5=02,122\n</think>\n<answer>the answer is \\boxed{122}.</answer>",
    "zh": "<think>得123+4=126\n等等，检查\n03+4=07,127\n得127-5=122\n笨\n等等，检查\n07-5=02,122\n"
    "</think>\n<answer>答案是\\boxed{122}。</answer>",
}


def test_readable_translates_line_by_line():
    questions = {"en": "What is 123+4-5 modulo a thousand?", "zh": "123+4-5除以一千的余数是多少？"}
    for language, question in questions.items():
        for text in (MIXED, *READABLE.values()):
            for problem in ({"question": question}, {"question": "", "reply_in": language}):
                assert mini_world.readable(problem, text) == READABLE[language]
    bare = "大约007\n答案是\\boxed{007}。"
    want = "<think>about 007\n</think>\n<answer>the answer is \\boxed{007}.</answer>"
    assert mini_world.readable({"question": questions["en"]}, bare) == want
    # Lines without a word, and of several operations.
    plain = "123+4-5=122\n\\boxed{122}"
    want = "<think>得123+4-5=122\n</think>\n<answer>答案是\\boxed{122}。</answer>"
    assert mini_world.readable({"question": questions["zh"]}, plain) == want


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "<think>\n</think>\n<answer>\\boxed{1}</answer>",
        "<think>so 123+4=127\n",
        "<think>so 123+4=127\n</think>\n<answer></answer>",
        "<think>so 123+4=127\n</think>\n<answer>127</answer>",
        "<think>so 123+4=127\n</think>\n<answer>it is \\boxed{127}</answer>",
        "<think>so 123+4=127\n</think>\n<answer>\\boxed{127} \\boxed{127}</answer>",
        "<think>so 123+4\n</think>\n<answer>\\boxed{127}</answer>",
        "<think>so so 123+4=127\n</think>\n<answer>\\boxed{127}</answer>",
        "<think>so 123+4=127\nhello\n</think>\n<answer>\\boxed{127}</answer>",
        "<think>so 123+4=127\n\n</think>\n<answer>\\boxed{127}</answer>",
        "<think>so ١٢٣+4=127\n</think>\n<answer>\\boxed{127}</answer>",
        "<think>so {}\n</think>\n<answer>\\boxed{127}</answer>",
        "so 123+4=127 \\boxed{127}",
        "\ud800",
    ],
)
def test_readable_gives_up_on_what_it_cannot_read(text):
    assert mini_world.readable({"question": "Hello!"}, text) is None


def test_readable_in_an_unknown_language():
    assert mini_world.readable({"question": "", "reply_in": "ko"}, READABLE["en"]) is None


def test_every_document_of_the_web_can_be_made_readable():
    rng = np.random.default_rng(6)
    for _ in range(500):
        question, response = mini_world.web_document(rng, Web(general=0))
        before = parse(question, response)
        after = parse(question, mini_world.readable({"question": question}, response))
        assert {*after.steps, *after.checks, *after.rude, after.guess, after.summary} <= {
            before.language, None
        }  # fmt: skip
        kept = ("value", "terms", "answer", "mended")
        assert [getattr(before, k) for k in kept] == [getattr(after, k) for k in kept]
        counts = [len(before.steps), len(before.checks), len(before.rude)]
        assert counts == [len(after.steps), len(after.checks), len(after.rude)]


# --- problems --------------------------------------------------------------------------


def test_fixed_test_files():
    for name in ("mini_world_test", "mini_world_dev"):
        text = (resources.files("r1jax.data.tasks") / f"{name}.jsonl").read_text(encoding="utf-8")
        rows = [json.loads(line) for line in text.splitlines()]
        assert rows == mini_world.fixed_rows()[name]
        assert len(rows) == 120
        for i, row in enumerate(rows):
            language, match = in_language(QUESTION, row["question"])
            assert language == row["reply_in"] == ("en", "zh")[i % 2]
            terms = [int(t) for t in re.findall("[+-].", match[2])]
            assert row["answer"] == str((int(match[1]) + sum(terms)) % 1000)
            assert row["id"] == f"{name}/{i}" and set(row["avoid"]) == set(RUDE)
    for benchmark, name in (("mini_world", "test"), ("mini_world_dev", "dev")):
        problems = load_problems(benchmark)
        assert [p["id"] for p in problems] == [f"mini_world_{name}/{i}" for i in range(120)]


def test_held_out_problems():
    rows = [row for rows in mini_world.fixed_rows().values() for row in rows]
    held_out = {mini_world.problem_of(row["question"]) for row in rows}
    assert len(held_out) == 240 and mini_world.held_out() == held_out
    others = {mini_world.problem_of(question) for question in mini_aime.held_out()}
    assert held_out.isdisjoint(others) and None not in others
    assert mini_world.problem_of("Who are you?") is None


def test_nothing_generated_is_held_out(monkeypatch):
    # With 4 billion problems nothing would come by chance: hold out what would come next.
    def coming():
        rng = np.random.default_rng(9)
        return [mini_aime.draw(rng) for _ in range(3)]

    problems = coming()
    assert mini_world.draw(np.random.default_rng(9)) == problems[0]
    monkeypatch.setattr(mini_world, "held_out", lambda: frozenset(problems[:2]))
    assert mini_world.draw(np.random.default_rng(9)) == problems[2]


def test_problems():
    rows = TASKS["mini_world"].problems(0, 400)
    for i, row in enumerate(rows):
        language, match = in_language(QUESTION, row["question"])
        assert language == row["reply_in"] == ("en", "zh")[i % 2]
        value = int(match[1]) + sum(int(t) for t in re.findall("[+-].", match[2]))
        assert row["answer"] == str(value % 1000) and row["id"] == f"mini_world/{i}"
    assert len({mini_world.problem_of(row["question"]) for row in rows}) == 400
    assert mini_world.problems(0, 30) == rows[:30] != mini_world.problems(1, 30)
    loaded = load_problems("task:mini_world:8")
    assert [p["reply_in"] for p in loaded] == ["en", "zh"] * 4


def test_probes_expect_what_is_right():
    probes = mini_world.probes(0, 200)
    assert list(probes) == ["repair", "resume"]
    for i, (repair, resume) in enumerate(zip(*probes.values(), strict=True)):
        language, match = in_language(QUESTION, repair.question)
        assert language == ("en", "zh")[i % 2] and resume.question == repair.question
        terms = [int(t) for t in re.findall("[+-].", match[2])]
        *lines, check, empty = repair.response.removeprefix("<think>").split("\n")
        assert CHECK[check] == language and empty == ""
        values = [EQUATION.fullmatch(STEP[language].fullmatch(x)[1]).groups() for x in lines]
        done = len(lines)
        assert [int(v[1]) for v in values] == terms[:done]
        right = (int(match[1]) + sum(terms[:done])) % 1000
        assert int(values[-1][2]) != right  # the slip to be mended
        assert RECHECK.fullmatch(repair.expected)[4] == f"{right:03d}"
        assert resume.response == repair.response + repair.expected
        following = f"{right:03d}{terms[done]:+d}="
        assert resume.expected == {"en": f"\nso {following}", "zh": f"\n得{following}"}[language]


def test_phrases_are_a_piece_each():
    """A word more a line must cost no more than a token or two: responses have to stay short."""
    tokenizer = train_sentencepiece(mini_world.corpus(0), 640, merge_words=True)

    def tokens(text):
        return len(tokenizer.encode(text))

    for phrase in ("\nwait, check\n", "\n等等，检查\n", "\n得"):
        assert tokens(f"=127{phrase}03") == tokens("=127") + 1 + tokens("03"), phrase
    # English separates by a space, and a digit joins no piece.
    assert tokens("=127\nso 127") == tokens("=127") + 2 + tokens("127")
    rng = np.random.default_rng(7)
    for _ in range(200):
        question, response = mini_world.web_document(rng, Web())
        ids = tokenizer.encode(question) + tokenizer.encode(response)
        assert not any(tokenizer._processor.is_byte(i) for i in ids)
    longest = 0
    for row in mini_world.examples(0, 300):
        assert format_reward(row["response"]) == 1.0
        longest = max(longest, tokens(row["response"]))
    assert longest <= 155  # with 6 terms, all checked


def test_correct_means_correct():
    rows = {row["question"]: row for row in mini_world.problems(0, 40)}
    for question, row in rows.items():
        start, terms = mini_world.problem_of(question)
        value = (start + sum(terms)) % 1000
        for summary in SUMMARY.values():
            text = "<think>x</think><answer>" + summary.format(f"\\boxed{{{value:03d}}}")
            assert grade(row["answer"], text + "</answer>")


def test_rude_words_are_those_of_the_general_task():
    assert {word for words in mini_general.RUDE.values() for word in words} == set(RUDE)
