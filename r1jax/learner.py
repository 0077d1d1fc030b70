"""The jitted update programs: supervised steps on packed text, policy gradients on rollouts.

All are pure functions of (state, batch) whose layouts come from the model's sharding
rules. A policy update may be cut into micro-batches; the losses are additive over them
(`types.Counts`), so the accumulated gradient is that of the one batch.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from r1jax.data.packing import Packed
from r1jax.logprobs import token_logprobs
from r1jax.losses import sft_loss
from r1jax.models.transformer import Transformer
from r1jax.sharding import shardings
from r1jax.types import Array


class TrainState(NamedTuple):
    params: dict
    opt_state: tuple
    step: Array  # int32 scalar: updates made


def init_state(
    model: Transformer, optimizer: optax.GradientTransformation, mesh: Mesh, params=None, key=None
) -> TrainState:
    """State for `params` (copied), or for random ones from `key`, laid out on the mesh."""

    def fresh(given):
        p = model.init(given) if params is None else jax.tree.map(jnp.copy, given)
        return TrainState(p, optimizer.init(p), jnp.int32(0))

    given = key if params is None else params
    layout = shardings(mesh, jax.eval_shape(fresh, given), model.rules)
    return jax.jit(fresh, out_shardings=layout)(given)


def supervised_step(model: Transformer, optimizer: optax.GradientTransformation):
    """Jitted (state, Packed) -> (state, metrics): one step of next-token training."""

    @partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, batch: Packed):
        def loss_of(params):
            hidden_BTD = model.hidden(
                params, batch.tokens_BT,
                positions_BT=batch.positions_BT, segments_BT=batch.segments_BT,
            )  # fmt: skip
            logits_BTV = model.logits(params, hidden_BTD[:, :-1])
            logp_BT = token_logprobs(logits_BTV, batch.tokens_BT[:, 1:])
            return sft_loss(logp_BT, batch.mask_BT[:, 1:])

        (_, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        state, norm = _apply(optimizer, state, grads)
        return state, metrics | {"gradient_norm": norm}

    return step


def _apply(optimizer, state: TrainState, grads):
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(params, opt_state, state.step + 1), optax.global_norm(grads)
