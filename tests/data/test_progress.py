"""Batches on disk: whatever a kill leaves, the file in the end is the same."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.data.progress import BatchProgress, signature

ABOUT = {"seed": 1, "ways": ("plain", "few_shot")}
ROWS = [[{"question": f"é\u2028{b}{i}"} for i in range(3)] for b in range(3)]
COUNTS = [{"kept": 3, "batch": b} for b in range(3)]
MORE = [{"question": "more", "source": "s"}]


def go_on(path, about=ABOUT, *, until=3):
    """Adds what batches are missing; how many were there."""
    with BatchProgress(path, about) as progress:
        there = len(progress.batches)
        assert progress.batches == COUNTS[:there]
        for b in range(there, until):
            progress.add(ROWS[b], COUNTS[b])
        if until == 3:
            progress.finish(path.with_name("final.jsonl"), MORE)
    return there


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data" / "x.partial.jsonl"


WANT = "".join(
    json.dumps(row, ensure_ascii=False) + "\n" for row in [*ROWS[0], *ROWS[1], *ROWS[2], *MORE]
)


def test_rows_in_order_and_nothing_else(path):
    assert go_on(path) == 0
    assert path.with_name("final.jsonl").read_text(encoding="utf-8") == WANT
    assert [p.name for p in path.parent.iterdir()] == ["final.jsonl"]  # progress is deleted


def test_cut_anywhere_it_goes_on_from_the_last_complete_batch(path):
    go_on(path, until=2)
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    assert len(ends) == 9  # what it is about; two batches of three rows and a mark
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        there = go_on(path)
        assert there == sum(cut >= ends[i] for i in (4, 8)), cut
        assert path.with_name("final.jsonl").read_text(encoding="utf-8") == WANT


def test_bytes_that_are_no_text_are_a_kills(path):
    go_on(path, until=2)
    with path.open("ab") as file:
        file.write(b'{"question": "\xc3"}\n\x00\x00\n{"batch": 2, "counts": {}}\n')
    assert go_on(path) == 2
    assert path.with_name("final.jsonl").read_text(encoding="utf-8") == WANT


def test_a_stopped_run_of_something_else_is_not_gone_on_from(path, caplog):
    go_on(path, until=2)
    assert go_on(path, ABOUT | {"seed": 2}) == 0
    assert "beginning anew" in caplog.text
    assert path.with_name("final.jsonl").read_text(encoding="utf-8") == WANT


def test_weights_are_told_apart():
    def params(**changes):
        x = {"a": jnp.arange(12.0).reshape(3, 4), "b": jnp.float32(2), "c": jnp.zeros(20)} | changes
        return {"layer": x}

    first = signature(params())
    assert signature(params()) == first
    # A bit of the first row of any weight is enough.
    assert signature(params(b=np.nextafter(np.float32(2), np.float32(3)))) != first
    assert signature(params(a=jnp.arange(12.0).reshape(3, 4).at[0, 3].add(1e-6))) != first
    assert signature(params(d=jnp.zeros(20))) != first
    assert signature(params(c=jnp.zeros(20, jnp.bfloat16))) == first  # the same numbers
