"""Eight fake devices, strict jax, a compilation cache, and a model small enough for any test.

The settings go into the environment before jax is imported, so that processes which
tests start have them too.
"""

import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [
        *os.environ.get("XLA_FLAGS", "").split(),
        "--xla_force_host_platform_device_count=8",
        # Tests compile far more than they compute: this halves the time of most.
        "--xla_backend_optimization_level=0",
    ]
)
os.environ["NPROC"] = "16"  # with as few threads as cores, fake devices can deadlock
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(
    pathlib.Path(tempfile.gettempdir())
    / f"r1jax-tests-xla-{importlib.metadata.version('jax')}-{os.getuid()}"
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.models import transformer
from r1jax.models.rope import rope_angles
from r1jax.models.transformer import Transformer, TransformerConfig
from r1jax.sharding import make_mesh

INI = pathlib.Path(__file__).with_name("pytest.ini")


def pytest_configure(config):
    # Without the file there are no warnings as errors, no markers, no importlib mode.
    if config.inipath is None or config.inipath.resolve() != INI.resolve():
        raise pytest.UsageError(f"{INI.name} is not in use: run `pytest tests`, or add -c {INI}")
    if len(jax.devices()) != 8:
        raise pytest.UsageError("jax was imported before conftest.py: it shows no 8 devices")


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Drops compiled programs before they are too many: each maps memory, and Linux allows a
    process 65,530 mappings. Past these XLA does not fail, it crashes."""
    yield
    with open("/proc/self/maps") as file:
        maps = sum(1 for _ in file)
    if maps > 20_000:
        jax.clear_caches()


@pytest.fixture(scope="session")
def mesh1():
    """One device. Enter it with `jax.set_mesh`, as a run does."""
    return make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="session")
def mesh8():
    """Weights cut over four devices, heads and feed-forward over two."""
    return make_mesh(data=1, fsdp=4, tensor=2)


@pytest.fixture(scope="session")
def random_params():
    """A function (model, seed): parameters that are all random.

    At initialisation biases are 0 and scales 1, which tests nothing. Made by numpy:
    jax would compile for longer than most tests run.
    """

    def make(model, seed=0):
        rng = np.random.default_rng(seed)

        def one(path, shape):
            x = rng.standard_normal(shape.shape)
            match path[-1].key:
                case "scale":
                    x = 1 + 0.3 * x
                case "bias":
                    x = 0.3 * x
                case "embed":
                    x = 0.4 * x
                case _:
                    x = x / np.sqrt(shape.shape[-2])
            return jnp.asarray(x, shape.dtype)

        return jax.tree_util.tree_map_with_path(one, jax.eval_shape(model.init, jax.random.key(0)))

    return make


@pytest.fixture
def absolute_positions(monkeypatch):
    """Rotates by the square of the position, for models that are traced in the test.

    Rotary attention sees differences of positions only: without this, positions that are
    off by a constant change nothing.
    """

    def squared(positions_BT, *settings):
        return rope_angles(positions_BT**2 / 8, *settings)

    monkeypatch.setattr(transformer, "rope_angles", squared)


@pytest.fixture(scope="session")
def tiny(random_params):
    """(model, params): two layers whose every dimension `mesh8` divides."""
    model = Transformer(
        TransformerConfig(
            vocabulary=32, width=16, layers=2, heads=4, kv_heads=2, head_dim=4, mlp=24, context=64
        )
    )
    return model, random_params(model)


@pytest.fixture(scope="session")
def compile_for_tpu():
    """Runs code that compiles for TPUs in a process without this one's settings.

    A function (code, argument): what the code prints last, as JSON. Skips without libtpu.
    """
    try:
        importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("libtpu is not installed (pip install libtpu): it compiles for TPUs")
    root = INI.parents[1]
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    env |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "PYTHONPATH": str(root)}

    def run(code, argument):
        done = subprocess.run(
            [sys.executable, "-c", code, argument],
            cwd=root, env=env, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Folder of a finished run of `experiments/r1_zero.py:tiny`; not to be changed."""
    from r1jax.cli import main  # slow to run, and wanted by few

    workdir = tmp_path_factory.mktemp("runs") / "trained"
    experiment = INI.parents[1] / "experiments" / "r1_zero.py"
    assert main(["train", f"--config={experiment}:tiny", f"--workdir={workdir}"]) == 0
    return workdir
