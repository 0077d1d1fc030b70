import json
import re
from html.parser import HTMLParser

import pytest

from r1jax.report import write_report
from r1jax.report.markup import VOID
from r1jax.report.page import duration

HOSTILE = (
    "</think></details></div><script>alert('x')</script><img src=x onerror=\"alert(1)\">"
    "<!-- ]]> &amp; \u202e\x00\ud800 <think>"
)


class Balanced(HTMLParser):
    """Collects the elements of a page and fails where one is closed that is not open."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.attributes, self.text = [], [], [], []

    def handle_starttag(self, name, attributes):
        self.seen.append(name)
        self.attributes += [key for key, _ in attributes]
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open and self.open.pop() == name, f"</{name}> closes nothing"

    def handle_data(self, data):
        self.text.append(data)


def parsed(path):
    page = path.read_text(encoding="utf-8")
    reader = Balanced()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader, page


@pytest.fixture(scope="module")
def report(pipeline_run):
    return parsed(write_report(pipeline_run))


def test_the_page_of_a_pipeline(pipeline_run, report):
    reader, page = report
    assert page.startswith('<!doctype html>\n<html lang="en">')
    assert re.findall("<h2>(.*?)</h2>", page) == [
        "Stages", "Stage by stage", "Curves", "Responses, stage by stage", "Examples made",
        "Results", "Made from what",
    ]  # fmt: skip
    text = " ".join(reader.text)
    assert "10 of 10 finished" in text and "not finished" not in text
    manifest = json.loads((pipeline_run / "manifest.json").read_text())
    for entry in manifest["stages"].values():
        assert entry["artefact"]["sha256"] in text and entry["input_hash"] in text
    # ten stages of 61.5 and of 83.25 seconds: 615 and 832.5
    assert "10 min 15 s" in text and "13 min 52 s" in text
    assert len(page) < 400_000
    assert (pipeline_run / "report.html").stat().st_size == len(page.encode())


def test_score_models_are_judged_on_held_out_data(report):
    table = report[1].partition("<h2>Results</h2>")[2].partition("</table>")[0]
    heads = re.findall('<th scope="[a-z]*">(.*?)</th>', table)
    assert heads == ["score model", "accuracy", "calibration error", "helpfulness", "harmlessness"]
    assert re.findall("<td>(.*?)</td>", table) == ["0.925", "0.0312"] * 2


def test_the_page_needs_nothing_else(report):
    reader, page = report
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(reader.seen)
    assert not {"src", "onerror", "onclick", "onload"} & set(reader.attributes)
    assert "http" not in page and "@import" not in page
    assert set(re.findall(r"url\((.*?)\)", page)) == {"#arrow-weights", "#arrow-data"}


def test_the_same_folder_gives_the_same_page(pipeline_run, report):
    assert write_report(pipeline_run).read_text() == report[1]


def test_hostile_text_stays_text(synthetic, tmp_path):
    folder = synthetic(tmp_path / "<b>run&amp;")
    for path in sorted((folder / "responses").iterdir()):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            row |= {"text": HOSTILE, "question": HOSTILE, "answer": HOSTILE}
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"question": HOSTILE, "response": HOSTILE}]
    (folder / "data" / "curated.jsonl").write_text(json.dumps(rows[0]) + "\n")
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = manifest["stages"]["curated"]
    entry["counts"] = {HOSTILE: HOSTILE, "rows": 3}
    entry["inputs"] = {HOSTILE: {"path": HOSTILE, "sha256": HOSTILE}}
    manifest["commit"] = HOSTILE
    (folder / "manifest.json").write_text(json.dumps(manifest))
    reader, page = parsed(write_report(folder))
    assert not {"script", "img"} & set(reader.seen)
    assert "onerror" not in reader.attributes
    assert "<script" not in page and "<!--" not in page and "\x00" not in page
    shown = "".join(reader.text)
    assert "<script>alert('x')</script>" in shown and "<b>run&amp;" in shown


@pytest.mark.parametrize("finished", [0, 1, 2, 3, 6, 9])
def test_an_unfinished_run_says_what_is_missing(synthetic, tmp_path, finished):
    names = ("base", "r1_zero", "cold_data", "cold_start", "reasoning_rl", "curated", "sft",
             "helpfulness", "harmlessness", "r1")  # fmt: skip
    folder = synthetic(tmp_path, finished=names[:finished])
    reader, _ = parsed(write_report(folder))
    text = "".join(reader.text)
    assert f"{finished} of 10 finished" in text
    missing = text.partition("Left to do: ")[2].partition(". ")[0]
    assert [re.sub(r" \(.*\)", "", name) for name in missing.split(", ")] == list(names[finished:])
    assert " (" in missing.split(", ")[0]  # the one that has begun


def test_a_run_of_one_stage_that_has_only_a_config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"stages": ["sft"], "sft": {}, "seed": 3}))
    reader, page = parsed(write_report(tmp_path))
    assert re.findall("<h2>(.*?)</h2>", page) == ["Stages", "Stage by stage"]
    assert "No stage has been evaluated yet." in "".join(reader.text)


def test_results_of_a_search_are_shown(synthetic, tmp_path):
    folder = synthetic(tmp_path)
    rows = [
        {"method": "sampling", "samples": 1, "budget": 38.4, "accuracy": 0.11},
        {"method": "best_of_n", "samples": 4, "budget": 153.6, "accuracy": 0.29, "low": 0.26,
         "high": 0.31},
    ]  # fmt: skip
    (folder / "results").mkdir()
    path = folder / "results" / "r1.json"
    path.write_text(json.dumps({"questions": 128, "rows": rows}))
    reader, page = parsed(write_report(folder))
    table = page.partition("<h3>r1</h3>")[2].partition("</table>")[0]
    assert re.findall('<th scope="[a-z]*">(.*?)</th>', table) == [
        "method", "1 sample, 38 tokens", "4 samples, 154 tokens", "sampling", "best_of_n",
    ]  # fmt: skip
    assert re.findall(r"<td.*?>([\d.–]+)", table) == ["11.0", "–", "–", "29.0"]
    assert "(26.0–31.0)" in table and "on 128 questions" in table
    # anything else is shown as it was written
    path.write_text(json.dumps({"best": [1, {"a": "<b>"}]}))
    reader, page = parsed(write_report(folder))
    assert '"best"' in "".join(reader.text) and "<h2>Results</h2>" in page


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="give the folder of a run"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (12.34, "12.3 s"), (200.4, "3 min 20 s"), (3599.7, "1 h 00 min"),
     (119.6, "2 min 00 s"), (3725, "1 h 02 min"), (59.96, "1 min 00 s"), (90000, "25 h 00 min")],
)  # fmt: skip
def test_durations(seconds, text):
    assert duration(seconds) == text
