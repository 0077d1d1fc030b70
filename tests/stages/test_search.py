"""Methods on equal budgets, on a model of 32 letters: what is counted, chosen, kept and refused."""

import json

import numpy as np
import pytest

from r1jax import scoring as scorers
from r1jax.models.scoring import with_score
from r1jax.rewards import REWARDS, graders
from r1jax.rewards.graders import Grader
from r1jax.search import engine
from r1jax.search.requests import Candidate, Found
from r1jax.stages import search
from r1jax.stages.search import SearchConfig

NEW = 8
PROBLEMS = [
    {"id": str(i), "question": q, "answer": "a", "grader": "letters"} for i, q in enumerate("abcd")
]
PROGRAMS = {}


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    """Answers are last letters, right in the first half; programs are compiled once."""
    letters = Grader(lambda p: None, lambda p, t: 0.0, lambda t: t[-1:] or None, str.__eq__)
    monkeypatch.setitem(graders.GRADERS, "letters", letters)
    monkeypatch.setitem(REWARDS, "accuracy", lambda _, r: float("a" <= r.text[-1:] <= "m"))
    make = engine.Sampler

    def sampler(model, config, *, stop_ids, **rest):
        key = (model, config, stop_ids)
        if key not in PROGRAMS:
            PROGRAMS[key] = make(model, config, stop_ids=stop_ids, **rest)
        return PROGRAMS[key]

    monkeypatch.setattr(engine, "Sampler", sampler)
    read = scorers.Scorer.__init__

    def scorer(self, run, model, **rest):
        read(self, run, model, **rest)
        self._scores = PROGRAMS.setdefault(("scores", model), self._scores)

    monkeypatch.setattr(scorers.Scorer, "__init__", scorer)


@pytest.fixture(scope="module")
def guide(tiny):
    """A score model with a random head."""
    params = with_score(tiny[1])
    weight = np.random.default_rng(0).standard_normal(16).astype(np.float32)
    return params | {"score": {"weight": weight, "bias": np.float32(0)}}


def settings(**changes):
    return SearchConfig(
        **dict(
            problems="unused", max_tokens=NEW, process_model="prm", value_model="value",
            samples=(2, 4), expansions=2, beams=1, tree_expansions=2, separator="e", step_tokens=4,
            rows=16, chunk=4,
        )
        | changes
    )  # fmt: skip


def compare(here, tiny, guide, **changes):
    return search.run(settings(**changes), here.run, PROBLEMS, tiny[1], guide, guide)


def by_method(found):
    return {(r["method"], r["samples"]): r for r in found["rows"]}


def test_budgets_are_equal_and_every_method_has_its_row(place, tiny, guide):
    found = compare(place(), tiny, guide)
    rows = by_method(found)
    methods = (*search.SAMPLED, *search.SEARCHED)
    assert set(rows) == {("sampling", 1), *((m, n) for m in methods for n in (2, 4))}
    for (method, n), row in rows.items():
        assert row["budget"] == pytest.approx(n * found["length"])
        assert 0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1
        # What is chosen has been finished.
        assert row["accuracy"] <= row["covered"] + 1e-9
        if method in ("sampling", *search.SAMPLED):
            assert row["generated"] == pytest.approx(row["budget"])
        else:
            # At most a last response (NEW) or the last request (4 steps of 4) over it.
            assert 0 < row["generated"] <= row["budget"] + 16
        assert (row["scored"] > 0) == (method not in ("sampling", "majority"))
    (metrics,) = place().metrics
    assert metrics["search/beam@4"] == rows["beam", 4]["accuracy"]


def test_what_plain_methods_choose(place, tiny, guide):
    here = place()
    comparison = search._Comparison(
        settings(), here.run, PROBLEMS, tiny[1], {"process": guide, "value": guide}, None
    )
    encode = here.run.tokenizer.encode
    part = [(*encode(text), 2) for text in ("zb", "zn", "yn", "xc")]
    comparison._graded = {(0, t): "a" <= "zznc"[i] <= "m" for i, t in enumerate(part)}
    assert comparison._choose("majority", "last", 0, part, None) == 1  # n twice
    scores = [[0.9, 0.3], [0.5, 0.2], [0.5, 0.2], [0.1, 0.35]]
    assert comparison._choose("best_of_n", "last", 0, part, scores) == 3
    assert comparison._choose("best_of_n", "mean", 0, part, scores) == 0
    assert comparison._choose("weighted_vote", "last", 0, part, scores) == 1  # 0.4
    assert comparison._choose("weighted_vote", "mean", 0, part, scores) == 1  # 0.7


def test_parts_of_a_question_are_averaged(place, tiny, guide):
    here = place()
    comparison = search._Comparison(
        settings(), here.run, PROBLEMS, tiny[1], {"process": guide, "value": guide}, None
    )
    group = [(5,), (6, 7), (8, 9, 10), (11,)]
    comparison._graded = dict(
        zip([(0, t) for t in group], (False, True, False, False), strict=True)
    )
    found = comparison._of_groups(0, group, 2, lambda p, part, scores: 1)
    # The second of (5), (6 7) is right, that of (8 9 10), (11) is not; 3 and 4 tokens.
    assert tuple(found) == (0.5, 0.5, 3.5, 0.0)


def test_the_same_seed_gives_the_same_table(place, tiny, guide):
    one, two, other = (
        compare(place(name, seed=seed), tiny, guide)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert one == two
    assert one["rows"] != other["rows"]


def test_stopped_between_methods_and_resumed_equals_uninterrupted(place, tiny, guide, monkeypatch):
    whole = place("whole")
    want = compare(whole, tiny, guide)
    path = whole.run.workdir / "results" / "stage.json"
    assert json.loads(path.read_text()) == want
    searched, calls = search._Comparison._searched, []

    def until(limit):
        def stopping(self, method, samples):
            if len(calls) == limit:
                raise KeyboardInterrupt
            calls.append((method, samples))
            searched(self, method, samples)

        monkeypatch.setattr(search._Comparison, "_searched", stopping)

    until(2)
    with pytest.raises(KeyboardInterrupt):
        compare(place("parts"), tiny, guide)
    until(None)
    again = place("parts")
    assert compare(again, tiny, guide) == want
    assert calls == [(m, n) for n in (2, 4) for m in search.SEARCHED]  # none of them twice
    assert (again.run.workdir / "results" / "stage.json").read_text() == path.read_text()
    assert again.metrics == whole.metrics


def test_other_settings_are_searched_anew(place, tiny, guide):
    before = compare(place(), tiny, guide)
    after = compare(place(), tiny, guide, temperature=0.5)
    assert after["settings"]["temperature"] == 0.5
    assert after["rows"] != before["rows"]


def test_answers_of_a_search(place, tiny, guide):
    here = place()
    models = {"process": guide, "value": guide}
    encode = here.run.tokenizer.encode
    texts = {"zb": 0.5, "zn": 0.3, "yn": 0.3}  # n has most weight, b the highest score
    candidates = [Candidate((*encode(t), 2), s) for t, s in texts.items()]
    found = Found(candidates, candidates[0].tokens, 7, 9)
    for answer, right in (("vote", 0.0), ("best", 1.0)):
        comparison = search._Comparison(
            settings(answer=answer), here.run, PROBLEMS, tiny[1], models, None
        )
        comparison._graded = {(0, c.tokens): t == "zb" for c, t in zip(candidates, texts)}  # noqa: B905
        assert tuple(comparison._found(0, found)) == (right, 1.0, 7, 9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("beams",)}, "method 'beams' is unknown"),
        ({"process_model": ""}, "method 'best_of_n' needs process_model"),
        ({"value_model": ""}, "method 'mcts' needs value_model"),
        ({"samples": (3, 4)}, "3 does not divide 4"),
        ({"samples": ()}, "give at least one number"),
        ({"aggregate": "sum"}, "aggregate='sum' is unknown"),
        ({"temperature": 0.0}, "must be positive to search"),
        ({"samples": (4096,), "expansions": 1}, "wider than 1024"),
    ],
)
def test_settings_that_cannot_work(changes, message):
    with pytest.raises(ValueError, match=message):
        settings(**changes)


@pytest.mark.parametrize(
    ("changes", "mend"),
    [
        ({}, "leave majority and weighted_vote out of methods and set answer='best'"),
        ({"methods": ("majority",)}, "leave majority out of methods$"),
        ({"methods": ("best_of_n", "mcts")}, "set answer='best'$"),
        ({"answer": "best"}, "leave majority and weighted_vote out of methods$"),
    ],
)
def test_votes_need_answers_that_compare(place, tiny, guide, monkeypatch, changes, mend):
    monkeypatch.setitem(graders.GRADERS, "letters", Grader(lambda p: None, lambda p, t: 0.0))
    here = place()
    message = rf"answers to problem '0' cannot vote; {mend}"
    with pytest.raises(ValueError, match=message):
        search.check(settings(**changes), here.run, PROBLEMS)
    with pytest.raises(ValueError, match=message):
        compare(here, tiny, guide, **changes)
    assert not here.run.calls and not list(here.run.workdir.iterdir())


def test_methods_without_a_vote_need_no_such_answers(place, monkeypatch):
    monkeypatch.setitem(graders.GRADERS, "letters", Grader(lambda p: None, lambda p, t: 0.0))
    config = settings(methods=("best_of_n", "beam"), answer="best")
    search.check(config, place().run, PROBLEMS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"separator": "!"}, "no token of the tokenizer holds the separator '!'"),
        ({"max_tokens": 62}, "prompt 0 has 3 tokens; with max_tokens=62 that exceeds"),
        # 3 + 58 + 4 = 65 of 64
        ({"max_tokens": 58}, "a last step of step_tokens=4 more that exceeds the model's context"),
    ],
)
def test_what_is_found_before_sampling(place, tiny, guide, changes, message):
    here = place()
    with pytest.raises(ValueError, match=message):
        search.check(settings(**changes), here.run, PROBLEMS)
    with pytest.raises(ValueError, match=message):
        compare(here, tiny, guide, **changes)
