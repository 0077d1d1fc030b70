import json
from itertools import pairwise

import pytest

from r1jax.report.diagram import (
    DATA,
    HEIGHT,
    INDENT,
    PITCH_X,
    WEIGHTS,
    WIDTH,
    Edge,
    counts,
    describe,
    diagram,
    layout,
    route,
)
from r1jax.report.records import Records, Stage, read


def records(*stages):
    """Stages as (name, what it makes, init, names it reads)."""
    made = [
        Stage(
            name, "any", init, {n: {"stage": n} for n in reads},
            {"artefact": {"kind": makes, "path": name, "sha256": "0" * 64}},
        )
        for name, makes, init, reads in stages
    ]  # fmt: skip
    return Records(None, {}, {}, tuple(made))


GRAPHS = {
    "one": [("base", "model", "", ())],
    "two": [("base", "model", "", ()), ("rl", "model", "base", ())],
    "given weights": [("sft", "model", "/weights/of/another", ()), ("rl", "model", "sft", ())],
    "students": [
        ("student", "model", "", ()), ("rl", "model", "student", ()),
        ("distilled", "model", "student", ()), ("distilled_rl", "model", "distilled", ()),
    ],
    "search": [
        ("base", "model", "", ()), ("prm", "score", "base", ()), ("value", "score", "base", ()),
        ("search", "results", "base", ("prm", "value")), ("prm_rl", "model", "base", ("prm",)),
    ],
    "long data": [
        ("a", "model", "", ()), ("data", "examples", "a", ()), ("b", "model", "a", ()),
        ("c", "model", "b", ()), ("d", "model", "c", ("data", "a")),
    ],
}  # fmt: skip


@pytest.fixture(params=["pipeline", *GRAPHS])
def run(request, pipeline_run):
    return read(pipeline_run) if request.param == "pipeline" else records(*GRAPHS[request.param])


def segments(points):
    return list(pairwise(points))


def inside(box, start, end):
    """Whether an upright or level line passes through the inside of a box."""
    (x0, x1), (y0, y1) = sorted((start[0], end[0])), sorted((start[1], end[1]))
    return x1 > box.x + 1 and x0 < box.x + box.width - 1 and (
        y1 > box.y + 1 and y0 < box.y + HEIGHT - 1
    )  # fmt: skip


def test_boxes_do_not_overlap_and_lines_run_beside_them(run):
    boxes, edges = layout(run)
    places = [(box.column, box.row) for box in boxes.values()]
    assert len(set(places)) == len(places)
    lines, top = route(boxes, edges)
    assert lines.keys() == set(edges)
    for edge, points in lines.items():
        for start, end in segments(points):
            assert start[0] == end[0] or start[1] == end[1], "neither upright nor level"
            assert start[1] >= -top + 1, "above the picture"
            crossed = [name for name, box in boxes.items() if inside(box, start, end)]
            assert crossed == [], edge
        source, target = boxes[edge.source], boxes[edge.target]
        assert points[-1][0] == target.x and target.y < points[-1][1] < target.y + HEIGHT
        if target.parent == edge.source:
            assert points[0][1] == source.y + HEIGHT
        else:
            assert points[0][0] == source.right and source.y < points[0][1] < source.y + HEIGHT


def test_lines_of_different_sources_share_no_track(run):
    boxes, edges = layout(run)
    upright = {}
    for edge, points in route(boxes, edges)[0].items():
        for start, end in segments(points):
            if start[0] == end[0] and start[1] != end[1]:
                upright.setdefault(start[0], set()).add((edge.source, edge.kind))
    assert all(len(sources) == 1 for sources in upright.values())


def test_ten_stages_fit_a_page_of_1280_pixels(pipeline_run):
    boxes, edges = layout(read(pipeline_run))
    assert [(name, box.column, box.row) for name, box in boxes.items()] == [
        ("base", 0, 0), ("r1_zero", 1, 0), ("cold_data", 1, 1), ("cold_start", 2, 0),
        ("reasoning_rl", 3, 0), ("curated", 3, 1), ("sft", 4, 0), ("helpfulness", 4, 1),
        ("harmlessness", 4, 2), ("r1", 5, 0),
    ]  # fmt: skip
    # 1,280 less 24 of padding on either side, and 16 for a scrollbar
    assert max(box.right for box in boxes.values()) + 8 <= 1280 - 48 - 16
    assert {(e.source, e.target) for e in edges if e.kind == DATA} == {
        ("cold_data", "cold_start"), ("curated", "sft"), ("helpfulness", "r1"),
        ("harmlessness", "r1"),
    }  # fmt: skip
    assert [e.target for e in edges if e.source == "base"] == ["r1_zero", "cold_start", "sft"]


def test_what_is_read_from_far_runs_above(pipeline_run):
    boxes, edges = layout(read(pipeline_run))
    lines, top = route(boxes, edges)
    heights = {e.target: min(y for _, y in lines[e]) for e in edges if e.source == "base"}
    assert heights["r1_zero"] > 0 > heights["cold_start"] == heights["sft"] > -top
    assert Edge("base", "sft", WEIGHTS) in lines


def test_given_weights_have_a_box():
    boxes, edges = layout(records(*GRAPHS["given weights"]))
    assert boxes["/weights/of/another"].title == "another"
    assert edges[0] == Edge("/weights/of/another", "sft", WEIGHTS)
    assert [box.column for box in boxes.values()] == [0, 1, 2]
    assert boxes["sft"].x - boxes["/weights/of/another"].x == PITCH_X > WIDTH + INDENT


def test_an_unfinished_run_is_drawn_from_its_config(synthetic, tmp_path):
    finished = {"nothing": (), "model": ("base",), "examples": ("base", "r1_zero")}
    texts = {}
    for name, stages in finished.items():
        run = read(synthetic(tmp_path / name, finished=stages))
        boxes, edges = layout(run)
        assert len(boxes) == 10 and len(edges) == 13  # 9 of weights, 4 of data
        texts[name] = diagram(run)
        # The stage after the finished ones has begun, all others have not.
        assert texts[name].count("unfinished") == 10 - len(stages)
        assert texts[name].count("not started") == 10 - len(stages) - 1
    assert "at step 2<" in texts["model"] and ">begun<" in texts["examples"]


def test_the_words_of_a_box():
    stage = Stage(
        "curated", "rejection", "rl", {"examples": {"path": "/a/b.jsonl", "sha256": "f" * 64}},
        {"artefact": {"kind": "examples", "path": "data/curated.jsonl", "sha256": "ab" * 32},
         "data": {"rows": 1280, "sha256": "cd" * 32}, "config_hash": "0123456789abcdef",
         "counts": {"kept": 1904, "acceptance": {"language": 0.79751}}},
    )  # fmt: skip
    assert describe(stage).splitlines() == [
        "curated: rejection", "starts from: rl", "examples: b.jsonl",
        "data: 1,280 rows, sha256 cdcdcdcdcdcd", "kept: 1,904", "acceptance language: 0.7975",
        "made: data/curated.jsonl, sha256 abababababab", "config: 0123456789abcdef",
    ]  # fmt: skip
    assert counts({"a": True, "b": {"c": 1}}) == [("a", "True"), ("b c", "1")]


def test_long_names_are_cut_and_whole_on_hover():
    name = "a_name_that_is_much_too_long_for_its_box"
    text = diagram(records((name, "model", "", ())))
    # 146 less 16 pixels, 7.6 a letter: 17 letters, the last of them the ellipsis
    assert f">{name[:16]}…<" in text and f"{name}: any" in text


def test_a_manifest_of_before_artefacts_were_hashed(tmp_path):
    stages = {"pretrain": {"kind": "pretrain", "init": None, "checkpoint": "checkpoints/p/2"}}
    (tmp_path / "manifest.json").write_text(json.dumps({"stages": stages}))
    boxes, _ = layout(read(tmp_path))
    assert boxes["pretrain"].finished and boxes["pretrain"].makes == "model"
    assert "made: checkpoints/p/2" in boxes["pretrain"].hover
