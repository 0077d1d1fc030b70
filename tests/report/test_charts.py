import re

import pytest

from r1jax.report.charts import GAP, LEFT, RIGHT, WIDTH, axis, charts, panels, round_step, thin
from r1jax.report.records import Records, Stage, read


def stage(name, *rows):
    lines = tuple({"step": i, "stage": name} | row for i, row in enumerate(rows))
    return Stage(name, "grpo", metrics=lines, entry={"artefact": {"kind": "model"}})


def run(*stages, config=None):
    return Records(None, {}, config or {}, stages)


def titles(found):
    return [re.search(r"<h3>(.*?)</h3>", one)[1] for one in found]


def legend(chart):
    return re.findall(r'<li><span class="(\w+) c\d"></span>(.*?)</li>', chart)


def corners(chart, kind="curve"):
    """The points of the lines of a chart, in its pixels."""
    paths = re.findall(rf'<path d="([^"]*)" class="{kind}', chart)
    return [[tuple(map(float, p.split(","))) for p in re.split("[ML ]+", d) if p] for d in paths]


def test_what_a_pipeline_draws(pipeline_run):
    found = dict(zip(titles(charts(read(pipeline_run))), charts(read(pipeline_run)), strict=True))
    assert list(found) == [
        "Accuracy on mini_world", "Accuracy on mini_general", "Response length",
        "Language consistency", "Reflective words a response", "Format and readability",
        "Scores of the reward models, rollouts", "True scores, which the reward models stand for",
        "Rule rewards of the rollouts",
    ]  # fmt: skip
    assert legend(found["Accuracy on mini_world"]) == [
        ("dots", "pass@1"), ("dots", "majority vote of 16"),
    ]  # fmt: skip
    assert legend(found["Scores of the reward models, rollouts"]) == [
        ("line", "helpfulness"), ("line", "harmlessness"),
    ]  # fmt: skip
    assert ("line", "helpful, rollouts") in legend(
        found["True scores, which the reward models stand for"]
    )
    # Format is of questions to reason about, and demands of the others.
    assert legend(found["Format and readability"]) == [
        ("dots", "format on mini_world"), ("dots", "readable on mini_world"),
    ]  # fmt: skip
    assert legend(found["Rule rewards of the rollouts"]) == [
        ("line", "accuracy"),
        ("line", "format"),
    ]
    for name in ("r1_zero", "reasoning_rl", "r1"):
        assert f'class="stage">{name}<' in found["Response length"]
    for name in ("base", "sft", "cold_start"):  # evaluated, and not RL
        assert f'class="stage">{name}<' not in found["Accuracy on mini_world"]
    assert 'class="stage">r1_zero<' not in found["Scores of the reward models, rollouts"]
    assert 'class="stage">r1_zero<' not in found["True scores, which the reward models stand for"]


def test_points_are_where_they_belong():
    one = stage("one", {}, {"rollout/length": 100.0}, {"rollout/length": 0.0})
    (chart,) = charts(run(one))
    (line,) = corners(chart)
    # Steps 0 to 2 on the whole width, 0 to 100 between the axis at 214 and the top at 24.
    middle = (LEFT + WIDTH - RIGHT) / 2
    assert line == [(middle, 24.0), (WIDTH - RIGHT, 214.0)]


def test_a_line_breaks_where_a_value_was_not_finite():
    rows = [{"rollout/length": v} for v in (1.0, 2.0, None, 3.0)]
    (chart,) = charts(run(stage("one", *rows)))
    (d,) = re.findall(r'<path d="([^"]*)"', chart)
    assert d.count("M") == 2 and d.count("L") == 1


def test_bands_are_intervals():
    def evaluated(value, low, high):
        name = "eval/b/pass@1"
        return {"rollout/length": 1.0, name: value, f"{name}_low": low, f"{name}_high": high}

    chart, _ = charts(run(stage("one", evaluated(0.5, 0.0, 1.0), evaluated(0.5, 0.5, 0.5))))
    (band,) = re.findall(r'<polygon points="([^"]*)"', chart)
    left, right = float(LEFT), float(WIDTH - RIGHT)
    assert [tuple(map(float, p.split(","))) for p in band.split()] == [
        (left, 24.0), (right, 119.0), (right, 119.0), (left, 214.0),
    ]  # fmt: skip


def test_names_that_a_stage_gives_its_score_models_count_as_scores():
    one = stage("rl", {"rollout/length": 1.0, "reward/process": 0.5, "reward/accuracy": 0.2})
    config = {"rl": {"preference": {"models": {"process": "prm"}}}}
    found = charts(run(one, config=config))
    assert titles(found)[1:] == [
        "Scores of the reward models, rollouts", "Rule rewards of the rollouts",
    ]  # fmt: skip
    assert legend(found[1]) == [("line", "process")] and legend(found[2]) == [("line", "accuracy")]


def test_a_run_without_rl_has_no_charts():
    assert charts(run(stage("sft", {"loss/nll": 1.0, "eval/b/pass@1": 0.5}))) == []


def test_panels_are_as_wide_as_their_steps_are_many():
    stages = [stage(str(n), *[{}] * (n + 1)) for n in (10, 30, 1000)]
    (_, left, a), (_, second, b), (_, third, c) = panels(stages)
    assert left == LEFT and second == left + a + GAP and third == second + b + GAP
    assert third + c == pytest.approx(WIDTH - RIGHT)
    assert a >= 70 and (b - a) / 20 == pytest.approx((c - b) / 970)
    many = panels([stage(str(n), {}, {}) for n in range(12)])
    assert many[-1][1] + many[-1][2] == pytest.approx(WIDTH - RIGHT)


@pytest.mark.parametrize(
    ("low", "high", "share", "expected"),
    [
        (3.0, 37.0, False, (0, 40, [0, 10, 20, 30, 40])),
        (0.0, 0.0, False, (0, 0.5, [0, 0.5])),
        (-1.2, 3.0, False, (-2, 4, [-2, 0, 2, 4])),  # 4.2 / 4 rounded up to 2
        (0.2, 0.87, False, (0, 1, [0, 0.5, 1])),
        (12.0, 99.0, True, (0, 100, [0, 20, 40, 60, 80, 100])),
        (97.0, 100.0, True, (80, 100, [80, 85, 90, 95, 100])),
        (80.0, 100.0, True, (60, 100, [60, 70, 80, 90, 100])),
    ],
)
def test_axes_hold_all_values_on_round_numbers(low, high, share, expected):
    bottom, top, ticks = axis(low, high, share=share)
    assert bottom <= low and high <= top
    assert (bottom, top) == pytest.approx(expected[:2])
    assert ticks == pytest.approx(expected[2])


def test_round_steps():
    assert [round_step(x) for x in (0.011, 0.02, 1, 3, 7, 51)] == pytest.approx(
        [0.02, 0.02, 1, 5, 10, 100]
    )


def test_many_points_are_averaged():
    points = [(i, float(i)) for i in range(10)]
    assert thin(points, 10) == points and thin([]) == []
    # ten points in at most four groups: three of three and one of one
    assert thin(points, 4) == [(1, 1), (4, 4), (7, 7), (9, 9)]
    assert thin([*points[:9], (9, None)], 4)[-1] == (9, None)
