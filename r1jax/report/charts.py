"""The curves of a run as inline SVG: one chart a subject, its RL stages side by side.

Every stage has a panel of its own, as wide as its steps are many, on one common height: a
stage need not go on from the one before, so no line runs from one to the next.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from r1jax.report.markup import Markup, tag
from r1jax.report.records import Records, Stage, last
from r1jax.report.style import LIGHT

WIDTH, HEIGHT = 580, 250  # pixels
LEFT, RIGHT, TOP, BOTTOM, GAP = 46, 10, 24, 36, 16
NARROWEST = 70  # panel
MOST_POINTS = 400  # of a line in one panel; more are averaged

Points = list[tuple[float, float | None]]  # (step, value), None where it was not finite


@dataclass(frozen=True)
class Curve:
    """One metric in every stage that has it, as a line, as dots, or as both; `band` has
    (step, low, high)."""

    label: str
    points: Mapping[str, Points]
    line: bool = True
    dots: bool = False
    band: Mapping[str, list[tuple[float, float, float]]] = field(default_factory=dict)


def charts(records: Records) -> list[Markup]:
    """All charts that the run has data for."""
    stages = [stage for stage in records.stages if _trained(stage)]
    names = _names(stages, "eval/", "/pass@1")
    # Where no question makes demands, there is no helpfulness to draw; where some do, answers
    # may be plain text, and their format says nothing.
    general = [name for name in names if _above_zero(stages, f"eval/{name}/helpful")]
    reasoning = [name for name in names if name not in general]
    models = {stage.name for stage in records.stages if stage.makes == "score"}
    for stage in stages:  # names under which a stage was given them
        models |= set(records.config.get(stage.name, {}).get("preference", {}).get("models", ()))
    rewards = _names(stages, "reward/", "")
    scores = [name for name in rewards if name in models]
    # Beside the scores, to be compared with them, the true ones of the same stages.
    paid = [s for s in stages if any(f"reward/{n}" in row for n in scores for row in s.metrics)]
    paid = paid or stages
    elsewhere = {*models, "helpful", "harmless", "language", "total", "errors", "restarts"}

    def rollouts(metric: str, label: str = "rollouts") -> list[Curve]:
        return [_curve(stages, metric, label)]

    def evaluated(metric: str, where: Sequence[str], label: str = "evaluation") -> list[Curve]:
        return [
            _curve(stages, f"eval/{name}/{metric}", f"{label} on {name}", line=False, dots=True)
            for name in where
        ]

    found = [
        _chart(stages, f"Accuracy on {name}", _accuracy(stages, name), share=True)
        for name in (*reasoning, *general)
    ]
    found += [
        _chart(
            stages, "Response length",
            rollouts("rollout/length") + evaluated("length", names), unit="tokens",
        ),
        _chart(
            stages, "Language consistency",
            rollouts("reward/language") + evaluated("language", names), share=True,
        ),
        _chart(
            stages, "Reflective words a response",
            rollouts("rollout/reflections") + evaluated("reflections", names), unit="words",
        ),
        _chart(
            stages, "Format and readability",
            evaluated("format", reasoning, "format") + evaluated("readable", reasoning, "readable"),
            share=True,
        ),
        _chart(
            stages, "Scores of the reward models, rollouts",
            [_curve(stages, f"reward/{n}", n) for n in scores], unit="mean",
        ),
        _chart(
            paid, "True scores, which the reward models stand for",
            rollouts("reward/helpful", "helpful, rollouts")
            + rollouts("reward/harmless", "harmless, rollouts")
            + evaluated("helpful", general, "helpful") + evaluated("harmless", general, "harmless"),
            share=True,
        ),
        _chart(
            stages, "Rule rewards of the rollouts",
            [_curve(stages, f"reward/{n}", n) for n in rewards if n not in elsewhere], unit="mean",
        ),
    ]  # fmt: skip
    return [one for one in found if one is not None]


def _accuracy(stages: Sequence[Stage], benchmark: str) -> list[Curve]:
    """pass@1 and the largest majority vote, with the intervals that were logged."""
    prefix = f"eval/{benchmark}/"
    votes = [int(k) for k in _names(stages, f"{prefix}cons@", "") if k.isdigit()]
    found = [_curve(stages, f"{prefix}pass@1", "pass@1", dots=True, band=True)]
    if votes:
        label = f"majority vote of {max(votes)}"
        found.append(_curve(stages, f"{prefix}cons@{max(votes)}", label, dots=True, band=True))
    return found


def _curve(
    stages: Sequence[Stage], metric: str, label: str, *, line: bool = True, dots: bool = False,
    band: bool = False,
) -> Curve:  # fmt: skip
    points, ends = {}, {}
    for stage in stages:
        rows = [row for row in stage.metrics if metric in row]
        if rows:
            points[stage.name] = [(row["step"], row[metric]) for row in rows]
            both = [(r["step"], r.get(f"{metric}_low"), r.get(f"{metric}_high")) for r in rows]
            ends[stage.name] = [end for end in both if None not in end] if band else []
    return Curve(label, points, line, dots, ends)


def _chart(
    stages: Sequence[Stage], title: str, curves: Sequence[Curve], *, share: bool = False,
    unit: str = "",
) -> Markup | None:  # fmt: skip
    """A figure with its legend, of the stages that have values; None where no curve has one."""
    curves = [curve for curve in curves if any(curve.points.values())]
    stages = [stage for stage in stages if any(stage.name in curve.points for curve in curves)]
    values = [v for c in curves for points in c.points.values() for _, v in points if v is not None]
    values += [v for c in curves for ends in c.band.values() for end in ends for v in end[1:]]
    if not values:
        return None
    scale = 100 if share else 1
    low, high, ticks = axis(scale * min(values), scale * max(values), share=share)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (scale * value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    drawn = [
        tag("text", unit or ("%" if share else ""), x=LEFT - 6, y=TOP - 9, class_="unit"),
        [
            [
                tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y(t / scale), y2=y(t / scale)),
                tag("text", _tick(t), x=LEFT - 6, y=y(t / scale) + 4, class_="y"),
            ]
            for t in ticks
        ],
    ]
    for stage, left, width in panels(stages):
        drawn.append(_panel(stage, left, width, curves, y, first=stage is stages[0]))
    legend = [
        tag("li", tag("span", class_=f"{'dots' if c.dots else 'line'} {colour(i)}"), c.label)
        for i, c in enumerate(curves)
    ]
    return tag(
        "figure",
        tag("figcaption", tag("h3", title), tag("ul", legend, class_="legend")),
        tag(
            "svg", drawn, class_="chart", viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img",
            aria_label=f"{title}, over the steps of {', '.join(stage.name for stage in stages)}",
        ),
    )  # fmt: skip


def panels(stages: Sequence[Stage]) -> list[tuple[Stage, float, float]]:
    """(stage, left edge, width): as wide as its steps are many, and never too narrow to read."""
    room = WIDTH - LEFT - RIGHT - GAP * (len(stages) - 1)
    narrowest = min(NARROWEST, room / len(stages))
    steps = [max(last(stage), 1) for stage in stages]
    spare = room - narrowest * len(stages)
    found, left = [], float(LEFT)
    for stage, count in zip(stages, steps, strict=True):
        width = narrowest + spare * count / sum(steps)
        found.append((stage, left, width))
        left += width + GAP
    return found


def axis(low: float, high: float, *, share: bool) -> tuple[float, float, list[float]]:
    """(bottom, top, ticks) of an axis with all values between: 0 to 100 for shares unless they
    all lie in its upper part, else round numbers, from 0 where no value is negative."""
    if share:
        bottom = 0 if low < 78 else 20 * math.floor(max(low - 3, 0) / 20)
        step = 20 if bottom < 60 else 10 if bottom == 60 else 5
        return bottom, 100, [float(t) for t in range(int(bottom), 101, step)]
    low = min(low, 0.0)
    step = round_step((high - low) / 4 or 0.25)
    bottom, top = step * math.floor(low / step), step * math.ceil(high / step)
    top = top if top > bottom else bottom + step
    count = round((top - bottom) / step)
    return bottom, top, [bottom + step * i for i in range(count + 1)]


def round_step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is at least `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= least * (1 - 1e-9))


def colour(number: int) -> str:
    """The class that gives the curve of that number its colour."""
    return f"c{number % len(LIGHT)}"


def thin(points: Points, most: int = MOST_POINTS) -> Points:
    """At most `most` points: means of as many neighbours as that takes, at their mean step.

    A group is None where any of its values is.
    """
    size = max(1, -(-len(points) // most))
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return points if size <= 1 else [
        (
            sum(step for step, _ in group) / len(group),
            None if any(v is None for _, v in group) else sum(v for _, v in group) / len(group),
        )
        for group in groups
    ]  # fmt: skip


def _panel(stage: Stage, left: float, width: float, curves: Sequence[Curve], y, *, first: bool):
    """What one stage adds to a chart."""
    end = max(last(stage), 1)

    def x(step: float) -> float:
        return left + step / end * width

    letters = int((width + GAP - 4) / 6.4)
    name = stage.name if len(stage.name) <= letters else stage.name[: letters - 1] + "…"
    base = HEIGHT - BOTTOM
    found = [
        tag("text", name, x=left, y=TOP - 9, class_="stage"),
        tag("line", x1=left, x2=left, y1=TOP, y2=base, class_="border"),
    ]
    if first:
        found.append(tag("text", "step", x=LEFT - 6, y=base + 16, class_="y"))
    step = max(round_step(end * 42 / width), 1)
    for i in range(int(end / step) + 1):
        found.append(tag("text", _tick(i * step), x=x(i * step), y=base + 16, class_="x"))
    for i, curve in enumerate(curves):
        if band := curve.band.get(stage.name):
            edge = [(s, high) for s, _, high in band] + [(s, low) for s, low, _ in band[::-1]]
            corners = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in edge)
            found.append(tag("polygon", points=corners, class_=f"band {colour(i)}"))
        points = curve.points.get(stage.name, [])
        if curve.line:
            path = _path([(x(s), None if v is None else y(v)) for s, v in thin(points)])
            found.append(tag("path", d=path, class_=f"curve {colour(i)}"))
        if curve.dots or len(points) == 1:
            found += [
                tag(
                    "circle", tag("title", f"{stage.name}, step {s}: {v:.4g} ({curve.label})"),
                    cx=x(s), cy=y(v), r=3.2, class_=f"dot {colour(i)}",
                )
                for s, v in points
                if v is not None
            ]  # fmt: skip
    return found


def _path(corners: Iterable[tuple[float, float | None]]) -> str:
    """A line that breaks where there is no value."""
    found, pen = [], "M"
    for x, y in corners:
        if y is None:
            pen = "M"
            continue
        found.append(f"{pen}{x:.1f},{y:.1f}")
        pen = "L"
    return " ".join(found)


def _trained(stage: Stage) -> bool:
    """Whether the stage is one of RL: it logs rollouts."""
    return any(name.startswith("rollout/") for row in stage.metrics for name in row)


def _above_zero(stages: Sequence[Stage], metric: str) -> bool:
    return any((row.get(metric) or 0) > 0 for stage in stages for row in stage.metrics)


def _names(stages: Sequence[Stage], start: str, end: str) -> list[str]:
    """What stands between `start` and `end` in the names of metrics, each once, in order."""
    return list(dict.fromkeys(
        name[len(start) : len(name) - len(end)]
        for stage in stages for row in stage.metrics for name in row
        if name.startswith(start) and name.endswith(end)
    ))  # fmt: skip


def _tick(value: float) -> str:
    return f"{value:g}" if abs(value) < 1e5 else f"{value:.0e}"
