"""Stages that train adapters: what they change, keep, save and resume."""

import dataclasses
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from r1jax import models
from r1jax.checkpoints import CheckpointError
from r1jax.models import lora
from r1jax.models.lora import LoraConfig
from r1jax.rewards import REWARDS
from r1jax.sharding import make_mesh, path_name
from r1jax.stages import grpo, sft
from r1jax.stages.grpo import GrpoConfig
from r1jax.stages.sft import SftConfig

ADAPTERS = LoraConfig(rank=2, alpha=6.0)  # s = 3
EXAMPLES = [{"question": q, "response": q * 5} for q in "abcdefgh"]
PROBLEMS = [{"id": str(i), "question": q, "answer": "1"} for i, q in enumerate("abcdefgh")]
BASE = "checkpoints/base/2"


@pytest.fixture(autouse=True)
def vowels(monkeypatch):
    """A reward that a random model meets now and then."""
    monkeypatch.setitem(REWARDS, "vowels", lambda _, r: sum(c in "aeiou" for c in r.text))


def sft_settings(**changes):
    return SftConfig(
        **dict(
            examples="unused", row_tokens=20, batch_rows=2, epochs=3, lr=1e-2, log_every=1,
            checkpoint_every=2, lora=ADAPTERS,
        )
        | changes
    )  # fmt: skip


def grpo_settings(**changes):
    return GrpoConfig(
        **dict(
            problems="unused", steps=3, max_tokens=8, prompts_per_rollout=4, group_size=4,
            micro_rows=2, row_tokens=128, chunk=4, rewards={"vowels": 1.0}, lr=1e-2, kl_coef=0.1,
            checkpoint_every=2, lora=ADAPTERS,
        )
        | changes
    )  # fmt: skip


@pytest.fixture
def base(place, tiny):
    """A function that trains the parameters which adapters adapt, and saves them in a run."""

    def train(name="a"):
        here = place(name, stage="base")
        return sft.run(sft_settings(lora=LoraConfig(), steps=2), here.run, EXAMPLES, tiny[1])

    return train


@pytest.fixture
def tune(place):
    """Runs a stage with adapters on a base: (final parameters, place)."""

    def run(kind, params, name="a", *, base=BASE, stage="tuned", config=None, **where):
        here = place(name, stage=stage, **where)
        its = dataclasses.replace(here.run, base=base)
        if kind == "sft":
            return sft.run(config or sft_settings(), its, EXAMPLES, params), here
        return grpo.run(config or grpo_settings(), its, params, PROBLEMS), here

    return run


def leaves(tree):
    return {path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def saved(checkpoint, item):
    """Leaves of an item of a checkpoint, as written."""
    with ocp.StandardCheckpointer() as checkpointer:
        shapes = checkpointer.metadata(checkpoint / item).item_metadata.tree
        own = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        template = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=own), shapes
        )
        return leaves(checkpointer.restore(checkpoint / item, template))


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_only_adapters_are_trained_and_saved(base, tune, kind):
    params = base()
    before = jax.device_get(params)
    final, here = tune(kind, params)
    assert_equal(params, before)
    after, adapters = leaves(final), {}
    for path, leaf in leaves(before).items():
        np.testing.assert_array_equal(after[path], leaf)
    for path in set(after) - set(leaves(before)):
        if path.endswith("lora_scale"):
            np.testing.assert_array_equal(after[path], 3.0)
        else:
            adapters[path] = after[path]
            assert np.any(after[path])
    # Seven maps (four of attention, three of the feed-forward), two factors each.
    assert len(adapters) == 14
    newest = here.checkpoints[max(here.checkpoints)]
    found = saved(newest, "params")
    assert set(found) == set(adapters)
    for path, leaf in found.items():
        np.testing.assert_array_equal(leaf, adapters[path])
    # Adam's two moments are of adapters too.
    moments = [x for x in saved(newest, "opt").values() if x.ndim]
    assert sum(x.size for x in moments) == 2 * sum(x.size for x in found.values())


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_loading_gives_the_base_with_adapters_merged(base, tune, tiny, mesh1, kind):
    params = base()
    final, here = tune(kind, params)
    for path in (here.run.workdir / "checkpoints/tuned", here.checkpoints[max(here.checkpoints)]):
        model, found = models.load(path, mesh=mesh1)
        assert model == tiny[0]
        assert_equal(found, jax.jit(lora.merge)(final))
    up, before = (p["blocks"]["mlp"]["up"]["kernel"] for p in (found, params))
    assert np.abs(up - before).max() > 1e-3
    _, half = models.load(path, mesh=mesh1, dtype="bfloat16")
    for a, b in zip(*map(jax.tree.leaves, (half, found)), strict=True):
        assert a.dtype == "bfloat16"
        # The kernel is rounded before and after the sum: 2 · 2⁻⁹ of its size.
        np.testing.assert_allclose(np.float32(a), b, rtol=2**-7, atol=2**-7)


def test_loading_chosen_targets_on_eight_devices(base, tune, mesh1):
    chosen = dataclasses.replace(ADAPTERS, targets=("up", "query"))
    final, here = tune("sft", base(), config=sft_settings(steps=1, lora=chosen))
    assert len([path for path in leaves(final) if path.endswith("lora_b")]) == 2
    path = here.run.workdir / "checkpoints/tuned"
    _, one = models.load(path, mesh=mesh1)
    with jax.set_mesh(make_mesh()):
        _, eight = models.load(path)
        assert len(eight["embed"].sharding.device_set) == 8
        # A product may be added in one rounding or in two: 2⁻²⁴ of the sum.
        for a, b in zip(*map(jax.tree.leaves, (eight, jax.device_get(one))), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-7, atol=1e-8)


def test_loading_onto_another_mesh_than_the_callers(base, tune, mesh1):
    _, here = tune("sft", base(), config=sft_settings(steps=1))
    path = here.run.workdir / "checkpoints/tuned"
    _, expected = models.load(path, mesh=mesh1)
    with jax.set_mesh(make_mesh()):
        assert_equal(models.load(path, mesh=mesh1)[1], expected)


def test_adapters_of_nothing_on_disk_are_refused(place, tiny):
    with pytest.raises(ValueError, match="adapters need a base that is on disk; set the stage's"):
        sft.run(sft_settings(), place().run, EXAMPLES, tiny[1])


def test_adapters_on_top_of_a_stage_with_adapters(base, tune, mesh1):
    first, here = tune("sft", base(), stage="first")
    at = here.checkpoints[max(here.checkpoints)]
    params = models.load(at, mesh=mesh1)[1]
    assert_equal(params, jax.jit(lora.merge)(first))
    second, here = tune("grpo", params, stage="second", base=str(at.relative_to(here.run.workdir)))
    _, found = models.load(here.run.workdir / "checkpoints/second", mesh=mesh1)
    assert_equal(found, jax.jit(lora.merge)(second))


def test_a_runs_folder_may_move_and_a_base_outside_of_it_may_not(base, tune, mesh1, tmp_path):
    params = base()
    inside, _ = tune("sft", params)
    outside, _ = tune("sft", params, "b", base=str(tmp_path / "a" / BASE))
    (tmp_path / "a").rename(tmp_path / "moved")
    _, found = models.load(tmp_path / "moved/checkpoints/tuned", mesh=mesh1)
    assert_equal(found, jax.jit(lora.merge)(inside))
    message = f"b/checkpoints/tuned/.* holds adapters of {tmp_path}/a/{BASE}, which is not there"
    with pytest.raises(CheckpointError, match=message):
        models.load(tmp_path / "b/checkpoints/tuned", mesh=mesh1)
    (tmp_path / "moved").rename(tmp_path / "a")
    _, found = models.load(tmp_path / "b/checkpoints/tuned", mesh=mesh1)
    assert_equal(found, jax.jit(lora.merge)(outside))


def test_a_missing_base_is_named(base, tune, mesh1, tmp_path):
    tune("sft", base(), config=sft_settings(steps=1))
    shutil.rmtree(tmp_path / "a" / BASE)
    message = f"holds adapters of {tmp_path}/a/{BASE}, which is not there; put it back"
    with pytest.raises(CheckpointError, match=message):
        models.load(tmp_path / "a/checkpoints/tuned", mesh=mesh1)


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_stopped_and_resumed_equals_uninterrupted(place, tiny, tune, stopped, kind):
    config = {
        "sft": sft_settings(),
        "grpo": grpo_settings(steps=4, minibatches=2, epochs=2, reference_every=2),
    }[kind]
    want, whole = tune(kind, tiny[1], "whole", config=config)
    for stop_at in (2, 4):
        name = f"stop{stop_at}"
        with pytest.raises(stopped):
            tune(kind, tiny[1], name, config=config, stop_at=stop_at)
        again = place(name, stage="tuned")
        assert max(again.checkpoints, default=0) == {2: 0, 4: 2}[stop_at]
        found, again = tune(kind, tiny[1], name, config=config)
        assert_equal(found, want)
        assert again.metrics == whole.metrics


def test_the_reference_is_the_base(tune, tiny):
    # At first the policy is the base: no divergence, though the checkpoint's reference, here
    # of the last step, is still of adapters that add nothing.
    _, here = tune("grpo", tiny[1])
    first, *later = [row["loss/kl"] for row in here.metrics]
    assert first == 0
    assert min(later) > 1e-6
    reference = saved(here.checkpoints[3], "reference")
    initial = leaves(lora.split(tiny[1], ADAPTERS, here.run.key("lora"))[1])
    assert set(reference) == set(initial)
    for path, leaf in initial.items():
        np.testing.assert_array_equal(reference[path], leaf)


def test_the_reference_becomes_the_policy_with_its_adapters(tune, tiny):
    final, here = tune("grpo", tiny[1], config=grpo_settings(steps=2, reference_every=2))
    reference = saved(here.checkpoints[2], "reference")
    for path, leaf in leaves(final).items():
        if path in reference:
            np.testing.assert_array_equal(reference[path], leaf)
    assert any(np.any(x) for path, x in reference.items() if path.endswith("lora_b"))


def test_adapters_need_a_model_to_adapt(place):
    with pytest.raises(ValueError, match="lora.rank: adapters need a model to adapt; set init"):
        sft.run(sft_settings(), place().run, EXAMPLES)
