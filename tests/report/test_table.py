import json

import numpy as np
import pytest

from r1jax.report import across_seeds, format_table, stage_table
from r1jax.report.table import benchmarks, columns, heading, win_rate

MODELS = ["base", "r1_zero", "cold_start", "reasoning_rl", "sft", "r1"]


def response(name="q/0", sample=0, **fields):
    given = {"id": name, "sample": sample, "question": "?", "answer": "1", "text": "1",
             "tokens": 10, "truncated": False, "accuracy": 1.0}  # fmt: skip
    return given | fields


@pytest.fixture
def write(tmp_path):
    """Writes a run of stages with responses {stage: rows} and metrics."""

    def make(responses, metrics=(), folder=tmp_path, benchmark="bench"):
        (folder / "responses").mkdir(parents=True, exist_ok=True)
        names = list(responses)
        config = {"stages": names} | {name: {"kind": "sft"} for name in names}
        (folder / "config.json").write_text(json.dumps(config))
        lines = "".join(json.dumps(row) + "\n" for row in metrics)
        (folder / "metrics.jsonl").write_text(lines)
        for name, rows in responses.items():
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / "responses" / f"{name}.{benchmark}.jsonl").write_text(text)
        return folder

    return make


def test_a_row_for_every_stage_that_makes_a_model(pipeline_run):
    rows = stage_table(pipeline_run)
    assert [row["stage"] for row in rows] == MODELS
    assert [row["init"] for row in rows] == ["", "base", "base", "cold_start", "base", "sft"]
    assert all(row["finished"] for row in rows)
    for row in rows:
        for name, cell in row["metrics"].items():
            assert cell["low"] <= cell["value"] <= cell["high"], (row["stage"], name)
    assert benchmarks(rows) == ["mini_world", "mini_general"]
    assert columns(rows, "mini_world") == [
        "pass@1", "cons@16", "length", "reflections", "language", "format", "readable",
    ]  # fmt: skip
    assert columns(rows, "mini_general") == [
        "pass@1", "length", "language", "helpful", "win_rate", "harmful",
    ]  # fmt: skip
    assert "mini_general/win_rate" not in rows[0]["metrics"]
    json.dumps(rows)


def test_values_are_means_over_questions_of_the_responses(write):
    rows = [
        response("a", 0, accuracy=1.0, tokens=10, harmless=1.0, language=1.0),
        response("a", 1, accuracy=0.0, tokens=20, harmless=0.0, language=0.5),
        response("b", 0, accuracy=1.0, tokens=30, harmless=1.0, language=0.9),
        response("b", 1, accuracy=1.0, tokens=40, harmless=1.0, language=0.6, text="Wait, but 1"),
    ]
    logged = [{"step": 3, "stage": "one", "wall_s": 1.0, "eval/bench/pass@1": 0.1,
               "eval/bench/cons@2": 0.5}]  # fmt: skip
    (row,) = stage_table(write({"one": rows}, logged))
    values = {name: cell["value"] for name, cell in row["metrics"].items()}
    assert values == pytest.approx({
        "bench/pass@1": 0.75,  # of the responses, not what was logged
        "bench/cons@2": 0.5,  # which only the log has
        "bench/length": 25.0,
        "bench/reflections": 0.5,  # two words in one of four responses
        "bench/truncated": 0.0,
        "bench/language": 0.75,
        "bench/harmful": 0.25,  # 1 of 4
    })  # fmt: skip
    # Two questions with means 0.5 and 1: a resample is 0.5, 0.75 or 1, its ends likelier
    # than 2.5%, so the interval is from one to the other.
    assert row["metrics"]["bench/pass@1"] == {"value": 0.75, "low": 0.5, "high": 1.0}
    assert row["metrics"]["bench/cons@2"] == {"value": 0.5}


def test_without_responses_the_last_evaluation_counts(write):
    logged = [
        {"step": 1, "stage": "one", "wall_s": 1.0, "eval/b/pass@1": 0.1},
        {"step": 2, "stage": "one", "wall_s": 1.0, "eval/b/pass@1": 0.4, "eval/b/pass@1_low": 0.3,
         "eval/b/pass@1_high": 0.6, "eval/b/harmless": 0.9, "eval/b/harmless_low": 0.8,
         "eval/b/harmless_high": 0.95, "eval/b/length": None, "eval/b/pass@1_se": 0.1},
        {"step": 3, "stage": "one", "wall_s": 1.0, "loss/nll": 1.0},
    ]  # fmt: skip
    (row,) = stage_table(write({"one": []}, logged))
    assert row["metrics"].keys() == {"b/pass@1", "b/harmful"}
    assert row["metrics"]["b/pass@1"] == {"value": 0.4, "low": 0.3, "high": 0.6}
    # harmful = 1 − harmless, whose ends change places
    assert row["metrics"]["b/harmful"] == pytest.approx({"value": 0.1, "low": 0.05, "high": 0.2})
    assert not row["finished"]


def test_what_was_never_evaluated_is_what_the_next_stage_began_with(tmp_path):
    lines = [
        {"step": 50, "stage": "base", "wall_s": 1.0, "loss/nll": 2.0},
        {"step": 0, "stage": "rl", "wall_s": 1.0, "eval/b/pass@1": 0.2},
        {"step": 4, "stage": "rl", "wall_s": 1.0, "eval/b/pass@1": 0.7},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = {"stages": ["base", "rl"], "base": {"kind": "pretrain"},
              "rl": {"kind": "grpo", "init": "base"}}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    base, rl = stage_table(tmp_path)
    assert base["metrics"] == {"b/pass@1": {"value": 0.2}}
    assert base["evaluated"] == "evaluated at the start of rl" and rl["evaluated"] == ""
    assert rl["metrics"] == {"b/pass@1": {"value": 0.7}}
    assert "| base (evaluated at the start of rl) | 20.0 " in format_table([base, rl])


def test_win_rate_by_hand():
    before = [response("a", i, helpful=h) for i, h in enumerate([0.0, 0.5, 1.0, 1.0])]
    before += [response("b", 0, helpful=0.5), response("gone", 0, helpful=0.0)]
    after = [response("a", i, helpful=h) for i, h in enumerate([0.5, 0.5, 0.0, 1.0])]
    after += [response("b", 0, helpful=1.0), response("new", 0, helpful=1.0)]
    # a: win, tie, loss, tie = (1 + 0.5 + 0 + 0.5) / 4 = 0.5; b: 1; the others have no pair.
    found = win_rate(before, after)
    assert found == {"value": 0.75, "low": 0.5, "high": 1.0}
    back = win_rate(after, before)
    assert back["value"] == 1 - found["value"]
    assert win_rate(before, before)["value"] == 0.5
    assert win_rate(before[:1], after[-1:]) is None


def test_win_rate_skips_stages_without_responses(write):
    # `middle` was not asked: `last` is compared with `first`.
    folder = write({
        "first": [response(helpful=0.0)], "middle": [], "last": [response(helpful=1.0)],
    })  # fmt: skip
    rows = stage_table(folder)
    assert [("bench/win_rate" in row["metrics"]) for row in rows] == [False, False, True]
    assert rows[2]["metrics"]["bench/win_rate"]["value"] == 1.0


def test_helpfulness_is_shown_where_questions_make_demands(write):
    plain = write({"one": [response(helpful=0.0, harmless=1.0)]})
    rows = stage_table(plain)
    assert columns(rows, "bench") == ["pass@1", "length", "reflections"]
    assert columns(stage_table(write({"one": [response(helpful=0.5, harmless=1.0)]})), "bench") == [
        "pass@1", "length", "helpful", "harmful",
    ]  # fmt: skip
    # whoever insults or is cut off is shown for it, whatever the questions are
    rows = stage_table(write({"one": [response(helpful=0.0, harmless=0.0, truncated=True)]}))
    assert columns(rows, "bench") == ["pass@1", "length", "reflections", "truncated", "harmful"]


def test_a_torn_line_ends_the_responses(write):
    folder = write({"one": [response("a", accuracy=0.0), response("b")]})
    path = folder / "responses" / "one.bench.jsonl"
    path.write_text(path.read_text()[:-20])
    assert stage_table(folder)[0]["metrics"]["bench/pass@1"]["value"] == 0.0


def test_a_row_without_a_field_is_named(write):
    with pytest.raises(ValueError, match=r"one\.bench\.jsonl, line 1: no field text, tokens"):
        stage_table(write({"one": [{"id": "a", "sample": 0, "question": "?"}]}))
    rows = [response(language=1.0), response(sample=1)]
    with pytest.raises(ValueError, match=r"responses/one\.bench\.jsonl: a row has no field 'lang"):
        stage_table(write({"one": rows}))


def test_across_seeds_is_mean_and_range(write, tmp_path):
    folders = [
        write({"one": [response(accuracy=a, tokens=t)]}, folder=tmp_path / str(t))
        for a, t in ((0.0, 10), (1.0, 20), (1.0, 60))
    ]
    write({"one": [response(accuracy=1.0, tokens=60, language=0.5)]}, folder=folders[2])
    (row,) = across_seeds(folders)
    metrics = row["metrics"]
    assert metrics["bench/pass@1"] == pytest.approx(
        {"value": 2 / 3, "low": 0.0, "high": 1.0, "seeds": 3}
    )
    assert metrics["bench/length"] == {"value": 30.0, "low": 10.0, "high": 60.0, "seeds": 3}
    assert metrics["bench/language"] == {"value": 0.5, "low": 0.5, "high": 0.5, "seeds": 1}
    text = format_table([row])
    assert "66.7 (0.0 to 100.0)" in text and "30.0 (10.0 to 60.0)" in text
    assert "50.0 (50.0 to 50.0), 1 of 3 runs" in text


def test_across_seeds_of_one_run_is_that_run(pipeline_run):
    one, same = stage_table(pipeline_run), across_seeds([pipeline_run])
    for a, b in zip(one, same, strict=True):
        assert {n: c["value"] for n, c in a["metrics"].items()} == {
            n: c["value"] for n, c in b["metrics"].items()
        }


def test_format_table_is_markdown(pipeline_run):
    first, second = format_table(stage_table(pipeline_run)).split("\n\n")
    for table, benchmark in ((first, "mini_world"), (second, "mini_general")):
        lines = table.splitlines()
        assert lines[0].startswith(f"| {benchmark}: stage")
        assert len({line.count("|") for line in lines}) == len(set(map(len, lines))) == 1
        assert set(lines[1]) <= set("|- ")
        assert [line.split("|")[1].strip() for line in lines[2:]] == MODELS
    assert "majority of 16, %" in first and "win rate" in second and "win rate" not in first
    assert heading("cons@64") == ("majority of 64", True)


def test_format_table_of_what_is_left_to_do(synthetic, tmp_path):
    text = format_table(stage_table(synthetic(tmp_path, finished=("base",))))
    assert "r1 (not finished)" in text
    assert format_table(stage_table(synthetic(tmp_path / "new", finished=()))).count("\n") == 0


def test_a_stage_that_was_never_meant_for_a_benchmark_has_no_row(pipeline_run):
    rows = stage_table(pipeline_run)
    rows.insert(1, {**rows[0], "stage": "judge", "metrics": {}})
    assert "judge" not in format_table(rows)
    assert "judge (not finished)" in format_table([rows[0], {**rows[1], "finished": False}])


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has none of config.json, manifest.json, metrics.jsonl"):
        stage_table(tmp_path)


def test_the_same_responses_give_the_same_table(pipeline_run):
    assert stage_table(pipeline_run) == stage_table(pipeline_run)
    values = [r["metrics"]["mini_world/language"]["value"] for r in stage_table(pipeline_run)]
    assert np.argmin(values) == 0  # the base mixes most, as it was invented
