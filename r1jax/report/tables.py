"""The tables of the report: values with their intervals, in figures and as a small drawing."""

from collections.abc import Mapping, Sequence
from typing import Any

from r1jax.report.markup import Markup, tag
from r1jax.report.records import Stage
from r1jax.report.table import columns, heading, number, shown


def stages_table(rows: Sequence[Mapping], benchmark: str) -> Markup:
    """The rows of `stage_table`, of one benchmark."""
    names = columns(rows, benchmark)
    heads = [f"{text}, %" if share else text for text, share in map(heading, names)]
    tops = [
        max((r["metrics"].get(f"{benchmark}/{n}", {}).get("value", 0) for r in rows), default=0)
        for n in names
    ]
    body = []
    for row in shown(rows, benchmark):
        cells = [
            _cell(row["metrics"].get(f"{benchmark}/{name}"), heading(name)[1], top)
            for name, top in zip(names, tops, strict=True)
        ]
        note = row["evaluated"] or ("" if row["finished"] else "not finished")
        name = tag("th", row["stage"], tag("small", note) if note else None, scope="row")
        body.append(tag("tr", name, cells))
    return _table(benchmark, ["stage", *heads], body)


def methods_table(results: Any) -> Markup | None:
    """Accuracy by method and by how many samples it may spend the tokens of, where results are
    of a comparison of methods; else None."""
    rows = results.get("rows") if isinstance(results, Mapping) else None
    if not rows or not all({"method", "samples", "accuracy"} <= row.keys() for row in rows):
        return None
    budgets = {row["samples"]: row.get("budget") for row in rows}
    cells = {(row["method"], row["samples"]): row | {"value": row["accuracy"]} for row in rows}
    heads = [
        f"{samples} sample{'s' * (samples > 1)}" + (f", {tokens:,.0f} tokens" if tokens else "")
        for samples, tokens in sorted(budgets.items())
    ]
    body = [
        tag(
            "tr", tag("th", method, scope="row"),
            [_cell(cells.get((method, samples)), True, 1.0) for samples in sorted(budgets)],
        )
        for method in dict.fromkeys(row["method"] for row in rows)
    ]  # fmt: skip
    asked = f" on {results['questions']} questions" if "questions" in results else ""
    return _table(
        f"Accuracy in percent{asked}, by generated tokens a question", ["method", *heads], body
    )


def score_models_table(stages: Sequence[Stage]) -> Markup | None:
    """The last measurement of every score model on held-out data; None where there is none."""
    measured = {}
    for stage in stages:
        if stage.makes == "score":
            last = {}
            for row in stage.metrics:
                last |= {n: v for n, v in row.items() if n.startswith(f"{stage.kind}/")}
            if last:
                measured[stage.name] = {n.partition("/")[2]: v for n, v in last.items()}
    if not measured:
        return None
    names = list(dict.fromkeys(name for values in measured.values() for name in values))
    body = [
        tag(
            "tr", tag("th", stage, scope="row"),
            [
                tag("td", "–" if values.get(name) is None else f"{values[name]:.4g}")
                for name in names
            ],
        )
        for stage, values in measured.items()
    ]  # fmt: skip
    heads = ["score model", *(name.replace("_", " ") for name in names)]
    return _table("Score models on data that was held out", heads, body)


def _table(caption: str, heads: Sequence[str], body: Sequence[Markup]) -> Markup:
    head = tag("tr", [tag("th", text, scope="col") for text in heads])
    table = tag(
        "table", tag("caption", caption), tag("thead", head), tag("tbody", body), class_="values"
    )
    return tag("div", table, class_="wide", tabindex=0)


def _cell(cell: Mapping | None, share: bool, top: float) -> Markup:
    """A value, its interval, and both as a small line on one scale for the whole column."""
    if cell is None:
        return tag("td", "–", class_="none")
    text = [number(cell["value"], share)]
    if "low" in cell:
        interval = f"{number(cell['low'], share)}–{number(cell['high'], share)}"
        text += [" ", tag("small", f"({interval})")]
    width, scale = 84, 1.0 if share else 1.15 * top or 1.0

    def x(value: float) -> float:
        return 3 + (width - 6) * min(value / scale, 1.0)

    drawn = [tag("line", x1=3, x2=width - 3, y1=5, y2=5, class_="scale")]
    if "low" in cell:
        ends = {"x1": x(cell["low"]), "x2": x(cell["high"])}
        drawn.append(tag("line", **ends, y1=5, y2=5, class_="interval"))
    drawn.append(tag("circle", cx=x(cell["value"]), cy=5, r=3))
    size = {"width": width, "height": 10, "viewBox": f"0 0 {width} 10"}
    return tag("td", text, tag("svg", drawn, **size, class_="spark", aria_hidden="true"))
