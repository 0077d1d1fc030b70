"""An experiment as a pipeline: named stages in order, each given what earlier ones made.

A finished stage is skipped when the same command runs again, an unfinished one resumes from
what it saved. `manifest.json` says what each artefact was made from. Where a config or a file
has changed, the stages that this touches, and all that depend on them, can be made again; what
they had made is moved aside, never deleted.
"""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from r1jax import assembly, checkpoints
from r1jax.config import ConfigError, digest
from r1jax.data.sources import fingerprint, load_benchmarks
from r1jax.experiment import Experiment, Stage, model_config
from r1jax.kinds import Data, Given, check_scope
from r1jax.manifest import Manifest, file_hash
from r1jax.models import load_params, make_model
from r1jax.models.decoder import parameter_count
from r1jax.models.huggingface import is_folder
from r1jax.process import keep_large_blocks, one_thread
from r1jax.run import Run
from r1jax.sharding import make_mesh
from r1jax.stages import evaluate
from r1jax.writers import Writer, read_lines

log = logging.getLogger("r1jax")


class Pipeline:
    """An experiment in a workdir. Making it reads and checks everything that is there already.

    Raises ConfigError for what would stop a stage later, for stages that were made from other
    inputs, and for artefacts that are gone or changed, unless `rerun` allows to make them again:
    that is then the last thing done here, when all else is known to be right.
    """

    def __init__(self, experiment: Experiment, workdir: Path, *, rerun: bool = False):
        self.experiment, self.workdir = experiment, workdir
        self.manifest = Manifest(workdir, experiment)
        self.data = {s.name: self._read(s) for s in experiment.stages if not s.reads_later}
        self.benchmarks = {}
        if experiment.evaluate:
            self.benchmarks = load_benchmarks(experiment.evaluate.benchmarks)
        self.hashes = self.manifest.input_hashes(self.data)
        again = self._to_be_made_again(rerun)
        same = self.manifest.same_tokenizer()
        kept = same and assembly.kept_tokenizer(workdir)
        self.tokenizer = kept or assembly.make_tokenizer(experiment.tokenizer, experiment.seed)
        config = model_config(
            experiment.model, vocabulary=assembly.padded_vocabulary(self.tokenizer)
        )
        self.model = make_model(config)
        assembly.check_vocabulary(self.tokenizer, config, "config.tokenizer")
        key = jax.eval_shape(lambda: jax.random.key(0))  # abstract: no thread of jax starts yet
        weights = parameter_count(jax.eval_shape(self.model.init, key))
        keep_large_blocks(4 * weights)
        one_thread(weights)
        self.mesh = make_mesh(**dataclasses.asdict(experiment.mesh))
        self.template = assembly.make_template(experiment.template, self.tokenizer, experiment.chat)
        for stage in experiment.stages:
            self._check(stage, again)
        if self.benchmarks:
            self._evaluator(self._run(experiment.stages[-1], None))
        before = [
            name
            for name, stage in self.manifest.stages.items()
            if name not in again and stage["evaluation"] != self._evaluation()
        ]
        if before:
            log.warning(
                "config.evaluate or a benchmark has changed; figures of %s are as they were",
                ", ".join(before),
            )
        if again:
            aside = self.manifest.set_aside(again, *([] if same else assembly.FILES))
            log.info("made again: %s; what was there is in %s", ", ".join(again), aside)
        if not kept:
            assembly.keep_tokenizer(self.tokenizer, workdir)

    def execute(self, writer: Writer, *, loss: Callable | None = None) -> None:
        """Runs what is left to do. `loss` replaces the policy loss of GRPO stages."""
        with jax.set_mesh(self.mesh):
            for stage in self.experiment.stages:
                if not self.manifest.finished(stage.name):
                    self._make(stage, writer, loss)

    def _make(self, stage: Stage, writer: Writer, loss: Callable | None) -> None:
        clocks = time.monotonic(), time.process_time()
        if stage.name not in self.data:  # an earlier stage has made it by now
            self.data[stage.name] = self._read(stage)
            with _blamed_on(stage):
                stage.does.check(stage.settings, self._run(stage, None), self.data[stage.name])
        data, run = self.data[stage.name], self._run(stage, writer)
        self.manifest.begin(stage.name, self.hashes[stage.name])
        evaluator = self._evaluator(run) if self.benchmarks else None
        given = Given(
            data=data,
            params=self._initial(stage, run),
            folders={
                r.field: self._folder(r.target, stage)
                for r in stage.references
                if r.makes in ("model", "score")
            },
            evaluate=evaluator,
            evaluate_every=self.experiment.evaluate.every if evaluator else 0,
            loss=loss,
        )
        made = stage.does.run(stage.settings, run, given)
        if evaluator and stage.name in self.experiment.evaluate.stages:
            self._evaluate(stage, evaluator, made.params, writer)
        seconds = time.monotonic() - clocks[0], time.process_time() - clocks[1]
        about = {
            "artefact": self._artefact(stage, made.params),
            "counts": dict(made.counts),
            "benchmarks": self._benchmark_hashes(),
            "evaluation": self._evaluation(),
            "metrics": self._last_metrics(stage),
            "wall_s": round(seconds[0], 1), "cpu_s": round(seconds[1], 1),  # of this process
        }  # fmt: skip
        self.manifest.finish(stage, data, about)

    def _read(self, stage: Stage) -> Data:
        return stage.does.read(stage.settings, self.experiment.seed, self._located(stage))

    def _located(self, stage: Stage) -> Callable[[str], str]:
        """Of what a stage names as examples: where an earlier stage wrote them, or as it is."""
        return lambda target: (
            str(self.workdir / "data" / f"{target}.jsonl") if target in stage.earlier else target
        )

    def _to_be_made_again(self, rerun: bool) -> list[str]:
        """Stages that are out of date or damaged; raises ConfigError unless that is allowed."""
        outdated, damaged = self.manifest.outdated(self.hashes), self.manifest.damaged()
        if outdated and not rerun:
            raise ConfigError(
                f"{self.workdir}: a config or a file that these stages were made from has changed: "
                f"{', '.join(outdated)}. Add --rerun to make them again (what they had made is "
                "kept, under superseded/), or use another --workdir"
            )
        damaged = {name: path for name, path in damaged.items() if name not in outdated}
        if damaged and not rerun:
            name, path = next(iter(damaged.items()))
            raise ConfigError(
                f"{path} is missing or is not what stage {name!r} made (manifest.json has its "
                "hash): put it back, or add --rerun to make it again"
            )
        return [*outdated, *damaged]

    def _check(self, stage: Stage, again: Sequence[str]) -> None:
        """Raises ConfigError for what would stop the stage when the ones before it are done."""
        with _blamed_on(stage):
            for r in stage.references:
                if r.target in stage.earlier:
                    continue
                if r.makes == "model" and r.field != "judge":  # that reads texts, by its own
                    assembly.check_same_tokenizer(r.target, self.tokenizer, r.field)
                elif r.makes == "score":
                    check_scope(r, r.target)
            done = self.manifest.finished(stage.name) and stage.name not in again
            if stage.name in self.data and not done:
                stage.does.check(stage.settings, self._run(stage, None), self.data[stage.name])

    def _run(self, stage: Stage, writer: Writer | None) -> Run:
        return Run(
            workdir=self.workdir, stage=stage.name, seed=self.experiment.seed, mesh=self.mesh,
            model=self.model, tokenizer=self.tokenizer, template=self.template, writer=writer,
            base=self._base(stage) if writer else "",
        )  # fmt: skip

    def _folder(self, target: str, stage: Stage) -> Path:
        """Of a model or score model: the checkpoint or published folder that is meant."""
        if target in stage.earlier:
            return self.workdir / self.manifest.stages[target]["artefact"]["path"]
        path = Path(target).resolve()
        return path if is_folder(path) else checkpoints.find(path)

    def _base(self, stage: Stage) -> str:
        """What a stage starts from: '', a checkpoint of this run (relative), or a folder."""
        if not stage.init:
            return ""
        path = self._folder(stage.init, stage)
        inside = path.is_relative_to(self.workdir)
        return str(path.relative_to(self.workdir) if inside else path)

    def _initial(self, stage: Stage, run: Run):
        """Parameters that a stage starts from, or None for random ones.

        Under adapters they stay as they are, so they need no more digits than the activations,
        unless they are themselves a sum with adapters, which a narrow type would round away.
        """
        if not run.base:
            return None
        path, settings = run.workdir / run.base, getattr(stage.settings, "lora", None)
        adapted = not is_folder(path) and "lora" in checkpoints.load_meta(path)
        frozen = settings is not None and settings.rank and not adapted
        dtype = run.model.config.dtype if frozen else "float32"
        return load_params(path, run.model, run.mesh, dtype)

    def _evaluator(self, run: Run) -> evaluate.Evaluator:
        return evaluate.Evaluator(self.experiment.evaluate, run, self.benchmarks)

    def _benchmark_hashes(self) -> dict[str, str]:
        return {name: fingerprint(rows) for name, rows in self.benchmarks.items()}

    def _evaluation(self) -> str:
        """What figures of evaluations are functions of, beside the model."""
        settings = self.experiment.plain.get("evaluate")
        return digest({"settings": settings, "benchmarks": self._benchmark_hashes()})

    def _evaluate(self, stage: Stage, evaluator, params, writer: Writer) -> None:
        """Evaluates what a stage made, unless its own loop did so at its last step."""
        path = checkpoints.find(self.workdir / "checkpoints" / stage.name)
        step, rows = int(path.name), read_lines(self.workdir / "metrics.jsonl")
        own = [r for r in rows if r["stage"] == stage.name and r["step"] == step]
        if not any(name.startswith("eval/") for row in own for name in row):
            writer.metrics(stage.name, step, evaluator(params, step))

    def _artefact(self, stage: Stage, params) -> dict[str, str]:
        makes = stage.does.makes
        if makes in ("model", "score"):
            path = checkpoints.find(self.workdir / "checkpoints" / stage.name)
            sha256 = checkpoints.fingerprint(params)
        else:
            folder, ending = ("data", "jsonl") if makes == "examples" else ("results", "json")
            path = self.workdir / folder / f"{stage.name}.{ending}"
            sha256 = file_hash(path)
        return {"kind": makes, "path": str(path.relative_to(self.workdir)), "sha256": sha256}

    def _last_metrics(self, stage: Stage) -> dict[str, float]:
        """The last value of every metric of a stage but for those of its speed."""
        values = {}
        for row in read_lines(self.workdir / "metrics.jsonl"):
            if row["stage"] == stage.name:
                values |= row
        return {
            k: v
            for k, v in values.items()
            if k not in ("step", "stage", "wall_s") and not k.startswith("throughput/")
        }


@contextlib.contextmanager
def _blamed_on(stage: Stage):
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"config.{stage.name}: {error}") from error
