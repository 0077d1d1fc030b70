import json
import re
from types import SimpleNamespace

import pytest

from r1jax.data import pairs as module
from r1jax.data.pairs import load_pairs, split


@pytest.fixture
def write(tmp_path):
    def write(*rows):
        path = tmp_path / "some.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return str(path)

    return write


def row(question="q", chosen="good", rejected="bad", **more):
    return {"question": question, "chosen": chosen, "rejected": rejected, **more}


def test_texts_are_taken_as_they_are_and_other_fields_left_out(write):
    rows = [row(chosen="<think>a\n</think>\n b "), row(rejected="é\u2028", id=3, aspect="x"), row()]
    want = [{name: r[name] for name in ("question", "chosen", "rejected")} for r in rows]
    assert load_pairs(write(*rows)) == want


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"question": "q", "chosen": "a"}, "no field 'rejected' (fields there: 'question', 'ch"),
        (row(chosen=" \n"), "field 'chosen' is empty; fill it in or delete the row"),
        (row(rejected=3), "field 'rejected' is"),
        (row(question=None), "field 'question' is"),
        (row("q", "same", "same"), "fields 'chosen' and 'rejected' are the same text"),
        ([1], "not an object but"),
    ],
)
def test_a_bad_row_is_named_by_file_line_and_field(write, bad, message):
    path = write(row(), bad)
    with pytest.raises(ValueError, match=re.escape(f"{path}, line 2: {message}")):
        load_pairs(path)


def test_files_without_pairs(write, tmp_path):
    with pytest.raises(ValueError, match="there are no pairs in it"):
        load_pairs(write())
    missing = str(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match=re.escape(f"{missing}: there is no such file; give")):
        load_pairs(missing)


@pytest.fixture
def task(monkeypatch):
    """A family `toy` with pairs, beside one without."""

    def pairs(seed, count, aspect):
        return [row(f"q{i}", f"{aspect} {seed}", f"{i}") for i in range(count)]

    tasks = {"toy": SimpleNamespace(pairs=pairs), "other": SimpleNamespace()}
    monkeypatch.setattr(module, "TASKS", tasks)


@pytest.mark.parametrize("aspect", ["helpful", "harmless"])
def test_pairs_of_a_task(task, aspect):
    assert load_pairs(f"task:toy:{aspect}:2") == [
        row("q0", f"{aspect} 0", "0"), row("q1", f"{aspect} 0", "1"),
    ]  # fmt: skip


@pytest.mark.parametrize("aspect", ["helpful", "harmless"])
def test_pairs_of_a_family_that_is_there(aspect):
    pairs = load_pairs(f"task:mini_general:{aspect}:50")
    assert len(pairs) == 50 and len(questions(pairs)) > 10
    assert all(pair["chosen"] != pair["rejected"] for pair in pairs)
    assert pairs[:20] == load_pairs(f"task:mini_general:{aspect}:20")


@pytest.mark.parametrize(
    "source",
    [
        "task:toy:helpful:0", "task:toy:helpful:-1", "task:toy:helpful:x", "task:toy:helpful",
        "task:toy:kind:3", "task:other:helpful:3", "task:none:helpful:3", "task:toy:helpful:3:4",
        "task:", "task:toy:3",
    ],
)  # fmt: skip
def test_a_task_that_is_spelled_wrong(task, source):
    message = f"{source}: write task:NAME:ASPECT:COUNT, with NAME of toy and ASPECT of helpful, h"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        load_pairs(source)


# --- held out --------------------------------------------------------------------------


def questions(pairs):
    return {pair["question"] for pair in pairs}


def pairs_of(*counts):
    """Pairs of as many questions as there are counts, by turns."""
    left = [[row(f"q{i}", f"c{j}") for j in range(n)] for i, n in enumerate(counts)]
    return [p.pop() for _ in range(max(counts)) for p in left if p]


@pytest.mark.parametrize("seed", range(5))
def test_a_question_is_on_one_side_only(seed):
    pairs = pairs_of(*[4] * 25)
    kept, out = split(pairs, 0.2, seed=seed, most=100)
    assert len(out) == 20 and len(kept) == 80  # 5 questions of 4 pairs are a fifth of 100
    assert not questions(kept) & questions(out)
    assert sorted(map(str, kept + out)) == sorted(map(str, pairs))
    for part in (kept, out):
        assert part == [p for p in pairs if p in part]  # in the order given
    assert split(pairs, 0.2, seed=seed, most=100) == (kept, out)


def test_which_questions_depends_on_the_seed_and_not_on_the_order():
    pairs = pairs_of(*[1] * 50)
    outs = [questions(split(pairs, 0.2, seed=s, most=100)[1]) for s in range(4)]
    assert len(set(map(frozenset, outs))) == 4
    assert questions(split(pairs[::-1], 0.2, seed=0, most=100)[1]) == outs[0]


def test_more_pairs_leave_most_questions_where_they_were():
    """Those held out of half the questions are held out of all of them too, at the same share,
    but for the chance of the share: they have the lowest hashes."""
    pairs = pairs_of(*[1] * 200)
    few = questions(split(pairs[:100], 0.5, seed=0, most=100)[1])
    many = questions(split(pairs, 0.5, seed=0, most=100)[1])
    # 50 of 100 and 100 of 200: the border between the hashes moves by a few questions.
    assert len(few & many) >= 40


def test_how_many_are_held_out():
    pairs = pairs_of(*[1] * 40)
    assert len(split(pairs, 0.25, seed=0, most=100)[1]) == 10
    assert len(split(pairs, 0.25, seed=0, most=3)[1]) == 3
    assert len(split(pairs, 0.001, seed=0, most=100)[1]) == 1  # a share is at least one pair
    assert split(pairs, 0, seed=0, most=100) == (pairs, [])
    assert len(split(pairs, 0.99, seed=0, most=100)[0]) == 1  # 39.6 are held out: never all


def test_a_question_with_too_many_pairs_is_passed_over():
    # A tenth of 41 is 4 pairs: only questions with so many or fewer can be held out.
    pairs = pairs_of(30, *[1] * 11)
    for seed in range(8):
        kept, out = split(pairs, 0.1, seed=seed, most=100)
        assert len(out) == 4 and "q0" not in questions(out)
        assert not questions(kept) & questions(out)


@pytest.mark.parametrize("counts", [(10,), (6, 4)])
def test_pairs_are_split_where_questions_are_too_few(counts):
    pairs = pairs_of(*counts)
    kept, out = split(pairs, 0.2, seed=0, most=100)
    assert len(out) == 2 and len(kept) == 8
    assert sorted(map(str, kept + out)) == sorted(map(str, pairs))
    assert split(pairs, 0.2, seed=0, most=100) == (kept, out)


def test_errors_of_split():
    for share in (1, -0.1, float("nan")):
        with pytest.raises(ValueError, match=f"share={share}: need at least 0 and less than 1"):
            split(pairs_of(1, 1), share, seed=0, most=5)
    with pytest.raises(ValueError, match="1 pairs cannot be split; give more, or hold none out"):
        split(pairs_of(1), 0.5, seed=0, most=5)
