import json

from r1jax.report.records import read
from r1jax.report.samples import chosen, pick, show, text


def test_the_same_questions_in_every_stage(pipeline_run):
    found = chosen(read(pipeline_run))
    assert [q.id for q in found] == [
        "mini_world_test/0", "mini_world_test/3",  # English, then the Chinese one least like it
        "mini_general_test/0", "mini_general_test/3", "mini_general_test/4",
    ]  # fmt: skip
    models = ["base", "r1_zero", "cold_start", "reasoning_rl", "sft", "r1"]
    for question in found:
        assert [label for label, _ in question.responses] == models
        assert {row["sample"] for _, row in question.responses} == {0}
        assert {row["id"] for _, row in question.responses} == {question.id}


def test_picked_questions_differ():
    questions = [
        "say one two",
        "say one six",
        "say two one",
        "who are you",
        "说一二",
        "say one two",
    ]
    rows = [{"id": str(i), "question": q} for i, q in enumerate(questions)]
    # 4 shares no pair of letters with any other. 3 shares none with 0 (wh ho "o " " a" ar re
    # "e " " y" yo ou) but "e ", of 19 pairs; 1 and 2 share most of theirs, and 5 is the same.
    assert pick(rows, 3)[0] == "0" and set(pick(rows, 3)) == {"0", "3", "4"}
    assert pick(rows, 1) == ["0"]
    assert sorted(pick(rows, 99)) == list("012345")
    assert pick([], 3) == []


def test_without_kept_responses_the_first_and_last_sample_of_a_stage(tmp_path):
    rows = [
        {"step": step, "stage": "grpo", "benchmark": "b", "id": "b/0", "sample": i,
         "question": "1+1", "answer": "2", "response": f"{step}", "tokens": 3, "truncated": False}
        for step in (0, 4, 8) for i in range(2)
    ]  # fmt: skip
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (question,) = chosen(read(tmp_path))
    assert [(label, row["text"]) for label, row in question.responses] == [
        ("grpo, step 0", "0"), ("grpo, step 8", "8"),
    ]  # fmt: skip


def test_reasoning_is_set_apart():
    block, final = text("<think>so\n</think>\n<answer>2</answer>")
    assert block == '<div class="reasoning" dir="auto">so</div>'
    assert final == '<div class="final" dir="auto">&lt;answer&gt;2&lt;/answer&gt;</div>'
    # Where the prompt had opened the reasoning, it is reasoning all the same.
    assert text("so</think>two")[0] == '<div class="reasoning" dir="auto">so</div>'
    assert [str(x) for x in text("hello")] == ['<div class="final" dir="auto">hello</div>']
    assert "nothing was written" in text(" \n")[0]


def test_long_parts_are_folded():
    (lines,) = text("a\n" * 30)
    assert lines.startswith("<details><summary>final: 30 lines, 59 characters</summary>")
    folded, final = text(f"<think>{'x' * 600}</think>short")
    assert folded.startswith("<details><summary>reasoning: 1 line, 600 characters</summary>")
    assert final == '<div class="final" dir="auto">short</div>'


def test_verdicts_are_words_and_not_colours_alone(pipeline_run):
    page = "".join(show(chosen(read(pipeline_run))))
    assert "✓ right" in page and "✗ wrong" in page and "harmful" in page and "60 tokens" in page
