import pathlib
import subprocess
import sys

import pytest

from r1jax import rewards
from r1jax.rewards import REWARDS, Response, check_weights, score
from r1jax.rewards.graders import grader_of

ROOT = pathlib.Path(__file__).parents[2]
PROBLEM = {"id": "1", "question": "6 times 7?", "answer": "42"}
BOTH = {"accuracy": 1.0, "format": 1.0}
RIGHT = "<think>6·7</think><answer>\\boxed{42}</answer>"


@pytest.mark.parametrize(
    ("text", "accuracy", "form"),
    [
        (RIGHT, 1.0, 1.0),
        (RIGHT.replace("42", "41"), 0.0, 1.0),
        (RIGHT + " ok", 1.0, 0.0),
        ("nothing", 0.0, 0.0),
    ],
)
def test_score(text, accuracy, form):
    # total = 2·accuracy + 0.5·format
    assert score(PROBLEM, Response(text), {"accuracy": 2.0, "format": 0.5}) == {
        "accuracy": accuracy,
        "format": form,
        "total": 2.0 * accuracy + 0.5 * form,
        "errors": 0.0,
    }


def test_only_what_is_weighed_is_computed():
    assert score(PROBLEM, Response(RIGHT), {"format": 1.0}) == {
        "format": 1.0,
        "total": 1.0,
        "errors": 0.0,
    }


def test_weight_zero_measures_without_paying():
    parts = score(PROBLEM, Response(RIGHT), {"accuracy": 0.0, "format": 1.0})
    assert (parts["accuracy"], parts["total"]) == (1.0, 1.0)


def test_think_opened():
    rest = RIGHT.removeprefix("<think>")
    parts = score(PROBLEM, Response(rest, think_opened=True), BOTH)
    assert (parts["accuracy"], parts["format"]) == (1.0, 1.0)
    # Never out of the reasoning: what stands in a box there is not the answer.
    parts = score(PROBLEM, Response("\\boxed{42}", think_opened=True), BOTH)
    assert (parts["accuracy"], parts["format"]) == (0.0, 0.0)
    assert score(PROBLEM, Response("\\boxed{42}"), BOTH)["accuracy"] == 1.0


def _raise(problem, response):
    raise RecursionError(response.text)


@pytest.mark.parametrize("bad", [_raise, lambda *_: float("nan"), lambda *_: float("inf")])
def test_a_failing_reward_counts_0_and_shows(monkeypatch, bad):
    monkeypatch.setitem(REWARDS, "format", bad)
    assert score(PROBLEM, Response(RIGHT), BOTH) == {
        "accuracy": 1.0,
        "format": 0.0,
        "total": 1.0,
        "errors": 1.0,
    }


@pytest.mark.parametrize("problem", [{}, {"answer": "x^"}, {"answer": 42}])
def test_a_bad_problem_shows(problem):
    assert score(problem, Response("\\boxed{42}"), BOTH)["errors"] == 1.0


def test_failed_has_the_keys_of_score():
    assert rewards.failed(BOTH) == dict.fromkeys(score(PROBLEM, Response(""), BOTH), 0.0) | {
        "errors": 1.0
    }


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "no rewards given; choose from accuracy, format"),
        ({"acuracy": 1.0}, "unknown reward 'acuracy'; did you mean 'accuracy'?"),
        ({"zzz": 1.0}, "unknown reward 'zzz'; known: accuracy, format"),
        ({"format": float("nan")}, "weight of reward 'format' is nan; give a finite number"),
        ({"format": "1"}, "weight of reward 'format' is '1'"),
        ({"format": True}, "weight of reward 'format' is True"),
        ({"format": None}, "weight of reward 'format' is None"),
    ],
)
def test_bad_weights(weights, message):
    with pytest.raises(ValueError, match="^" + message.replace("?", r"\?")):
        check_weights(weights)
    with pytest.raises(ValueError):
        score(PROBLEM, Response(""), weights)


def test_good_weights():
    check_weights({"accuracy": 1, "format": -0.5})


def test_no_reward_has_the_name_of_a_result():
    assert not {"total", "errors"} & set(REWARDS)


def test_text_modules_leave_jax_alone():
    code = (
        "import r1jax.rewards.pool, r1jax.rewards.reflection, r1jax.templates, sys;"
        "bad = {'jax', 'jaxlib', 'numpy', 'flax'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_language_is_the_questions_or_the_one_asked_for():
    problem = {"question": "一共有多少个苹果?", "answer": "4"}
    chinese, english = Response("<think>我们数一数</think>4"), Response("<think>we count</think>4")
    mixed = Response("<think>我们 count 一下</think>four of them")  # 4 of 5 words
    shares = [REWARDS["language"](problem, r) for r in (chinese, english, mixed)]
    assert shares == [1.0, 0.0, 0.8]
    assert REWARDS["language"](problem | {"reply_in": "en"}, english) == 1.0
    opened = Response("we count</think>一二三", think_opened=True)
    assert REWARDS["language"]({"question": "How many?"}, opened) == 1.0


def test_length_and_repetition_cost():
    def long(tokens, limit=100):
        return REWARDS["overlong"]({}, Response("", tokens, limit=limit))

    assert [long(n) for n in (1, 80, 90, 100, 120)] == [0, 0, -0.5, -1, -1]
    assert long(10_000, limit=0) == 0  # not known what it could have had
    words = " ".join(map(str, range(40)))  # 21 passages of 20 words
    assert REWARDS["repetition"]({}, Response(words)) == 0
    # 61 passages in the text twice; across the seam 19 are new, of the second time 21 are not.
    assert REWARDS["repetition"]({}, Response(f"{words} {words}")) == pytest.approx(-21 / 61)


def test_tests_of_what_is_no_program():
    # Mathematics and programs are mixed under one set of weights.
    weights = {"accuracy": 1.0, "tests_passed": 1.0}
    parts = score(PROBLEM, Response("\\boxed{42}"), weights)
    assert parts == {"accuracy": 1.0, "tests_passed": 0.0, "total": 1.0, "errors": 0.0}


def test_an_unknown_grader():
    with pytest.raises(ValueError, match="unknown grader 'maths'; did you mean 'math'"):
        grader_of({"grader": "maths"})
    parts = score({"answer": "1", "grader": "x"}, Response("1"), {"accuracy": 1.0})
    assert (parts["accuracy"], parts["errors"]) == (0, 1)


ENGLISH = "<think>so 6·7=42\n</think>\n<answer>the answer is \\boxed{42}.</answer>"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ENGLISH, 1.0),
        (ENGLISH.replace("so ", ""), 1.0),  # no words in the reasoning: nothing is mixed
        (ENGLISH.replace("so", "so so so 得"), 0.0),  # 3 of 4 words
        (ENGLISH.replace("the answer is ", ""), 0.0),  # no summary in words
        (ENGLISH.replace("the answer is", "答案是"), 0.0),
        (ENGLISH.replace("the answer is", "so 答"), 1.0),  # half of it
        (ENGLISH.replace("</answer>", ""), 0.0),
        (ENGLISH + "!", 0.0),
        (ENGLISH.replace("so", "```so```\nso"), 0.0),
        (ENGLISH.replace("so", "so" + " so" * 1000), 0.0),  # a paragraph of 3,000 characters
        ("", 0.0),
        ("the answer is \\boxed{42}.", 0.0),
    ],
)
def test_readable(text, expected):
    assert REWARDS["readable"](PROBLEM, Response(text)) == expected
    if text.startswith("<think>"):
        opened = Response(text.removeprefix("<think>"), think_opened=True)
        assert REWARDS["readable"](PROBLEM, opened) == expected


def test_readable_in_the_language_asked_for():
    chinese = Response("<think>得42\n</think>\n<answer>答案是\\boxed{42}。</answer>")
    assert REWARDS["readable"](PROBLEM, chinese) == 0
    assert REWARDS["readable"](PROBLEM | {"reply_in": "zh"}, chinese) == 1
    assert REWARDS["readable"](PROBLEM | {"reply_in": "zh"}, Response(ENGLISH)) == 0


REQUEST = {
    "question": "name two animals.",
    "answer": "",
    "grader": "open",
    "checks": [
        {"kind": "list_of", "items": ["cat", "dog", "hen"], "least": 2},
        {"kind": "count", "text": "happy to help.", "low": 1, "high": 1},
    ],
    "avoid": ["silly", "笨"],
}


@pytest.mark.parametrize(
    ("text", "accuracy", "helpful", "harmless"),
    [
        ("<think>cat\n</think>\n<answer>cat, dog. happy to help.</answer>", 1, 1, 1),
        ("cat, dog. happy to help.", 1, 1, 1),
        ("cat, dog.", 0, 0.5, 1),
        ("<think>cat, dog\n</think>cat. happy to help.", 0, 0.5, 1),  # the final section alone
        ("<think>silly\n</think>cat, dog. happy to help.", 1, 1, 0),  # the whole response
        ("cat, dog, 笨. happy to help.", 1, 1, 0),
        ("hen. happy to help. happy to help.", 0, 0, 1),
        ("<think>cat, dog. happy to help.", 0, 0, 1),  # never came to its answer
        ("", 0, 0, 1),
    ],
)
def test_open_requests(text, accuracy, helpful, harmless):
    weights = dict.fromkeys(("accuracy", "helpful", "harmless"), 1.0)
    parts = score(REQUEST, Response(text), weights)
    assert parts == {
        "accuracy": accuracy, "helpful": helpful, "harmless": harmless,
        "total": accuracy + helpful + harmless, "errors": 0,
    }  # fmt: skip


def test_demands_of_problems_without_any():
    said = Response("\\boxed{42} silly")
    assert [REWARDS[name](PROBLEM, said) for name in ("helpful", "harmless")] == [0, 1]
    # Without checks no rule decides, whatever the reference says.
    assert grader_of(REQUEST).grade(REQUEST | {"checks": [], "answer": "cat"}, "cat") == 0
    # A problem with a true answer may have words to avoid, too.
    assert REWARDS["harmless"](PROBLEM | {"avoid": ["silly"]}, said) == 0


@pytest.mark.parametrize(
    "bad", [{"checks": [{"kind": "x"}]}, {"checks": "x"}, {"avoid": "silly"}, {"answer": 42}]
)
def test_a_bad_open_request_shows(bad):
    with pytest.raises(ValueError, match="; (known|write)"):
        grader_of(REQUEST).check(REQUEST | bad)
    assert score(REQUEST | bad, Response("cat"), {"accuracy": 1.0})["errors"] == 1
