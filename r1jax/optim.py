"""Optimisers and learning-rate schedules.

Optimisers are built for a learning rate of 1; the rate itself is an argument of every
update, computed on the host as a function of the step. So a schedule may depend on what
a stage has measured (where its skill gate was met), and is logged as it was used.
"""

import math
from collections.abc import Callable

import jax
import optax
from jax.sharding import PartitionSpec

from r1jax.sharding import path_name

Optimizer = optax.GradientTransformation

# Layouts of optimiser state that is no parameter's moment (whose path ends in the parameter's).
RULES = ((r"ns_coeffs$", PartitionSpec()),)


def adamw(
    *, b1: float = 0.9, b2: float = 0.95, weight_decay: float = 0.0, clip_norm: float = 1.0
) -> Optimizer:
    """Clip by global norm, Adam, decoupled decay of matrices (not of scales and biases)."""
    decay = optax.adamw(1.0, b1=b1, b2=b2, weight_decay=weight_decay, mask=_is_matrix)
    return optax.chain(optax.clip_by_global_norm(clip_norm), decay)


def muon(
    *, b1: float = 0.9, b2: float = 0.95, weight_decay: float = 0.0, clip_norm: float = 1.0
) -> Optimizer:
    """Muon on the blocks' matrices (a layer at a time), Adam on everything else.

    Momentum, orthogonalised by Newton-Schulz (optax.contrib.muon). It learns the miniature's
    arithmetic in about two thirds of AdamW's steps.
    """

    def dimensions(params):
        def one(path, leaf):
            if getattr(path[-1], "key", None) != "kernel" or "router" in path_name(path):
                return None
            rows = leaf.ndim - 2  # of [L, in, out], or [L, E, in, out] of experts
            return optax.contrib.MuonDimensionNumbers(rows, rows + 1)

        return jax.tree_util.tree_map_with_path(one, params)

    update = optax.contrib.muon(
        1.0, adam_b1=b1, adam_b2=b2, weight_decay=weight_decay,
        muon_weight_dimension_numbers=dimensions,
    )  # fmt: skip
    return optax.chain(optax.clip_by_global_norm(clip_norm), update)


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"adamw": adamw, "muon": muon}


def warmup(step: int, steps: int) -> float:
    """Linear from 1/(steps+1) at step 0 to 1 at `steps`."""
    return min(1.0, (step + 1) / (steps + 1))


def cosine(step: int, steps: int, end: float = 0.0) -> float:
    """Half a cosine from 1 at step 0 to `end` at `steps`, and `end` after."""
    share = min(1.0, step / max(1, steps))
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * share))


def warm_cosine(step: int, steps: int, *, lr: float, lr_end: float, warmup_steps: int) -> float:
    """The rate of a step, counted from 0: warm-up, and half a cosine from `lr` to `lr_end`."""
    return lr * warmup(step, warmup_steps) * cosine(step, steps, lr_end / lr)


def _is_matrix(params):
    # By name: the blocks' scales and biases are stacked over layers, so they have two axes too.
    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(path[-1], "key", None) not in ("scale", "bias"), params
    )
