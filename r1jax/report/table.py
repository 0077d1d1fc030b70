"""The table of a run: what each stage that makes a model is worth, stage by stage.

A row is a plain dict: `stage`, `kind`, `init`, `finished`, `evaluated` (a note where it was not
at its own end, else ''), and `metrics`, which has under `<benchmark>/<metric>` a dict with
`value` and, where there is an interval, `low` and `high`.
In rows of one run these are 95% bootstrap intervals over questions; in rows of several
seeds (`across_seeds`) the value is the mean, low and high the range, and `seeds` says of
how many.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from r1jax.metrics import bootstrap_interval
from r1jax.report.records import Records, Stage, read

# Columns in their order: how they are headed, and whether they are shares (shown in percent).
COLUMNS: dict[str, tuple[str, bool]] = {
    "pass@1": ("accuracy", True),
    "cons": ("majority vote", True),
    "length": ("length, tokens", False),
    "reflections": ("reflective words", False),
    "truncated": ("cut off", True),
    "language": ("language consistency", True),
    "format": ("format", True),
    "readable": ("readable", True),
    "helpful": ("helpfulness", True),
    "win_rate": ("win rate against the row above", True),
    "harmful": ("harmful", True),
}
# What a benchmark's columns are: one with demands that a response can meet, and any other.
GENERAL = ("pass@1", "length", "language", "helpful", "win_rate", "harmful")
REASONING = ("pass@1", "cons", "length", "reflections", "language", "format", "readable")

_MEASURED = ("language", "format", "readable", "helpful")  # rewards that a response may carry
_CONS = re.compile(r"cons@\d+")


def stage_table(workdir: str | Path | Records) -> list[dict[str, Any]]:
    """A row for every stage that makes a model, in order; those to come have no metrics.

    Values are taken from the responses in responses/STAGE.BENCHMARK.jsonl; what cannot be
    had from these (the majority vote), or where there are none, from the stage's last
    evaluation in metrics.jsonl, else from the manifest's; and for a stage that was never
    evaluated, from the evaluation at step 0 of one that starts from it. `win_rate` compares
    `helpful` with that of the nearest row above that has responses to the same benchmark.
    """
    records = workdir if isinstance(workdir, Records) else read(workdir)
    rows, above = [], {}
    for stage in records.models:
        metrics, note = _logged(stage), ""
        for benchmark, responses in records.responses.get(stage.name, {}).items():
            where = f"responses/{stage.name}.{benchmark}.jsonl"
            found = _from_responses(responses, where)
            if "helpful" in responses[0]:
                if benchmark in above and (wins := win_rate(above[benchmark], responses)):
                    found["win_rate"] = wins
                above[benchmark] = responses
            metrics |= {f"{benchmark}/{name}": value for name, value in found.items()}
        if not metrics:
            metrics, note = _logged_at_start(records, stage)
        rows.append({
            "stage": stage.name, "kind": stage.kind, "init": stage.init,
            "finished": stage.finished, "evaluated": note, "metrics": metrics,
        })  # fmt: skip
    return rows


def win_rate(before: Iterable[Mapping], after: Iterable[Mapping]) -> dict[str, float] | None:
    """How often the response after is more helpful than the one before, with its interval.

    Responses are paired by (id, sample): 1 where `helpful` is higher after, 0.5 where it is
    the same, 0 where it is lower; first the mean of each question, then over questions.
    None where they have no (id, sample) in common.
    """
    old = {(row["id"], row["sample"]): row["helpful"] for row in before}
    wins: dict[str, list[float]] = {}
    for row in after:
        place = row["id"], row["sample"]
        if place in old:
            wins.setdefault(row["id"], []).append((np.sign(row["helpful"] - old[place]) + 1) / 2)
    return _interval([float(np.mean(won)) for won in wins.values()]) if wins else None


def across_seeds(workdirs: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Rows as `stage_table`'s, of several runs of one experiment: mean and range over runs.

    A metric that only some of the runs have is of those: `seeds` says how many.
    """
    found: dict[str, dict[str, Any]] = {}
    values: dict[str, dict[str, list[float]]] = {}
    for workdir in workdirs:
        for row in stage_table(workdir):
            kept = found.setdefault(row["stage"], {**row, "metrics": {}})
            kept["finished"] = kept["finished"] and row["finished"]
            for name, cell in row["metrics"].items():
                values.setdefault(row["stage"], {}).setdefault(name, []).append(cell["value"])
    for stage, metrics in values.items():
        found[stage]["metrics"] = {
            name: {
                "value": float(np.mean(of)), "low": min(of), "high": max(of), "seeds": len(of),
            }
            for name, of in metrics.items()
        }  # fmt: skip
    return list(found.values())


def benchmarks(rows: Sequence[Mapping]) -> list[str]:
    """Names of the benchmarks that any row has a metric of; those with demands come last."""
    names = dict.fromkeys(name.rpartition("/")[0] for row in rows for name in row["metrics"])
    return sorted(names, key=lambda name: is_general(rows, name))


def is_general(rows: Iterable[Mapping], benchmark: str) -> bool:
    """Whether a benchmark's questions make demands on the answer: questions that make none
    score 0 in helpfulness, whoever answers."""
    return _any(rows, f"{benchmark}/helpful")


def columns(rows: Sequence[Mapping], benchmark: str) -> list[str]:
    """Which metrics of a benchmark to show, in order; the vote under its full name, cons@16."""
    present = {
        name.rpartition("/")[2]: None
        for row in rows
        for name in row["metrics"]
        if name.rpartition("/")[0] == benchmark
    }
    wanted = GENERAL if is_general(rows, benchmark) else REASONING
    wanted += tuple(
        name
        for name in ("truncated", "harmful")
        if name not in wanted and _any(rows, f"{benchmark}/{name}")
    )
    votes = [name for name in present if _CONS.fullmatch(name)]
    found = []
    for name in COLUMNS:
        if name in wanted:
            found += votes if name == "cons" else [name] * (name in present)
    return found


def shown(rows: Iterable[Mapping], benchmark: str) -> list[Mapping]:
    """The rows of a benchmark's table: all but finished stages that it was not meant for."""
    return [
        row
        for row in rows
        if not row["finished"] or any(n.rpartition("/")[0] == benchmark for n in row["metrics"])
    ]


def heading(column: str) -> tuple[str, bool]:
    """(what stands above a column, whether its values are shares)."""
    if _CONS.fullmatch(column):
        return f"majority of {column.removeprefix('cons@')}", True
    return COLUMNS[column]


def number(value: float, share: bool) -> str:
    """A value of a table: shares in percent, to one digit."""
    return f"{100 * value if share else value:.1f}"


def format_table(rows: Sequence[Mapping]) -> str:
    """The rows for a terminal, which are markdown too: one table a benchmark."""
    tables = [_format(rows, benchmark) for benchmark in benchmarks(rows)]
    return "\n\n".join(tables) if tables else "no stage has been evaluated yet"


def _format(rows: Sequence[Mapping], benchmark: str) -> str:
    names = columns(rows, benchmark)
    seeds = max((c.get("seeds", 0) for row in rows for c in row["metrics"].values()), default=0)
    heads = [f"{text}, %" if share else text for text, share in map(heading, names)]
    table = [[f"{benchmark}: stage", *heads]]
    for row in shown(rows, benchmark):
        cells = [row["metrics"].get(f"{benchmark}/{name}") for name in names]
        texts = [
            _cell(cell, heading(name)[1], seeds) for cell, name in zip(cells, names, strict=True)
        ]
        note = row["evaluated"] or ("" if row["finished"] else "not finished")
        table.append([row["stage"] + (f" ({note})" if note else ""), *texts])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    table.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(x.ljust(w) for x, w in zip(line, widths, strict=True)) + " |"
        for line in table
    )


def _cell(cell: Mapping | None, share: bool, seeds: int) -> str:
    if cell is None:
        return ""
    text = number(cell["value"], share)
    if "low" in cell:
        text += f" ({number(cell['low'], share)} to {number(cell['high'], share)})"
    if cell.get("seeds", seeds) < seeds:
        text += f", {cell['seeds']} of {seeds} runs"
    return text


def _from_responses(rows: Sequence[Mapping], where: str) -> dict[str, dict[str, float]]:
    """Means over questions of what the responses to a benchmark carry, with their intervals."""
    measured = {
        "pass@1": lambda row: row["accuracy"],
        "length": lambda row: row["tokens"],
        "reflections": lambda row: row["reflections"],
        "truncated": lambda row: row["truncated"],
    }
    for name in _MEASURED:
        if name in rows[0]:
            measured[name] = lambda row, name=name: row[name]
    if "harmless" in rows[0]:
        measured["harmful"] = lambda row: 1.0 - row["harmless"]
    questions: dict[str, list[Mapping]] = {}
    for row in rows:
        questions.setdefault(row.get("id"), []).append(row)
    try:
        return {
            name: _interval(
                [float(np.mean([value(row) for row in group])) for group in questions.values()]
            )
            for name, value in measured.items()
        }
    except KeyError as error:
        raise ValueError(
            f"{where}: a row has no field {error}; the stage that wrote it has to run again"
        ) from error


def _interval(per_question: Sequence[float]) -> dict[str, float]:
    low, high = bootstrap_interval(per_question)
    return {"value": float(np.mean(per_question)), "low": low, "high": high}


def _logged(stage: Stage) -> dict[str, dict[str, float]]:
    """The last evaluation that the metrics, else the manifest, have of a stage."""
    evaluated = [row for row in stage.metrics if _is_evaluation(row)]
    return _cells(evaluated[-1] if evaluated else stage.entry.get("metrics") or {})


def _logged_at_start(records: Records, stage: Stage) -> tuple[dict[str, dict[str, float]], str]:
    """The evaluation before the first step of a stage that starts from this one, and a note."""
    for later in records.stages:
        for row in later.metrics:
            if later.init == stage.name and row["step"] == 0 and _is_evaluation(row):
                return _cells(row), f"evaluated at the start of {later.name}"
    return {}, ""


def _is_evaluation(row: Mapping) -> bool:
    return any(name.startswith("eval/") for name in row)


def _cells(last: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """What a line of metrics says of evaluations, as cells of a row."""
    found = {}
    for name, value in last.items():
        metric = name.rpartition("/")[2]
        known = metric in COLUMNS or metric == "harmless" or _CONS.fullmatch(metric)
        if not name.startswith("eval/") or not known or value is None:
            continue
        cell = {"value": value}
        if last.get(f"{name}_low") is not None and last.get(f"{name}_high") is not None:
            cell |= {"low": last[f"{name}_low"], "high": last[f"{name}_high"]}
        name = name.removeprefix("eval/")
        if metric == "harmless":
            name = name.removesuffix("harmless") + "harmful"
            cell = {{"low": "high", "high": "low"}.get(end, end): 1 - x for end, x in cell.items()}
        found[name] = cell
    return found


def _any(rows: Iterable[Mapping], name: str) -> bool:
    """Whether a metric is above 0 in any row."""
    return any(row["metrics"].get(name, {"value": 0})["value"] > 0 for row in rows)
