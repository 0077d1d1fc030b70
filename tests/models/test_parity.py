"""Checkpoints in Hugging Face's formats: our logits are those that transformers computed.

`make_fixtures.py` wrote the checkpoints and the reference; nothing here needs torch.
"""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import r1jax.models
from r1jax.models import deepseek
from r1jax.models.layers import RMSNorm
from r1jax.models.rope import rotate

TOLERANCE = 2e-4  # both sides compute in float32, in another order
FIXTURES = sorted(p.parent for p in Path(__file__).with_name("fixtures").glob("*/config.json"))


@pytest.fixture(scope="module", params=FIXTURES, ids=lambda folder: folder.name)
def checkpoint(request, mesh1):
    return load(request.param, mesh1)


@functools.cache
def load(folder, mesh):
    """(model, params, reference) of a fixture."""
    with np.load(folder / "reference.npz") as reference:
        return *r1jax.models.load(folder, mesh=mesh, dtype="float32"), dict(reference)


@functools.cache
def jitted(model):
    return jax.jit(model.apply)


def without_cache(apply, params, reference, name):
    """Logits at the positions that the reference holds under this name, and those."""
    tokens, kwargs = reference[f"{name}_tokens_BT"], {}
    expected = reference[f"{name}_logits_BTV"]
    if name == "padded":
        mask = reference["padded_mask_BT"]
        positions = np.maximum(mask.cumsum(axis=1) - 1, 0).astype(np.int32)
        kwargs = dict(positions_BT=positions, segments_BT=mask)
        expected = expected[mask > 0]
    if name == "far":
        kwargs = dict(positions_BT=reference["far_positions_BT"])
    actual = np.asarray(apply(params, tokens, **kwargs))
    if name == "padded":
        return actual[mask > 0], expected
    return actual[:, -expected.shape[1] :], expected


def decoded(model, params, tokens_BT, prompt_B):
    """Logits of prompts of up to 4 tokens, right-padded, then of one token of every row at a time.

    In a cache with room to spare. The padding is another token.
    """
    B, T = tokens_BT.shape
    rows, at_B = np.arange(B), np.array(prompt_B)
    prompts = np.where(np.arange(4) < at_B[:, None], tokens_BT[:, :4], 1)
    out, cache = jitted(model)(params, prompts, cache=model.empty_cache(B, 16))
    out = np.pad(out, ((0, 0), (0, T - 4), (0, 0)))
    cache = cache._replace(length_B=jnp.asarray(prompt_B, jnp.int32))
    while at_B.min() < T:
        column_B = np.minimum(at_B, T - 1)  # rows that have come to their end wait for others
        logits, cache = jitted(model)(params, tokens_BT[rows, column_B][:, None], cache=cache)
        on = at_B < T
        out[rows[on], at_B[on]] = logits[on, 0]
        at_B = at_B + 1
    return out


def difference(actual, expected) -> float:
    """The largest difference by the largest logit."""
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def check_close(actual, expected):
    assert expected.std() > 0.9  # logits near zero would agree with anything
    assert difference(actual, expected) <= TOLERANCE
    atol = TOLERANCE * expected.std()
    np.testing.assert_allclose(actual, expected, rtol=TOLERANCE, atol=atol)


@pytest.mark.parametrize("name", ["padded", "long", "far", "step"])
def test_logits(checkpoint, name):
    model, params, reference = checkpoint
    check_close(*without_cache(jitted(model), params, reference, name))


def test_decoding_from_the_cache(checkpoint):
    model, params, reference = checkpoint
    logits = decoded(model, params, reference["step_tokens_BT"], [4, 4])
    check_close(logits, reference["step_logits_BTV"])


def test_decoding_rows_of_several_lengths(checkpoint):
    # The reference's rows are padded on either side, a cache's begin with their first token.
    model, params, reference = checkpoint
    real = reference["padded_mask_BT"] > 0
    rows = np.zeros_like(reference["padded_tokens_BT"])
    mine = np.arange(rows.shape[1]) < real.sum(axis=1)[:, None]
    rows[mine] = reference["padded_tokens_BT"][real]
    logits = decoded(model, params, rows, [4, 3, 1, 2])
    check_close(logits[mine], reference["padded_logits_BTV"][real])


# Details of the models. Without any of them the tests above would fail, and by a margin.


def config(**settings):
    """The model with other settings."""

    def change(model, params, monkeypatch):
        return dataclasses.replace(
            model, config=dataclasses.replace(model.config, **settings)
        ), params

    return change


def scaling(**settings):
    """The model with other settings of rope scaling."""

    def change(model, params, monkeypatch):
        other = dataclasses.replace(model.config.rope_scaling, **settings)
        return config(rope_scaling=other)(model, params, monkeypatch)

    return change


def parameter(value, *names):
    """All parameters under any of these names set to a neutral value."""

    def change(model, params, monkeypatch):
        def one(path, x):
            path = "/".join(key.key for key in path)
            return jnp.full_like(x, value) if path.endswith(names) else x

        changed = jax.tree_util.tree_map_with_path(one, params)
        count = sum(
            bool((a != b).any())
            for a, b in zip(jax.tree.leaves(changed), jax.tree.leaves(params), strict=True)
        )
        assert count >= len(names)  # the names are those of parameters
        return model, changed

    return change


def patch(module, name, replacement):
    """The model with another function or number in its module."""

    def change(model, params, monkeypatch):
        monkeypatch.setattr(module, name, replacement)
        return model, params

    return change


class PlainLatents(RMSNorm):
    """Scales the latents without normalising them."""

    def __call__(self, x):
        if self.name not in ("latent_norm", "query_norm"):
            return super().__call__(x)
        return x * self.get_variable("params", "scale").reshape(1, 1, -1)


DETAILS = {
    "llama3_scaling": ("llama3_old", "padded", config(rope_scaling=None)),
    "llama3_scaling_new_spelling": ("llama3_new", "padded", config(rope_scaling=None)),
    "llama3_unchanged_band": ("llama3_old", "long", scaling(high_freq_factor=1e3)),
    "llama3_stretched_band": ("llama3_old", "long", scaling(low_freq_factor=1e-3)),
    "llama3_blended_band": ("llama3_old", "long", scaling(high_freq_factor=1.01)),
    "query_key_norm": ("qwen3", "padded", config(qk_norm=False)),
    "query_norm_by_head": ("qwen3", "padded", parameter(1, "query_norm/scale")),
    "key_norm_by_head": ("qwen3", "padded", parameter(1, "key_norm/scale")),
    "query_bias": ("qwen2_tied", "padded", parameter(0, "query/bias")),
    "key_bias": ("qwen2_tied", "padded", parameter(0, "key/bias")),
    "value_bias": ("qwen2_tied", "padded", parameter(0, "value/bias")),
    "rope_theta": ("qwen2_tied", "padded", config(rope_theta=1e4)),
    "norm_eps": ("qwen2_untied_bf16_shards", "padded", config(norm_eps=1e-6)),
    "norm_eps_as_published": ("llama3_new", "padded", config(norm_eps=1e-6)),
    "norm_eps_deepseek": ("deepseek_v3", "padded", config(norm_eps=1e-6)),
    "latent_eps_of_its_own": ("deepseek_v3", "padded", patch(deepseek, "LATENT_EPS", 1e-2)),
    "latent_norms": ("deepseek_v3", "padded", patch(deepseek, "RMSNorm", PlainLatents)),
    "latent_norm_scale": ("deepseek_v3", "padded", parameter(1, "latent_norm/scale")),
    "query_norm_scale": ("deepseek_v3", "padded", parameter(1, "query_norm/scale")),
    "interleaved_rope": ("deepseek_v3", "padded", patch(deepseek, "rotate_neighbours", rotate)),
    "selection_bias": ("deepseek_v3", "padded", parameter(0, "router/bias")),
    "expert_groups": ("deepseek_v3", "padded", config(groups=1, groups_per_token=1)),
    "routed_scale": ("deepseek_v3", "padded", config(routed_scale=1.0)),
    "normalised_weights": ("deepseek_v3", "padded", config(normalise_weights=False)),
    "shared_experts": ("deepseek_v3", "padded", config(shared_experts=0)),
    "yarn_frequencies": ("deepseek_v3_yarn_shards_mtp", "long", scaling(original_context=10**9)),
    "yarn_whole_dimensions": ("deepseek_v3_yarn_shards_mtp", "long", scaling(truncate=False)),
    "yarn_softmax_scale": (
        "deepseek_v3_yarn_shards_mtp",
        "padded",
        scaling(mscale=0.0, mscale_all_dim=0.0, attention_factor=1.0),
    ),
    "yarn_scales_angles_by_1": (
        "deepseek_v3_yarn_shards_mtp",
        "padded",
        scaling(mscale=0.0),
    ),
}


@pytest.mark.parametrize(("fixture", "name", "change"), DETAILS.values(), ids=DETAILS)
def test_detail_matters(fixture, name, change, mesh1, monkeypatch):
    model, params, reference = load(Path(__file__).with_name("fixtures") / fixture, mesh1)
    model, params = change(model, params, monkeypatch)
    apply = jax.jit(lambda *args, **kwargs: model.apply(*args, **kwargs))  # traced anew
    assert difference(*without_cache(apply, params, reference, name)) > 20 * TOLERANCE
