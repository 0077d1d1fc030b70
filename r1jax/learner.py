"""The jitted update programs: supervised steps on packed text, policy gradients on rollouts.

All are pure functions of (state, batch) whose layouts come from the model's sharding
rules. A policy update may be cut into micro-batches; the losses are additive over them
(`types.Counts`), so the accumulated gradient is that of the one batch.

Parameters come as two trees, frozen and trainable (`models.lora`): the state holds the
trainable one, and `join` of both is what the model is given.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from r1jax.data.packing import Packed
from r1jax.logprobs import head_logprobs
from r1jax.losses import sft_loss
from r1jax.models import lora, scoring
from r1jax.models.decoder import Decoder
from r1jax.models.lora import join
from r1jax.optim import RULES, Optimizer
from r1jax.rollouts import Shape, pack
from r1jax.sharding import BATCH, rows, shardings
from r1jax.types import Counts, PolicyBatch, Rollout, TrainState

LAYOUT = (BATCH, "tensor")  # of the logits that are never made: rows, vocabulary


def init_state(
    model: Decoder, optimizer: Optimizer, mesh: Mesh, *, params=None, key=None
) -> TrainState:
    """State for `params` (copied), or for random ones from `key`, laid out on the mesh."""

    def fresh(given):
        p = model.init(given) if params is None else jax.tree.map(jnp.copy, given)
        return TrainState(p, optimizer.init(p), jnp.int32(0))

    given = key if params is None else params
    rules = model.rules + RULES + lora.RULES + scoring.RULES
    layout = shardings(mesh, jax.eval_shape(fresh, given), rules)
    return jax.jit(fresh, out_shardings=layout)(given)


def supervised_step(model: Decoder, optimizer: Optimizer):
    """Jitted (state, frozen, Packed, lr) -> (state, metrics): one step of next-token training."""

    def loss_of(trainable, frozen, batch: Packed):
        params = join(frozen, trainable)
        hidden_BTD, _, statistics = model.forward(
            params, batch.tokens_BT, positions_BT=batch.positions_BT, segments_BT=batch.segments_BT
        )
        logp_BT = head_logprobs(
            hidden_BTD[:, :-1], model.head(params), batch.tokens_BT[:, 1:], layout=LAYOUT
        )
        loss, metrics = sft_loss(logp_BT, batch.mask_BT[:, 1:])
        return loss, (metrics, statistics)

    @partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, frozen, batch: Packed, lr: float):
        grads, (metrics, statistics) = jax.grad(loss_of, has_aux=True)(state.params, frozen, batch)
        state, norm = apply_gradients(model, optimizer, state, frozen, grads, statistics, lr)
        return state, metrics | {"gradient_norm": norm}

    return step


def scoring_step(model: Decoder, optimizer: Optimizer, loss: Callable):
    """Jitted (state, batch, lr) -> (state, metrics): one step of training a score model.

    `loss(score_BT, batch) -> (loss, metrics)` is given the scores after every token of a batch,
    which is any NamedTuple with tokens_BT, positions_BT and segments_BT (`data.packing`).
    """

    def loss_of(params, batch):
        hidden_BTD, _, statistics = model.forward(
            params, batch.tokens_BT, positions_BT=batch.positions_BT, segments_BT=batch.segments_BT
        )
        value, metrics = loss(scoring.read_scores(params, hidden_BTD), batch)
        return value, ({"total": value} | metrics, statistics)

    @partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, batch, lr: float):
        grads, (metrics, statistics) = jax.grad(loss_of, has_aux=True)(state.params, batch)
        state, norm = apply_gradients(model, optimizer, state, {}, grads, statistics, lr)
        return state, metrics | {"gradient_norm": norm}

    return step


class PolicyLearner:
    """Log-probabilities of responses, and policy updates in micro-batches.

    `loss(logp, old, ref, adv, mask, *, whole)` is a policy loss of `r1jax.losses` with its
    settings filled in, or any function of that form (with `importance_BT` too, if updates are
    given one). `shape` is that of the micro-batches (`rollouts.packed_shape`).
    """

    def __init__(
        self,
        model: Decoder,
        optimizer: Optimizer,
        loss: Callable,
        *,
        temperature: float,
        shape: Shape,
        mesh: Mesh,
    ):
        self.shape, self.mesh = shape, mesh

        def score(params, batch: PolicyBatch):
            hidden_XTD, _, statistics = model.forward(
                params, batch.tokens_XT, positions_BT=batch.positions_XT,
                segments_BT=batch.segments_XT, prefix_BT=batch.prefix_XT,
                pairs_Bn2=batch.pairs_Xn2,
            )  # fmt: skip
            hidden_XTD = jnp.take_along_axis(hidden_XTD, batch.before_XT[..., None], axis=1)
            logp_XT = head_logprobs(
                hidden_XTD, model.head(params), batch.tokens_XT, temperature=temperature,
                layout=LAYOUT,
            )  # fmt: skip
            (X, N, R), at_Xm = batch.at_XNR.shape, batch.at_XNR.reshape(len(logp_XT), -1)
            return jnp.take_along_axis(logp_XT, at_Xm, axis=1).reshape(X, N, R), statistics

        def loss_of(trainable, frozen, batch: PolicyBatch, whole: Counts, importance_XNR=None):
            logp_XNR, statistics = score(join(frozen, trainable), batch)
            given = (logp_XNR, batch.old_logp_XNR, batch.ref_logp_XNR, batch.adv_XN, batch.mask_XNR)
            given = (None if x is None else x.reshape(-1, *x.shape[2:]) for x in given)
            extra = {}
            if importance_XNR is not None:
                extra["importance_BT"] = importance_XNR.reshape(-1, importance_XNR.shape[2])
            value, metrics = loss(*given, whole=whole, **extra)
            return value, ({"total": value} | metrics, statistics)

        gradient = jax.grad(loss_of, has_aux=True)

        def accumulate(sums, *arguments):
            return jax.tree.map(jnp.add, sums, gradient(*arguments))

        def zeros(*arguments):
            shapes = jax.eval_shape(gradient, *arguments)
            return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        self._score = jax.jit(lambda params, batch: score(params, batch)[0])
        self._zeros = jax.jit(zeros)
        self._accumulate = jax.jit(accumulate, donate_argnums=0)
        self._apply = jax.jit(partial(apply_gradients, model, optimizer), donate_argnums=0)

    def logprobs(self, params, rollout: Rollout) -> np.ndarray:
        """Log-probabilities [B, R] of the rollout's responses under `params`, 0 on padding."""
        logp_BR = np.zeros_like(rollout.logp_BT)
        every_B = np.arange(len(rollout.length_B))
        pending = [
            (row_XN, self._score(params, self._put(batch)))
            for batch, row_XN in pack(rollout, every_B, self.shape)
        ]
        for row_XN, logp_XNR in pending:
            real_XN = row_XN >= 0
            logp_BR[row_XN[real_XN]] = np.asarray(logp_XNR)[real_XN]
        return logp_BR * rollout.mask_BT

    def update(
        self,
        state: TrainState,
        frozen,
        rollout: Rollout,
        rows_b: np.ndarray,
        adv_B: np.ndarray,
        ref_logp_BR: np.ndarray | None,
        lr: float,
        importance_BR: np.ndarray | None = None,
    ):
        """(state, metrics) after one update on the given rows of a rollout, as one batch.

        The rollout's log-probabilities are those of the old policy, and `importance_BR` weighs
        its tokens (`r1jax.losses`).
        """
        whole = Counts(np.float32(len(rows_b)), np.float32(rollout.length_B[rows_b].sum()))
        sums = None
        for batch, row_XN in pack(rollout, rows_b, self.shape, adv_B, ref_logp_BR):
            arguments = (state.params, frozen, self._put(batch), whole)
            if importance_BR is not None:
                weight_XNR = np.where(batch.mask_XNR > 0, importance_BR[row_XN], 0)
                arguments += (self._put(weight_XNR.astype(np.float32)),)
            sums = self._zeros(*arguments) if sums is None else sums
            sums = self._accumulate(sums, *arguments)
        grads, (metrics, statistics) = sums
        state, norm = self._apply(state, frozen, grads, statistics, lr)
        return state, metrics | {"gradient_norm": norm}

    def _put(self, batch):
        return jax.device_put(batch, rows(self.mesh))


def apply_gradients(
    model: Decoder, optimizer: Optimizer, state: TrainState, frozen, grads, statistics, lr
):
    """(state after one update, norm of the gradients)."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    updates = jax.tree.map(lambda u: lr * u, updates)
    params = optax.apply_updates(state.params, updates)
    if not frozen:
        params = model.rebalance(params, statistics)
    return TrainState(params, opt_state, state.step + 1), optax.tree.norm(grads)
