import json
import re
from types import SimpleNamespace

import pytest

from r1jax.data import examples
from r1jax.data.examples import load_examples
from r1jax.rewards import Response, score


@pytest.fixture
def write(tmp_path):
    def write(*rows):
        path = tmp_path / "some.jsonl"
        lines = [
            r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in rows
        ]  # fmt: skip
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(path)

    return write


def test_responses_are_taken_as_they_are(write):
    rows = [
        {"question": "Why?", "response": "<think>hm\n</think>\n<answer>é\u2028</answer> "},
        {"question": " q ", "response": "r", "id": 3, "more": None},
        # a response wins over an answer
        {"question": "q", "response": "r", "answer": "work #### 5"},
    ]
    assert load_examples(write(*rows)) == [
        {"question": r["question"], "response": r["response"]} for r in rows
    ]


def test_gsm8k(write):
    answer = "He pays 3*4=<<3*4=12>>12.\nThen 1,000 more.\n#### 1,012"
    [example] = load_examples(write({"question": "How much?", "answer": answer}))
    assert example == {
        "question": "How much?",
        "response": "<think>He pays 3*4=<<3*4=12>>12.\nThen 1,000 more.</think>\n"
        "<answer>\\boxed{1012}</answer>",
    }
    # It is what the rewards ask of a response.
    given = Response(example["response"], 20, False, False)
    parts = score({"answer": "1012"}, given, {"accuracy": 1.0, "format": 1.0})
    assert parts["accuracy"] == parts["format"] == 1


def test_the_last_mark_is_the_answers(write):
    path = write({"question": "q", "answer": "not #### 3 yet\n#### -7"})
    assert load_examples(path)[0]["response"] == (
        "<think>not #### 3 yet</think>\n<answer>\\boxed{-7}</answer>"
    )


def test_blank_lines_count_in_numbering_and_limit_does_not(write):
    rows = [{"question": f"q{i}", "response": f"r{i}"} for i in range(4)]
    path = write(rows[0], "", "  ", *rows[1:], "{broken")
    assert [e["question"] for e in load_examples(path, limit=3)] == ["q0", "q1", "q2"]
    # Nothing after the limit is read; without one the broken line 7 is found.
    assert len(load_examples(path, limit=4)) == 4
    with pytest.raises(ValueError, match=r"some\.jsonl:7: not JSON"):
        load_examples(path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("[1]", "some.jsonl:2: a list, not an object"),
        ('"x"', "some.jsonl:2: a str, not an object"),
        ({"response": "r"}, "some.jsonl:2: field 'question' is missing"),
        ({"question": " ", "response": "r"}, "field 'question' is ' '; it must be a non-empty"),
        ({"question": 3, "response": "r"}, "field 'question' is 3;"),
        ({"question": "q"}, "field 'response' is missing"),
        ({"question": "q", "answer": "no mark"}, "field 'response' is missing"),
        ({"question": "q", "answer": 7}, "field 'response' is missing"),
        ({"question": "q", "response": ""}, "field 'response' is ''"),
        ({"question": "q", "response": ["a #### 1"]}, "field 'response' is ['a #### 1']"),
    ],
)
def test_faulty_rows(write, row, message):
    path = write({"question": "q", "response": "r"}, row)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_examples(path)


def test_files_without_examples(write, tmp_path):
    with pytest.raises(ValueError, match="there are no examples in it"):
        load_examples(write("", " "))
    missing = tmp_path / "none.jsonl"
    with pytest.raises(ValueError, match=re.escape(f"{missing}: no such file")):
        load_examples(str(missing))


@pytest.fixture
def tasks(monkeypatch):
    def given(seed, count):
        return [{"question": f"q{seed}{i}", "response": f"r{i}", "more": 1} for i in range(count)]

    known = {"toy": SimpleNamespace(examples=given), "bare": SimpleNamespace()}
    monkeypatch.setattr(examples, "TASKS", known)


def test_examples_of_a_task(tasks):
    assert load_examples("task:toy:2") == [
        {"question": "q00", "response": "r0"}, {"question": "q01", "response": "r1"},
    ]  # fmt: skip
    assert len(load_examples("task:toy:9", limit=4)) == 4
    for source in (
        "task:toy",
        "task:toy:0",
        "task:toy:x",
        "task:toy:1:2",
        "task:bare:3",
        "task:z:1",
    ):
        with pytest.raises(ValueError, match=f"{source}: write task:NAME:COUNT; .* examples: toy$"):
            load_examples(source)


def test_several_sources_follow_each_other(tasks, write):
    path = write({"question": "q", "response": "r"}, {"question": "q2", "response": "r"})
    assert [e["question"] for e in load_examples([path, "task:toy:1"])] == ["q", "q2", "q00"]
    assert [e["question"] for e in load_examples((path, "task:toy:3"), limit=1)] == ["q", "q00"]
