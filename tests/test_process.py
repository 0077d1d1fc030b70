"""Freed memory kept: seen from outside, by the pages that a process asks the kernel for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from r1jax import process

ROOT = Path(__file__).parents[1]

COUNT = """
import json, resource, sys
from r1jax import process
kept = process.keep_freed_memory()
large = process.keep_large_blocks(int(sys.argv[1]))
import jax, jax.numpy as jnp
product = jax.jit(lambda x: (x[:, None] * x[None, :]).reshape(-1) + 1)
x = jnp.ones(int(sys.argv[2]))
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    product(x).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(json.dumps([kept, large, min(faults() for _ in range(25))]))
"""


def pages(parameter_bytes, n, **env):
    base = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_", "XLA_"))}
    base |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)} | env
    out = subprocess.run(
        [sys.executable, "-c", COUNT, str(parameter_bytes), str(n)],
        env=base, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(out.stdout.splitlines()[-1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc alone is set up")
def test_large_results_of_a_small_model_reuse_memory():
    # A result of 64 MiB is 16,384 pages if it is mapped anew, as it then is every time; among
    # 25 some find a free block. (Below 32 MiB glibc reuses blocks by itself in the end.)
    kept, large, faults = pages(1 << 20, 4096)
    assert kept and large and faults < 16_384 / 4
    kept, large, _ = pages(1 << 30, 4096)
    assert kept and not large
    # The user's own setting stands.
    kept, large, faults = pages(1 << 20, 4096, MALLOC_ARENA_MAX="8")
    assert not kept and not large and faults >= 16_384


@pytest.mark.parametrize(
    ("weights", "env", "expected"),
    [
        (173_888, {}, (True, "1")),
        (1_000_000, {}, (False, None)),
        (173_888, {"NPROC": "3"}, (False, "3")),  # the user's own stands
        # As many devices wait for each other: with one thread they would do so for ever.
        (173_888, {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}, (False, None)),
    ],
)
def test_threads_of_a_small_model(monkeypatch, weights, env, expected):
    for name in ("NPROC", "XLA_FLAGS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    try:
        assert (process.one_thread(weights), os.environ.get("NPROC")) == expected
    finally:
        os.environ.clear()
        os.environ.update(before)
