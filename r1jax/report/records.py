"""What a run's folder says of its stages, read from its files alone."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from r1jax.rewards import reflection
from r1jax.writers import read_lines

# What a stage of each kind makes, for one that has not finished and so is in no manifest yet.
MAKES = {
    "pretrain": "model", "sft": "model", "grpo": "model", "distill": "model",
    "rejection": "examples", "preference": "score", "process": "score", "search": "results",
}  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    `inputs` are what it reads besides the weights it starts from: {field: {"stage": name} or
    {"path": …, "sha256": …}}. `entry` is the manifest's, empty until the stage has finished.
    """

    name: str
    kind: str
    init: str = ""  # a stage, a folder, or '' for random weights
    inputs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    entry: Mapping[str, Any] = field(default_factory=dict)
    metrics: tuple[Mapping[str, Any], ...] = ()  # its lines of metrics.jsonl
    begun: bool = False

    @property
    def finished(self) -> bool:
        return bool(self.entry)

    @property
    def artefact(self) -> Mapping[str, Any]:
        return self.entry.get("artefact") or {}

    @property
    def makes(self) -> str:
        """'model', 'score', 'examples' or 'results'; 'unknown' for an unfinished one."""
        return self.artefact.get("kind") or MAKES.get(self.kind, "unknown")


def last(stage: Stage) -> int:
    """The last step of a stage of which anything is logged."""
    return max((row["step"] for row in stage.metrics), default=0)


@dataclass(frozen=True)
class Records:
    """A run's folder."""

    workdir: Path
    manifest: Mapping[str, Any]
    config: Mapping[str, Any]
    stages: tuple[Stage, ...]  # in the order in which they run, those to come included

    @property
    def models(self) -> tuple[Stage, ...]:
        """The stages that make a language model."""
        return tuple(stage for stage in self.stages if stage.makes == "model")

    @cached_property
    def responses(self) -> dict[str, dict[str, list[dict]]]:
        """{stage: {benchmark: rows}} of the stages that have any, with `reflections` counted.

        Only the first row of a question keeps its text: a benchmark's can be gigabytes.
        """
        folder = self.workdir / "responses"
        found: dict[str, dict[str, list[dict]]] = {}
        for stage in self.stages:
            for path in sorted(folder.glob("*.jsonl")):
                if path.name.startswith(f"{stage.name}."):
                    benchmark = path.name.removeprefix(f"{stage.name}.").removesuffix(".jsonl")
                    if rows := _responses(path):
                        found.setdefault(stage.name, {})[benchmark] = rows
        return found

    @cached_property
    def samples(self) -> list[dict]:
        """The lines of samples.jsonl."""
        return _lines(self.workdir / "samples.jsonl")

    def examples(self, stage: Stage, count: int) -> tuple[list[dict], int]:
        """The first `count` rows of data/STAGE.jsonl, and how many there are."""
        path = self.workdir / "data" / f"{stage.name}.jsonl"
        if not path.is_file():
            return [], 0
        with path.open("rb") as file:
            lines = [line for line in islice(file, count) if line.endswith(b"\n")]
            return [json.loads(line) for line in lines], len(lines) + sum(1 for _ in file)

    def results(self, stage: Stage) -> Any:
        """What results/STAGE.json holds, or None."""
        return _json(self.workdir / "results" / f"{stage.name}.json", None)


def read(workdir: str | Path) -> Records:
    """The records of a run, finished or not; ValueError where the folder is no run's."""
    workdir = Path(workdir).absolute()
    names = ("config.json", "manifest.json", "metrics.jsonl")
    if not any((workdir / name).is_file() for name in names):
        raise ValueError(
            f"{workdir} has none of {', '.join(names)}; give the folder of a run, as in "
            "`r1jax train --workdir=…`"
        )
    config, manifest = (_json(workdir / name, {}) for name in names[:2])
    lines: dict[str, list] = {}
    for row in _lines(workdir / names[2]):
        lines.setdefault(row["stage"], []).append(row)
    entries = manifest.get("stages", {})
    stages: list[Stage] = []
    for name in dict.fromkeys([*config.get("stages", ()), *entries, *lines]):
        section, entry = config.get(name, {}), entries.get(name, {})
        if entry:
            inputs = entry.get("inputs") or {}
        else:
            inputs = _named(section, {stage.name for stage in stages})
        stages.append(
            Stage(
                name,
                entry.get("kind") or section.get("kind") or name,
                (entry.get("init") if entry else section.get("init")) or "",
                {key: given for key, given in inputs.items() if key != "init"},
                entry,
                tuple(lines.get(name, ())),
                name in entries or name in lines or name in manifest.get("begun", {}),
            )
        )
    return Records(workdir, manifest, config, tuple(stages))


def _named(section: Any, stages: set[str], where: str = "") -> dict[str, dict[str, str]]:
    """The fields of a stage's config that name other stages, as a manifest has them."""
    if isinstance(section, str):
        return {where: {"stage": section}} if section in stages else {}
    if isinstance(section, list):
        section = {str(i): item for i, item in enumerate(section)}
    if not isinstance(section, Mapping):
        return {}
    found = {}
    for key, value in section.items():
        found |= _named(value, stages, f"{where}.{key}" if where else key)
    return found


def _json(path: Path, default: Any) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else default


def _lines(path: Path) -> list[dict]:
    return read_lines(path) if path.is_file() else []


def _responses(path: Path) -> list[dict]:
    """Rows of kept responses up to a torn line, read one at a time."""
    rows, seen = [], set()
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
            except ValueError:
                break
            missing = {"id", "sample", "question", "text", "tokens"} - row.keys()
            if missing:
                raise ValueError(f"{path}, line {number}: no field {', '.join(sorted(missing))}")
            row["reflections"] = reflection.count(row["text"])
            if row["id"] in seen:
                del row["text"], row["question"]
            seen.add(row["id"])
            rows.append(row)
    return rows
