"""Low-rank adapters (arXiv:2106.09685): train A and B of W + s A B, keep W.

An adapter is two trainable leaves beside a kernel, `lora_a` [L, in, r] and `lora_b`
[L, r, out], and a constant, `lora_scale` [L] = alpha / rank. `layers.Linear` adds them where
they are in the parameters. B starts at 0: at first the model is the base, exactly.

Parameters are therefore two trees, *frozen* (the base, once in memory for policy and
reference alike) and *trainable* (all that the optimiser and checkpoints see). Without
adapters frozen is empty.
"""

import zlib
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from r1jax.sharding import Rules, path_name
from r1jax.types import Array

# Copied to every device: they are small (rank 32 on a 70B model: 1.6 GB), and no mesh that
# divides the kernels need divide their ranks.
RULES: Rules = ((r"lora_(a|b|scale)$", P()),)


@dataclass(frozen=True)
class LoraConfig:
    """`targets` are names of linear maps ("query", "gate", …), none meaning all.

    Experts of sparse models are never adapted. Rank 0 means no adapters: all is trained.
    """

    rank: int = 0
    alpha: float = 32.0
    targets: tuple[str, ...] = ()

    def __post_init__(self):
        if self.rank < 0:
            raise ValueError(f"rank={self.rank} must not be negative; 0 trains without adapters")
        if not self.alpha > 0:
            raise ValueError(f"alpha={self.alpha} must be positive")


def split(params: dict, config: LoraConfig, key: Array) -> tuple[dict, dict]:
    """(frozen, trainable): new adapters for `params`, or ({}, params) at rank 0.

    A is normal with variance 1/in, a function of (key, path). Raises ValueError for a
    target that no linear map has as its name.
    """
    if not config.rank:
        return {}, params
    kernels = {
        path_name(path).removesuffix("/kernel"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if path_name(path).endswith("/kernel") and leaf.ndim == 3
    }
    kernels = {path: k for path, k in kernels.items() if not path.endswith("router")}
    names = sorted({path.rpartition("/")[2] for path in kernels})
    for target in config.targets:
        if target not in names:
            raise ValueError(
                f"lora.targets: no linear map of this model is called {target!r}; "
                f"there are {', '.join(names)}"
            )
    trainable = {}
    for path, kernel in kernels.items():
        if config.targets and path.rpartition("/")[2] not in config.targets:
            continue
        (L, rows, columns), r = kernel.shape, config.rank
        own = jax.random.fold_in(key, zlib.crc32(path.encode()))
        a = jax.random.normal(own, (L, rows, r)) * rows**-0.5
        _put(trainable, path, {"lora_a": a, "lora_b": jnp.zeros((L, r, columns))})
    return join(params, _scales(trainable, config)), trainable


def _scales(adapters: dict, config: LoraConfig) -> dict:
    """The constant leaf that belongs beside each adapter."""
    if "lora_a" in adapters:
        layers = adapters["lora_a"].shape[0]
        return {"lora_scale": jnp.full((layers,), config.alpha / config.rank)}
    return {name: _scales(inner, config) for name, inner in adapters.items()}


def with_adapters(params: dict, adapters: dict, config: LoraConfig) -> dict:
    """Plain parameters with trained adapters beside their kernels."""
    return join(join(params, _scales(adapters, config)), adapters)


def _put(tree: dict, path: str, leaves: dict) -> None:
    for name in path.split("/"):
        tree = tree.setdefault(name, {})
    tree.update(leaves)


def join(frozen: dict, trainable: dict) -> dict:
    """One tree of the leaves of both; nothing is copied."""
    joined = dict(frozen)
    for name, value in trainable.items():
        both = isinstance(value, dict) and isinstance(joined.get(name), dict)
        joined[name] = join(joined[name], value) if both else value
    return joined


def merge(params: dict) -> dict:
    """Plain parameters: every adapter added into its kernel, which keeps its type."""
    if "lora_a" in params:
        product = jnp.matmul(params["lora_a"], params["lora_b"])
        product = product * params["lora_scale"][:, None, None]
        kernel = params["kernel"]
        rest = {k: v for k, v in params.items() if not k.startswith("lora_")}
        return rest | {"kernel": (kernel.astype(product.dtype) + product).astype(kernel.dtype)}
    return {k: merge(v) if isinstance(v, dict) else v for k, v in params.items()}
