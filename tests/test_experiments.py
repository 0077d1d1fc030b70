"""Every variant of every experiment, with what its docstring asks for, is a sound config."""

import importlib
import json
from pathlib import Path

import pytest

from r1jax import config, experiment
from r1jax.config import ConfigError
from r1jax.models import families, huggingface_config, make_model
from r1jax.models.presets import PRESETS

FOLDER = Path(__file__).parents[1] / "experiments"
SHAPE = PRESETS["Qwen2.5-Math-7B"]


def variants(name):
    """As `get_config` itself lists them."""
    module = importlib.import_module(f"experiments.{name}")
    with pytest.raises(ValueError, match="variants: ") as error:
        module.get_config("?")
    return str(error.value).partition("variants: ")[2].split(", ")


NAMES = sorted(
    path.stem for path in FOLDER.glob("*.py") if "def get_config(" in path.read_text("utf-8")
)
ALL = [(name, variant) for name in NAMES for variant in variants(name)]


def unset(loaded):
    """The names of what a config wants to be given."""
    names = [f"config.{name}" for name in ("weights", "data") if loaded.get(name, "") is None]
    files = loaded.get("files", {})
    return names + [f"config.files.{name}" for name, given in files.items() if not given]


@pytest.fixture
def given(tmp_path):
    """A function from the name of a placeholder to something small of its kind."""
    weights, run, file = tmp_path / "weights", tmp_path / "run", tmp_path / "rows.jsonl"
    weights.mkdir()
    shape = huggingface_config.to_json(SHAPE, "bfloat16")
    (weights / "config.json").write_text(json.dumps(shape))
    stages = ("base", "cold_start", "sft", "helpfulness", "harmlessness")
    for stage in stages:
        (folder := run / "checkpoints" / stage / "1" / "meta").mkdir(parents=True)
        about = {"model": families.describe(make_model(SHAPE))}
        (folder / "metadata").write_text(json.dumps(about))
    (run / "config.json").write_text(json.dumps({"stages": stages}))
    file.write_text(json.dumps({"question": "1+1?", "answer": "2", "response": "2"}) + "\n")
    kinds = {"weights": weights, "teacher": run, "run": run}
    return lambda name: str(kinds.get(name.rpartition(".")[2], file))


def test_the_variants_are_found():
    assert {"distill", "failed_attempts", "r1", "r1_ablations", "r1_zero"} <= set(NAMES)
    assert {("r1", "paper"), ("r1_zero", "gsm8k"), ("distill", "tokens")} <= set(ALL)


@pytest.mark.parametrize(("name", "variant"), ALL)
def test_every_variant_is_sound_with_what_its_docstring_names(name, variant, given):
    path = f"{FOLDER / name}.py:{variant}"
    wanted = unset(config.load(path))
    documentation = importlib.import_module(f"experiments.{name}").__doc__
    for placeholder in wanted:
        assert f"--{placeholder}=" in documentation
    loaded = config.load(path, [f"--{placeholder}={given(placeholder)}" for placeholder in wanted])
    plain = config.plain(loaded)
    built = experiment.parse(plain)
    assert [stage.name for stage in built.stages] == list(loaded.stages)
    # A config is compared and hashed by its plain form: JSON and back it is itself.
    assert json.loads(json.dumps(plain)) == plain
    assert plain == config.plain(config.load(path, [f"--{p}={given(p)}" for p in wanted]))


@pytest.mark.parametrize(("name", "variant"), ALL)
def test_what_is_not_given_is_named(name, variant, given):
    path = f"{FOLDER / name}.py:{variant}"
    wanted = unset(config.load(path))
    for left_out in wanted:
        flags = [f"--{p}={given(p)}" for p in wanted if p != left_out]
        # `data` is named by the stages' fields that it stands for.
        named = "is not set; give it with" if left_out == "config.data" else f"{left_out} is not"
        with pytest.raises(ConfigError, match=named):
            experiment.parse(config.plain(config.load(path, flags)))


def test_the_papers_r1_reads_the_files_it_is_given(given, tmp_path):
    path, files = f"{FOLDER}/r1.py:paper", {}
    for name in ("problems", "general", "examples", "helpful", "harmless"):
        (file := tmp_path / f"{name}.jsonl").write_text("")
        files[name] = str(file)
    flags = [f"--config.files.{name}={file}" for name, file in files.items()]
    weights = given("config.weights")
    flags.append(f"--config.weights={weights}")
    built = experiment.parse(config.plain(config.load(path, flags)))
    stages = {stage.name: stage for stage in built.stages}
    assert stages["curated"].settings.extra == (files["examples"],)
    assert stages["helpfulness"].settings.pairs == files["helpful"]
    assert stages["harmlessness"].settings.pairs == files["harmless"]
    last = stages["r1"].settings
    assert (last.problems, last.preference.problems) == (files["problems"], files["general"])
    fresh = [name for name, stage in stages.items() if stage.init == weights]
    assert fresh == ["r1_zero", "cold_start", "sft"]
    # arXiv:2501.12948 v2, second-hand: 1,700 updates, the last 400 with preference rewards, 16 a
    # rollout; the reinforcement learning before it 10,400.
    assert last.steps * last.minibatches * last.epochs == pytest.approx(1700, abs=16)
    assert last.preference.last * last.minibatches * last.epochs == 400
    for name in ("r1_zero", "reasoning_rl"):
        rl = stages[name].settings
        assert rl.steps * rl.minibatches * rl.epochs == 10_400
