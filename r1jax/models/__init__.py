"""Models as pure functions of parameters, and loading them from disk."""

from pathlib import Path

import jax
from jax.sharding import Mesh

from r1jax import checkpoints
from r1jax.checkpoints import CheckpointError
from r1jax.models import huggingface, lora
from r1jax.models.decoder import Decoder
from r1jax.models.families import (
    abstract_params,
    describe,
    differences,
    from_description,
    make_model,
)
from r1jax.sharding import make_mesh, shardings

__all__ = [
    "abstract_params", "describe", "from_description", "load", "load_params", "make_model",
    "read_config", "tokenizer_folder",
]  # fmt: skip


def tokenizer_folder(path: str | Path) -> Path:
    """Where the tokenizer of a model in any folder that `load` reads lies."""
    if huggingface.is_folder(path):
        return Path(path).absolute()
    return checkpoints.find(path).parents[2]  # RUN/checkpoints/STAGE/STEP


def read_config(path: str | Path):
    """The config of the model in any folder that `load` reads; raises CheckpointError."""
    if huggingface.is_folder(path):
        return huggingface.read_config(path)
    meta = checkpoints.load_meta(checkpoints.find(path))
    return from_description(meta["model"]).config


def load(path: str | Path, *, mesh: Mesh | None = None, dtype: str | None = None):
    """(model, params) from a Hugging Face folder, a run's, a stage's, or one checkpoint's.

    Parameters are laid out on `mesh` (default: all devices on the fsdp axis), adapters merged
    into them. `dtype` ('float32' or 'bfloat16') is that of activations and parameters; by
    default those of a Hugging Face folder keep the type they are stored in, those of
    our checkpoints are float32.
    Raises CheckpointError naming the path, and file and tensor, where nothing readable is
    found, and ValueError for a mesh that a dimension does not divide by.
    """
    mesh = make_mesh() if mesh is None else mesh
    if huggingface.is_folder(path):
        return huggingface.load(path, mesh=mesh, dtype=dtype)
    folder = checkpoints.find(path)
    model = from_description(
        checkpoints.load_meta(folder)["model"], **({"dtype": dtype} if dtype else {})
    )
    return model, load_params(folder, model, mesh, dtype or "float32")


def load_params(path: str | Path, model: Decoder, mesh: Mesh, dtype: str = "float32"):
    """Parameters of `model` from any folder that `load` reads, in `dtype` (routers: float32).

    Raises CheckpointError also where the folder holds another model.
    """
    if huggingface.is_folder(path):
        return huggingface.load(path, mesh=mesh, dtype=dtype, model=model)[1]
    folder = checkpoints.find(path)
    meta = checkpoints.load_meta(folder)
    if lines := differences(from_description(meta["model"]).config, model.config):
        raise CheckpointError(
            f"{folder} holds another model than config.model describes:\n  " + "\n  ".join(lines)
        )
    if "lora" not in meta:
        return checkpoints.load_params(folder, abstract_params(model, mesh, dtype))
    return _adapted(folder, dict(meta["lora"]), model, mesh, dtype)


def _adapted(folder: Path, meta: dict, model: Decoder, mesh: Mesh, dtype: str):
    """The base that a checkpoint of adapters names, with these merged in."""
    base = folder.parents[2] / meta.pop("base")  # an absolute path stays as it is
    if not base.is_dir():
        raise CheckpointError(f"{folder} holds adapters of {base}, which is not there; put it back")
    config = lora.LoraConfig(**meta | {"targets": tuple(meta["targets"])})
    params = load_params(base, model, mesh, dtype)
    _, adapters = jax.eval_shape(lambda p: lora.split(p, config, jax.random.key(0)), params)
    layout = shardings(mesh, adapters, lora.RULES)
    adapters = jax.tree.map(
        lambda s, own: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=own), adapters, layout
    )
    adapters = checkpoints.load_params(folder, adapters)
    layout = jax.tree.map(lambda p: p.sharding, params)
    merged = jax.jit(
        lambda params, adapters: lora.merge(lora.with_adapters(params, adapters, config)),
        donate_argnums=0, out_shardings=layout,
    )  # fmt: skip
    with jax.set_mesh(mesh):  # the caller's may be another
        return merged(params, adapters)
