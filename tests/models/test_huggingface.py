"""Folders of Hugging Face: loaded to the bit on any mesh, refused with reasons, exported."""

import dataclasses
import functools
import json
import re
import shutil
import weakref
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import r1jax.models
from r1jax.checkpoints import CheckpointError
from r1jax.models import abstract_params, filling, huggingface, lora
from r1jax.models.safetensors import DTYPES, File
from r1jax.models.transformer import Transformer, TransformerConfig
from r1jax.sharding import make_mesh, path_name

FOLDER = Path(__file__).with_name("fixtures")
NAMES = sorted(p.parent.name for p in FOLDER.glob("*/config.json"))
BLOCK = 16  # weight_block_size of deepseek_v3_fp8

every_fixture = pytest.mark.parametrize("name", NAMES)


@functools.cache
def stored(folder) -> dict[str, np.ndarray]:
    """All tensors of a folder, as the library reads them."""
    found = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        for name, x in safetensors.deserialize(path.read_bytes()):
            found[name] = np.frombuffer(x["data"], DTYPES[x["dtype"]]).reshape(x["shape"])
    return found


def weight(tensors, name):
    """A tensor as it enters a parameter: float8 is made bfloat16."""
    x = tensors[name]
    if x.dtype != jnp.float8_e4m3fn:
        return x
    scale = np.repeat(np.repeat(tensors[f"{name}_scale_inv"], BLOCK, 0), BLOCK, 1)
    return (x.astype(np.float32) * scale[: x.shape[0], : x.shape[1]]).astype(jnp.bfloat16)


@functools.cache
def expected(folder, dtype=None):
    """Parameters of a folder by path. Names are those that the parity tests prove."""
    model = huggingface.make_model(huggingface.read_config(folder))
    found = {}
    for name, place in huggingface.places(model).items():
        x = weight(stored(folder), name)
        found.setdefault(place.leaf, {})[place.lead] = x.T if place.transposed else x
    for leaf, parts in found.items():
        lead = tuple(n + 1 for n in max(parts))
        own = dtype and (jnp.float32 if "router" in leaf else dtype)
        found[leaf] = np.stack([parts[at] for at in sorted(parts)]).reshape(
            lead + parts[max(parts)].shape
        )
        found[leaf] = found[leaf].astype(own or found[leaf].dtype)
    return found


def same_bits(a, b):
    a, b = np.asarray(a), np.asarray(b)
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    assert a.tobytes() == b.tobytes()


def leaves(params):
    return {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(params)}


def check(params, wanted):
    """Every device holds its own piece of what is wanted."""
    params = leaves(params)
    assert params.keys() == wanted.keys()
    for name, x in params.items():
        assert x.shape == wanted[name].shape
        for shard in x.addressable_shards:
            same_bits(shard.data, wanted[name][shard.index])


@functools.cache
def mesh_for(name):
    if name.startswith("deepseek"):
        return make_mesh(fsdp=2, expert=2, tensor=2)
    return make_mesh(fsdp=4, tensor=2)


@functools.cache
def loaded(name, mesh):
    return huggingface.load(FOLDER / name, mesh=mesh)


@pytest.fixture
def folder(tmp_path):
    """A function (name of a fixture): a copy of it, to be changed."""
    return lambda name: Path(shutil.copytree(FOLDER / name, tmp_path / name))


@pytest.fixture(autouse=True)
def noise(monkeypatch):
    """Memory to be filled holds no weights of an earlier test."""
    aligned = filling._aligned

    def spoiled(*args):
        x = aligned(*args)
        x.view(np.uint8).fill(0xA5)
        return x

    monkeypatch.setattr(filling, "_aligned", spoiled)


def edit(folder, **settings):
    raw = json.loads((folder / "config.json").read_text()) | settings
    raw = {k: v for k, v in raw.items() if v is not ...}
    (folder / "config.json").write_text(json.dumps(raw))


def rewrite(path, change):
    """Changes the dict of tensors in a file."""
    found = safetensors.deserialize(path.read_bytes())
    found = {n: np.frombuffer(x["data"], DTYPES[x["dtype"]]).reshape(x["shape"]) for n, x in found}
    change(found)
    path.write_bytes(safetensors.numpy.save({n: np.array(x) for n, x in found.items()}))


def put(**tensors):
    return lambda found: found.update({n.replace("__", "."): x for n, x in tensors.items()})


@pytest.fixture
def reads(monkeypatch):
    """(name, start, stop, bytes) of all that is read from files, but scales."""
    found, read = [], File.read

    def record(self, name, start=0, stop=None):
        x = read(self, name, start, stop)
        if not name.endswith("_scale_inv"):
            found.append((name, start, self.shapes[name][0] if stop is None else stop, x.nbytes))
        return x

    monkeypatch.setattr(File, "read", record)
    return found


@pytest.fixture
def on_device(monkeypatch):
    """Fills parameters as on accelerators; on the first device only."""
    monkeypatch.setattr(filling, "_aligned", jnp.zeros)


# --- loading ---------------------------------------------------------------------------


@every_fixture
def test_one_device_holds_what_is_stored(name, mesh1):
    model, params = loaded(name, mesh1)
    check(params, expected(FOLDER / name))
    assert model.config == huggingface.read_config(FOLDER / name)


@every_fixture
def test_eight_devices_hold_their_pieces_in_the_layout_of_the_rules(name):
    model, params = loaded(name, mesh_for(name))
    check(params, expected(FOLDER / name))
    for x, wanted in zip(
        jax.tree.leaves(params),
        jax.tree.leaves(abstract_params(model, mesh_for(name))),
        strict=True,
    ):
        assert (x.shape, x.sharding) == (wanted.shape, wanted.sharding)


def test_copies_of_the_weights_are_equal():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    _, params = huggingface.load(FOLDER / "qwen3", mesh=mesh)
    check(params, expected(FOLDER / "qwen3"))


@pytest.mark.parametrize("chunk", [1, 64, 1000])
@every_fixture
def test_small_chunks_give_the_same_bits(name, chunk, monkeypatch):
    monkeypatch.setattr(filling, "CHUNK_BYTES", chunk)
    _, params = huggingface.load(FOLDER / name, mesh=mesh_for(name))
    check(params, expected(FOLDER / name))


@pytest.mark.parametrize("rows", [31, 32, 33, 55])
def test_chunks_of_any_number_of_rows(rows, mesh1, monkeypatch):
    # The matrices have up to 56 rows of 32 float32; they are turned over in strips of 32 rows.
    monkeypatch.setattr(filling, "CHUNK_BYTES", rows * 32 * 4)
    _, params = huggingface.load(FOLDER / "qwen2_tied", mesh=mesh1)
    check(params, expected(FOLDER / "qwen2_tied"))


@pytest.mark.parametrize("readers", [1, 4])
@pytest.mark.parametrize("name", ["qwen2_untied_bf16_shards", "deepseek_v3_fp8"])
def test_accelerators_are_filled_chunk_by_chunk(name, readers, mesh1, on_device, monkeypatch):
    monkeypatch.setattr(filling, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(huggingface, "READERS", readers)
    _, params = huggingface.load(FOLDER / name, mesh=mesh1)
    check(params, expected(FOLDER / name))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", ["qwen2_tied", "qwen3", "deepseek_v3", "deepseek_v3_fp8"])
def test_a_type_of_ones_own(name, dtype, mesh1):
    model, params = huggingface.load(FOLDER / name, mesh=mesh1, dtype=dtype)
    if name.endswith("fp8") and dtype == "float32":
        return check_float32_of_float8(params)
    check(params, expected(FOLDER / name, dtype))
    assert model.config.dtype == dtype


def check_float32_of_float8(params):
    """The product of value and scale, not rounded."""
    tensors = stored(FOLDER / "deepseek_v3_fp8")
    name = "model.layers.2.mlp.experts.5.down_proj.weight"  # second sparse layer; 44 x 20
    scale = tensors[f"{name}_scale_inv"]
    wanted = np.empty((44, 20), np.float32)
    for i, j in np.ndindex(wanted.shape):
        wanted[i, j] = np.float32(tensors[name][i, j]) * scale[i // BLOCK, j // BLOCK]
    same_bits(params["blocks"]["experts"]["down"]["kernel"][1, 5], wanted.T)


def test_stored_types(mesh1):
    def types(name):
        return {path: str(x.dtype) for path, x in leaves(loaded(name, mesh1)[1]).items()}

    assert set(types("qwen3").values()) == {"bfloat16"}
    assert set(types("qwen2_tied").values()) == {"float32"}
    float8 = types("deepseek_v3_fp8")
    assert float8.pop("blocks/router/bias") == "float32"
    assert set(float8.values()) == {"bfloat16"}


def test_routers_are_never_narrowed(mesh1):
    _, params = huggingface.load(FOLDER / "deepseek_v3", mesh=mesh1, dtype="bfloat16")
    for kind in ("kernel", "bias"):
        same_bits(
            params["blocks"]["router"][kind],
            expected(FOLDER / "deepseek_v3")[f"blocks/router/{kind}"],
        )
    assert params["blocks"]["mlp_norm"]["scale"].dtype == jnp.bfloat16


def test_the_wider_of_two_stored_types(folder, mesh1):
    path = folder("qwen3")
    name = "model.layers.1.mlp.up_proj.weight"
    rewrite(path / "model.safetensors", lambda x: x.update({name: x[name].astype(np.float32) / 3}))
    _, params = huggingface.load(path, mesh=mesh1)
    up = params["blocks"]["mlp"]["up"]["kernel"]
    assert up.dtype == jnp.float32
    same_bits(up[1], stored(path)[name].T)
    same_bits(up[0], stored(path)["model.layers.0.mlp.up_proj.weight"].T.astype(np.float32))
    assert params["blocks"]["mlp"]["gate"]["kernel"].dtype == jnp.bfloat16


def test_neither_of_two_stored_types_holds_the_other(folder, mesh1):
    path = folder("qwen3")
    name = "model.layers.1.mlp.up_proj.weight"  # layer 0 is in bfloat16
    rewrite(path / "model.safetensors", lambda x: x.update({name: x[name].astype(np.float16)}))
    _, params = huggingface.load(path, mesh=mesh1)
    same_bits(params["blocks"]["mlp"]["up"]["kernel"][1], stored(path)[name].T.astype(np.float32))


def test_float16_is_kept_for_parameters_and_not_for_activations(folder, mesh1):
    path = folder("qwen2_tied")
    rewrite(
        path / "model.safetensors",
        lambda found: found.update({n: x.astype(np.float16) for n, x in found.items()}),
    )
    edit(path, torch_dtype="float16")
    model, params = huggingface.load(path, mesh=mesh1)
    check(params, expected(path))
    assert params["embed"].dtype == jnp.float16
    assert model.config.dtype == "float32"


def test_a_type_that_activations_cannot_have_is_refused(mesh1):
    with pytest.raises(ValueError, match="dtype='float16' must be 'float32' or 'bfloat16'"):
        huggingface.load(FOLDER / "qwen3", mesh=mesh1, dtype="float16")


@pytest.mark.parametrize("chunk", [1, 2**20])
def test_scales_in_another_file(folder, chunk, monkeypatch):
    path = folder("deepseek_v3_fp8")
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    tensors = stored(FOLDER / "deepseek_v3_fp8")
    (path / "model.safetensors").unlink()
    for i, shard in enumerate(shards):
        part = {n: x for n, x in tensors.items() if n.endswith("_scale_inv") == bool(i)}
        (path / shard).write_bytes(safetensors.numpy.save(part))
    where = {n: shards[n.endswith("_scale_inv")] for n in tensors}
    (path / huggingface.INDEX).write_text(json.dumps({"weight_map": where}))
    monkeypatch.setattr(filling, "CHUNK_BYTES", chunk)
    _, params = huggingface.load(path, mesh=mesh_for("deepseek_v3_fp8"))
    check(params, expected(FOLDER / "deepseek_v3_fp8"))


def test_models_load_takes_a_folder_on_all_devices():
    model, params = r1jax.models.load(FOLDER / "qwen3")
    assert model.config == r1jax.models.read_config(FOLDER / "qwen3")
    assert params["embed"].sharding.mesh.shape["fsdp"] == 8
    check(params, expected(FOLDER / "qwen3"))


def test_parameters_of_a_model_that_is_given(mesh1):
    """What does not change its weights may differ."""
    config = dataclasses.replace(
        huggingface.read_config(FOLDER / "deepseek_v3"),
        context=7, remat=True, balance_rate=0.1, dtype="bfloat16",
    )  # fmt: skip
    model = huggingface.make_model(config)
    params = r1jax.models.load_params(FOLDER / "deepseek_v3", model, mesh1)
    check(params, expected(FOLDER / "deepseek_v3"))
    params = r1jax.models.load_params(FOLDER / "deepseek_v3", model, mesh1, "bfloat16")
    check(params, expected(FOLDER / "deepseek_v3", "bfloat16"))


# --- what is read ----------------------------------------------------------------------


@pytest.mark.parametrize("on", ["one device", "eight devices"])
@every_fixture
def test_every_row_is_read_once_in_the_order_of_the_file(name, on, reads, mesh1, monkeypatch):
    monkeypatch.setattr(filling, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(huggingface, "READERS", 1)
    mesh = mesh1 if on == "one device" else mesh_for(name)
    model, _ = huggingface.load(FOLDER / name, mesh=mesh)
    at = {}
    for tensor, start, stop, size in reads:
        assert at.get(tensor, 0) == start < stop
        assert size <= 1000 or stop == start + 1  # or a single row that is longer
        at[tensor] = stop
    places = huggingface.places(model)
    tensors = {n: x for n, x in stored(FOLDER / name).items() if n in places}
    assert at == {n: x.shape[0] for n, x in tensors.items()}
    order = []
    for path in sorted((FOLDER / name).glob("*.safetensors")):
        with safetensors.safe_open(path, "numpy") as file:
            order += [n for n in file.offset_keys() if n in tensors]
    assert list(at) == order
    # 1000 bytes are used: no more reads than it takes.
    rows = {n: max(1, 1000 // (x.nbytes // x.shape[0])) for n, x in tensors.items()}
    assert len(reads) == sum(-(-x.shape[0] // rows[n]) for n, x in tensors.items())


def test_rows_that_no_device_here_needs_are_not_read(reads, monkeypatch):
    """A process with the first of eight devices: half of the experts, half of most matrices."""
    name = "deepseek_v3"
    _, params = loaded(name, mesh_for(name))
    reads.clear()
    everywhere = jax.sharding.NamedSharding.addressable_devices_indices_map

    def here(self, shape):
        return {d: at for d, at in everywhere(self, shape).items() if d.id == 0}

    held = []

    def keep(self):
        ((device, buffer),) = self.buffers.items()
        held.append((buffer, everywhere(self.sharding, self.shape)[device]))

    monkeypatch.setattr(jax.sharding.NamedSharding, "addressable_devices_indices_map", here)
    monkeypatch.setattr(filling.Leaf, "finish", keep)
    monkeypatch.setattr(filling, "CHUNK_BYTES", 1)
    huggingface.load(FOLDER / name, mesh=mesh_for(name))
    wanted = expected(FOLDER / name)
    for (buffer, index), path in zip(held, leaves(params), strict=True):
        same_bits(buffer, wanted[path][index])
    rows = {}
    for tensor, start, _, _ in reads:
        rows.setdefault(tensor, []).append(start)
    experts = {int(m[1]) for n in rows if (m := re.search(r"experts\.(\d+)\.", n))}
    assert experts == {0, 1, 2, 3}  # of 8 on expert=2
    prefix = "model.layers.1."
    # Rows of the file are outputs: of `gate` [in/fsdp, out/tensor] the first half of 12, of
    # `down` [in/tensor, out/fsdp] the first half of 40; of query_a all 24 (only inputs are cut).
    assert rows[f"{prefix}mlp.experts.0.gate_proj.weight"] == list(range(6))
    assert rows[f"{prefix}mlp.experts.0.down_proj.weight"] == list(range(20))
    assert rows[f"{prefix}self_attn.q_a_proj.weight"] == list(range(24))
    assert rows[f"{prefix}mlp.gate.weight"] == list(range(8))
    assert rows["model.norm.weight"] == list(range(40))
    assert rows["lm_head.weight"] == list(range(48))  # 96 words on tensor=2


@pytest.mark.parametrize("readers", [1, 4])
def test_every_reader_holds_two_chunks_at_most(readers, mesh1, monkeypatch):
    alive, most, read = set(), [0], File.read

    def record(self, *args):
        x = read(self, *args)
        alive.add(id(x))
        weakref.finalize(x, alive.discard, id(x))
        most[0] = max(most[0], len(alive))
        return x

    monkeypatch.setattr(File, "read", record)
    monkeypatch.setattr(filling, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(huggingface, "READERS", readers)
    huggingface.load(FOLDER / "qwen2_tied", mesh=mesh1)
    assert most[0] <= 2 * readers


def test_an_accelerator_is_waited_for_before_more_is_put(mesh1, on_device, monkeypatch):
    """A chunk may be on its way while the next is read, and no more."""
    events, read, wait, insert = [], File.read, jax.block_until_ready, filling._insert

    def recorded(kind, call):
        def run(*args):
            if kind != "wait" or jax.tree.leaves(args):
                events.append(kind)
            return call(*args)

        return run

    monkeypatch.setattr(File, "read", recorded("read", read))
    monkeypatch.setattr(jax, "block_until_ready", recorded("wait", wait))
    monkeypatch.setattr(filling, "_insert", recorded("insert", insert))
    monkeypatch.setattr(huggingface, "READERS", 1)
    monkeypatch.setattr(filling, "CHUNK_BYTES", 1000)
    huggingface.load(FOLDER / "qwen2_tied", mesh=mesh1)
    under_way = 0
    for event in events:
        under_way = 0 if event == "wait" else under_way + (event == "insert")
        assert under_way <= 1
    assert events.count("insert") == events.count("read") > 100
    assert "insert read" in " ".join(events)  # it is not idle while a chunk is put


@every_fixture
def test_a_parameter_is_not_copied_once_it_is_filled(name, mesh1, monkeypatch):
    """On a CPU a parameter is the very memory that was filled."""
    made, aligned = [], filling._aligned

    def record(*args):
        made.append(aligned(*args))
        return made[-1]

    monkeypatch.setattr(filling, "_aligned", record)
    _, params = huggingface.load(FOLDER / name, mesh=mesh1)
    filled = {x.ctypes.data for x in made}
    assert {x.unsafe_buffer_pointer() for x in jax.tree.leaves(params)} == filled


def test_an_error_of_a_reader_is_raised(mesh1, monkeypatch):
    def fail(self, name, *args):
        if "layers.1.mlp.up" in name:
            raise OSError(5, "Input/output error")
        return read(self, name, *args)

    read = File.read
    monkeypatch.setattr(File, "read", fail)
    with pytest.raises(OSError, match="Input/output error"):
        huggingface.load(FOLDER / "qwen2_tied", mesh=mesh1)


# --- what is left out ------------------------------------------------------------------


def test_layers_for_multi_token_prediction_are_left_out(reads, mesh1):
    name = "deepseek_v3_yarn_shards_mtp"
    _, params = huggingface.load(FOLDER / name, mesh=mesh1)
    assert params["blocks"]["mlp_norm"]["scale"].shape[0] == 2  # of 3 layers one is dense
    assert any(n.startswith("model.layers.3.") for n in stored(FOLDER / name))
    assert not [n for n, *_ in reads if n.startswith("model.layers.3.")]


@pytest.mark.parametrize(
    "extra", ["model.layers.0.self_attn.rotary_emb.inv_freq", "lm_head.weight"]
)
def test_what_is_computed_or_tied_is_left_out(extra, folder, reads, mesh1):
    path = folder("qwen2_tied")
    rewrite(path / "model.safetensors", lambda x: x.update({extra: np.ones((96, 32), np.float32)}))
    _, params = huggingface.load(path, mesh=mesh1)
    check(params, expected(FOLDER / "qwen2_tied"))
    assert extra in stored(path)
    assert extra not in [name for name, *_ in reads]


# --- bad input -------------------------------------------------------------------------


@pytest.fixture
def unread(monkeypatch):
    """No tensor may be read."""

    def fail(*_):
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(File, "read", fail)


SHARD = "model-00002-of-00004.safetensors"
UP = "model.layers.1.mlp.up_proj.weight"
FLOAT8 = "model.layers.2.mlp.experts.5.down_proj.weight"


def settings(**changes):
    return lambda path: edit(path, **changes)


def tensors(change, file="model.safetensors"):
    return lambda path: rewrite(path / file, change)


def cut(path):
    shard = path / SHARD
    shard.write_bytes(shard.read_bytes()[:-100])


def text(name, content):
    return lambda path: (path / name).write_text(content)


def remove(*names):
    def change(found):
        for name in names:
            del found[name]

    return change


def twice(path):
    x = stored(FOLDER / "qwen2_untied_bf16_shards")["model.norm.weight"]
    rewrite(path / SHARD, lambda found: found.update({"model.norm.weight": x}))


def a_layer_more(found):
    found |= {
        n.replace("layers.1.", "layers.2."): x for n, x in found.items() if "layers.1." in n
    }  # fmt: skip


# fixture, how it is broken, what the message says
BAD = {
    "architecture": (
        "qwen3",
        settings(architectures=["GPT2LMHeadModel"]),
        ["config.json: architecture GPT2LMHeadModel is not supported", "supported: Qwen2ForCausal"],
    ),
    "rope": (
        "llama3_old",
        settings(rope_scaling={"rope_type": "longrope"}),
        ["config.json: rope type 'longrope' is not supported"],
    ),
    "key": ("qwen3", settings(hidden_size=...), ["config.json: hidden_size is not set"]),
    "value": ("qwen3", settings(hidden_size="48"), ["config.json: "]),
    "tensor_missing": (
        "qwen2_tied",
        tensors(remove(UP)),
        # 2 layers of 12, embedding, norm
        [f"model.safetensors: {UP} is missing, of the 26 tensors", "config.json asks for"],
    ),
    "tensors_missing": (
        "qwen2_tied",
        tensors(lambda found: [found.pop(n) for n in list(found) if "layers.1." in n]),
        ["input_layernorm.weight, ", "and 9 more are missing"],
    ),
    "tensor_missing_in_shards": (
        "qwen2_untied_bf16_shards",
        tensors(remove("model.layers.0.mlp.up_proj.weight"), SHARD),
        ["model.safetensors.index.json: model.layers.0.mlp.up_proj.weight is missing"],
    ),
    "untied_without_unembedding": (
        "qwen2_tied",
        settings(tie_word_embeddings=False),
        ["model.safetensors: lm_head.weight is missing"],
    ),
    "tensor_unknown": (
        "qwen2_tied",
        tensors(put(model__layers__0__self_attn__o_proj__bias=np.zeros(32, np.float32))),
        ["model.safetensors: model.layers.0.self_attn.o_proj.bias is not part of the model"],
    ),
    "layer_unknown": (
        "qwen2_tied",
        tensors(a_layer_more),
        ["model.safetensors: model.layers.2.input_layernorm.weight, ", "and 9 more are not part"],
    ),
    "bias_of_another_architecture": (
        "qwen2_tied",
        settings(architectures=["LlamaForCausalLM"]),
        ["model.layers.0.self_attn.k_proj.bias, ", "and 3 more are not part of the model"],
    ),
    "tensor_transposed": (
        "qwen2_tied",
        tensors(lambda found: found.update({UP: found[UP].T.copy()})),
        [f"model.safetensors: {UP} has shape (32, 56), but ", "config.json makes it (56, 32)"],
    ),
    "vocabulary": (
        "qwen3",
        settings(vocab_size=97),
        ["model.embed_tokens.weight has shape (96, 48), but ", "makes it (97, 48)"],
    ),
    "shard_absent": (
        "qwen2_untied_bf16_shards",
        lambda path: (path / SHARD).unlink(),
        [f"model.safetensors.index.json names {SHARD}, but ", "is not there; copy or download it"],
    ),
    "shard_cut": ("qwen2_untied_bf16_shards", cut, [f"{SHARD} is truncated: "]),
    "not_downloaded": (
        "qwen2_tied",
        text("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2\n"),
        ["model.safetensors is no safetensors file"],
    ),
    "index_cut": (
        "qwen2_untied_bf16_shards",
        text("model.safetensors.index.json", '{"weight_map": {"a'),
        ["model.safetensors.index.json is no index of tensors"],
    ),
    "index_a_list": (
        "qwen2_untied_bf16_shards",
        text("model.safetensors.index.json", "[]"),
        ["model.safetensors.index.json is no index of tensors"],
    ),
    "index_without_map": (
        "qwen2_untied_bf16_shards",
        text("model.safetensors.index.json", '{"metadata": {}}'),
        ["model.safetensors.index.json is no index of tensors"],
    ),
    "index_of_numbers": (
        "qwen2_untied_bf16_shards",
        text("model.safetensors.index.json", '{"weight_map": {"lm_head.weight": 1}}'),
        ["model.safetensors.index.json is no index of tensors"],
    ),
    "tensor_in_two_files": (
        "qwen2_untied_bf16_shards",
        twice,
        ["model.norm.weight is both in ", SHARD, "and in ", "model-00004-of-00004.safetensors"],
    ),
    "no_weights": (
        "qwen3",
        lambda path: (path / "model.safetensors").unlink(),
        ["qwen3 holds neither model.safetensors nor model.safetensors.index.json"],
    ),
    "config_absent": ("qwen3", lambda path: (path / "config.json").unlink(), ["config.json"]),
    "config_cut": ("qwen3", text("config.json", '{"architectures": ["Qwen3'), ["config.json: "]),
    "config_a_list": ("qwen3", text("config.json", "[]"), ["config.json"]),
    "block_size": (
        "deepseek_v3_fp8",
        settings(quantization_config=...),
        ["model.safetensors: model.layers.", ".weight is float8_e4m3fn, but ",
         "config.json has no quantization_config.weight_block_size"],
    ),
    "scale": (
        "deepseek_v3_fp8",
        tensors(remove(f"{FLOAT8}_scale_inv")),
        [f"model.safetensors: {FLOAT8} is float8_e4m3fn, but {FLOAT8}_scale_inv is missing"],
    ),
    "scale_misshapen": (
        "deepseek_v3_fp8",
        tensors(lambda x: x.update({f"{FLOAT8}_scale_inv": np.ones((2, 3), np.float32)})),
        # 44 x 20 in blocks of 16
        [f"model.safetensors: {FLOAT8}_scale_inv has shape (2, 3), not (3, 2)"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "spoil", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_named_before_anything_is_read(name, spoil, message, folder, mesh1, unread):
    path = folder(name)
    spoil(path)
    with pytest.raises(CheckpointError) as caught:
        huggingface.load(path, mesh=mesh1)
    for part in (str(path), *message):
        assert part in str(caught.value)


def test_a_config_that_is_cut_is_named_by_models_load(folder, mesh1):
    path = folder("qwen3")
    (path / "config.json").write_text('{"architectures": ["Qwen3')
    with pytest.raises(CheckpointError, match="config.json"):
        r1jax.models.load(path, mesh=mesh1)
    with pytest.raises(CheckpointError, match="config.json"):
        r1jax.models.read_config(path)


def test_a_mesh_that_a_dimension_does_not_divide_by(unread):
    # One head of keys, 10 wide, on tensor=8.
    with pytest.raises(ValueError) as caught:
        huggingface.load(FOLDER / "qwen2_untied_bf16_shards", mesh=make_mesh(fsdp=1, tensor=8))
    assert "attention/key/" in str(caught.value)
    assert "dimension 10 is not divisible by 8 (mesh axes tensor=8)" in str(caught.value)
    assert "use a mesh whose axes divide it (config.mesh)" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"layers": 3}, "layers: 2 -> 3"),
        ({"rope_theta": 1e4}, "rope_theta: 1000000.0 -> 10000.0"),
        ({"norm_eps": 1e-5}, "norm_eps: 1e-06 -> 1e-05"),
    ],
)
def test_weights_of_another_model(changes, line, mesh1, unread):
    config = dataclasses.replace(huggingface.read_config(FOLDER / "qwen3"), **changes)
    with pytest.raises(CheckpointError, match="qwen3 holds another model than config.model") as e:
        r1jax.models.load_params(FOLDER / "qwen3", Transformer(config), mesh1)
    assert e.value.args[0].splitlines()[1:] == [f"  {line}"]


def test_weights_of_another_family(mesh1, unread):
    model = Transformer(huggingface.read_config(FOLDER / "qwen3"))
    with pytest.raises(CheckpointError, match="family: DeepseekConfig -> TransformerConfig"):
        r1jax.models.load_params(FOLDER / "deepseek_v3", model, mesh1)


# --- export ----------------------------------------------------------------------------


@pytest.mark.parametrize("on", ["one device", "eight devices"])
@every_fixture
def test_an_export_comes_back(name, on, mesh1, tmp_path):
    mesh = mesh1 if on == "one device" else mesh_for(name)
    model, params = loaded(name, mesh)
    huggingface.save(tmp_path / "export", model, params)
    assert {p.name for p in (tmp_path / "export").iterdir()} == {"config.json", "model.safetensors"}
    again, read = huggingface.load(tmp_path / "export", mesh=mesh1)
    assert again.config == model.config
    check(read, expected(FOLDER / name))


@pytest.mark.parametrize("name", [n for n in NAMES if "fp8" not in n])
def test_an_export_holds_the_tensors_that_were_read(name, mesh1, tmp_path):
    model, params = loaded(name, mesh1)
    huggingface.save(tmp_path / "export", model, params)
    wanted = {n: x for n, x in stored(FOLDER / name).items() if "layers.3." not in n}  # MTP
    found = stored(tmp_path / "export")
    assert found.keys() == wanted.keys()
    for tensor, x in found.items():
        same_bits(x, wanted[tensor])


def test_an_export_in_several_files(mesh1, tmp_path, monkeypatch):
    limit = 20_000
    monkeypatch.setattr(huggingface, "SHARD_BYTES", limit)
    model, params = loaded("deepseek_v3", mesh1)
    path = tmp_path / "export"
    huggingface.save(path, model, params)
    index = json.loads((path / "model.safetensors.index.json").read_text())
    found, sizes = {}, []
    for file in sorted(path.glob("*.safetensors")):
        read = safetensors.numpy.load_file(file)
        assert not read.keys() & found.keys()
        found |= dict.fromkeys(read, file.name)
        with safetensors.safe_open(file, "numpy") as opened:
            first = read[opened.offset_keys()[0]].nbytes
        assert not sizes or sizes[-1] + first > limit  # it has no place in the file before
        sizes.append(sum(x.nbytes for x in read.values()))
    assert found == index["weight_map"]
    assert sorted(set(found.values())) == [
        f"model-{i + 1:05}-of-{len(sizes):05}.safetensors" for i in range(len(sizes))
    ]
    assert sum(sizes) == index["metadata"]["total_size"]
    assert sum(sizes) == sum(x.nbytes for x in stored(FOLDER / "deepseek_v3").values())
    assert max(sizes) <= limit  # the largest tensor has 96 x 40 x 4 = 15,360 bytes
    _, again = huggingface.load(path, mesh=mesh1)
    check(again, expected(FOLDER / "deepseek_v3"))


@pytest.mark.parametrize(("less", "files"), [(0, 1), (1, 2)])
def test_a_file_may_be_full(less, files, mesh1, tmp_path, monkeypatch):
    total = sum(x.nbytes for x in stored(FOLDER / "qwen2_tied").values())
    monkeypatch.setattr(huggingface, "SHARD_BYTES", total - less)
    huggingface.save(tmp_path / "export", *loaded("qwen2_tied", mesh1))
    assert len(list((tmp_path / "export").glob("*.safetensors"))) == files


def test_a_tensor_larger_than_a_file_should_be_has_one_to_itself(mesh1, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface, "SHARD_BYTES", 1)
    model, params = loaded("qwen2_tied", mesh1)
    huggingface.save(tmp_path / "export", model, params)
    assert len(list((tmp_path / "export").glob("*.safetensors"))) == 26
    check(huggingface.load(tmp_path / "export", mesh=mesh1)[1], expected(FOLDER / "qwen2_tied"))


def test_an_existing_folder_is_left_alone(mesh1, tmp_path):
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(ValueError, match=f"{tmp_path} exists already; name a folder that does not"):
        huggingface.save(tmp_path, *loaded("qwen3", mesh1))
    assert [p.read_text() for p in tmp_path.iterdir()] == ["kept"]


def test_an_export_that_was_interrupted_is_none(mesh1, tmp_path, monkeypatch):
    write, calls = huggingface.safetensors.write, []

    def fail(path, *args):
        calls.append(path)
        write(path, *args)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")

    folder, (model, params) = tmp_path / "export", loaded("qwen2_tied", mesh1)
    with monkeypatch.context() as patch:
        patch.setattr(huggingface, "SHARD_BYTES", 10_000)
        patch.setattr(huggingface.safetensors, "write", fail)
        with pytest.raises(OSError, match="No space"):
            huggingface.save(folder, model, params)
    assert not folder.exists()
    assert any(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=str(folder)):
        r1jax.models.load(folder, mesh=mesh1)
    huggingface.save(folder, model, params)  # in its place, with nothing of it
    assert [p.name for p in tmp_path.iterdir()] == ["export"]
    assert {p.name for p in folder.iterdir()} == {"config.json", "model.safetensors"}
    check(huggingface.load(folder, mesh=mesh1)[1], expected(FOLDER / "qwen2_tied"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", ["deepseek_v3", "qwen3"])
def test_an_export_in_another_type(name, dtype, mesh1, tmp_path):
    model, params = loaded(name, mesh1)
    huggingface.save(tmp_path / "export", model, params, dtype=dtype)
    again, read = huggingface.load(tmp_path / "export", mesh=mesh1)
    check(read, expected(FOLDER / name, dtype))
    assert again.config.dtype == dtype
    raw = json.loads((tmp_path / "export/config.json").read_text())
    assert (raw["dtype"], raw["torch_dtype"]) == (dtype, dtype)


def test_the_config_names_the_type_that_was_stored(mesh1, tmp_path):
    # Activations in float32, parameters in bfloat16.
    model, params = loaded("qwen3", mesh1)
    model = Transformer(dataclasses.replace(model.config, dtype="float32"))
    huggingface.save(tmp_path / "export", model, params)
    assert json.loads((tmp_path / "export/config.json").read_text())["dtype"] == "bfloat16"


def test_files_and_special_tokens_go_along(mesh1, tmp_path):
    special = {"eos_token_id": [1, 2], "pad_token_id": 0}
    huggingface.save(
        tmp_path / "deep/export", *loaded("qwen3", mesh1), special=special,
        files={"tokenizer.json": b"{}"},
    )  # fmt: skip
    raw = json.loads((tmp_path / "deep/export/config.json").read_text())
    assert {k: raw[k] for k in special} == special
    assert (tmp_path / "deep/export/tokenizer.json").read_bytes() == b"{}"
    assert huggingface.is_folder(tmp_path / "deep/export")


def test_adapters_are_refused(mesh1, tmp_path):
    model, params = loaded("qwen2_tied", mesh1)
    split = lora.split(params, lora.LoraConfig(rank=2, targets=("query",)), jax.random.key(0))
    with pytest.raises(ValueError, match="attention/query/lora_a, .*lora_b, .*merge adapters fir"):
        huggingface.save(tmp_path / "export", model, lora.join(*split))
    assert not list(tmp_path.iterdir())


def test_a_model_without_an_architecture_leaves_nothing_behind(random_params, tmp_path):
    model = Transformer(TransformerConfig(16, width=8, layers=1, qkv_bias=True, qk_norm=True))
    with pytest.raises(ValueError, match="no architecture that transformers knows"):
        huggingface.save(tmp_path / "export", model, random_params(model))
    assert not list(tmp_path.iterdir())


def test_a_folder_of_a_run_is_none_of_a_model(tmp_path):
    assert huggingface.is_folder(FOLDER / "qwen3")
    assert not huggingface.is_folder(tmp_path)
    for content in ("{", "[]", '{"stages": ["sft"]}', '["architectures"]'):
        (tmp_path / "config.json").write_text(content)
        assert not huggingface.is_folder(tmp_path)
