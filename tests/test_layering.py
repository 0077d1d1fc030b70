"""Imports run downwards only, and importing the package starts nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A module belongs to the first entry whose name is its own or a parent's.
LAYERS = {
    "maths": (
        "r1jax.types", "r1jax.shapes", "r1jax.losses", "r1jax.advantages", "r1jax.logprobs",
        "r1jax.metrics", "r1jax.divergence", "r1jax.head",
    ),
    "text": ("r1jax.rewards", "r1jax.templates"),
    "machinery": (
        "r1jax.models", "r1jax.sampling", "r1jax.data", "r1jax.sharding", "r1jax.optim",
        "r1jax.learner", "r1jax.rollouts", "r1jax.checkpoints", "r1jax.writers", "r1jax.plots",
        "r1jax.run", "r1jax.process", "r1jax.responses", "r1jax.scoring", "r1jax.search",
        "r1jax.experience", "r1jax.compute", "r1jax.report", "r1jax.judging",
    ),
    "stages": ("r1jax.stages",),
    "top": (
        "r1jax.pipeline", "r1jax.train", "r1jax.config", "r1jax.cli", "r1jax.inference",
        "r1jax.bench", "r1jax.bench_rewards", "r1jax.evaluation", "r1jax.experiment", "r1jax.kinds",
        "r1jax.manifest", "r1jax.assembly",
    ),
}  # fmt: skip
BELOW = {
    "maths": {"maths"},
    "text": {"text"},
    "machinery": {"maths", "text", "machinery"},
    "stages": {"maths", "text", "machinery", "stages"},
    "top": set(LAYERS),
}


def layer_of(module):
    return next(
        (
            layer
            for layer, names in LAYERS.items()
            if any(module == n or module.startswith(f"{n}.") for n in names)
        ),
        None,
    )


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(p): p for p in sorted((ROOT / "r1jax").rglob("*.py"))}


def imports(source):
    """Dotted names of modules that `source` imports, wherever in it, of its own as far as known."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide what is imported"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else node.module


def of(module):
    return set(imports(MODULES[module].read_text()))


def third_party(module):
    return {n.partition(".")[0] for n in of(module)} - set(sys.stdlib_module_names) - {"r1jax"}


def test_every_module_has_a_layer():
    without = {m for m in MODULES if layer_of(m) is None}
    assert without == {"r1jax", "r1jax.__main__"}
    assert not any(n.startswith("r1jax") for n in of("r1jax"))


@pytest.mark.parametrize("module", [m for m in MODULES if layer_of(m)])
def test_imports_run_downwards(module):
    layer = layer_of(module)
    for name in of(module):
        if not name.startswith("r1jax"):
            continue
        assert layer_of(name) in BELOW[layer] or name == "r1jax", f"{module} imports {name}"
        if layer == "stages" and module != "r1jax.stages":
            assert layer_of(name) != "stages", f"the stage {module} imports another, {name}"


def test_what_libraries_a_layer_may_import():
    for module in MODULES:
        match layer_of(module):
            case "maths":
                assert third_party(module) <= {"jax", "numpy"}, module
            case "text":
                allowed = {"sympy"} if module == "r1jax.rewards.math.algebra" else set()
                assert third_party(module) <= allowed, module


def test_config_objects_stop_at_the_top():
    readers = {m for m in MODULES if third_party(m) & {"ml_collections", "absl"}}
    assert readers, "the test finds nothing"
    assert {layer_of(m) for m in readers} == {"top"}


def test_flax_is_linen_under_models():
    for module in MODULES:
        for name in of(module):
            if name.split(".")[0] == "flax":
                assert name == "flax.linen" and module.startswith("r1jax.models."), module


def test_the_scan_sees_through_every_way_to_import():
    source = """
import a.b as c, r1jax.losses
from r1jax import learner
from r1jax.stages.grpo import run
def f():
    from flax import linen
"""
    # `linen` is no module of ours: what it is imported from counts.
    assert set(imports(source)) == {
        "a.b", "r1jax.losses", "r1jax.learner", "r1jax.stages.grpo", "flax",
    }  # fmt: skip


def printed(code):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import r1jax", ("jax", "numpy", "flax", "ml_collections", "r1jax.cli")),
        ("import r1jax.cli", ("jax", "numpy", "flax", "orbax", "ml_collections", "matplotlib")),
        ("import r1jax.rewards.pool", ("jax", "numpy")),
        ("import r1jax.templates", ("jax", "numpy")),
        ("import r1jax.metrics", ("jax",)),
        ("import r1jax.train, r1jax.inference", ("tensorflow", "torch")),
    ],
)
def test_importing_is_cheap(statement, absent):
    code = f"{statement}\nimport sys\nprint([m for m in {absent!r} if m in sys.modules])"
    assert printed(code) == "[]"


def test_no_import_starts_a_device():
    names = ", ".join(m for m in MODULES if m != "r1jax.__main__")
    code = (
        f"import {names}\n"
        "from jax._src import xla_bridge\n"  # jax has no public way to ask
        "print(xla_bridge.backends_are_initialized())"
    )
    assert printed(code) == "False"
