"""experiments/distill.py: settings of the paper, and budgets that are equal."""

import json

import pytest

from experiments import distill
from r1jax import compute, config, experiment
from r1jax.models.presets import PRESETS
from r1jax.models.transformer import TransformerConfig

FILE = "experiments/distill.py"


@pytest.fixture
def examples(tmp_path):
    path = tmp_path / "curated.jsonl"
    path.write_text(json.dumps({"question": "What is 1+1?", "response": "2"}) + "\n")
    return path


def parsed(variant, *overrides):
    return experiment.parse(config.plain(config.load(f"{FILE}:{variant}", overrides)))


@pytest.mark.parametrize(
    ("student", "lr"),
    [
        # arXiv:2501.12948 v2, second-hand: initial rates, cosine to a tenth of them.
        ("Qwen2.5-Math-1.5B", 1e-4), ("Qwen2.5-Math-7B", 8e-5), ("Llama-3.1-8B", 5e-5),
        ("Qwen2.5-14B", 7e-5), ("Qwen2.5-32B", 6e-5), ("Llama-3.3-70B-Instruct", 2e-5),
    ],
)  # fmt: skip
def test_the_papers_students(student, lr, examples, tmp_path):
    given = f"--config.weights={tmp_path}", f"--config.files.examples={examples}"
    built = parsed(student, *given)
    (stage,) = built.stages
    settings = stage.settings
    assert (stage.kind, stage.init, built.tokenizer.path) == ("sft", str(tmp_path), str(tmp_path))
    assert (settings.lr, settings.lr_end) == (lr, pytest.approx(lr / 10))
    assert (settings.batch_rows, settings.row_tokens) == (64, 32_768)
    assert 2 <= settings.epochs <= 3
    assert built.model["preset"] == student in PRESETS
    assert built.model["context"] == 32_768


def test_the_examples_have_to_be_given():
    with pytest.raises(config.ConfigError, match=r"config.files.examples is not set"):
        parsed("mini")


def test_unknown_variants_are_named():
    with pytest.raises(ValueError, match=r"distill.py:small is unknown; variants: mini, tiny, "):
        distill.get_config("small")


def test_the_student_is_smaller_than_the_teacher_and_of_another_family(examples):
    model = parsed("mini", f"--config.files.examples={examples}").model
    # experiments/r1.py:mini has width 64, 3 layers, biases and one table.
    assert model["width"] < 64 and model["layers"] < 3
    assert not model["qkv_bias"] and not model["tied"]


@pytest.mark.parametrize("world", [distill.AIME, distill.WORLD])
def test_fine_tuning_costs_what_rl_does(world):
    built = distill.mini(world)
    rl, sft = built.rl, built.distilled
    model = TransformerConfig(world.vocabulary, **built.model)
    rows = rl.prompts_per_rollout * rl.group_size
    lengths = [world.prompt] * rows, [world.sampled] * rows
    a_step = compute.grpo_flops(model, *lengths, group_size=rl.group_size)
    documents = sft.batch_rows * (sft.row_tokens // (world.prompt + world.taught))
    a_batch = compute.training_flops(model, [world.prompt] * documents, [world.taught] * documents)
    # Rounded to a whole step of some hundred.
    assert sft.steps * a_batch == pytest.approx(rl.steps * a_step, rel=5e-3)
    assert built.distilled_rl.steps == rl.steps


def test_tokens_learns_from_the_teachers_distribution(examples, tmp_path):
    built = parsed(
        "tokens", f"--config.files.examples={examples}", f"--config.files.teacher={tmp_path}"
    )
    kinds = {stage.name: stage.settings for stage in built.stages if stage.kind == "distill"}
    assert {n: (s.mode, s.divergence) for n, s in kinds.items()} == {
        "forward": ("off_policy", "forward"),
        "reverse": ("on_policy", "reverse"),
        "jsd": ("on_policy", "jsd"),
    }
    assert {stage.init for stage in built.stages[1:]} == {"student"}
