"""A stage's surroundings in small: one token a character, a model of 32 tokens, one device."""

import dataclasses
import functools
import string
from typing import ClassVar

import jax
import pytest

from r1jax.run import Run
from r1jax.stages import grpo, pretrain, sft
from r1jax.templates import Template
from r1jax.writers import Writer, read_lines


class Letters:
    """A tokenizer of a to z, = and +: a token a character."""

    alphabet = string.ascii_lowercase + "=+"
    pad_id, bos_id, eos_id, stop_ids = 0, 1, 2, (2,)
    specials = ()
    vocabulary = 3 + len(alphabet)

    def encode(self, text):
        return [3 + self.alphabet.index(c) for c in text]

    def decode(self, ids):
        return "".join(self.alphabet[i - 3] for i in ids if 3 <= i < self.vocabulary)


@dataclasses.dataclass(frozen=True)
class RecordingRun(Run):
    """Keeps what its samplers were asked and what they gave, in `calls`.

    Samplers hold no state but compiled programs: tests share them.
    """

    calls: list = dataclasses.field(default_factory=list)
    compiled: ClassVar[dict] = {}

    def sampler(self, config):
        asked = config, self.mesh, self.model
        sampler, calls = self.compiled.get(asked), self.calls
        if sampler is None:
            sampler = self.compiled[asked] = super().sampler(config)

        class Recorder:
            check = sampler.check

            def __call__(self, params, prompts, key, **rest):
                rollout = sampler(params, prompts, key, **rest)
                calls.append((prompts, rest, rollout))
                return rollout

        return Recorder()


PROGRAMS = {}


@pytest.fixture(autouse=True)
def compile_once(monkeypatch):
    """Shares the jitted updates of stages with equal settings: tests spend their time tracing.

    No test here changes what an optimiser is made of, but for its kind.
    """

    def shared(make, key):
        if key not in PROGRAMS:
            PROGRAMS[key] = make()
        return PROGRAMS[key]

    def learner(model, optimizer, loss, *, make=grpo.PolicyLearner, **rest):
        def new():
            return make(model, optimizer, loss, **rest)

        if not isinstance(loss, functools.partial):  # a test's own
            return new()
        settings = loss.keywords | rest
        return shared(new, (model, loss.func, *sorted(settings.items())))

    monkeypatch.setattr(grpo, "PolicyLearner", learner)
    for stage in (sft, pretrain):

        def step(model, optimizer, stage=stage, make=stage.supervised_step):
            return shared(lambda: make(model, optimizer), (model, stage))

        monkeypatch.setattr(stage, "supervised_step", step)


class Stopped(Exception):
    """In place of a kill: unwinds the stage."""


class StoppingWriter(Writer):
    """Stops the stage when it would write the metrics of a step, as if it were killed there."""

    stop_at = None

    def metrics(self, stage, step, values):
        if step == self.stop_at:
            raise Stopped
        super().metrics(stage, step, values)


@dataclasses.dataclass
class Place:
    """A stage's run and what it has written."""

    run: RecordingRun

    @property
    def writer(self):
        return self.run.writer

    @property
    def metrics(self):
        """Rows of metrics.jsonl without what depends on the clock."""
        return [
            {k: v for k, v in r.items() if k != "wall_s" and not k.startswith("throughput/")}
            for r in read_lines(self.run.workdir / "metrics.jsonl")
        ]

    @property
    def checkpoints(self):
        folder = self.run.workdir / "checkpoints" / self.run.stage
        return {int(p.name): p for p in folder.iterdir() if p.name.isdigit()}


@pytest.fixture
def place(tmp_path, tiny, mesh1):
    """A function that opens a stage's place in a folder (again); within one device's mesh."""
    model, _ = tiny
    writers = []

    def open_place(name="a", *, stage="stage", seed=0, stop_at=None, mesh=mesh1):
        workdir = tmp_path / name
        workdir.mkdir(exist_ok=True)
        writer = StoppingWriter(workdir, tensorboard=False, progress=False)
        writer.stop_at = stop_at
        writers.append(writer)
        return Place(
            RecordingRun(
                workdir=workdir, stage=stage, seed=seed, mesh=mesh, model=model,
                tokenizer=Letters(), template=Template("{prompt}="), writer=writer,
            )
        )  # fmt: skip

    with jax.set_mesh(mesh1):
        yield open_place
    for writer in writers:
        writer.__exit__()


@pytest.fixture(scope="session")
def stopped():
    return Stopped
