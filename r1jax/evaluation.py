"""What `r1jax eval` does: benchmarks on a model, resumable, or kept responses scored again.

In the folder for results every benchmark has its responses (`NAME.jsonl`, see `responses.py`)
and the share that is right by question (`NAME.pass_rates.jsonl`); results.json and results.md
hold the scores. Each response is a function of the model, the question, the settings and the
seed, so what an interrupted evaluation left is gone on from, and the results are those of an
uninterrupted one.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from r1jax import checkpoints
from r1jax.inference import open_model, room
from r1jax.models.huggingface import is_folder
from r1jax.responses import KeptResponses
from r1jax.stages.evaluate import EvaluateConfig, Evaluator, score
from r1jax.writers import progress_bar, replace

log = logging.getLogger("r1jax")

Scores = dict[str, float]


def evaluate(
    path: str | Path,
    benchmarks: Mapping[str, Sequence[Mapping]],
    *,
    out: str | Path | None = None,
    samples: int = 16,
    temperature: float = 0.6,
    top_p: float = 0.95,
    max_tokens: int | None = None,
    seed: int = 0,
    dtype: str | None = None,
    template: str | None = None,
    mesh: Mesh | None = None,
    workers: int = 0,
) -> dict[str, Scores]:
    """Scores by benchmark, as `stages.evaluate.summary` gives them.

    `benchmarks` are problems by name. Responses and results go to the folder `out`, by default
    `evals/` and the model's name; what is there already of the same evaluation is not
    sampled again. `max_tokens` is by default what the context leaves, 32,768 at most.
    Raises ValueError or CheckpointError, before any sampling, for what cannot be evaluated, and
    where `out` holds responses that were sampled otherwise.
    """
    names = tuple(benchmarks)
    # Before the weights are read, what can be said without them.
    given = dict(samples=samples, temperature=temperature, top_p=top_p, workers=workers)
    EvaluateConfig(names, 1 if max_tokens is None else max_tokens, **given)
    source = Path(path).absolute() if is_folder(path) else checkpoints.find(path)
    out = Path("evals") / model_name(source) if out is None else Path(out)
    run, params = open_model(path, seed=seed, dtype=dtype, template=template, mesh=mesh)
    asked = [p["question"] for problems in benchmarks.values() for p in problems]
    if max_tokens is None:
        max_tokens = room(run, asked)
    config = EvaluateConfig(names, max_tokens, **given)
    settings = {
        "model": str(source), "files": _identity(source), "samples": samples, "seed": seed,
        "temperature": temperature, "top_p": top_p, "max_tokens": max_tokens,
        "dtype": run.model.config.dtype, "template": run.template.text,
        "think_opened": run.template.think_opened,
    }  # fmt: skip
    _read_results(out)  # says so now where it cannot be read
    kept = {
        name: KeptResponses.resume(out / f"{name}.jsonl", settings, problems)
        for name, problems in benchmarks.items()
    }
    evaluator, results = Evaluator(config, run, benchmarks), {}
    with jax.set_mesh(run.mesh):
        for name in names:
            with kept[name]:
                rates, results[name] = _respond(evaluator, params, name, kept[name])
            write_rates(out / f"{name}.pass_rates.jsonl", benchmarks[name], rates)
            write(out, results, settings)
    return results


def rescore(
    files: Sequence[str | Path], problems: Sequence[Mapping] = (), *, workers: int = 0
) -> dict[str, Scores]:
    """Scores of kept responses, by the files' stems (with their folders, where these are equal).

    No model is needed. `problems` replace the ones of the same id in the files: corrected
    answers, say.
    Raises ValueError for a file that is none of kept responses, or not complete.
    """
    results, corrected = {}, {p["id"]: p for p in problems}
    stems = [Path(file).stem for file in files]
    for file in files:
        kept = KeptResponses.open(file)
        samples = kept.settings["samples"]
        responses = kept.complete(samples)
        if missing := len(kept.problems) - len(responses):
            raise ValueError(
                f"{file}: {missing} of {len(kept.problems)} questions have not all of their "
                f"{samples} responses; finish the evaluation with the command that began it"
            )
        rows = [corrected.get(p["id"], p) for p in kept.problems]
        if corrected and not any(p["id"] in corrected for p in kept.problems):
            raise ValueError(f"{file}: none of the benchmark's problems is in it, by their ids")
        groups = [responses[i] for i in range(len(rows))]
        stem, folder = Path(file).stem, Path(file).absolute().parent.name
        name = stem if stems.count(stem) == 1 else f"{folder}/{stem}"  # models on one benchmark
        if name in results:
            raise ValueError(f"{file}: another file is called {name} too; rename a folder")
        results[name] = {"questions": len(rows)} | score(rows, groups, workers=workers)
    return results


def _respond(evaluator: Evaluator, params, name: str, kept: KeptResponses):
    """(pass rates by question, scores), with a progress bar."""
    complete = kept.complete(evaluator.config.samples)
    problems = evaluator.problems[name]
    if complete:
        log.info("%s: %d of %d questions were answered before", name, len(complete), len(problems))
    total, done = (n * evaluator.config.samples for n in (len(problems), len(complete)))
    with progress_bar(total, name, done=done, unit="response") as bar:
        tokens = 0

        def count(new: Mapping[int, np.ndarray]) -> None:
            nonlocal tokens
            tokens += sum(map(len, new.values()))
            bar.set_postfix_str(f"{tokens} tokens", refresh=False)

        def keep(new) -> None:
            kept.add(new)
            bar.update(len(new))

        _, graded, scores = evaluator.respond(
            params, name, 0, kept=complete, on_tokens=count, on_responses=keep
        )
    rates = np.array([g["accuracy"] for g in graded]).reshape(len(problems), -1).mean(axis=1)
    return rates, {"questions": len(problems)} | scores


def model_name(source: Path) -> str:
    """A folder's name; for a checkpoint the run's, the stage's and the step."""
    *_, run, folder, stage, step = ("", "", "", *source.parts)
    return f"{run}-{stage}-{step}" if folder == "checkpoints" else source.name


def _identity(folder: Path) -> str:
    """Of the files in a folder, by name, size and time of change: another model is noticed."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    about = [(str(p.relative_to(folder)), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]


def write(out: Path, results: Mapping[str, Scores], settings: Mapping) -> None:
    """results.json and results.md; what they hold of other benchmarks stays."""
    path = out / "results.json"
    every = _read_results(out) | {
        name: {"settings": dict(settings)} | dict(s) for name, s in results.items()
    }
    replace(path, json.dumps(every, indent=2) + "\n")
    rows = {name: {k: v for k, v in s.items() if k != "settings"} for name, s in every.items()}
    replace(out / "results.md", markdown(rows))


def _read_results(out: Path) -> dict:
    path = out / "results.json"
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out={out} is a file; name a folder")
    try:
        results = json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}); move it away") from error
    if not isinstance(results, dict):
        raise ValueError(f"{path} holds no results by benchmark; move it away")
    return results


def write_rates(path: Path, problems: Sequence[Mapping], rates: Sequence[float]) -> None:
    """Pass rates as `data.mixing` reads them, to train on problems of some difficulty."""
    lines = (
        json.dumps({"id": p["id"], "pass_rate": float(r)})
        for p, r in zip(problems, rates, strict=True)
    )
    replace(path, "".join(line + "\n" for line in lines))


_FIRST = ("questions", "pass@1", "pass@1_se")
_ORDER = ("length", "truncated", "reflections", "errors")


def table(results: Mapping[str, Scores]) -> list[list[str]]:
    """Header and a line a benchmark: means with their 95% intervals."""
    names = [n for scores in results.values() for n in scores if not n.endswith(("_low", "_high"))]
    rest = [n for n in dict.fromkeys(names) if n not in (*_FIRST, *_ORDER)]
    columns = [n for n in (*_FIRST, *rest, *_ORDER) if n in names]
    rows = [["benchmark", *columns]]
    for benchmark, scores in results.items():
        rows.append([benchmark, *(_cell(scores, name) for name in columns)])
    return rows


def _cell(scores: Scores, name: str) -> str:
    if name not in scores:
        return ""
    if name in ("questions", "errors"):
        return f"{scores[name]:.0f}"
    digits = 1 if name == "length" else 3
    value = f"{scores[name]:.{digits}f}"
    if f"{name}_low" in scores:
        value += f" [{scores[f'{name}_low']:.3f}, {scores[f'{name}_high']:.3f}]"
    return value


def markdown(results: Mapping[str, Scores]) -> str:
    header, *rows = table(results)
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def terminal(results: Mapping[str, Scores]) -> str:
    """The table with a line a metric: terminals are narrow."""
    rows = list(zip(*table(results), strict=True))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
