"""Weights of Hugging Face folders, to and from our parameters.

Loading goes tensor by tensor, in the order of the files, in chunks of rows straight into
every device's own piece of a parameter: beyond what is loaded, a host holds a few chunks. A
process reads only rows that its devices need. Stacked parameters are filled in place,
layer by layer.

All names and shapes are checked against the headers before anything is read.
"""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from r1jax.checkpoints import CheckpointError
from r1jax.models import safetensors
from r1jax.models.decoder import Decoder
from r1jax.models.families import abstract_params, differences, make_model, parameter_dtype
from r1jax.models.filling import Leaf, Place
from r1jax.models.huggingface_config import from_json, to_json
from r1jax.models.transformer import TransformerConfig
from r1jax.sharding import path_name

READERS = 4  # threads, of which each holds two chunks at most
SHARD_BYTES = 5 * 10**9
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_SCALE = "_scale_inv"  # ends the name of a float8 weight's scales

_SHARED = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "attention/out": "self_attn.o_proj",
    "mlp/gate": "mlp.gate_proj",
    "mlp/up": "mlp.up_proj",
    "mlp/down": "mlp.down_proj",
}
DENSE = _SHARED | {
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/query_norm": "self_attn.q_norm",
    "attention/key_norm": "self_attn.k_norm",
}
DEEPSEEK = _SHARED | {
    "attention/query": "self_attn.q_proj",
    "attention/query_a": "self_attn.q_a_proj",
    "attention/query_norm": "self_attn.q_a_layernorm",
    "attention/query_b": "self_attn.q_b_proj",
    "attention/latent_a": "self_attn.kv_a_proj_with_mqa",
    "attention/latent_norm": "self_attn.kv_a_layernorm",
    "attention/latent_b": "self_attn.kv_b_proj",
    "router": "mlp.gate",
    "experts/gate": "mlp.experts.{expert}.gate_proj",
    "experts/up": "mlp.experts.{expert}.up_proj",
    "experts/down": "mlp.experts.{expert}.down_proj",
    "shared/gate": "mlp.shared_experts.gate_proj",
    "shared/up": "mlp.shared_experts.up_proj",
    "shared/down": "mlp.shared_experts.down_proj",
}
WHOLE = {
    "embed": "model.embed_tokens.weight",
    "unembed": "lm_head.weight",
    "final_norm/scale": "model.norm.weight",
}


def places(model: Decoder) -> dict[str, Place]:
    """Every tensor that a folder of this model holds, by its name there."""
    table = DENSE if isinstance(model.config, TransformerConfig) else DEEPSEEK
    first, at = {}, 0
    for name, stack in model.stacks().items():
        first[name], at = at, at + stack.layers
    found = {}
    for path, shape in _leaves(jax.eval_shape(model.init, jax.random.key(0))).items():
        stack, _, rest = path.partition("/")
        if path in WHOLE:
            turned = path == "unembed"
            found[WHOLE[path]] = Place(path, (), turned, shape.shape[:: -1 if turned else 1])
            continue
        module, _, kind = rest.rpartition("/")
        turned = kind == "kernel"
        name = f"model.layers.{{layer}}.{table[module]}.{_suffix(module, kind)}"
        lead = 2 if module.startswith("experts/") else 1
        own = shape.shape[lead:]
        for index in np.ndindex(shape.shape[:lead]):
            tensor = name.format(layer=first[stack] + index[0], expert=index[-1])
            found[tensor] = Place(path, index, turned, own[:: -1 if turned else 1])
    return found


def _suffix(module: str, kind: str) -> str:
    if kind == "bias":
        return "e_score_correction_bias" if module == "router" else "bias"
    return "weight"


def _leaves(tree) -> dict:
    return {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def is_folder(path: str | Path) -> bool:
    """Whether `path` is laid out as Hugging Face's: weights, or a config.json of a model."""
    path = Path(path)
    if (path / INDEX).is_file() or (path / SINGLE).is_file():
        return True
    try:
        raw = json.loads((path / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(raw, dict) and ("architectures" in raw or "model_type" in raw)


def read_config(folder: str | Path):
    """The config that the folder's config.json means; CheckpointError names file and fault."""
    raw = _raw(Path(folder))
    try:
        return from_json(raw)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise CheckpointError(f"{Path(folder) / 'config.json'}: {error}") from error


def _raw(folder: Path) -> dict:
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: it says what model the weights are of")
    try:
        raw = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} holds a {type(raw).__name__}, not the config of a model")
    return raw


def load(folder: str | Path, *, mesh: Mesh, dtype: str | None = None, model: Decoder | None = None):
    """(model, params) of a folder, laid out on `mesh`.

    `dtype` is that of parameters and activations; by default parameters keep the type
    they are stored in (float8 with scales: bfloat16) and activations the config's.
    Routers are never narrower than stored. Given `model`, the folder must hold that
    model's weights, and `dtype` is that of the parameters alone.
    Raises CheckpointError naming file and tensor for what is missing, unknown or
    misshapen, ValueError for a mesh that a dimension does not divide by.
    """
    folder = Path(folder)
    config = read_config(folder)
    if model is None:
        model = make_model(config)
        if dtype is not None:
            model = make_model(type(config)(**{**config.__dict__, "dtype": dtype}))
    elif lines := differences(config, model.config):
        raise CheckpointError(
            f"{folder} holds another model than config.model describes; its config.json against "
            "config.model:\n  " + "\n  ".join(lines)
        )
    paths, wanted, raw = _files(folder), places(model), _raw(folder)
    found = _catalogue(paths)
    _check(folder, found, wanted, raw)
    block = _block_shape(folder, found, wanted, raw)
    params = abstract_params(model, mesh)
    stored = {}
    for name, place in wanted.items():
        stored.setdefault(place.leaf, set()).add(found[name].dtype)
    leaves = {
        path: Leaf(shape, _leaf_dtype(path, dtype, stored[path]))
        for path, shape in _leaves(params).items()
    }
    with ThreadPoolExecutor(READERS) as pool:
        for path in paths:
            with safetensors.File(path) as file:

                def fill(name, file=file):
                    scale = _scale(file, name, found, block)
                    leaves[wanted[name].leaf].fill(file, name, wanted[name], scale)

                list(pool.map(fill, [name for name in file.shapes if name in wanted]))
    done = {path: leaf.finish() for path, leaf in leaves.items()}
    return model, jax.tree_util.tree_map_with_path(lambda path, _: done[path_name(path)], params)


def _leaf_dtype(path: str, dtype: str | None, stored: set) -> np.dtype:
    if dtype is not None:
        return np.dtype(parameter_dtype(path, dtype))
    wide = [np.dtype(jnp.bfloat16) if d.itemsize == 1 else d for d in stored]
    return np.dtype(jnp.result_type(*wide))


class Entry(NamedTuple):
    """A tensor of a file."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype


def _files(folder: Path) -> list[Path]:
    """The folder's safetensors files; CheckpointError where the index names one that is absent."""
    if (folder / INDEX).is_file():
        try:
            names = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
            paths = [folder / name for name in names]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{folder / INDEX} is no index of tensors: {error!r}") from error
        for path in paths:
            if not path.is_file():
                raise CheckpointError(
                    f"{folder / INDEX} names {path.name}, but {path} is not there; copy or "
                    "download it"
                )
        return paths
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    others = sorted(p.name for p in folder.glob("*.safetensors")) or sorted(
        p.name for p in folder.glob("*.bin")
    )
    there = f"; there is {others[0]}" if others else ""
    raise CheckpointError(
        f"{folder} holds neither {SINGLE} nor {INDEX}{there}. Shards need their index, and weights "
        "of another format converting to safetensors"
    )


def _catalogue(paths: list[Path]) -> dict[str, Entry]:
    """All tensors of the files by name; reads headers only."""
    found = {}
    for path in paths:
        try:
            with safetensors.File(path) as file:
                for name, shape in file.shapes.items():
                    if name in found:
                        raise CheckpointError(f"{name} is both in {found[name].path} and in {path}")
                    found[name] = Entry(path, shape, file.dtypes[name])
        except safetensors.FormatError as error:
            raise CheckpointError(str(error)) from error
    return found


def _check(folder: Path, found: Mapping[str, Entry], wanted: Mapping[str, Place], raw: Mapping):
    """Raises CheckpointError where the files hold not just what is wanted, in its shapes."""
    for name in wanted.keys() & found.keys():
        if found[name].shape != wanted[name].shape:
            raise CheckpointError(
                f"{found[name].path}: {name} has shape {found[name].shape}, but "
                f"{folder}/config.json makes it {wanted[name].shape}"
            )
    if missing := sorted(wanted.keys() - found.keys()):
        paths = {entry.path for entry in found.values()}
        where = paths.pop() if len(paths) == 1 else folder / INDEX
        raise CheckpointError(
            f"{where}: {_some(missing)} missing, of the {len(wanted)} tensors that "
            f"{folder}/config.json asks for"
        )
    unknown = [n for n in sorted(found) if n not in wanted and not _is_left_out(n, wanted, raw)]
    if unknown:
        raise CheckpointError(
            f"{found[unknown[0]].path}: {_some(unknown)} not part of the model that "
            f"{folder}/config.json describes"
        )


def _is_left_out(name: str, wanted: Mapping[str, Place], raw: Mapping) -> bool:
    """Tensors that belong to no forward pass of ours, or to another's weight."""
    layer, layers = re.match(r"model\.layers\.(\d+)\.", name), raw["num_hidden_layers"]
    # DeepSeek's layers for multi-token prediction, which follow the others (V3: one).
    extra = raw.get("num_nextn_predict_layers", 1) if "kv_lora_rank" in raw else 0
    return (
        bool(layer and layers <= int(layer[1]) < layers + extra)
        or name.endswith("rotary_emb.inv_freq")  # computed
        or (name == "lm_head.weight" and name not in wanted)  # tied: the embedding again
        or (name.endswith(_SCALE) and name.removesuffix(_SCALE) in wanted)
    )


def _block_shape(folder: Path, found: Mapping[str, Entry], wanted, raw: Mapping):
    """(rows, columns) that a scale of float8 weights is for; None where no weight is float8.

    Raises CheckpointError for a scale that is missing or misshapen.
    """
    narrow = [name for name in wanted if found[name].dtype.itemsize == 1]
    if not narrow:
        return None
    first = found[narrow[0]]
    block = (raw.get("quantization_config") or {}).get("weight_block_size")
    if not block:
        raise CheckpointError(
            f"{first.path}: {narrow[0]} is {first.dtype}, but {folder}/config.json has no "
            "quantization_config.weight_block_size"
        )
    for name in narrow:
        entry, scale = found[name], found.get(name + _SCALE)
        if len(entry.shape) != 2 or not entry.dtype.name.startswith("float8"):
            raise CheckpointError(
                f"{entry.path}: {name} is {entry.dtype} {entry.shape}; of one-byte types only "
                "matrices of float8 can be read"
            )
        if scale is None:
            raise CheckpointError(
                f"{entry.path}: {name} is {entry.dtype}, but {name}{_SCALE} is missing"
            )
        shape = tuple(-(-n // b) for n, b in zip(entry.shape, block, strict=True))
        if scale.shape != shape:
            raise CheckpointError(
                f"{scale.path}: {name}{_SCALE} has shape {scale.shape}, not {shape}"
            )
    return tuple(block)


def _scale(file: safetensors.File, name: str, found: Mapping[str, Entry], block):
    """(scales, shape of a block) of a float8 matrix, None of any other tensor."""
    if file.dtypes[name].itemsize > 1:
        return None
    path = found[name + _SCALE].path
    if path == file.path:
        return file.read(name + _SCALE).astype(np.float32), block
    with safetensors.File(path) as other:
        return other.read(name + _SCALE).astype(np.float32), block


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more + (" are" if len(names) > 1 else " is")


def save(
    folder: str | Path,
    model: Decoder,
    params,
    *,
    dtype: str | None = None,
    special: Mapping[str, object] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Writes config.json and safetensors of at most 5 GB each, tensor by tensor.

    `dtype` converts (default: every tensor keeps its own). `special` holds the ids of
    special tokens for config.json, `files` what else goes into the folder, which appears
    under its name only when it is complete. Raises ValueError where it is there already, for
    adapters (merge them first), and where no architecture known to transformers fits.
    """
    folder = Path(folder).absolute()
    if folder.exists():
        raise ValueError(f"{folder} exists already; name a folder that does not")
    leaves, wanted = _leaves(params), places(model)
    if unknown := leaves.keys() - {place.leaf for place in wanted.values()}:
        raise ValueError(f"{_some(sorted(unknown))} no part of the model: merge adapters first")
    about = {}
    for name, place in wanted.items():
        own = leaves[place.leaf].dtype
        kept = own if dtype is None else parameter_dtype(place.leaf, dtype)
        about[name] = place.shape, np.dtype(kept)
    widest = str(np.dtype(dtype) if dtype else leaves["embed"].dtype)
    raw = to_json(model.config, widest)
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    raw |= special or {}
    (unfinished / "config.json").write_text(json.dumps(raw, indent=2) + "\n")
    for name, content in (files or {}).items():
        (unfinished / name).write_bytes(content)
    _write_shards(unfinished, about, wanted, leaves)
    unfinished.rename(folder)


def _write_shards(folder: Path, about: Mapping, wanted: Mapping[str, Place], leaves) -> None:
    sizes = {
        name: int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        for name, (shape, dtype) in about.items()
    }
    shards, room = [[]], SHARD_BYTES
    for name, size in sizes.items():
        if shards[-1] and size > room:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(name)
        room -= size
    files = [SINGLE]
    if len(shards) > 1:
        files = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    for file, names in zip(files, shards, strict=True):
        own = {name: about[name] for name in names}
        safetensors.write(folder / file, own, _tensors(own, wanted, leaves))
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(sizes.values())},
            "weight_map": {n: f for f, names in zip(files, shards, strict=True) for n in names},
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _tensors(about: Mapping, wanted: Mapping[str, Place], leaves) -> Iterator[np.ndarray]:
    for name, (_, dtype) in about.items():
        place = wanted[name]
        part = _taken(leaves[place.leaf], place.lead, place.transposed)
        yield np.asarray(jax.device_get(part)).astype(dtype)


@partial(jax.jit, static_argnums=2)
def _taken(leaf, lead, transposed: bool):
    for i in lead:
        leaf = jax.lax.dynamic_index_in_dim(leaf, i, keepdims=False)
    return leaf.T if transposed else leaf
