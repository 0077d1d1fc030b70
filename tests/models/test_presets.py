"""The published models: as many parameters as published, and layouts that fit a mesh."""

import functools
import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType

from r1jax.models.decoder import parameter_count
from r1jax.models.deepseek import DeepseekConfig
from r1jax.models.families import abstract_params, make_model
from r1jax.models.presets import PRESETS
from r1jax.sharding import AXES, path_name

# Half of metadata.total_size (bfloat16) in the model.safetensors.index.json published with the
# weights; where there is only one file, the sum over its header. DeepSeek-V3: its 61 layers, in
# any type, without scales and without the layer for multi-token prediction.
PUBLISHED = {
    "Qwen2.5-Math-1.5B": 1_543_714_304,
    "Qwen2.5-Math-7B": 15_231_233_024 // 2,
    "Qwen2.5-14B": 29_540_067_328 // 2,
    "Qwen2.5-32B": 65_527_752_704 // 2,
    "Llama-3.1-8B": 16_060_522_496 // 2,
    "Llama-3.3-70B-Instruct": 141_107_412_992 // 2,
    "DeepSeek-V3-Base": 671_026_419_200,
    "Qwen3-0.6B": 596_049_920,
    "Qwen3-1.7B": 1_720_574_976,
    "Qwen3-4B": 4_022_468_096,
    "Qwen3-8B": 8_190_735_360,
    "Qwen3-14B": 14_768_307_200,
    "Qwen3-32B": 32_762_123_264,
}

# Billions, as the model cards round them: parameters, and those that are no embeddings.
# Llama's and DeepSeek's (arXiv:2412.19437: 671B) do not give the latter.
CARDS = {
    "Qwen2.5-Math-1.5B": ("1.54", "1.31"),
    "Qwen2.5-Math-7B": ("7.61", "6.53"),  # Qwen2.5-7B's; Math-7B has its shapes
    "Qwen2.5-14B": ("14.7", "13.1"),
    "Qwen2.5-32B": ("32.5", "31.0"),
    "Llama-3.1-8B": ("8", None),
    "Llama-3.3-70B-Instruct": ("70", None),
    "DeepSeek-V3-Base": ("671", None),
    "Qwen3-0.6B": ("0.6", "0.44"),
    "Qwen3-1.7B": ("1.7", "1.4"),
    "Qwen3-4B": ("4.0", "3.6"),
    "Qwen3-8B": ("8.2", "6.95"),
    "Qwen3-14B": ("14.8", "13.2"),
    "Qwen3-32B": ("32.8", "31.2"),
}

every_preset = pytest.mark.parametrize("name", PRESETS)


@functools.cache
def shapes(name):
    return jax.eval_shape(make_model(PRESETS[name]).init, jax.random.key(0))


def embeddings(c):
    return c.vocabulary * c.width * (1 if c.tied else 2)


def test_every_preset_is_checked():
    assert PRESETS.keys() == PUBLISHED.keys() == CARDS.keys()


@every_preset
def test_parameters_are_as_many_as_published(name):
    assert parameter_count(shapes(name)) == PUBLISHED[name]


@every_preset
def test_parameters_are_about_as_many_as_on_the_model_card(name):
    total, plain = CARDS[name]
    count = parameter_count(shapes(name))
    # Cards round, some generously: 1.7B of Qwen3 is off by 1.2 %, 32.5B of Qwen2.5 by 0.8 %.
    assert count / 1e9 == pytest.approx(float(total), rel=0.0125)
    if plain:
        assert (count - embeddings(PRESETS[name])) / 1e9 == pytest.approx(float(plain), rel=0.0125)


def dense_count(c):
    """Of Qwen2, Qwen3 and Llama 3, from the papers' equations."""
    D, h = c.width, c.head_dim
    block = 2 * D * c.heads * h  # query, output
    block += 2 * D * c.kv_heads * h  # key, value
    block += (c.heads + 2 * c.kv_heads) * h if c.qkv_bias else 0
    block += 2 * h if c.qk_norm else 0
    block += 3 * D * c.mlp + 2 * D  # SwiGLU, two norms
    return embeddings(c) + c.layers * block + D


def deepseek_block(c, experts):
    """Of one sparse layer that holds, or uses, so many routed experts."""
    D, H = c.width, c.heads
    attention = D * c.query_rank + c.query_rank * H * (c.nope_dim + c.rope_dim)
    attention += D * (c.kv_rank + c.rope_dim) + c.kv_rank * H * (c.nope_dim + c.value_dim)
    attention += H * c.value_dim * D + c.query_rank + c.kv_rank + 2 * D
    return attention, (experts + c.shared_experts) * 3 * D * c.expert_mlp + (D + 1) * c.experts


def deepseek_count(c, experts):
    attention, sparse = deepseek_block(c, experts)
    dense = c.dense_layers * 3 * c.width * c.mlp
    return (
        embeddings(c) + c.layers * attention + dense + (c.layers - c.dense_layers) * sparse
        + c.width
    )  # fmt: skip


@every_preset
def test_parameters_are_as_many_as_the_equations_say(name):
    c = PRESETS[name]
    sparse = isinstance(c, DeepseekConfig)
    assert parameter_count(shapes(name)) == (
        deepseek_count(c, c.experts) if sparse else dense_count(c)
    )


def test_deepseek_uses_37_billion_parameters_a_token():
    # arXiv:2412.19437: 37B of 671B are activated for each token, 8 of 256 routed experts.
    c = PRESETS["DeepSeek-V3-Base"]
    leaves = jax.tree_util.tree_leaves_with_path(shapes("DeepSeek-V3-Base"))
    routed = sum(math.prod(x.shape) for path, x in leaves if "experts/" in path_name(path))
    idle = routed * (c.experts - c.experts_per_token) // c.experts
    active = parameter_count(shapes("DeepSeek-V3-Base")) - idle
    assert active == deepseek_count(c, c.experts_per_token) == 37_552_297_472
    # A token looks up one row of the input embedding; DeepSeek's counting leaves it out (36.6B).
    assert round((active - c.vocabulary * c.width) / 1e9, 1) == 36.6


# Numbers that the cache holds for a token: 2 · kv_heads · head_dim · layers of dense models;
# of V3 the latent and the rotary key that all heads share, (512 + 64) · 61.
CACHED = {
    "Qwen2.5-Math-1.5B": 2 * 2 * 128 * 28,
    "Qwen2.5-Math-7B": 2 * 4 * 128 * 28,
    "Qwen2.5-14B": 2 * 8 * 128 * 48,
    "Qwen2.5-32B": 2 * 8 * 128 * 64,
    "Llama-3.1-8B": 2 * 8 * 128 * 32,
    "Llama-3.3-70B-Instruct": 2 * 8 * 128 * 80,
    "DeepSeek-V3-Base": (512 + 64) * 61,
    "Qwen3-0.6B": 2 * 8 * 128 * 28,
    "Qwen3-1.7B": 2 * 8 * 128 * 28,
    "Qwen3-4B": 2 * 8 * 128 * 36,
    "Qwen3-8B": 2 * 8 * 128 * 36,
    "Qwen3-14B": 2 * 8 * 128 * 40,
    "Qwen3-32B": 2 * 8 * 128 * 64,
}


@every_preset
def test_the_cache_holds_as_much_as_is_known(name):
    model = make_model(PRESETS[name])
    rows, slots = 3, 5
    cache = jax.eval_shape(lambda: model.empty_cache(rows, slots))
    arrays = jax.tree.leaves(cache.layers)
    assert len(arrays) == 2 * PRESETS[name].layers
    assert sum(math.prod(x.shape) for x in arrays) == CACHED[name] * rows * slots
    assert {x.dtype for x in arrays} == {jnp.dtype("bfloat16")}


def mesh(**sizes):
    return AbstractMesh(
        tuple(sizes.get(a, 1) for a in AXES), AXES, axis_types=(AxisType.Auto,) * len(AXES)
    )


# Heads of Qwen2.5-Math-1.5B and -7B (2 and 4 of keys) are cut by features, not by heads.
@every_preset
def test_every_dimension_divides_by_a_sensible_mesh(name):
    sizes = {"fsdp": 8, "tensor": 4} | ({"expert": 32} if "DeepSeek" in name else {})
    params = abstract_params(make_model(PRESETS[name]), mesh(**sizes), "bfloat16")
    matrices = [
        x
        for path, x in jax.tree_util.tree_leaves_with_path(params)
        if path_name(path).endswith(("kernel", "embed")) and "router" not in path_name(path)
    ]
    own = sum(math.prod(x.sharding.shard_shape(x.shape)) for x in matrices)  # on one device
    cut = parameter_count(matrices) / math.prod(sizes.values())
    assert cut <= own < 1.01 * cut  # all but latents' narrow maps are cut over all devices


def test_a_mesh_that_divides_nothing_is_refused():
    with pytest.raises(ValueError, match=r"dimension \d+ is not divisible by 7 \(mesh axes fsdp=7"):
        abstract_params(make_model(PRESETS["Qwen3-8B"]), mesh(fsdp=7))


@every_preset
def test_activations_are_in_the_type_of_the_weights(name):
    assert PRESETS[name].dtype == "bfloat16"
