"""Operations counted by hand, and against XLA's own count of the compiled programs."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from r1jax import compute, models
from r1jax.models import experts
from r1jax.models.deepseek import DeepseekConfig
from r1jax.models.presets import PRESETS
from r1jax.models.transformer import TransformerConfig

DENSE = TransformerConfig(512, width=256, layers=2, heads=4, kv_heads=2, head_dim=64, mlp=768)
LATENT = DeepseekConfig(
    512, width=256, layers=2, dense_layers=2, heads=4, query_rank=96, kv_rank=64, nope_dim=64,
    rope_dim=32, value_dim=64, mlp=768,
)  # fmt: skip
SPARSE = DeepseekConfig(
    512, width=256, layers=3, dense_layers=1, heads=4, query_rank=0, kv_rank=64, nope_dim=64,
    rope_dim=32, value_dim=64, mlp=768, expert_mlp=128, experts=16, experts_per_token=3,
    shared_experts=2,
)  # fmt: skip
SMALL = TransformerConfig(10, width=4, layers=2, heads=2, kv_heads=1, head_dim=6, mlp=8)


def test_a_dense_model_by_hand():
    # A layer: query 4·12, key and value 4·6 each, output 12·4, feed-forward 3·4·8: 240. Head: 40.
    # Attention a token of context and layer: 2·12 for the scores, 2·12 for the values.
    assert compute.forward_flops(SMALL, 7, 3.5) == 7 * (2 * (2 * 240 + 40) + 2 * 48 * 3.5)
    assert compute.forward_flops(SMALL, 7, 0, head=False) == 7 * 2 * 480


def test_a_dense_model_is_two_operations_a_parameter():
    # Qwen2.5-32B: 31.0 billion parameters beside the table of embeddings (its model card), of
    # which scales and biases, not multiplied, are below a thousandth.
    c = PRESETS["Qwen2.5-32B"]
    without_head = compute.forward_flops(c, 1, 0, head=False)
    assert without_head / 2 + c.vocabulary * c.width == pytest.approx(31.98e9, rel=2e-3)


def test_only_active_experts_count():
    # DeepSeek-V3: 37 billion active parameters (arXiv:2412.19437), embeddings (0.93) included.
    c = PRESETS["DeepSeek-V3-Base"]
    active = compute.forward_flops(c, 1, 0) / 2
    assert active + c.vocabulary * c.width == pytest.approx(37e9, rel=0.02)


def xla(function, *shapes):
    return jax.jit(function).lower(*shapes).compile().cost_analysis()["flops"]


def every_row_its_matrix(x_Nd, w_Edf, sizes_E):
    """`grouped_matmul` with a product a row: what XLA counts is what rows need."""
    of_N = jnp.repeat(jnp.arange(len(w_Edf)), sizes_E, total_repeat_length=len(x_Nd))
    return jnp.einsum("nd,ndf->nf", x_Nd, w_Edf[of_N])


@pytest.mark.parametrize("config", [DENSE, LATENT, SPARSE], ids=["dense", "latent", "sparse"])
def test_xla_counts_the_same(config, monkeypatch):
    monkeypatch.setattr(experts, "grouped_matmul", every_row_its_matrix)
    model, B, T = models.make_model(config), 2, 48
    params = jax.eval_shape(model.init, jax.random.key(0))
    tokens_BT = jax.ShapeDtypeStruct((B, T), jnp.int32)
    # XLA multiplies all pairs of a row's tokens, and counts what is no product too: norms,
    # softmax, rotations, sorting.
    want = compute.forward_flops(config, B * T, T)
    assert want < xla(model.apply, params, tokens_BT) < 1.02 * want

    def loss(params, tokens_BT):
        return jnp.square(model.apply(params, tokens_BT)).sum()

    want *= 1 + compute.BACKWARD
    assert want < xla(jax.grad(loss), params, tokens_BT) < 1.02 * want


def test_decoding_over_latents():
    # One token over a cache of 100: what XLA counts is in the absorbed form.
    model = models.make_model(LATENT)
    params = jax.eval_shape(model.init, jax.random.key(0))
    cache = jax.eval_shape(lambda: model.empty_cache(2, 100))
    tokens_B1 = jax.ShapeDtypeStruct((2, 1), jnp.int32)
    counted = xla(lambda p, t, c: model.apply(p, t, cache=c), params, tokens_B1, cache)
    want = compute.forward_flops(LATENT, 2, 100, absorbed=True)
    assert want < counted < 1.02 * want
    # Absorbed, a token of context costs 2·4 heads·(64 + 32 + 64) a layer, else 2·4·(64 + 32 + 64)
    # too: with rank 64 as wide as keys and values both forms are equal. At rank 512 they are not.
    wide = dataclasses.replace(LATENT, kv_rank=512)
    grown = compute.forward_flops(wide, 1, 1, absorbed=True) - compute.forward_flops(wide, 1, 1)
    assert grown == 2 * 2 * 4 * (2 * 512 - 64 - 64)


def test_responses_by_hand():
    # Prompts of 3 and 2 tokens, two responses each. A token of SMALL costs 960 in matrices, its
    # logits 80, and 96 a token of context.
    prompt_B, response_B = [3, 3, 2, 2], [2, 1, 4, 1]
    # Contexts: the prompts' 1 2 3, 1 2; the responses' 4 5, 4, 3 4 5 6, 3.
    reading = 5 * 960 + 96 * 9
    scoring = reading + 8 * (960 + 80) + 96 * 34
    assert compute.scoring_flops(SMALL, prompt_B, response_B, group_size=2) == scoring
    # Sampling reads all tokens but the last ones of responses: 4; 3 4 5.
    sampling = reading + 4 * 960 + 96 * 16 + 8 * 80
    assert compute.sampling_flops(SMALL, prompt_B, response_B, group_size=2) == sampling
    step = compute.grpo_flops(SMALL, prompt_B, response_B, group_size=2)
    assert step == sampling + 4 * scoring  # reference, forward, backward twice as much
    more = {"epochs": 2, "reference": False, "rescored": True}
    step = compute.grpo_flops(SMALL, prompt_B, response_B, group_size=2, **more)
    assert step == sampling + 7 * scoring


def test_documents_by_hand():
    # As above, but every document has its own prompt: contexts 1 … 5 and 1 … 3.
    forward = 8 * 960 + 3 * 80 + 96 * (15 + 6)
    assert compute.training_flops(SMALL, [3, 2], [2, 1]) == 3 * forward
    # Frozen weights need the gradient of activations only.
    assert compute.training_flops(SMALL, [3, 2], [2, 1], adapters=True) == 2 * forward
    assert compute.training_flops(SMALL, [], []) == 0
    teacher = compute.scoring_flops(DENSE, [3, 2], [2, 1])
    both = compute.distillation_flops(SMALL, DENSE, [3, 2], [2, 1])
    assert both == 3 * forward + teacher


def test_lengths_are_checked():
    with pytest.raises(ValueError, match=r"prompt_B \(2,\) and response_B \(3,\)"):
        compute.scoring_flops(SMALL, [1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="3 responses are no groups of group_size=2"):
        compute.sampling_flops(SMALL, [1, 1, 1], [1, 2, 3], group_size=2)
