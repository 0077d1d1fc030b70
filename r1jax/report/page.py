"""report.html: all that a run says of itself on one page that needs nothing else.

No scripts, no fonts and no files beside it: the drawings are inline SVG, and whatever was
written by a model, a file or a person goes through `markup`, which escapes it.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from r1jax.report import samples
from r1jax.report.charts import MOST_POINTS, charts
from r1jax.report.diagram import counts, diagram, source
from r1jax.report.markup import Markup, breakable, join, tag
from r1jax.report.records import Records, Stage, last, read
from r1jax.report.style import CSS
from r1jax.report.table import benchmarks, is_general, stage_table
from r1jax.report.tables import methods_table, score_models_table, stages_table
from r1jax.writers import replace

EXAMPLES = 3  # shown of each set that a stage made
LONGEST = 20_000  # letters of results that are shown


def write_report(workdir: str | Path) -> Path:
    """Writes report.html into a run's folder, finished or not; returns its path.

    Raises ValueError where the folder is no run's.
    """
    records = read(workdir)
    path = records.workdir / "report.html"
    replace(path, page(records))
    return path


def page(records: Records) -> str:
    """The page as text."""
    title = f"r1jax: {records.workdir.name}"
    body = [
        tag("header", tag("h1", title), _facts(records), _missing(records)),
        _section("Stages", _diagram(records)),
        _section("Stage by stage", _tables(records)),
        _section("Curves", _charts(records)),
        _section("Responses, stage by stage", samples.show(samples.chosen(records))),
        _section("Examples made", _examples(records)),
        _section("Results", _results(records)),
        _section("Made from what", _provenance(records)),
    ]
    head = tag(
        "head", tag("meta", charset="utf-8"), tag("title", title),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("style", Markup(CSS)),
    )  # fmt: skip
    return f"<!doctype html>\n{tag('html', head, tag('body', body), lang='en')}\n"


def _section(title: str, *children: Any) -> Markup | None:
    """A section, or nothing where nothing is in it."""
    content = join(*children)
    return tag("section", tag("h2", title), content) if content else None


def _facts(records: Records) -> Markup:
    manifest, stages = records.manifest, records.stages
    done = [stage for stage in stages if stage.finished]
    commits = {stage.entry.get("commit") for stage in done} - {None, manifest.get("commit")}
    facts = {
        "stages": f"{len(done)} of {len(stages)} finished",
        "seed": manifest.get("seed", records.config.get("seed")),
        "commit": manifest.get("commit"),
        "stages of other commits": ", ".join(sorted(commits)),
        "r1jax": manifest.get("r1jax"),
        "jax": manifest.get("jax"),
        "config": manifest.get("config_hash"),
        "wall time": _total(done, "wall_s"),
        "CPU time": _total(done, "cpu_s"),
    }
    return tag(
        "dl",
        [
            tag("div", tag("dt", name), tag("dd", value))
            for name, value in facts.items()
            if value not in (None, "")
        ],
    )


def _total(stages: Sequence[Stage], name: str) -> str:
    known = [stage.entry[name] for stage in stages if name in stage.entry]
    if not known:
        return ""
    said = f" ({len(known)} of {len(stages)} stages)" if len(known) < len(stages) else ""
    return duration(sum(known)) + said


def duration(seconds: float) -> str:
    """Seconds as a person says them: 12.3 s, 3 min 20 s, 1 h 02 min."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _missing(records: Records) -> Markup | None:
    """What an unfinished run still lacks."""
    left = [stage for stage in records.stages if not stage.finished]
    if not left:
        return None
    said = []
    for stage in left:
        begun = f" (at step {last(stage)})" if stage.metrics else " (begun)" if stage.begun else ""
        said.append(f"{stage.name}{begun}")
    return tag(
        "p", tag("b", "This run is not finished. "), f"Left to do: {', '.join(said)}. ",
        "The same command goes on with it.", class_="missing", role="status",
    )  # fmt: skip


def _diagram(records: Records) -> list[Markup]:
    legend = {
        "model": "model", "examples": "examples", "score": "score model", "results": "results",
        "given": "given weights",
    }  # fmt: skip
    made = {stage.makes for stage in records.stages}
    names = {stage.name for stage in records.stages}
    if any(stage.init and stage.init not in names for stage in records.stages):
        made.add("given")
    items = [
        tag("li", tag("span", class_=f"swatch {kind}"), text)
        for kind, text in legend.items()
        if kind in made
    ]
    if any(stage.init for stage in records.stages):
        items.append(tag("li", tag("span", class_="stroke"), "weights that a stage starts from"))
    if any("stage" in given for stage in records.stages for given in stage.inputs.values()):
        items.append(
            tag("li", tag("span", class_="stroke data"), "examples or scores that it reads")
        )
    return [
        tag("div", diagram(records), class_="wide", tabindex=0),
        tag("ul", items, class_="legend"),
        tag(
            "p", "In a box: kind of stage, rows read or made, start of the artefact's hash. More ",
            "on hover, and all of it in the last section.", class_="note",
        ),
    ]  # fmt: skip


def _tables(records: Records) -> list[Markup]:
    rows = stage_table(records)
    found = [stages_table(rows, name) for name in benchmarks(rows)]
    if not found:
        return [tag("p", "No stage has been evaluated yet.", class_="note")]
    notes = ["In brackets and as a line: 95% bootstrap intervals over questions. "]
    if any(is_general(rows, name) for name in benchmarks(rows)):
        notes.append(
            "Of questions that make demands on the answer (helpfulness: the share of them that is "
            "met) the accurate answers are those that meet all. "
        )
    if any(name.endswith("/win_rate") for row in rows for name in row["metrics"]):
        notes.append(
            "Win rate: how often a response is more helpful than the one to the same question and "
            "sample in the row above, ties as half."
        )
    return [*found, tag("p", notes, class_="note")]


def _charts(records: Records) -> list[Markup]:
    found = charts(records)
    if not found:
        return []
    note = (
        "Every panel is one stage of RL from its own step 0, as wide as its steps are many. Lines: "
        "means of the rollouts, or evaluations with 95% intervals over questions; dots: "
        f"evaluations. Beyond {MOST_POINTS} points a panel, means of neighbours are drawn. "
        "Reflective words: wait, check, mistake, … in the reasoning."
    )
    return [tag("div", found, class_="charts"), tag("p", note, class_="note")]


def _examples(records: Records) -> list[Markup]:
    """The first rows of every set that a stage made."""
    found = []
    for stage in records.stages:
        rows, total = records.examples(stage, EXAMPLES)
        if stage.makes != "examples" or not rows:
            continue
        shown = [
            tag(
                "section", tag("h4", tag("bdi", row.get("question", ""))),
                samples.text(str(row.get("response", ""))), class_="response",
            )
            for row in rows
        ]  # fmt: skip
        found += [
            tag("h3", stage.name),
            tag("p", f"The first {len(shown)} of {total:,} rows.", class_="note"),
            tag("div", shown, class_="responses"),
        ]
    return found


def _results(records: Records) -> list[Markup]:
    """What score models came to on what was held out, and what the other stages found."""
    found = [score_models_table(records.stages)]
    for stage in records.stages:
        results = records.results(stage)
        if results is not None:
            text = json.dumps(results, indent=2, ensure_ascii=False)
            cut = "\n… (the rest is in the file)" if len(text) > LONGEST else ""
            found += [
                tag("h3", stage.name),
                methods_table(results),
                tag("details", tag("summary", "results as JSON"), tag("pre", text[:LONGEST], cut)),
            ]
    return found


def _provenance(records: Records) -> list[Markup]:
    done = [stage for stage in records.stages if stage.finished]
    if not done:
        return []
    heads = ("stage", "kind", "starts from", "reads", "data", "counts", "made", "config", "wall",
             "CPU")  # fmt: skip
    body = [
        tag("tr", tag("th", stage.name, scope="row"), [tag("td", cell) for cell in _origin(stage)])
        for stage in done
    ]
    table = tag(
        "table", tag("thead", tag("tr", [tag("th", head, scope="col") for head in heads])),
        tag("tbody", body), class_="origin",
    )  # fmt: skip
    hashes = json.dumps(records.manifest, indent=2, ensure_ascii=False)
    return [
        tag("div", table, class_="wide", tabindex=0),
        tag("details", tag("summary", "The whole manifest, hashes in full"), tag("pre", hashes)),
    ]


def _origin(stage: Stage) -> list[Any]:
    """The cells of a stage's row in the table of provenance."""
    entry, artefact = stage.entry, stage.artefact
    data = entry.get("data") or {}
    reads = [
        tag("div", breakable(name), f": {source(given)} ", _hash(given.get("sha256")))
        for name, given in stage.inputs.items()
    ]
    rows = [f"{data['rows']:,} rows ", _hash(data.get("sha256"))] if "rows" in data else "–"
    told = [
        tag("div", tag("dt", breakable(name)), tag("dd", value))
        for name, value in counts(entry.get("counts") or {})
    ]
    made = breakable(artefact.get("path") or entry.get("checkpoint", ""))
    times = [duration(entry[n]) if n in entry else "–" for n in ("wall_s", "cpu_s")]
    return [
        stage.kind, breakable(stage.init or "random weights"), reads or "–", rows,
        tag("dl", told) if told else "–", [made, " ", _hash(artefact.get("sha256"))],
        _hash(entry.get("config_hash")), *times,
    ]  # fmt: skip


def _hash(sha256: str | None) -> Markup | None:
    return tag("code", sha256[:12], title=sha256) if sha256 else None
