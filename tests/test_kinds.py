"""Kinds of stages: score models of the scope that is needed, and what is checked beforehand."""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import config, models
from r1jax.checkpoints import CheckpointError, Checkpoints
from r1jax.config import ConfigError
from r1jax.experiment import parse
from r1jax.kinds import KINDS, NOTHING, Given, Reference, check_scope
from r1jax.models import scoring
from r1jax.models.families import make_model
from r1jax.pipeline import Pipeline
from r1jax.run import Run
from r1jax.stages.grpo import GrpoConfig
from r1jax.stages.search import SearchConfig
from r1jax.types import TrainState

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


@pytest.fixture(scope="module")
def scored(tiny):
    """Parameters of a score model whose head is not 0."""
    head = {"weight": jnp.arange(16.0), "bias": jnp.float32(0.5)}
    return {**tiny[1], "score": head}


@pytest.fixture(scope="module")
def folders(tiny, scored, tmp_path_factory):
    """By scope, a checkpoint of a score model of it; by 'words', of a language model."""
    root = tmp_path_factory.mktemp("folders")
    about = {"model": models.describe(tiny[0])}
    of = {scope: (scored, scoring.about(scope)) for scope in scoring.SCOPES}
    for name, (params, more) in (of | {"words": (tiny[1], {})}).items():
        with Checkpoints(root / name, about=about | more) as checkpoints:
            checkpoints.save(TrainState(params, (), jnp.int32(1)), {})
    return {name: root / name for name in (*of, "words")}


def a_run(tiny, mesh, tmp_path):
    return Run(
        workdir=tmp_path, stage="stage", seed=0, mesh=mesh, model=tiny[0], tokenizer=None,
        template=None, writer=None,
    )  # fmt: skip


def given(folders):
    return Given(NOTHING, {}, folders, evaluate=None, evaluate_every=0, loss=None)


def searching(**changes):
    names = {"process_model": "prm", "value_model": "value"}
    return SearchConfig(**{"problems": "unused", "max_tokens": 8} | names | changes)


def rewarded():
    preference = {"models": {"x": "helpfulness"}, "weights": {"x": 1.0}, "on": "all"}
    section = {"problems": "unused", "steps": 1, "max_tokens": 8, "row_tokens": 32}
    return config.build(GrpoConfig, section | {"preference": preference}, "config.grpo")


def test_what_scopes_a_reference_takes():
    assert KINDS["search"].references(searching()) == [
        Reference("process_model", "prm", "score", ("steps",)),
        Reference("value_model", "value", "score", ("value",)),
    ]
    only = searching(process_model="", methods=("mcts",))
    assert [r.field for r in KINDS["search"].references(only)] == ["value_model"]
    assert KINDS["grpo"].references(rewarded()) == [
        Reference("preference.models.x", "helpfulness", "score", ("final", "whole", "steps"))
    ]


def test_check_scope(folders):
    wanted = Reference("process_model", "prm", "score", ("steps",))
    check_scope(wanted, folders["steps"])
    check_scope(wanted._replace(scopes=()), folders["final"])  # any will do
    message = "^process_model='prm' has the scope 'value', and what is needed here is 'steps'; name"
    with pytest.raises(ValueError, match=message):
        check_scope(wanted, folders["value"])
    two = wanted._replace(scopes=("final", "whole"))
    with pytest.raises(ValueError, match="needed here is 'final' or 'whole';"):
        check_scope(two, folders["value"])
    with pytest.raises(CheckpointError, match="words.* holds no score model"):
        check_scope(wanted, folders["words"])


@pytest.mark.parametrize("field", ["process_model", "value_model"])
def test_a_search_takes_no_guide_of_another_scope(tiny, mesh1, tmp_path, folders, field):
    right = {"process_model": folders["steps"], "value_model": folders["value"]}
    for scope in {"process_model": ("value", "final"), "value_model": ("steps", "whole")}[field]:
        with pytest.raises(ValueError, match=f"^{field}='.+' has the scope '{scope}'"):
            KINDS["search"].run(
                searching(), a_run(tiny, mesh1, tmp_path), given(right | {field: folders[scope]})
            )


def test_guides_are_loaded_on_the_model_of_the_run(
    tiny, scored, mesh1, tmp_path, folders, monkeypatch
):
    seen = []
    monkeypatch.setattr("r1jax.kinds.search.run", lambda *a: seen.append(a) or {"rows": [1, 2]})
    run = a_run(tiny, mesh1, tmp_path)
    both = {"process_model": folders["steps"], "value_model": folders["value"]}
    assert KINDS["search"].run(searching(), run, given(both)).counts == {"rows": 2}
    for params in seen[0][-2:]:
        jax.tree.map(np.testing.assert_array_equal, params, scored)
    only = searching(process_model="", methods=("mcts",))
    KINDS["search"].run(only, run, given({"value_model": folders["value"]}))
    assert seen[1][-2] is None and seen[1][-1] is not None
    # The context may differ, the weights' shapes may not.
    longer = make_model(dataclasses.replace(tiny[0].config, context=128))
    KINDS["search"].run(searching(), dataclasses.replace(run, model=longer), given(both))
    other = make_model(dataclasses.replace(tiny[0].config, mlp=32))
    with pytest.raises(CheckpointError, match=r"steps.* on another model:\n  mlp: 24 -> 32"):
        KINDS["search"].run(searching(), dataclasses.replace(run, model=other), given(both))
    assert len(seen) == 3


def test_a_reward_is_of_whole_responses(tiny, mesh1, tmp_path, folders):
    data = NOTHING._replace(given=(None, None))
    asked = given({"preference.models.x": folders["value"]})._replace(data=data)
    message = "^preference.models.x='helpfulness' has the scope 'value', .+ 'final' or 'whole' or"
    with pytest.raises(ValueError, match=message):
        KINDS["grpo"].run(rewarded(), a_run(tiny, mesh1, tmp_path), asked)


@pytest.mark.parametrize(
    ("experiment", "override", "message"),
    [
        ("failed_attempts", "prm.row_tokens=8", "prm: row_tokens=8 is less than the longest"),
        ("failed_attempts", "value.held_out=500", "value: 12 problems, of which held_out=500"),
        # 8 problems that are not held out, 2 responses each
        ("failed_attempts", "prm.batch_rows=17", "prm: 16 responses fill fewer than batch_rows=17"),
        ("failed_attempts", "search.separator=✂", "search: no token of the tokenizer holds"),
        ("r1", "helpfulness.batch_pairs=1000", "are fewer than batch_pairs=1000; lower it, or"),
        ("r1", "judge.batch_rows=1000", "judge: 64 examples fill fewer than batch_rows=1000 rows"),
    ],
)
def test_what_would_stop_a_later_stage_is_found_at_once(
    tmp_path, mesh1, monkeypatch, experiment, override, message
):
    monkeypatch.setattr("r1jax.pipeline.make_mesh", lambda **_: mesh1)
    flags = [f"--config.{override}"]
    asked = parse(config.plain(config.load(f"{EXPERIMENTS}/{experiment}.py:tiny", flags)))
    with pytest.raises(ConfigError, match=re.escape(message)):
        Pipeline(asked, tmp_path)
