import json

import numpy as np
import pytest
from matplotlib.colors import to_hex

from r1jax import plots
from r1jax.report import across_seeds, draw_stages, stage_table
from r1jax.report.figure import stages_figure


def dots(panel):
    return {
        int(line.get_ydata()[0]): float(line.get_xdata()[0])
        for line in panel.get_lines()
        if line.get_marker() == "o"
    }


def test_a_panel_for_every_column(pipeline_run):
    rows = stage_table(pipeline_run)
    figure = stages_figure(rows)
    panels = {panel.get_title(loc="left"): panel for panel in figure.axes if panel.get_visible()}
    assert len(panels) == 7 + 6  # columns of mini_world and of mini_general
    panel = panels["accuracy, %\nmini_world"]
    assert [label.get_text() for label in panel.get_yticklabels()] == [r["stage"] for r in rows]
    assert dots(panel) == pytest.approx(
        {i: 100 * row["metrics"]["mini_world/pass@1"]["value"] for i, row in enumerate(rows)}
    )
    bars = [line for line in panel.get_lines() if line.get_marker() != "o"]
    cell = rows[0]["metrics"]["mini_world/pass@1"]
    np.testing.assert_allclose(bars[0].get_xdata(), [100 * cell["low"], 100 * cell["high"]])
    assert {to_hex(bar.get_color()) for bar in bars} == {plots.BLUE.lower()}
    # the first stage has none above it to win against
    win = panels["win rate\nagainst the row above, %\nmini_general"]
    assert sorted(dots(win)) == [1, 2, 3, 4, 5]
    assert "95% interval" in figure.get_supxlabel()


def test_over_seeds_it_shows_the_range(pipeline_run, synthetic, tmp_path):
    figure = stages_figure(across_seeds([pipeline_run, synthetic(tmp_path, seed=1)]))
    assert "means" in figure.get_supxlabel() and "range over 2 seeds" in figure.get_supxlabel()


def test_the_file(synthetic, tmp_path):
    from PIL import Image

    path = draw_stages(synthetic(tmp_path))
    assert path == tmp_path / "plots" / "stages.png" and path.stat().st_size < 100_000
    assert [p.name for p in path.parent.iterdir()] == ["stages.png"]
    with Image.open(path) as image:
        assert image.format == "PNG" and image.size[0] == 1000


def test_nothing_evaluated_nothing_drawn(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"stages": ["sft"], "sft": {}}))
    assert draw_stages(tmp_path) is None
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
    with pytest.raises(ValueError, match="set config.evaluate"):
        stages_figure(stage_table(tmp_path))
