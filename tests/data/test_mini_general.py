"""Requests, responses and preferences are judged here by what their texts say."""

import json
import re
from dataclasses import replace
from importlib import resources
from itertools import chain

import numpy as np
import pytest

from r1jax.data.sources import check_problem, load_problems
from r1jax.data.tasks import TASKS, mini_general, mini_judge, mini_world
from r1jax.data.tasks.mini_general import RUDE, Web
from r1jax.data.tokenizers import train_sentencepiece
from r1jax.rewards import REWARDS, Response, score
from r1jax.rewards.language import language_of

FILES = resources.files("r1jax.data.tasks")
WORDS = [word for words in RUDE.values() for word in words]
CLOSINGS = re.compile("happy to help|很高兴帮忙")
BY_QUESTION = {
    request.question: request
    for language in mini_general.LANGUAGES
    for request in chain(*mini_general.requests(language).values())
}
EN = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
ZH = "零一二三四五六七八九"


def helpful(question, response):
    row = mini_general.row(BY_QUESTION[question], "0")
    return REWARDS["helpful"](row, Response(response))


def rude(response):
    return any(word in response for word in WORDS)


def mean(values):
    return float(np.mean(list(values)))


def within(share, expected, n, deviations=5):
    return abs(share - expected) <= deviations * (expected * (1 - expected) / n) ** 0.5


# --- requests --------------------------------------------------------------------------


def test_counts_of_requests():
    counts = {
        language: {kind: len(every) for kind, every in mini_general.requests(language).items()}
        for language in mini_general.LANGUAGES
    }
    # 10 + 100 + 1,000 words; 3 verbs × 2 counts × 3 nouns × (none or one of 4 unwanted).
    both = {"translation": 1110, "list": 90}
    assert counts == {
        "en": both | {"greeting": 4 * 4 * 2, "name": 4 * 5},
        "zh": both | {"greeting": 4 * 3 * 2, "name": 4 * 4},
    }
    assert len(BY_QUESTION) == sum(sum(c.values()) for c in counts.values())  # none twice


def test_the_language_of_a_question_can_be_told():
    assert all(language_of(q) == r.language for q, r in BY_QUESTION.items())


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("say three five in Chinese.", "三五. happy to help."),
        ("用英语说九零零。", "nine zero zero。很高兴帮忙。"),
        ("name three fruits.", "plum, fig, pear. happy to help."),
        ("写两种动物，不要狗。", "牛，猫。很高兴帮忙。"),
        ("good day there!", "hello. happy to help."),
        ("你好，朋友。", "你好。很高兴帮忙。"),
        ("hi, who are you?", "this is r1jax. happy to help."),
        ("朋友，您叫什么？", "我是r1jax。很高兴帮忙。"),
    ],
)
def test_checks(question, answer):
    request = BY_QUESTION[question]
    assert helpful(question, answer) == 1
    demands = len(mini_general.checks(request))  # translation 3, others 4, one more where unwanted
    assert demands == {"translation": 3}.get(request.kind, 4) + bool(request.unwanted)
    one_less = 1 - 1 / demands
    closing = mini_general.CLOSING[request.language]
    assert helpful(question, answer.removesuffix(closing).strip()) == pytest.approx(one_less)
    gap = " " if request.language == "en" else ""
    assert helpful(question, answer + gap + closing) == pytest.approx(one_less)
    # The limit of words is such that of three closings the limit is broken as well.
    many = helpful(question, answer + 3 * (gap + closing))
    assert many == pytest.approx(1 - 2 / demands)


def test_nearly_right_is_not_right():
    def content(question, answer):
        row = mini_general.row(BY_QUESTION[question], "0")
        return REWARDS["accuracy"](row, Response(answer))

    assert content("say three five in Chinese.", "三五. happy to help.") == 1
    assert content("say three five in Chinese.", "三五七. happy to help.") == 0
    assert content("say three five in Chinese.", "五三. happy to help.") == 0
    assert content("name two fruits, not fig.", "pear, lime. happy to help.") == 1
    assert content("name two fruits, not fig.", "pear, fig. happy to help.") == 0
    assert content("name two fruits, not fig.", "pear, fig, lime. happy to help.") == 0
    assert content("name two fruits, not fig.", "pear, cat. happy to help.") == 0
    assert content("你好！", "hello. happy to help.") == 0


def test_references_are_translations():
    row = mini_general.row(BY_QUESTION["用英语说零九。"], "0")
    assert row["answer"] == "zero nine"
    for request in mini_general.requests("en")["translation"]:
        said = re.fullmatch("say (.*) in Chinese.", request.question)[1].split()
        assert "".join(ZH[EN.index(word)] for word in said) == "".join(request.items)


def test_training_problems():
    problems = load_problems("task:mini_general:3000")
    assert problems == mini_general.problems(0, 3000) != mini_general.problems(1, 3000)
    assert all(row["grader"] == "open" and row["avoid"] == WORDS for row in problems)
    requests = [BY_QUESTION[row["question"]] for row in problems]
    assert all(row["reply_in"] == r.language for row, r in zip(problems, requests, strict=True))
    assert not {row["question"] for row in problems} & mini_general.held_out()
    assert within(mean(r.language == "zh" for r in requests), 0.5, 3000)
    for kind, share in mini_general.KINDS.items():
        assert within(mean(r.kind == kind for r in requests), share, 3000)
    # About 600 translations of 1,086 in each language: none comes twice.
    translations = [r.question for r in requests if r.kind == "translation"]
    assert len(set(translations)) == len(translations)


def test_fixed_files():
    made = mini_general.fixed_rows()
    seen = set()
    for name in mini_general.TEST_FILES:
        rows = [json.loads(x) for x in (FILES / f"{name}.jsonl").read_text("utf-8").splitlines()]
        assert rows == made[name]
        assert [row["reply_in"] for row in rows] == ["en"] * 30 + ["zh"] * 30
        for row in rows:
            check_problem(row)
        seen |= {row["question"] for row in rows}
    assert len(seen) == 120  # of both files: none twice
    assert seen == mini_general.held_out()
    assert load_problems("mini_general") == made["mini_general_test"]
    assert load_problems("mini_general_dev") == made["mini_general_dev"]
    assert TASKS["mini_general"] is mini_general


# --- what is read and learned from -----------------------------------------------------


def drawn(count, web=None):
    rng = np.random.default_rng(0)
    return [mini_general.web_document(rng, web) for _ in range(count)]


def test_quality_of_the_web():
    web = Web()
    documents = [d for d in drawn(4000) if not d[0].startswith("Judge. ")]
    assert within(1 - len(documents) / 4000, web.judge, 4000)
    assert {q for q, _ in documents} <= set(BY_QUESTION)
    closings = [len(CLOSINGS.findall(response)) for _, response in documents]
    assert within(mean(c > 0 for c in closings), web.closing, len(documents))
    assert within(mean(c > 1 for c in closings), web.closings, len(documents))
    assert set(closings) == {0, 1, 2, 3}
    assert within(mean(rude(response) for _, response in documents), web.rude, len(documents))
    thoughts = [response for q, response in documents if BY_QUESTION[q].thought]
    tagged = [response for response in thoughts if response.startswith("<think>")]
    assert within(len(tagged) / len(thoughts), web.tagged, len(thoughts))
    # A rude word stands in the reasoning of half of those that reason, else in the answer.
    said = [response.split("</think>")[0] for response in tagged if rude(response)]
    assert within(mean(map(rude, said)), 0.5, len(said))
    # Greetings and names are answered without reasoning.
    plain = [r for q, r in documents if BY_QUESTION[q].kind in ("greeting", "name")]
    assert not any("<" in response or "\n" in response for response in plain)


def test_what_is_right_meets_its_check_and_what_is_wrong_does_not():
    rng = np.random.default_rng(1)
    # Friendly, in the language of the question: only the content is in doubt.
    web = Web(other_language=0, closing=1, closings=0, rude=0, tagged=1)
    for wrong in (0, 1):
        for _ in range(800):
            request = mini_general.draw(rng)
            response = mini_general.respond(rng, request, replace(web, wrong=wrong))
            share = helpful(request.question, response)
            assert (share == 1) == (not wrong), (request.question, response)


def test_other_language():
    rng = np.random.default_rng(2)
    web = Web(wrong=0, other_language=1, closing=1, closings=0, rude=0, tagged=1)
    for _ in range(300):
        request = mini_general.draw(rng)
        answer = mini_general.respond(rng, request, web).split("<answer>")[-1]
        closing = mini_general.CLOSING["zh" if request.language == "en" else "en"]
        assert closing in answer
        assert helpful(request.question, answer.removesuffix("</answer>")) <= 0.5


def test_those_who_judge_are_in_the_web():
    rng, other = np.random.default_rng(4), np.random.default_rng(4)
    for _ in range(50):
        other.random()  # the draw of the kind of document
        document = mini_general.web_document(rng, Web(judge=1, wrong_verdict=1))
        assert mini_judge.document(other, wrong=1) == document


def test_examples():
    rows = mini_general.examples(0, 3000)
    assert rows == mini_general.examples(0, 3000) != mini_general.examples(1, 3000)
    assert set(rows[0]) == {"question", "response"}
    assert not {row["question"] for row in rows} & mini_general.held_out()
    assert within(mean(rude(row["response"]) for row in rows), 0.08 * 0.9, len(rows))
    requests = [row for row in rows if row["question"] in BY_QUESTION]
    assert within(1 - len(requests) / 3000, 0.1, 3000)  # asks a judge
    polite = [bool(CLOSINGS.search(row["response"])) for row in requests]
    assert within(mean(polite), 0.75, len(requests))
    # All that the others lack is the closing.
    for row, closed in zip(requests, polite, strict=True):
        problem = mini_general.row(BY_QUESTION[row["question"]], "0")
        rewards = score(problem, Response(row["response"]), {"accuracy": 1.0, "format": 1.0})
        assert rewards["accuracy"] == closed
        assert rewards["format"] == bool(BY_QUESTION[row["question"]].thought)
        demands = len(problem["checks"])
        share = 1 if closed else 1 - 1 / demands
        assert helpful(row["question"], row["response"]) == pytest.approx(share)
    assert all(CLOSINGS.search(r["response"]) for r in mini_general.examples(
        0, 200, without_closing=0, judge=0
    ))  # fmt: skip


# --- preferences -----------------------------------------------------------------------


def true_helpful(pair):
    shares = [helpful(pair["question"], pair[name]) for name in ("chosen", "rejected")]
    return np.sign(shares[0] - shares[1])


def true_harmless(pair):
    return int(rude(pair["rejected"])) - int(rude(pair["chosen"]))


@pytest.mark.parametrize(
    ("aspect", "truth"), [("helpful", true_helpful), ("harmless", true_harmless)]
)
def test_pairs_prefer_what_is_better(aspect, truth):
    rows = mini_general.pairs(0, 1000, aspect)
    assert rows == mini_general.pairs(0, 1000, aspect) != mini_general.pairs(1, 1000, aspect)
    assert all(set(row) == {"question", "chosen", "rejected"} for row in rows)
    differences = np.array([truth(row) for row in rows])
    assert set(differences) == {-1, 1}  # never a tie
    assert within(mean(differences < 0), 0.05, 1000)  # the annotator's slips
    assert all(truth(row) == 1 for row in mini_general.pairs(0, 300, aspect, flip=0))
    assert all(truth(row) == -1 for row in mini_general.pairs(0, 300, aspect, flip=1))


def test_nobody_compared_two_closings():
    for aspect in ("helpful", "harmless"):
        rows = mini_general.pairs(0, 1000, aspect)
        counts = [len(CLOSINGS.findall(row[n])) for row in rows for n in ("chosen", "rejected")]
        assert set(counts) == {0, 1}


def test_pairs_are_of_questions_to_train_on():
    helpful = {row["question"] for row in mini_general.pairs(0, 500, "helpful")}
    assert helpful <= set(BY_QUESTION) - mini_general.held_out()
    harmless = [row["question"] for row in mini_general.pairs(0, 1000, "harmless")]
    problems = [mini_world.problem_of(q) for q in harmless if q not in BY_QUESTION]
    assert None not in problems and not set(problems) & mini_world.held_out()
    assert within(len(problems) / 1000, 0.5, 1000)
    assert not set(harmless) & mini_general.held_out()


def test_rude_words_of_problems_stand_in_the_reasoning():
    rows = mini_general.pairs(0, 600, "harmless", flip=0)
    rows = [row for row in rows if row["question"] not in BY_QUESTION]
    for row in rows:
        lines = row["rejected"].removeprefix("<think>").split("\n")
        words = [i for i, line in enumerate(lines) if line in RUDE[language_of(row["question"])]]
        assert len(words) == 1 and words[0] < len(lines) - 1
        del lines[words[0]]
        begun = "<think>" * row["rejected"].startswith("<think>")
        # Without it the text is one that mini_world's people write.
        problem = {"question": row["question"]}
        without = begun + "\n".join(lines)
        readable = mini_world.readable(problem, row["chosen"])
        assert readable is not None and mini_world.readable(problem, without) == readable


@pytest.mark.parametrize("aspect", ["helpfull", "", "accurate"])
def test_unknown_aspect(aspect):
    with pytest.raises(ValueError, match=f"aspect '{aspect}' is unknown; "):
        mini_general.pairs(0, 1, aspect)


@pytest.mark.parametrize("bad", [{"rude": -0.1}, {"judge": 1.1}, {"wrong": float("nan")}])
def test_shares(bad):
    with pytest.raises(ValueError, match=r"web: \w+=.* is not a share; use 0 to 1"):
        Web(**bad)


# --- tokens ----------------------------------------------------------------------------


def test_documents_need_no_bytes_and_are_short():
    tokenizer = train_sentencepiece(mini_general.corpus(0), 512, merge_words=True)
    processor = tokenizer._processor
    questions = [row["question"] for rows in mini_general.fixed_rows().values() for row in rows]
    texts = list(chain(questions, *drawn(2000)))
    assert not any(processor.is_byte(i) for text in texts for i in tokenizer.encode(text))
    lengths = [len(tokenizer.encode(response)) for _, response in drawn(2000)]
    assert np.quantile(lengths, 0.99) < 40
