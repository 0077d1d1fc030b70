"""Writes fixtures/: small random checkpoints in Hugging Face's formats, and their logits.

    python tests/models/make_fixtures.py [NAME ...]

Made with transformers 5.23.0, torch 2.13.0 (CPU) and safetensors 0.8.0, which only this
script needs. With these versions it writes the same checkpoints to the bit.

A fixture is config.json, model*.safetensors, and reference.npz: logits that transformers
computes in float32 with eager attention from the files as they lie there.

    padded_tokens_BT, padded_mask_BT (1 real, 0 padding), padded_logits_BTV (0 at padding)
        a full row, one left-padded by 4, one left-padded by 7, one right-padded by 5
    long_tokens_BT, long_logits_BTV (the last 8 positions only)
        one row, longer than the context that rope scaling starts from
    far_tokens_BT, far_positions_BT, far_logits_BTV
        one row whose positions jump, up to 2000
    step_tokens_BT, step_logits_BTV
        decoded with transformers' cache: 4 tokens at once, then one at a time
"""

import json
import math
import shutil
import sys
import tempfile
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, logging

FOLDER = Path(__file__).with_name("fixtures")
# In float32 an angle of 2000 radians is off by up to 1e-4, and implementations differ by as
# much; at 100,000 it is 8e-3, and agreement of the logits would depend on rounding (`check_far`).
FAR = [1000, 1001, 1003, 1040, 1200, 1500, 1999, 2000]
PADDING = [(0, 0), (4, 0), (7, 0), (0, 5)]  # left, right


# config.json in the spelling of the published checkpoints; shapes and scaling are smaller.

QWEN2 = dict(
    architectures=["Qwen2ForCausalLM"], attention_dropout=0.0, bos_token_id=0, eos_token_id=1,
    hidden_act="silu", hidden_size=32, initializer_range=0.02, intermediate_size=56,
    max_position_embeddings=32768,
    max_window_layers=1, sliding_window=5, use_sliding_window=False,  # 5 is to be ignored
    model_type="qwen2", num_attention_heads=4, num_hidden_layers=2, num_key_value_heads=2,
    rms_norm_eps=1e-6, rope_theta=1000000.0, tie_word_embeddings=True, torch_dtype="float32",
    transformers_version="4.43.1", use_cache=True, vocab_size=96,
)  # fmt: skip

QWEN3 = dict(
    architectures=["Qwen3ForCausalLM"], attention_bias=False, attention_dropout=0.0,
    bos_token_id=0, eos_token_id=1, head_dim=16, hidden_act="silu", hidden_size=48,
    initializer_range=0.02, intermediate_size=64, max_position_embeddings=40960,
    max_window_layers=2, model_type="qwen3", num_attention_heads=4, num_hidden_layers=2,
    num_key_value_heads=2, rms_norm_eps=1e-6, rope_scaling=None, rope_theta=1000000,
    sliding_window=None, tie_word_embeddings=True, torch_dtype="bfloat16",
    transformers_version="4.51.0", use_cache=True, use_sliding_window=False, vocab_size=96,
)  # fmt: skip

LLAMA3 = dict(
    architectures=["LlamaForCausalLM"], attention_bias=False, attention_dropout=0.0,
    bos_token_id=0, eos_token_id=[1, 2], hidden_act="silu", hidden_size=48,
    initializer_range=0.02, intermediate_size=64, max_position_embeddings=131072, mlp_bias=False,
    model_type="llama", num_attention_heads=4, num_hidden_layers=2, num_key_value_heads=2,
    pretraining_tp=1, rms_norm_eps=1e-5,
    rope_scaling=dict(
        factor=8.0, high_freq_factor=4.0, low_freq_factor=1.0,
        original_max_position_embeddings=64, rope_type="llama3",
    ),
    rope_theta=500000.0, tie_word_embeddings=True, torch_dtype="bfloat16",
    transformers_version="4.45.0", use_cache=True, vocab_size=96,
)  # fmt: skip

# No head_dim and no rope_interleave. The latents' norms have eps 1e-6 whatever rms_norm_eps is.
DEEPSEEK = dict(
    architectures=["DeepseekV3ForCausalLM"], attention_bias=False, attention_dropout=0.0,
    aux_loss_alpha=0.001, bos_token_id=0, eos_token_id=1, ep_size=1, first_k_dense_replace=1,
    hidden_act="silu", hidden_size=40, initializer_range=0.02, intermediate_size=56,
    kv_lora_rank=16, max_position_embeddings=16384, model_type="deepseek_v3",
    moe_intermediate_size=12, moe_layer_freq=1, n_group=4, n_routed_experts=8,
    n_shared_experts=1, norm_topk_prob=True, num_attention_heads=4, num_experts_per_tok=3,
    num_hidden_layers=3, num_key_value_heads=4, num_nextn_predict_layers=1, pretraining_tp=1,
    q_lora_rank=24, qk_nope_head_dim=12, qk_rope_head_dim=8, rms_norm_eps=1e-6,
    rope_scaling=None, rope_theta=10000, routed_scaling_factor=2.5, scoring_func="sigmoid",
    seq_aux=True, tie_word_embeddings=False, topk_group=2, topk_method="noaux_tc",
    torch_dtype="bfloat16", transformers_version="4.33.1", use_cache=True, v_head_dim=10,
    vocab_size=96,
)  # fmt: skip

# Frequency 0 and 1 of 8 stay, 2 to 5 are blended, 6 and 7 are divided by 40; flooring and
# ceiling the ends of the ramp (1.3 and 5.3) matters.
YARN = dict(
    beta_fast=32, beta_slow=1, factor=40, mscale=1.0, mscale_all_dim=1.0,
    original_max_position_embeddings=600, type="yarn",
)  # fmt: skip

FP8 = dict(activation_scheme="dynamic", fmt="e4m3", quant_method="fp8", weight_block_size=[16, 16])

# name: (config.json, how it is written). Seeds are the first that `check_routing` accepts.
FIXTURES = {
    "qwen2_tied": (QWEN2, {}),
    "qwen2_untied_bf16_shards": (
        QWEN2
        | dict(
            hidden_size=40, num_hidden_layers=3, num_key_value_heads=1, tie_word_embeddings=False,
            rms_norm_eps=1e-2, torch_dtype="bfloat16",
        ),
        dict(shards=4),
    ),
    "qwen3": (QWEN3, {}),
    "llama3_old": (LLAMA3, {}),
    "llama3_new": (
        LLAMA3 | dict(tie_word_embeddings=False, head_dim=12, torch_dtype="float32"),
        dict(rewrite=True),
    ),
    "deepseek_v3": (
        DEEPSEEK
        | dict(
            n_shared_experts=2, rms_norm_eps=1e-2, rope_interleave=True, torch_dtype="float32",
        ),
        dict(seed=1),
    ),
    # Groups of three: a group's score is the sum of its two best experts, not of all.
    "deepseek_v3_yarn_shards_mtp": (
        DEEPSEEK
        | dict(
            n_routed_experts=12, qk_rope_head_dim=16, rope_theta=1000, rope_scaling=YARN,
            max_position_embeddings=24000,
        ),
        dict(shards=3, mtp=True, long=640, seed=4),
    ),
    "deepseek_v3_fp8": (
        DEEPSEEK
        | dict(
            hidden_size=44, moe_intermediate_size=20, num_nextn_predict_layers=0,
            quantization_config=FP8,
        ),
        {},
    ),
}  # fmt: skip


# Weights


def published_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Names and shapes as transformers writes them: one tensor an expert, as published."""
    with tempfile.TemporaryDirectory() as folder:
        build(config).save_pretrained(folder)
        tensors = load_file(f"{folder}/model.safetensors")
    shapes = {name: tuple(x.shape) for name, x in tensors.items()}
    if config["tie_word_embeddings"]:
        shapes.pop("lm_head.weight", None)
    return shapes


def build(config: dict):
    plain = {k: v for k, v in config.items() if k not in ("quantization_config", "model_type")}
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model(config["model_type"], **json.loads(json.dumps(plain))),
        dtype=torch.float32,
    )


def mtp_shapes(config: dict, shapes: dict) -> dict[str, tuple[int, ...]]:
    """The layer after the last, for multi-token prediction: a block, and six tensors more."""
    D, V, last = config["hidden_size"], config["vocab_size"], config["num_hidden_layers"]
    old, new = f"model.layers.{last - 1}.", f"model.layers.{last}."
    block = {new + name[len(old) :]: s for name, s in shapes.items() if name.startswith(old)}
    own = dict(
        embed_tokens=(V, D), enorm=(D,), hnorm=(D,), eh_proj=(D, 2 * D),
    ) | {"shared_head.norm": (D,), "shared_head.head": (V, D)}  # fmt: skip
    return block | {f"{new}{name}.weight": shape for name, shape in own.items()}


def values(name: str, shape: tuple[int, ...], config: dict, rng: torch.Generator) -> torch.Tensor:
    """Float32 weights with which every parameter matters and logits have a deviation above 1."""
    x = torch.randn(shape, generator=rng)
    if name.endswith("e_score_correction_bias"):
        # Raised until all selection scores are positive: some versions of transformers mask
        # groups with 0, others with -inf, which is the same then (`check_routing`). A constant
        # in all of them changes no selection.
        return 0.4 + 0.15 * x
    if name.endswith("bias"):
        return 0.3 * x
    if len(shape) == 1:
        return 1 + 0.3 * x
    if name.endswith(("embed_tokens.weight", "lm_head.weight")):
        # As small as in real checkpoints, where eps matters; tied, it makes the logits too.
        small = name.startswith("model") and not config["tie_word_embeddings"]
        return (0.02 if small else 1.6 / math.sqrt(shape[-1])) * x
    x = x / math.sqrt(shape[-1])
    if name.endswith("kv_a_proj_with_mqa.weight"):
        # Latents are small, so that the eps of their norm matters; rotary keys have none.
        rank = config["kv_lora_rank"]
        return torch.cat([0.2 * x[:rank], x[rank:]])
    if name.endswith("q_a_proj.weight"):
        return 0.2 * x
    if name.endswith(("q_proj.weight", "k_proj.weight", "q_b_proj.weight", "gate.weight")):
        return 1.5 * x  # attention and routing that are far from uniform
    return x


def stored(name: str, x: torch.Tensor, config: dict) -> dict[str, torch.Tensor]:
    """The tensors that a checkpoint holds for one parameter."""
    if name.endswith("e_score_correction_bias"):
        return {name: x}  # float32 in every published checkpoint
    x = x.to(getattr(torch, config["torch_dtype"]))
    if "quantization_config" not in config or not is_quantized(name):
        return {name: x.contiguous()}
    height, width = config["quantization_config"]["weight_block_size"]
    rows, columns = x.shape
    quantized = torch.empty(rows, columns, dtype=torch.float8_e4m3fn)
    scale = torch.empty(math.ceil(rows / height), math.ceil(columns / width))
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            at = (slice(i * height, (i + 1) * height), slice(j * width, (j + 1) * width))
            scale[i, j] = x[at].abs().max().float() / torch.finfo(torch.float8_e4m3fn).max
            quantized[at] = (x[at].float() / scale[i, j]).to(torch.float8_e4m3fn)
    return {name: quantized, f"{name}_scale_inv": scale}


def is_quantized(name: str) -> bool:
    return "_proj" in name and name.endswith(".weight")  # not the router, norms, embeddings


def dequantized(tensors: dict, config: dict) -> dict[str, torch.Tensor]:
    height, width = config["quantization_config"]["weight_block_size"]
    out = {}
    for name, x in tensors.items():
        if x.dtype == torch.float8_e4m3fn:
            scale = tensors[f"{name}_scale_inv"].repeat_interleave(height, 0)
            scale = scale.repeat_interleave(width, 1)[: x.shape[0], : x.shape[1]]
            x = x.float() * scale
        if not name.endswith("_scale_inv"):
            out[name] = x
    return out


def write_tensors(folder: Path, tensors: dict, shards: int):
    """Tensors in order of their names, cut into files of about equal size."""
    metadata = {"format": "pt"}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata)
        return
    sizes = np.cumsum([x.nbytes for x in tensors.values()])
    shard = np.minimum(sizes * shards // (sizes[-1] + 1), shards - 1)
    where = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = {n: x for (n, x), s in zip(tensors.items(), shard, strict=True) if s == i}
        save_file(part, folder / file, metadata)
        where |= dict.fromkeys(part, file)
    assert len(set(where.values())) == shards and len(where) == len(tensors)
    index = {"metadata": {"total_size": int(sizes[-1])}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


# Reference logits


def load(folder: Path):
    """The checkpoint as transformers reads it."""
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    last = f"model.layers.{model.config.num_hidden_layers}."
    assert not report["missing_keys"] and not report["mismatched_keys"], report
    assert all(name.startswith(last) for name in report["unexpected_keys"]), report
    return model.eval()


def reference(model, long: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    out = {}

    def tokens(name, *shape):
        out[f"{name}_tokens_BT"] = rng.integers(0, model.config.vocab_size, shape).astype(np.int32)
        return torch.tensor(out[f"{name}_tokens_BT"], dtype=torch.int64)

    rows, mask = tokens("padded", len(PADDING), 12), np.ones((len(PADDING), 12), np.int32)
    for row, (left, right) in zip(mask, PADDING, strict=True):
        row[:left], row[12 - right :] = 0, 0
    out["padded_mask_BT"] = mask
    mask = torch.tensor(mask, dtype=torch.int64)
    logits = model(rows, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
    out["padded_logits_BTV"] = (logits * mask[:, :, None]).numpy()

    out["long_logits_BTV"] = model(tokens("long", 1, long)).logits[:, -8:].numpy()

    rows, positions = tokens("far", 1, len(FAR)), torch.tensor([FAR])
    out["far_positions_BT"] = positions.numpy().astype(np.int32)
    out["far_logits_BTV"] = model(rows, position_ids=positions).logits.numpy()

    rows, parts, cache = tokens("step", 2, 10), [], None
    for piece in torch.split(rows, [4] + [1] * 6, dim=1):
        step = model(piece, past_key_values=cache, use_cache=True)
        cache = step.past_key_values
        parts.append(step.logits)
    out["step_logits_BTV"] = torch.cat(parts, dim=1).numpy()
    return out


# Checks that a fixture tests what it is for


def relative(a, b) -> float:
    return float(np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(np.asarray(b)).max())


def check_reference(model, data: dict):
    deviation = {k: float(v.std()) for k, v in data.items() if k.endswith("logits_BTV")}
    assert min(deviation.values()) > 0.9, deviation
    # A cache changes nothing.
    rows = torch.tensor(data["step_tokens_BT"], dtype=torch.int64)
    assert relative(data["step_logits_BTV"], model(rows).logits) < 1e-5


def check_bands(model):
    """All three kinds of frequency are there: as they were, blended, divided by the factor."""
    rope = model.config.rope_parameters
    if rope["rope_type"] == "default":
        return
    config = json.loads(model.config.to_json_string())
    config |= dict(rope_parameters=dict(rope_type="default", rope_theta=rope["rope_theta"]))
    plain = build(config).model.rotary_emb.inv_freq.double()
    ratio = (plain / model.model.rotary_emb.inv_freq.double()).numpy()
    kept, divided = np.abs(ratio - 1) < 1e-6, np.abs(ratio / rope["factor"] - 1) < 1e-6
    print(f"  wavelengths are multiplied by {np.round(ratio, 2)}")
    assert kept.any() and divided.any() and not (kept | divided).all()


def check_mscale(model, data: dict):
    """Yarn's softmax scale is applied, and seen in the logits."""
    rope = model.config.rope_parameters
    if rope["rope_type"] != "yarn":
        return
    assert model.model.rotary_emb.attention_scaling == 1  # mscale / mscale_all_dim
    layers = [layer.self_attn for layer in model.model.layers]
    plain, scaled = layers[0].qk_head_dim ** -0.5, layers[0].scaling
    assert math.isclose(scaled / plain, (0.1 * math.log(rope["factor"]) + 1) ** 2)
    for layer in layers:
        layer.scaling = plain
    without = model(torch.tensor(data["step_tokens_BT"], dtype=torch.int64)).logits
    for layer in layers:
        layer.scaling = scaled
    difference = relative(without, data["step_logits_BTV"])
    print(f"  without the softmax scale logits differ by {difference:.2g}")
    assert difference > 0.02


@contextmanager
def float64_angles(model, seed: int):
    """Positions times frequencies in float64, with frequencies that are off by one rounding."""
    rotary, rng = model.model.rotary_emb, np.random.default_rng(seed)
    noise = torch.tensor(rng.choice([-1.0, 1.0], rotary.inv_freq.shape) * 2.0**-23)

    def forward(x, position_ids):
        angle = position_ids[..., None].double() * (rotary.inv_freq.double() * (1 + noise))
        angle = torch.cat([angle, angle], dim=-1)
        scale = rotary.attention_scaling
        return (angle.cos() * scale).float(), (angle.sin() * scale).float()

    rotary.forward = forward
    yield
    del rotary.forward


def check_far(model, data: dict):
    """How angles are rounded moves the logits by far less than the tests' tolerance of 2e-4."""
    rows = torch.tensor(data["far_tokens_BT"], dtype=torch.int64)
    worst = 0.0
    for seed in range(4):
        with float64_angles(model, seed):
            logits = model(rows, position_ids=torch.tensor([FAR])).logits
        worst = max(worst, relative(logits, data["far_logits_BTV"]))
    print(f"  other roundings of the angles move far logits by {worst:.2g}")
    assert worst < 1e-4


@contextmanager
def routing_margins(model):
    """Collects, over all tokens: lowest selection score, narrowest choice of groups, of experts."""
    config, margins, handles = model.config, [], []

    def gap(scores, k):
        ordered = scores.sort(dim=-1, descending=True).values
        return float((ordered[:, k - 1] - ordered[:, k]).min())

    def hook(router, _, output):
        scores = output[0].sigmoid() + router.e_score_correction_bias
        grouped = scores.reshape(len(scores), config.n_group, -1)
        groups = grouped.topk(2).values.sum(-1)
        best = groups.topk(config.topk_group).indices
        candidates = grouped.gather(1, best[:, :, None].expand(-1, -1, grouped.shape[-1]))
        experts = gap(candidates.flatten(1), config.num_experts_per_tok)
        margins.append((float(scores.min()), gap(groups, config.topk_group), experts))

    for name, module in model.named_modules():
        if name.endswith("mlp.gate"):
            handles.append(module.register_forward_hook(hook))
    yield margins
    for handle in handles:
        handle.remove()


def check_routing(margins: list):
    """Rounding decides no choice of experts, and neither does what other groups are masked with."""
    if not margins:
        return
    lowest, groups, experts = np.min(margins, axis=0)
    print(
        f"  lowest score {lowest:.2g}, narrowest choice: group {groups:.2g}, expert {experts:.2g}"
    )
    assert lowest > 0.01 and min(groups, experts) > 1e-4


@torch.no_grad()
def make(name: str):
    config, how = FIXTURES[name]
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    seed = zlib.crc32(name.encode()) + how.get("seed", 0)
    rng = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)

    shapes = published_shapes(config)
    if how.get("mtp"):
        shapes |= mtp_shapes(config, shapes)
    tensors = {}
    for parameter, shape in sorted(shapes.items()):
        tensors |= stored(parameter, values(parameter, shape, config, rng), config)
    write_tensors(folder, tensors, how.get("shards", 1))
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if how.get("rewrite"):  # in the spelling of transformers 5
        AutoConfig.from_pretrained(folder).save_pretrained(folder)

    print(f"{name}: {sum(x.numel() for x in tensors.values()):,} numbers")
    if "quantization_config" in config:
        with tempfile.TemporaryDirectory() as plain:
            write_tensors(Path(plain), dequantized(tensors, config), 1)
            readable = {k: v for k, v in config.items() if k != "quantization_config"}
            (Path(plain) / "config.json").write_text(json.dumps(readable))
            model = load(Path(plain))
    else:
        model = load(folder)
    with routing_margins(model) as margins:
        data = reference(model, how.get("long", 130), np.random.default_rng(seed))
    np.savez_compressed(folder / "reference.npz", **data)
    check_reference(model, data)
    check_bands(model)
    check_mscale(model, data)
    check_far(model, data)
    check_routing(margins)


if __name__ == "__main__":
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for name in sys.argv[1:] or FIXTURES:
        make(name)
    files = [p for p in FOLDER.rglob("*") if p.is_file()]
    print(f"{sum(p.stat().st_size for p in files) / 1e6:.2f} MB")
