"""The diagram of a run: its stages, what each started from and what it read.

Models stand in the first row, from left to right; what is made of a model and is none
itself (examples, score models, results) hangs below it in the same column. A line leaves its
box on the right and enters the next on the left: straight, or over a track in the gap
between two columns, or, past whole columns, over a track above all boxes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from r1jax.report.markup import Markup, tag
from r1jax.report.records import Records, Stage, last

WIDTH, HEIGHT, INDENT = 146, 74, 18  # of a box, pixels; INDENT of one that hangs below another
PITCH_X, PITCH_Y = 200, 90  # from one box to the next
MARGIN, TRACK = 8, 11  # around all, between the tracks above the boxes
BOLD, PLAIN, MONO = 7.6, 6.0, 6.7  # pixels a letter takes at most, to cut what is too long
WEIGHTS, DATA = "weights", "data"


@dataclass
class Box:
    """A stage, or weights that were given, and where it stands."""

    name: str
    title: str
    lines: Sequence[str]
    hover: str
    makes: str
    finished: bool = True
    column: int = 0
    row: int = 0
    parent: str = ""  # the box that it hangs below

    @property
    def x(self) -> float:
        return MARGIN + self.column * PITCH_X + (INDENT if self.parent else 0)

    @property
    def y(self) -> float:
        """Without the tracks above."""
        return self.row * PITCH_Y

    @property
    def width(self) -> float:
        return WIDTH - (INDENT if self.parent else 0)

    @property
    def right(self) -> float:
        return MARGIN + self.column * PITCH_X + WIDTH


@dataclass(frozen=True)
class Edge:
    source: str
    target: str
    kind: str  # WEIGHTS that it starts from, or DATA (or scores) that it reads


def diagram(records: Records) -> Markup:
    """The stages of a run as an inline SVG; further particulars of a box on hover."""
    boxes, edges = layout(records)
    lines, top = route(boxes, edges)
    width = max(box.right for box in boxes.values()) + MARGIN
    height = top + max(box.y for box in boxes.values()) + HEIGHT + MARGIN
    said = "; ".join(f"{e.source} gives {e.kind} to {e.target}" for e in edges)
    return tag(
        "svg",
        tag("defs", _arrow(WEIGHTS), _arrow(DATA)),
        [
            tag(
                "path",
                tag("title", f"{edge.source} → {edge.target}: {edge.kind}"),
                d="M" + " L".join(f"{x:.0f},{y + top:.0f}" for x, y in points),
                class_=f"edge {edge.kind}",
                marker_end=f"url(#arrow-{edge.kind})",
            )
            for edge, points in lines.items()
        ],
        [_box(box, top) for box in boxes.values()],
        class_="diagram", role="img", aria_label=f"Stages of the run: {said or 'no connections'}",
        viewBox=f"0 0 {width} {height}", width=width, height=height,
    )  # fmt: skip


def layout(records: Records) -> tuple[dict[str, Box], list[Edge]]:
    """Boxes with their column and row, by name, and the edges between them."""
    boxes: dict[str, Box] = {}
    edges: list[Edge] = []
    names = {stage.name for stage in records.stages}
    for stage in records.stages:
        if stage.init and stage.init not in names and stage.init not in boxes:
            boxes[stage.init] = Box(
                stage.init, Path(stage.init).name, ["weights given"], stage.init, "given"
            )
        box = boxes[stage.name] = Box(
            stage.name, stage.name, _lines(stage), describe(stage), stage.makes, stage.finished
        )
        sources = {stage.init: WEIGHTS} if stage.init else {}
        for given in stage.inputs.values():
            if given.get("stage") in boxes:
                sources.setdefault(given["stage"], DATA)
        edges += [Edge(source, stage.name, kind) for source, kind in sources.items()]
        hangs = stage.makes not in ("model", "unknown") and (
            sources.get(stage.init) and boxes[stage.init].makes in ("model", "given")
        )
        after = [boxes[n].column + (not (hangs and n == stage.init)) for n in sources]
        box.column = max(after, default=0)
        if hangs and boxes[stage.init].column == box.column:
            box.parent = stage.init
    for column in range(1 + max((box.column for box in boxes.values()), default=0)):
        row = 0
        for box in [b for b in boxes.values() if b.column == column and not b.parent]:
            for one in (box, *(b for b in boxes.values() if b.parent == box.name)):
                one.row, row = row, row + 1
    return boxes, edges


def route(
    boxes: dict[str, Box], edges: Sequence[Edge]
) -> tuple[dict[Edge, list[tuple[float, float]]], float]:
    """The corners of every edge, and how much room the tracks above the boxes take.

    Edges of one kind from one box share their tracks. Heights are from the top of the first
    row of boxes: above it they are negative.
    """
    hanging = [e for e in edges if boxes[e.target].parent == e.source]
    across = [e for e in edges if e not in hanging]
    long = [e for e in across if boxes[e.target].column - boxes[e.source].column > 1]
    above = {key: -MARGIN - TRACK * i for i, key in enumerate(_keys(long))}
    entry = _entries(boxes, across, long)

    def straight(edge: Edge) -> bool:
        source = boxes[edge.source]
        return edge not in long and source.y + 6 <= entry[edge] <= source.y + HEIGHT - 6

    def leaves(edge: Edge) -> float:
        if edge in long:
            return boxes[edge.source].y + (9 if edge.kind == WEIGHTS else 15)
        if straight(edge):
            return entry[edge]
        return boxes[edge.source].y + HEIGHT / 2 + (0 if edge.kind == WEIGHTS else 6)

    tracks: dict[int, dict[tuple, tuple]] = {}  # by gap: {(what): (order)}
    for edge in across:
        source, target = boxes[edge.source], boxes[edge.target]
        key = edge.source, edge.kind
        if edge in long:
            tracks.setdefault(source.column, {})["up", *key] = 0, source.y
            tracks.setdefault(target.column - 1, {})["down", *key] = 1, above[key]
        elif not straight(edge):
            tracks.setdefault(source.column, {})["by", *key] = 2, source.y

    def at(gap: int, what: tuple) -> float:
        order = sorted(tracks[gap], key=tracks[gap].get)
        room = PITCH_X - WIDTH - 22  # the arrow's head needs some
        left = MARGIN + gap * PITCH_X + WIDTH + 8
        return left + room * (order.index(what) + 0.5) / len(order)

    lines = {}
    for edge in hanging:
        source, target = boxes[edge.source], boxes[edge.target]
        middle = target.y + HEIGHT / 2
        x = source.x + INDENT / 2
        lines[edge] = [(x, source.y + HEIGHT), (x, middle), (target.x, middle)]
    for edge in across:
        source, target = boxes[edge.source], boxes[edge.target]
        key, out, into = (edge.source, edge.kind), leaves(edge), entry[edge]
        start, end = (source.right, out), (target.x, into)
        if edge in long:
            up, down = at(source.column, ("up", *key)), at(target.column - 1, ("down", *key))
            over = above[key]
            lines[edge] = [start, (up, out), (up, over), (down, over), (down, into), end]
        elif straight(edge):
            lines[edge] = [start, end]
        else:
            x = at(source.column, ("by", *key))
            lines[edge] = [start, (x, out), (x, into), end]
    return lines, float(MARGIN - min(above.values(), default=0))


def describe(stage: Stage) -> str:
    """All that is known of a stage, a line each: what shows on hover."""
    entry = stage.entry
    data = entry.get("data") or {}
    lines = [f"{stage.name}: {stage.kind}", f"starts from: {stage.init or 'random weights'}"]
    for name, given in stage.inputs.items():
        lines.append(f"{name}: {source(given)}")
    if "rows" in data:
        lines.append(f"data: {data['rows']:,} rows, sha256 {data.get('sha256', '')[:12]}")
    lines += [f"{name}: {value}" for name, value in counts(entry.get("counts") or {})]
    if stage.artefact:
        lines.append(f"made: {stage.artefact.get('path')}, sha256 {stage.artefact['sha256'][:12]}")
    elif "checkpoint" in entry:
        lines.append(f"made: {entry['checkpoint']}")
    if "config_hash" in entry:
        lines.append(f"config: {entry['config_hash']}")
    if not stage.finished:
        lines.append("not finished")
    return "\n".join(lines)


def source(given: dict) -> str:
    """What an input of a stage is: a stage, a file's or folder's name, or a source's."""
    return given.get("stage") or given.get("source") or Path(given["path"]).name


def counts(values: dict, before: str = "") -> list[tuple[str, str]]:
    """Counts of a manifest as (name, text), those inside of others under both names."""
    found = []
    for name, value in values.items():
        name = f"{before}{name}"
        if isinstance(value, dict):
            found += counts(value, f"{name} ")
        else:
            whole = isinstance(value, int) and not isinstance(value, bool)
            text = f"{value:,}" if whole else f"{value:.4g}" if isinstance(value, float) else value
            found.append((name, str(text)))
    return found


def _lines(stage: Stage) -> list[str]:
    """What stands in a box below its name: kind, rows read or made, the artefact's hash."""
    if not stage.finished:
        begun = f"at step {last(stage)}" if stage.metrics else "begun"
        return [stage.kind, begun if stage.begun else "not started"]
    rows = (stage.entry.get("data") or {}).get("rows")
    if stage.makes == "examples":
        rows = (stage.entry.get("counts") or {}).get("rows", rows)
    said = f"{rows:,} rows {'made' if stage.makes == 'examples' else 'read'}" if rows else ""
    return [x for x in (stage.kind, said, stage.artefact.get("sha256", "")[:12]) if x]


def _entries(
    boxes: dict[str, Box], across: Sequence[Edge], long: Sequence[Edge]
) -> dict[Edge, float]:
    """The height at which each edge enters its box: from above first, then by the source's."""
    entry = {}
    for name, box in boxes.items():
        into = [e for e in across if e.target == name]
        into.sort(key=lambda e: (-1 if e in long else boxes[e.source].y, e.kind != WEIGHTS))
        for i, edge in enumerate(into):
            entry[edge] = box.y + HEIGHT * (i + 1) / (len(into) + 1)
    return entry


def _keys(edges: Iterable[Edge]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((e.source, e.kind) for e in edges))


def _arrow(kind: str) -> Markup:
    return tag(
        "marker", tag("path", d="M0,0 L8,4 L0,8 Z", class_=f"head {kind}"),
        id=f"arrow-{kind}", viewBox="0 0 8 8", refX=7.5, refY=4, markerWidth=7, markerHeight=7,
        orient="auto", markerUnits="userSpaceOnUse",
    )  # fmt: skip


def _box(box: Box, top: float) -> Markup:
    x, y = box.x, box.y + top
    styles = [("name", BOLD, 20), ("kind", PLAIN, 37), ("kind", PLAIN, 51), ("kind", MONO, 65)]
    texts = [
        tag("text", _cut(text, box.width - 16, letter), x=x + 9, y=y + below, class_=style)
        for text, (style, letter, below) in zip((box.title, *box.lines), styles, strict=False)
    ]
    return tag(
        "g", tag("title", box.hover),
        tag("rect", x=x, y=y, width=box.width, height=HEIGHT, rx=5), texts,
        class_=f"box {box.makes}{'' if box.finished else ' unfinished'}",
    )  # fmt: skip


def _cut(text: str, width: float, letter: float) -> str:
    """`text`, or as much of it as surely fits."""
    fits = int(width / letter)
    return text if len(text) <= fits else text[: fits - 1] + "…"
