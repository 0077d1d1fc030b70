"""Using a trained model: evaluation and sampling for the command line and for notebooks."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from r1jax import checkpoints, models
from r1jax.data.sources import benchmark_name
from r1jax.data.tokenizers import SentencePieceTokenizer
from r1jax.rewards import Response
from r1jax.run import Run
from r1jax.sampling.engine import SamplingConfig
from r1jax.sharding import make_mesh
from r1jax.stages.evaluate import EvaluateConfig, Evaluator
from r1jax.templates import Template
from r1jax.train import enable_compilation_cache


def open_model(path: str | Path, *, seed: int = 0) -> tuple[Run, dict]:
    """(run, params) for the newest checkpoint that `path` means, on all devices.

    Raises CheckpointError or ValueError naming what is missing.
    """
    enable_compilation_cache()
    folder, mesh = checkpoints.find(path), make_mesh()
    model, params = models.load(folder, mesh=mesh)
    workdir = folder.parents[2]  # RUN/checkpoints/STAGE/STEP
    run = Run(
        workdir=workdir, stage="inference", seed=seed, mesh=mesh, model=model,
        tokenizer=SentencePieceTokenizer.load(workdir / "tokenizer.model"),
        template=Template(**checkpoints.load_meta(folder)["template"]), writer=None,
    )  # fmt: skip
    return run, params


def evaluate(
    path: str | Path,
    benchmark: str,
    problems: Sequence[Mapping],
    *,
    samples: int = 16,
    temperature: float = 0.6,
    top_p: float = 0.95,
    max_tokens: int | None = None,
    seed: int = 0,
) -> tuple[str, dict[str, float]]:
    """(benchmark name, scores) as `stages.evaluate.score` gives them."""
    run, params = open_model(path, seed=seed)
    name = benchmark_name(benchmark)
    if max_tokens is None:
        max_tokens = _room(run, [p["question"] for p in problems])
    config = EvaluateConfig(
        (benchmark,), max_tokens, samples=samples, temperature=temperature, top_p=top_p
    )
    with jax.set_mesh(run.mesh):
        evaluator = Evaluator(config, run, {name: problems})
        with _bar(name) as bar:
            _, scores = evaluator.respond(params, name, 0, on_tokens=bar.update)
    return name, scores


def sample(
    path: str | Path,
    question: str,
    *,
    samples: int = 1,
    temperature: float = 0.6,
    top_p: float = 0.95,
    max_tokens: int | None = None,
    seed: int = 0,
) -> list[Response]:
    """Responses of a model to one question."""
    if samples < 1:
        raise ValueError(f"samples={samples} must be at least 1")
    run, params = open_model(path, seed=seed)
    max_tokens = _room(run, [question]) if max_tokens is None else max_tokens
    config = SamplingConfig(max_tokens, temperature=temperature, top_p=top_p)
    with jax.set_mesh(run.mesh):
        rollout = run.sampler(config)(
            params, [run.prompt(question)], run.key("sample"), group_size=samples
        )
    return run.responses(rollout)


def _room(run: Run, questions: Sequence[str]) -> int:
    """Tokens that the context leaves for a response to the longest question."""
    context, longest = run.model.config.context, max(len(run.prompt(q)) for q in questions)
    if longest >= context:
        raise ValueError(
            f"a prompt has {longest} tokens; the model's context of {context} has no room left"
        )
    return context - longest


def _bar(name: str):
    import sys

    from tqdm import tqdm

    return tqdm(desc=name, unit="token", file=sys.stderr, unit_scale=True, dynamic_ncols=True)
