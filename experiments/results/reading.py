"""What tables and figures read of a run's folder."""

from pathlib import Path

from r1jax.writers import read_lines


def stage_rows(run: Path, stage: str) -> list[dict]:
    """The lines of metrics.jsonl of a stage."""
    return [r for r in read_lines(run / "metrics.jsonl") if r["stage"] == stage]


def last_value(run: Path, stage: str, name: str) -> float:
    """The last value of a metric in a stage; 0 where it has none."""
    return next((r[name] for r in reversed(stage_rows(run, stage)) if name in r), 0.0)
