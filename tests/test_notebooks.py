"""Every notebook runs from its own folder, as its reader would run it."""

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"
NAMES = sorted(path.name for path in FOLDER.glob("*.ipynb"))


@pytest.fixture
def execute(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")  # one device: the kernel is a process of its own

    def run(name):
        """Text that the cells print and show; a cell that fails raises CellExecutionError."""
        notebook = nbformat.read(FOLDER / name, as_version=4)
        NotebookClient(
            notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": FOLDER}}
        ).execute()
        outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
        figures = sum("image/png" in out.get("data", {}) for out in outputs)
        return "".join(out.get("text", "") for out in outputs), figures

    return run


@pytest.mark.parametrize("name", NAMES)
def test_is_committed_clean(name):
    notebook = nbformat.read(FOLDER / name, as_version=4)
    nbformat.validate(notebook)
    assert notebook.nbformat == 4 and notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None, cell.id


@pytest.mark.slow
def test_grpo_loss(execute):
    text, figures = execute("grpo_loss.ipynb")
    assert "loss -0.02110149" in text and "loss/slope" in text
    assert figures == 3


@pytest.fixture
def runs(tmp_path):
    """Two finished runs, told apart by their ends; the first has samples."""

    def evaluation(pass1, length):
        row = {"eval/mini_aime/pass@1": pass1, "eval/mini_aime/cons@16": 0.9}
        row |= {f"{m}_low": v - 0.1 for m, v in row.items()}
        row |= {m.replace("_low", "_high"): v + 0.2 for m, v in row.items() if m.endswith("_low")}
        return row | {"eval/mini_aime/length": length, "eval/mini_aime/truncated": 0.0}

    for name, end in (("a", 0.75), ("b", 0.625)):
        rows = [evaluation(0.25, 30.0), {}, evaluation(end, 60.0)]
        rollout = {"rollout/length": 45.0, "rollout/reflections": 1.0}
        (tmp_path / name).mkdir()
        with open(tmp_path / name / "metrics.jsonl", "w") as file:
            for step, row in enumerate(rows):
                row |= {"step": step, "stage": "grpo", "wall_s": 1.0} | (rollout if step else {})
                file.write(json.dumps(row) + "\n")
    with open(tmp_path / "a" / "samples.jsonl", "w") as file:
        for step, words in ((0, "a guess"), (1, "halfway"), (2, "wait, check")):
            sample = {
                "step": step, "stage": "grpo", "benchmark": "mini_aime", "id": "mini_aime/0",
                "sample": 0, "question": "What is 1+1?", "answer": "2", "response": words,
                "tokens": 7, "truncated": False,
            }  # fmt: skip
            file.write(json.dumps(sample) + "\n")
    return tmp_path


def test_aime_curve_compares_runs(execute, runs, monkeypatch):
    monkeypatch.setenv("R1JAX_WORKDIR", f"{runs / 'a'}:{runs / 'b'}")
    text, figures = execute("aime_curve.ipynb")
    assert figures == 5  # two of each run, one of both
    for shown in ("25.0% [15.0, 35.0]", "75.0% [65.0, 85.0]", "62.5%", "30.0", "60.0"):
        assert shown in text
    assert "a guess" in text and "wait, check" in text and "halfway" not in text
    assert "b: no samples.jsonl" in text


def test_aime_curve_reads_the_own_run_or_the_committed_one(execute, monkeypatch):
    monkeypatch.delenv("R1JAX_WORKDIR", raising=False)
    text, figures = execute("aime_curve.ipynb")
    assert figures == 3 and "cons@16" in text
    if not (FOLDER.parent / "runs" / "r1_zero_mini" / "metrics.jsonl").is_file():
        assert "committed metrics" in text  # and says so
