"""Runs an experiment in a working folder, or resumes it there."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from r1jax import config, plots, report
from r1jax.config import ConfigError
from r1jax.data.tokenizers import JSON_FILE, MODEL_FILE
from r1jax.experiment import parse
from r1jax.pipeline import Pipeline
from r1jax.process import enable_compilation_cache
from r1jax.writers import Writer, read_lines, replace

log = logging.getLogger("r1jax")


def train(
    experiment: ConfigDict,
    workdir: str | Path,
    *,
    loss: Callable | None = None,
    progress: bool = True,
    rerun: bool = False,
) -> None:
    """Runs `experiment` in `workdir`; called again, goes on where it stopped.

    `loss` replaces the policy loss of GRPO stages (see `stages.grpo.run`). `rerun` allows another
    config than the workdir was made with: the stages that it changes are made again, and all that
    depend on them.
    Raises ConfigError before any compilation where the config, a file it names or the
    workdir (made with another config) is at fault.
    """
    workdir, plain = Path(workdir).absolute(), config.plain(experiment)
    checked = parse(plain)
    _claim(workdir, plain, rerun)
    enable_compilation_cache()
    pipeline = Pipeline(checked, workdir, rerun=rerun)
    if rerun:
        replace(workdir / "config.json", json.dumps(plain, indent=2) + "\n")
    with Writer(workdir, progress=progress) as writer:
        pipeline.execute(writer, loss=loss)
    rows = read_lines(workdir / "metrics.jsonl")
    for line in _summary(rows):
        log.info("%s", line)
    if checked.evaluate and checked.evaluate.stages:
        log.info("%s", report.format_table(report.stage_table(workdir)))
        log.info("%s", report.draw_stages(workdir))
    if any(name.startswith(("eval/", "rollout/")) for row in rows for name in row):
        for path in plots.draw(workdir):
            log.info("%s", path)
    log.info("%s", report.write_report(workdir))


def _summary(rows: list[dict]) -> list[str]:
    """First and last evaluation of the stage that was evaluated last, a line a metric."""
    evaluated = [row for row in rows if any(name.startswith("eval/") for name in row)]
    if not evaluated:
        return []
    last = evaluated[-1]
    first = next(row for row in evaluated if row["stage"] == last["stage"])
    return [
        f"{name}: {first[name]:.3f} at step {first['step']}, {value:.3f} at step {last['step']}"
        for name, value in last.items()
        if name.startswith("eval/") and not name.endswith(("_low", "_high")) and name in first
    ]


def _claim(workdir: Path, plain: dict, rerun: bool) -> None:
    """Makes the workdir this config's; refuses one in which something was made with another."""
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / "config.json"
    if not path.exists() or not any(
        (workdir / n).exists() for n in ("metrics.jsonl", "checkpoints", "data")
    ):
        for name in (JSON_FILE, MODEL_FILE):  # of a run that came no further
            (workdir / name).unlink(missing_ok=True)
        replace(path, json.dumps(plain, indent=2) + "\n")
        return
    lines = config.difference(json.loads(path.read_text()), plain)
    if lines and not rerun:
        raise ConfigError(
            f"{workdir} was made with another config; use another --workdir, add --rerun to make "
            "again what this changes, or take back:\n  " + "\n  ".join(lines)
        )
