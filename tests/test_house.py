"""The checkout itself: what the README promises is what CI runs, and what ships."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOP = {
    "setup.py", "r1jax", "experiments", "tests", "notebooks", "README.md", "CHANGELOG.md",
    "BENCHMARKS.md", "RESULTS.md",
}  # fmt: skip


def readme_commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return [block.strip() for block in blocks]


def test_ci_runs_the_very_test_command_of_the_readme():
    train, test = readme_commands()[:2]
    assert train.startswith("pip install -e . && r1jax train --config=experiments/r1_zero.py:mini")
    assert f"bash -c '{test}'" in (ROOT / ".ci/run").read_text().splitlines()


def test_top_level_holds_what_the_design_names():
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    top = {name.split("/")[0] for name in tracked}
    assert {name for name in top if not name.startswith(".")} <= TOP


def test_the_readme_names_only_files_that_exist():
    text = (ROOT / "README.md").read_text()
    named = re.findall(r"`((?:r1jax|experiments|tests|notebooks)/[\w./]+\.(?:py|ipynb|png))", text)
    named += re.findall(r"\]\(([\w./]+\.(?:png|md|py|ipynb|jsonl))\)", text)
    assert len(named) >= 6
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_package_data_ships_the_fixed_problem_files():
    setup = (ROOT / "setup.py").read_text()
    assert '"r1jax.data.tasks": ["*.jsonl"]' in setup
    files = sorted(p.name for p in (ROOT / "r1jax/data/tasks").glob("*.jsonl"))
    assert files == [
        f"{task}_{part}.jsonl"
        for task in ("mini_aime", "mini_general", "mini_world")
        for part in ("dev", "test")
    ]


def test_every_imported_library_is_a_requirement():
    """Third-party modules that r1jax imports are named in setup.py."""
    provides = {
        "absl": "absl-py", "PIL": "pillow", "ml_collections": "ml-collections",
        "orbax": "orbax-checkpoint", "tensorflow_datasets": "tensorflow-datasets",
        "math_verify": "math-verify",
    }  # fmt: skip
    setup = (ROOT / "setup.py").read_text()
    missing = set()
    for path in (ROOT / "r1jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                names = [node.module] if isinstance(node, ast.ImportFrom) else []
            for module in {name.split(".")[0] for name in names} - {"r1jax"}:
                name = provides.get(module, module)
                required = re.search(rf'"{name}(\[|>|")', setup)
                if module not in sys.stdlib_module_names and not required:
                    missing.add((path.name, module))
    assert missing == set()


def test_notebooks_are_committed_without_outputs():
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        assert [c for c in cells if c["cell_type"] == "code" and c["outputs"]] == []
