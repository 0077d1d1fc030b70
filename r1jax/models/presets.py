"""Shapes of published models, by the names they are published under.

The paper's bases (six students and the teacher's), and the Qwen3 models of today. Taken
from each model's own config.json; tests/models/test_presets.py counts their parameters
against the published numbers.
"""

from r1jax.models.deepseek import DeepseekConfig
from r1jax.models.families import Config
from r1jax.models.rope import RopeScaling
from r1jax.models.transformer import TransformerConfig


def _qwen2(
    width, layers, heads, kv_heads, mlp, *, vocabulary=152_064, **other
) -> TransformerConfig:
    return TransformerConfig(
        vocabulary, width=width, layers=layers, heads=heads, kv_heads=kv_heads, head_dim=128,
        mlp=mlp, qkv_bias=True, dtype="bfloat16", **{"tied": False, **other},
    )  # fmt: skip


def _qwen3(width, layers, heads, mlp, *, tied=False) -> TransformerConfig:
    return TransformerConfig(
        151_936, width=width, layers=layers, heads=heads, kv_heads=8, head_dim=128, mlp=mlp,
        context=40_960, rope_theta=1e6, qkv_bias=False, qk_norm=True, tied=tied, dtype="bfloat16",
    )  # fmt: skip


def _llama3(width, layers, heads, mlp) -> TransformerConfig:
    return TransformerConfig(
        128_256, width=width, layers=layers, heads=heads, kv_heads=8, head_dim=128, mlp=mlp,
        context=131_072, rope_theta=500_000.0,
        rope_scaling=RopeScaling("llama3", factor=8.0, original_context=8192),
        norm_eps=1e-5, qkv_bias=False, tied=False, dtype="bfloat16",
    )  # fmt: skip


PRESETS: dict[str, Config] = {
    "Qwen2.5-Math-1.5B": _qwen2(
        1536, 28, 12, 2, 8960, vocabulary=151_936, tied=True, context=4096
    ),
    "Qwen2.5-Math-7B": _qwen2(3584, 28, 28, 4, 18_944, context=4096),
    "Qwen2.5-14B": _qwen2(
        5120, 48, 40, 8, 13_824, context=131_072, rope_theta=1e6, norm_eps=1e-5
    ),
    "Qwen2.5-32B": _qwen2(
        5120, 64, 40, 8, 27_648, context=131_072, rope_theta=1e6, norm_eps=1e-5
    ),
    "Llama-3.1-8B": _llama3(4096, 32, 32, 14_336),
    "Llama-3.3-70B-Instruct": _llama3(8192, 80, 64, 28_672),
    "DeepSeek-V3-Base": DeepseekConfig(
        129_280, width=7168, layers=61, dense_layers=3, heads=128, query_rank=1536, kv_rank=512,
        nope_dim=128, rope_dim=64, value_dim=128, mlp=18_432, expert_mlp=2048, experts=256,
        experts_per_token=8, shared_experts=1, groups=8, groups_per_token=4, routed_scale=2.5,
        context=163_840, dtype="bfloat16",
        rope_scaling=RopeScaling(
            "yarn", factor=40.0, original_context=4096, mscale=1.0, mscale_all_dim=1.0
        ),
    ),
    "Qwen3-0.6B": _qwen3(1024, 28, 16, 3072, tied=True),
    "Qwen3-1.7B": _qwen3(2048, 28, 16, 6144, tied=True),
    "Qwen3-4B": _qwen3(2560, 36, 32, 9728, tied=True),
    "Qwen3-8B": _qwen3(4096, 36, 32, 12_288),
    "Qwen3-14B": _qwen3(5120, 40, 40, 17_408),
    "Qwen3-32B": _qwen3(5120, 64, 64, 25_600),
}  # fmt: skip
