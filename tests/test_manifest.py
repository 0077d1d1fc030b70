"""What a stage was made from, and what is made again when that changes."""

import json
import shutil
from pathlib import Path

import pytest

from r1jax import config
from r1jax.cli import main
from r1jax.config import ConfigError
from r1jax.experiment import parse
from r1jax.kinds import Data
from r1jax.manifest import Manifest
from r1jax.writers import read_lines

ROOT = Path(__file__).parents[1]
TINY = f"{ROOT / 'experiments' / 'r1_zero.py'}:tiny"
R1 = f"{ROOT / 'experiments' / 'r1.py'}:tiny"


def hashes(path, *overrides, data=None):
    experiment = parse(config.plain(config.load(path, overrides)))
    return Manifest(Path("/nowhere"), experiment).input_hashes(data or {})


def changed(path, *overrides):
    before, after = hashes(path), hashes(path, *overrides)
    return {name for name in before if before[name] != after[name]}


def test_a_change_reaches_all_that_depends_on_it_and_nothing_else():
    everything = set(hashes(R1))
    assert changed(R1, "--config.seed=1") == everything
    assert changed(R1, "--config.base.web_steps=5") == everything
    # The chain base, R1-Zero, cold data, cold start, reasoning RL, curated data, SFT, R1.
    assert changed(R1, "--config.reasoning_rl.lr=1e-5") == {
        "reasoning_rl", "curated", "sft", "helpfulness", "harmlessness", "r1"
    }  # fmt: skip
    assert changed(R1, "--config.harmlessness.lr=1e-5") == {"harmlessness", "r1"}
    assert changed(R1, "--config.evaluate.samples=3") == set()


def test_what_a_stage_reads_is_part_of_its_input():
    def with_rows(question):
        return hashes(TINY, data={"grpo": Data([{"question": question}], None, {})})

    a, b = with_rows("a"), with_rows("b")
    assert a["pretrain"] == b["pretrain"] and a["grpo"] != b["grpo"]
    assert a == with_rows("a")


def test_a_folder_is_told_by_what_is_in_it(tmp_path):
    (tmp_path / "weights").write_bytes(b"x" * 1000)
    (tmp_path / "config.json").write_text("{}")
    experiment = parse(config.plain(config.load(TINY)))

    def origin():
        return Manifest(Path("/nowhere"), experiment).origin(str(tmp_path), ())["sha256"]

    first = origin()
    assert origin() == first
    (tmp_path / "config.json").write_text("[]")
    assert (second := origin()) != first
    (tmp_path / "weights").write_bytes(b"x" * 999 + b"y")  # of the same size
    assert origin() not in (first, second)


def test_problems_count_where_examples_are_still_to_be_made(tmp_path):
    """`curated` joins the examples of an earlier stage: its problems are read all the same."""
    path = tmp_path / "problems.jsonl"

    def hash_with(answer):
        path.write_text(json.dumps({"id": "1", "question": "1+1?", "answer": answer}) + "\n")
        overrides = ["--config.curated.extra=('cold_data',)", f"--config.curated.problems={path}"]
        return hashes(R1, *overrides)["curated"]

    assert hash_with("2") == hash_with("2") != hash_with("3")


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["--config.sft.examples=r1_zero"], "config.sft.examples='r1_zero': that stage makes a m"),
        (["--config.r1.init=curated"], "config.r1.init='curated': that stage makes a file of ex"),
        (["--config.r1.init=helpfulness"], "config.r1.init='helpfulness': that stage makes a mod"),
        (["--config.r1.preference.models.helpfulness=sft"],
         "config.r1.preference.models.helpfulness='sft': that stage makes a model, and"),
        (["--config.cold_data.init=nowhere"], "neither an earlier stage that makes a model .base"),
        (["--config.cold_data.init=bse"], "did you mean 'base'"),
        (["--config.sft.examples=cold_dta"], "config.sft.examples='cold_dta' .*did you mean"),
        (["--config.cold_start.examples=curated"], "that stage does not come before"),
        (["--config.evaluate.stages=('curated',)"], "which is no stage that makes a model"),
        (["--config.stages=('base','base')"], "names 'base' twice"),
    ],
)  # fmt: skip
def test_references_that_cannot_be(overrides, message):
    plain = config.plain(config.load(R1, overrides))
    with pytest.raises(ConfigError, match=message):
        parse(plain)


def test_a_score_model_of_another_scope_is_no_reward():
    file = str(ROOT / "experiments" / "failed_attempts.py")
    load = config.load(f"{file}:tiny", ["--config.prm_rl.preference.models.process=value"])
    with pytest.raises(ConfigError, match=r"models\.process='value': .* with scope 'value', and"):
        parse(config.plain(load))
    load = config.load(f"{file}:tiny", ["--config.search.process_model=value"])
    with pytest.raises(ConfigError, match=r"process_model='value': .* needed here is 'steps'"):
        parse(config.plain(load))


# --- a workdir of which something is made again ----------------------------------------


def run(workdir, *flags):
    return main(["train", f"--config={TINY}", f"--workdir={workdir}", *flags])


def stages(workdir):
    return json.loads((workdir / "manifest.json").read_text())["stages"]


def test_a_changed_stage_is_made_again_and_the_one_before_it_is_not(trained, tmp_path, capsys):
    work = shutil.copytree(trained, tmp_path / "work")
    change = "--config.grpo.lr=0.01"
    assert run(work, change) == 1
    said = capsys.readouterr().err
    assert "config.grpo.lr: 0.0002 -> 0.01" in said and "--rerun" in said
    assert stages(work) == stages(trained)  # nothing was touched

    assert run(work, change, "--rerun") == 0
    assert stages(work)["pretrain"] == stages(trained)["pretrain"]
    now, before = stages(work)["grpo"], stages(trained)["grpo"]
    assert now["input_hash"] != before["input_hash"]
    assert now["config_hash"] != before["config_hash"]
    assert json.loads((work / "config.json").read_text())["grpo"]["lr"] == 0.01
    aside = work / "superseded" / "0"
    assert json.loads((aside / "manifest.json").read_text())["stages"] == {"grpo": before}
    assert {p.name for p in (aside / "checkpoints" / "grpo").iterdir()} == {"2", "3"}
    # Every line is kept once: of pretraining here, of the first GRPO there.
    old = read_lines(trained / "metrics.jsonl")
    assert read_lines(aside / "metrics.jsonl") == [r for r in old if r["stage"] == "grpo"]
    rows = read_lines(work / "metrics.jsonl")
    assert [r for r in rows if r["stage"] == "pretrain"] == [
        r for r in old if r["stage"] == "pretrain"
    ]
    rates = [r["lr"] for r in rows if r["stage"] == "grpo" and r["step"]]
    assert rates[0] == pytest.approx(0.01 / 6)  # the first of five steps of warm-up
    assert run(work, change) == 0  # and it is done


@pytest.mark.slow
def test_a_file_that_has_changed_is_noticed(tmp_path, capsys):
    problems = tmp_path / "problems.jsonl"

    def write(answer):
        rows = [{"id": str(i), "question": f"{i}+1?", "answer": answer} for i in range(8)]
        problems.write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("1")
    flags = [f"--config.grpo.problems={problems}", "--config.grpo.steps=1"]
    assert run(tmp_path / "work", *flags) == 0
    first = stages(tmp_path / "work")
    write("2")
    assert run(tmp_path / "work", *flags) == 1
    assert "were made from has changed: grpo. Add --rerun" in capsys.readouterr().err
    assert run(tmp_path / "work", *flags, "--rerun") == 0
    second = stages(tmp_path / "work")
    assert second["pretrain"] == first["pretrain"]
    assert second["grpo"]["data"]["sha256"] != first["grpo"]["data"]["sha256"]


@pytest.mark.slow
def test_everything_is_made_again_with_another_tokenizer(trained, tmp_path):
    work = shutil.copytree(trained, tmp_path / "work")
    flags = ["--config.tokenizer.vocabulary=360", "--config.grpo.steps=1", "--rerun"]
    assert run(work, *flags) == 0
    old, new = ((w / "tokenizer.model").read_bytes() for w in (trained, work))
    assert old != new
    assert (work / "superseded" / "0" / "tokenizer.model").read_bytes() == old


def test_nothing_is_moved_where_the_new_config_cannot_be(trained, tmp_path, capsys):
    work = shutil.copytree(trained, tmp_path / "work")
    before = {p: p.stat().st_mtime_ns for p in work.rglob("*")}
    flags = ["--config.grpo.max_tokens=100000", "--rerun"]
    assert run(work, *flags) == 1
    assert "config.grpo: " in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in work.rglob("*")} == before


def test_a_checkpoint_that_is_gone_is_noticed_and_made_again(trained, tmp_path, capsys):
    work = shutil.copytree(trained, tmp_path / "work")
    shutil.rmtree(work / "checkpoints" / "pretrain" / "8")  # 4 is still there
    assert run(work) == 1
    said = capsys.readouterr().err
    assert "checkpoints/pretrain/8 is missing or is not what stage 'pretrain' made" in said
    assert run(work, "--rerun") == 0
    for name in ("pretrain", "grpo"):
        assert stages(work)[name]["artefact"] == stages(trained)[name]["artefact"]
    # What it was to make is the same, so what was made from it stays.
    assert stages(work)["grpo"] == stages(trained)["grpo"]


def test_checkpoints_without_a_manifest_are_not_taken_over(trained, tmp_path, capsys):
    work = shutil.copytree(trained, tmp_path / "work")
    (work / "manifest.json").unlink()
    assert run(work) == 1
    assert "but no manifest.json" in capsys.readouterr().err
    (work / "manifest.json").write_text("{")
    assert run(work) == 1
    assert "manifest.json is unreadable" in capsys.readouterr().err
