"""Checkpoints: back bit for bit, past broken ones, and past a full disk."""

import dataclasses
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import checkpoints
from r1jax.checkpoints import CheckpointError, Checkpoints
from r1jax.learner import init_state
from r1jax.models import abstract_params, describe, load
from r1jax.optim import OPTIMIZERS
from r1jax.types import TrainState

ROOT = Path(__file__).parents[1]
ABOUT = {"stage": "grpo", "seed": 0}


def state_at(step, seed=0):
    """A state of random numbers: no two of them and no two steps alike."""
    rng = np.random.default_rng([seed, step])
    params = {"a": {"kernel": rng.standard_normal((8, 4))}, "b": rng.standard_normal(5)}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    moments = OPTIMIZERS["adamw"]().init(params)
    opt = jax.tree.map(lambda x: x + rng.standard_normal(x.shape).astype(x.dtype), moments)
    return TrainState(params, opt, jnp.int32(step))


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def save(folder, *steps, **rest):
    with Checkpoints(folder, about=ABOUT, **rest) as saved:
        for step in steps:
            saved.save(state_at(step), {"position": 10 * step})


def restore(folder, **rest):
    with Checkpoints(folder, about=ABOUT) as saved:
        return saved.restore(state_at(0, seed=9), **rest)


def test_back_bit_for_bit(tmp_path):
    reference = state_at(7, seed=1).params
    with Checkpoints(tmp_path, about=ABOUT) as saved:
        saved.save(state_at(3), {"position": 17}, reference=reference)
    state, meta, found = restore(tmp_path, reference=state_at(0).params)
    assert_equal(state, state_at(3))
    assert_equal(found, reference)
    assert meta == {"stage": "grpo", "seed": 0, "position": 17}
    assert int(state.step) == 3


def test_nothing_there(tmp_path):
    assert restore(tmp_path / "new") is None


def test_the_newest_is_taken_and_older_ones_go(tmp_path):
    save(tmp_path, 1, 2, 5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "5"]
    assert_equal(restore(tmp_path)[0], state_at(5))


def test_a_step_of_ones_own_choosing(tmp_path):
    with Checkpoints(tmp_path, about=ABOUT) as saved:
        saved.save(state_at(16), {}, step=2)
        assert saved.steps() == [2]
    assert int(restore(tmp_path)[0].step) == 16


def test_the_state_may_change_as_soon_as_save_returns(tmp_path):
    def step(state):
        return jax.tree.map(lambda x: x + 1, state)

    donating = jax.jit(step, donate_argnums=0)
    with Checkpoints(tmp_path, about=ABOUT) as saved:
        state = state_at(3)
        saved.save(state, {})
        donating(state)
    assert_equal(restore(tmp_path)[0], state_at(3))


def test_layouts_are_the_templates(tmp_path, tiny, mesh1, mesh8):
    model, params = tiny
    optimizer = OPTIMIZERS["adamw"]()
    with jax.set_mesh(mesh1):
        one = init_state(model, optimizer, mesh1, params=params)
    with jax.set_mesh(mesh8):
        eight = init_state(model, optimizer, mesh8, params=jax.tree.map(jnp.zeros_like, params))
    with Checkpoints(tmp_path, about=ABOUT) as saved:
        saved.save(one, {})
        state, _, _ = saved.restore(eight)
    assert_equal(state, one)
    for got, want in zip(jax.tree.leaves(state), jax.tree.leaves(eight), strict=True):
        assert got.sharding == want.sharding
    folder = checkpoints.find(tmp_path)
    assert_equal(checkpoints.load_params(folder, abstract_params(model, mesh8)), params)


# --- broken ones -----------------------------------------------------------------------


def truncate_largest(folder):
    largest = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def truncate_all(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replace_by_files(folder):
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"somebody else's")


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGE = {
    "truncated": truncate_largest,
    "all_truncated": truncate_all,
    "no_params": lambda f: shutil.rmtree(f / "params"),
    "no_opt": lambda f: shutil.rmtree(f / "opt"),
    "no_meta": lambda f: shutil.rmtree(f / "meta"),
    "meta_garbled": lambda f: (f / "meta" / "metadata").write_text("{"),
    "foreign": replace_by_files,
    "empty": empty,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_an_unreadable_newest_is_set_aside(tmp_path, caplog, damage):
    save(tmp_path, 1, 2)
    damage(tmp_path / "2")
    left = sorted(str(p.relative_to(tmp_path / "2")) for p in (tmp_path / "2").rglob("*"))
    with caplog.at_level(logging.WARNING, "r1jax"):
        state, meta, _ = restore(tmp_path)
    assert_equal(state, state_at(1))
    assert meta["position"] == 10
    broken = tmp_path / "2.unreadable"
    assert sorted(str(p.relative_to(broken)) for p in broken.rglob("*")) == left  # nothing deleted
    (record,) = [r for r in caplog.records if r.name == "r1jax"]
    assert record.getMessage().startswith(f"checkpoint {tmp_path / '2'} is unreadable (")
    assert "moved to 2.unreadable, falling back to the one before it" in record.getMessage()
    # The step's name is free again, and what is saved under it is found.
    save(tmp_path, 2)
    assert_equal(restore(tmp_path)[0], state_at(2))
    assert broken.is_dir()


def test_when_all_are_unreadable_the_stage_starts_afresh(tmp_path, caplog):
    save(tmp_path, 1, 2)
    for step in ("1", "2"):
        shutil.rmtree(tmp_path / step / "params")
    assert restore(tmp_path) is None
    assert len([r for r in caplog.records if r.name == "r1jax"]) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1.unreadable", "2.unreadable"]


def test_one_of_another_model_is_set_aside(tmp_path, caplog):
    save(tmp_path, 1)
    other = state_at(0)._replace(params={"a": {"kernel": jnp.zeros((3, 3))}, "b": jnp.zeros(5)})
    with Checkpoints(tmp_path, about=ABOUT) as saved:
        assert saved.restore(other) is None
    assert (tmp_path / "1.unreadable").is_dir()


def test_what_a_killed_save_leaves_is_no_checkpoint(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "2.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    assert checkpoints.find(tmp_path) == tmp_path / "1"
    assert_equal(restore(tmp_path)[0], state_at(1))


# --- a full disk -----------------------------------------------------------------------

# Files may not grow beyond a limit that the parameters of step 2 exceed: as on a full disk,
# writing fails half-way through the save.
FULL = """
import resource, signal, sys
import jax, jax.numpy as jnp, numpy as np
from r1jax.checkpoints import CheckpointError, Checkpoints
from r1jax.types import TrainState

def state_at(step, size):
    x = np.random.default_rng(step).standard_normal(size).astype(np.float32)
    return TrainState({"x": jnp.asarray(x)}, (jnp.zeros(3),), jnp.int32(step))

folder = sys.argv[1]
with Checkpoints(folder, about={}) as saved:
    saved.save(state_at(1, 250_000), {"position": 1})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
before = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
try:
    with Checkpoints(folder, about={}) as saved:
        saved.save(state_at(2, 250_000), {"position": 2})
except CheckpointError as error:
    print(error)
else:
    print("no error")
resource.setrlimit(resource.RLIMIT_FSIZE, before)
with Checkpoints(folder, about={}) as saved:
    state, meta, _ = saved.restore(state_at(0, 250_000))
    np.testing.assert_array_equal(state.params["x"], state_at(1, 250_000).params["x"])
    print("position", meta["position"], "step", int(state.step))
    saved.save(state_at(2, 250_000), {"position": 2})
with Checkpoints(folder, about={}) as saved:
    print("then", saved.restore(state_at(0, 250_000))[1])
"""


def test_no_room_for_a_save(tmp_path):
    folder = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(folder)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    error, restored, then = done.stdout.splitlines()
    assert error.startswith(f"saving a checkpoint in {folder} failed (")
    assert "MiB free): " in error and "File too large" in error
    assert error.endswith(
        "Complete checkpoints kept: [1]. Free some space and run the same command again "
        "to go on from the newest"
    )
    assert restored == "position 1 step 1"
    assert then == "then {'position': 2}"


# --- find and load ---------------------------------------------------------------------


@pytest.fixture
def workdir(tmp_path):
    """A run with two stages: pretrain at 4, grpo at 1 and 2."""
    save(tmp_path / "checkpoints" / "pretrain", 4)
    save(tmp_path / "checkpoints" / "grpo", 1, 2)
    (tmp_path / "config.json").write_text(json.dumps({"stages": ["pretrain", "grpo"]}))
    return tmp_path


def test_find(workdir):
    stages = workdir / "checkpoints"
    assert checkpoints.find(workdir) == stages / "grpo" / "2"
    assert checkpoints.find(stages / "pretrain") == stages / "pretrain" / "4"
    assert checkpoints.find(str(stages / "grpo" / "1")) == stages / "grpo" / "1"
    shutil.rmtree(stages / "grpo")
    assert checkpoints.find(workdir) == stages / "pretrain" / "4"


@pytest.mark.parametrize("name", ["", "checkpoints"])
def test_find_nothing(tmp_path, name):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError) as error:
        checkpoints.find(tmp_path / name)
    assert str(error.value) == (
        f"{tmp_path / name} holds no complete checkpoint; give a run's folder, a stage's "
        "(RUN/checkpoints/STAGE), one checkpoint's (RUN/checkpoints/STAGE/STEP), or a published "
        "model's with config.json and model.safetensors"
    )


def test_find_what_is_no_folder(tmp_path):
    (tmp_path / "model.safetensors").write_text("")
    for name, what in (("nowhere", "does not exist"), ("model.safetensors", "is a file")):
        with pytest.raises(CheckpointError, match=f"{tmp_path / name} {what}; give the folder"):
            checkpoints.find(tmp_path / name)


def test_find_takes_a_relative_path(workdir, monkeypatch):
    monkeypatch.chdir(workdir)
    assert checkpoints.find(".") == workdir / "checkpoints" / "grpo" / "2"


def test_load_meta(workdir):
    folder = checkpoints.find(workdir)
    assert checkpoints.load_meta(folder) == {"stage": "grpo", "seed": 0, "position": 20}
    (folder / "meta" / "metadata").unlink()
    with pytest.raises(CheckpointError, match=f"{folder} is not a readable checkpoint of r1jax"):
        checkpoints.load_meta(folder)


def test_load_params_of_another_shape(workdir):
    folder = checkpoints.find(workdir)
    params = state_at(0).params
    assert_equal(checkpoints.load_params(folder, params), state_at(2).params)
    params["a"]["kernel"] = jnp.zeros((3, 3))
    with pytest.raises(CheckpointError, match=f"{folder} is not a readable checkpoint of this mod"):
        checkpoints.load_params(folder, params)


def test_a_checkpoint_says_itself_what_its_model_is(tmp_path, tiny, mesh8):
    model, params = tiny
    about = {"model": describe(model)}
    with Checkpoints(tmp_path, about=about) as saved:
        saved.save(TrainState(params, (), jnp.int32(1)), {})
    loaded, found = load(tmp_path, mesh=mesh8)
    assert loaded.config == model.config
    assert_equal(found, params)
    loaded, half = load(tmp_path, mesh=mesh8, dtype="bfloat16")
    assert loaded.config == dataclasses.replace(model.config, dtype="bfloat16")
    assert_equal(half, jax.tree.map(lambda p: p.astype(jnp.bfloat16), params))
    assert found["embed"].sharding.mesh == mesh8
