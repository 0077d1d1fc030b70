"""The command line: `r1jax train | eval | sample | export | plot | report | bench`.

Modules that start jax are imported by the command that needs them, so that `--help` and
errors in flags come at once.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; 0, 1 for an error it could explain, 2 for unusable flags."""
    parser, commands = _parser()
    known, rest = parser.parse_known_args(arguments)
    if known.command is None:
        parser.print_help()
        return 2
    if rest and known.command != "train":
        commands[known.command].error(f"unknown arguments: {' '.join(rest)}")
    if known.command == "eval":
        _check_eval(known, commands["eval"])
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("jax").setLevel(logging.WARNING)
    # What orbax logs as an error it raises too: there it gets a message of ours.
    logging.getLogger("absl").setLevel(logging.INFO if known.debug else logging.CRITICAL)
    from r1jax.checkpoints import CheckpointError

    try:
        actions = {
            "train": _train, "eval": _eval, "sample": _sample, "export": _export, "plot": _plot,
            "report": _report, "bench": _bench,
        }  # fmt: skip
        actions[known.command](known, rest)
    except (ValueError, CheckpointError, RuntimeError, OSError) as error:
        # What went wrong is in the message; the trace is for those who ask.
        logging.debug("", exc_info=True)
        print(f"r1jax {known.command}: {error}", file=sys.stderr)
        if known.debug:
            raise
        return 1
    except KeyboardInterrupt:
        print(
            "\ninterrupted; train and eval go on from what they saved by the same command",
            file=sys.stderr,
        )
        return 130
    return 0


def _parser():
    parser = argparse.ArgumentParser(
        prog="r1jax", description="DeepSeek-R1's training system in JAX", allow_abbrev=False
    )
    parser.add_argument("--debug", action="store_true", help="show the trace of an error")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    train = commands.add_parser(
        "train", help="run an experiment, or resume it", allow_abbrev=False,
        epilog="Any value of the config can be set: --config.grpo.lr=1e-4",
    )  # fmt: skip
    train.add_argument("--config", required=True, help="experiments/FILE.py:VARIANT")
    train.add_argument("--workdir", required=True, help="folder for all that the run makes")
    train.add_argument(
        "--rerun", action="store_true",
        help="allow another config than the folder was made with: make again what it changes, "
        "and keep what was there under superseded/",
    )  # fmt: skip
    evaluate = commands.add_parser(
        "eval", help="the paper's evaluation of a model", allow_abbrev=False
    )
    _add_model(evaluate, required=False)
    evaluate.add_argument(
        "--benchmark", action="append", default=[], metavar="SOURCE",
        help="a known name, a .jsonl file, NAME:FILE for a published set's files; several times "
        "for several",
    )  # fmt: skip
    evaluate.add_argument(
        "--responses", action="append", default=[], metavar="FILE",
        help="score kept responses again, without a model",
    )  # fmt: skip
    evaluate.add_argument(
        "--out", help="folder for responses and results; default: evals/ and the model's name"
    )
    evaluate.add_argument(
        "--workers",
        type=int,
        default=min(8, os.cpu_count() or 1),
        help="processes that grade; 0: this one; default: %(default)s",
    )
    evaluate.add_argument("--samples", type=int, default=16, help="responses a question")
    _add_sampling(evaluate, temperature=0.6, top_p=0.95)
    evaluate.add_argument("--limit", type=int, help="only the first questions")
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")
    sample = commands.add_parser("sample", help="print responses to a prompt", allow_abbrev=False)
    _add_model(sample)
    sample.add_argument("--prompt", required=True, help="the question, without the template")
    sample.add_argument("--samples", type=int, default=1)
    _add_sampling(sample, temperature=0.6, top_p=0.95)
    sample.add_argument("--stream", action="store_true", help="show one response as it comes")
    export = commands.add_parser(
        "export", help="write a model as a Hugging Face folder", allow_abbrev=False
    )
    _add_folder(export)
    export.add_argument("--out", required=True, help="folder to make")
    plot = commands.add_parser("plot", help="draw the figures of a run", allow_abbrev=False)
    plot.add_argument("--workdir", required=True)
    report = commands.add_parser(
        "report", help="write report.html of a run, finished or not", allow_abbrev=False
    )
    report.add_argument("--workdir", required=True)
    bench = commands.add_parser("bench", help="measure speed and memory", allow_abbrev=False)
    bench.add_argument("kind", choices=("rollout", "step", "logprobs", "rewards"))
    bench.add_argument("--size", choices=("S", "M"), default="S")
    bench.add_argument("--lengths", choices=("fixed", "tail"), default="tail")
    bench.add_argument("--repeats", type=int, default=3, help="measured, after one that compiles")
    bench.add_argument("--json", action="store_true", help="print one JSON object")
    bench.add_argument("--only", choices=("chunks", "full"), help=argparse.SUPPRESS)
    return parser, {
        "train": train, "eval": evaluate, "sample": sample, "export": export, "plot": plot,
        "report": report, "bench": bench,
    }  # fmt: skip


def _add_folder(parser, *, required: bool = True) -> None:
    parser.add_argument(
        "--model", required=required,
        help="a run, a stage's or one checkpoint's folder, or one of Hugging Face's",
    )  # fmt: skip
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"),
        help="of the weights; default: as published ones are stored, float32 for a run's",
    )  # fmt: skip
    parser.add_argument(
        "--mesh", type=_mesh_sizes, default={}, metavar="fsdp=4,tensor=2",
        help="devices along each axis (data, fsdp, expert, tensor); default: all on fsdp",
    )  # fmt: skip


def _mesh_sizes(text: str) -> dict[str, int]:
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(name in ("data", "fsdp", "expert", "tensor") for name, _, _ in pairs):
        raise ValueError(text)
    return {name: int(size) for name, _, size in pairs}


def _mesh(flags):
    """The mesh that was asked for, of as many devices as it needs; None for the default."""
    if not flags.mesh:
        return None
    import math

    import jax

    from r1jax.sharding import make_mesh

    sizes = {"fsdp": 1, **flags.mesh}
    count = math.prod(sizes.values())
    if not 1 <= count <= len(jax.devices()) or min(sizes.values()) < 1:
        raise ValueError(
            f"--mesh={flags.mesh} needs {count} devices; there are {len(jax.devices())}"
        )
    return make_mesh(**sizes, devices=jax.devices()[:count])


def _add_model(parser, *, required: bool = True) -> None:
    _add_folder(parser, required=required)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--template", help="a prompt of r1jax/templates.py, or 'chat': the tokenizer's own"
    )


def _add_sampling(parser, *, temperature: float, top_p: float) -> None:
    parser.add_argument("--temperature", type=float, default=temperature)
    parser.add_argument("--top_p", type=float, default=top_p)
    parser.add_argument(
        "--max_tokens", type=int, help="default: what the model's context allows, 32768 at most"
    )


def _train(flags, overrides) -> None:
    from r1jax import config
    from r1jax.train import train

    train(config.load(flags.config, overrides), flags.workdir, rerun=flags.rerun)


def _check_eval(flags, parser) -> None:
    if bool(flags.model) == bool(flags.responses):
        parser.error("give --model=DIR and --benchmark=SOURCE, or --responses=FILE")
    if flags.model and not flags.benchmark:
        parser.error("--benchmark is missing: a known name, or a file of problems")


def _eval(flags, _) -> None:
    from r1jax.data.sources import load_benchmarks

    benchmarks = load_benchmarks(flags.benchmark, limit=flags.limit)
    from r1jax import evaluation

    if flags.responses:
        problems = [p for rows in benchmarks.values() for p in rows]
        results = evaluation.rescore(flags.responses, problems, workers=flags.workers)
    else:
        results = evaluation.evaluate(
            flags.model, benchmarks, out=flags.out, samples=flags.samples, seed=flags.seed,
            temperature=flags.temperature, top_p=flags.top_p, max_tokens=flags.max_tokens,
            dtype=flags.dtype, template=flags.template, mesh=_mesh(flags), workers=flags.workers,
        )  # fmt: skip
    if flags.json:
        for name, scores in results.items():
            print(json.dumps({"benchmark": name} | scores))
    else:
        print(evaluation.terminal(results))


def _sample(flags, _) -> None:
    from r1jax.inference import sample
    from r1jax.rewards.sections import parts

    responses = sample(
        flags.model, flags.prompt, samples=flags.samples, seed=flags.seed,
        temperature=flags.temperature, top_p=flags.top_p, max_tokens=flags.max_tokens,
        dtype=flags.dtype, template=flags.template, mesh=_mesh(flags),
        on_text=partial(print, end="", flush=True) if flags.stream else None,
    )  # fmt: skip
    if flags.stream:
        print()
        return
    for i, response in enumerate(responses):
        reasoning, rest = parts(response.text, think_opened=response.think_opened)
        cut = ", cut off" if response.truncated else ""
        print(f"--- response {i + 1} ({response.tokens} tokens{cut})")
        if reasoning is not None:
            print(
                "reasoning:\n" + "\n".join(f"  | {line}" for line in reasoning.strip().splitlines())
            )
        print(rest.strip())


def _export(flags, _) -> None:
    from r1jax.inference import export

    export(flags.model, flags.out, dtype=flags.dtype, mesh=_mesh(flags))
    print(flags.out)


def _plot(flags, _) -> None:
    from r1jax import plots

    for path in plots.draw(Path(flags.workdir)):
        print(path)


def _report(flags, _) -> None:
    from r1jax.report import draw_stages, format_table, stage_table, write_report

    print(format_table(stage_table(flags.workdir)))
    for path in (write_report(flags.workdir), draw_stages(flags.workdir)):
        if path:
            print(path)


def _bench(flags, _) -> None:
    from r1jax import bench, bench_rewards

    if flags.repeats < 1:
        raise ValueError(f"--repeats={flags.repeats} must be at least 1")
    if flags.kind == "rewards":
        fields = bench_rewards.rewards(repeats=flags.repeats)
    elif flags.kind == "logprobs":
        if flags.only:  # a child of the same command
            fields = bench.logprobs_once(flags.only)
        else:
            fields = bench.logprobs(repeats=flags.repeats)
    else:
        measure = {"rollout": bench.rollout, "step": bench.step}[flags.kind]
        fields = measure(flags.size, flags.lengths, repeats=flags.repeats)
    if flags.json:
        print(json.dumps(fields))
        return
    for name, value in fields.items():
        print(f"{name:<24} {value:.4g}" if isinstance(value, float) else f"{name:<24} {value}")
