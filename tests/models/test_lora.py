"""Adapters: where they are, what they add, and that nothing else is trained."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from r1jax.data.packing import Document, pack
from r1jax.learner import init_state, supervised_step
from r1jax.models import lora
from r1jax.models.deepseek import Deepseek, DeepseekConfig
from r1jax.models.layers import Linear, Matrix
from r1jax.models.lora import LoraConfig
from r1jax.sharding import make_mesh, path_name

SPARSE = DeepseekConfig(
    vocabulary=32, width=16, layers=2, dense_layers=1, heads=2, query_rank=8, kv_rank=8,
    nope_dim=6, rope_dim=4, value_dim=4, mlp=16, expert_mlp=8, experts=4, context=64,
    balance_rate=0.5,
)  # fmt: skip
CONFIG, KEY = LoraConfig(rank=3, alpha=12.0), jax.random.key(7)  # s = 12 / 3 = 4
ATTENTION = {"query_a", "query_b", "latent_a", "latent_b", "out"}
MLP = {"gate", "up", "down"}


@pytest.fixture(scope="module", params=["dense", "sparse"])
def case(request, tiny, random_params):
    if request.param == "dense":
        return tiny
    model = Deepseek(SPARSE)
    return model, random_params(model)


@pytest.fixture(scope="module")
def sparse(random_params):
    model = Deepseek(SPARSE)
    return model, random_params(model)


@functools.cache
def jitted(model):
    return jax.jit(model.apply)


def tokens(*shape):
    return np.random.default_rng(0).integers(0, 32, shape).astype(np.int32)


def leaves(tree):
    return {path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def trained(trainable, seed=0):
    """Adapters as after training: both factors random, of the size of kernels."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape) / x.shape[1] ** 0.5, x.dtype),
        trainable,
    )


# What there is to train.


def test_rank_0_trains_everything(case):
    params = case[1]
    frozen, trainable = lora.split(params, LoraConfig(), KEY)
    assert frozen == {} and trainable is params
    assert lora.join(frozen, trainable) == params
    assert lora.merge(params) == params


def test_adapters_stand_beside_every_linear_map_and_nothing_else(sparse):
    params = sparse[1]
    frozen, trainable = lora.split(params, CONFIG, KEY)
    wanted = {f"dense_blocks/attention/{n}" for n in ATTENTION}
    wanted |= {f"blocks/attention/{n}" for n in ATTENTION}
    wanted |= {f"dense_blocks/mlp/{n}" for n in MLP} | {f"blocks/shared/{n}" for n in MLP}
    assert set(leaves(trainable)) == {f"{p}/lora_{n}" for p in wanted for n in "ab"}
    assert set(leaves(frozen)) == set(leaves(params)) | {f"{p}/lora_scale" for p in wanted}
    before, kept = leaves(params), leaves(frozen)
    assert all(kept[path] is leaf for path, leaf in before.items())  # one copy in memory
    joined = leaves(lora.join(frozen, trainable))
    assert joined == kept | leaves(trainable)
    for path in wanted:
        layers, rows, columns = before[f"{path}/kernel"].shape
        assert joined[f"{path}/lora_a"].shape == (layers, rows, 3)
        assert joined[f"{path}/lora_b"].shape == (layers, 3, columns)
        assert not np.any(joined[f"{path}/lora_b"])
        np.testing.assert_array_equal(joined[f"{path}/lora_scale"], [12 / 3] * layers)


def test_splitting_and_joining_leave_what_they_are_given(tiny):
    params = tiny[1]
    before = set(leaves(params))
    frozen, trainable = lora.split(params, CONFIG, KEY)
    names = set(leaves(frozen)), set(leaves(trainable))
    lora.join(frozen, trainable)
    lora.merge(lora.join(frozen, trainable))
    lora.with_adapters(params, trainable, CONFIG)
    assert set(leaves(params)) == before
    assert (set(leaves(frozen)), set(leaves(trainable))) == names


def test_targets_select(case):
    _, trainable = lora.split(case[1], LoraConfig(rank=2, targets=("out", "gate")), KEY)
    names = {path.split("/")[-2] for path in leaves(trainable)}
    assert names == {"out", "gate"}


@pytest.mark.parametrize("target", ["queries", "router", "experts", "kernel", "embed"])
def test_an_unknown_target_names_those_there_are(sparse, target):
    message = (
        f"lora.targets: no linear map of this model is called '{target}'; "
        "there are down, gate, latent_a, latent_b, out, query_a, query_b, up"
    )
    with pytest.raises(ValueError, match=message):
        lora.split(sparse[1], LoraConfig(rank=2, targets=("gate", target)), KEY)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(rank=-1), "rank=-1 must not be negative; 0 trains without adapters"),
        (dict(rank=1, alpha=0.0), "alpha=0.0 must be positive"),
        (dict(rank=1, alpha=math.nan), "alpha=nan must be positive"),
    ],
)
def test_bad_configs(settings, message):
    with pytest.raises(ValueError, match=message):
        LoraConfig(**settings)


def test_initial_factors_are_a_function_of_key_and_path(sparse):
    params = sparse[1]
    every, again = (leaves(lora.split(params, CONFIG, KEY)[1]) for _ in range(2))
    some = leaves(lora.split(params, LoraConfig(rank=3, targets=("up",)), KEY)[1])
    other = leaves(lora.split(params, CONFIG, jax.random.key(8))[1])
    for path, a in every.items():
        np.testing.assert_array_equal(a, again[path])
        if path in some:  # whatever else is adapted
            np.testing.assert_array_equal(a, some[path])
        if path.endswith("lora_a"):
            assert not np.array_equal(a, other[path])
    a = [v.ravel().tobytes() for path, v in every.items() if path.endswith("lora_a")]
    assert len(set(a)) == len(a)  # also gate and up, which are alike in shape


def test_a_has_variance_one_over_its_rows():
    params = {"blocks": {"up": {"kernel": jnp.zeros((2, 64, 8))}}}
    a = lora.split(params, LoraConfig(rank=32), KEY)[1]["blocks"]["up"]["lora_a"]
    # 4096 numbers: the standard error of their spread is 1/√8192 = 1.1%
    assert float(a.std()) == pytest.approx(1 / 8, rel=0.04)
    assert abs(float(a.mean())) < 4 / 8 / 64
    assert not np.array_equal(a[0], a[1])


# What they add.


def test_new_adapters_change_no_bit(case):
    model, params = case
    batch = tokens(3, 7)
    joined = lora.join(*lora.split(params, CONFIG, KEY))
    np.testing.assert_array_equal(jitted(model)(joined, batch), jitted(model)(params, batch))
    jax.tree.map(np.testing.assert_array_equal, lora.merge(joined), params)


def test_adapted_logits_are_those_of_merged_parameters(case):
    model, params = case
    frozen, trainable = lora.split(params, CONFIG, KEY)
    joined, batch = lora.join(frozen, trained(trainable)), tokens(3, 7)
    merged = lora.merge(joined)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    base, found, wanted = (jitted(model)(p, batch) for p in (params, joined, merged))
    assert np.abs(found - base).max() > 0.3
    # Sums of up to 16 + 3 products, rounded at 2⁻²⁴ of their size each, in some ten maps one
    # after the other: 10 · 19 · 6e-8 = 1e-5 of logits' size, which is 1.
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5)
    cache = model.empty_cache(3, 7)
    parts = []
    for piece in np.split(batch, [5, 6], axis=1):
        logits, cache = jitted(model)(joined, piece, cache=cache)
        parts.append(logits)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), wanted, rtol=0, atol=3e-5)


def test_every_adapter_is_read(sparse):
    # One at a time: the logits move with each.
    model, params = sparse
    frozen, trainable = lora.split(params, CONFIG, KEY)
    batch, full = tokens(2, 6), leaves(trained(trainable))
    base = jitted(model)(params, batch)
    for path in {p.rpartition("/")[0] for p in full}:
        own = jax.tree_util.tree_map_with_path(
            lambda p, x: full[path_name(p)] if path_name(p).startswith(path + "/") else x,  # noqa: B023
            trainable,
        )
        moved = jitted(model)(lora.join(frozen, own), batch)
        assert np.abs(moved - base).max() > 1e-3, path


def test_merging_adds_scaled_products_and_keeps_types():
    rng = np.random.default_rng(0)
    a, b, w = (rng.standard_normal(s).astype(np.float32) for s in ((2, 5, 3), (2, 3, 4), (2, 5, 4)))
    for dtype in (jnp.float32, jnp.bfloat16):
        kernel, other = jnp.asarray(w, dtype), jnp.ones((2, 4), dtype)
        params = {"x": {"kernel": kernel, "bias": other}, "y": {"kernel": kernel}}
        adapters = {"x": {"lora_a": jnp.asarray(a), "lora_b": jnp.asarray(b)}}
        merged = lora.merge(lora.with_adapters(params, adapters, LoraConfig(rank=3, alpha=1.5)))
        assert set(leaves(merged)) == {"x/kernel", "x/bias", "y/kernel"}
        assert merged["x"]["bias"] is other and merged["y"]["kernel"] is kernel
        assert merged["x"]["kernel"].dtype == dtype
        for layer in range(2):  # s = 1.5 / 3, added in float32, then rounded once
            wanted = np.float64(kernel[layer]) + 0.5 * np.float64(a[layer]) @ b[layer]
            wanted = np.float32(jnp.asarray(wanted.astype(np.float32), dtype))
            found = np.float32(merged["x"]["kernel"][layer])
            if dtype == jnp.bfloat16:
                np.testing.assert_array_equal(found, wanted)
            else:
                np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_bfloat16_kernels_get_float32_adapters(tiny):
    model, params = tiny
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    frozen, trainable = lora.split(half, CONFIG, KEY)
    assert {x.dtype for x in jax.tree.leaves(trainable)} == {jnp.dtype(jnp.float32)}
    merged = lora.merge(lora.join(frozen, trained(trainable)))
    assert {x.dtype for x in jax.tree.leaves(merged)} == {jnp.dtype(jnp.bfloat16)}
    assert np.isfinite(jitted(model)(lora.join(frozen, trainable), tokens(1, 4))).all()


# What is trained.


def by_hand(x, params, grad):
    """Gradients in A and B of s x A B against `grad`, in float64: s xᵀ dy Bᵀ and s (x A)ᵀ dy."""
    x, a, b, grad = (np.float64(v) for v in (x, params["lora_a"], params["lora_b"], grad))
    s = float(params["lora_scale"])
    return s * x.T @ grad @ b.T, s * (x @ a).T @ grad


def product(params):
    return np.float64(params["lora_a"]) @ np.float64(params["lora_b"])


def one_layer():
    rng = np.random.default_rng(1)
    shapes = dict(kernel=(5, 4), lora_a=(5, 2), lora_b=(2, 4), lora_scale=())
    return {k: jnp.asarray(rng.standard_normal(s), jnp.float32) for k, s in shapes.items()}, rng


def test_gradient_of_a_linear_map_by_hand():
    params, rng = one_layer()
    x, grad = (rng.standard_normal(s).astype(np.float32) for s in ((7, 5), (7, 4)))
    frozen = {k: params[k] for k in ("kernel", "lora_scale")}

    def loss(adapters):
        return jnp.sum(Linear(4).apply({"params": frozen | adapters}, x) * grad)

    found = jax.grad(loss)({k: params[k] for k in ("lora_a", "lora_b")})
    for a, b in zip((found["lora_a"], found["lora_b"]), by_hand(x, params, grad), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    y = np.float64(x) @ (params["kernel"] + params["lora_scale"] * product(params))
    np.testing.assert_allclose(Linear(4).apply({"params": params}, x), y, rtol=1e-5, atol=1e-5)


def test_gradient_of_a_matrix_by_hand():
    # The map of one-hot rows: x = 1.
    params, rng = one_layer()
    matrix = Matrix(4).apply({"params": params}, 5)
    wanted = params["kernel"] + params["lora_scale"] * product(params)
    np.testing.assert_allclose(matrix, wanted, rtol=1e-5, atol=1e-5)
    grad = rng.standard_normal((5, 4)).astype(np.float32)
    found = jax.grad(lambda p: jnp.sum(Matrix(4).apply({"params": p}, 5) * grad))(params)
    wanted = by_hand(np.eye(5), params, grad)
    for a, b in zip((found["lora_a"], found["lora_b"]), wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_the_whole_models_gradient_in_adapters_follows_from_that_of_its_kernels(sparse):
    # y depends on A and B through W + s A B alone: dA = s dW Bᵀ and dB = s Aᵀ dW.
    model, params = sparse
    frozen, trainable = lora.split(params, CONFIG, KEY)
    trainable, batch = trained(trainable), tokens(2, 6)

    def loss(trainable, frozen):
        logits = model.apply(lora.join(frozen, trainable), batch)
        return jnp.sum(jax.nn.logsumexp(2 * logits, axis=-1))

    gradient = jax.jit(jax.grad(loss))
    found = leaves(gradient(trainable, frozen))
    whole = leaves(gradient(lora.merge(lora.join(frozen, trainable)), {}))
    factors = leaves(trainable)
    assert len(found) == len(factors)
    for path in {p.rpartition("/")[0] for p in factors}:
        a, b = (np.float64(factors[f"{path}/lora_{n}"]) for n in "ab")
        kernel = np.float64(whole[f"{path}/kernel"])
        for name, wanted in (
            ("a", 4 * kernel @ b.swapaxes(1, 2)), ("b", 4 * a.swapaxes(1, 2) @ kernel),
        ):  # fmt: skip
            size = np.abs(wanted).max()
            assert size > 1e-4
            np.testing.assert_allclose(
                found[f"{path}/lora_{name}"], wanted, rtol=0, atol=1e-4 * size, err_msg=path
            )


def test_a_step_trains_adapters_alone_and_rebalances_nothing(sparse, mesh1):
    model, params = sparse
    frozen, trainable = lora.split(params, CONFIG, KEY)
    before = jax.device_get(frozen)
    documents = [Document([1, 5, 6, 7, 2], 1), Document([1, 9, 8, 2], 1)]
    with jax.set_mesh(mesh1):
        state = init_state(model, optax.identity(), mesh1, params=trainable)
        step = supervised_step(model, optax.identity())
        batch = jax.device_put(pack(documents, [[0], [1]], 6))
        state, _ = step(state, frozen, batch, 1.0)
        after = jax.device_get(leaves(state.params))
        state, _ = step(state, frozen, batch, 1.0)
    assert set(after) == set(leaves(trainable))
    for path, x in leaves(trainable).items():
        moved = np.abs(after[path] - x).max()
        # B is 0 at first, so that dA = s xᵀ dy Bᵀ is 0 too.
        assert moved == 0 if path.endswith("lora_a") else moved > 1e-6, path
    assert all(np.abs(leaves(state.params)[p] - x).max() > 0 for p, x in after.items())
    jax.tree.map(np.testing.assert_array_equal, frozen, before)


def test_adapters_on_eight_devices(sparse):
    model, params = sparse
    frozen, trainable = lora.split(params, CONFIG, KEY)
    trainable, batch = trained(trainable), tokens(8, 4)
    wanted = jitted(model)(lora.join(frozen, trainable), batch)
    mesh = make_mesh(fsdp=2, expert=2, tensor=2)
    with jax.set_mesh(mesh):
        state = init_state(model, optax.identity(), mesh, params=trainable)
        found = jax.block_until_ready(jitted(model)(lora.join(frozen, state.params), batch))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
