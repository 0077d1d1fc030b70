"""A run that was stopped, killed, or spread over devices is the run that was not."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from r1jax import checkpoints, config, models
from r1jax.sharding import make_mesh
from r1jax.train import train
from r1jax.writers import Writer, read_lines

ROOT = Path(__file__).parents[1]
TINY = f"{ROOT / 'experiments' / 'r1_zero.py'}:tiny"

# The command line, with a reward that a base without any skill meets now and then: without
# it all advantages are 0, and updates would prove nothing.
COMMAND = """
import sys
from r1jax import cli, rewards
rewards.REWARDS["even"] = lambda problem, response: float(len(response.text) % 2 == 0)
sys.exit(cli.main(sys.argv[1:]))
"""


def steady(workdir):
    """Lines of metrics.jsonl without what depends on the clock."""
    return [
        {k: v for k, v in row.items() if k != "wall_s" and not k.startswith("throughput/")}
        for row in read_lines(workdir / "metrics.jsonl")
    ]


def newest_params(workdir, stage):
    return models.load(workdir / "checkpoints" / stage, mesh=make_mesh(devices=jax.devices()[:1]))[
        1
    ]


def assert_same_run(got, want):
    assert steady(got) == steady(want)
    assert (got / "samples.jsonl").read_text() == (want / "samples.jsonl").read_text()
    for stage in ("pretrain", "grpo"):
        pairs = zip(*(jax.tree.leaves(newest_params(w, stage)) for w in (got, want)), strict=True)
        for a, b in pairs:
            np.testing.assert_array_equal(a, b)
    manifests = [json.loads((w / "manifest.json").read_text())["stages"] for w in (got, want)]
    for stages in manifests:
        for stage in stages.values():
            del stage["wall_s"], stage["cpu_s"], stage["commit"]  # it may move on meanwhile
    assert manifests[0] == manifests[1]


class Stopped(Exception):
    """In place of a kill."""


def test_stopped_in_either_stage_and_resumed(trained, tmp_path, monkeypatch):
    stops = [("pretrain", 6), ("grpo", 3)]
    metrics = Writer.metrics

    def stopping(self, stage, step, values):
        if stops and (stage, step) == stops[0]:
            del stops[0]
            raise Stopped
        metrics(self, stage, step, values)

    monkeypatch.setattr(Writer, "metrics", stopping)
    for _ in range(2):
        with pytest.raises(Stopped):
            train(config.load(TINY), tmp_path, progress=False)
    train(config.load(TINY), tmp_path, progress=False)
    assert not stops
    assert_same_run(tmp_path, trained)


# --- in processes of their own ---------------------------------------------------------


def start(workdir, *overrides, devices=1):
    """The run as a process of its own, with so many fake devices."""
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(ROOT),
    }
    flags = [f"--config={TINY}", f"--workdir={workdir}", "--config.grpo.rewards.even=1.0"]
    with open(f"{workdir}.log", "a") as log:
        return subprocess.Popen(
            [sys.executable, "-c", COMMAND, "train", *flags, *overrides],
            cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip


def finish(workdir, *overrides, devices=1):
    assert start(workdir, *overrides, devices=devices).wait() == 0, log_of(workdir)
    return workdir


def log_of(workdir):
    return Path(f"{workdir}.log").read_text()[-3000:]


def kill(process):
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def lines(workdir):
    path = workdir / "metrics.jsonl"
    return len(read_lines(path)) if path.exists() else 0


def wait_for_lines(process, workdir, count):
    while lines(workdir) < count:
        assert process.poll() is None, log_of(workdir)
        time.sleep(0.005)


def being_saved(workdir):
    """Folders of checkpoints that are not complete yet."""
    return [p for p in workdir.glob("checkpoints/*/*") if "tmp" in p.name]


def stop_in_a_save(process, workdir):
    """Halts the process while it writes a checkpoint."""
    while True:
        assert process.poll() is None, log_of(workdir)
        if being_saved(workdir):
            os.kill(process.pid, signal.SIGSTOP)
            time.sleep(0.05)
            if being_saved(workdir):
                return
            os.kill(process.pid, signal.SIGCONT)  # it was faster


LONGER = (
    "--config.pretrain.web_steps=16", "--config.grpo.steps=10", "--config.pretrain.log_every=1",
    "--config.grpo.checkpoint_every=3",
)  # fmt: skip


@pytest.mark.slow
def test_killed_at_random_moments_and_run_again(tmp_path):
    whole = finish(tmp_path / "whole", *LONGER)
    # 20 lines of pretraining, then GRPO's 0 to 10.
    assert lines(whole) == 31
    rng = np.random.default_rng(7)
    moments = [(int(rng.integers(2, 18)), rng.uniform(0, 0.1)),
               (int(rng.integers(22, 26)), rng.uniform(0, 0.1))]  # fmt: skip
    killed = tmp_path / "killed"
    for count, delay in moments:
        process = start(killed, *LONGER)
        wait_for_lines(process, killed, count)
        time.sleep(delay)
        kill(process)
        assert count <= lines(killed) < 31
    process = start(killed, *LONGER)
    stop_in_a_save(process, killed)
    kill(process)
    (unfinished,) = being_saved(killed)
    assert unfinished.is_dir()
    finish(killed, *LONGER)
    assert_same_run(killed, whole)
    assert not being_saved(killed)
    rewards = [row["reward/even"] for row in steady(whole) if "reward/even" in row]
    assert len(rewards) == 10 and min(rewards) > 0  # there was something to learn
    assert max(row.get("loss/gradient_norm", 0) for row in steady(whole)[21:]) > 1e-3


@pytest.mark.slow
def test_eight_devices_do_what_one_does(tmp_path):
    one = finish(tmp_path / "one")
    eight = finish(tmp_path / "eight", "--config.mesh.fsdp=4", "--config.mesh.tensor=2", devices=8)
    assert (one / "samples.jsonl").read_text() == (eight / "samples.jsonl").read_text()
    assert lines(one) == lines(eight) == 8
    for a, b in zip(steady(one), steady(eight), strict=True):
        assert a.keys() == b.keys()
        for name in a:
            if name.startswith(("loss/", "rollout/entropy")):
                assert a[name] == pytest.approx(b[name], rel=1e-5, abs=1e-5), (name, a["step"])
            elif name.startswith("eval/"):
                # 512 responses. Where two tokens tie to 1e-5 a response may go another way.
                assert a[name] == pytest.approx(b[name], abs=0.02), (name, a["step"])
            else:  # rewards, lengths, skills: the same text gives the same numbers
                assert a[name] == b[name], (name, a["step"])
    assert steady(one)[-1]["loss/gradient_norm"] > 1e-3
    # A checkpoint of eight devices is one of one device.
    for stage in ("pretrain", "grpo"):
        folder = checkpoints.find(eight / "checkpoints" / stage)
        assert folder.name == checkpoints.find(one / "checkpoints" / stage).name
        pairs = zip(*(jax.tree.leaves(newest_params(w, stage)) for w in (one, eight)), strict=True)
        for a, b in pairs:
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)
