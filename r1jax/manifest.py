"""manifest.json: what each artefact of a run was made from, and what has to be made again.

Every stage has an input hash: of its own config, of what the run has in common (seed, model,
tokenizer, template), of the files that it reads, and of the input hashes of the stages that it is
given something of. A stage whose input hash is another than when it began is out of date, and
so is, by that chain, all that depends on it.
"""

import hashlib
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

import r1jax
from r1jax import config
from r1jax.experiment import Experiment, Stage
from r1jax.kinds import Data
from r1jax.writers import read_lines, replace

FOLDERS = ("data", "results", "responses")  # with files STAGE.…
SMALL = 1 << 20  # bytes: files of models up to this are hashed whole, larger ones by their size


class Manifest:
    """The manifest of a workdir. Nothing is written before `begin`."""

    def __init__(self, workdir: Path, experiment: Experiment):
        self._workdir, self._path = workdir, workdir / "manifest.json"
        self._experiment = experiment
        self._content = json.loads(self._path.read_text()) if self._path.exists() else {
            "r1jax": r1jax.__version__, "commit": commit(), "jax": jax.__version__,
            "seed": experiment.seed, "begun": {}, "stages": {},
        }  # fmt: skip

    @property
    def stages(self) -> dict[str, dict]:
        """By name, what finished stages were made from and have made."""
        return self._content["stages"]

    @property
    def begun(self) -> dict[str, str]:
        """By name, the input hashes of the stages that have begun."""
        return self._content["begun"]

    def finished(self, stage: str) -> bool:
        return stage in self.stages

    def outdated(self, hashes: Mapping[str, str]) -> list[str]:
        """Stages that began with other inputs than they would have now."""
        return [name for name, now in hashes.items() if self.begun.get(name, now) != now]

    def begin(self, stage: str, input_hash: str) -> None:
        self.begun[stage] = input_hash
        self._write()

    def finish(self, stage: Stage, data: Data, about: Mapping[str, Any]) -> None:
        """Enters a finished stage; `about` is what only its run knows."""
        section = self._experiment.plain[stage.name]
        self.stages[stage.name] = {
            "kind": stage.kind,
            "init": stage.init or None,
            "inputs": {r.field: _origin(r.target, stage.earlier) for r in stage.references},
            "config_hash": config.digest(section),
            "input_hash": self.begun[stage.name],
            "data": data.summary(),
            "r1jax": r1jax.__version__, "commit": commit(), "jax": jax.__version__,
        } | dict(about)  # fmt: skip
        if stage.does.makes in ("model", "score"):
            self.stages[stage.name]["checkpoint"] = about["artefact"]["path"]
        self._write()

    def set_aside(self, names: list[str]) -> Path:
        """Moves what stages have made, and their lines of metrics, to a folder; returns it."""
        number = len(list((self._workdir / "superseded").glob("*")))
        aside = self._workdir / "superseded" / str(number)
        aside.mkdir(parents=True)
        old = {"begun": {}, "stages": {}}
        for name in names:
            made = [self._workdir / "checkpoints" / name]
            made += [p for f in FOLDERS for p in (self._workdir / f).glob(f"{name}.*")]
            for path in filter(Path.exists, made):
                there = aside / path.relative_to(self._workdir)
                there.parent.mkdir(parents=True, exist_ok=True)
                path.rename(there)
            for part in old:
                if name in self._content[part]:
                    old[part][name] = self._content[part].pop(name)
        for name in ("metrics.jsonl", "samples.jsonl"):
            if (path := self._workdir / name).exists():
                rows = read_lines(path)
                replace(aside / name, _lines(r for r in rows if r["stage"] in names))
                replace(path, _lines(r for r in rows if r["stage"] not in names))
        replace(aside / "manifest.json", json.dumps(self._content | old, indent=2) + "\n")
        self._write()
        return aside

    def _write(self) -> None:
        self._content["config_hash"] = config.digest(self._experiment.plain)
        replace(self._path, json.dumps(self._content, indent=2) + "\n")


def input_hashes(experiment: Experiment, data: Mapping[str, Data]) -> dict[str, str]:
    """The input hash of every stage; `data` is what each reads that no other stage makes."""
    common = {
        name: experiment.plain.get(name) for name in ("seed", "template", "chat", "model")
    } | {"tokenizer": experiment.plain.get("tokenizer")}
    hashes: dict[str, str] = {}
    for stage in experiment.stages:
        given = {
            r.field: hashes.get(r.target) or _origin(r.target, stage.earlier)
            for r in stage.references
        }
        read = data[stage.name].summary() if stage.name in data else None
        own = experiment.plain[stage.name]
        hashes[stage.name] = config.digest(
            {"common": common, "own": own, "given": given, "read": read}
        )
    return hashes


def _origin(target: str, earlier) -> dict[str, str]:
    """What a reference stands for: a stage, or a folder or file with a hash of what is there."""
    if target in earlier:
        return {"stage": target}
    path = Path(target)
    if path.is_file():
        return {"path": target, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    if not path.is_dir():
        return {"source": target}
    about = []
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        size = file.stat().st_size
        content = hashlib.sha256(file.read_bytes()).hexdigest() if size <= SMALL else ""
        about.append((str(file.relative_to(path)), size, content))
    return {"path": target, "sha256": hashlib.sha256(json.dumps(about).encode()).hexdigest()}


def _lines(rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def commit() -> str | None:
    """Commit of the checkout that the code runs from, `-dirty` if changed; None outside of one."""
    folder = Path(r1jax.__file__).parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
