"""config.json: both spellings, back and forth, and what is refused."""

import dataclasses
import json
from pathlib import Path

import pytest

from r1jax.models.deepseek import DeepseekConfig
from r1jax.models.huggingface_config import from_json, to_json
from r1jax.models.presets import PRESETS
from r1jax.models.rope import RopeScaling
from r1jax.models.transformer import TransformerConfig

FIXTURES = sorted(Path(__file__).with_name("fixtures").glob("*/config.json"))
RAW = {path.parent.name: json.loads(path.read_text()) for path in FIXTURES}

every_preset = pytest.mark.parametrize("name", PRESETS)


def without(raw, *names):
    return {k: v for k, v in raw.items() if k not in names}


def through_a_file(raw):
    return json.loads(json.dumps(raw))


@every_preset
def test_a_preset_comes_back(name):
    assert from_json(through_a_file(to_json(PRESETS[name], "bfloat16"))) == PRESETS[name]


@pytest.mark.parametrize("name", RAW)
def test_a_fixtures_config_comes_back(name):
    config = from_json(RAW[name])
    assert from_json(through_a_file(to_json(config, config.dtype))) == config


VARIANTS = [
    TransformerConfig(9, qkv_bias=False, rope_scaling=RopeScaling("linear", 4.0)),
    TransformerConfig(9, tied=False, norm_eps=1e-3, head_dim=6, rope_theta=7.5, mlp=11),
    TransformerConfig(9, qkv_bias=False, qk_norm=True, context=17, kv_heads=1, dtype="bfloat16"),
    TransformerConfig(
        9, qkv_bias=False, rope_scaling=RopeScaling("llama3", 4.0, 50, 2.0, 3.0), layers=5
    ),
    TransformerConfig(9, rope_scaling=RopeScaling("yarn", 4.0, 50)),
    TransformerConfig(9, rope_scaling=RopeScaling("yarn", 4.0, 50, beta_fast=9.0, beta_slow=2.0)),
    TransformerConfig(
        9, rope_scaling=RopeScaling("yarn", 4.0, 50, mscale=0.7, mscale_all_dim=0.9)
    ),
    TransformerConfig(
        9, rope_scaling=RopeScaling("yarn", 4.0, 50, attention_factor=1.3, truncate=False)
    ),
    DeepseekConfig(9, query_rank=0, shared_experts=0, tied=True),
    DeepseekConfig(
        9, width=10, layers=5, dense_layers=2, heads=3, query_rank=11, kv_rank=12, nope_dim=13,
        rope_dim=14, value_dim=15, mlp=16, expert_mlp=17, experts=18, experts_per_token=7,
        shared_experts=2, groups=6, groups_per_token=3, routed_scale=2.5, normalise_weights=False,
        context=19, rope_theta=20.0, norm_eps=1e-4, dtype="bfloat16",
    ),
]  # fmt: skip


@pytest.mark.parametrize("config", VARIANTS)
def test_every_field_comes_back(config):
    assert from_json(through_a_file(to_json(config, config.dtype))) == config


def test_the_fields_are_where_they_belong():
    # deepseek_v3/config.json, read by hand.
    assert from_json(RAW["deepseek_v3"]) == DeepseekConfig(
        96, width=40, layers=3, dense_layers=1, heads=4, query_rank=24, kv_rank=16, nope_dim=12,
        rope_dim=8, value_dim=10, mlp=56, expert_mlp=12, experts=8, experts_per_token=3,
        shared_experts=2, groups=4, groups_per_token=2, routed_scale=2.5, normalise_weights=True,
        context=16_384, rope_theta=10_000.0, norm_eps=0.01, tied=False, dtype="float32",
    )  # fmt: skip
    # llama3_new/config.json
    assert from_json(RAW["llama3_new"]) == TransformerConfig(
        96, width=48, layers=2, heads=4, kv_heads=2, head_dim=12, mlp=64, context=131_072,
        rope_theta=500_000.0, rope_scaling=RopeScaling("llama3", 8.0, 64, 1.0, 4.0),
        norm_eps=1e-5, qkv_bias=False, qk_norm=False, tied=False, dtype="float32",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "bias", "norm"), [("qwen2_tied", True, False), ("qwen3", False, True)]
)
def test_the_architecture_says_where_biases_and_norms_are(name, bias, norm):
    config = from_json(RAW[name])
    assert (config.qkv_bias, config.qk_norm) == (bias, norm)
    assert to_json(config, "float32")["architectures"] == RAW[name]["architectures"]
    assert to_json(config, "float32")["model_type"] == RAW[name]["model_type"]


# Keys of the fixtures, as published, that change nothing here, or that say where weights end.
UNWRITTEN = {
    "aux_loss_alpha", "bos_token_id", "eos_token_id", "ep_size", "max_window_layers",
    "pad_token_id", "pretraining_tp", "quantization_config", "rope_interleave", "seq_aux",
    "sliding_window", "transformers_version",
}  # fmt: skip
ROPE = {"rope_parameters", "rope_scaling", "rope_theta"}


@pytest.mark.parametrize("name", RAW)
def test_what_is_written_is_what_was_published(name):
    raw = RAW[name]
    written = to_json(from_json(raw), raw.get("torch_dtype") or raw["dtype"])
    shared = raw.keys() - UNWRITTEN - ROPE - {"num_nextn_predict_layers"}
    assert {key: written[key] for key in shared} == {key: raw[key] for key in shared}
    assert written.get("num_nextn_predict_layers", 0) == 0  # that layer is not exported


# --- spellings -------------------------------------------------------------------------


def respelled(raw):
    """In the spelling of transformers 5."""
    rope = {**(raw["rope_scaling"] or {"rope_type": "default"}), "rope_theta": raw["rope_theta"]}
    new = without(raw, "rope_scaling", "rope_theta", "torch_dtype")
    return new | {"rope_parameters": rope, "dtype": raw["torch_dtype"]}


@pytest.mark.parametrize("name", ["llama3_old", "qwen3", "deepseek_v3_yarn_shards_mtp"])
def test_both_spellings_mean_the_same(name):
    assert from_json(respelled(RAW[name])) == from_json(RAW[name])


def test_the_new_spelling_decides_where_both_are_given():
    raw = RAW["llama3_old"] | {"rope_parameters": {"rope_type": "default", "rope_theta": 3.0}}
    raw |= {"dtype": "float32"}  # torch_dtype is bfloat16, rope_scaling of kind llama3
    config = from_json(raw)
    assert (config.rope_theta, config.rope_scaling, config.dtype) == (3.0, None, "float32")


def test_both_spellings_are_written():
    raw = to_json(PRESETS["Llama-3.1-8B"], "bfloat16")
    new = without(raw, "rope_scaling", "rope_theta", "torch_dtype")
    old = without(raw, "rope_parameters", "dtype")
    assert from_json(new) == from_json(old) == PRESETS["Llama-3.1-8B"]
    assert to_json(PRESETS["Qwen3-8B"], "bfloat16")["rope_scaling"] is None


def test_the_kind_of_rope_has_two_names():
    scaling = RAW["llama3_old"]["rope_scaling"]
    old = without(scaling, "rope_type") | {"type": "llama3"}
    both = scaling | {"type": "default"}  # rope_type is the newer one
    wanted = from_json(RAW["llama3_old"])
    assert wanted.rope_scaling.kind == "llama3"
    for settings in (old, both):
        assert from_json(RAW["llama3_old"] | {"rope_scaling": settings}) == wanted


@pytest.mark.parametrize("rope", [None, {}, {"rope_type": "default"}, {"type": "default"}])
def test_plain_rope(rope):
    assert from_json(RAW["llama3_old"] | {"rope_scaling": rope}).rope_scaling is None


def test_theta_is_10000_where_none_is_given():
    assert from_json(without(RAW["llama3_old"], "rope_theta")).rope_theta == 10_000


def test_head_dim_absent_null_or_given():
    raw = without(RAW["qwen3"], "head_dim")  # width 48, 4 heads
    assert from_json(raw).head_dim == from_json(raw | {"head_dim": None}).head_dim == 12
    assert from_json(raw | {"head_dim": 16}).head_dim == 16


def test_as_many_key_heads_as_heads_where_none_are_given():
    raw = without(RAW["llama3_old"], "num_key_value_heads")
    assert from_json(raw).kv_heads == from_json(raw | {"num_key_value_heads": None}).kv_heads == 4


def test_embeddings_are_not_tied_where_nothing_is_said():
    assert not from_json(without(RAW["qwen3"], "tie_word_embeddings")).tied


@pytest.mark.parametrize(
    ("stored", "activations"),
    [("bfloat16", "bfloat16"), ("float32", "float32"), ("float16", "float32"), (None, "float32")],
)
def test_type_of_activations(stored, activations):
    assert from_json(RAW["qwen3"] | {"torch_dtype": stored}).dtype == activations


def test_no_compressed_queries():
    assert from_json(RAW["deepseek_v3"] | {"q_lora_rank": None}).query_rank == 0
    assert to_json(DeepseekConfig(9, query_rank=0), "float32")["q_lora_rank"] is None


def test_no_shared_experts():
    assert from_json(RAW["deepseek_v3"] | {"n_shared_experts": None}).shared_experts == 0


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
PLAIN_YARN = RopeScaling("yarn", 4.0, 4096)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({}, {}),
        ({"beta_fast": 16, "beta_slow": 2}, {"beta_fast": 16.0, "beta_slow": 2.0}),
        ({"mscale": 0.7}, {"mscale": 0.7}),
        ({"mscale_all_dim": 0.9}, {"mscale_all_dim": 0.9}),
        ({"attention_factor": 1.5}, {"attention_factor": 1.5}),
        ({"truncate": False}, {"truncate": False}),
        ({"beta_fast": None, "attention_factor": None, "truncate": None}, {}),
    ],
)
def test_optional_settings_of_yarn(given, meant):
    config = from_json(RAW["qwen2_tied"] | {"rope_scaling": YARN | given})
    assert config.rope_scaling == dataclasses.replace(PLAIN_YARN, **meant)
    assert from_json(through_a_file(to_json(config, "float32"))) == config


def test_yarn_follows_from_the_lengths_where_it_says_less():
    # qwen2_tied has max_position_embeddings 32768 = 8 · 4096.
    scaling = without(YARN, "factor")
    found = from_json(RAW["qwen2_tied"] | {"rope_scaling": scaling}).rope_scaling
    assert found == RopeScaling("yarn", 8.0, 4096)
    scaling = without(YARN, "original_max_position_embeddings")
    found = from_json(RAW["qwen2_tied"] | {"rope_scaling": scaling}).rope_scaling
    assert found == RopeScaling("yarn", 4.0, 32_768)


# --- refused ---------------------------------------------------------------------------

OFF = [
    {"use_sliding_window": False, "sliding_window": 4096},
    {"use_sliding_window": True, "sliding_window": None},
    {"sliding_window": 4096},
    {"layer_types": ["full_attention", "full_attention"]},
]


@pytest.mark.parametrize("settings", OFF)
def test_a_sliding_window_that_is_switched_off_is_ignored(settings):
    raw = without(RAW["qwen3"], "use_sliding_window", "sliding_window")
    assert from_json(raw | settings) == from_json(RAW["qwen3"])


ON = [
    {"use_sliding_window": True, "sliding_window": 4096},
    {"layer_types": ["full_attention", "sliding_attention"]},
]


@pytest.mark.parametrize("settings", ON)
def test_a_sliding_window_that_is_switched_on_is_refused(settings):
    with pytest.raises(ValueError, match="sliding-window attention is not supported.* set use_sl"):
        from_json(RAW["qwen3"] | settings)


SUPPORTED = "supported: Qwen2ForCausalLM, Qwen3ForCausalLM, LlamaForCausalLM, DeepseekV3ForCausalLM"
REFUSED = {
    "architecture": (
        "qwen3",
        {"architectures": ["MistralForCausalLM"]},
        f"architecture MistralForCausalLM is not supported; {SUPPORTED}",
    ),
    "no_architecture": ("qwen3", {"architectures": None}, "architecture none is not supported"),
    "activation": ("qwen3", {"hidden_act": "gelu"}, "hidden_act='gelu'.* only 'silu'"),
    "attention_bias": ("llama3_old", {"attention_bias": True}, "attention_bias=True.* only False"),
    "attention_bias_qwen3": ("qwen3", {"attention_bias": True}, "attention_bias=True"),
    "mlp_bias": ("llama3_old", {"mlp_bias": True}, "mlp_bias=True is not supported, only False"),
    "rope_kind": (
        "llama3_old",
        {"rope_scaling": {"rope_type": "longrope", "factor": 8.0}},
        "rope type 'longrope' is not supported; supported: default, linear, llama3, yarn",
    ),
    "dynamic_rope": (
        "qwen3",
        {"rope_parameters": {"type": "dynamic", "factor": 2.0}},
        "rope type 'dynamic'",
    ),
    "rope_of_a_part": ("llama3_old", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    "rope_of_a_part_new": (
        "llama3_new",
        {"rope_parameters": RAW["llama3_new"]["rope_parameters"] | {"partial_rotary_factor": 0.5}},
        "partial_rotary_factor other than 1 is not supported",
    ),
    "rope_factor": (
        "llama3_old",
        {"rope_scaling": {"rope_type": "linear", "factor": 0.5}},
        "rope factor=0.5 must be at least 1",
    ),
    "activation_deepseek": ("deepseek_v3", {"hidden_act": "relu"}, "hidden_act='relu'"),
    "bias_deepseek": ("deepseek_v3", {"attention_bias": True}, "attention_bias=True"),
    "scores": ("deepseek_v3", {"scoring_func": "softmax"}, "'softmax'.* only 'sigmoid'"),
    "selection": ("deepseek_v3", {"topk_method": "greedy"}, "topk_method='greedy'.*'noaux_tc'"),
    "sparse_now_and_then": ("deepseek_v3", {"moe_layer_freq": 2}, "moe_layer_freq=2.* only 1"),
    "halves": ("deepseek_v3", {"rope_interleave": False}, "rope_interleave=False.* only True"),
    "heads": ("qwen3", {"num_key_value_heads": 3}, "heads=4 is not divisible by kv_heads=3"),
    "groups": ("deepseek_v3", {"n_group": 3}, "experts=8 is not divisible by groups=3"),
}


@pytest.mark.parametrize(("name", "settings", "message"), REFUSED.values(), ids=REFUSED)
def test_what_no_family_computes_is_refused(name, settings, message):
    with pytest.raises(ValueError, match=message):
        from_json(RAW[name] | settings)


@pytest.mark.parametrize("value", [None, False])
def test_a_setting_that_changes_nothing_is_taken(value):
    raw = RAW["llama3_old"] | {"mlp_bias": value, "attention_bias": value}
    raw |= {"partial_rotary_factor": 1.0}
    assert from_json(raw) == from_json(RAW["llama3_old"])


DENSE_KEYS = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "max_position_embeddings", "rms_norm_eps",
)  # fmt: skip
DEEPSEEK_KEYS = (
    *DENSE_KEYS, "first_k_dense_replace", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim",
    "qk_rope_head_dim", "v_head_dim", "moe_intermediate_size", "n_routed_experts",
    "num_experts_per_tok", "n_group", "topk_group", "routed_scaling_factor", "norm_topk_prob",
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "key"),
    [("qwen3", key) for key in DENSE_KEYS] + [("deepseek_v3", key) for key in DEEPSEEK_KEYS],
)
def test_a_missing_key_is_named(name, key):
    with pytest.raises(ValueError, match=f"^{key} is not set$"):
        from_json(without(RAW[name], key))


def test_what_transformers_has_no_architecture_for_is_not_written():
    with pytest.raises(ValueError, match="qkv_bias with qk_norm"):
        to_json(TransformerConfig(9, qkv_bias=True, qk_norm=True), "float32")


# --- transformers ----------------------------------------------------------------------


@every_preset
def test_transformers_reads_what_is_written(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    raw = to_json(PRESETS[name], "bfloat16")
    (tmp_path / "config.json").write_text(json.dumps(raw))
    found = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(found) is transformers.CONFIG_MAPPING[raw["model_type"]]
    fields = found.to_dict()
    old = ("rope_theta", "rope_scaling", "torch_dtype")  # read, and kept under the new names
    wanted = without(raw, *old)
    assert {key: fields[key] for key in wanted} == wanted
    assert from_json(through_a_file(fields)) == PRESETS[name]


@every_preset
def test_transformers_understands_either_spelling(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    raw = to_json(PRESETS[name], "bfloat16")
    read = []
    for left_out in (("rope_parameters", "dtype"), ("rope_theta", "rope_scaling", "torch_dtype")):
        (tmp_path / "config.json").write_text(json.dumps(without(raw, *left_out)))
        read.append(transformers.AutoConfig.from_pretrained(tmp_path).to_dict())
    assert read[0]["rope_parameters"] == read[1]["rope_parameters"] == raw["rope_parameters"]
    assert read[0]["dtype"] == read[1]["dtype"] == "bfloat16"
