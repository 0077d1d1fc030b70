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
        raise ValueError(f"{path} has no whole line: nothing is logged yet; wait for a first step")
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
    source, curves = _metrics_file(workdir), load(workdir)
    figures = {}
    if benchmarks(curves):
        figures["accuracy.png"] = accuracy
    if _lengths(curves):
        figures["response_length.png"] = response_length
    if not figures:
        raise ValueError(
            f"{source} has no eval/ and no rollout/ metrics to draw, only stages "
            f"{', '.join(curves)}; run a grpo stage, or set config.evaluate"
        )
    paths = []
    for name, figure in figures.items():
        path = source.parent / "plots" / name
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_suffix(".tmp")
        save(figure(curves), temporary)
        os.replace(temporary, path)
        paths.append(path)
    return paths


def benchmarks(curves: Curves) -> list[str]:
    """Names of the benchmarks that the stages on the axis were evaluated on."""
    return _between({stage: curves[stage] for stage in _stages(curves)}, "eval/", "/pass@1")


def accuracy(curves: Curves):
    """The figure of pass@1 and cons@k over RL steps, one panel a benchmark."""
    names = benchmarks(curves)
    if not names:
        raise ValueError("no eval/<benchmark>/pass@1 in these metrics; set config.evaluate")
    figure = new_figure(HEIGHT + 4 * (len(names) - 1))
    panels = figure.subplots(len(names), 1, squeeze=False).ravel()
    for panel, name in zip(panels, names, strict=True):
        _accuracy_panel(panel, curves, name)
        _finish(panel, curves, f"Accuracy on {name} over RL steps")
    caption(
        figure,
        _what(names),
        "Bands: 95% intervals over questions.",
        "Dotted: DeepSeek-R1-Zero on AIME 2024 (arXiv:2501.12948), for comparison only."
        if any(map(_aime, names))
        else "",
    )
    return figure


def _accuracy_panel(panel, curves: Curves, name: str) -> None:
    """pass@1 and the majority vote of one benchmark, and the paper's figures beside it."""
    prefix = f"eval/{name}/"
    votes = max((int(k) for k in _between(curves, f"{prefix}cons@", "") if k.isdigit()), default=0)
    kinds = [("pass@1", f"pass@1, mean of {votes} samples" if votes else "pass@1", BLUE, "o")]
    if votes:
        kinds.append((f"cons@{votes}", f"majority vote of {votes}", ORANGE, "s"))
    for metric, label, color, marker in kinds:
        metric = prefix + metric
        for low, high in zip(
            _lines(curves, f"{metric}_low"), _lines(curves, f"{metric}_high"), strict=False
        ):
            if len(low[0]) == len(high[0]):
                panel.fill_between(
                    low[0], 100 * low[1], 100 * high[1], color=color, alpha=0.18, lw=0
                )
        lines = _lines(curves, metric)
        label = f"{label}: {100 * lines[0][1][0]:.1f} → {100 * lines[-1][1][-1]:.1f}%"
        for i, (step, value) in enumerate(lines):
            panel.plot(
                step, 100 * value, color=color, marker=marker, ms=5.5, lw=2, zorder=3,
                clip_on=False, label="_later stage" if i else label,
            )  # fmt: skip
    panel.set(ylim=(-2, 103), yticks=range(0, 101, 20), ylabel="correct, %")
    if _aime(name):
        beside = dict(transform=panel.get_yaxis_transform(), color=GREY, fontsize=9)
        panel.text(1.015, 92, PAPER_TITLE, va="bottom", **beside)
        for percent, what in PAPER.items():
            panel.axhline(percent, color=GREY, lw=1, ls=(0, (1, 2)), zorder=1)
            panel.text(1.015, percent, f"{percent}  {what}", va="center", **beside)


def response_length(curves: Curves):
    """The figure of response lengths over RL steps, and of reflective words below it."""
    if not _lengths(curves):
        raise ValueError("no rollout/length and no eval/<benchmark>/length in these metrics")
    names = _between(curves, "eval/", "/length")
    words = any("rollout/reflections" in metrics for metrics in curves.values())
    figure = new_figure(HEIGHT)
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
        _plot(below, curves, "rollout/reflections", "_words", color=GREEN, lw=2)
        below.set(ylabel="reflective words\na response")
        panel.tick_params(labelbottom=False)
        panel.set_xlabel("")
        _finish(below, curves, "")
        figure.align_ylabels()
    for axes in (panel, below) if words else (panel,):
        axes.set_ylim(bottom=0, top=max(axes.get_ylim()[1], 1e-9))
    caption(
        figure,
        _what(names) if names else "",
        "Tokens of the run's own tokenizer, the end token included.",
        "Reflective words: wait, check, mistake, … (r1jax/rewards/reflection.py)." if words else "",
    )
    return figure


def _plot(panel, curves: Curves, metric: str, label: str, **style) -> None:
    for i, (step, value) in enumerate(_lines(curves, metric)):
        panel.plot(step, value, label="_later stage" if i else label, **style)


def _lines(curves: Curves, metric: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """(step on the axis, value) of a metric, of each stage that has it."""
    return [
        (offset + curves[stage][metric][0], curves[stage][metric][1])
        for stage, offset in _stages(curves).items()
        if metric in curves[stage]
    ]


def _stages(curves: Curves) -> dict[str, int]:
    """Stages with something to draw, and the step of the axis at which each begins.

    The axis is of RL steps: beside stages with rollouts, others that were only evaluated have
    none on it.
    """
    trained = [s for s, m in curves.items() if any(n.startswith("rollout/") for n in m)]
    offsets, end = {}, 0
    for stage in trained or curves:
        metrics = curves[stage]
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


def new_figure(height: float):
    """A figure of the width that all have, without pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
    return figure


def save(figure, path: Path) -> None:
    """A PNG of few colours: a third of the size, for a README."""
    from PIL import Image

    figure.canvas.draw()
    image = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    image.quantize(128, dither=Image.Dither.NONE).save(path, format="PNG", optimize=True)


def caption(figure, *sentences: str) -> None:
    """Puts sentences below everything else; empty ones are left out."""
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
