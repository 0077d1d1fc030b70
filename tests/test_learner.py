"""Updates against unpadded rows, one batch in one piece, and numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from r1jax.data.packing import Document, Packed, pack
from r1jax.learner import PolicyLearner, init_state, supervised_step
from r1jax.losses import LOSSES
from r1jax.optim import OPTIMIZERS
from r1jax.types import Counts, PolicyBatch

LR, TEMPERATURE = 0.01, 0.7
PROMPTS = [1, 4, 6, 2, 3, 6, 5]
LENGTHS = [9, 5, 3, 8, 0, 2, 4]  # one response of nothing at all
SETTINGS = dict(clip_eps=(0.2, 0.3), kl_coef=0.05)
# With an update that is the gradient, to read it off, and with Adam's.
GRADIENT = optax.identity()


def loss_of(name):
    extra = {"length_constant": 11.0} if name == "dr_grpo" else {}
    return functools.partial(LOSSES[name], **SETTINGS, **extra)


@pytest.fixture(scope="module")
def rows(tiny):
    """Rows of a rollout: tokens by row, and arrays [7, 9] that are NaN after a row's end."""
    rng = np.random.default_rng(0)
    tokens = [rng.integers(0, 32, p + n) for p, n in zip(PROMPTS, LENGTHS, strict=True)]
    mask = np.arange(9)[None, :] < np.array(LENGTHS)[:, None]
    logp = np.array(right_padded_logp(tiny[0], tokens)(tiny[1]))

    def near(scale):  # ratios on both sides of the clip
        return np.where(mask, logp + scale * rng.standard_normal(mask.shape), np.nan)

    adv = rng.standard_normal(7).astype(np.float32)
    return tokens, mask.astype(np.float32), near(0.3), near(0.5), adv


def right_padded_logp(model, tokens):
    """A function of parameters: log-probabilities [7, 9] of the responses, rows side by side."""
    padded = np.zeros((7, 16), np.int32)
    for row, given in zip(padded, tokens, strict=True):
        row[: len(given)] = given
    columns = np.minimum(np.array(PROMPTS)[:, None] + np.arange(9), 15)
    targets = np.take_along_axis(padded, columns, axis=1)

    @jax.jit
    def logp(params):
        logits = model.apply(params, padded) / TEMPERATURE
        every = jax.nn.log_softmax(
            jnp.take_along_axis(logits, columns[:, :, None] - 1, axis=1), axis=-1
        )
        return jnp.take_along_axis(every, targets[:, :, None], axis=-1)[..., 0]

    return logp


def micro_batch(rows, chosen, R, width=8):
    """Rows left-padded as the learner wants them; -1 is a padding row, full of rubbish."""
    tokens, mask, old, ref, adv = rows
    out = np.random.default_rng(9).integers(0, 32, (len(chosen), width + R)).astype(np.int32)
    for row, i in zip(out, chosen, strict=True):
        given = tokens[i][: PROMPTS[i] + R]
        row[width - PROMPTS[i] : width - PROMPTS[i] + len(given)] = given
    real = np.array(chosen) >= 0
    return PolicyBatch(
        tokens_BT=out,
        start_B=(width - np.array(PROMPTS)[chosen]).astype(np.int32),
        old_logp_BR=old[chosen, :R].astype(np.float32),
        ref_logp_BR=ref[chosen, :R].astype(np.float32),
        adv_B=np.where(real, adv[chosen], 5).astype(np.float32),
        mask_BR=mask[chosen, :R] * real[:, None].astype(np.float32),
    )


CUTS = {
    "one": [([0, 1, 2, 3, 4, 5, 6, -1], 9)],
    "uneven": [([3, 0, -1, -1], 9), ([1, 6, 2, 5], 5), ([-1, 4, -1, -1], 5)],
}
WHOLE = Counts(rows=np.float32(7), tokens=np.float32(sum(LENGTHS)))


@functools.cache
def learner(model, name):
    return PolicyLearner(model, GRADIENT, loss_of(name), temperature=TEMPERATURE)


def updated(tiny, rows, name, cut, mesh):
    """(state, metrics) after an update from the micro-batches of the cut."""
    model, params = tiny
    with jax.set_mesh(mesh):
        state = init_state(model, GRADIENT, mesh, params=params)
        batches = [jax.device_put(micro_batch(rows, *c), layout(mesh)) for c in CUTS[cut]]
        return jax.block_until_ready(learner(model, name).update(state, {}, batches, WHOLE, 1.0))


def layout(mesh):
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp")))


def expected(tiny, rows, name):
    """(loss, metrics, gradient) of the seven rows as one batch, without micro-batches."""
    tokens, mask, old, ref, adv = rows
    logp, pull = jax.vjp(right_padded_logp(tiny[0], tokens), tiny[1])

    def loss(logp):
        return loss_of(name)(logp, np.float32(old), np.float32(ref), adv, mask)

    (value, metrics), grad_logp = jax.jit(jax.value_and_grad(loss, has_aux=True))(logp)
    return value, metrics, pull(grad_logp)[0]


def equal(actual, wanted, tolerance):
    compare = functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)
    jax.tree.map(lambda a, b: compare(a, b), actual, wanted)


@pytest.mark.parametrize("name", LOSSES)
def test_micro_batches_have_the_gradient_of_the_one_batch(tiny, rows, mesh1, name):
    value, metrics, gradient = expected(tiny, rows, name)
    assert metrics["clip_fraction"] > 0.1 and optax.tree.norm(gradient) > 0.1
    for cut in CUTS if name == "grpo" else ["uneven"]:
        state, got = updated(tiny, rows, name, cut, mesh1)
        found = jax.tree.map(np.subtract, state.params, tiny[1])
        equal(found, gradient, 1e-6)
        norm = got.pop("gradient_norm")
        np.testing.assert_allclose(norm, optax.tree.norm(gradient), rtol=1e-5)
        equal(got, metrics | {"total": value}, 1e-6)
        assert int(state.step) == 1


def test_parameters_after_an_update_are_those_of_the_one_batch(tiny, rows, mesh1):
    # By the optimiser that stages use, clipping included (the norm is above 0.1, see above).
    gradient = expected(tiny, rows, "grpo")[2]
    adam = OPTIMIZERS["adamw"](weight_decay=0.1, clip_norm=0.1)
    updates, _ = jax.jit(adam.update)(gradient, jax.jit(adam.init)(tiny[1]), tiny[1])
    wanted = jax.tree.map(lambda p, u: p + LR * u, tiny[1], updates)
    model, params = tiny
    state = init_state(model, adam, mesh1, params=params)
    mine = PolicyLearner(model, adam, loss_of("grpo"), temperature=TEMPERATURE)
    batches = [jax.device_put(micro_batch(rows, *c), layout(mesh1)) for c in CUTS["uneven"]]
    with jax.set_mesh(mesh1):
        state, _ = mine.update(state, {}, batches, WHOLE, LR)
    equal(state.params, wanted, 1e-6)


def test_logprobs_of_left_padded_rows(tiny, rows):
    tokens, mask, *_ = rows
    wanted = right_padded_logp(tiny[0], tokens)(tiny[1])
    batch = micro_batch(rows, [0, 1, 2, 3, 4, 5, 6, -1], 9)
    got = learner(tiny[0], "grpo").logprobs(tiny[1], batch.tokens_BT, batch.start_B, 9)
    np.testing.assert_allclose(got[:7] * mask, wanted * mask, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("absolute_positions")
def test_positions_count_from_a_rows_first_token(tiny, rows):
    tokens, mask, *_ = rows
    wanted = right_padded_logp(tiny[0], tokens)(tiny[1])
    batch = micro_batch(rows, [0, 1, 2, 3, 4, 5, 6, -1], 9)
    mine = PolicyLearner(tiny[0], GRADIENT, loss_of("grpo"), temperature=TEMPERATURE)
    got = mine.logprobs(tiny[1], batch.tokens_BT, batch.start_B, 9)
    np.testing.assert_allclose(got[:7] * mask, wanted * mask, rtol=0, atol=1e-5)


def test_a_policy_update_on_eight_devices(tiny, rows, mesh1, mesh8):
    (one, metrics1), (eight, metrics8) = (
        updated(tiny, rows, "grpo", "uneven", mesh) for mesh in (mesh1, mesh8)
    )
    assert len(eight.params["embed"].sharding.device_set) == 8
    equal(eight.params, jax.device_get(one.params), 1e-5)
    equal(metrics8, metrics1, 1e-5)


# Supervised steps.

DOCUMENTS = [
    Document([1, 5, 6, 7, 2], 2),
    Document([1, 9, 8, 2], 3),
    Document([1, 20, 21, 22, 23, 24, 2], 1),
    Document([1, 11, 12, 13, 2], 4),
]
ROW = 12


def packed(documents=DOCUMENTS, rows=((0, 1), (2, 3), (), ())):
    return pack(documents, [list(r) for r in rows], ROW)


@functools.cache
def step_of(model):
    return supervised_step(model, GRADIENT)


def supervised(tiny, batch, mesh, lr=1.0):
    """(gradient, metrics): what one step adds to the parameters at rate 1."""
    model, params = tiny
    with jax.set_mesh(mesh):
        state = init_state(model, GRADIENT, mesh, params=params)
        state, metrics = step_of(model)(state, {}, jax.device_put(batch, layout(mesh)), lr)
        jax.block_until_ready(state)
    return jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), state.params, params), metrics


def test_supervised_loss_against_numpy(tiny, mesh1):
    # Each document alone, in float64; of the response tokens only.
    model, params = tiny
    apply, total, count = jax.jit(model.apply), 0.0, 0
    for document in DOCUMENTS:
        row = np.zeros((1, ROW), np.int32)
        row[0, : len(document.tokens)] = document.tokens
        logits = np.asarray(apply(params, row)[0], np.float64)
        for at in range(document.prompt, len(document.tokens)):
            z = logits[at - 1]
            total += np.log(np.exp(z - z[document.tokens[at]]).sum())
            count += 1
    _, metrics = supervised(tiny, packed(), mesh1)
    assert count == 3 + 1 + 6 + 1
    np.testing.assert_allclose(metrics["nll"], total / count, rtol=1e-6)


def test_a_supervised_step_goes_down_its_gradient(tiny, mesh1):
    # Along the gradient g at rate h the loss rises by h |g|², to second order in h; the norm
    # reported is that of g.
    gradient, before = supervised(tiny, packed(), mesh1)
    square = sum(float(np.sum(np.float64(g) ** 2)) for g in jax.tree.leaves(gradient))
    np.testing.assert_allclose(before["gradient_norm"], np.sqrt(square), rtol=1e-5)
    h = 1e-3
    up = jax.tree.map(lambda p, g: p + h * g, tiny[1], gradient)
    down = jax.tree.map(lambda p, g: p - h * g, tiny[1], gradient)
    rise = [supervised((tiny[0], p), packed(), mesh1)[1]["nll"] for p in (up, down)]
    np.testing.assert_allclose((rise[0] - rise[1]) / (2 * h), square, rtol=5e-3)


def test_padding_has_no_influence(tiny, mesh1):
    batch = packed()
    padding = batch.segments_BT == 0
    rubbish = np.random.default_rng(1).integers(0, 32, batch.tokens_BT.shape, np.int32)
    other = batch._replace(tokens_BT=np.where(padding, rubbish, batch.tokens_BT))
    assert (other.tokens_BT != batch.tokens_BT).sum() > 20
    (gradient, metrics), (gradient2, metrics2) = (
        supervised(tiny, b, mesh1) for b in (batch, other)
    )
    jax.tree.map(np.testing.assert_array_equal, metrics, metrics2)
    jax.tree.map(np.testing.assert_array_equal, gradient, gradient2)


def test_prompts_are_read_but_not_trained_on(tiny, mesh1):
    # A document that is all prompt changes nothing, wherever it is packed.
    prompt = Document([1, 30, 29, 28], 4)
    with_prompt = packed([*DOCUMENTS, prompt], rows=((0, 1), (2, 3), (4,), ()))
    equal(supervised(tiny, with_prompt, mesh1), supervised(tiny, packed(), mesh1), 1e-6)
    # The prompt of a response, though, is read: another one gives another loss.
    changed = [DOCUMENTS[0]._replace(tokens=[1, 25, 6, 7, 2]), *DOCUMENTS[1:]]
    losses = [supervised(tiny, packed(d), mesh1)[1]["nll"] for d in (changed, DOCUMENTS)]
    assert abs(losses[0] - losses[1]) > 1e-3


def test_nothing_to_train_on_gives_nothing(tiny, mesh1):
    gradient, metrics = supervised(tiny, packed(rows=((), (), (), ())), mesh1)
    assert float(metrics["nll"]) == 0 and float(metrics["gradient_norm"]) == 0
    assert not any(np.any(g) for g in jax.tree.leaves(gradient))


def test_a_supervised_step_on_eight_devices(tiny, mesh1, mesh8):
    one, eight = (supervised(tiny, packed(), mesh) for mesh in (mesh1, mesh8))
    equal(eight, one, 1e-5)


def test_the_rate_scales_the_step(tiny, mesh1):
    whole, quarter = (supervised(tiny, packed(), mesh1, lr)[0] for lr in (1.0, 0.25))
    equal(quarter, jax.tree.map(lambda g: 0.25 * g, whole), 1e-6)


def test_initial_parameters_are_the_same_on_every_mesh(tiny, mesh1, mesh8):
    model, adam = tiny[0], OPTIMIZERS["adamw"]()
    one, eight = (init_state(model, adam, m, key=jax.random.key(3)) for m in (mesh1, mesh8))
    jax.tree.map(np.testing.assert_array_equal, one, eight)
    assert int(eight.step) == 0
    # copied, not taken over: updates donate the state's buffers
    again = init_state(model, adam, mesh1, params=one.params)
    again.params["embed"].delete()
    assert np.isfinite(one.params["embed"]).all()


def test_packed_batches_are_a_tree_that_rows_are_cut_of(mesh8):
    batch = jax.device_put(packed(), layout(mesh8))
    assert isinstance(batch, Packed) and batch.tokens_BT.sharding.shard_shape((4, ROW)) == (1, ROW)
