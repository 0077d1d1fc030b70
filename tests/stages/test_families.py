"""Every published family takes the steps of every stage, on one device and on eight alike."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

import r1jax.models
from r1jax.models.families import make_model
from r1jax.rewards import REWARDS
from r1jax.sharding import make_mesh
from r1jax.stages import grpo, sft
from r1jax.stages.evaluate import EvaluateConfig, Evaluator
from r1jax.stages.grpo import GrpoConfig
from r1jax.stages.sft import SftConfig

# Two by default: compiling the stages takes longest.
QUICK = ("qwen2_tied", "llama3_new")
FIXTURES = [
    pytest.param(
        p.parent, id=p.parent.name, marks=() if p.parent.name in QUICK else pytest.mark.slow
    )
    for p in sorted((Path(__file__).parents[1] / "models/fixtures").glob("*/config.json"))
]
EXAMPLES = [{"question": q, "response": q * 5} for q in "abcdefghijklmnop"]
PROBLEMS = [{"id": str(i), "question": q, "answer": "1"} for i, q in enumerate("abcdefgh")]
RATE = 0.01  # of the selection bias


@pytest.fixture(autouse=True)
def lengths_are_rewarded(monkeypatch):
    """A reward that differs within groups of what random models say."""
    monkeypatch.setitem(REWARDS, "letters", lambda _, r: float(sum(map(ord, r.text)) % 5))


def meshes(folder):
    """Eight devices cut along every axis that the family has a use for."""
    if folder.name.startswith("deepseek"):
        return make_mesh(fsdp=2, expert=2, tensor=2)
    return make_mesh(fsdp=4, tensor=2)


def stages_on(folder, mesh, place):
    """(metrics by stage, final parameters of GRPO) of SFT, GRPO from it, and evaluation."""
    model, params = r1jax.models.load(folder, mesh=mesh, dtype="float32")
    settings = {"context": 64}
    if folder.name.startswith("deepseek"):
        settings["balance_rate"] = RATE
    model = make_model(dataclasses.replace(model.config, **settings))
    rows = {}

    def run(stage):
        here = place(f"{mesh.size}{stage}", stage=stage, mesh=mesh)
        here.run = dataclasses.replace(here.run, model=model)
        return here

    with jax.set_mesh(mesh):
        here = run("sft")
        config = SftConfig(
            "unused", row_tokens=20, batch_rows=8, epochs=2, lr=1e-4, lr_end=1e-5, log_every=1
        )
        params = sft.run(config, here.run, EXAMPLES, params)
        rows["sft"] = here.metrics
        here = run("grpo")
        config = GrpoConfig(
            "unused", steps=2, max_tokens=8, prompts_per_rollout=8, group_size=4, row_tokens=128,
            minibatches=2, chunk=4, rewards={"letters": 1.0}, lr=1e-4, kl_coef=0.1,
        )  # fmt: skip
        params = grpo.run(config, here.run, params, PROBLEMS)
        rows["grpo"] = here.metrics
        here = run("eval")
        config = EvaluateConfig(("toy",), max_tokens=8, samples=2, temperature=0.6, top_p=0.95)
        values = Evaluator(config, here.run, {"toy": PROBLEMS})(params, 0)
        rows["eval"] = [{k: v for k, v in values.items() if not k.endswith(("_low", "_high"))}]
    return rows, params


@pytest.mark.parametrize("folder", FIXTURES)
def test_all_stages_agree_on_one_device_and_on_eight(folder, mesh1, place):
    one, params = stages_on(folder, mesh1, place)
    eight, cut = stages_on(folder, meshes(folder), place)
    assert [len(one[stage]) for stage in ("sft", "grpo", "eval")] == [2, 2, 1]
    for stage, rows in one.items():
        for a, b in zip(rows, eight[stage], strict=True):
            # The same tokens are sampled, trained on and counted; sums run in another order.
            assert a.keys() == b.keys()
            for name in a.keys() - {"stage"}:
                assert a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-5), (stage, name)
    assert one["sft"][1]["loss/nll"] < one["sft"][0]["loss/nll"]
    assert one["grpo"][1]["loss/kl"] > 0 and one["grpo"][0]["loss/gradient_norm"] > 0
    if folder.name.startswith("deepseek"):
        # 2 updates of SFT and 4 of GRPO have moved every bias by the rate, up, down or not.
        before = r1jax.models.load(folder, mesh=mesh1, dtype="float32")[1]
        bias, start = (p["blocks"]["router"]["bias"] for p in (params, before))
        moves = (np.asarray(bias) - np.asarray(start)) / RATE
        np.testing.assert_allclose(moves, moves.round(), atol=1e-4)
        assert np.abs(moves).max() > 1 and np.abs(moves).max() <= 6.001
        np.testing.assert_allclose(bias, cut["blocks"]["router"]["bias"], atol=1e-6)
    spec = cut["blocks"]["attention"]["out"]["kernel"].sharding.spec
    assert "tensor" in spec and len(cut["embed"].sharding.device_set) == 8
