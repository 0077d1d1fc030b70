"""The figures of RESULTS.md, from the workdirs of several seeds (`tables.py --figures`).

Lines are means over seeds, bands their range.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from reading import last_value, stage_rows

from r1jax import plots
from r1jax.report import across_seeds
from r1jax.report.figure import stages_figure

COLOURS = (plots.BLUE, plots.ORANGE, plots.GREEN, "#CC79A7", "#E69F00", "#56B4E9", plots.GREY)


def draw(folder: Path, r1, ablations, distill, failed) -> None:
    """Writes the figures for which there are runs."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        "stages.png": (lambda: stages_figure(across_seeds(r1)), r1),
        "language.png": (lambda: language(r1, ablations), r1 and ablations),
        "hacking.png": (lambda: hacking(ablations, failed), ablations and failed),
        "distillation.png": (lambda: distillation(distill), distill),
        "search.png": (lambda: search(failed), failed),
    }
    for name, (make, given) in figures.items():
        if given:
            plots.save(make(), folder / name)


def language(r1: Sequence[Path], ablations: Sequence[Path]):
    """Accuracy and language consistency with and without the reward, from base and cold start."""
    figure = plots.new_figure(6.5)
    grid = figure.subplots(2, 2, sharey=True)
    pairs = (
        ("from the base", (r1, "r1_zero"), (ablations, "r1_zero_language")),
        ("from the cold start", (ablations, "without_language"), (r1, "reasoning_rl")),
    )
    for column, (title, without, paid) in enumerate(pairs):
        for row, (name, metric) in enumerate(
            {"accuracy, %": "pass@1", "language consistency, %": "language"}.items()
        ):
            panel = grid[row, column]
            for label, (runs, stage), colour in (
                ("without the reward", without, plots.ORANGE), ("with it", paid, plots.BLUE),
            ):  # fmt: skip
                lines = [_series(run, stage, f"eval/mini_world/{metric}") for run in runs]
                _band(panel, lines, colour, label, scale=100)
            _style(panel, f"{name}\nRL {title}", "step")
            panel.set_ylim(0, 103)
    grid[1, 0].legend(frameon=False, fontsize=9, loc="lower left")
    return _said(figure, r1, "120 problems in two languages, temperature 0.6, 16 samples each.")


def hacking(ablations: Sequence[Path], failed: Sequence[Path]):
    """Rewards by models against what is true, along runs that are paid by the models."""
    figure = plots.new_figure(3.6)
    panels = figure.subplots(1, 3)
    for panel, (title, runs, stage, metrics, width, where) in zip(
        panels,
        (
            ("score of the reward model", ablations, "preference_long",
             {"reward/helpfulness": "helpfulness"}, 8, None),
            ("what is true, on held-out questions", ablations, "preference_long",
             {"eval/mini_general/helpful": "helpfulness, by the rule",
              "eval/mini_world/pass@1": "accuracy on problems"}, 1, "lower left"),
            ("process reward as the reward", failed, "prm_rl",
             {"reward/process": "process reward", "reward/accuracy": "accuracy"}, 1,
             "center right"),
        ),
        strict=True,
    ):  # fmt: skip
        for (name, label), colour in zip(metrics.items(), COLOURS, strict=False):
            lines = [_smooth(_series(run, stage, name), width) for run in runs]
            _band(panel, lines, colour, label)
        _style(panel, title, "step")
        if len(metrics) > 1:
            panel.legend(frameon=False, fontsize=9, loc=where)
    panels[1].set_ylim(0, 1.03)
    panels[2].set_ylim(0, 1.03)
    return _said(figure, ablations, "The first panel: means over 8 steps.")


def distillation(runs: Sequence[Path]):
    """Accuracy over training FLOPs."""
    figure = plots.new_figure(4.5)
    panel = figure.subplots(1, 1)
    stages = {
        "rl": "RL", "distilled": "distillation", "distilled_short": "a sixth of it",
        "distilled_short_rl": "RL after a sixth",
    }  # fmt: skip
    for (stage, label), colour, marker in zip(
        stages.items(), COLOURS, ("o-", "D", "s", "v-"), strict=False
    ):
        for number, run in enumerate(runs):
            rows = [r for r in stage_rows(run, stage) if "eval/mini_world/pass@1" in r]
            before = 0.0
            if stage == "distilled_short_rl":
                before = last_value(run, "distilled_short", "compute/flops")
            flops = [r.get("compute/flops", 0.0) for r in rows]
            if stage.endswith(("distilled", "short")):  # evaluated at its end alone
                flops = [last_value(run, stage, "compute/flops")]
            x = [(before + f) / 1e12 for f in flops]
            y = [100 * r["eval/mini_world/pass@1"] for r in rows]
            panel.plot(x, y, marker, ms=5, lw=1.3, color=colour,
                       label=label if number == 0 else None)  # fmt: skip
    _style(panel, "accuracy of the student, %", "training FLOPs, 10¹²")
    panel.set_ylim(0, 103)
    panel.legend(frameon=False, fontsize=9)
    return _said(figure, runs, "One line a seed.", band=False)


def search(runs: Sequence[Path]):
    """Accuracy by method and by what it may spend, in tokens of that many samples."""
    figure = plots.new_figure(4.5)
    panel = figure.subplots(1, 1)
    results = [json.loads((run / "results" / "search.json").read_text())["rows"] for run in runs]
    for method, colour in zip(
        dict.fromkeys(row["method"] for row in results[0]), COLOURS, strict=False
    ):
        lines = [
            (
                np.array([r["samples"] for r in rows if r["method"] == method], float),
                np.array([r["accuracy"] for r in rows if r["method"] == method], float),
            )
            for rows in results
        ]
        _band(panel, lines, colour, method, scale=100, marker="o")
    panel.set_xscale("log", base=2)
    ticks = sorted({row["samples"] for row in results[0]})
    panel.set_xticks(ticks, [str(t) for t in ticks])
    panel.minorticks_off()
    _style(panel, "accuracy, %", "budget: the tokens of so many samples")
    panel.set_ylim(0, 103)
    panel.legend(frameon=False, fontsize=9, loc="upper left")
    return _said(figure, runs, "120 problems of mini-AIME, the base model.")


Line = tuple[np.ndarray, np.ndarray]


def _series(run: Path, stage: str, name: str) -> Line:
    found = [(r["step"], r[name]) for r in stage_rows(run, stage) if r.get(name) is not None]
    steps, values = zip(*found, strict=True)
    return np.array(steps, float), np.array(values, float)


def _smooth(line: Line, width: int) -> Line:
    """Means over windows of so many points, where their middles are."""
    x, y = (v[: len(v) // width * width].reshape(-1, width).mean(axis=1) for v in line)
    return x, y


def _band(panel, lines: Sequence[Line], colour, label, *, scale=1.0, marker=None) -> None:
    count = min(len(x) for x, _ in lines)
    x, y = lines[0][0][:count], scale * np.stack([y[:count] for _, y in lines])
    panel.fill_between(x, y.min(axis=0), y.max(axis=0), color=colour, alpha=0.18, lw=0)
    panel.plot(x, y.mean(axis=0), color=colour, lw=1.6, label=label, marker=marker, ms=4)


def _style(panel, title: str, below: str) -> None:
    panel.set_title(title, loc="left", fontsize=9.5)
    panel.set_xlabel(below, fontsize=9)
    panel.tick_params(labelsize=9, color=plots.GREY)
    panel.grid(color=plots.PALE, lw=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _said(figure, runs: Sequence[Path], text: str, *, band: bool = True):
    seeds = f"Lines: means of {len(runs)} seeds; bands: their range." if band else ""
    plots.caption(figure, seeds, text)
    return figure
