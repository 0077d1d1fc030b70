"""Experiments end to end: what a run leaves behind, and that it is a function of its config."""

import json
import shutil
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest

import r1jax
from r1jax import checkpoints, config, models
from r1jax.cli import main
from r1jax.data.sources import fingerprint, load_problems
from r1jax.experiment import model_config, parse
from r1jax.models import abstract_params, huggingface_config, make_model
from r1jax.models.presets import PRESETS
from r1jax.train import train
from r1jax.writers import read_lines

ROOT = Path(__file__).parents[1]
FILE = str(ROOT / "experiments" / "r1_zero.py")
TINY = f"{FILE}:tiny"


def run(path, workdir, *overrides):
    assert main(["train", f"--config={path}", f"--workdir={workdir}", *overrides]) == 0
    return workdir


def steady(workdir):
    """Lines of metrics.jsonl without what depends on the clock."""
    return [
        {k: v for k, v in row.items() if k != "wall_s" and not k.startswith("throughput/")}
        for row in read_lines(workdir / "metrics.jsonl")
    ]


def test_problems_are_mixed_and_left_out_as_the_config_says(tmp_path):
    """Two files by weight, one of them by pass rate: every rollout has its shares."""
    for name, count in (("a", 6), ("b", 3)):
        (tmp_path / f"{name}.jsonl").write_text("".join(
            json.dumps({"id": f"{name}{i}", "question": f"{i}+{name}?", "answer": "1"}) + "\n"
            for i in range(count)
        ))  # fmt: skip
    (tmp_path / "rates.jsonl").write_text("".join(
        json.dumps({"id": f"{name}{i}", "pass_rate": i / 6}) + "\n"
        for name in "ab" for i in range(6)
    ))  # fmt: skip
    work = run(
        TINY, tmp_path / "work", "--config.grpo.steps=1",
        f"--config.grpo.problems={tmp_path}/a.jsonl*3 + {tmp_path}/b.jsonl",
        f"--config.grpo.pass_rates={tmp_path}/rates.jsonl",
        "--config.grpo.pass_rate_band=(0.0, 0.5)", "--config.grpo.decontaminate=('mini_aime',)",
    )  # fmt: skip
    data = json.loads((work / "manifest.json").read_text())["stages"]["grpo"]["data"]
    a, b = (str(tmp_path / f"{name}.jsonl") for name in "ab")
    assert data["rows"] == 7 and set(data["files"]) == {a, b}
    left = {"below": 0, "contaminated": 0}
    assert data["sources"] == {
        a: {"rows": 6, "above": 2, "kept": 4} | left, b: {"rows": 3, "above": 0, "kept": 3} | left
    }  # fmt: skip


# --- the workdir -----------------------------------------------------------------------


def test_what_a_workdir_holds(trained):
    assert {p.name for p in trained.iterdir()} == {
        "config.json", "metrics.jsonl", "samples.jsonl", "checkpoints", "plots", "manifest.json",
        "tokenizer.model", "tensorboard", "report.html",
    }  # fmt: skip
    assert json.loads((trained / "config.json").read_text()) == config.plain(config.load(TINY))
    assert sorted(p.name for p in (trained / "plots").iterdir()) == [
        "accuracy.png", "response_length.png",
    ]  # fmt: skip
    found = {
        p.name: sorted(s.name for s in p.iterdir()) for p in (trained / "checkpoints").iterdir()
    }
    assert found == {"pretrain": ["4", "8"], "grpo": ["2", "3"]}  # two are kept


def test_names_of_metrics(trained):
    rows = read_lines(trained / "metrics.jsonl")
    # The textbook's gate is open at once: its 4 steps, then 4 of the web; GRPO 0 to 3.
    assert [(r["stage"], r["step"]) for r in rows] == [
        *(("pretrain", s) for s in (2, 4, 6, 8)), *(("grpo", s) for s in (0, 1, 2, 3)),
    ]  # fmt: skip
    assert all(list(row)[:3] == ["step", "stage", "wall_s"] for row in rows)
    walls = [row["wall_s"] for row in rows]
    assert walls == sorted(walls) and walls[0] > 0
    pretrain, grpo = rows[3], rows[7]
    assert {"loss/nll", "loss/gradient_norm", "skill/repair", "skill/resume"} <= set(pretrain)
    evaluation = {
        f"eval/mini_aime_dev/{name}" for name in ("pass@1", "cons@2", "length", "truncated")
    }
    assert evaluation <= set(grpo) and evaluation <= set(rows[4]) and evaluation <= set(rows[6])
    assert not evaluation & set(rows[5])  # every second step
    assert {
        "rollout/length", "rollout/truncated", "rollout/reflections", "reward/accuracy",
        "reward/format", "reward/total", "loss/total", "loss/kl", "loss/policy",
        "throughput/tokens_per_s", "throughput/rollout_s", "throughput/update_s", "lr",
    } <= set(grpo)  # fmt: skip
    assert not any(isinstance(v, dict | list) for row in rows for v in row.values())
    # Warm-up of 5 steps: (s + 1)/6 of 2e-4.
    assert [r["lr"] for r in rows[5:]] == pytest.approx([2e-4 / 6, 4e-4 / 6, 6e-4 / 6])


def test_samples(trained):
    rows = read_lines(trained / "samples.jsonl")
    first = load_problems("mini_aime_dev", limit=1)[0]
    assert [(r["step"], r["sample"]) for r in rows] == [(s, i) for s in (0, 2, 3) for i in (0, 1)]
    for row in rows:
        assert row["stage"] == "grpo" and row["benchmark"] == "mini_aime_dev"
        assert {k: row[k] for k in ("id", "question", "answer")} == first
        assert isinstance(row["response"], str) and 1 <= row["tokens"] <= 24


def test_the_manifest_says_what_each_stage_was_made_from(trained):
    manifest = json.loads((trained / "manifest.json").read_text())
    plain = json.loads((trained / "config.json").read_text())
    assert manifest["r1jax"] == r1jax.__version__ and manifest["jax"] == jax.__version__
    assert manifest["seed"] == 0
    assert manifest["config_hash"] == config.digest(plain)
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    if head:  # it may have moved on while the tests ran
        assert len(manifest["commit"].removesuffix("-dirty")) == len(head)
    benchmarks = {"mini_aime_dev": fingerprint(load_problems("mini_aime_dev"))}
    problems = load_problems("task:mini_aime:4096")
    stages = manifest["stages"]
    for name, (step, lr) in {"pretrain": (8, None), "grpo": (3, 1e-4)}.items():
        stage = stages[name]
        assert stage.pop("wall_s") > 0 and stage.pop("cpu_s") > 0
        params = models.load(trained / "checkpoints" / name / str(step))[1]
        assert stage.pop("artefact") == {
            "kind": "model", "path": f"checkpoints/{name}/{step}",
            "sha256": checkpoints.fingerprint(params),
        }  # fmt: skip
        assert stage.pop("metrics").get("lr") == (lr and pytest.approx(lr))
        assert stage.pop("evaluation") == config.digest(
            {"settings": plain["evaluate"], "benchmarks": benchmarks}
        )
        assert stage.pop("input_hash") == manifest["begun"][name]
        assert stage.pop("commit") == manifest["commit"]
        assert stage.pop("r1jax") == r1jax.__version__ and stage.pop("jax") == jax.__version__
    assert stages == {
        "pretrain": {
            "checkpoint": "checkpoints/pretrain/8", "kind": "pretrain", "init": None, "inputs": {},
            "config_hash": config.digest(plain["pretrain"]), "data": None, "counts": {},
            "benchmarks": benchmarks,
        },
        "grpo": {
            "checkpoint": "checkpoints/grpo/3", "kind": "grpo", "init": "pretrain",
            "inputs": {"init": {"stage": "pretrain"}}, "counts": {},
            "config_hash": config.digest(plain["grpo"]),
            "benchmarks": benchmarks,
            "data": {
                "rows": 4096, "sha256": fingerprint(problems), "files": {},
                "sources": {"task:mini_aime:4096": {"rows": 4096, "kept": 4096}},
            },
        },
    }  # fmt: skip


def test_checkpoints_know_their_model_and_prompt(trained):
    meta = checkpoints.load_meta(checkpoints.find(trained))
    assert (meta["stage"], meta["seed"], meta["position"]) == ("grpo", 0, 3)
    assert meta["template"]["text"] == "User: {prompt} Assistant:"
    assert meta["model"]["width"] == 32 and meta["model"]["vocabulary"] % 16 == 0


# --- again -----------------------------------------------------------------------------


def test_a_finished_run_does_nothing_again(trained, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(trained, copy)
    kept = [p for p in copy.rglob("*") if p.is_file() and "tensorboard" not in p.parts]
    kept = [p for p in kept if "plots" not in p.parts and p.name != "report.html"]
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in kept}
    run(TINY, copy)
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in kept} == before


@pytest.mark.slow
def test_same_seed_same_run_other_seed_other_run(trained, tmp_path):
    again = run(TINY, tmp_path / "again")
    assert steady(again) == steady(trained)
    assert (again / "samples.jsonl").read_text() == (trained / "samples.jsonl").read_text()
    assert (again / "tokenizer.model").read_bytes() == (trained / "tokenizer.model").read_bytes()
    other = run(TINY, tmp_path / "other", "--config.seed=1", "--config.grpo.steps=1")
    for a, b in zip(steady(other), steady(trained), strict=False):
        assert (a["stage"], a["step"]) == (b["stage"], b["step"])
        if "loss/nll" in a:
            assert a["loss/nll"] != b["loss/nll"]
    texts = [[r["response"] for r in read_lines(w / "samples.jsonl")[:2]] for w in (other, trained)]
    assert not set(texts[0]) & set(texts[1])


def test_a_stage_from_another_runs_checkpoint_with_a_loss_of_ones_own(trained, tmp_path):
    def loss(logp_BT, old_logp_BT, ref_logp_BT, adv_B, mask_BT, *, whole):
        return 0.0 * logp_BT.sum(), {"mine": (mask_BT.sum(axis=1) > 0).sum()}

    base = trained / "checkpoints" / "pretrain"
    experiment = config.load(
        TINY, ["--config.stages=('grpo',)", f"--config.grpo.init={base}", "--config.grpo.steps=1"]
    )
    train(experiment, tmp_path, loss=loss, progress=False)
    rows = steady(tmp_path)
    # The same parameters, prompts and noise as the other run had before its first step.
    assert rows[0] == steady(trained)[4]
    assert rows[1]["rollout/entropy"] == steady(trained)[5]["rollout/entropy"]
    assert rows[1]["loss/mine"] == 16.0  # rows of an update: 8 questions × 4, in 2 minibatches
    assert json.loads((tmp_path / "manifest.json").read_text())["stages"]["grpo"]["init"] == str(
        base
    )


def test_a_checkpoint_of_another_shape_is_refused(trained, tmp_path, capsys):
    flags = [
        "train", f"--config={TINY}", f"--workdir={tmp_path}", "--config.stages=('grpo',)",
        f"--config.grpo.init={trained}", "--config.model.width=16",
    ]  # fmt: skip
    assert main(flags) == 1
    said = capsys.readouterr().err
    assert f"{trained}/checkpoints/grpo/3 holds another model" in said
    assert "width: 32 -> 16" in said


# --- the experiments -------------------------------------------------------------------


def parameters(experiment, vocabulary, mesh):
    """Number of parameters of the experiment's model, after laying them out on a mesh."""
    model = make_model(model_config(experiment.model, vocabulary=vocabulary))
    shapes = abstract_params(model, mesh)
    return sum(int(np.prod(s.shape)) for s in jax.tree.leaves(shapes))


def test_mini_builds(mesh8):
    experiment = parse(config.plain(config.load(f"{FILE}:mini")))
    assert [s.name for s in experiment.stages] == ["pretrain", "grpo"]
    # A layer: queries 64·64 + 64, keys and values 2(64·32 + 32), output 64·64, feed-forward
    # 3·64·192, two norms of 64: 49,408. Three of them, the table 400·64 and a norm.
    assert parameters(experiment, 400, mesh8) == 3 * 49_408 + 400 * 64 + 64 == 173_888


def test_paper_builds(mesh8, tmp_path):
    shape = huggingface_config.to_json(PRESETS["Qwen2.5-32B"], "bfloat16")
    (tmp_path / "config.json").write_text(json.dumps(shape))
    overrides = [f"--config.data={tmp_path}/x.jsonl", f"--config.weights={tmp_path}"]
    experiment = parse(config.plain(config.load(f"{FILE}:paper", overrides)))
    grpo = experiment.stages[0].settings
    # The paper (second-hand): 8,192 outputs a rollout, 16 minibatches of 32 questions × 16;
    # 10,400 updates; the reference follows every 400 of them; sampled at temperature 1.
    assert grpo.prompts_per_rollout * grpo.group_size == 8192
    assert grpo.prompts_per_rollout // grpo.minibatches == 32
    assert grpo.steps * grpo.minibatches * grpo.epochs == 10_400
    assert grpo.reference_every * grpo.minibatches * grpo.epochs == 400
    assert (grpo.lr, grpo.kl_coef, grpo.clip_eps, grpo.temperature) == (3e-6, 1e-3, 10.0, 1.0)
    assert (experiment.evaluate.temperature, experiment.evaluate.top_p) == (0.6, 0.95)
    assert grpo.max_tokens == experiment.evaluate.max_tokens == 32_768
    assert (grpo_stage := experiment.stages[0]).init == experiment.tokenizer.path == str(tmp_path)
    assert grpo_stage.kind == "grpo"
    # Qwen2.5-32B. A layer: queries 5120·5120 + 5120, keys and values 2(5120·1024 + 1024),
    # output 5120·5120, feed-forward 3·5120·27,648, two norms: 487,605,248. 64 of them, a norm,
    # and two tables of 152,064 (its vocabulary, padded): 32.76 thousand million.
    count = 64 * 487_605_248 + 5120 + 2 * 152_064 * 5120
    assert parameters(experiment, 152_064, mesh8) == count == 32_763_876_352


def test_gsm8k_takes_a_step(tmp_path):
    rng = np.random.default_rng(0)
    data = tmp_path / "gsm8k.jsonl"
    rows = []
    for i in range(40):
        a, b = (int(x) for x in rng.integers(1, 2000, 2))
        rows.append(
            {
                "question": f"Jo has {a} pens and buys {b} more. How many are there? ({i})",
                "answer": f"{a} + {b} = <<{a}+{b}={a + b}>>{a + b} pens.\n#### {a + b:,}",
            }
        )
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    workdir = run(
        f"{FILE}:gsm8k", tmp_path / "run", f"--config.data={data}",
        "--config.tokenizer.vocabulary=512",
        "--config.model.width=16", "--config.model.layers=1", "--config.base.steps=1",
        "--config.grpo.steps=1", "--config.grpo.group_size=2", "--config.grpo.max_tokens=16",
    )  # fmt: skip
    base, grpo = read_lines(workdir / "metrics.jsonl")
    assert (base["stage"], base["step"]) == ("base", 1) and base["loss/nll"] > 0
    assert (grpo["stage"], grpo["step"]) == ("grpo", 1) and grpo["reward/errors"] == 0
    stages = json.loads((workdir / "manifest.json").read_text())["stages"]
    assert stages["base"]["data"]["rows"] == stages["grpo"]["data"]["rows"] == 40
