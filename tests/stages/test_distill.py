"""Distillation: what is learned from whom, in pieces, and stopping half-way."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from r1jax import compute
from r1jax.divergence import token_divergence
from r1jax.models.lora import LoraConfig
from r1jax.models.transformer import Transformer, TransformerConfig
from r1jax.stages import distill
from r1jax.stages.distill import DistillConfig

# Nine tokens each: begin, question, "=", five letters, end. Rows of 20 tokens hold two.
EXAMPLES = [{"question": q, "response": q * 5} for q in "abcdefghijkl"]
PROBLEMS = [{"id": q, "question": q, "answer": "1"} for q in "abcdefgh"]
OFF = {"examples": "unused", "row_tokens": 20, "batch_rows": 2, "epochs": 2}
ON = {
    "mode": "on_policy", "problems": "unused", "steps": 4, "prompts_per_step": 4, "samples": 2,
    "max_tokens": 8, "row_tokens": 24, "batch_rows": 2, "chunk": 4,
}  # fmt: skip
PROGRAMS = {}


def settings(given, **changes):
    common = {"teacher": "unused", "lr": 1e-2, "lr_end": 1e-3, "log_every": 1}
    return DistillConfig(**common | given | changes)


@pytest.fixture(scope="module")
def teacher(random_params):
    """Of another width and depth, untied, and with more padding ids after the tokenizer's 31."""
    model = Transformer(
        TransformerConfig(
            vocabulary=48, width=24, layers=1, heads=2, kv_heads=1, head_dim=8, mlp=16, context=64,
            qkv_bias=False, tied=False,
        )
    )  # fmt: skip
    return {"teacher_model": model, "teacher_params": random_params(model, seed=1)}


@pytest.fixture(autouse=True)
def compile_once(monkeypatch, compile_once):
    """Shares the jitted updates of equal settings."""
    make, loss = distill.DistillationLearner, ("divergence", "beta", "temperature", "sft_weight")

    def shared(config, run, teacher, optimizer, vocabulary):
        key = run.model, run.mesh, teacher, *(getattr(config, n) for n in (*loss, "lora"))
        key += config.batch_rows, config.row_tokens
        if key not in PROGRAMS:
            PROGRAMS[key] = make(config, run, teacher, optimizer, vocabulary)
        return PROGRAMS[key]

    monkeypatch.setattr(distill, "DistillationLearner", shared)


def train(here, config, params, teacher, data=None):
    data = data or (PROBLEMS if config.on_policy else EXAMPLES)
    return distill.run(config, here.run, data, params, **teacher)


def assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def divergence_of(documents, student, teacher, **given):
    """Mean over response tokens, each document in a row of its own, from whole logits."""
    tokens_BT = np.zeros((len(documents), 24), np.int32)
    mask_BT = np.zeros((len(documents), 24), bool)
    for i, (tokens, prompt) in enumerate(documents):
        tokens_BT[i, : len(tokens)] = tokens
        mask_BT[i, prompt - 1 : len(tokens) - 1] = True  # what predicts the response
    ours, theirs = (np.asarray(jax.jit(m.apply)(p, tokens_BT)) for m, p in (student, teacher))
    V = min(ours.shape[-1], theirs.shape[-1])
    parts_BT = token_divergence(ours[..., :V], theirs[..., :V], **given)
    return float(np.mean(np.asarray(parts_BT)[mask_BT]))


@pytest.mark.parametrize(
    "given",
    [
        {"divergence": "forward"},
        {"divergence": "reverse", "temperature": 0.7},
        {"divergence": "jsd", "beta": 0.2},
    ],
)
def test_loss_of_packed_rows_is_that_of_documents_alone(place, tiny, teacher, given):
    here = place()
    train(here, settings(OFF, steps=1, batch_rows=6, **given), tiny[1], teacher)
    documents = [here.run.document(e["question"], e["response"]) for e in EXAMPLES]
    models = tiny, (teacher["teacher_model"], teacher["teacher_params"])
    want = divergence_of(documents, *models, **given)
    assert here.metrics[0]["loss/divergence"] == pytest.approx(want, rel=1e-4)
    assert want > 0.1


def test_it_comes_closer_at_a_cosine_rate(place, tiny, teacher):
    here = place()
    params = train(here, settings(OFF, epochs=10, warmup_steps=2), tiny[1], teacher)
    metrics = here.metrics
    assert [row["step"] for row in metrics] == list(range(1, 31))  # 10 epochs of 3 steps
    want = [
        1e-2 * min(1, (s + 1) / 3) * (0.1 + 0.45 * (1 + math.cos(math.pi * s / 30)))
        for s in range(30)
    ]
    assert [row["lr"] for row in metrics] == pytest.approx(want)
    first, last = (
        np.mean([row["loss/divergence"] for row in part]) for part in (metrics[:3], metrics[-3:])
    )
    assert last < first / 2
    assert list(here.checkpoints) == [30]
    assert not np.array_equal(params["embed"], tiny[1]["embed"])
    # 12 prompts of 3 tokens with responses of 6, ten times.
    model, lengths = tiny[0].config, ([3] * 120, [6] * 120)
    flops = compute.distillation_flops(model, teacher["teacher_model"].config, *lengths)
    assert metrics[-1]["compute/flops"] == pytest.approx(flops)


def test_a_student_that_is_its_teacher_has_nothing_to_learn(place, tiny):
    here = place()
    same = {"teacher_model": tiny[0], "teacher_params": tiny[1]}
    train(here, settings(OFF, steps=1), tiny[1], same)
    (row,) = here.metrics
    assert abs(row["loss/divergence"]) < 1e-5
    assert row["loss/gradient_norm"] < 1e-4


def test_likelihood_is_mixed_in(place, tiny, teacher):
    here = place()
    train(here, settings(OFF, steps=1, sft_weight=0.25), tiny[1], teacher)
    (row,) = here.metrics
    total = row["loss/divergence"] + 0.25 * row["loss/nll"]
    assert row["loss/total"] == pytest.approx(total, rel=1e-6)
    assert row["loss/nll"] > 0.5


def test_on_policy_learns_from_what_the_student_said(place, tiny, teacher):
    here = place()
    given = {"divergence": "reverse"}
    train(here, settings(ON, steps=1, **given), tiny[1], teacher)
    ((prompts, _, rollout),) = here.run.calls
    assert len(rollout.length_B) == 8
    documents = [
        ([*prompts[row // 2], *rollout.tokens_BT[row, :n].tolist()], len(prompts[row // 2]))
        for row, n in enumerate(rollout.length_B)
    ]
    models = tiny, (teacher["teacher_model"], teacher["teacher_params"])
    (row,) = here.metrics
    want = divergence_of(documents, *models, **given)
    assert row["loss/divergence"] == pytest.approx(want, rel=1e-4)
    assert row["rollout/tokens"] == rollout.length_B.sum()
    lengths = rollout.prompt_length_B, rollout.length_B
    flops = compute.sampling_flops(tiny[0].config, *lengths, group_size=2)
    flops += compute.distillation_flops(tiny[0].config, teacher["teacher_model"].config, *lengths)
    assert row["compute/flops"] == pytest.approx(flops)


def test_on_policy_comes_closer(place, tiny, teacher):
    here = place()
    train(here, settings(ON, steps=40, divergence="reverse"), tiny[1], teacher)
    values = [row["loss/divergence"] for row in here.metrics]
    assert np.mean(values[-5:]) < np.mean(values[:5]) / 2


def test_micro_batches_are_one_batch(place, tiny, teacher):
    # Eight responses in rows of at most two: one piece of 8 rows, or four of 2.
    ends = [
        train(place(f"by{n}"), settings(ON, steps=1, batch_rows=n), tiny[1], teacher)
        for n in (2, 8)
    ]
    for a, b in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(("given", "stop_at"), [(OFF, 2), (OFF, 5), (ON, 3)])
def test_stopped_and_resumed_equals_uninterrupted(place, tiny, teacher, stopped, given, stop_at):
    config = settings(given, checkpoint_every=2)
    whole = place("whole")
    want = train(whole, config, tiny[1], teacher)
    with pytest.raises(stopped):
        train(place("parts", stop_at=stop_at), config, tiny[1], teacher)
    again = place("parts")
    assert max(again.checkpoints, default=0) == (stop_at - 1) // 2 * 2
    assert_equal(train(again, config, tiny[1], teacher), want)
    assert again.metrics == whole.metrics


def test_every_epoch_has_its_own_order_of_all_examples(place, tiny, teacher):
    source = distill._source(settings(OFF), place().run, EXAMPLES)
    steps = [source(None, step)[0] for step in range(source.steps)]
    epochs = [[tuple(d.tokens) for step in part for row in step for d in row]
              for part in (steps[:3], steps[3:])]  # fmt: skip
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert len(set(epochs[0])) == 12
    assert epochs[0] != epochs[1]


def test_adapters_alone_are_trained(place, tiny, teacher):
    here = place()
    run = dataclasses.replace(here.run, base="checkpoints/base/1")
    config = settings(OFF, steps=2, lora=LoraConfig(rank=2))
    params = distill.run(config, run, EXAMPLES, tiny[1], **teacher)
    assert_equal(params["embed"], tiny[1]["embed"])
    assert np.any(params["blocks"]["attention"]["query"]["lora_b"])


@pytest.mark.slow
def test_on_eight_devices(place, tiny, teacher, mesh8):
    config = settings(OFF, steps=2, batch_rows=4)
    want = train(place("one"), config, tiny[1], teacher)
    with jax.set_mesh(mesh8):
        got = train(place("eight", mesh=mesh8), config, tiny[1], teacher)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "offpolicy"}, "mode='offpolicy' is unknown; known: off_policy, on_policy"),
        ({"divergence": "kl"}, "divergence='kl' is unknown"),
        ({"divergence": "jsd", "beta": 1.0}, "beta=1.0 has to lie between 0 and 1"),
        ({"examples": ""}, "mode='off_policy' reads examples: set it, and not problems"),
        ({"problems": "task:x:1"}, "mode='off_policy' reads examples: set it, and not problems"),
        (ON | {"steps": 0}, "mode='on_policy' has no epochs: set steps"),
        (ON | {"sft_weight": 1.0}, "sft_weight=1.0: on-policy there are no given responses"),
        (ON | {"max_tokens": 0}, "max_tokens=0"),
        ({"temperature": 0.0}, "temperature=0.0 must be positive"),
        ({"sft_weight": -1.0}, "sft_weight=-1.0 must not be negative"),
        ({"batch_rows": 0}, "batch_rows=0 must be at least 1"),
    ],
)
def test_settings_are_checked(changes, message):
    given = changes if changes.get("mode") == "on_policy" else OFF | changes
    with pytest.raises(ValueError, match=message):
        settings(given)


def test_what_cannot_be_learned_from(place, tiny, teacher, mesh8):
    here = place()
    with pytest.raises(ValueError, match="12 examples fill fewer than batch_rows=8 rows"):
        train(here, settings(OFF, batch_rows=8), tiny[1], teacher)
    with pytest.raises(ValueError, match="can have 11 tokens, more than row_tokens=10; raise it"):
        train(here, settings(ON, row_tokens=10), tiny[1], teacher)
    with pytest.raises(ValueError, match="with max_tokens=62 that exceeds the model's context"):
        distill.check(settings(ON, max_tokens=62, row_tokens=80), here.run, PROBLEMS)
    with pytest.raises(ValueError, match="batch_rows=2 is not divisible by the 4 pieces"):
        train(place(mesh=mesh8), settings(OFF), tiny[1], teacher)
    config = dataclasses.replace(teacher["teacher_model"].config, vocabulary=30)
    other = teacher | {"teacher_model": Transformer(config)}
    with pytest.raises(ValueError, match="teacher's vocabulary is 30, but .* tokenizer has 31 ids"):
        train(here, settings(OFF), tiny[1], other)
