"""The paper's two training curves, drawn from metrics.jsonl alone.

`plots/accuracy.png` is Figure 2 of arXiv:2501.12948: pass@1 and majority vote over RL steps,
with 95% intervals. `plots/response_length.png` is Figure 3: how long the responses are,
and how many reflective words are in them.

Several stages lie end to end on the axis of steps, so that an R1 run is one curve. Figures
are plain objects, without pyplot: drawing changes no state of a notebook or a test.
"""

import os
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from r1jax.writers import read_lines

# {stage: {metric: (step, value)}}, arrays of one length, NaN where a value was not finite
Curves = dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]

# AIME 2024, in percent: arXiv:2501.12948, figure 2 and table 2.
PAPER = {15.6: "pass@1, start", 71.0: "pass@1, end", 86.7: "majority vote"}
PAPER_TITLE = "Paper on AIME 2024,\nfor comparison only"

# Okabe and Ito's colours: told apart with any kind of colour vision.
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
GREY, PALE = "#595959", "#d9d9d9"
MARKERS = "Ds^vPX"  # of benchmarks, where they share a panel

WIDTH, HEIGHT, DPI = 10.0, 6.0, 100  # inches, pixels an inch


def load(workdir: str | Path) -> Curves:
    """Metrics of a run (its folder, or a metrics file itself): {stage: {metric: (step, value)}}.

    Stages are in the order in which they ran. A torn last line is left out.
    Raises ValueError if there is no such file or nothing is in it.
    """
    path = _metrics_file(workdir)
    if not path.is_file():
        raise ValueError(
            f"there is no {path}; give the folder of a run, as in `r1jax train --workdir=…`"
        )
    rows = read_lines(path)
    if not rows:
        raise ValueError(f"{path} is empty: the run has logged nothing yet; wait for a first step")
    found: dict[str, dict[str, list]] = {}
    for row in rows:
        metrics = found.setdefault(row["stage"], {})
        for name, value in row.items():
            if name not in ("step", "stage"):
                metrics.setdefault(name, []).append((row["step"], value))
    return {
        stage: {
            name: (np.array([s for s, _ in points]), np.array([v for _, v in points], float))
            for name, points in metrics.items()
        }
        for stage, metrics in found.items()
    }


def draw(workdir: str | Path) -> list[Path]:
    """Writes the figures a run has data for to workdir/plots; returns their paths.

    Raises ValueError if metrics.jsonl is missing or empty, or has neither evaluations nor rollouts.
    """
    workdir = Path(workdir)
    curves = load(workdir)
    figures = {}
    if benchmarks(curves):
        figures["accuracy.png"] = accuracy
    if _lengths(curves):
        figures["response_length.png"] = response_length
    if not figures:
        raise ValueError(
            f"{_metrics_file(workdir)} has no eval/ and no rollout/ metrics to draw, only stages "
            f"{', '.join(curves)}; run a grpo stage, or set config.evaluate"
        )
    paths = []
    for name, figure in figures.items():
        path = workdir / "plots" / name
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_suffix(".tmp")
        figure(curves).savefig(temporary, format="png", dpi=DPI)
        os.replace(temporary, path)
        paths.append(path)
    return paths


def benchmarks(curves: Curves) -> list[str]:
    """Names of the benchmarks that the run was evaluated on."""
    return _between(curves, "eval/", "/pass@1")


def accuracy(curves: Curves):
    """The figure of pass@1 and cons@k over RL steps, one panel a benchmark."""
    names = benchmarks(curves)
    if not names:
        raise ValueError("no eval/<benchmark>/pass@1 in these metrics; set config.evaluate")
    columns = min(len(names), 2)
    rows = -(-len(names) // columns)
    figure = _figure(HEIGHT + 3.5 * (rows - 1))
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in panels[len(names) :]:
        panel.remove()
    for panel, name in zip(panels, names, strict=False):
        title = f"Accuracy on {name}" if len(names) > 1 else f"Accuracy on {name} over RL steps"
        _accuracy_panel(panel, curves, name, title)
    _caption(
        figure,
        _what(names),
        "Bands: 95% intervals over questions.",
        f"Dotted: the paper's {', '.join(map(str, PAPER))} on AIME 2024 (arXiv:2501.12948), "
        "another model on other problems."
        if any(map(_aime, names))
        else "",
    )
    return figure


def _accuracy_panel(panel, curves: Curves, name: str, title: str) -> None:
    """pass@1 and the majority vote of one benchmark, and the paper's figures beside it."""
    stages = _stages(curves)
    prefix = f"eval/{name}/"
    votes = max((int(k) for k in _between(curves, f"{prefix}cons@", "") if k.isdigit()), default=0)
    kinds = [("pass@1", f"pass@1, mean of {votes} samples" if votes else "pass@1", BLUE, "o")]
    if votes:
        kinds.append((f"cons@{votes}", f"majority vote of {votes}", ORANGE, "s"))
    for metric, label, color, marker in kinds:
        metric, first = prefix + metric, None
        for stage, offset in stages.items():
            if metric not in curves[stage]:
                continue
            step, value = curves[stage][metric]
            low, high = (curves[stage].get(metric + end) for end in ("_low", "_high"))
            if low and high and len(low[0]) == len(high[0]) == len(step):
                panel.fill_between(
                    offset + step, 100 * low[1], 100 * high[1], color=color, alpha=0.18, lw=0
                )
            (line,) = panel.plot(
                offset + step, 100 * value, color=color, marker=marker, ms=5.5, lw=2,
                label="_later stage", clip_on=False, zorder=3,
            )  # fmt: skip
            first = line if first is None else first
            last = value[-1]
        first.set_label(f"{label}: {100 * first.get_ydata()[0] / 100:.1f} → {100 * last:.1f}%")
    panel.set(ylim=(-2, 103), yticks=range(0, 101, 20), ylabel="correct, %")
    if _aime(name):
        right = panel.get_yaxis_transform()  # x of the panel, y of the data
        panel.text(1.015, 102, PAPER_TITLE, transform=right, va="top", color=GREY, fontsize=9)
        for percent, what in PAPER.items():
            panel.axhline(percent, color=GREY, lw=1, ls=(0, (1, 2)), zorder=1)
            panel.text(1.015, percent, f"{percent}  {what}", transform=right, va="center",
                       color=GREY, fontsize=9)  # fmt: skip
    _finish(panel, curves, title)


def response_length(curves: Curves):
    """The figure of response lengths over RL steps, and of reflective words below it."""
    if not _lengths(curves):
        raise ValueError("no rollout/length and no eval/<benchmark>/length in these metrics")
    stages, names = _stages(curves), _between(curves, "eval/", "/length")
    words = any("rollout/reflections" in metrics for metrics in curves.values())
    figure = _figure(HEIGHT)
    if words:
        panel, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.2))
    else:
        panel, below = figure.subplots(), None
    _plot(panel, curves, "rollout/length", "training rollouts", color=BLUE, lw=2)
    for i, name in enumerate(names):
        _plot(
            panel, curves, f"eval/{name}/length", f"evaluation on {name}", color=ORANGE, ls="",
            marker=MARKERS[i % len(MARKERS)], ms=7, mfc="white", mew=1.8, zorder=3, clip_on=False,
        )  # fmt: skip
    panel.set(ylabel="tokens a response, mean")
    _finish(panel, curves, "Response length over RL steps")
    if below is not None:
        _plot(below, curves, "rollout/reflections", None, color=GREEN, lw=2)
        below.set(ylabel="reflective words\na response")
        panel.tick_params(labelbottom=False)
        panel.set_xlabel("")
        _finish(below, curves, "")
        figure.align_ylabels()
    for axes in (panel, below) if words else (panel,):
        axes.set_ylim(bottom=0, top=max(axes.get_ylim()[1], 1e-9))
    _caption(
        figure,
        _what(names) if names else "",
        "Tokens of the run's own tokenizer, the end token included.",
        "Reflective words: wait, check, mistake, … (r1jax/rewards/reflection.py)." if words else "",
    )
    return figure


def _plot(panel, curves: Curves, metric: str, label: str | None, **style) -> None:
    """One metric, stages end to end, a line each."""
    for stage, offset in _stages(curves).items():
        if metric in curves[stage]:
            step, value = curves[stage][metric]
            panel.plot(offset + step, value, label=label or "_none", **style)
            label = None


def _stages(curves: Curves) -> dict[str, int]:
    """Stages with something to draw, and the step of the axis at which each begins."""
    offsets, end = {}, 0
    for stage, metrics in curves.items():
        drawn = [s for n, (s, _) in metrics.items() if n.startswith(("eval/", "rollout/"))]
        if drawn:
            offsets[stage] = end
            end += int(max(step.max() for step in drawn))
    return offsets


def _finish(panel, curves: Curves, title: str) -> None:
    """Axes, grid, borders between stages, title and legend: the same in every panel."""
    from matplotlib.ticker import MaxNLocator

    stages = _stages(curves)
    several = len(stages) > 1
    panel.set_xlabel("RL step, stages end to end" if several else "RL step", fontsize=11)
    panel.yaxis.label.set_fontsize(11)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.margins(x=0.02)
    panel.tick_params(labelsize=10, color=GREY)
    panel.grid(color=PALE, lw=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    if several:
        for stage, offset in stages.items():
            if offset:
                panel.axvline(offset, color=GREY, lw=1)
            if title:
                panel.text(offset, 1.01, f" {stage}", transform=panel.get_xaxis_transform(),
                           va="bottom", color=GREY, fontsize=9)  # fmt: skip
    if not title:
        return
    lines, labels = panel.get_legend_handles_labels()
    in_rows = len(labels) > 3
    above = 1.04 if several else 1.0
    panel.legend(
        lines, labels, loc="lower left", bbox_to_anchor=(-0.01, above), frameon=False, fontsize=11,
        ncols=2 if in_rows else max(len(labels), 1), borderaxespad=0.2, columnspacing=1.8,
    )  # fmt: skip
    pad = 30 + (14 if several else 0) + (16 * (-(-len(labels) // 2) - 1) if in_rows else 0)
    panel.set_title(title, loc="left", fontsize=13, fontweight="bold", pad=pad)


def _figure(height: float):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
    return figure


def _caption(figure, *sentences: str) -> None:
    text = textwrap.fill(" ".join(filter(None, sentences)), 140)
    figure.supxlabel(text, x=0.015, ha="left", fontsize=9, color=GREY, linespacing=1.3)


def _what(names: list[str]) -> str:
    """Whose problems and model these are."""
    mini = [name for name in names if name.startswith("mini_aime")]
    other = [name for name in names if name not in mini]
    said = "The miniature's own problems and its own small model: neither AIME nor DeepSeek-R1."
    if not mini:
        return f"Benchmark{'s' * (len(other) > 1)}: {', '.join(other)}."
    return f"{', '.join(mini)}: {said[0].lower()}{said[1:]}" if other else said


def _aime(name: str) -> bool:
    return "aime" in name.lower()


def _lengths(curves: Curves) -> bool:
    """Whether there is any length to draw."""
    return bool(_between(curves, "eval/", "/length")) or any(
        "rollout/length" in metrics for metrics in curves.values()
    )


def _between(curves: Mapping[str, Mapping], start: str, end: str) -> list[str]:
    """What stands between `start` and `end` in the names of metrics, each once, in order."""
    pattern = re.compile(f"{re.escape(start)}(.+){re.escape(end)}")
    found = (pattern.fullmatch(name) for metrics in curves.values() for name in metrics)
    return list(dict.fromkeys(match[1] for match in found if match))


def _metrics_file(workdir: str | Path) -> Path:
    path = Path(workdir)
    return path if path.suffix == ".jsonl" else path / "metrics.jsonl"
