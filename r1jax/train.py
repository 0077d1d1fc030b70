"""Runs an experiment in a working folder, or resumes it there."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import jax
from ml_collections import ConfigDict

from r1jax import config, pipeline, plots
from r1jax.config import ConfigError
from r1jax.data.tokenizers import JSON_FILE, MODEL_FILE
from r1jax.writers import Writer, read_lines, replace

log = logging.getLogger("r1jax")


def train(
    experiment: ConfigDict,
    workdir: str | Path,
    *,
    loss: Callable | None = None,
    progress: bool = True,
) -> None:
    """Runs `experiment` in `workdir`; called again, goes on where it stopped.

    `loss` replaces the policy loss of GRPO stages (see `stages.grpo.run`).
    Raises ConfigError before any compilation where the config, a file it names or the
    workdir (made with another config) is at fault.
    """
    workdir, plain = Path(workdir).absolute(), config.plain(experiment)
    checked = pipeline.parse(plain)
    _claim(workdir, plain)
    enable_compilation_cache()
    with Writer(workdir, progress=progress) as writer:
        pipeline.execute(checked, workdir, writer, loss=loss)
    rows = read_lines(workdir / "metrics.jsonl")
    for line in _summary(rows):
        log.info("%s", line)
    if any(name.startswith(("eval/", "rollout/")) for row in rows for name in row):
        for path in plots.draw(workdir):
            log.info("%s", path)


def _summary(rows: list[dict]) -> list[str]:
    """First and last evaluation, a line a metric."""
    evaluated = [row for row in rows if any(name.startswith("eval/") for name in row)]
    if not evaluated:
        return []
    first, last = evaluated[0], evaluated[-1]
    return [
        f"{name}: {first[name]:.3f} at step {first['step']}, {value:.3f} at step {last['step']}"
        for name, value in last.items()
        if name.startswith("eval/") and not name.endswith(("_low", "_high")) and name in first
    ]


def _claim(workdir: Path, plain: dict) -> None:
    """Makes the workdir this config's; refuses one in which something was made with another."""
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / "config.json"
    if not path.exists() or not any(
        (workdir / n).exists() for n in ("metrics.jsonl", "checkpoints")
    ):
        for name in (JSON_FILE, MODEL_FILE):  # of a run that came no further
            (workdir / name).unlink(missing_ok=True)
        replace(path, json.dumps(plain, indent=2) + "\n")
        return
    if lines := config.difference(json.loads(path.read_text()), plain):
        raise ConfigError(
            f"{workdir} was made with another config; use another --workdir, or take back:\n  "
            + "\n  ".join(lines)
        )


def enable_compilation_cache() -> None:
    """Keeps compiled programs between processes, unless the user set a folder of their own."""
    if jax.config.jax_compilation_cache_dir is None:
        folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "r1jax" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
