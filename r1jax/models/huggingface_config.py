"""config.json of Hugging Face folders, to and from the configs of our families.

Two spellings are about: rope settings as `rope_theta` and `rope_scaling`, or both in
`rope_parameters`; the type as `torch_dtype` or `dtype`. Both are read, the new one is
written. What a family here does not compute is refused, never ignored.
"""

from collections.abc import Mapping

from r1jax.models.deepseek import DeepseekConfig
from r1jax.models.families import Config
from r1jax.models.rope import KINDS, RopeScaling
from r1jax.models.transformer import TransformerConfig

DENSE = ("Qwen2ForCausalLM", "Qwen3ForCausalLM", "LlamaForCausalLM")
DEEPSEEK = "DeepseekV3ForCausalLM"
ARCHITECTURES = (*DENSE, DEEPSEEK)
ROPE_TYPES = ("default", *KINDS)


def from_json(raw: Mapping) -> Config:
    """The config that a folder's config.json means; ValueError says what is not supported."""
    names = raw.get("architectures") or ["none"]
    architecture = names[0]
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"architecture {architecture} is not supported; supported: {', '.join(ARCHITECTURES)}"
        )
    method = (raw.get("quantization_config") or {}).get("quant_method", "fp8")
    if method != "fp8":
        raise ValueError(
            f"quantization_config.quant_method={method!r} is not supported, only 'fp8'; take the "
            "weights before quantisation"
        )
    try:
        return _deepseek(raw) if architecture == DEEPSEEK else _dense(raw, architecture)
    except KeyError as error:
        raise ValueError(f"{error.args[0]} is not set") from error


def _refuse(raw: Mapping, **wanted) -> None:
    for name, value in wanted.items():
        if raw.get(name, value) not in (value, None):
            raise ValueError(f"{name}={raw[name]!r} is not supported, only {value!r}")


def _dense(raw: Mapping, architecture: str) -> TransformerConfig:
    _refuse(raw, hidden_act="silu", attention_bias=False, mlp_bias=False)
    _no_sliding_window(raw)
    heads = raw["num_attention_heads"]
    theta, scaling = _rope(raw)
    return TransformerConfig(
        vocabulary=raw["vocab_size"],
        width=raw["hidden_size"],
        layers=raw["num_hidden_layers"],
        heads=heads,
        kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
        mlp=raw["intermediate_size"],
        rope_theta=theta,
        rope_scaling=scaling,
        qkv_bias=architecture == "Qwen2ForCausalLM",
        qk_norm=architecture == "Qwen3ForCausalLM",
        **_common(raw),
    )


def _no_sliding_window(raw: Mapping) -> None:
    """A window that is switched off is no window, whatever size it would have."""
    sliding = raw.get("use_sliding_window", False) and raw.get("sliding_window")
    kinds = set(raw.get("layer_types") or ["full_attention"])
    if sliding or kinds != {"full_attention"}:
        raise ValueError(
            "sliding-window attention is not supported; where sequences stay shorter than "
            "sliding_window it changes nothing: set use_sliding_window to false, drop layer_types"
        )


def _deepseek(raw: Mapping) -> DeepseekConfig:
    _refuse(
        raw, hidden_act="silu", attention_bias=False, scoring_func="sigmoid",
        topk_method="noaux_tc", moe_layer_freq=1, rope_interleave=True,
    )  # fmt: skip
    theta, scaling = _rope(raw)
    return DeepseekConfig(
        vocabulary=raw["vocab_size"],
        width=raw["hidden_size"],
        layers=raw["num_hidden_layers"],
        dense_layers=raw["first_k_dense_replace"],
        heads=raw["num_attention_heads"],
        query_rank=raw["q_lora_rank"] or 0,
        kv_rank=raw["kv_lora_rank"],
        nope_dim=raw["qk_nope_head_dim"],
        rope_dim=raw["qk_rope_head_dim"],
        value_dim=raw["v_head_dim"],
        mlp=raw["intermediate_size"],
        expert_mlp=raw["moe_intermediate_size"],
        experts=raw["n_routed_experts"],
        experts_per_token=raw["num_experts_per_tok"],
        shared_experts=raw.get("n_shared_experts") or 0,
        groups=raw["n_group"],
        groups_per_token=raw["topk_group"],
        routed_scale=float(raw["routed_scaling_factor"]),
        normalise_weights=raw["norm_topk_prob"],
        rope_theta=theta,
        rope_scaling=scaling,
        **_common(raw),
    )


def _common(raw: Mapping) -> dict:
    dtype = raw.get("dtype") or raw.get("torch_dtype")
    return {
        "context": raw["max_position_embeddings"],
        "norm_eps": float(raw["rms_norm_eps"]),
        "tied": bool(raw.get("tie_word_embeddings", False)),
        # float16 has no place among the activation types here: float32 holds all of its values.
        "dtype": "bfloat16" if dtype == "bfloat16" else "float32",
    }


def _rope(raw: Mapping) -> tuple[float, RopeScaling | None]:
    """(theta, scaling) of either spelling."""
    settings = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    theta = float(settings.get("rope_theta") or raw.get("rope_theta") or 10_000.0)
    name = settings.get("rope_type") or settings.get("type") or "default"
    if name not in ROPE_TYPES:
        raise ValueError(f"rope type {name!r} is not supported; supported: {', '.join(ROPE_TYPES)}")
    for place in (raw, settings):
        if place.get("partial_rotary_factor", 1) not in (1, None):
            raise ValueError("partial_rotary_factor other than 1 is not supported")
    if name == "default":
        return theta, None
    original = settings.get("original_max_position_embeddings") or raw["max_position_embeddings"]
    factor = settings.get("factor") or raw["max_position_embeddings"] / original
    given = {"kind": name, "factor": float(factor)}
    if name != "linear":
        given["original_context"] = original
    known = {
        "llama3": ("low_freq_factor", "high_freq_factor"),
        "yarn": ("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor"),
        "linear": (),
    }
    given |= {k: float(settings[k]) for k in known[name] if settings.get(k) is not None}
    if name == "yarn" and settings.get("truncate") is not None:
        given["truncate"] = bool(settings["truncate"])
    return theta, RopeScaling(**given)


def to_json(config: Config, dtype: str) -> dict:
    """A config.json for weights of `dtype`; ValueError where no known architecture fits."""
    write = _deepseek_json if isinstance(config, DeepseekConfig) else _dense_json
    return write(config) | {
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "rope_parameters": _rope_json(config),
        # Before transformers 5 these two were read instead.
        "rope_theta": config.rope_theta,
        "rope_scaling": _rope_json(config) if config.rope_scaling else None,
        "dtype": dtype,
        "torch_dtype": dtype,
        "initializer_range": 0.02,
        "use_cache": True,
    }


def _dense_json(c: TransformerConfig) -> dict:
    if c.qkv_bias and c.qk_norm:
        raise ValueError("qkv_bias with qk_norm is no architecture that transformers knows")
    family = "qwen2" if c.qkv_bias else "qwen3" if c.qk_norm else "llama"
    raw = {
        "architectures": [f"{family.capitalize()}ForCausalLM"],
        "model_type": family,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
    }
    return raw | ({"mlp_bias": False} if family == "llama" else {"use_sliding_window": False})


def _deepseek_json(c: DeepseekConfig) -> dict:
    return {
        "architectures": [DEEPSEEK],
        "model_type": "deepseek_v3",
        "num_key_value_heads": c.heads,
        "first_k_dense_replace": c.dense_layers,
        "q_lora_rank": c.query_rank or None,
        "kv_lora_rank": c.kv_rank,
        "qk_nope_head_dim": c.nope_dim,
        "qk_rope_head_dim": c.rope_dim,
        "v_head_dim": c.value_dim,
        "moe_intermediate_size": c.expert_mlp,
        "n_routed_experts": c.experts,
        "num_experts_per_tok": c.experts_per_token,
        "n_shared_experts": c.shared_experts,
        "n_group": c.groups,
        "topk_group": c.groups_per_token,
        "routed_scaling_factor": c.routed_scale,
        "norm_topk_prob": c.normalise_weights,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "moe_layer_freq": 1,
        "num_nextn_predict_layers": 0,
    }


def _rope_json(c: Config) -> dict:
    s, theta = c.rope_scaling, c.rope_theta
    if s is None:
        return {"rope_type": "default", "rope_theta": theta}
    raw = {"rope_type": s.kind, "rope_theta": theta, "factor": s.factor}
    if s.kind != "linear":
        raw["original_max_position_embeddings"] = s.original_context
    if s.kind == "llama3":
        raw |= {"low_freq_factor": s.low_freq_factor, "high_freq_factor": s.high_freq_factor}
    if s.kind == "yarn":
        raw |= {"beta_fast": s.beta_fast, "beta_slow": s.beta_slow, "truncate": s.truncate}
        optional = ("mscale", "mscale_all_dim", "attention_factor")
        raw |= {name: getattr(s, name) for name in optional if getattr(s, name)}
    return raw
