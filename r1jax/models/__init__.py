"""Models as pure functions of parameters, and loading them from disk."""

from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from r1jax import checkpoints
from r1jax.models.transformer import Transformer, TransformerConfig
from r1jax.sharding import make_mesh, shardings


def load(path: str | Path, *, mesh: Mesh | None = None, dtype: str | None = None):
    """(model, params) from a run's folder, a stage's, or one checkpoint's.

    Parameters are laid out on `mesh` (default: all devices on the fsdp axis). `dtype`
    ('float32' or 'bfloat16') replaces that of the activations.
    Raises CheckpointError naming the path where nothing readable is found.
    """
    folder = checkpoints.find(path)
    config = checkpoints.load_meta(folder)["model"]
    model = Transformer(TransformerConfig(**(config | ({"dtype": dtype} if dtype else {}))))
    mesh = make_mesh() if mesh is None else mesh
    return model, checkpoints.load_params(folder, abstract_params(model, mesh))


def abstract_params(model: Transformer, mesh: Mesh):
    """Shapes, types and layouts of the model's parameters, without making them."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(
        lambda s, layout: jax.ShapeDtypeStruct(s.shape, jnp.float32, sharding=layout),
        shapes, shardings(mesh, shapes, model.rules),
    )  # fmt: skip
