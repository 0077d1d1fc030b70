"""The tables and figures of RESULTS.md, from the workdirs of several seeds.

    python experiments/results/tables.py --r1 runs/r1_* --ablations runs/ablations_* \\
        --distill runs/distill_* --failed runs/failed_* --figures experiments/results/r1_mini

Every group of folders is one experiment on several seeds, and any may be left out. Prints
markdown: means, and the range over seeds in brackets.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import figures
import numpy as np
from reading import last_value, stage_rows

from r1jax.report import across_seeds, format_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("r1", "ablations", "distill", "failed"):
        parser.add_argument(f"--{name}", nargs="*", type=Path, default=[])
    parser.add_argument("--figures", type=Path, help="folder for the figures")
    flags = parser.parse_args()
    sections = {
        "Stage by stage": (stages, [flags.r1]),
        "R1-Zero and the language reward": (language, [flags.r1, flags.ablations]),
        "Reward models": (reward_models, [flags.r1]),
        "Preference rewards used too long": (hacking, [flags.ablations]),
        "Rejection sampling": (rejection, [flags.r1]),
        "Distillation": (distillation, [flags.distill]),
        "Process reward models and tree search": (search, [flags.failed]),
        "A process reward as the reward": (process_reward, [flags.failed]),
        "Cost": (cost, [flags.r1, flags.ablations, flags.distill, flags.failed]),
    }
    for title, (write, given) in sections.items():
        if any(given):
            print(f"## {title}\n\n{write(*given)}\n")
    if flags.figures:
        figures.draw(flags.figures, flags.r1, flags.ablations, flags.distill, flags.failed)


def stages(runs: Sequence[Path]) -> str:
    return format_table(across_seeds(runs))


def language(runs: Sequence[Path], ablations: Sequence[Path]) -> str:
    """Accuracy and language consistency along the RL stages, with and without the reward."""
    names = ("pass@1", "language", "length", "readable")
    rows = []
    for label, folders, stage in (
        ("R1-Zero", runs, "r1_zero"),
        ("reasoning RL, with the reward", runs, "reasoning_rl"),
        ("reasoning RL, without it", ablations, "without_language"),
        ("R1-Zero, with the reward", ablations, "r1_zero_language"),
    ):
        for when, at in (("start", 0), ("end", -1)):
            found = [_evaluations(folder, stage) for folder in folders]
            if not all(found) or not found:
                continue
            cells = [
                spread([e[at][f"eval/mini_world/{name}"] for e in found], name != "length")
                for name in names
            ]
            rows.append([label, when, *cells])
    heads = ["stage", "", "accuracy, %", "language consistency, %", "length, tokens", "readable, %"]
    return table(heads, rows)


def reward_models(runs: Sequence[Path]) -> str:
    names = ("accuracy", "margin", "calibration_error")
    rows = []
    for stage in ("helpfulness", "harmlessness"):
        metrics = [_manifest(run)[stage]["metrics"] for run in runs]
        rows.append([stage, *(spread([m[f"preference/{n}"] for m in metrics]) for n in names)])
    return table(["reward model", "held-out accuracy", "margin", "calibration error"], rows)


def hacking(runs: Sequence[Path]) -> str:
    """The reward model's score and the stated rule along a run that is paid by the former."""
    rows = []
    names = ("reward/helpfulness", "reward/helpful", "reward/harmlessness", "reward/harmless")
    found = [_steps(run, "preference_long") for run in runs]
    if not all(found):
        return ""
    for begin in range(0, min(map(len, found)), 12):
        window = [f[begin : begin + 12] for f in found]
        cells = [
            spread([float(np.mean([row[name] for row in w])) for w in window])
            for name in (*names, "rollout/length")
        ]
        rows.append([f"{begin + 1} to {begin + 12}", *cells])
    heads = ["steps", "helpfulness, model", "helpful, rule", "harmlessness, model",
             "harmless, rule", "length"]  # fmt: skip
    return table(heads, rows)


def rejection(runs: Sequence[Path]) -> str:
    """What was sampled, rejected and kept; filters that rejected nothing are left out."""
    text = []
    for stage in ("cold_data", "curated"):
        counts = [_manifest(run)[stage]["counts"] for run in runs]
        rows = [
            [name, spread([c[name] for c in counts], name.startswith("acceptance_"))]
            for name in counts[0]
            if any(c[name] != (1 if name.startswith("acceptance_") else 0) for c in counts)
        ]
        speed = [
            np.mean([r["throughput/samples_per_s"] for r in _steps(run, stage)]) for run in runs
        ]
        rows.append(["samples a second", spread(speed)])
        text.append(table([f"`{stage}`", "count, or share in %"], rows))
        for run in runs:
            text.append(f"{run.name}: sha256 `{_manifest(run)[stage]['artefact']['sha256']}`  ")
    return "\n\n".join(text)


def distillation(runs: Sequence[Path]) -> str:
    rows = []
    stages = [s for s in _manifest(runs[0]) if _evaluations(runs[0], s)]
    benchmark = next(
        k.split("/")[1] for k in _evaluations(runs[0], stages[0])[-1] if k.endswith("pass@1")
    )
    for stage in stages:
        found = [_evaluations(run, stage)[-1] for run in runs]
        flops = [last_value(run, stage, "compute/flops") for run in runs]
        flops = spread([f / 1e12 for f in flops]) if all(flops) else ""
        cells = [
            spread([f[f"eval/{benchmark}/{name}"] for f in found], name != "length")
            for name in ("pass@1", "cons@16", "length")
        ]
        rows.append([stage, *cells, flops])
    heads = ["stage", "accuracy, %", "majority vote, %", "length", "training FLOPs, 10¹²"]
    return table(heads, rows)


def search(runs: Sequence[Path]) -> str:
    results = [json.loads((run / "results" / "search.json").read_text())["rows"] for run in runs]
    methods = dict.fromkeys(row["method"] for row in results[0])
    sizes = sorted({row["samples"] for row in results[0]})
    rows = []
    for method in methods:
        cells = []
        for size in sizes:
            found = [
                r for rows_ in results for r in rows_
                if r["method"] == method and r["samples"] == size
            ]  # fmt: skip
            cells.append(spread([r["accuracy"] for r in found], True) if found else "")
        rows.append([method, *cells])
    return table(["accuracy, % · budget of", *(f"{n} samples" for n in sizes)], rows)


def process_reward(runs: Sequence[Path]) -> str:
    found = [_steps(run, "prm_rl") for run in runs]
    count = min(map(len, found))
    names = ("reward/process", "reward/accuracy", "reward/format", "rollout/length")
    rows = [
        [str(step + 1), *(spread([f[step][n] for f in found]) for n in names)]
        for step in sorted({0, *range(7, count, 8), count - 1})
    ]
    return table(["step", "process reward", "accuracy", "format", "length"], rows)


def cost(*groups: Sequence[Path]) -> str:
    rows = []
    for runs in filter(None, groups):
        totals = [
            [sum(s[name] for s in _manifest(run).values()) / 60 for name in ("wall_s", "cpu_s")]
            for run in runs
        ]
        wall, cpu = zip(*totals, strict=True)
        rows.append([runs[0].name.rstrip("0123456789_"), spread(wall), spread(cpu)])
    return table(["experiment", "wall, minutes", "CPU, minutes"], rows)


# --- reading and writing ---------------------------------------------------------------


def spread(values: Sequence[float], share: bool = False) -> str:
    """`mean (least to most)`, in percent where it is a share."""
    values = [100 * v if share else v for v in values]
    form: Callable[[float], str] = lambda v: f"{v:.3g}" if abs(v) < 100 else f"{v:.0f}"  # noqa: E731
    if share:
        form = lambda v: f"{v:.1f}"  # noqa: E731
    low, mean, high = map(form, (min(values), float(np.mean(values)), max(values)))
    return mean if len(values) == 1 or low == high else f"{mean} ({low} to {high})"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _manifest(run: Path) -> dict:
    return json.loads((run / "manifest.json").read_text())["stages"]


def _evaluations(run: Path, stage: str) -> list[dict]:
    return [r for r in stage_rows(run, stage) if any(k.startswith("eval/") for k in r)]


def _steps(run: Path, stage: str) -> list[dict]:
    return [r for r in stage_rows(run, stage) if r["step"] > 0]


if __name__ == "__main__":
    main()
