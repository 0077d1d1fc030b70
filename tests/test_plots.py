import json
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.colors import to_hex

from r1jax import plots

PRETRAIN = [{"step": 50, "stage": "pretrain", "wall_s": 1.0, "loss/nll": 2.5}]


def evaluation(name, pass1, cons, length, k=16):
    values = {"pass@1": pass1, f"cons@{k}": cons}
    row = {f"eval/{name}/{m}": v for m, v in values.items()}
    row |= {f"eval/{name}/{m}_low": v - 0.1 for m, v in values.items()}
    row |= {f"eval/{name}/{m}_high": v + 0.05 for m, v in values.items()}
    return row | {f"eval/{name}/length": length}


def rollout(length, words):
    return {"rollout/length": length, "rollout/reflections": words, "reward/accuracy": 0.5}


def stage(name, *rows):
    return [{"step": i, "stage": name, "wall_s": float(i)} | row for i, row in enumerate(rows)]


def run(name="grpo", benchmark="mini_aime", k=16):
    """Evaluated at steps 0 and 2, trained at 1 and 2."""
    return stage(
        name,
        evaluation(benchmark, 0.2, 0.4, 30.0, k),
        rollout(31.0, 0.5),
        rollout(42.0, 1.5) | evaluation(benchmark, 0.7, 0.9, 50.0, k),
    )


@pytest.fixture
def workdir(tmp_path):
    def write(rows, more=""):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "metrics.jsonl").write_text(text + more)
        return tmp_path

    return write


def lines(panel):
    """{label: (x, y)} of the lines of a panel; later stages of one label are joined."""
    found, label = {}, None
    for line in panel.get_lines():
        if line.get_linestyle() not in ("-", "None") or line.get_xdata()[0] == line.get_xdata()[-1]:
            continue  # the paper's lines, and borders of stages
        if line.get_label() != "_later stage":
            label = line.get_label()
        x, y = found.get(label, ([], []))
        found[label] = (x + list(line.get_xdata()), y + list(line.get_ydata()))
    return found


def texts(figure):
    return [t.get_text() for panel in figure.axes for t in panel.texts], figure.get_supxlabel()


def test_load(workdir):
    rows = [*PRETRAIN, *run()]
    rows[2]["rollout/length"] = None  # the writer's way to say NaN
    curves = plots.load(workdir(rows))
    assert list(curves) == ["pretrain", "grpo"]
    step, value = curves["grpo"]["eval/mini_aime/pass@1"]
    assert step.tolist() == [0, 2] and value.tolist() == [0.2, 0.7]
    step, value = curves["grpo"]["rollout/length"]
    assert step.tolist() == [1, 2]
    np.testing.assert_array_equal(value, [np.nan, 42.0])
    assert curves["pretrain"]["loss/nll"][1].tolist() == [2.5]
    assert plots.load(workdir(rows) / "metrics.jsonl").keys() == curves.keys()


def test_files_are_small_pngs_of_the_size_of_a_readme(workdir):
    from PIL import Image

    paths = plots.draw(workdir([*PRETRAIN, *run()]))
    assert [p.name for p in paths] == ["accuracy.png", "response_length.png"]
    for path in paths:
        assert path.parent.name == "plots" and path.stat().st_size < 80_000
        with Image.open(path) as image:
            assert image.format == "PNG" and image.size == (1000, 600)
    assert sorted(p.name for p in paths[0].parent.iterdir()) == [p.name for p in paths]
    plots.draw(paths[0].parent.parent)  # again, over the old ones


def test_accuracy_shows_the_data(workdir):
    figure = plots.accuracy(plots.load(workdir([*PRETRAIN, *run()])))
    (panel,) = figure.axes
    found = lines(panel)
    one, vote = "pass@1, mean of 16 samples: 20.0 → 70.0%", "majority vote of 16: 40.0 → 90.0%"
    assert found.keys() == {one, vote}
    np.testing.assert_allclose(found[one], [[0, 2], [20, 70]])
    np.testing.assert_allclose(found[vote], [[0, 2], [40, 90]])
    band = panel.collections[0].get_paths()[0].vertices  # of pass@1: −10 and +5
    for point in ([0, 10], [0, 25], [2, 60], [2, 75]):
        assert np.isclose(band, point).all(axis=1).any()
    assert {to_hex(x.get_color()) for x in panel.get_legend().get_lines()} == {
        plots.BLUE.lower(), plots.ORANGE.lower(),
    }  # fmt: skip


def test_the_papers_figures_are_marked_as_such(workdir):
    figure = plots.accuracy(plots.load(workdir(run())))
    (panel,) = figure.axes
    dotted = [x.get_ydata()[0] for x in panel.get_lines() if not isinstance(x.get_linestyle(), str)
              or x.get_linestyle() not in ("-", "None")]  # fmt: skip
    assert dotted == [15.6, 71.0, 86.7]
    beside, caption = texts(figure)
    assert beside[0] == "Paper on AIME 2024,\nfor comparison only" and len(beside) == 4
    assert "miniature's own problems" in caption and "for comparison only" in caption


def test_other_benchmarks_are_named_and_not_compared_with_aime(workdir):
    figure = plots.accuracy(plots.load(workdir(run(benchmark="gsm8k", k=4))))
    (panel,) = figure.axes
    beside, caption = texts(figure)
    assert not beside and "Benchmark: gsm8k." in caption and "AIME" not in caption
    assert len(panel.get_lines()) == 2
    assert "majority vote of 4" in panel.get_lines()[1].get_label()


def test_stages_lie_end_to_end_and_benchmarks_apart(workdir):
    both = [a | b for a, b in zip(run("first"), run("first", "gsm8k"), strict=True)]
    sft = [{"step": 9, "stage": "sft", "wall_s": 1.0, "loss/nll": 1.0}]  # has nothing to draw
    curves = plots.load(workdir([*both, *sft, *run("second")]))
    mini, gsm8k = plots.accuracy(curves).axes
    assert "gsm8k" in gsm8k.get_title(loc="left") and "mini_aime" in mini.get_title(loc="left")
    x, y = lines(mini)["pass@1, mean of 16 samples: 20.0 → 70.0%"]
    np.testing.assert_allclose([x, y], [[0, 2, 2, 4], [20, 70, 20, 70]])
    assert lines(gsm8k)["pass@1, mean of 16 samples: 20.0 → 70.0%"][0] == [0, 2]
    assert [t.get_text().strip() for t in mini.texts][-2:] == ["first", "second"]
    above, below = plots.response_length(curves).axes
    assert lines(above)["training rollouts"][0] == [1, 2, 3, 4]
    assert lines(below)["_words"] == ([1, 2, 3, 4], [0.5, 1.5, 0.5, 1.5])


def test_the_axis_is_of_rl_steps_alone(workdir):
    """Evaluated at its end, a stage of 2,200 steps of supervised training has none of them."""
    sft = {"step": 2200, "stage": "sft", "wall_s": 1.0} | evaluation("mini_aime", 0.1, 0.2, 30.0)
    curves = plots.load(workdir([sft, *run()]))
    (panel,) = plots.accuracy(curves).axes
    for x, _ in lines(panel).values():
        np.testing.assert_array_equal(x, [0, 2])
    assert plots.benchmarks(curves) == ["mini_aime"]
    # before the first evaluation of RL there is nothing to draw on its axis
    begun = plots.load(workdir([sft, *stage("grpo", {}, rollout(31.0, 0.5), rollout(32.0, 0.5))]))
    assert plots.benchmarks(begun) == []
    assert lines(plots.response_length(begun).axes[0])["training rollouts"][1] == [31.0, 32.0]


def test_response_length_shows_the_data(workdir):
    above, below = plots.response_length(plots.load(workdir([*PRETRAIN, *run()]))).axes
    assert lines(above) == {
        "training rollouts": ([1, 2], [31.0, 42.0]),
        "evaluation on mini_aime": ([0, 2], [30.0, 50.0]),
    }
    assert lines(below) == {"_words": ([1, 2], [0.5, 1.5])}
    assert above.get_ylim()[0] == below.get_ylim()[0] == 0
    assert above.get_shared_x_axes().joined(above, below)


def test_training_without_evaluation_draws_lengths_only(workdir):
    rows = stage("grpo", {}, {"rollout/length": 30.0}, {"rollout/length": 31.0})
    folder = workdir(rows)
    assert [p.name for p in plots.draw(folder)] == ["response_length.png"]
    (panel,) = plots.response_length(plots.load(folder)).axes  # no words, no second panel
    assert lines(panel) == {"training rollouts": ([1, 2], [30.0, 31.0])}
    with pytest.raises(ValueError, match="set config.evaluate"):
        plots.accuracy(plots.load(folder))


def test_evaluation_without_training_draws_what_there_is(workdir):
    folder = workdir(stage("eval", evaluation("mini_aime", 0.5, 0.6, 40.0)))
    assert len(plots.draw(folder)) == 2
    row = {"eval/mini_aime/pass@1": 0.5}  # no votes, no intervals, no length
    folder = workdir(stage("eval", row))
    assert [p.name for p in plots.draw(folder)] == ["accuracy.png"]
    (panel,) = plots.accuracy(plots.load(folder)).axes
    assert panel.get_lines()[0].get_label() == "pass@1: 50.0 → 50.0%"


def test_a_torn_last_line_is_left_out(workdir):
    folder = workdir(run(), more='{"step": 3, "stage": "grpo", "rollout/len')
    assert plots.load(folder)["grpo"]["rollout/length"][0].tolist() == [1, 2]
    assert len(plots.draw(folder)) == 2


def test_errors_name_the_file_and_the_mend(tmp_path, workdir):
    path = str(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match="--workdir") as error:
        plots.draw(tmp_path)
    assert path in str(error.value)
    for empty in ("", '{"step": 1, "sta'):
        with pytest.raises(ValueError, match="nothing is logged yet") as error:
            plots.draw(workdir([], more=empty))
        assert path in str(error.value)
    with pytest.raises(ValueError, match="only stages pretrain; run a grpo stage") as error:
        plots.draw(workdir(PRETRAIN))
    assert path in str(error.value)
    assert not (tmp_path / "plots").exists()


def test_importing_is_cheap_and_drawing_leaves_pyplot_alone(workdir):
    code = (
        "import sys; from r1jax import plots; assert 'matplotlib' not in sys.modules; "
        f"plots.draw({str(workdir(run()))!r}); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
