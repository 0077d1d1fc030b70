"""Latent attention and sparse experts against a model in loops over numpy, in float64.

The reference makes keys and values of every head, routes one token at a time in plain
Python, and computes each expert by itself (arXiv:2412.19437, equations 1 to 19).
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from r1jax.data.packing import Packed
from r1jax.learner import PolicyLearner, init_state, supervised_step
from r1jax.losses import LOSSES
from r1jax.models import deepseek
from r1jax.models.decoder import parameter_count
from r1jax.models.deepseek import Deepseek, DeepseekConfig, absorbed, expanded
from r1jax.models.experts import Router
from r1jax.models.rope import RopeScaling, frequencies, rope_angles
from r1jax.rollouts import Shape
from r1jax.sharding import make_mesh, rows, shardings
from r1jax.types import Rollout

SMALL = DeepseekConfig(
    vocabulary=32, width=16, layers=3, dense_layers=1, heads=2, query_rank=8, kv_rank=8,
    nope_dim=6, rope_dim=4, value_dim=5, mlp=24, expert_mlp=8, experts=8, experts_per_token=3,
    shared_experts=1, groups=4, groups_per_token=2, routed_scale=2.5, context=64,
)  # fmt: skip
YARN = RopeScaling("yarn", 4.0, original_context=64, mscale=1.0, mscale_all_dim=0.8)
VARIANTS = {  # two of a kind where one would not hide the other: each costs a compilation
    "plain": {},
    "queries_not_compressed_two_shared": dict(query_rank=0, shared_experts=2),
    "one_group_none_shared": dict(groups=1, groups_per_token=1, shared_experts=0),
    "weights_not_normalised_tied_norm": dict(normalise_weights=False, tied=True, norm_eps=0.3),
    "all_dense": dict(layers=2, dense_layers=2),
    "all_sparse_yarn": dict(layers=2, dense_layers=0, rope_scaling=YARN, rope_theta=50.0),
}


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request, random_params):
    return make(random_params, **VARIANTS[request.param])


@pytest.fixture(scope="module")
def small(random_params):
    return make(random_params)


def make(random_params, **settings):
    model = Deepseek(dataclasses.replace(SMALL, **settings))
    return model, random_params(model)


@functools.cache
def jitted(model):
    return jax.jit(model.apply)


@functools.cache
def with_loads(model):
    """Jitted (params, tokens, segments) -> (logits, tokens by [sparse layer, expert])."""

    def run(params, tokens, segments=None):
        hidden, _, statistics = model.forward(params, tokens, segments_BT=segments)
        return model.logits(params, hidden), statistics.get("blocks", {}).get("load")

    return jax.jit(run)


def loads(model):
    return lambda *given: with_loads(model)(*given)[1]


def alone(model, params, row, width):
    """Logits of one row, filled up on the right, where nothing is seen."""
    padded = np.zeros((1, width), np.int32)
    padded[0, : len(row)] = row
    return jitted(model)(params, padded)[0, : len(row)]


def tokens(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, SMALL.vocabulary, shape).astype(np.int32)


def close(actual, expected, tolerance=2e-5):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def with_bias(params, bias):
    """Parameters with these selection biases, [experts] or [sparse layers, experts]."""
    router = params["blocks"]["router"]
    bias = jnp.broadcast_to(jnp.asarray(bias, jnp.float32), router["bias"].shape)
    return params | {"blocks": params["blocks"] | {"router": router | {"bias": bias}}}


# The reference: one row, one position, one head, one expert at a time.


def rms_norm(x, scale, eps):
    return x / math.sqrt(np.mean(x * x) + eps) * scale


def swiglu(x, gate, up, down):
    g = x @ gate
    return (g / (1 + np.exp(-g)) * (x @ up)) @ down


def rotated(x, position, turn, scale):
    out = np.empty(len(x))
    for i, f in enumerate(turn):
        cos, sin = scale * math.cos(position * f), scale * math.sin(position * f)
        a, b = x[2 * i], x[2 * i + 1]
        out[2 * i], out[2 * i + 1] = a * cos - b * sin, a * sin + b * cos
    return out


def scales(c):
    """(of cos and sin, of the softmax): 1/√h, and yarn's by DeepSeek's published code."""
    softmax = 1 / math.sqrt(c.nope_dim + c.rope_dim)
    if c.rope_scaling is None:
        return 1.0, softmax
    s = c.rope_scaling
    a, b = (0.1 * m * math.log(s.factor) + 1 for m in (s.mscale, s.mscale_all_dim))
    return a / b, softmax * b * b


def attention(c, p, xs):
    turn = frequencies(c.rope_dim, c.rope_theta, c.rope_scaling)
    rotation, scale = scales(c)
    mixed = [[] for _ in xs]
    both = [x @ p["latent_a"]["kernel"] for x in xs]
    latents = [rms_norm(b[: c.kv_rank], p["latent_norm"]["scale"], 1e-6) for b in both]
    shared = [rotated(b[c.kv_rank :], t, turn, rotation) for t, b in enumerate(both)]
    up = p["latent_b"]["kernel"].reshape(c.kv_rank, c.heads, c.nope_dim + c.value_dim)
    for head in range(c.heads):
        keys = [
            np.concatenate([z @ up[:, head, : c.nope_dim], r])
            for z, r in zip(latents, shared, strict=True)
        ]
        values = [z @ up[:, head, c.nope_dim :] for z in latents]
        for t, x in enumerate(xs):
            if c.query_rank:
                x = rms_norm(x @ p["query_a"]["kernel"], p["query_norm"]["scale"], 1e-6)
            size = c.nope_dim + c.rope_dim
            kernel = p["query_b" if c.query_rank else "query"]["kernel"]
            q = x @ kernel[:, head * size : (head + 1) * size]
            q = np.concatenate([q[: c.nope_dim], rotated(q[c.nope_dim :], t, turn, rotation)])
            odds = [math.exp(q @ k * scale) for k in keys[: t + 1]]
            mean = sum(o * v for o, v in zip(odds, values[: t + 1], strict=True)) / sum(odds)
            mixed[t].append(mean)
    return [np.concatenate(heads) @ p["out"]["kernel"] for heads in mixed]


def routed(c, router, x):
    """{expert: weight} of one token."""
    scores = [1 / (1 + math.exp(-x @ router["kernel"][:, e])) for e in range(c.experts)]
    choice = [s + b for s, b in zip(scores, router["bias"], strict=True)]
    size = c.experts // c.groups
    groups = [list(range(g * size, (g + 1) * size)) for g in range(c.groups)]
    best = sorted(groups, key=lambda group: -sum(sorted(choice[e] for e in group)[-2:]))
    candidates = [e for group in best[: c.groups_per_token] for e in group]
    chosen = sorted(candidates, key=lambda e: -choice[e])[: c.experts_per_token]
    total = sum(scores[e] for e in chosen) if c.normalise_weights else 1
    return {e: scores[e] / total * c.routed_scale for e in chosen}


def reference(c, params, row):
    """(logits [T, V], experts chosen, by sparse layer) of one unpadded row."""
    p, chosen = jax.tree.map(lambda x: np.asarray(x, np.float64), params), []
    xs = [p["embed"][t] for t in row]
    for layer in range(c.layers):
        sparse = layer >= c.dense_layers
        name, i = ("blocks", layer - c.dense_layers) if sparse else ("dense_blocks", layer)
        block = jax.tree.map(lambda x: x[i], p[name])  # noqa: B023
        normed = [rms_norm(x, block["attention_norm"]["scale"], c.norm_eps) for x in xs]
        xs = [x + y for x, y in zip(xs, attention(c, block["attention"], normed), strict=True)]
        normed = [rms_norm(x, block["mlp_norm"]["scale"], c.norm_eps) for x in xs]
        if sparse:
            chosen.append([])
        for t, x in enumerate(normed):
            if not sparse:
                xs[t] = xs[t] + swiglu(x, *(block["mlp"][k]["kernel"] for k in PARTS))
                continue
            weights = routed(c, block["router"], x)
            chosen[-1] += weights
            for e, weight in weights.items():
                own = (block["experts"][k]["kernel"][e] for k in PARTS)
                xs[t] = xs[t] + weight * swiglu(x, *own)
            if c.shared_experts:
                xs[t] = xs[t] + swiglu(x, *(block["shared"][k]["kernel"] for k in PARTS))
    table = p["embed"].T if c.tied else p["unembed"]
    xs = [rms_norm(x, p["final_norm"]["scale"], c.norm_eps) for x in xs]
    return np.stack([x @ table for x in xs]), chosen


PARTS = ("gate", "up", "down")


def test_against_loops(variant):
    model, params = variant
    batch = tokens(2, 7)
    found = [reference(model.config, params, row) for row in batch]
    expected = np.stack([logits for logits, _ in found])
    assert expected.std() > 0.8  # logits near zero would agree with anything
    logits, load = with_loads(model)(params, batch)
    close(logits, expected)
    if "blocks" in params:
        counts = [
            np.bincount(np.concatenate(layers), minlength=8)
            for layers in zip(*(chosen for _, chosen in found), strict=True)
        ]
        np.testing.assert_array_equal(load, counts)


def test_without_jit(small):
    model, params = small
    row = tokens(1, 3)
    close(model.apply(params, row)[0], reference(SMALL, params, row[0])[0])


def test_the_latents_norm_keeps_its_own_epsilon(random_params):
    # The config's is of the blocks' norms alone (`tied_norm` above has 0.3): at the published
    # checkpoints' 1e-6 both are the same number, so it takes small latents to see.
    model, params = make(random_params, norm_eps=0.3)
    attention = params["blocks"]["attention"]
    small = attention | {"latent_a": {"kernel": 1e-2 * attention["latent_a"]["kernel"]}}
    params = params | {"blocks": params["blocks"] | {"attention": small}}
    row = tokens(1, 5)
    close(jitted(model)(params, row)[0], reference(model.config, params, row[0])[0])


# Attention, absorbed and expanded, and its cache.


@functools.cache
def forms():
    return [jax.jit(f, static_argnums=7) for f in (absorbed, expanded)]


def attention_inputs(T, dtype=jnp.float32):
    """Rows left-padded by 0, 2 and 5 of 9 slots; the queries are the last T."""
    rng = np.random.default_rng(T)
    shapes = [(3, 2, T, 6), (3, 2, T, 4), (3, 1, 4, 9), (3, 1, 9, 8), (8, 2, 6), (8, 2, 5)]
    q_n, q_r, key, latent, up_k, up_v = (
        jnp.asarray(rng.standard_normal(s), dtype) for s in shapes
    )  # fmt: skip
    slot, start = np.arange(9), np.array([0, 2, 5])
    causal = slot[None, :] <= np.arange(9 - T, 9)[:, None]
    mask = causal[None, None] & (slot >= start[:, None])[:, None, None, :]
    return q_n, q_r, key, latent, up_k, up_v, mask, 0.3


@pytest.mark.parametrize("T", [1, 4])
def test_absorbed_equals_expanded(T):
    given = attention_inputs(T)
    a, b = (form(*given) for form in forms())
    assert a.shape == (3, 2, T, 5) and b.std() > 0.1
    close(a, b, 1e-5)
    unseen = list(given)
    unseen[2], unseen[3] = given[2].at[2, :, :, :5].set(99.0), given[3].at[2, :, :5].set(99.0)
    for form in forms():
        np.testing.assert_array_equal(form(*unseen), form(*given))


def test_absorbed_equals_expanded_in_bfloat16():
    half, exact = attention_inputs(4, jnp.bfloat16), attention_inputs(4)
    rounded = [jnp.float32(x) if getattr(x, "dtype", 0) == jnp.bfloat16 else x for x in half]
    wanted, size = forms()[1](*rounded), float(forms()[1](*exact).std())
    for form in forms():
        found = form(*half)
        assert found.dtype == jnp.bfloat16
        # Five roundings of 2⁻⁹ of the size on the way, scores of up to 8 among them.
        assert np.abs(np.float32(found) - wanted).max() < 0.05 * size


def test_scores_of_bfloat16_keep_float32():
    # Scores 256.5 and 256: bfloat16 would round both to 256, and weigh both slots alike.
    # The one latent is 1 at the first slot and 0 at the second: the output is the weight.
    half = functools.partial(jnp.asarray, dtype=jnp.bfloat16)
    q_n, q_r = half(np.zeros((1, 1, 1, 1))), half(np.ones((1, 1, 1, 2)))
    key, latent = half([[[[256, 256], [0.5, 0]]]]), half([[[[1], [0]]]])
    up, mask = half(np.ones((1, 1, 1))), np.ones((1, 1, 1, 2), bool)
    for form in forms():
        weight = float(form(q_n, q_r, key, latent, up, up, mask, 1.0)[0, 0, 0, 0])
        assert weight == pytest.approx(1 / (1 + math.exp(-0.5)), rel=2**-8)


WAYS = ((5, [1, 3]), (0, [1] * 6), (9, []))  # columns of prompts, and tokens that follow at a time


@pytest.mark.parametrize(("prompt", "cut"), WAYS, ids=str)
def test_cache_equals_the_whole_forward_pass(small, prompt, cut):
    check_cache(*small, prompt, cut)


@pytest.mark.parametrize("name", ["queries_not_compressed_two_shared", "all_sparse_yarn"])
def test_cache_of_variants(random_params, name):
    check_cache(*make(random_params, **VARIANTS[name]), *WAYS[0])


def check_cache(model, params, prompt, cut):
    """Rows of several lengths: prompts first, right-padded, then each goes on.

    Free slots hold large numbers, and those behind a shorter prompt what padding left there.
    """
    batch, length = tokens(3, 9), np.maximum(prompt - np.array([0, 2, 4]), 0)
    cache, parts = filled(model.empty_cache(3, 13)), [[], [], []]
    if prompt:
        given = np.where(np.arange(prompt) < length[:, None], batch[:, :prompt], 7)
        logits, cache = jitted(model)(params, given, cache=cache)
        cache = cache._replace(length_B=jnp.asarray(length, jnp.int32))
        parts = [[row[:n]] for row, n in zip(logits, length, strict=True)]
    for n in cut:
        piece = np.stack([row[at : at + n] for row, at in zip(batch, length, strict=True)])
        logits, cache = jitted(model)(params, piece, cache=cache)
        for part, row in zip(parts, logits, strict=True):
            part.append(row)
        length = length + n
    assert cache.length_B.tolist() == length.tolist()
    for row, n, part in zip(batch, length, parts, strict=True):
        close(np.concatenate(part), alone(model, params, row, 9)[:n])


def filled(cache):
    return jax.tree.map(lambda x: x + 1000, cache)._replace(length_B=cache.length_B)


@pytest.mark.parametrize("name", ["plain", "all_sparse_yarn"])
def test_prefilled_prompts_go_on_in_a_cache(random_params, name):
    """Prompts of 5, 3, 1 and 0 tokens through the training path, then 4 more tokens each."""
    model, params = make(random_params, **VARIANTS[name])
    batch, length = tokens(4, 9), np.array([5, 3, 1, 0], np.int32)
    prompts = np.where(np.arange(6) < length[:, None], batch[:, :6], 7)
    kept = jax.jit(model.prefill)(params, prompts, length)
    # What a cache holds after the same tokens, layer for layer.
    fed = jitted(model)(params, prompts, cache=model.empty_cache(4, 6))[1]
    for mine, other in zip(kept.layers, fed.layers, strict=True):
        assert mine.k.shape == (4, 1, SMALL.rope_dim, 6)
        assert mine.v.shape == (4, 1, 6, SMALL.kv_rank)
        for b, n in enumerate(length):
            close(mine.k[b, :, :, :n], other.k[b, :, :, :n])
            close(mine.v[b, :, :n], other.v[b, :, :n])
    row_of, at = np.array([2, 0, 4, 3]), np.zeros(5, np.int32)  # of five
    at[row_of] = length
    cache = filled(model.empty_cache(5, 13))
    layers = [
        layer.insert(prompt, jnp.asarray(row_of), jnp.arange(4))
        for layer, prompt in zip(cache.layers, kept.layers, strict=True)
    ]
    cache = cache._replace(layers=tuple(layers), length_B=jnp.asarray(at))
    parts, decoding = [], jax.jit(model.unstacked)(params)
    for step in range(4):
        piece = np.zeros((5, 1), np.int32)
        piece[row_of, 0] = batch[np.arange(4), length + step]
        logits, cache = jitted(model)(decoding, piece, cache=cache)
        parts.append(logits[row_of])
    together = np.concatenate(parts, axis=1)
    for row, n, logits in zip(batch, length, together, strict=True):
        close(logits, alone(model, params, row, 9)[n : n + 4])


def test_parameters_for_decoding_keep_routers_in_float32(small):
    _, params = small
    decoding = Deepseek(dataclasses.replace(SMALL, dtype="bfloat16")).unstacked(params)
    assert [len(decoding[name]) for name in ("dense_blocks", "blocks")] == [1, 2]
    for name in ("dense_blocks", "blocks"):
        for i, block in enumerate(decoding[name]):
            for path, x in jax.tree_util.tree_leaves_with_path(block):
                whole = functools.reduce(lambda tree, key: tree[key.key], path, params[name])
                router = any(key.key == "router" for key in path)
                assert x.dtype == (jnp.float32 if router else jnp.bfloat16)
                np.testing.assert_array_equal(x, whole[i].astype(x.dtype))


def test_decoding_is_absorbed_and_prompts_are_expanded(small, monkeypatch):
    model, params = small
    used = []
    for name in ("absorbed", "expanded"):
        form = getattr(deepseek, name)
        monkeypatch.setattr(
            deepseek, name, lambda *a, name=name, form=form: used.append(name) or form(*a)
        )
    cache = jax.eval_shape(lambda: model.empty_cache(2, 8))
    for T, given, wanted in ((1, cache, "absorbed"), (3, cache, "expanded"), (1, None, "expanded")):
        used.clear()
        jax.eval_shape(lambda *a: model.apply(*a[:2], cache=a[2]), params, tokens(2, T), given)
        assert set(used) == {wanted}


def test_positions_count_from_a_rows_first_token(random_params, monkeypatch):
    # Rotary attention sees differences only: with squares an offset is seen.
    monkeypatch.setattr(
        deepseek, "rope_angles", lambda at, *settings: rope_angles(at**2 / 8, *settings)
    )
    model, params = make(random_params, layers=1)
    apply = jax.jit(lambda *args, **kwargs: model.apply(*args, **kwargs))
    row = tokens(1, 5)
    expected = apply(params, row)[0]
    assert np.abs(apply(params, row, positions_BT=np.arange(5)[None] + 2)[0] - expected).max() > 0.1
    # Beside a row that is 2 tokens ahead, one at a time and 3 at once.
    both = np.concatenate([row, tokens(1, 5, seed=1)])
    cache, parts = apply(params, both[:, :2], cache=model.empty_cache(2, 8))[1], []
    cache = cache._replace(length_B=jnp.array([0, 2], jnp.int32))
    for n, at in ((1, 0), (1, 1), (3, 2)):
        piece = np.stack([both[0, at : at + n], np.zeros(n, np.int32)])
        logits, cache = apply(params, piece, cache=cache)
        parts.append(logits[0])
    close(np.concatenate(parts), expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_cache_holds_a_latent_and_a_rotary_key_a_token_and_layer(dtype):
    model = Deepseek(dataclasses.replace(SMALL, dtype=dtype, kv_rank=512, rope_dim=64))
    cache = jax.eval_shape(lambda: model.empty_cache(5, 11))
    assert len(cache.layers) == 3
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache.layers))
    # V3's ranks: 512 + 64 = 576 numbers, of 4 or of 2 bytes
    assert held == 5 * 11 * 3 * 576 * (4 if dtype == "float32" else 2)


# Padding, and the company of other tokens.


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_seen_by_nobody(small, side):
    model, params = small
    batch, count = tokens(3, 8), np.array([8, 5, 1])
    columns = np.arange(8)[None, :]
    start = 8 - count if side == "left" else np.zeros(3, int)
    real = (columns >= start[:, None]) & (columns < (start + count)[:, None])
    positions = np.maximum(columns - start[:, None], 0)

    def logits(seed):
        given = np.where(real, batch, tokens(3, 8, seed=seed))
        return jitted(model)(params, given, positions_BT=positions, segments_BT=real.astype(int))

    one, two = logits(1), logits(2)
    assert np.isfinite(one).all()
    np.testing.assert_array_equal(np.where(real[..., None], one - two, 0), 0)
    for row, at, n, found in zip(batch, start, count, one, strict=True):
        close(found[at : at + n], alone(model, params, row[at : at + n], 8))


def test_packed_segments_equal_rows_of_their_own(small):
    model, params = small
    row = tokens(1, 8)
    segments, positions = np.array([[1] * 3 + [2] * 4 + [0]]), np.array([[*range(3), *range(5)]])
    packed = jitted(model)(params, row, positions_BT=positions, segments_BT=segments)[0]
    close(packed[:3], alone(model, params, row[0, :3], 8))
    close(packed[3:7], alone(model, params, row[0, 3:7], 8))


@pytest.mark.parametrize("crowded", [False, True], ids=["spread", "all_choose_the_same"])
def test_a_tokens_logits_do_not_depend_on_the_rest_of_the_batch(small, crowded):
    model, params = small
    if crowded:
        params = with_bias(params, [9, 9, 9, 0, 0, 0, 0, 0])
    batch = tokens(6, 8)
    together = jitted(model)(params, batch)
    if crowded:  # 48 tokens in both layers, each with the same three of eight
        wanted = [[48, 48, 48, 0, 0, 0, 0, 0]] * 2
        np.testing.assert_array_equal(loads(model)(params, batch), wanted)
        close(together[2], reference(SMALL, params, batch[2])[0])
    for row, logits in zip(batch, together, strict=True):
        close(logits, alone(model, params, row, 8), 1e-5)


def test_later_tokens_do_not_matter(small):
    model, params = small
    a, b = tokens(1, 8), tokens(1, 8)
    b[0, 5:] = (b[0, 5:] + 1) % 32
    a, b = jitted(model)(params, a), jitted(model)(params, b)
    close(a[:, :5], b[:, :5], 1e-6)
    assert np.abs(a[:, 5:] - b[:, 5:]).max(axis=-1).min() > 1e-2


# The router.


def router_of(config=SMALL):
    return Router(
        config.experts, config.experts_per_token, config.groups, config.groups_per_token,
        config.normalise_weights, config.routed_scale,
    )  # fmt: skip


def router_params(seed=0):
    rng = np.random.default_rng(seed)
    kernel, bias = rng.standard_normal((16, 8)) / 4, 0.3 * rng.standard_normal(8)
    return {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}


def some_x(*shape, seed=5):
    x = np.random.default_rng(seed).standard_normal((*shape, 16))
    return jnp.asarray(x, jnp.float32)


@pytest.mark.parametrize(
    "settings",
    [{}, dict(groups=1, groups_per_token=1), dict(groups=2, groups_per_token=1),
     dict(groups=8, groups_per_token=4), dict(normalise_weights=False), dict(experts_per_token=4)],
    ids=str,
)  # fmt: skip
def test_routing_a_token_at_a_time(settings):
    config, p = dataclasses.replace(SMALL, **settings), router_params()
    x = some_x(4, 25)
    expert, weight = jax.jit(router_of(config).apply)({"params": p}, x)
    assert expert.shape == weight.shape == (4, 25, config.experts_per_token)
    double = jax.tree.map(np.float64, p)
    for token in np.ndindex(4, 25):
        wanted = routed(config, double, np.float64(x[token]))
        found = dict(zip(expert[token].tolist(), weight[token].tolist(), strict=True))
        assert found == pytest.approx(wanted, rel=1e-5)


def test_a_group_counts_with_its_two_best_and_its_best_may_be_negative():
    # No input: every score is 1/2, the biases decide. Group sums of the best two: 0.9, 1.0, −7
    # and 0.95, so the best single expert (0 of group 0) is not open; all choices are < 0.
    bias = np.array([0.9, -0.0, 0.5, 0.5, -3, -4, 0.45, 0.5]) - 5
    p = {"kernel": jnp.zeros((16, 8)), "bias": jnp.asarray(bias, jnp.float32)}
    expert, weight = router_of().apply({"params": p}, some_x(1, 1))
    assert sorted(expert[0, 0].tolist()) == [2, 3, 7]
    np.testing.assert_allclose(weight[0, 0], 2.5 / 3, rtol=1e-6)


def test_the_bias_changes_the_choice_and_no_weight():
    p, x = router_params(), some_x(1, 40)
    model = router_of(dataclasses.replace(SMALL, normalise_weights=False, routed_scale=1.0))
    score = 1 / (1 + np.exp(-np.asarray(x[0]) @ np.asarray(p["kernel"])))
    chosen = []
    for bias in (p["bias"], p["bias"] * 0, p["bias"] + 7.0):
        expert, weight = model.apply({"params": p | {"bias": bias}}, x)
        np.testing.assert_allclose(weight[0], np.take_along_axis(score, expert[0], 1), rtol=1e-5)
        chosen.append(np.sort(expert[0]))
    assert (chosen[0] != chosen[1]).any(axis=1).sum() > 10
    np.testing.assert_array_equal(chosen[0], chosen[2])  # a constant changes nothing


@functools.cache
def gradients(model):
    def loss(params, batch):
        return jnp.mean(jax.nn.logsumexp(2 * model.apply(params, batch), axis=-1) ** 2)

    return jax.jit(jax.value_and_grad(loss))


def test_the_bias_has_no_gradient_and_the_kernel_has(small):
    model, params = small
    _, grad = gradients(model)(params, tokens(8, 6))
    router = grad["blocks"]["router"]
    assert not np.any(router["bias"])
    assert np.abs(router["kernel"]).max(axis=(1, 2)).min() > 1e-3  # in both layers
    rest = [g for path, g in jax.tree_util.tree_leaves_with_path(grad) if path[-1].key != "bias"]
    assert min(np.abs(g).max() for g in rest) > 1e-4


def test_gradient_along_a_direction_is_the_losss_slope(small):
    model, params = small
    batch = tokens(8, 6)
    _, grad = gradients(model)(params, batch)
    norm = float(optax.tree.norm(grad))
    h = 3e-3

    def loss(step):
        moved = jax.tree.map(lambda p, g: p + step * g / norm, params, grad)
        return gradients(model)(moved, batch)[0]

    # Where no choice of experts changes: off by h² and by the loss's rounding over h.
    np.testing.assert_allclose((loss(h) - loss(-h)) / (2 * h), norm, rtol=5e-3)


def test_the_router_is_float32_whatever_the_activations_are():
    p, x = router_params(), some_x(2, 30).astype(jnp.bfloat16)
    expert, weight = router_of().apply({"params": p}, x)
    wanted = router_of().apply({"params": p}, x.astype(jnp.float32))
    assert weight.dtype == jnp.float32 and expert.dtype == jnp.int32
    np.testing.assert_array_equal(expert, wanted[0])
    np.testing.assert_array_equal(weight, wanted[1])


@pytest.mark.parametrize("cached", [False, True])
def test_in_a_bfloat16_model_all_but_routers_is_rounded(small, cached):
    _, params = small
    model, seen = Deepseek(dataclasses.replace(SMALL, dtype="bfloat16")), {}

    def spy(call, args, kwargs, context):
        if context.method_name == "__call__":
            for leaf in jax.tree.leaves(context.module.variables):
                seen.setdefault(type(context.module).__name__, set()).add(str(leaf.dtype))
        return call(*args, **kwargs)

    cache = model.empty_cache(2, 4) if cached else None
    with nn.intercept_methods(spy):
        jax.eval_shape(lambda p: model.apply(p, tokens(2, 4), cache=cache), params)
    assert seen["Router"] == {"float32"}
    assert seen["Linear"] == seen["_Kernel"] == seen["Matrix"] == {"bfloat16"}


def test_bfloat16_is_near(small):
    model, params = small
    half = Deepseek(dataclasses.replace(SMALL, dtype="bfloat16"))
    # All tokens to the same experts: else a choice on the edge falls the other way.
    params, batch = with_bias(params, [9, 9, 9, 0, 0, 0, 0, 0]), tokens(2, 7)
    expected = jitted(model)(params, batch)

    def error(logits):
        return np.sqrt(np.mean((logits - expected) ** 2) / np.mean(expected**2))

    # As for the dense decoder: each weight rounded once, and three times as much.
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), params)
    yardstick = error(jitted(model)(rounded, batch))
    assert 1e-4 < yardstick < 0.03
    cache = half.empty_cache(2, 7)
    for logits in (jitted(half)(params, batch), jitted(half)(params, batch, cache=cache)[0]):
        assert logits.dtype == jnp.float32
        assert yardstick / 3 < error(logits) < 3 * yardstick


# Balance.


def test_load_counts_tokens_that_are_not_padding(small):
    model, params = small
    batch = tokens(3, 8)
    segments = (np.arange(8)[None, :] < np.array([[8], [3], [0]])).astype(int)
    load = np.asarray(loads(model)(params, batch, segments))
    assert load.shape == (2, 8) and load.dtype == np.float32
    np.testing.assert_array_equal(load.sum(axis=1), 11 * 3)  # 8 + 3 tokens, three experts each
    wanted = np.zeros((2, 8))
    for row, n in zip(batch, (8, 3), strict=False):
        for layer, chosen in enumerate(reference(SMALL, params, row[:n])[1]):
            wanted[layer] += np.bincount(chosen, minlength=8)
    np.testing.assert_array_equal(load, wanted)


def test_load_adds_up_over_micro_batches_and_is_the_same_under_remat(small):
    model, params = small
    batch = tokens(8, 6)
    whole = loads(model)(params, batch)
    np.testing.assert_array_equal(whole.sum(axis=1), 8 * 6 * 3)
    parts = [loads(model)(params, batch[at : at + 2]) for at in (0, 2, 4, 6)]
    np.testing.assert_array_equal(whole, sum(parts))
    remat = Deepseek(dataclasses.replace(SMALL, remat=True))
    np.testing.assert_array_equal(whole, loads(remat)(params, batch))
    (value, grad), (value2, grad2) = (gradients(m)(params, batch) for m in (model, remat))
    close(value, value2, 1e-6)
    jax.tree.map(lambda a, b: close(a, b, 1e-5), grad, grad2)


def balancing(rate):
    return Deepseek(dataclasses.replace(SMALL, balance_rate=rate))


def statistics_of(*layers):
    return {"dense_blocks": {}, "blocks": {"load": jnp.array(layers, jnp.float32)}}


def test_rebalancing_moves_each_layers_biases_by_the_rate_against_their_load(small):
    _, params = small
    # Mean 4 in the first layer; every expert at the mean, 1, in the second.
    load = statistics_of([4, 5, 32 - 9, 0, 0, 0, 0, 0], [1] * 8)
    moved = balancing(0.25).rebalance(params, load)
    towards = np.array([[0, -1, -1, 1, 1, 1, 1, 1], [0] * 8])
    bias = params["blocks"]["router"]["bias"]
    np.testing.assert_allclose(moved["blocks"]["router"]["bias"], bias + 0.25 * towards, rtol=1e-6)
    np.testing.assert_array_equal(moved["blocks"]["router"]["bias"][1], bias[1])
    # and nothing else, nor the parameters that were given
    jax.tree.map(np.testing.assert_array_equal, with_bias(moved, bias), params)
    assert params["blocks"]["router"]["bias"] is bias


def test_rebalancing_at_rate_0_and_without_sparse_layers_does_nothing(small, random_params):
    _, params = small
    load = statistics_of([8, 0, 0, 0, 0, 0, 0, 0], [8, 0, 0, 0, 0, 0, 0, 0])
    assert balancing(0.0).rebalance(params, load) is params
    dense, params = make(random_params, balance_rate=0.5, **VARIANTS["all_dense"])
    assert dense.rebalance(params, {"dense_blocks": {}}) is params


def test_rebalancing_evens_out_a_skewed_router():
    # 400 tokens, three experts each: 150 to each expert when even.
    x, model = some_x(4, 100), balancing(0.02)
    p = {"blocks": {"router": router_params() | {"bias": jnp.linspace(-1.0, 1.0, 8)[None]}}}

    @jax.jit
    def step(p):
        router = p["blocks"]["router"]
        expert, _ = router_of().apply({"params": router | {"bias": router["bias"][0]}}, x)
        load = jnp.bincount(expert.reshape(-1), length=8).astype(jnp.float32)
        return model.rebalance(p, statistics_of(load)), load

    found = []
    for _ in range(150):
        p, load = step(p)
        found.append(np.asarray(load))
    assert found[0].max() > 2 * 150 and found[0].min() < 150 / 4
    late = np.mean(found[-30:], axis=0)
    assert late.max() < 1.15 * 150 and late.min() > 0.85 * 150


@pytest.fixture(scope="module")
def balanced(random_params):
    """Sparse layers only, to save compiling the others."""
    return make(random_params, layers=2, dense_layers=0, balance_rate=0.125)


def test_a_supervised_step_rebalances_by_the_load_of_what_is_not_padding(balanced, mesh1):
    (model, params), batch = balanced, tokens(4, 6)
    segments = (np.arange(6)[None, :] < np.array([[6], [2], [4], [0]])).astype(np.int32)
    positions = np.broadcast_to(np.arange(6, dtype=np.int32), (4, 6))
    packed = Packed(
        tokens_BT=batch, segments_BT=segments, positions_BT=positions,
        mask_BT=segments.astype(np.float32),
    )  # fmt: skip
    with jax.set_mesh(mesh1):
        state = init_state(model, optax.identity(), mesh1, params=params)
        step = supervised_step(model, optax.identity())
        state, _ = step(state, {}, jax.device_put(packed, rows(mesh1)), 0.0)
    load = loads(model)(params, batch, segments)
    assert load.sum() == 12 * 3 * 2
    wanted = model.rebalance(params, {"blocks": {"load": load}})
    jax.tree.map(np.testing.assert_array_equal, state.params, wanted)
    assert (state.params["blocks"]["router"]["bias"] != params["blocks"]["router"]["bias"]).any()


def test_a_policy_update_rebalances_once_by_the_load_of_all_micro_batches(balanced, mesh1):
    # Two packed rows, a micro-batch each: rows 0 and 3 with the prompt that both have, 1 and 2.
    (model, params), batch = balanced, tokens(4, 7)
    batch[3, :3] = batch[0, :3]
    prompt, length = np.array([3, 2, 1, 3], np.int32), np.array([4, 2, 3, 2], np.int32)
    prompt_BT, tokens_BT = np.zeros((4, 3), np.int32), np.zeros((4, 4), np.int32)
    for i, (n, m) in enumerate(zip(prompt, length, strict=True)):
        prompt_BT[i, 3 - n :], tokens_BT[i, :m] = batch[i, :n], batch[i, n : n + m]
    zeros = np.zeros((4, 4), np.float32)
    rollout = Rollout(prompt_BT, prompt, tokens_BT, zeros, length, np.zeros(4, bool))
    learner = PolicyLearner(
        model, optax.identity(), functools.partial(LOSSES["grpo"], clip_eps=0.2, kl_coef=0.1),
        temperature=1.0, shape=Shape(1, 32, 2, 4, share=True, by_blocks=True), mesh=mesh1,
    )  # fmt: skip
    chosen, adv = np.array([0, 3, 1, 2]), np.ones(4, np.float32)
    with jax.set_mesh(mesh1):
        state = init_state(model, optax.identity(), mesh1, params=params)
        state, _ = learner.update(state, {}, rollout, chosen, adv, zeros, 0.0)
        logp = learner.logprobs(params, rollout)
    real = (np.arange(7) < (prompt + length)[:, None]).astype(int)
    logits, load = with_loads(model)(params, batch, real)
    # The shared prompt is read, and counts, once.
    load = load - loads(model)(params, batch, (np.arange(7) < [[0], [0], [0], [3]]).astype(int))
    assert load.sum() == (3 + 4 + 2 + 2 + 2 + 1 + 3) * 3 * 2
    wanted = model.rebalance(params, {"blocks": {"load": load}})
    jax.tree.map(np.testing.assert_array_equal, state.params, wanted)
    every = np.asarray(jax.nn.log_softmax(logits, axis=-1))
    for i, (n, m) in enumerate(zip(prompt, length, strict=True)):
        close(logp[i, :m], [every[i, at - 1, batch[i, at]] for at in range(n, n + m)])


# Meshes.

MESHES = {
    "fsdp_expert": dict(fsdp=2, expert=4),
    "expert_tensor_fsdp": dict(fsdp=2, expert=2, tensor=2),
    "data_expert": dict(data=2, fsdp=1, expert=4),
}


def placed(model, params, mesh):
    return jax.device_put(params, shardings(mesh, params, model.rules))


@pytest.mark.parametrize("name", MESHES)
def test_loss_and_every_gradient_are_the_same_on_eight_devices(small, name):
    model, params = small
    mesh, batch = make_mesh(**MESHES[name]), tokens(8, 6)
    value, grad = gradients(model)(params, batch)
    with jax.set_mesh(mesh):
        given = placed(model, params, mesh), jax.device_put(batch, rows(mesh))
        found = jax.block_until_ready(gradients(model)(*given))
    np.testing.assert_allclose(found[0], value, rtol=1e-5)

    def same(path, a, b):
        message = jax.tree_util.keystr(path)
        size = max(np.abs(b).max(), 1e-3)
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * size, err_msg=message)

    jax.tree_util.tree_map_with_path(same, jax.device_get(found[1]), jax.device_get(grad))


def test_experts_are_dealt_out_and_the_rest_is_cut_by_their_axis_too(small):
    model, params = small
    block = placed(model, params, make_mesh(fsdp=2, expert=2, tensor=2))["blocks"]

    def piece(*names):
        leaf = functools.reduce(dict.__getitem__, names, block)["kernel"]
        return leaf.sharding.shard_shape(leaf.shape)

    # [2, 8, 16, 8] and [2, 8, 8, 16]: experts by two, width by fsdp, their own width by tensor
    assert piece("experts", "gate") == piece("experts", "up") == (2, 4, 8, 4)
    assert piece("experts", "down") == (2, 4, 4, 8)
    assert piece("shared", "gate") == (2, 4, 4) and piece("shared", "down") == (2, 4, 4)
    assert piece("attention", "latent_b") == (2, 2, 11)  # [2, 8, 22]
    assert piece("router") == (2, 16, 8)


@pytest.mark.parametrize(("name", "B"), [("fsdp_expert", 1), ("expert_tensor_fsdp", 3)])
def test_rows_that_the_mesh_does_not_divide(small, name, B):
    model, params = small
    mesh, batch = make_mesh(**MESHES[name]), tokens(B, 5)
    expected = jitted(model)(params, batch)
    with jax.set_mesh(mesh):
        given = placed(model, params, mesh)
        close(jax.block_until_ready(jitted(model)(given, batch)), expected, 1e-5)


def test_decoding_on_a_mesh_that_does_not_divide_the_rows(small):
    model, params = small
    mesh, batch = make_mesh(**MESHES["expert_tensor_fsdp"]), tokens(3, 4)
    with jax.set_mesh(mesh):
        given = placed(model, params, mesh)
        cache, parts = filled(model.empty_cache(3, 5)), []
        for piece in np.split(batch, 4, axis=1):
            logits, cache = jax.block_until_ready(jitted(model)(given, piece, cache=cache))
            parts.append(logits)
    close(np.concatenate(parts, axis=1), jitted(model)(params, batch))


def test_load_is_the_same_on_eight_devices(small):
    model, params = small
    mesh, batch = make_mesh(**MESHES["fsdp_expert"]), tokens(8, 6)
    segments = (np.arange(6)[None, :] < np.arange(8)[:, None]).astype(np.int32)
    wanted = loads(model)(params, batch, segments)
    with jax.set_mesh(mesh):
        cut = [jax.device_put(x, rows(mesh)) for x in (batch, segments)]
        found = jax.block_until_ready(loads(model)(placed(model, params, mesh), *cut))
    np.testing.assert_array_equal(found, wanted)


# Shapes and settings.


def shapes(config):
    return jax.eval_shape(Deepseek(config).init, jax.random.key(0))


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_parameter_count(settings):
    c = dataclasses.replace(SMALL, **settings)
    size = c.heads * (c.nope_dim + c.rope_dim)
    query = c.width * c.query_rank + c.query_rank + c.query_rank * size
    query = query if c.query_rank else c.width * size
    latent = c.width * (c.kv_rank + c.rope_dim) + c.kv_rank
    latent += c.kv_rank * c.heads * (c.nope_dim + c.value_dim)
    block = query + latent + c.heads * c.value_dim * c.width + 2 * c.width
    dense = block + 3 * c.width * c.mlp
    sparse = block + 3 * c.width * c.expert_mlp * (c.experts + c.shared_experts)
    sparse += c.width * c.experts + c.experts
    expected = c.vocabulary * c.width * (1 if c.tied else 2) + c.width
    expected += c.dense_layers * dense + (c.layers - c.dense_layers) * sparse
    assert parameter_count(shapes(c)) == expected


def test_initial_scales():
    # As for the dense decoder: variance 1/in, and 1/(in · 2L) of what writes into the residual
    # stream. An expert's `in` is its own, not that of all experts.
    config = dataclasses.replace(
        SMALL, width=64, layers=2, kv_rank=64, heads=8, value_dim=8, expert_mlp=32, mlp=64
    )
    p = jax.jit(Deepseek(config).init)(jax.random.key(0))
    block = p["blocks"]

    def scaled(x, variance):
        return float(jnp.std(x["kernel"])) / math.sqrt(variance)

    for x, variance in (
        (block["experts"]["gate"], 1 / 64), (block["experts"]["up"], 1 / 64),
        (block["experts"]["down"], 1 / (32 * 4)), (block["shared"]["down"], 1 / (32 * 4)),
        (block["attention"]["latent_b"], 1 / 64), (block["attention"]["out"], 1 / (64 * 4)),
        (p["dense_blocks"]["mlp"]["down"], 1 / (64 * 4)),
    ):  # fmt: skip
        assert scaled(x, variance) == pytest.approx(1, rel=0.05)  # 2048 numbers: 1.6% of error
    assert not np.any(block["router"]["bias"])
    gate = block["experts"]["gate"]["kernel"]
    assert not np.array_equal(gate[0, 0], gate[0, 1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(
            ({name: 0}, f"{name}=0 must be at least 1")
            for name in (
                "vocabulary", "width", "layers", "heads", "kv_rank", "nope_dim", "rope_dim",
                "value_dim", "mlp", "expert_mlp", "experts", "experts_per_token", "groups",
                "groups_per_token", "context",
            )
        ),
        *(
            ({name: -1}, f"{name}=-1 must not be negative")
            for name in ("dense_layers", "query_rank", "shared_experts", "balance_rate")
        ),
        (dict(balance_rate=math.nan), "balance_rate=nan must not be negative"),
        (dict(dense_layers=4), "dense_layers=4 of layers=3"),
        (dict(rope_dim=5), "rope_dim=5 must be even"),
        (dict(groups=3), "experts=8 is not divisible by groups=3"),
        (dict(groups_per_token=5), "groups_per_token=5 of groups=4"),
        (dict(experts_per_token=5), "experts_per_token=5, but 2 groups hold 4 experts"),
        (dict(dtype="float16"), "dtype='float16' must be 'float32' or 'bfloat16'"),
        (dict(rope_scaling=dict(kind="ntk", factor=2.0)), "kind='ntk' is not one of"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_configs(settings, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **settings)


def test_rope_scaling_may_come_from_a_file():
    c = dataclasses.replace(SMALL, rope_scaling=dataclasses.asdict(YARN))
    assert c.rope_scaling == YARN and hash(c)
