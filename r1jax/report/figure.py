"""plots/stages.png: the table of the stages as dots with their intervals, one panel a column."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from r1jax import plots
from r1jax.report.table import benchmarks, columns, heading, stage_table

ACROSS = 4  # panels beside each other
ROW, HEAD = 0.27, 1.0  # inches a stage takes, and the rest of a panel


def draw_stages(workdir: str | Path) -> Path | None:
    """Writes plots/stages.png of a run; returns its path, or None before any evaluation."""
    rows = stage_table(workdir)
    if not benchmarks(rows):
        return None
    path = Path(workdir) / "plots" / "stages.png"
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".tmp")
    plots.save(stages_figure(rows), temporary)
    os.replace(temporary, path)
    return path


def stages_figure(rows: Sequence[Mapping]):
    """The figure of rows as `stage_table` or `across_seeds` makes them.

    Raises ValueError where no row has a metric.
    """
    shown = [(name, column) for name in benchmarks(rows) for column in columns(rows, name)]
    if not shown:
        raise ValueError("no stage in these rows has been evaluated; set config.evaluate")
    rows = [row for row in rows if row["metrics"]]
    down = -(-len(shown) // ACROSS)
    figure = plots.new_figure(down * (HEAD + ROW * len(rows)) + 0.5)
    grid = figure.subplots(down, min(ACROSS, len(shown)), squeeze=False, sharey=True)
    for panel, (benchmark, column) in zip(grid.ravel(), shown, strict=False):
        _panel(panel, rows, benchmark, column)
    for panel in grid.ravel()[len(shown) :]:
        panel.set_visible(False)
    seeds = max(c.get("seeds", 0) for row in rows for c in row["metrics"].values())
    interval = f"range over {seeds} seeds" if seeds else "95% interval over questions"
    plots.caption(figure, f"Dots: {'means' if seeds else 'values'}; bars: {interval}.")
    return figure


def _panel(panel, rows: Sequence[Mapping], benchmark: str, column: str) -> None:
    text, share = heading(column)
    scale = 100 if share else 1
    for i, row in enumerate(rows):
        cell = row["metrics"].get(f"{benchmark}/{column}")
        if cell is None:
            continue
        low, high = cell.get("low", cell["value"]), cell.get("high", cell["value"])
        panel.plot([scale * low, scale * high], [i, i], color=plots.BLUE, lw=4, alpha=0.35,
                   solid_capstyle="butt")  # fmt: skip
        panel.plot(scale * cell["value"], i, "o", color=plots.BLUE, ms=5, clip_on=False)
    panel.set(yticks=range(len(rows)), yticklabels=[row["stage"] for row in rows])
    panel.set_ylim(len(rows) - 0.5, -0.5)
    panel.set_xlim(0, 103 if share else 1.08 * panel.get_xlim()[1])
    if share:
        panel.set_xticks(range(0, 101, 25))
    wrapped = text.replace(" against", "\nagainst")
    panel.set_title(f"{wrapped}{', %' * share}\n{benchmark}", loc="left", fontsize=9.5)
    panel.tick_params(labelsize=9, color=plots.GREY)
    panel.grid(color=plots.PALE, lw=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
