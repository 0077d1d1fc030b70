"""The command line: exit codes, messages, and what goes to stdout."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from r1jax import inference, train
from r1jax.cli import main
from r1jax.rewards import Response

ROOT = Path(__file__).parents[1]
TINY = f"{ROOT / 'experiments' / 'r1_zero.py'}:tiny"
COMMANDS = ("train", "eval", "sample", "plot", "report")


@pytest.fixture
def problems(tmp_path):
    """A benchmark of two questions."""
    path = tmp_path / "two.jsonl"
    path.write_text(
        '{"question": "What is 001+2+3+4 modulo a thousand?", "answer": "10"}\n'
        '{"question": "What is 999+1+2+3 modulo a thousand?", "answer": "5"}\n'
    )
    return str(path)


def fails(capsys, *arguments, code=1):
    """What the command says on stderr; nothing goes to stdout."""
    assert main(arguments) == code
    said = capsys.readouterr()
    assert not said.out and "Traceback" not in said.err
    return said.err


def refused(capsys, *arguments):
    """What is said about flags that cannot be used."""
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    said = capsys.readouterr()
    assert not said.out
    return said.err


# --- flags -----------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["eval", "--help"]])
def test_help_starts_no_jax(arguments):
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print([m for m in ('jax', 'numpy') if m in sys.modules]))\n"
        "sys.argv = ['r1jax', *sys.argv[1:]]\n"
        "import runpy; runpy.run_module('r1jax', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    *text, modules = done.stdout.splitlines()
    assert modules == "[]"
    text = "\n".join(text)
    if arguments == ["--help"]:
        assert all(f"\n    {command} " in text for command in COMMANDS)
    else:
        assert f"usage: r1jax {arguments[0]}" in text


def test_no_command(capsys):
    assert main([]) == 2
    assert capsys.readouterr().out.startswith("usage: r1jax")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "invalid choice: 'trian'"),
        (["train"], "the following arguments are required: --config, --workdir"),
        (["train", "--confg=x", "--workdir=y"], "the following arguments are required: --config"),
        (["eval", "--model=x"], "--benchmark is missing: a known name, or a file of problems"),
        (["eval"], "give --model=DIR and --benchmark=SOURCE, or --responses=FILE"),
        (["eval", "--model=a", "--responses=b"], "give --model=DIR and --benchmark=SOURCE, or --r"),
        (["eval", "--model=x", "--benchmark=y", "--sampels=3"], "unknown arguments: --sampels=3"),
        (["eval", "--model=x", "--benchmark=y", "--samples=many"], "invalid int value: 'many'"),
        (["sample", "--model=x", "--prompt=y", "z"], "unknown arguments: z"),
        (["plot", "--workdir=x", "--model=y"], "unknown arguments: --model=y"),
    ],
)
def test_flags_that_cannot_be_used(capsys, arguments, message):
    said = refused(capsys, *arguments)
    assert message in said and "usage: r1jax" in said


# --- train -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "override", "message"),
    [
        ("nowhere.py:x", None, "--config: there is no file nowhere.py"),
        (
            f"{TINY}x",
            None,
            "r1_zero.py:tinyx is unknown; variants: mini, tiny, gsm8k, published, paper",
        ),
        (TINY, "junk", "junk is unknown; overrides look like --config.grpo.lr=1e-4"),
        (TINY, "--lr=3", "--lr is unknown; overrides look like --config.grpo.lr=1e-4"),
        (TINY, "--config.grpo.lrr=3", "config.grpo.lrr is unknown; did you mean 'lr'?"),
        (TINY, "--config.grpo.lr=x", "config.grpo.lr='x' is a str, not float"),
        (TINY, "--config.grpo.steps=0", "config.grpo: steps=0 must be at least 1"),
    ],
)
def test_a_config_at_fault_starts_nothing(tmp_path, capsys, config, override, message):
    workdir = tmp_path / "run"
    flags = [f"--config={config}", f"--workdir={workdir}", *filter(None, [override])]
    said = fails(capsys, "train", *flags)
    assert said.startswith("r1jax train: ") and said.endswith(f"{message}\n")
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.grpo.problems=a.jsonl", "a.jsonl: there is no such file; give the path of a"),
        ("--config.grpo.problems=task:mini_aim:3", "task:mini_aim:3: write task:NAME:COUNT, e.g."),
        ("--config.evaluate.benchmarks=('b',)", "b: there is no such file; give the path of a"),
        ("--config.mesh.fsdp=3", "does not cover 8 devices; set one of config.mesh.data"),
    ],
)
def test_a_mistake_can_be_mended_in_the_same_workdir(tmp_path, capsys, override, message):
    flags = ["train", f"--config={TINY}", f"--workdir={tmp_path}"]
    assert message in fails(capsys, *flags, override)
    # The next config is not held against the one before, which made nothing.
    said = fails(capsys, *flags, "--config.grpo.problems=c.jsonl")
    assert said.startswith("r1jax train: c.jsonl: there is no such file")


def test_a_used_workdir_refuses_another_config(trained, capsys):
    before = (trained / "metrics.jsonl").read_bytes(), (trained / "config.json").read_bytes()
    said = fails(
        capsys, "train", f"--config={TINY}", f"--workdir={trained}", "--config.grpo.lr=0.5",
        "--config.grpo.epochs=2", "--config.evaluate.benchmarks=('mini_aime',)",
    )  # fmt: skip
    assert said == (
        f"r1jax train: {trained} was made with another config; use another --workdir, add "
        "--rerun to make again what this changes, or take back:\n"
        "  config.evaluate.benchmarks: ['mini_aime_dev'] -> ['mini_aime']\n"
        "  config.grpo.epochs: None -> 2\n"
        "  config.grpo.lr: 0.0002 -> 0.5\n"
    )
    assert before == ((trained / "metrics.jsonl").read_bytes(),
                      (trained / "config.json").read_bytes())  # fmt: skip


def test_a_workdir_that_is_a_file(tmp_path, capsys):
    path = tmp_path / "file"
    path.write_text("")
    said = fails(capsys, "train", f"--config={TINY}", f"--workdir={path}")
    assert "File exists" in said and str(path) in said


def test_interrupted(monkeypatch, capsys, tmp_path):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train", interrupt)
    said = fails(capsys, "train", f"--config={TINY}", f"--workdir={tmp_path}", code=130)
    assert "interrupted; train and eval go on from what they saved by the same command" in said


@pytest.mark.parametrize("error", [ValueError, RuntimeError, OSError])
def test_an_error_is_one_message_and_with_debug_a_trace(monkeypatch, capsys, tmp_path, error):
    def fail(*_, **__):
        raise error("no luck")

    monkeypatch.setattr(train, "train", fail)
    flags = ["train", f"--config={TINY}", f"--workdir={tmp_path}"]
    assert fails(capsys, *flags) == "r1jax train: no luck\n"
    with pytest.raises(error, match="no luck"):
        main(["--debug", *flags])


# --- eval ------------------------------------------------------------------------------


def evaluate(*arguments):
    return main(["eval", "--samples=2", "--max_tokens=8", "--workers=0", *arguments])


def test_eval_prints_one_json_object(trained, problems, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert evaluate(f"--model={trained}", f"--benchmark={problems}", "--json") == 0
    (line,) = capsys.readouterr().out.splitlines()
    scores = json.loads(line)
    assert (scores["benchmark"], scores["questions"]) == ("two", 2)
    assert set(scores) == {
        "benchmark", "questions", "pass@1", "pass@1_low", "pass@1_high", "pass@1_se", "pass@2",
        "pass@2_low", "pass@2_high", "cons@2", "cons@2_low", "cons@2_high", "length", "truncated",
        "reflections", "errors",
    }  # fmt: skip
    assert 0 <= scores["pass@1_low"] <= scores["pass@1"] <= scores["pass@1_high"] <= 1
    assert 1 <= scores["length"] <= 8
    # The same seed, the same responses; as text, and for the checkpoint itself.
    newest = trained / "checkpoints" / "grpo" / "3"
    assert evaluate(f"--model={newest}", f"--benchmark={problems}") == 0
    shown = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert list(shown) == [
        "benchmark", "questions", "pass@1", "pass@1_se", "pass@2", "cons@2", "length", "truncated",
        "reflections", "errors",
    ]  # fmt: skip
    assert (shown["benchmark"], shown["questions"]) == ("two", "2")
    low, high = scores["pass@1_low"], scores["pass@1_high"]
    assert shown["pass@1"] == f"{scores['pass@1']:.3f} [{low:.3f}, {high:.3f}]"
    # The model's responses and the results are kept, by default under the model's name.
    folder = tmp_path / "evals" / "trained-grpo-3"
    assert {p.name for p in folder.iterdir()} == {
        "two.jsonl", "two.pass_rates.jsonl", "results.json", "results.md"
    }  # fmt: skip
    assert main(["eval", f"--responses={folder / 'two.jsonl'}", "--workers=0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == scores


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--samples=0", "samples=0 must be at least 1"),
        ("--temperature=-1", "temperature=-1.0 must not be negative"),
        ("--temperature=nan", "temperature=nan must not be negative, and finite"),
        ("--top_p=0", "top_p=0.0 must be in (0, 1]"),
        ("--max_tokens=0", "max_tokens=0, rows=512, chunk=32 must all be at least 1"),
        ("--max_tokens=9999", "that exceeds the model's context of 256: shorten it, or lower max"),
        ("--limit=0", "limit=0 leaves nothing to read; use 1 or more, or None for all"),
        ("--benchmark=mini_aim", "mini_aim: there is no such file; give the path of a .jsonl"),
        (
            "--model=nowhere",
            "nowhere does not exist; give the folder of a run, of a checkpoint or of a",
        ),
    ],
)
def test_eval_of_what_cannot_be(trained, problems, capsys, flag, message):
    said = fails(capsys, "eval", f"--model={trained}", f"--benchmark={problems}", flag)
    assert said.startswith("r1jax eval: ") and message in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--model=a", "--benchmark=mini_aime", "--benchmark=mini_aime"],
            "are both called 'mini_aime'",
        ),
        (["--responses=nowhere.jsonl"], "nowhere.jsonl: cannot be read"),
    ],
)
def test_eval_without_what_it_needs(capsys, flags, message):
    assert message in fails(capsys, "eval", *flags)


def test_a_run_without_a_checkpoint(tmp_path, problems, capsys):
    (tmp_path / "checkpoints" / "grpo").mkdir(parents=True)
    (tmp_path / "config.json").write_text('{"stages": ["grpo"]}')
    said = fails(capsys, "eval", f"--model={tmp_path}", f"--benchmark={problems}")
    assert f"{tmp_path} holds no complete checkpoint" in said


def test_a_run_without_its_tokenizer(trained, tmp_path, problems, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    os.remove(run / "tokenizer.model")
    said = fails(capsys, "eval", f"--model={run}", f"--benchmark={problems}")
    assert f"no tokenizer in {run}: expected tokenizer.json or tokenizer.model" in said


# --- sample, plot, report --------------------------------------------------------------


def test_sample(trained, capsys):
    flags = ["sample", f"--model={trained}", "--prompt=What is 7+1?", "--samples=2",
             "--max_tokens=8"]  # fmt: skip
    printed = []
    for seed in (0, 0, 1):
        assert main([*flags, f"--seed={seed}"]) == 0
        printed.append(capsys.readouterr().out)
    heads = [line for line in printed[0].splitlines() if line.startswith("--- response ")]
    assert [head.split(" (")[0] for head in heads] == ["--- response 1", "--- response 2"]
    assert printed[0] == printed[1] != printed[2]


def test_sample_sets_the_reasoning_apart(monkeypatch, capsys):
    responses = [
        Response("<think>1+1\n=2</think>\n<answer>2</answer>", 9),
        Response("1+1=2</think>two", 5, think_opened=True),
        Response("about two", 3, truncated=True),
    ]
    monkeypatch.setattr(inference, "sample", lambda *_, **__: responses)
    assert main(["sample", "--model=x", "--prompt=y"]) == 0
    assert capsys.readouterr().out == (
        "--- response 1 (9 tokens)\nreasoning:\n  | 1+1\n  | =2\n<answer>2</answer>\n"
        "--- response 2 (5 tokens)\nreasoning:\n  | 1+1=2\ntwo\n"
        "--- response 3 (3 tokens, cut off)\nabout two\n"
    )


def test_sample_nothing(trained, capsys):
    said = fails(capsys, "sample", f"--model={trained}", "--prompt=x", "--samples=0")
    assert said == "r1jax sample: samples=0 must be at least 1\n"


def test_plot(trained, tmp_path, capsys):
    shutil.copy(trained / "metrics.jsonl", tmp_path)  # from the metrics alone
    assert main(["plot", f"--workdir={tmp_path}"]) == 0
    paths = [tmp_path / "plots" / n for n in ("accuracy.png", "response_length.png")]
    assert sorted(capsys.readouterr().out.split()) == [str(p) for p in paths]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in paths)


def test_report(trained, tmp_path, capsys):
    for name in ("config.json", "manifest.json", "metrics.jsonl", "samples.jsonl"):
        shutil.copy(trained / name, tmp_path)
    assert main(["report", f"--workdir={tmp_path}"]) == 0
    *table, page, figure = capsys.readouterr().out.splitlines()
    names = [line.split("|")[1].strip() for line in table[2:]]
    assert names == ["pretrain (evaluated at the start of grpo)", "grpo"]
    assert page == str(tmp_path / "report.html") and figure == str(tmp_path / "plots/stages.png")
    text = (tmp_path / "report.html").read_text()
    assert "2 of 2 finished" in text and "Response length" in text and 'class="response"' in text


def test_plot_of_nothing(tmp_path, capsys):
    assert "metrics.jsonl" in fails(capsys, "plot", f"--workdir={tmp_path}")
    assert "has none of config.json" in fails(capsys, "report", f"--workdir={tmp_path}")
