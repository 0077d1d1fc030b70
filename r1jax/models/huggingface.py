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
from threading import Lock
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from r1jax.checkpoints import CheckpointError
from r1jax.models import safetensors
from r1jax.models.decoder import Decoder
from r1jax.models.families import abstract_params, differences, make_model, parameter_dtype
from r1jax.models.huggingface_config import from_json, to_json
from r1jax.models.transformer import TransformerConfig
from r1jax.sharding import path_name

CHUNK_BYTES = 16 * 2**20
READERS = 4  # threads, of which each holds two chunks at most
SHARD_BYTES = 5 * 10**9
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

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


class Place(NamedTuple):
    """Where a file's tensor belongs: entry `lead` of a parameter, turned over if a matrix."""

    leaf: str
    lead: tuple[int, ...]
    transposed: bool
    shape: tuple[int, ...]  # as in the file


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
    """Whether `path` is laid out as Hugging Face's: a config.json of a model, not of a run."""
    try:
        raw = json.loads((Path(path) / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(raw, dict) and ("architectures" in raw or "model_type" in raw)


def read_config(folder: str | Path):
    """The config that the folder's config.json means; CheckpointError names file and fault."""
    path = Path(folder) / "config.json"
    try:
        return from_json(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error


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
    paths, wanted = _files(folder), places(model)
    stored = _check(folder, paths, wanted, config)
    params = abstract_params(model, mesh)
    leaves = {
        path: _Leaf(shape, _leaf_dtype(path, dtype, stored[path]))
        for path, shape in _leaves(params).items()
    }
    with ThreadPoolExecutor(READERS) as pool:
        for path in paths:
            with safetensors.File(path) as file:

                def fill(name, file=file):
                    scale = _scale(file, name, folder, paths)
                    leaves[wanted[name].leaf].fill(file, name, wanted[name], scale)

                list(pool.map(fill, [name for name in file.shapes if name in wanted]))
    done = {path: leaf.finish() for path, leaf in leaves.items()}
    return model, jax.tree_util.tree_map_with_path(lambda path, _: done[path_name(path)], params)


def _leaf_dtype(path: str, dtype: str | None, stored: set) -> np.dtype:
    if dtype is not None:
        return np.dtype(parameter_dtype(path, dtype))
    wide = [np.dtype(jnp.bfloat16) if d.itemsize == 1 else d for d in stored]
    return np.dtype(jnp.result_type(*wide))


def _files(folder: Path) -> list[Path]:
    """The folder's safetensors files; CheckpointError where the index names one that is absent."""
    if (folder / INDEX).is_file():
        try:
            names = set(json.loads((folder / INDEX).read_text())["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{folder / INDEX} is no index of tensors: {error!r}") from error
        for name in sorted(names):
            if not (folder / name).is_file():
                raise CheckpointError(
                    f"{folder / INDEX} names {name}, but {folder / name} is not there; copy or "
                    "download it"
                )
        return [folder / name for name in sorted(names)]
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    raise CheckpointError(f"{folder} holds neither {SINGLE} nor {INDEX}")


def _check(folder: Path, paths: list[Path], wanted: Mapping[str, Place], config) -> dict[str, set]:
    """Stored dtypes by parameter, after comparing all names and shapes; reads headers only."""
    seen, stored = {}, {}
    for path in paths:
        try:
            with safetensors.File(path) as file:
                for name, shape in file.shapes.items():
                    if name in seen:
                        raise CheckpointError(f"{name} is both in {seen[name]} and in {path}")
                    seen[name] = path
                    if name in wanted:
                        place = wanted[name]
                        if shape != place.shape:
                            raise CheckpointError(
                                f"{path}: {name} has shape {shape}, but {folder}/config.json "
                                f"makes it {place.shape}"
                            )
                        stored.setdefault(place.leaf, set()).add(file.dtypes[name])
        except safetensors.FormatError as error:
            raise CheckpointError(str(error)) from error
    if missing := sorted(wanted.keys() - seen.keys()):
        where = folder / INDEX if len(paths) > 1 else paths[0]
        raise CheckpointError(
            f"{where}: {_some(missing)} missing, of the {len(wanted)} tensors that "
            f"{folder}/config.json asks for"
        )
    unknown = [n for n in sorted(seen) if n not in wanted and not _is_left_out(n, wanted, config)]
    if unknown:
        raise CheckpointError(
            f"{seen[unknown[0]]}: {_some(unknown)} not part of the model that "
            f"{folder}/config.json describes"
        )
    return stored


def _is_left_out(name: str, wanted: Mapping[str, Place], config) -> bool:
    """Tensors that belong to no forward pass of ours, or to another's weight."""
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    return (
        (layer and int(layer[1]) >= config.layers)  # multi-token prediction, for training V3
        or name.endswith("rotary_emb.inv_freq")  # computed
        or (name == "lm_head.weight" and config.tied)
        or (name.endswith("_scale_inv") and name.removesuffix("_scale_inv") in wanted)
    )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more + (" are" if len(names) > 1 else " is")


def _scale(file: safetensors.File, name: str, folder: Path, paths: list[Path]):
    """(scales, shape of a block) of a float8 matrix, None of any other tensor."""
    if file.dtypes[name].itemsize > 1:
        return None
    raw = json.loads((folder / "config.json").read_text()).get("quantization_config") or {}
    block = raw.get("weight_block_size")
    scale = f"{name}_scale_inv"
    if not block:
        raise CheckpointError(
            f"{file.path}: {name} is {file.dtypes[name]}, but {folder}/config.json has no "
            "quantization_config.weight_block_size"
        )
    rows, columns = file.shapes[name]
    shape = (-(-rows // block[0]), -(-columns // block[1]))
    others = [path for path in paths if path != file.path]
    for path in (file.path, *others):  # almost always in the same file
        with safetensors.File(path) as holder:
            if scale in holder.shapes:
                if holder.shapes[scale] != shape:
                    raise CheckpointError(
                        f"{path}: {scale} has shape {holder.shapes[scale]}, not {shape}"
                    )
                return holder.read(scale).astype(np.float32), tuple(block)
    raise CheckpointError(f"{file.path}: {name} is {file.dtypes[name]}, but {scale} is missing")


class _Leaf:
    """A parameter being filled: one buffer for each device of this process.

    On a CPU the buffer is memory of the host, which becomes the device's as it is; on others
    it is the device's own, and chunks are inserted in place.
    """

    def __init__(self, abstract, dtype: np.dtype):
        self.shape, self.sharding = abstract.shape, abstract.sharding
        self.buffers, self.devices_of, self._lock = {}, {}, Lock()
        for device, index in self.sharding.addressable_devices_indices_map(self.shape).items():
            spans = tuple(s.indices(n)[:2] for s, n in zip(index, self.shape, strict=True))
            self.devices_of.setdefault(spans, []).append(device)
            shape = tuple(stop - start for start, stop in spans)
            if device.platform == "cpu":
                self.buffers[device] = _aligned(shape, dtype)
            else:
                self.buffers[device] = jnp.zeros(shape, dtype, device=device)

    def fill(self, file: safetensors.File, name: str, place: Place, scale) -> None:
        """Puts one tensor of a file where it belongs, a chunk of rows at a time."""
        shape = file.shapes[name]
        size = file.dtypes[name].itemsize * int(np.prod(shape[1:], dtype=np.int64))
        step, pending = max(1, CHUNK_BYTES // max(1, size)), []
        pieces = list(self._pieces(place))
        for start in range(0, shape[0], step):
            stop = min(start + step, shape[0])
            if not any(a < stop and start < b for (a, b), *_ in pieces):
                continue
            chunk = file.read(name, start, stop)
            if scale is not None:
                chunk = _dequantised(chunk, start, *scale)
            jax.block_until_ready(pending)  # one chunk is put while the next is read, not more
            pending = []
            for (a, b), columns, lead, devices in pieces:
                low, high = max(a, start), min(b, stop)
                if low >= high:
                    continue
                part, at = chunk[low - start : high - start], (low - a,)
                if columns is not None:
                    part, at = part[:, slice(*columns)], (low - a, 0)
                if place.transposed:
                    part, at = part.T, at[::-1]
                pending += [self._put(device, part, lead, at) for device in devices]
        jax.block_until_ready(pending)

    def _pieces(self, place: Place):
        """(rows, columns, lead in the buffer, devices) of each region, in the file's order."""
        n = len(place.lead)
        for spans, devices in self.devices_of.items():
            if all(a <= i < b for i, (a, b) in zip(place.lead, spans[:n], strict=True)):
                own = spans[n:][:: -1 if place.transposed else 1]
                lead = tuple(i - a for i, (a, _) in zip(place.lead, spans[:n], strict=True))
                yield own[0], own[1] if len(own) > 1 else None, lead, devices

    def _put(self, device, part: np.ndarray, lead: tuple, at: tuple):
        """Puts a part at the corner `at` of entry `lead`; what it returns is ready when it is."""
        buffer = self.buffers[device]
        if isinstance(buffer, np.ndarray):
            region = tuple(slice(i, i + n) for i, n in zip(at, part.shape, strict=True))
            return _copy(buffer[lead][region], part)
        staged = np.empty(part.shape, part.dtype)
        _copy(staged, part)
        staged = jax.device_put(staged, device)
        with self._lock:  # two layers' tensors may be on their way into the one buffer
            self.buffers[device], done = _insert(self.buffers[device], staged, (*lead, *at))
        return done

    def finish(self) -> jax.Array:
        parts = [jax.device_put(b, d, may_alias=True) for d, b in self.buffers.items()]
        return jax.make_array_from_single_device_arrays(self.shape, self.sharding, parts)


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Memory that jax takes over without a copy: it wants 64 bytes."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def _copy(target: np.ndarray, part: np.ndarray) -> None:
    """target[...] = part, which may be turned over: in strips that a cache holds."""
    if target.dtype == part.dtype:  # numpy moves its own types faster than bfloat16
        words = np.dtype(f"u{part.itemsize}")
        target, part = target.view(words), part.view(words)
    if part.ndim == 2 and part.flags.f_contiguous and not part.flags.c_contiguous:
        for at in range(0, part.shape[1], 32):
            target[:, at : at + 32] = part[:, at : at + 32]
    else:
        target[...] = part


def _dequantised(rows: np.ndarray, first: int, scale: np.ndarray, block) -> np.ndarray:
    """float32 values of rows of a block-scaled matrix, of which `first` is the first."""
    i = (first + np.arange(rows.shape[0])) // block[0]
    j = np.arange(rows.shape[1]) // block[1]
    return rows.astype(np.float32) * scale[i[:, None], j[None, :]]


@partial(jax.jit, donate_argnums=0)
def _insert(buffer, part, at):
    """The buffer (its memory taken over) with `part` at `at`, and a number to wait for."""
    part = part.astype(buffer.dtype).reshape((1,) * (buffer.ndim - part.ndim) + part.shape)
    return jax.lax.dynamic_update_slice(buffer, part, at), part.reshape(-1)[0]


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
