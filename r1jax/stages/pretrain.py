"""Pretraining of the miniature's base model on a synthetic task's two corpora.

First the *textbook*, at a constant learning rate, until a gate is met that measures the
skills which reinforcement learning will build on (`probes` of the task), never by time
or by loss: when arithmetic is learned varies with the seed. Then the *web*, a fixed
number of steps in which the learning rate falls to nothing: what people write buries
the skill under short and careless answers, and makes the base.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import jax
import numpy as np

from r1jax.data.packing import Packed, pack, plan
from r1jax.data.tasks import TASKS
from r1jax.learner import init_state, supervised_step
from r1jax.optim import OPTIMIZERS, cosine, warmup
from r1jax.run import Run
from r1jax.sampling.engine import SamplingConfig
from r1jax.sharding import check_rows, rows


@dataclass(frozen=True)
class Gate:
    """Least shares of probes passed, sampled at temperature 1, for the textbook to be closed."""

    repair: float = 0.9
    resume: float = 0.95
    probes: int = 128
    every: int = 100  # steps between measurements
    max_steps: int = 8000  # give up, with an error

    def __post_init__(self):
        for name in ("probes", "every", "max_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")


@dataclass(frozen=True)
class PretrainConfig:
    task: str = "mini_aime"
    row_tokens: int = 192
    textbook_rows: int = 8
    textbook_lr: float = 5e-3
    gate: Gate = field(default_factory=Gate)
    web_rows: int = 16
    web_steps: int = 300
    web_lr: float = 5e-3
    web: Mapping = field(default_factory=dict)  # settings of the task's Web; then that object
    optimizer: str = "muon"
    b2: float = 0.95
    clip_norm: float = 1.0
    warmup_steps: int = 50
    checkpoint_every: int = 500
    log_every: int = 50

    def __post_init__(self):
        for name, known in (("task", TASKS), ("optimizer", OPTIMIZERS)):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name}={value!r} is unknown; known: {', '.join(known)}")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps={self.warmup_steps} must not be negative")
        for name in (
            "row_tokens", "textbook_rows", "web_rows", "web_steps", "checkpoint_every", "log_every",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        object.__setattr__(self, "web", _web(self.task, self.web))


def _web(task: str, settings: Any) -> Any:
    """The task's `Web` with these settings (or as it is, where it is one already).

    Raises ValueError for a task whose base cannot be made, for no settings, an unknown one, and a
    value that is not a number.
    """
    if not (cls := getattr(TASKS[task], "Web", None)) or not hasattr(TASKS[task], "probes"):
        made = [name for name, module in TASKS.items() if hasattr(module, "probes")]
        raise ValueError(f"task={task!r} has no base corpus; tasks with one: {', '.join(made)}")
    if isinstance(settings, cls):
        return settings
    if not isinstance(settings, Mapping):
        raise ValueError(f"web={settings!r} must be settings by name, such as dict(guess=0.4, …)")
    known = [f.name for f in fields(cls)]
    for name, value in settings.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            mend = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
            raise ValueError(f"web.{name} is unknown for task {task}; {mend}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"web.{name}={value!r} must be a number")
    return cls(**settings)


def run(config: PretrainConfig, run: Run) -> dict:
    """Trains a base model from random weights and returns its parameters.

    Raises ValueError when rows do not divide over the mesh, and RuntimeError when the gate
    is not met within `gate.max_steps` steps, with the skills reached.
    """
    check_rows(run.mesh, textbook_rows=config.textbook_rows, web_rows=config.web_rows)
    optimizer = OPTIMIZERS[config.optimizer](b2=config.b2, clip_norm=config.clip_norm)
    update, skills = supervised_step(run.model, optimizer), _Skills(config, run)
    state = init_state(run.model, optimizer, run.mesh, key=run.key("init"))
    closed = None  # the step at which the textbook was closed
    with run.checkpoints() as checkpoints:
        if restored := checkpoints.restore(state):
            state, meta, _ = restored
            closed = meta["textbook_closed"]
        step = int(state.step)
        run.writer.rewind(run.stage, step)
        with run.writer.bar(None, f"{run.stage} (textbook)", done=step) as bar:
            while closed is None or step < closed + config.web_steps:
                batch = jax.device_put(
                    _batch(config, run, step, web=closed is not None), rows(run.mesh)
                )
                state, metrics = update(state, {}, batch, _learning_rate(config, step, closed))
                step += 1
                bar.update()
                last = closed is not None and step == closed + config.web_steps
                values = {
                    "loss/nll": metrics["nll"],
                    "loss/gradient_norm": metrics["gradient_norm"],
                }
                if last or (closed is None and step % config.gate.every == 0):
                    measured = skills(state.params)
                    values |= {f"skill/{name}": share for name, share in measured.items()}
                    bar.set_postfix({k: f"{v:.2f}" for k, v in measured.items()})
                    if closed is None and skills.met(measured, step):
                        closed = step
                        bar.set_description(f"{run.stage} (web)")
                if last or len(values) > 2 or step % config.log_every == 0:
                    run.writer.metrics(run.stage, step, values)
                if last or step % config.checkpoint_every == 0:
                    checkpoints.save(state, {"textbook_closed": closed})
    return state.params


def _learning_rate(config: PretrainConfig, step: int, closed: int | None) -> float:
    if closed is None:
        return config.textbook_lr * warmup(step, config.warmup_steps)
    return config.web_lr * cosine(step - closed, config.web_steps)


def _batch(config: PretrainConfig, run: Run, step: int, *, web: bool) -> Packed:
    """The step's rows: documents drawn for this step alone, packed until the rows are full."""
    task, rng = TASKS[config.task], run.generator("documents", step)
    count = config.web_rows if web else config.textbook_rows
    documents, packed = [], []
    while len(packed) <= count:
        for _ in range(2 * count):
            text = task.web_document(rng, config.web) if web else task.textbook_document(rng)
            documents.append(run.document(*text))
        packed = plan([len(d.tokens) for d in documents], config.row_tokens)
    return pack(documents, packed[:count], config.row_tokens)


class _Skills:
    """Measures the task's probes by sampling their continuations."""

    def __init__(self, config: PretrainConfig, run: Run):
        self._gate, self._run = config.gate, run
        self._probes = TASKS[config.task].probes(run.seed, config.gate.probes)
        self._all = [p for probes in self._probes.values() for p in probes]
        encode = run.tokenizer.encode
        self._prompts = [[*run.prompt(p.question), *encode(p.response)] for p in self._all]
        longest = max(len(encode(p.expected)) for p in self._all)
        self._sampler = run.sampler(SamplingConfig(longest, rows=config.gate.probes))

    def __call__(self, params) -> dict[str, float]:
        """Share of probes passed, by skill."""
        rollout = self._sampler(params, self._prompts, self._run.key("probes"))
        passed = [
            self._run.tokenizer.decode(tokens[:n]).startswith(probe.expected)
            for tokens, n, probe in zip(rollout.tokens_BT, rollout.length_B, self._all, strict=True)
        ]
        shares = np.array(passed).reshape(len(self._probes), -1).mean(axis=1)
        return dict(zip(self._probes, shares.tolist(), strict=True))

    def met(self, measured: dict[str, float], step: int) -> bool:
        if all(share >= getattr(self._gate, name) for name, share in measured.items()):
            return True
        if step >= self._gate.max_steps:
            raise RuntimeError(
                f"{self._run.stage}: the skill gate was not met in {step} steps: measured "
                f"{measured}, wanted repair={self._gate.repair} resume={self._gate.resume}; "
                "raise gate.max_steps, or try another seed, optimizer or learning rate"
            )
        return False
