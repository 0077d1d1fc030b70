"""Reward models from preference pairs: Bradley-Terry on a scalar head.

A score model continues from a language model, all of whose parameters are trained. It reads the
question and a response, of which it is shown what its scope says: with *final* the final section
alone (helpfulness), with *whole* all of it, the reasoning too (harmlessness); its score is the
one at the end token (arXiv:2501.12948, section 2.3.4). Pairs of some questions are
held out: they measure how often the preferred response is scored higher, by how much,
and whether σ(difference) is as sure as it may be.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from r1jax.compute import training_flops
from r1jax.data.packing import Document, pack, plan
from r1jax.data.pairs import Pair, split
from r1jax.data.sources import problem_order
from r1jax.learner import init_state, scoring_step
from r1jax.losses import preference_loss
from r1jax.metrics import calibration_error
from r1jax.models.scoring import about, with_score
from r1jax.optim import OPTIMIZERS, warm_cosine
from r1jax.run import Run
from r1jax.scoring import Scorer, scored_document
from r1jax.sharding import batch_axis_size, replicated, rows
from r1jax.types import Array

log = logging.getLogger("r1jax")

SCOPES = ("final", "whole")
BINS = 20  # of confidences, which begin at a half: ten of them are in use


@dataclass(frozen=True)
class PreferenceConfig:
    """`batch_pairs` pairs a step, packed into rows of `row_tokens`; cosine from `lr` to
    `lr_end` over `epochs` passes, or `steps` if given. A choice is to win by `margin`.
    `held_out` is the share of pairs, `held_out_most` at most, that are measured and not trained
    on."""

    pairs: str
    scope: str
    row_tokens: int
    batch_pairs: int = 32
    epochs: int = 1
    steps: int = 0
    margin: float = 0.0
    lr: float = 1e-5
    lr_end: float = 0.0
    warmup_steps: int = 0
    optimizer: str = "adamw"
    b2: float = 0.95
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    held_out: float = 0.1
    held_out_most: int = 512
    checkpoint_every: int = 500
    log_every: int = 10

    def __post_init__(self):
        for name, known in (("scope", SCOPES), ("optimizer", OPTIMIZERS)):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name}={value!r} is unknown; known: {', '.join(known)}")
        for name in (
            "row_tokens", "batch_pairs", "epochs", "held_out_most", "checkpoint_every", "log_every",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("steps", "warmup_steps", "margin", "lr_end"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if not self.lr > 0:
            raise ValueError(f"lr={self.lr} must be positive")
        if not 0 <= self.held_out < 1:
            raise ValueError(
                f"held_out={self.held_out} must be a share below 1; 0 holds nothing out"
            )


class PairBatch(NamedTuple):
    """Packed responses (`data.packing.Packed`), and where those of each pair end.

    Ends are positions in the rows put end to end.
    """

    tokens_BT: Array
    segments_BT: Array
    positions_BT: Array
    chosen_n: Array
    rejected_n: Array


def run(config: PreferenceConfig, run: Run, pairs: Sequence[Pair], params) -> dict:
    """Trains a score model that continues from a language model's `params`; returns its own.

    Every epoch has an order of its own, a function of the seed; the pairs that do not fill a
    last batch are left out. Pairs that are the same in what the scope shows of them are left out
    from the start, with a warning.
    Raises ValueError for a response longer than a row, and for fewer pairs than a batch.
    """
    data = _Data(config, run, pairs)
    if data.left_out:
        log.warning(
            "%s: %d of %d pairs left out: chosen and rejected are the same in what the scope %s "
            "shows", run.stage, data.left_out, len(pairs), config.scope,
        )  # fmt: skip
    optimizer = OPTIMIZERS[config.optimizer](
        b2=config.b2, weight_decay=config.weight_decay, clip_norm=config.clip_norm
    )
    update = scoring_step(run.model, optimizer, partial(_loss, margin=config.margin))
    scorer = Scorer(run, run.model)
    state = init_state(run.model, optimizer, run.mesh, params=with_score(params))
    total = data.steps
    with run.checkpoints(extra=about(config.scope)) as checkpoints:
        if restored := checkpoints.restore(state):
            state = restored[0]
        done = int(state.step)
        run.writer.rewind(run.stage, done)
        with run.writer.bar(total, run.stage, done=done) as bar:
            flops = sum(data.flops(step) for step in range(done))  # before a resume
            for step, batch in data.batches(done):
                flops += data.flops(step - 1)
                lr = warm_cosine(
                    step - 1, total, lr=config.lr, lr_end=config.lr_end,
                    warmup_steps=config.warmup_steps,
                )  # fmt: skip
                state, metrics = update(state, batch, lr)
                bar.update()
                if step == total or step % config.log_every == 0:
                    values = {f"loss/{k}": float(v) for k, v in metrics.items()}
                    values |= {"lr": lr, "compute/flops": flops}
                    values |= measure(scorer, state.params, data.held_out)
                    run.writer.metrics(run.stage, step, values)
                    bar.set_postfix(_shown(values))
                if step == total or step % config.checkpoint_every == 0:
                    checkpoints.save(state, {})
    return state.params


def check(config: PreferenceConfig, run: Run, pairs: Sequence[Pair]) -> None:
    """Raises ValueError for a response longer than a row, and for fewer pairs than a batch."""
    _Data(config, run, pairs)


def measure(
    scorer: Scorer, params, documents: Sequence[tuple[Document, Document]]
) -> dict[str, float]:
    """Metrics of pairs (chosen, rejected) under `preference/`; {} without any.

    `accuracy`: share with the chosen one scored higher, a tie counting half; `margin`: mean of
    chosen − rejected; `loss`: mean of −log σ(chosen − rejected), nats; `calibration_error`
    (`metrics.calibration_error`) of the confidence σ(|chosen − rejected|) in the one scored higher.
    """
    if not documents:
        return {}
    ends = scorer.ends(params, [d for pair in documents for d in pair])
    lead_n = np.float64(ends[::2]) - ends[1::2]
    right_n = np.where(lead_n == 0, 0.5, lead_n > 0)
    confidence_n = 1 / (1 + np.exp(-np.abs(lead_n)))
    return {
        "preference/accuracy": float(right_n.mean()),
        "preference/margin": float(lead_n.mean()),
        "preference/loss": float(np.logaddexp(0, -lead_n).mean()),
        "preference/calibration_error": calibration_error(confidence_n, right_n, bins=BINS),
    }


def _loss(score_BT, batch: PairBatch, *, margin: float):
    """`losses.preference_loss` of the scores where the responses end."""
    score_m = score_BT.reshape(-1)
    return preference_loss(score_m[batch.chosen_n], score_m[batch.rejected_n], margin=margin)


class _Data:
    """The pairs as documents, and their order."""

    def __init__(self, config: PreferenceConfig, run: Run, pairs: Sequence[Pair]):
        self._config, self._run = config, run
        kept, held = split(pairs, config.held_out, seed=run.seed, most=config.held_out_most)
        self._train, self.held_out = self._documents(kept), self._documents(held)
        self.left_out = len(pairs) - len(self._train) - len(self.held_out)
        per_epoch = len(self._train) // config.batch_pairs
        if not per_epoch:
            raise ValueError(
                f"{len(self._train)} pairs to train on (of {len(pairs)}) are fewer than "
                f"batch_pairs={config.batch_pairs}; lower it, or give more"
            )
        self.steps = per_epoch * config.epochs
        if config.steps:
            self.steps = min(config.steps, self.steps)
        self._per_epoch = per_epoch
        self._orders = [
            problem_order(len(self._train), run.seed, epoch) for epoch in range(config.epochs)
        ]
        plans = [self._plan(step) for step in range(self.steps)]
        pieces = batch_axis_size(run.mesh)
        # One shape for all steps: some have a row to spare.
        self._rows = -(-max(map(len, plans)) // pieces) * pieces

    def batches(self, done: int) -> Iterator[tuple[int, PairBatch]]:
        """(step, its batch on the mesh) from the step after `done` on."""
        for step in range(done, self.steps):
            yield step + 1, self._batch(step)

    def flops(self, step: int) -> float:
        """Of a step's update (`r1jax.compute`); without logits, which nothing reads."""
        lengths = [len(d.tokens) for pair in self._members(step) for d in pair]
        return training_flops(self._run.model.config, lengths, [0] * len(lengths))

    def _documents(self, pairs: Sequence[Pair]) -> list[tuple[Document, Document]]:
        found = []
        for pair in pairs:
            chosen, rejected = (
                scored_document(self._run, pair["question"], pair[side], self._config.scope)
                for side in ("chosen", "rejected")
            )
            longest = max(len(chosen.tokens), len(rejected.tokens))
            if longest > self._config.row_tokens:
                raise ValueError(
                    f"a response to {pair['question'][:80]!r} has {longest} tokens with its "
                    f"prompt, more than row_tokens={self._config.row_tokens}; raise it, or "
                    "leave the pair out"
                )
            if list(chosen.tokens) != list(rejected.tokens):
                found.append((chosen, rejected))
        return found

    def _members(self, step: int) -> list[tuple[Document, Document]]:
        epoch, at = divmod(step, self._per_epoch)
        count = self._config.batch_pairs
        return [self._train[i] for i in self._orders[epoch][at * count : (at + 1) * count]]

    def _plan(self, step: int) -> list[list[int]]:
        """Rows of the step's documents: chosen and rejected by turns."""
        lengths = [len(d.tokens) for pair in self._members(step) for d in pair]
        return plan(lengths, self._config.row_tokens)

    def _batch(self, step: int) -> PairBatch:
        documents = [d for pair in self._members(step) for d in pair]
        planned, width = self._plan(step), self._config.row_tokens
        planned += [[]] * (self._rows - len(planned))
        packed = pack(documents, planned, width)
        end_of = np.zeros(len(documents), np.int32)
        for r, members in enumerate(planned):
            lengths = [len(documents[i].tokens) for i in members]
            end_of[members] = r * width + np.cumsum(lengths, dtype=np.int64) - 1
        mesh = self._run.mesh
        texts = jax.device_put(
            (packed.tokens_BT, packed.segments_BT, packed.positions_BT), rows(mesh)
        )
        return PairBatch(*texts, *jax.device_put((end_of[::2], end_of[1::2]), replicated(mesh)))


def _shown(values: dict[str, float]) -> dict[str, str]:
    """What a progress bar has room for."""
    shown = {"loss": f"{values['loss/total']:.3f}"}
    if "preference/accuracy" in values:
        shown["accuracy"] = f"{values['preference/accuracy']:.2f}"
    return shown
