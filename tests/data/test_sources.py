import hashlib
import json
import os
import pathlib
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

from r1jax.data.sources import (
    BENCHMARKS,
    FORMATS,
    batch_indices,
    benchmark_name,
    benchmark_names,
    checksum,
    checksums,
    fingerprint,
    load,
    load_problems,
    parse_mixture,
    problem_order,
)

ROOT = pathlib.Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
GOOD = '{"question": "q", "answer": "1"}'


@pytest.fixture
def write(tmp_path):
    def write(*lines, name="some.jsonl"):
        path = tmp_path / name
        path.write_bytes(
            b"".join((x if isinstance(x, bytes) else x.encode()) + b"\n" for x in lines)
        )
        return str(path)

    return write


# --- files -----------------------------------------------------------------------------


def test_fields(write):
    path = write(
        '{"id": "a", "question": "q1", "answer": "42", "extra": [1]}',
        '{"problem": "q2", "final_answer": "1/2"}',
        "",  # blank lines count in numbering
        '{"id": 7, "question": "q3", "answer": -3}',
        '{"question": "q4", "answer": "1+1=<<1+1=2>>2 #### no\\n#### 1,234"}',
        '{"question": "q\u2028é", "answer": "1,234"}',
    )
    assert load_problems(path) == [
        {"id": "a", "question": "q1", "answer": "42"},
        {"id": "some/2", "question": "q2", "answer": "1/2"},
        {"id": "7", "question": "q3", "answer": "-3"},
        {"id": "some/5", "question": "q4", "answer": "1234"},
        {"id": "some/6", "question": "q\u2028é", "answer": "1,234"},
    ]


def test_path_relative_to_the_working_directory(write, tmp_path, monkeypatch):
    write(GOOD)
    monkeypatch.chdir(tmp_path)
    assert load_problems("some.jsonl") == [{"id": "some/1", "question": "q", "answer": "1"}]


def test_byte_order_mark_and_no_last_newline(tmp_path):
    path = tmp_path / "bom.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert len(load_problems(str(path))) == 1


def test_limit(write):
    path = write(GOOD, GOOD, "not json")
    assert [row["id"] for row in load_problems(path, limit=2)] == ["some/1", "some/2"]
    assert len(load_problems(write(GOOD), limit=5)) == 1
    with pytest.raises(ValueError, match="limit=0 leaves nothing to read"):
        load_problems(path, limit=0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"not JSON \(.*\); write one object a line, in UTF-8"),
        ("[" * 100_000, "not JSON"),
        (b'{"question": "\xff"}', "not JSON"),
        ("3", "not an object but int 3; write"),
        ("[1]", "not an object but list"),
        ("null", "not an object but null"),
        ("{}", r"no field 'question' or 'problem' \(fields there: none\); add or rename one"),
        ('{"answer": "1", "prompt": "q"}', "no field 'question' or 'problem' .*'prompt'"),
        ('{"question": "q", "solution": "1"}', "no field 'answer' or 'final_answer'"),
        ('{"question": "", "answer": "1"}', "field 'question' is empty; fill it in"),
        ('{"problem": " \\n", "answer": "1"}', "field 'problem' is empty"),
        ('{"question": 5, "answer": "1"}', "field 'question' is int 5; write it as a string"),
        ('{"question": null, "answer": "1"}', "field 'question' is null"),
        ('{"question": "\\ud800", "answer": "1"}', "field 'question' holds a lone surrogate"),
        ('{"question": "q", "answer": ""}', "field 'answer' is empty"),
        ('{"question": "q", "answer": 0.5}', "field 'answer' is float 0.5; .* or an integer"),
        ('{"question": "q", "answer": true}', "field 'answer' is bool True"),
        ('{"question": "q", "final_answer": ["1"]}', "field 'final_answer' is list"),
        ('{"question": "q", "answer": "1/0"}', "field 'answer': answer '1/0' cannot be graded"),
        ('{"question": "q", "final_answer": "1/0"}', "field 'final_answer': answer '1/0' cannot"),
        ('{"question": "q", "answer": "so: ####"}', "field 'answer': answer '' cannot be graded"),
        (
            '{"question": "q", "answer": "A", "grader": "vote"}',
            "field 'grader' is str 'vote'; write one of math, choice, code",
        ),
        ('{"question": "q", "answer": "K", "grader": "choice"}', "field 'answer': gold 'K' is not"),
        (
            '{"question": "q", "answer": "AB", "grader": "choice"}',
            "field 'answer': gold 'AB' is not",
        ),
        ('{"question": "q", "grader": "code"}', "no field 'language'"),
        ('{"question": "q", "grader": "code", "language": "c"}', "no field 'tests'"),
        ('{"id": "", "question": "q", "answer": "1"}', "field 'id' is empty"),
        ('{"question": "q", "answer": "1", "grader": ["math"]}', "field 'grader' is list"),
        ('{"question": "q", "answer": [], "grader": "open"}', "field 'answer' is list"),
        ('{"answer": "a", "grader": "open"}', "no field 'question' or 'problem'"),
        ('{"question": "q", "grader": "open", "checks": {}}', "field 'checks' is {}; write a list"),
        (
            '{"question": "q", "grader": "open", "checks": [{"kind": "contain"}]}',
            r"checks\[0\]: unknown kind 'contain'; did you mean 'contains'\?",
        ),
        (
            '{"question": "q", "answer": "1", "avoid": "silly"}',
            "field 'avoid' is 'silly'; write a list of different texts, or leave it out",
        ),
        ('{"question": "q", "answer": "1", "reply_in": "klingon"}', "field 'reply_in' is str 'kl"),
        ('{"id": null, "question": "q", "answer": "1"}', "field 'id' is null"),
        (
            '{"id": "some/1", "question": "q", "answer": "1"}',
            "id 'some/1' was already used at .*1;",
        ),
    ],
)
def test_bad_rows_say_where(write, line, message):
    path = write(GOOD, line)
    with pytest.raises(ValueError, match=rf"some\.jsonl, line 2: {message}") as caught:
        load_problems(path)
    assert len(str(caught.value)) < 400 + len(path)


def test_empty_file(write):
    with pytest.raises(ValueError, match="some.jsonl: there are no problems in it"):
        load_problems(write("", "  "))


def test_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"no_such\.jsonl: there is no such file; give the path"):
        load_problems("no_such.jsonl")
    with pytest.raises(ValueError, match="did you mean 'mini_aime'"):
        load_problems("mini_aim")
    with pytest.raises(ValueError, match="there is no such file"):
        load_problems(str(tmp_path))
    with pytest.raises(ValueError, match=r"gpq:a\.csv: there is no such .*did you mean 'gpqa'"):
        load_problems("gpq:a.csv")
    with pytest.raises(ValueError, match=r"^a\.csv: there is no such file"):
        load_problems("gpqa:a.csv")


def test_answers_that_cannot_be_graded_are_reported_together(write):
    bad = ['{"question": "q", "answer": "1/0"}'] * 7
    path = write(GOOD, *bad, GOOD)
    with pytest.raises(ValueError) as caught:
        load_problems(path)
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("7 of 9 problems cannot be graded; mend or delete these rows:")
    for number, line in enumerate(lines[1:6], start=2):
        assert f"some.jsonl, line {number}: field 'answer': answer '1/0' cannot be graded" in line
    assert lines[6:] == ["  and 2 more"]
    loaded = load(path, drop_ungradable=True)
    assert [p["id"] for p in loaded.problems] == ["some/1", "some/9"]
    assert (loaded.source, loaded.rows, loaded.dropped) == (path, 9, {"ungradable": 7})
    with pytest.raises(ValueError, match="there are no problems in it"):
        load(write(*bad), drop_ungradable=True)


def test_problems_that_are_written_and_read_again_are_the_same(write):
    rows = [
        {"question": "q", "choices": ["a", "b"], "answer": 1},
        {"question": "r", "choices": ["c", "d"], "answer": 0},
    ]
    problems = load_problems("mmlu:" + write(*map(json.dumps, rows)))
    assert [p["grader"] for p in problems] == ["choice", "choice"]
    assert load_problems(write(*map(json.dumps, problems))) == problems


def test_the_judge_s_fields_are_taken_over(write):
    pytest.importorskip("r1jax.rewards.code")
    problem = {
        "id": "a", "question": "q", "answer": "", "grader": "code", "language": "python",
        "tests": [{"stdin": "1", "stdout": "2"}], "limits": {"time_s": 2},
    }  # fmt: skip
    assert load_problems(write(json.dumps(problem))) == [problem]
    with pytest.raises(ValueError, match=r"line 1: field 'tests': .*stdout"):
        load_problems(write(json.dumps(problem | {"tests": [{"stdin": "1"}]})))


def test_open_requests_need_no_answer(write):
    checks = [{"kind": "contains", "texts": ["hello"]}]
    rows = [
        {"id": "a", "question": "q", "answer": "", "grader": "open", "checks": checks},
        {"id": "b", "question": "r", "answer": "a reference", "grader": "open", "avoid": ["silly"]},
        {"id": "c", "question": "6 times 7?", "answer": "42", "checks": checks},
    ]
    without = {k: v for k, v in rows[0].items() if k != "answer"}
    path = write(*map(json.dumps, [without, *rows[1:]]))
    assert load_problems(path) == rows
    null = rows[0] | {"answer": None, "avoid": None}
    assert load_problems(write(json.dumps(null))) == rows[:1]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks(name):
    problems = load_problems(name)
    assert len(problems) >= 60


@pytest.mark.parametrize(("name", "rows"), [("gsm8k_test.jsonl", 1319), ("aime_2024.jsonl", 30)])
def test_public_files(name, rows):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not here: public problem files are not part of the project")
    problems = load_problems(str(path))
    assert len(problems) == rows
    assert all(problem["answer"].lstrip("-").isdigit() for problem in problems)


def test_math_500_through_its_format():
    path = DATA / "math_500.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not here: public problem files are not part of the project")
    loaded = load(f"math500:{path}")
    assert (len(loaded.problems), loaded.dropped) == (500, {})
    assert loaded.problems[1]["answer"] == "p - q"
    assert loaded.problems[1]["id"] == "math500/math500_1"


@pytest.mark.parametrize(
    ("name", "file", "rows"),
    [
        ("gsm8k", "gsm8k_train.jsonl", 7473),
        ("gsm8k", "gsm8k_test.jsonl", 1319),
        ("aime", "aime_2024.jsonl", 30),
    ],
)
def test_public_files_through_their_formats(name, file, rows):
    if not (DATA / file).exists():
        pytest.skip(f"{DATA / file} is not here: public problem files are not part of the project")
    plain, read = load_problems(str(DATA / file)), load_problems(f"{name}:{DATA / file}")
    assert len(read) == rows
    assert [p["question"] for p in plain] == [p["question"] for p in read]
    assert [int(p["answer"]) for p in plain] == [int(p["answer"]) for p in read]


# --- several sources, names ------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("a.jsonl", [("a.jsonl", 1)]),
        ("a.jsonl*2", [("a.jsonl", 2)]),
        ("a.jsonl * 0.5 + math:b+c.parquet", [("a.jsonl", "1/2"), ("math:b+c.parquet", 1)]),
        ("task:mini_aime:64*3 + tfds:x:train[:10%]*1.25", [
            ("task:mini_aime:64", 3), ("tfds:x:train[:10%]", "5/4"),
        ]),
    ],
)  # fmt: skip
def test_parse_mixture(source, parts):
    assert parse_mixture(source) == [(name, Fraction(weight)) for name, weight in parts]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a + a*2", "a is there twice; name it once"),
        ("a*0 + b", "the weight of a is 0"),
        ("a +  + b", "a part has no source"),
        ("a + *2", "a part has no source"),
        ("a + ", "a part has no source"),
        ("", "a part has no source"),
    ],
)
def test_bad_mixtures(source, message):
    with pytest.raises(ValueError, match=message):
        load_problems(source)


def test_problems_of_several_sources(write):
    a = write('{"id": "1", "question": "qa", "answer": "1"}', GOOD, name="a.jsonl")
    b = write(GOOD, GOOD, name="b.jsonl")
    ids = ["1", "a/2", "b/1", "b/2"]
    assert [p["id"] for p in load_problems(f"{a}*3 + {b}")] == ids
    assert [p["id"] for p in load_problems(f"{a}*3 + {b}", limit=1)] == ["1", "b/1"]
    c = write('{"id": "a/2", "question": "qc", "answer": "1"}', name="c.jsonl")
    with pytest.raises(
        ValueError, match=r"id 'a/2' is in .*a\.jsonl and in .*c\.jsonl; give every"
    ):
        load_problems(f"{a} + {c}")


def test_benchmark_names():
    cases = {
        "mini_aime": "mini_aime", "gpqa:/x/y.parquet": "gpqa", "/x/y.jsonl": "y",
        "aime:tfds:a:test": "aime", "unknown:/x/y.jsonl": "y",
        "d/a.jsonl*2 + e/b.jsonl": "a+b", "gsm8k:a.jsonl + math:b.jsonl*3": "gsm8k+math",
    }  # fmt: skip
    assert {source: benchmark_name(source) for source in cases} == cases
    sources = ["aime:/x/aime24.jsonl", "aime:/x/aime25.jsonl", "gpqa:y.csv", "mini_aime"]
    assert benchmark_names(sources) == ["aime_aime24", "aime_aime25", "gpqa", "mini_aime"]
    with pytest.raises(ValueError, match=r"benchmarks a/x.jsonl and b/x.jsonl are both called 'x'"):
        benchmark_names(["a/x.jsonl", "b/x.jsonl"])
    assert not FORMATS.keys() & BENCHMARKS.keys()


def test_checksums(tmp_path):
    path = tmp_path / "abc.jsonl"
    path.write_bytes(b"abc")
    # The example of FIPS 180-2, appendix B.1.
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert checksum(path) == abc
    assert checksums(f"math:{path}*2 + mini_aime + task:mini_aime:8") == {str(path): abc}


# --- tfds ------------------------------------------------------------------------------

_TFDS = '''
import sys
import numpy as np
import tensorflow_datasets as tfds

class TinyMath(tfds.core.GeneratorBasedBuilder):
    """Five sums."""
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="plain")]

    def _info(self):
        features = tfds.features.FeaturesDict(
            {"id": tfds.features.Text(), "question": tfds.features.Text(), "answer": np.int64}
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(5):
            yield i, {"id": f"t{i}", "question": f"1+{i} = é?", "answer": 1 + i}

TinyMath(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()

from r1jax.data.sources import load_problems

rows = load_problems("tfds:tiny_math/plain:train")
expected = [{"id": f"t{i}", "question": f"1+{i} = é?", "answer": str(1 + i)} for i in range(5)]
assert sorted(rows, key=lambda row: row["id"]) == expected, rows
assert load_problems("tfds:tiny_math/plain:train") == rows
assert load_problems("tfds:tiny_math/plain:train[:60%]") == rows[:3]
assert load_problems("tfds:tiny_math/plain:train", limit=2) == rows[:2]
for wrong in ("tfds:no_such_data:train", "tfds:tiny_math/plain:nosplit"):
    try:
        load_problems(wrong)
    except ValueError as error:
        assert f"{wrong}: tensorflow_datasets cannot open it" in str(error), error
    else:
        raise AssertionError(wrong)
assert "tensorflow" not in sys.modules
'''


def test_tfds_without_tensorflow(tmp_path):
    subprocess.run(
        [sys.executable, "-c", _TFDS, str(tmp_path)],
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TFDS_DATA_DIR": str(tmp_path)},
    )


class _FakeTfds:
    """What the source asks of the library, over a list of records."""

    def __init__(self, *records):
        self.records = records

    def data_source(self, name, split):
        self.asked = (name, split)
        return self.records


def test_tfds_names_fields_and_errors(monkeypatch):
    good = {"problem": b"q", "final_answer": np.int64(3)}
    fake = _FakeTfds(good, {"problem": b"\xff", "final_answer": b"1"})
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake)
    source = "tfds:a/b:1.0.0:train[:10%]"
    assert load_problems(source, limit=1) == [
        {"id": "a/b:1.0.0/train[:10%]/1", "question": "q", "answer": "3"}
    ]
    assert fake.asked == ("a/b:1.0.0", "train[:10%]")
    with pytest.raises(ValueError, match="row 2: field 'problem' is not UTF-8 text"):
        load_problems(source)


@pytest.mark.parametrize("source", ["tfds:", "tfds:a", "tfds:a:", "tfds::train"])
def test_tfds_malformed(source):
    with pytest.raises(ValueError, match="no dataset or no split in it; write tfds:NAME"):
        load_problems(source)


def test_tfds_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ValueError, match="needs tensorflow_datasets .*; install it"):
        load_problems("tfds:a:train")


def test_import_is_light():
    code = (
        "import r1jax.data.sources, sys; bad = {'jax', 'tensorflow_datasets'} & set(sys.modules); "
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# --- fingerprint, order ----------------------------------------------------------------


def test_fingerprint():
    rows = [
        {"id": "1", "question": "q", "answer": "1"},
        {"id": "2", "question": "é", "answer": "2"},
    ]
    # sha256 of the two rows as JSON with sorted keys, a newline after each.
    assert fingerprint(rows) == _sha(rows)
    assert fingerprint([dict(reversed(row.items())) for row in rows]) == fingerprint(rows)
    changed = [rows[::-1], rows[:1], [rows[0], rows[1] | {"answer": "3"}], []]
    assert len({fingerprint(x) for x in [rows, *changed]}) == 5


def _sha(rows):
    text = "".join(
        json.dumps({"answer": r["answer"], "id": r["id"], "question": r["question"]}) + "\n"
        for r in rows
    )
    return hashlib.sha256(text.encode()).hexdigest()


def test_problem_order():
    order = problem_order(100, seed=3, epoch=2)
    assert order.dtype == np.int64
    assert sorted(order) == list(range(100))
    np.testing.assert_array_equal(order, problem_order(100, seed=3, epoch=2))
    others = [problem_order(100, 3, 1), problem_order(100, 2, 2), problem_order(100, 2, 3)]
    assert all((order != other).any() for other in others)
    assert problem_order(0, 0, 0).shape == (0,)
    # Pinned: resuming a run under another numpy must see the same problems. If this changes,
    # every run's data order does.
    assert problem_order(8, seed=1, epoch=2).tolist() == [5, 6, 3, 2, 1, 0, 4, 7]
    with pytest.raises(ValueError, match="seed=-1 is negative"):
        problem_order(8, seed=-1, epoch=0)


@pytest.mark.parametrize(("n", "batch"), [(10, 4), (10, 5), (7, 3), (3, 8), (1, 1), (5, 5)])
def test_batches_are_a_cut_of_the_reshuffled_stream(n, batch):
    steps = 4 * n
    stream = np.concatenate([batch_indices(n, batch, step, seed=1) for step in range(steps)])
    assert stream.shape == (steps * batch,)
    for epoch in range(steps * batch // n):
        one = stream[epoch * n : (epoch + 1) * n]
        assert sorted(one) == list(range(n))  # every problem once
        np.testing.assert_array_equal(one, problem_order(n, seed=1, epoch=epoch))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1, 0, 0), "n=0 problems in batches of 1: both must be at least 1"),
        ((1, 0, 0, 0), "in batches of 0"),
        ((1, 1, -1, 0), "step=-1 is negative"),
        ((1, 1, 0, -1), "seed=-1 is negative"),
    ],
)
def test_batch_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        batch_indices(*arguments)


def test_the_language_to_reply_in_is_taken_over(write):
    (problem,) = load_problems(write('{"question": "q", "answer": "1", "reply_in": "zh"}'))
    assert problem["reply_in"] == "zh"


@pytest.mark.parametrize("limits", ['{"time_s": -1}', '{"memory": 1}', "5"])
def test_limits_of_programs_are_checked_at_loading(write, limits):
    row = '{"question": "q", "grader": "code", "language": "python", "tests": '
    row += f'[{{"stdin": "", "stdout": "1"}}], "limits": {limits}}}'
    with pytest.raises(ValueError, match=r"some\.jsonl, line 1: field 'tests': .*"):
        load_problems(write(row))
