"""Configs: every mistake is named by its place, with the mend, before any work starts."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest
from ml_collections import ConfigDict, config_dict

from r1jax import config
from r1jax.config import ConfigError
from r1jax.experiment import parse

FILE = str(Path(__file__).parents[1] / "experiments" / "r1_zero.py")
TINY = f"{FILE}:tiny"


def settings(*overrides, path=TINY):
    """The checked experiment."""
    return parse(config.plain(config.load(path, overrides)))


def stage(experiment, name):
    return next(s.settings for s in experiment.stages if s.name == name)


# --- load ------------------------------------------------------------------------------


def test_overrides_reach_the_settings():
    experiment = settings(
        "--config.grpo.lr=1e-4",
        "--config.grpo.steps",  # the value may be a word of its own
        "7",
        "--config.seed=3",
        "--config.evaluate.benchmarks=('mini_aime_dev', 'mini_aime')",
        "--config.grpo.rewards.format=0.5",
    )
    grpo = stage(experiment, "grpo")
    assert (grpo.lr, grpo.steps, experiment.seed) == (1e-4, 7, 3)
    assert experiment.evaluate.benchmarks == ("mini_aime_dev", "mini_aime")
    assert grpo.rewards == {"accuracy": 1.0, "format": 0.5}


def test_what_an_experiment_leaves_at_its_default_can_be_set():
    experiment = settings(
        "--config.grpo.epochs=2", "--config.grpo.loss=dapo", "--config.grpo.dynamic_sampling=true",
        "--config.pretrain.web.check_rate=0.5", "--config.mesh.tensor=2",
    )  # fmt: skip
    grpo = stage(experiment, "grpo")
    assert (grpo.epochs, grpo.loss, grpo.dynamic_sampling) == (2, "dapo", True)
    assert stage(experiment, "pretrain").web.check_rate == 0.5
    assert experiment.mesh.tensor == 2


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.1", 0.1), ("(0.2,0.28)", (0.2, 0.28)), ("(1, 2)", (1.0, 2.0)), ("10", 10.0)],
)
def test_clip_eps_is_a_number_or_a_pair(text, value):
    assert stage(settings(f"--config.grpo.clip_eps={text}"), "grpo").clip_eps == value


def test_the_last_of_two_overrides_counts():
    assert settings("--config.seed=3", "--config.seed=4").seed == 4


def test_a_reference_follows_its_source(tmp_path):
    experiment = config.load(f"{FILE}:gsm8k", ["--config.data=some.jsonl"])
    plain = config.plain(experiment)
    places = plain["tokenizer"]["corpus"], plain["base"]["examples"], plain["grpo"]["problems"]
    assert places == ("some.jsonl",) * 3


@pytest.mark.parametrize(
    ("text", "value"), [("123", "123"), ("1e3", "1e3"), ("true", "true"), ("None", "None")]
)
def test_a_text_stays_a_text(text, value):
    assert config.load(f"{FILE}:gsm8k", [f"--config.data={text}"]).data == value


def test_without_a_variant_the_default_is_meant():
    assert config.plain(config.load(FILE)) == config.plain(config.load(f"{FILE}:mini"))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("experiments/nope.py:x", "--config: there is no file experiments/nope.py"),
        (f"{FILE}:tinny", "r1_zero.py:tinny is unknown; variants: mini, tiny, gsm8k, published"),
    ],
)
def test_file_and_variant(path, message):
    with pytest.raises(ConfigError) as error:
        config.load(path)
    assert message in str(error.value)
    assert "Traceback" not in str(error.value)


def test_a_file_that_is_no_experiment(tmp_path):
    (tmp_path / "other.py").write_text("x = 1\n")
    (tmp_path / "config.json").write_text("{}\n")
    with pytest.raises(ConfigError, match=r"other\.py defines no get_config"):
        config.load(str(tmp_path / "other.py"))
    with pytest.raises(ConfigError, match=r"config\.json is not a Python file"):
        config.load(str(tmp_path / "config.json"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["junk"], "junk is unknown; overrides look like --config.grpo.lr=1e-4"),
        (["--lr=1"], "--lr is unknown; overrides look like --config.grpo.lr=1e-4"),
        (["--config.grpo.lr"], "--config.grpo.lr has no value"),
        (["--config.grpo.lr", "--config.seed=1"], "--config.grpo.lr has no value"),
        (["--config.seed.x=1"], "--config.seed.x: config.seed is no section"),
        (["--config.grpo.lr.x=1"], "--config.grpo.lr.x: config.grpo.lr is no section"),
    ],
)
def test_overrides_that_cannot_be_read(overrides, message):
    with pytest.raises(ConfigError) as error:
        config.load(TINY, overrides)
    assert message in str(error.value)


# --- what parse refuses ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        # unknown keys, with the nearest known one
        ("grpo.lrr=1", "config.grpo.lrr is unknown; did you mean 'lr'?"),
        ("grpo.max_token=1", "config.grpo.max_token is unknown; did you mean 'max_tokens'?"),
        ("grop.lr=1", "config.grop is unknown; did you mean 'grpo'?"),
        ("sed=1", "config.sed is unknown; did you mean 'seed'?"),
        ("pretrain.gate.probs=3", "config.pretrain.gate.probs is unknown; did you mean 'probes'?"),
        ("evaluate.sample=3", "config.evaluate.sample is unknown; did you mean 'samples'?"),
        ("model.widht=3", "config.model.widht is unknown; did you mean 'width'?"),
        ("mesh.fsd=3", "config.mesh.fsd is unknown; did you mean 'fsdp'?"),
        ("grpo.zzz=1", "config.grpo.zzz is unknown; known: "),
        ("template=r1_zer", "config.template='r1_zer' is unknown; did you mean 'r1_zero'?"),
        (
            "template=3",
            "config.template='3' is unknown; known: chat, plain, r1_zero, r1_zero_short",
        ),
        ("grpo.kind=gropo", "config.grpo.kind='gropo' is unknown; did you mean 'grpo'?"),
        ("grpo.loss=grop", "config.grpo: loss='grop' is unknown; known: grpo, dr_grpo, dapo, gspo"),
        ("grpo.optimizer=sgd", "config.grpo: optimizer='sgd' is unknown; known: adamw, muon"),
        ("pretrain.task=sums", "config.pretrain: task='sums' is unknown; known: mini_aime"),
        ("grpo.rewards.acuracy=1", "config.grpo: unknown reward 'acuracy'; did you mean 'acc"),
        # types
        ("grpo.lr=abc", "config.grpo.lr='abc' is a str, not float"),
        ("grpo.steps=1.5", "config.grpo.steps=1.5 is a float, not int"),
        ("grpo.steps=True", "config.grpo.steps=True is a bool, not int"),
        ("grpo.loss=3", "config.grpo.loss=3 is a int, not str"),
        ("grpo.dynamic_sampling=1", "config.grpo.dynamic_sampling=1 is a int, not bool"),
        ("grpo.lr=", "config.grpo.lr='' is a str, not float"),
        ("grpo.lr=None", "config.grpo.lr is not set; give it with --config.grpo.lr=…"),
        ("grpo=3", "config.grpo=3 is a int, not a section"),
        ("model=3", "config.model=3 is a int, not a section"),
        ("mesh=3", "config.mesh=3 is a int, not a section"),
        ("pretrain.gate=3", "config.pretrain.gate=3 is a int, not a section"),
        ("grpo.clip_eps=x", "config.grpo.clip_eps='x' is a str, not float or tuple"),
        ("grpo.clip_eps=(1,2,3)", "config.grpo.clip_eps=(1, 2, 3) has 3 values, not 2"),
        ("grpo.clip_eps=(1,'a')", "config.grpo.clip_eps[1]='a' is a str, not float"),
        (
            "evaluate.benchmarks=mini_aime",
            "config.evaluate.benchmarks='mini_aime' is a str, not tuple",
        ),
        ("evaluate.benchmarks=('a',1)", "config.evaluate.benchmarks[1]=1 is a int, not str"),
        ("stages=grpo", "config.stages='grpo' is no tuple; write ('grpo',)"),
        # ranges
        ("seed=-1", "config.seed=-1 must be an integer >= 0"),
        ("seed=1.5", "config.seed=1.5 must be an integer >= 0"),
        ("grpo.steps=0", "config.grpo: steps=0 must be at least 1"),
        ("grpo.lr=-1", "config.grpo: lr=-1.0 must not be negative"),
        ("grpo.kl_coef=-1", "config.grpo: kl_coef=-1.0 must not be negative"),
        ("grpo.warmup_steps=-1", "config.grpo: warmup_steps=-1 must not be negative"),
        ("grpo.reward_workers=-1", "config.grpo: reward_workers=-1 must not be negative"),
        ("grpo.clip_eps=-0.1", "config.grpo: clip_eps=-0.1: need a number ≥ 0 or a pair"),
        ("grpo.clip_eps=(0.1,-1)", "config.grpo: clip_eps=(0.1, -1.0): need a number ≥ 0 or a"),
        ("grpo.group_size=1", "config.grpo: group_size=1: a group needs 2 or more to compare"),
        (
            "grpo.minibatches=3",
            "config.grpo: prompts_per_rollout=8 is not divisible by minibatches=3; use 6 or 9",
        ),
        (
            "grpo.minibatches=16",
            "config.grpo: prompts_per_rollout=8 is not divisible by minibatches=16; use 16 or 16",
        ),
        ("grpo.temperature=0", "config.grpo: temperature=0.0 must be positive to learn from"),
        ("grpo.max_tokens=0", "config.grpo: max_tokens=0, rows=128, chunk=8 must all be at least"),
        ("evaluate.top_p=1.5", "config.evaluate: top_p=1.5 must be in (0, 1]"),
        ("evaluate.samples=0", "config.evaluate: samples=0 must be at least 1"),
        ("evaluate.benchmarks=()", "config.evaluate: benchmarks is empty"),
        ("pretrain.gate.every=0", "config.pretrain.gate: every=0 must be at least 1"),
        ("pretrain.web.guess=0.9", "guess + sloppy + careful + check = 1."),
        ("pretrain.web_rows=0", "config.pretrain: web_rows=0 must be at least 1"),
        ("pretrain.warmup_steps=-1", "config.pretrain: warmup_steps=-1 must not be negative"),
        ("model.heads=3", "config.model: heads=3 is not divisible by kv_heads=2"),
        ("model.head_dim=3", "config.model: head_dim=3 must be even (rotary pairs)"),
        ("model.dtype=float16", "config.model: dtype='float16' must be 'float32' or 'bfloat16'"),
        ("tokenizer.path=x", "config.tokenizer: set either path (of a tokenizer) or corpus"),
        # how stages hang together
        ("stages=()", "config.stages is empty; name at least one stage"),
        ("stages=('pretrain','sft')", "config.stages names 'sft', but there is no config.sft"),
        (
            "stages=('grpo',)",
            "config.grpo.init='pretrain' is neither an earlier stage",
        ),
        ("grpo.init=", "config.grpo.init is not set: name a stage or a checkpoint to start from"),
    ],
)
def test_refused_with_the_place(override, message):
    extra = [] if "heads" not in override else ["--config.model.kv_heads=2"]
    with pytest.raises(ConfigError) as error:
        settings(f"--config.{override}", *extra)
    assert message in str(error.value)


def test_a_stage_may_be_left_out(tmp_path):
    experiment = settings("--config.stages=('grpo',)", f"--config.grpo.init={tmp_path}")
    assert [(s.name, s.init) for s in experiment.stages] == [("grpo", str(tmp_path))]


def test_sft_ranges(tmp_path):
    (tmp_path / "x.jsonl").write_text("")  # read later
    good = [f"--config.data={tmp_path}/x.jsonl"]
    path = f"{FILE}:gsm8k"
    assert stage(settings(*good, path=path), "base").steps == 100
    for override, message in [
        ("base.lr=0", "config.base: lr=0.0 must be positive"),
        ("base.steps=-1", "config.base: steps=-1 must not be negative; 0 trains all epochs"),
        ("base.warmup_steps=-1", "config.base: warmup_steps=-1 must not be negative"),
        ("base.batch_rows=0", "config.base: batch_rows=0 must be at least 1"),
    ]:
        with pytest.raises(ConfigError) as error:
            settings(*good, f"--config.{override}", path=path)
        assert message in str(error.value)


def test_a_placeholder_left_empty():
    with pytest.raises(ConfigError) as error:
        settings(path=f"{FILE}:gsm8k")
    assert "is not set; give it with --config." in str(error.value)


# --- build -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Inner:
    x: int = 1


@dataclasses.dataclass(frozen=True)
class Outer:
    needed: int
    inner: Inner = dataclasses.field(default_factory=Inner)
    maybe: str | None = None
    names: tuple[str, ...] = ()
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)


def test_build_fills_defaults_and_nests():
    built = config.build(Outer, {"needed": 2, "inner": {"x": 3}, "names": ["a", "b"]}, "here")
    assert built == Outer(2, Inner(3), None, ("a", "b"), {})
    assert config.build(Outer, {"needed": 2, "maybe": None}, "here") == Outer(2)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({}, "here.needed is not set"),
        ({"needed": None}, "here.needed is not set; give it with --here.needed=…"),
        ({"needed": "2"}, "here.needed='2' is a str, not int"),
        ({"needed": 2, "maybe": 3}, "here.maybe=3 is a int, not str or NoneType"),
        ({"needed": 2, "inner": {"y": 3}}, "here.inner.y is unknown; known: x"),
        ({"needed": 2, "inner": {"x": 1.0}}, "here.inner.x=1.0 is a float, not int"),
        ({"needed": 2, "weights": 3}, "here.weights=3 is a int, not Mapping"),
    ],
)
def test_build_refuses(section, message):
    with pytest.raises(ConfigError) as error:
        config.build(Outer, section, "here")
    assert str(error.value) == message


# --- plain, digest, difference ---------------------------------------------------------


def test_plain_is_json_with_references_resolved():
    source = ConfigDict({"a": (1, 2), "b": config_dict.placeholder(str)})
    source.c = ConfigDict({"d": source.get_ref("b")})
    source.b = "x"
    assert config.plain(source) == {"a": [1, 2], "b": "x", "c": {"d": "x"}}


def test_plain_resolves_references_at_any_depth():
    source = ConfigDict({"file": config_dict.placeholder(str), "section": {"n": 1}})
    file, section = source.get_ref("file"), source.get_ref("section")
    source.flat = ("a", file, file + ".gz")
    source.deep = ({"of": [file, (section,)]},)
    source.inner = {"flat": (file,)}
    # Unset, they are what the field itself is.
    assert config.plain(source)["inner"] == {"flat": [None]}
    source.file, source.section.n = "x", 2
    assert config.plain(source) == {
        "file": "x", "section": {"n": 2}, "flat": ["a", "x", "x.gz"],
        "deep": [{"of": ["x", [{"n": 2}]]}], "inner": {"flat": ["x"]},
    }  # fmt: skip


def test_digest_knows_values_and_not_order():
    # SHA-256 of '{"a": 1, "b": 2}', by sha256sum
    assert config.digest({"b": 2, "a": 1}) == "d8497d9d82770a70"
    assert config.digest({"a": 1, "b": 2}) == config.digest({"b": 2, "a": 1})
    assert config.digest({"a": 1, "b": 3}) != config.digest({"b": 2, "a": 1})


def test_difference_names_every_value_that_differs():
    old = {"seed": 0, "grpo": {"lr": 0.1, "steps": 3}, "gone": 1, "same": [1, 2]}
    new = {"seed": 0, "grpo": {"lr": 0.2, "steps": 3}, "same": [1, 2], "section": {"x": 1}}
    assert config.difference(old, new) == [
        "config.gone: 1 -> None",
        "config.grpo.lr: 0.1 -> 0.2",
        "config.section: None -> {'x': 1}",
    ]
    assert config.difference(old, old) == []
