"""The same questions put to the model of every stage, with what each answered."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from r1jax.report.markup import Markup, escape, join, tag
from r1jax.report.records import Records
from r1jax.rewards.sections import END_THINK, THINK, parts

REASONING, GENERAL = 2, 3  # questions shown of a benchmark without and with demands to meet
FOLD_LINES, FOLD_LETTERS = 14, 500  # a part of a response longer than either is folded


@dataclass
class Question:
    """A question and the responses to it, in the order of the stages."""

    benchmark: str
    id: str
    question: str
    answer: str
    responses: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)  # (of what, row)


def chosen(records: Records) -> list[Question]:
    """Questions with the first response of every stage to each.

    From the responses kept of whole benchmarks; in a run that has none, from samples.jsonl:
    a stage's first and last.
    """
    if not records.responses:
        return _logged(records)
    found: dict[tuple[str, str], Question] = {}
    by_benchmark: dict[str, list[tuple[str, list[dict]]]] = {}
    for stage, benchmarks in records.responses.items():
        for benchmark, rows in benchmarks.items():
            by_benchmark.setdefault(benchmark, []).append((stage, rows))
    demands = {
        benchmark: any(row.get("helpful", 0) > 0 for _, rows in stages for row in rows)
        for benchmark, stages in by_benchmark.items()
    }
    for benchmark, general in sorted(demands.items(), key=lambda item: item[1]):
        stages = by_benchmark[benchmark]
        ids = pick(stages[-1][1], GENERAL if general else REASONING)
        for stage, rows in stages:
            firsts: dict[str, dict] = {}
            for row in rows:
                firsts.setdefault(row["id"], row)
            for name in (n for n in ids if n in firsts):
                row = firsts[name]
                question = found.setdefault(
                    (benchmark, name),
                    Question(benchmark, name, row["question"], str(row.get("answer") or "")),
                )
                question.responses.append((stage, row))
    return list(found.values())


def pick(rows: Sequence[Mapping], count: int) -> list[str]:
    """Ids of `count` questions: the first, then always the one least like those before it.

    So each language and each kind of question comes to be shown. How alike two are is the
    share of their pairs of neighbouring letters that both have.
    """
    pairs = {}
    for row in rows:
        if row["id"] not in pairs:
            question = row["question"]
            pairs[row["id"]] = {question[i : i + 2] for i in range(len(question) - 1)}
    nearest = dict.fromkeys(pairs, 0.0)  # how like the likest of the picked ones
    picked: list[str] = []
    while nearest and len(picked) < count:
        name = min(nearest, key=nearest.__getitem__)
        picked.append(name)
        del nearest[name]
        for other in nearest:
            either = len(pairs[name] | pairs[other])
            alike = len(pairs[name] & pairs[other]) / either if either else 1.0
            nearest[other] = max(nearest[other], alike)
    return picked


def _logged(records: Records) -> list[Question]:
    rows: dict[tuple[str, str], dict[str, list[dict]]] = {}
    for row in records.samples:
        if row.get("sample", 0) == 0 and "question" in row:
            place = row.get("benchmark", ""), str(row.get("id", ""))
            rows.setdefault(place, {}).setdefault(row["stage"], []).append(row)
    found = []
    for (benchmark, name), stages in list(rows.items())[: REASONING + GENERAL]:
        given = next(iter(stages.values()))[0]
        responses = [
            (f"{stage}, step {row['step']}", {"text": row["response"], **row})
            for stage, of in stages.items()
            for row in ([of[0], of[-1]] if len(of) > 1 else of)
        ]
        found.append(
            Question(benchmark, name, given["question"], str(given.get("answer") or ""), responses)
        )
    return found


def show(questions: Sequence[Question]) -> list[Markup]:
    """An article for each question."""
    return [
        tag(
            "article",
            tag("h3", tag("bdi", question.question)),
            tag(
                "p", f"{question.benchmark} · {question.id}",
                join(" · answer ", tag("bdi", question.answer)) if question.answer else None,
                class_="note",
            ),
            tag("div", [_response(*given) for given in question.responses], class_="responses"),
            class_="question",
        )
        for question in questions
    ]  # fmt: skip


def text(response: str) -> list[Markup]:
    """A response with its reasoning set apart; what is long is folded."""
    opened = END_THINK in response and THINK not in response.partition(END_THINK)[0]
    reasoning, rest = parts(response, think_opened=opened)
    found = []
    if reasoning is not None and reasoning.strip():
        found.append(_part(reasoning.strip(), "reasoning"))
    if rest.strip():
        found.append(_part(rest.strip(), "final"))
    return found or [tag("p", "nothing was written", class_="note")]


def _response(label: str, row: Mapping) -> Markup:
    said = []
    if "accuracy" in row:
        right = row["accuracy"] >= 1
        said.append(tag("span", "✓ right" if right else "✗ wrong", class_=f"verdict {right}"))
    if row.get("helpful", 0) > 0:
        said.append(f"helpful {100 * row['helpful']:.0f}%")
    if row.get("harmless", 1) < 1:
        said.append(tag("span", "harmful", class_="verdict False"))
    if "tokens" in row:
        said.append(f"{row['tokens']} tokens{', cut off' if row.get('truncated') else ''}")
    head = [tag("b", label), *(join(" · ", one) for one in said)]
    return tag("section", tag("h4", head), text(row["text"]), class_="response")


def _part(written: str, kind: str) -> Markup:
    lines = written.count("\n") + 1
    block = tag("div", escape(written), class_=kind, dir="auto")
    if lines <= FOLD_LINES and len(written) <= FOLD_LETTERS:
        return block
    summary = f"{kind}: {lines} line{'s' * (lines > 1)}, {len(written):,} characters"
    return tag("details", tag("summary", summary), block)
