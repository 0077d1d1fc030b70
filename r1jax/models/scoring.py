"""Models that give scores: a decoder and one linear map from its final activations to a number.

Reward models (a score of the whole response, read at its end) and process and value models (a
score after every step) are decoders that continue from a language model's parameters,
with the entry `score` beside them. What the scores are of is the checkpoint's scope, in its meta.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from r1jax import checkpoints
from r1jax.checkpoints import CheckpointError
from r1jax.models.decoder import Decoder
from r1jax.models.families import abstract_params, differences, from_description
from r1jax.sharding import Rules, shardings
from r1jax.types import Array

# What is scored: a response by its final section, a response by all of it, every step of the
# reasoning, or the state after a step.
SCOPES = ("final", "whole", "steps", "value")

# Not called kernel: optimisers would take the map for one of the blocks' matrices.
RULES: Rules = ((r"score/(weight|bias)$", P()),)


def with_score(params) -> dict:
    """`params` of a language model with a head that scores everything 0."""
    width = params["embed"].shape[1]
    return {**params, "score": {"weight": jnp.zeros(width), "bias": jnp.zeros(())}}


def read_scores(params, hidden_BTD) -> Array:
    """Scores [B, T], float32, of final activations (`Decoder.forward`)."""
    head = params["score"]
    return hidden_BTD.astype(jnp.float32) @ head["weight"] + head["bias"]


def scores(model: Decoder, params, tokens_BT, *, positions_BT=None, segments_BT=None) -> Array:
    """Scores [B, T], float32: one after every token, of all up to it in its segment."""
    hidden_BTD, _, _ = model.forward(
        params, tokens_BT, positions_BT=positions_BT, segments_BT=segments_BT
    )
    return read_scores(params, hidden_BTD)


def about(scope: str) -> dict:
    """What the meta of a score model's checkpoints says beside a language model's.

    Raises ValueError for an unknown scope.
    """
    if scope not in SCOPES:
        raise ValueError(f"scope={scope!r} is unknown; known: {', '.join(SCOPES)}")
    return {"scoring": {"scope": scope}}


def read_scope(path: str | Path) -> str:
    """The scope of the score model in a checkpoint's, a stage's or a run's folder.

    Raises CheckpointError naming the folder where it holds no score model.
    """
    folder = checkpoints.find(path)
    scope = checkpoints.load_meta(folder).get("scoring", {}).get("scope")
    if scope not in SCOPES:
        raise CheckpointError(
            f"{folder} holds no score model (its meta names no scope of {', '.join(SCOPES)}); "
            "give a checkpoint of a stage of kind preference or process"
        )
    return scope


def load(path: str | Path, *, mesh: Mesh, dtype: str = "float32"):
    """(model, params) of the score model in a checkpoint's, a stage's or a run's folder.

    Parameters are in `dtype`, but for routers and the head, which stay float32.
    Raises CheckpointError naming the folder where it holds none.
    """
    read_scope(path)
    folder = checkpoints.find(path)
    model = from_description(checkpoints.load_meta(folder)["model"])
    return model, load_params(folder, model, mesh, dtype)


def load_params(path: str | Path, model: Decoder, mesh: Mesh, dtype: str = "float32"):
    """Parameters of the score model on `model` in any folder that `load` reads.

    Raises CheckpointError naming the folder where it holds none, or one on another model.
    """
    read_scope(path)
    folder = checkpoints.find(path)
    meta = checkpoints.load_meta(folder)
    if lines := differences(from_description(meta["model"]).config, model.config):
        raise CheckpointError(
            f"{folder} holds a score model on another model:\n  " + "\n  ".join(lines)
        )
    params = abstract_params(model, mesh, dtype)
    head = {"score": jax.eval_shape(with_score, params)["score"]}
    layout = shardings(mesh, head, RULES)
    head = jax.tree.map(
        lambda s, own: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=own), head, layout
    )
    return checkpoints.load_params(folder, {**params, **head})
