"""Supervised fine-tuning on examples: packed rows, loss on the responses only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import jax

from r1jax.compute import training_flops
from r1jax.data.epochs import Epochs, example_epochs
from r1jax.data.packing import Document, pack
from r1jax.learner import init_state, supervised_step
from r1jax.models import lora
from r1jax.models.lora import LoraConfig
from r1jax.optim import OPTIMIZERS, warm_cosine
from r1jax.run import Run
from r1jax.sharding import check_rows, rows


@dataclass(frozen=True)
class SftConfig:
    """`batch_rows` packed rows of `row_tokens` a step; cosine from `lr` to `lr_end` (the
    paper tunes from 5e-5 to 5e-6, second-hand) over `epochs` passes, or `steps` if given.
    With `lora.rank` adapters are trained and nothing else."""

    examples: str
    row_tokens: int
    batch_rows: int = 16
    epochs: int = 2
    steps: int = 0
    lr: float = 5e-5
    lr_end: float = 5e-6
    warmup_steps: int = 0
    optimizer: str = "adamw"
    b2: float = 0.95
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    checkpoint_every: int = 500
    log_every: int = 10
    lora: LoraConfig = field(default_factory=LoraConfig)

    def __post_init__(self):
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(
                f"optimizer={self.optimizer!r} is unknown; known: {', '.join(OPTIMIZERS)}"
            )
        for name in ("row_tokens", "batch_rows", "epochs", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.steps < 0:
            raise ValueError(f"steps={self.steps} must not be negative; 0 trains all epochs")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps={self.warmup_steps} must not be negative")
        if not self.lr > 0:
            raise ValueError(f"lr={self.lr} must be positive")


def run(config: SftConfig, run: Run, examples: Sequence[Mapping[str, str]], params=None) -> dict:
    """Trains `params` (None: random ones) on `examples`; returns the final parameters.

    Every epoch packs the examples in an order of its own, a function of the seed; the
    rows that do not fill a last batch are dropped. Raises ValueError for an example longer
    than a row, and for too few examples for a single batch.
    """
    epochs = _epochs(config, run, examples)
    documents = epochs.documents
    total = min(config.steps, len(epochs)) if config.steps else len(epochs)
    optimizer = OPTIMIZERS[config.optimizer](
        b2=config.b2, weight_decay=config.weight_decay, clip_norm=config.clip_norm
    )
    update = supervised_step(run.model, optimizer)
    if config.lora.rank and params is None:
        raise ValueError("lora.rank: adapters need a model to adapt; set init")
    frozen, trainable = ({}, None) if params is None else lora.split(
        params, config.lora, run.key("lora")
    )  # fmt: skip
    state = init_state(run.model, optimizer, run.mesh, params=trainable, key=run.key("init"))
    with run.checkpoints(lora=config.lora) as checkpoints:
        if restored := checkpoints.restore(state):
            state = restored[0]
        done = int(state.step)
        run.writer.rewind(run.stage, done)
        with run.writer.bar(total, run.stage, done=done) as bar:
            flops = 0.0  # of all steps so far, those before a resume included
            for step in range(1, total + 1):
                members = epochs.batch(step - 1)
                flops += _flops(run, [documents[i] for row in members for i in row], config)
                if step <= done:
                    continue
                batch = pack(documents, members, config.row_tokens)
                lr = warm_cosine(
                    step - 1, total, lr=config.lr, lr_end=config.lr_end,
                    warmup_steps=config.warmup_steps,
                )  # fmt: skip
                batch = jax.device_put(batch, rows(run.mesh))
                state, metrics = update(state, frozen, batch, lr)
                bar.update()
                if step == total or step % config.log_every == 0:
                    values = {f"loss/{k}": float(v) for k, v in metrics.items()}
                    run.writer.metrics(run.stage, step, values | {"lr": lr, "compute/flops": flops})
                    bar.set_postfix(loss=f"{values['loss/nll']:.3f}")
                if step == total or step % config.checkpoint_every == 0:
                    checkpoints.save(state, {})
    return lora.join(frozen, state.params)


def check(config: SftConfig, run: Run, examples: Sequence[Mapping[str, str]]) -> None:
    """Raises ValueError for an example longer than a row, too few of them for a batch, and
    rows that the mesh cannot cut."""
    _epochs(config, run, examples)


def _epochs(config: SftConfig, run: Run, examples: Sequence[Mapping[str, str]]) -> Epochs:
    check_rows(run.mesh, batch_rows=config.batch_rows)
    return example_epochs(
        run, examples, row_tokens=config.row_tokens, batch_rows=config.batch_rows,
        epochs=config.epochs,
    )  # fmt: skip


def _flops(run: Run, documents: Sequence[Document], config: SftConfig) -> float:
    prompt_n = [d.prompt for d in documents]
    response_n = [len(d.tokens) - d.prompt for d in documents]
    adapters = bool(config.lora.rank)
    return training_flops(run.model.config, prompt_n, response_n, adapters=adapters)
