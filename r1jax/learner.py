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
import optax
from jax.sharding import Mesh

from r1jax.data.packing import Packed
from r1jax.logprobs import token_logprobs
from r1jax.losses import sft_loss
from r1jax.models import lora
from r1jax.models.decoder import Decoder
from r1jax.models.lora import join
from r1jax.optim import RULES, Optimizer
from r1jax.sharding import shardings
from r1jax.types import Counts, PolicyBatch, TrainState


def init_state(
    model: Decoder, optimizer: Optimizer, mesh: Mesh, *, params=None, key=None
) -> TrainState:
    """State for `params` (copied), or for random ones from `key`, laid out on the mesh."""

    def fresh(given):
        p = model.init(given) if params is None else jax.tree.map(jnp.copy, given)
        return TrainState(p, optimizer.init(p), jnp.int32(0))

    given = key if params is None else params
    rules = model.rules + RULES + lora.RULES
    layout = shardings(mesh, jax.eval_shape(fresh, given), rules)
    return jax.jit(fresh, out_shardings=layout)(given)


def supervised_step(model: Decoder, optimizer: Optimizer):
    """Jitted (state, frozen, Packed, lr) -> (state, metrics): one step of next-token training."""

    def loss_of(trainable, frozen, batch: Packed):
        params = join(frozen, trainable)
        hidden_BTD, _, statistics = model.forward(
            params, batch.tokens_BT, positions_BT=batch.positions_BT, segments_BT=batch.segments_BT
        )
        logits_BTV = model.logits(params, hidden_BTD[:, :-1])
        logp_BT = token_logprobs(logits_BTV, batch.tokens_BT[:, 1:])
        loss, metrics = sft_loss(logp_BT, batch.mask_BT[:, 1:])
        return loss, (metrics, statistics)

    @partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, frozen, batch: Packed, lr: float):
        grads, (metrics, statistics) = jax.grad(loss_of, has_aux=True)(state.params, frozen, batch)
        state, norm = _apply(model, optimizer, state, frozen, grads, statistics, lr)
        return state, metrics | {"gradient_norm": norm}

    return step


class PolicyLearner:
    """Log-probabilities of responses, and policy updates in micro-batches.

    `loss(logp, old, ref, adv, mask, *, whole)` is a policy loss of `r1jax.losses` with its
    settings filled in, or any function of that form.
    """

    def __init__(self, model: Decoder, optimizer: Optimizer, loss: Callable, *, temperature: float):
        def score(params, tokens_BT, start_B, real_BT, R):
            columns = jnp.arange(tokens_BT.shape[1])
            hidden_BTD, _, statistics = model.forward(
                params, tokens_BT,
                positions_BT=jnp.maximum(columns[None, :] - start_B[:, None], 0),
                segments_BT=real_BT.astype(jnp.int32),
            )  # fmt: skip
            logits_BRV = model.logits(params, hidden_BTD[:, -R - 1 : -1])
            logp_BR = token_logprobs(logits_BRV, tokens_BT[:, -R:], temperature=temperature)
            return logp_BR, statistics

        def logprobs(params, tokens_BT, start_B, R):
            real_BT = jnp.arange(tokens_BT.shape[1])[None, :] >= start_B[:, None]
            return score(params, tokens_BT, start_B, real_BT, R)[0]

        def loss_of(trainable, frozen, batch: PolicyBatch, whole: Counts):
            prompt = batch.tokens_BT.shape[1] - batch.mask_BR.shape[1]
            real_BT = jnp.concatenate(
                [jnp.arange(prompt)[None, :] >= batch.start_B[:, None], batch.mask_BR > 0], axis=1
            )
            logp_BR, statistics = score(
                join(frozen, trainable), batch.tokens_BT, batch.start_B, real_BT,
                batch.mask_BR.shape[1],
            )  # fmt: skip
            value, metrics = loss(
                logp_BR, batch.old_logp_BR, batch.ref_logp_BR, batch.adv_B, batch.mask_BR,
                whole=whole,
            )  # fmt: skip
            return value, ({"total": value} | metrics, statistics)

        gradient = jax.grad(loss_of, has_aux=True)

        def accumulate(sums, *arguments):
            return jax.tree.map(jnp.add, sums, gradient(*arguments))

        def zeros(*arguments):
            shapes = jax.eval_shape(gradient, *arguments)
            return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        self.logprobs = jax.jit(logprobs, static_argnums=3)
        self._zeros = jax.jit(zeros)
        self._accumulate = jax.jit(accumulate, donate_argnums=0)
        self._apply = jax.jit(partial(_apply, model, optimizer), donate_argnums=0)

    def update(
        self, state: TrainState, frozen, batches: list[PolicyBatch], whole: Counts, lr: float
    ):
        """(state, metrics) after one update from micro-batches that make up one batch."""
        sums = self._zeros(state.params, frozen, batches[0], whole)
        for batch in batches:
            sums = self._accumulate(sums, state.params, frozen, batch, whole)
        grads, (metrics, statistics) = sums
        state, norm = self._apply(state, frozen, grads, statistics, lr)
        return state, metrics | {"gradient_norm": norm}


def _apply(model: Decoder, optimizer: Optimizer, state: TrainState, frozen, grads, statistics, lr):
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    updates = jax.tree.map(lambda u: lr * u, updates)
    params = optax.apply_updates(state.params, updates)
    if not frozen:
        params = model.rebalance(params, statistics)
    return TrainState(params, opt_state, state.step + 1), optax.tree.norm(grads)
