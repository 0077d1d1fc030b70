"""The model families by name, and what is the same for all of them."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from r1jax.models.decoder import Decoder
from r1jax.models.deepseek import Deepseek, DeepseekConfig
from r1jax.models.transformer import Transformer, TransformerConfig
from r1jax.sharding import path_name, shardings

CONFIGS = {"dense": TransformerConfig, "deepseek": DeepseekConfig}
MODELS = {TransformerConfig: Transformer, DeepseekConfig: Deepseek}
Config = TransformerConfig | DeepseekConfig

# What may differ between two configs of the same weights.
FREE = ("context", "dtype", "remat", "balance_rate")


def make_model(config: Config) -> Decoder:
    return MODELS[type(config)](config)


def describe(model: Decoder) -> dict:
    """The model as JSON: its family's name and its config."""
    family = next(name for name, cls in CONFIGS.items() if cls is type(model.config))
    return {"family": family, **dataclasses.asdict(model.config)}


def from_description(description: Mapping, **changes) -> Decoder:
    """The model that `describe` described, with `changes` to its config."""
    settings = {**description, **changes}
    return make_model(CONFIGS[settings.pop("family", "dense")](**settings))


def differences(a: Config, b: Config) -> list[str]:
    """`name: value -> value` for all that makes weights of `a` no weights of `b`."""
    if type(a) is not type(b):
        return [f"family: {type(a).__name__} -> {type(b).__name__}"]
    return [
        f"{f.name}: {getattr(a, f.name)!r} -> {getattr(b, f.name)!r}"
        for f in dataclasses.fields(a)
        if f.name not in FREE and getattr(a, f.name) != getattr(b, f.name)
    ]


def parameter_dtype(path: str, dtype) -> jnp.dtype:
    """`dtype`, or float32 for a router: rounding it would send tokens to other experts."""
    return jnp.dtype(jnp.float32 if "router" in path else dtype)


def abstract_params(model: Decoder, mesh: Mesh, dtype: str = "float32"):
    """Shapes, types and layouts of the model's parameters, without making them.

    Raises ValueError for a dimension that its mesh axes do not divide.
    """
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(
        lambda path, s, layout: jax.ShapeDtypeStruct(
            s.shape, parameter_dtype(path_name(path), dtype), sharding=layout
        ),
        shapes, shardings(mesh, shapes, model.rules),
    )  # fmt: skip
