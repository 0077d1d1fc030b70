"""manifest.json: what each artefact of a run was made from, and what has to be made again.

Every stage has an input hash: of its own config, of what the run has in common (seed, model,
tokenizer, template), of the files that it reads, and of the input hashes of the stages that it is
given something of. A stage whose input hash is another than when it began is out of date, and
so is, by that chain, all that depends on it.
"""

import hashlib
import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

import r1jax
from r1jax import config
from r1jax.config import ConfigError
from r1jax.data.sources import checksums
from r1jax.experiment import Experiment, Stage
from r1jax.kinds import Data
from r1jax.writers import read_lines, replace

FOLDERS = ("data", "results", "responses")  # with files STAGE.…
COMMON = ("seed", "template", "chat", "model", "tokenizer")  # of a config: in every stage's input


class Manifest:
    """The manifest of a workdir. Nothing is written before `begin`.

    Raises ConfigError where it is unreadable, or missing beside what stages have made.
    """

    def __init__(self, workdir: Path, experiment: Experiment):
        self._workdir, self._path = workdir, workdir / "manifest.json"
        self._experiment = experiment
        self._content = self._read() or {
            "r1jax": r1jax.__version__, "commit": commit(), "jax": jax.__version__,
            "seed": experiment.seed, "common": "", "begun": {}, "stages": {}, "files": {},
        }  # fmt: skip

    def _read(self) -> dict | None:
        if not self._path.exists():
            if made := next((self._workdir / "checkpoints").glob("*/*"), None):
                raise ConfigError(
                    f"{self._workdir} has {made.relative_to(self._workdir)}, but no manifest.json, "
                    "which says what it was made from: put it back, or use another --workdir"
                )
            return None
        try:
            content = json.loads(self._path.read_text())
            return content | {k: dict(content[k]) for k in ("begun", "stages", "files")}
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{self._path} is unreadable ({error!r}): put it back, or use another --workdir. "
                "Without it nothing says what the checkpoints there were made from"
            ) from error

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

    def same_tokenizer(self) -> bool:
        """Whether what stands in the workdir was made with the tokenizer, seed and model of now."""
        return not self.begun or self._content["common"] == self._common()

    def outdated(self, hashes: Mapping[str, str]) -> list[str]:
        """Stages that began with other inputs than they would have now, all of them where what
        they have in common has changed."""
        if not self.same_tokenizer():
            return list(self.begun)
        return [name for name, now in hashes.items() if self.begun.get(name, now) != now]

    def damaged(self) -> dict[str, Path]:
        """Of finished stages, by name, artefacts that are gone, or files that are others now."""
        found = {}
        for name, stage in self.stages.items():
            made = stage["artefact"]
            path = self._workdir / made["path"]
            whole = path.is_dir() if made["kind"] in ("model", "score") else path.is_file()
            if not whole or (path.is_file() and file_hash(path) != made["sha256"]):
                found[name] = path
        return found

    def input_hashes(self, data: Mapping[str, Data]) -> dict[str, str]:
        """The input hash of every stage; `data` is what each reads that no other stage makes."""
        hashes: dict[str, str] = {}
        for stage in self._experiment.stages:
            given = {
                r.field: hashes.get(r.target) or self.origin(r.target, stage.earlier)
                for r in stage.references
            }
            if stage.name in data:
                read = data[stage.name].summary()
            else:  # its examples are still to be made, its problems are there
                problems = getattr(stage.settings, "problems", "")
                read = checksums(problems) if problems else None
            own = self._experiment.plain[stage.name]
            hashes[stage.name] = config.digest(
                {"common": self._common(), "own": own, "given": given, "read": read}
            )
        return hashes

    def origin(self, target: str, earlier) -> dict[str, str]:
        """What a reference stands for: a stage, or a folder or file with a hash of its content."""
        if target in earlier:
            return {"stage": target}
        path = Path(target)
        if path.is_file():
            return {"path": target, "sha256": self._hash(path)}
        if not path.is_dir():
            return {"source": target}
        files = sorted(p for p in path.rglob("*") if p.is_file())
        about = [(str(file.relative_to(path)), self._hash(file)) for file in files]
        return {"path": target, "sha256": hashlib.sha256(json.dumps(about).encode()).hexdigest()}

    def _hash(self, path: Path) -> str:
        """SHA-256 of a file, computed again when its size or time of change is another: weights
        are large, and every resume asks."""
        status, name = path.stat(), str(path.absolute())
        about = [status.st_size, status.st_mtime_ns]
        known = self._content["files"].get(name)
        if known is None or known[:2] != about:
            self._content["files"][name] = [*about, file_hash(path)]
        return self._content["files"][name][2]

    def begin(self, stage: str, input_hash: str) -> None:
        self.begun[stage] = input_hash
        self._write()

    def finish(self, stage: Stage, data: Data, about: Mapping[str, Any]) -> None:
        """Enters a finished stage; `about` is what only its run knows."""
        section = self._experiment.plain[stage.name]
        self.stages[stage.name] = {
            "kind": stage.kind,
            "init": stage.init or None,
            "inputs": {r.field: self.origin(r.target, stage.earlier) for r in stage.references},
            "config_hash": config.digest(section),
            "input_hash": self.begun[stage.name],
            "data": data.summary(),
            "r1jax": r1jax.__version__, "commit": commit(), "jax": jax.__version__,
        } | dict(about)  # fmt: skip
        if stage.does.makes in ("model", "score"):
            self.stages[stage.name]["checkpoint"] = about["artefact"]["path"]
        self._write()

    def set_aside(self, names: Sequence[str], *more: str) -> Path:
        """Moves what stages have made, and their lines of metrics, to a folder, and the files
        `more` of the workdir; returns the folder."""
        number = len(list((self._workdir / "superseded").glob("*")))
        aside = self._workdir / "superseded" / str(number)
        aside.mkdir(parents=True)
        old = {"begun": {}, "stages": {}}
        made = [self._workdir / name for name in more]
        for name in names:
            made.append(self._workdir / "checkpoints" / name)
            made += [p for f in FOLDERS for p in (self._workdir / f).glob(f"{name}.*")]
            for part in old:
                if name in self._content[part]:
                    old[part][name] = self._content[part].pop(name)
        for path in filter(Path.exists, made):
            there = aside / path.relative_to(self._workdir)
            there.parent.mkdir(parents=True, exist_ok=True)
            path.rename(there)
        for name in ("metrics.jsonl", "samples.jsonl"):
            if (path := self._workdir / name).exists():
                rows = read_lines(path)
                replace(aside / name, _lines(r for r in rows if r["stage"] in names))
                replace(path, _lines(r for r in rows if r["stage"] not in names))
        replace(aside / "manifest.json", json.dumps(self._content | old, indent=2) + "\n")
        self._write()
        return aside

    def _common(self) -> str:
        return config.digest({name: self._experiment.plain.get(name) for name in COMMON})

    def _write(self) -> None:
        self._content["config_hash"] = config.digest(self._experiment.plain)
        self._content["common"] = self._common()
        replace(self._path, json.dumps(self._content, indent=2) + "\n")


def file_hash(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
