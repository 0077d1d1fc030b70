"""R1 whole, in its smallest variant: every stage is given what earlier ones made."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from r1jax import checkpoints, config, models
from r1jax.config import ConfigError
from r1jax.models import scoring
from r1jax.sharding import make_mesh
from r1jax.train import train
from r1jax.writers import read_lines

pytestmark = pytest.mark.slow  # eleven stages, however small, take most of a minute

ROOT = Path(__file__).parents[1]
TINY = f"{ROOT / 'experiments' / 'r1.py'}:tiny"
STAGES = config.load(TINY).stages


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("r1") / "run"
    train(config.load(TINY), workdir, progress=False)
    return workdir


def manifest(workdir):
    return json.loads((workdir / "manifest.json").read_text())["stages"]


def artefacts(workdir):
    return {name: stage["artefact"] for name, stage in manifest(workdir).items()}


def rows(workdir, stage):
    return [r for r in read_lines(workdir / "metrics.jsonl") if r["stage"] == stage]


def test_every_stage_says_what_it_was_made_from(finished):
    stages = manifest(finished)
    assert tuple(stages) == STAGES
    from_stages = {
        name: {
            field: given["stage"] for field, given in stage["inputs"].items() if "stage" in given
        }
        for name, stage in stages.items()
    }
    assert from_stages == {
        "base": {},
        "r1_zero": {"init": "base"},
        "cold_data": {"init": "r1_zero"},
        "cold_start": {"init": "base", "examples": "cold_data"},
        "reasoning_rl": {"init": "cold_start"},
        "judge": {"init": "base"},
        "curated": {"init": "reasoning_rl", "judge": "judge"},
        "sft": {"init": "base", "examples": "curated"},
        "helpfulness": {"init": "sft"},
        "harmlessness": {"init": "sft"},
        "r1": {
            "init": "sft", "preference.models.helpfulness": "helpfulness",
            "preference.models.harmlessness": "harmlessness",
        },
    }  # fmt: skip


def test_the_hashes_are_those_of_what_is_there(finished):
    for name, made in artefacts(finished).items():
        path = finished / made["path"]
        if made["kind"] == "examples":
            assert made["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
            assert manifest(finished)[name]["counts"]["rows"] == len(read_lines(path))
            continue
        load = scoring.load if made["kind"] == "score" else models.load
        _, params = load(path, mesh=make_mesh())
        assert made["sha256"] == checkpoints.fingerprint(params)


def test_models_are_evaluated_at_the_end_of_every_stage(finished):
    assert not rows(finished, "judge")[-1].get("eval/mini_world_dev/pass@1")
    for name in ("base", "r1_zero", "cold_start", "reasoning_rl", "sft", "r1"):
        last = rows(finished, name)[-1]
        for benchmark in ("mini_world_dev", "mini_general_dev"):
            responses = read_lines(finished / "responses" / f"{name}.{benchmark}.jsonl")
            count = {"mini_world_dev": 120, "mini_general_dev": 60}[benchmark]
            assert len({r["id"] for r in responses}) == count and len(responses) == 2 * count
            for grade in ("accuracy", "language", "harmless"):
                metric = "pass@1" if grade == "accuracy" else grade
                mean = sum(r[grade] for r in responses) / len(responses)
                assert last[f"eval/{benchmark}/{metric}"] == pytest.approx(mean)
    assert (finished / "report.html").is_file() and (finished / "plots" / "stages.png").is_file()


def test_preference_rewards_come_last(finished):
    before, after = rows(finished, "r1")[1:]
    assert "reward/helpfulness" not in before
    assert {"reward/helpfulness", "reward/harmlessness", "reward/helpful"} <= set(after)


def test_examples_that_were_changed_afterwards_are_refused(finished, tmp_path):
    work = shutil.copytree(finished, tmp_path / "run")
    path = work / "data" / "curated.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ConfigError, match=r"curated\.jsonl is missing or is not what stage 'curat"):
        train(config.load(TINY), work, progress=False)


# --- stopped anywhere ------------------------------------------------------------------


def start(workdir):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "r1jax", "train", f"--config={TINY}", f"--workdir={workdir}"]
    with open(f"{workdir}.log", "a") as log:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
        )


def begun(workdir, stage):
    """Whether the stage has begun, and has logged something if that comes before its end."""
    path = workdir / "manifest.json"
    return path.exists() and stage in json.loads(path.read_text())["begun"]


def test_killed_in_every_stage_and_run_again(finished, tmp_path):
    workdir, logs = tmp_path / "killed", tmp_path / "killed.log"
    killed = []
    for stage in STAGES:
        process = start(workdir)
        while not begun(workdir, stage):
            assert process.poll() is None, logs.read_text()[-3000:]
            time.sleep(0.005)
        # Half of the kills come at once, half after the first line of metrics.
        while len(killed) % 2 and not rows(workdir, stage):
            assert process.poll() is None, logs.read_text()[-3000:]
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        killed.append(stage)
        assert stage not in manifest(workdir)
    assert start(workdir).wait() == 0, logs.read_text()[-3000:]
    assert artefacts(workdir) == artefacts(finished)
