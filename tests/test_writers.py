"""The files of a run: line by line, through kills and resumes."""

import json
import math
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from r1jax.writers import Writer, read_lines

ROOT = Path(__file__).parents[1]


def quiet(workdir, **settings):
    return Writer(workdir, **{"tensorboard": False, "progress": False} | settings)


def rows(workdir, name="metrics.jsonl"):
    return [json.loads(line) for line in (workdir / name).read_text().splitlines()]


def test_a_line_is_step_stage_wall_time_and_flat_metrics(tmp_path):
    with quiet(tmp_path) as writer:
        writer.metrics("grpo", 3, {"loss/kl": np.float32(0.5), "rollout/rounds": 2})
    (row,) = rows(tmp_path)
    assert list(row) == ["step", "stage", "wall_s", "loss/kl", "rollout/rounds"]
    assert (row["step"], row["stage"], row["loss/kl"]) == (3, "grpo", 0.5)
    assert row["rollout/rounds"] == 2 and isinstance(row["rollout/rounds"], int)
    assert 0 <= row["wall_s"] < 60


def test_a_line_is_there_as_soon_as_it_is_written(tmp_path):
    with quiet(tmp_path) as writer:
        writer.metrics("grpo", 1, {})
        assert len(rows(tmp_path)) == 1  # flushed: a kill loses nothing


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_what_is_not_finite_is_null(tmp_path, value):
    with quiet(tmp_path, tensorboard=True) as writer:
        writer.metrics("grpo", 1, {"loss/total": value, "lr": 0.1})
    (row,) = rows(tmp_path)
    assert row["loss/total"] is None and row["lr"] == 0.1
    # Strict readers take it: NaN is no JSON.
    json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)


def test_samples_keep_their_text(tmp_path):
    text = "zwei\nZeilen, 数学, \u2028, \x85 und 🙂"
    with quiet(tmp_path) as writer:
        writer.sample("grpo", 2, {"response": text})
        writer.sample("grpo", 3, {"response": text})
    assert read_lines(tmp_path / "samples.jsonl") == [
        {"step": step, "stage": "grpo", "response": text} for step in (2, 3)
    ]
    assert "数学" in (tmp_path / "samples.jsonl").read_text(encoding="utf-8")


def test_rewind_drops_what_runs_again_and_nothing_else(tmp_path):
    with quiet(tmp_path) as writer:
        for stage, step in [
            ("pretrain", 1),
            ("pretrain", 9),
            ("grpo", 0),
            ("grpo", 1),
            ("grpo", 2),
        ]:
            writer.metrics(stage, step, {"x": step})
            writer.sample(stage, step, {"response": "數"})
        before = (tmp_path / "metrics.jsonl").read_text().splitlines()
        writer.rewind("grpo", 1)
        writer.metrics("grpo", 2, {"x": 20})  # goes on in the same file
    kept = [("pretrain", 1), ("pretrain", 9), ("grpo", 0), ("grpo", 1)]
    assert [(r["stage"], r["step"]) for r in rows(tmp_path, "samples.jsonl")] == kept
    assert [(r["stage"], r["step"]) for r in rows(tmp_path)] == [*kept, ("grpo", 2)]
    assert (tmp_path / "metrics.jsonl").read_text().splitlines()[:4] == before[:4]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.jsonl", "samples.jsonl"]


def test_rewind_of_nothing(tmp_path):
    with quiet(tmp_path) as writer:
        writer.rewind("grpo", -1)
    assert not list(tmp_path.iterdir())


def test_a_stage_that_starts_afresh_drops_all_its_lines(tmp_path):
    with quiet(tmp_path) as writer:
        writer.metrics("grpo", 0, {})  # the evaluation before the first step
        writer.rewind("grpo", -1)
    assert rows(tmp_path) == []


@pytest.mark.parametrize("torn", ['{"step": 2, "stage": "gr', '{"step": 2', "{", '{"a": "\\'])
def test_a_torn_last_line(tmp_path, torn):
    with quiet(tmp_path) as writer:
        writer.metrics("grpo", 1, {"x": 1})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(torn)
    assert [r["step"] for r in read_lines(tmp_path / "metrics.jsonl")] == [1]
    with quiet(tmp_path) as writer:
        writer.rewind("grpo", 1)
        writer.metrics("grpo", 2, {"x": 2})
    assert [r["x"] for r in rows(tmp_path)] == [1, 2]


def test_a_line_torn_within_a_character(tmp_path):
    path = tmp_path / "samples.jsonl"
    text = '{"step": 1, "stage": "grpo", "response": "數"}\n'
    path.write_bytes(text.encode() + text.encode()[:43])  # of the character's bytes 42 to 44
    assert read_lines(path) == [json.loads(text)]


@pytest.mark.parametrize("bad", [b'{"step": 2, "st', b"", b"\x00\x00", b'"\xe6\x95"'])
@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl"])
def test_a_bad_line_before_the_last_loses_nothing(tmp_path, name, bad):
    good = [json.dumps({"step": i, "stage": "grpo"}).encode() for i in range(30)]
    path = tmp_path / name
    content = b"\n".join([*good[:3], bad, *good[3:]]) + b"\n"
    writer = quiet(tmp_path)
    path.write_bytes(content)
    message = rf"{name}, line 4 is no JSON \(.+\): restore the file from a copy, or mend or delete"
    with pytest.raises(ValueError, match=message):
        read_lines(path)
    with pytest.raises(ValueError, match=message):
        writer.rewind("grpo", 30)
    assert path.read_bytes() == content


def test_a_bad_last_line_that_is_whole_is_not_torn(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2\n')
    with pytest.raises(ValueError, match="line 2 is no JSON"):
        read_lines(path)


def test_wall_time_goes_on_after_a_resume(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "stage": "grpo", "wall_s": 1000.0}\n')
    start = time.monotonic()
    with quiet(tmp_path) as writer:
        writer.metrics("grpo", 2, {})
    assert 1000.0 <= rows(tmp_path)[-1]["wall_s"] <= 1000.0 + time.monotonic() - start + 0.001


def test_tensorboard_events_without_tensorflow(tmp_path):
    code = (
        "import sys\n"
        "from r1jax.writers import Writer\n"
        f"with Writer({str(tmp_path)!r}) as writer:\n"
        "    writer.metrics('grpo', 7, {'eval/x/pass@1': 0.25, 'bad': float('nan')})\n"
        # tensorboardX itself imports torch where somebody has it.
        "print([m for m in ('tensorflow', 'jax') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    (events,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
    content = events.read_bytes()
    assert b"grpo/eval/x/pass_at_1" in content and b"bad" not in content


FULL = Path("/dev/full")  # every write to it fails as on a full disk


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl"])
def test_no_room_for_a_line(tmp_path, name):
    message = (
        rf"writing {tmp_path / name} failed: \[Errno 28\] No space left on device. Free some space "
        "and run the same command again to go on from the newest checkpoint"
    )
    # The file is closed on the way out, which fails again: the message stays the first one.
    with pytest.raises(OSError, match=message), quiet(tmp_path) as writer:
        (tmp_path / name).symlink_to(FULL)  # not before: it can be read for ever
        if name == "metrics.jsonl":
            writer.metrics("grpo", 1, {})
        else:
            writer.sample("grpo", 1, {})


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
def test_no_room_hides_no_other_error(tmp_path):
    with pytest.raises(RuntimeError, match="first"), quiet(tmp_path) as writer:
        writer._files["metrics.jsonl"] = FULL.open("w")
        writer._files["metrics.jsonl"].write("waits in a buffer")
        raise RuntimeError("first")


def test_many_events_are_on_disk_at_once(tmp_path):
    with quiet(tmp_path, tensorboard=True) as writer:
        for step in range(30):
            writer.metrics("grpo", step, {"x": step})
        (events,) = (tmp_path / "tensorboard").iterdir()
        assert events.read_bytes().count(b"grpo/x") == 30
    assert not [t for t in threading.enumerate() if t is not threading.main_thread()
                and "Event" in type(t).__name__]  # fmt: skip


def test_progress_goes_to_stderr_and_can_be_off(tmp_path, capsys):
    with quiet(tmp_path, progress=True) as writer, writer.bar(2, "grpo", done=1) as bar:
        bar.update()
    shown = capsys.readouterr()
    assert "grpo" in shown.err and "2/2" in shown.err and not shown.out
    with quiet(tmp_path) as writer, writer.bar(2, "grpo") as bar:
        bar.update()
    assert not capsys.readouterr().err
