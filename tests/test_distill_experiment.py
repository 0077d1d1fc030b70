"""experiments/distill.py: settings of the paper, and budgets that are equal."""

import json

import jax
import pytest

from experiments import distill, r1, r1_zero
from r1jax import compute, config, experiment
from r1jax.models import make_model
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
    with pytest.raises(
        ValueError, match=r"distill.py:small is unknown; variants: mini, aime, tiny, tokens, Qwen"
    ):
        distill.get_config("small")


@pytest.mark.parametrize(
    ("variant", "teacher", "parameters", "share"),
    [
        # A layer of the student: queries and output 2·48·48, keys and values 2·48·24,
        # feed-forward 3·48·128, two norms of 48: 25,440. Two of them, two tables of 640·48, a
        # norm: 112,368. Of the teacher: 3 layers of 49,408, one table of 640·64, a norm: 189,248.
        ("mini", r1.mini, 2 * 25_440 + 2 * 640 * 48 + 48, 112_368 / 189_248),
        # 2·32·32 + 2·32·16 + 3·32·96 + 2·32 = 12,352, twice, with two tables of 400·32 and a
        # norm: 50,336. The teacher with one table of 400·64: 173,888.
        ("aime", r1_zero.mini, 2 * 12_352 + 2 * 400 * 32 + 32, 50_336 / 173_888),
    ],
)  # fmt: skip
def test_the_student_is_smaller_than_its_teacher_and_of_another_family(
    variant, teacher, parameters, share, examples
):
    built = parsed(variant, f"--config.files.examples={examples}")
    taught_by = teacher()
    assert built.tokenizer.corpus == taught_by.tokenizer.corpus
    assert built.tokenizer.vocabulary == taught_by.tokenizer.vocabulary
    sizes = [count(model, built.tokenizer.vocabulary) for model in (built.model, taught_by.model)]
    assert sizes[0] == parameters and sizes[0] / sizes[1] == pytest.approx(share)
    assert f"{parameters:,} parameters" in distill.__doc__ and f"{share:.0%}" in distill.__doc__
    assert (taught_by.model.qkv_bias, taught_by.model.tied) == (True, True)
    assert (built.model["qkv_bias"], built.model["tied"]) == (False, False)


def count(section, vocabulary):
    model = make_model(experiment.model_config(section, vocabulary=vocabulary))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return sum(x.size for x in jax.tree.leaves(shapes))


@pytest.mark.parametrize("world", [distill.AIME, distill.WORLD])
def test_fine_tuning_costs_what_rl_does(world):
    built = distill.comparison(world)
    rl, sft = built.rl, built.distilled
    model = TransformerConfig(world.vocabulary, **built.model)
    rows = rl.prompts_per_rollout * rl.group_size
    lengths = [world.prompt] * rows, [world.sampled] * rows
    a_step = compute.grpo_flops(model, *lengths, group_size=rl.group_size)
    documents = sft.batch_rows * sft.row_tokens / (world.prompt + world.taught)
    a_batch = documents * compute.training_flops(model, [world.prompt], [world.taught])
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
    assert built.evaluate.stages == tuple(stage.name for stage in built.stages)
    # The student and the problems are those of `mini`.
    mini = parsed("mini", f"--config.files.examples={examples}")
    assert (built.model, built.tokenizer) == (mini.model, mini.tokenizer)
    assert built.stages[:1] == mini.stages[:1]
    problems = {s.settings.problems for s in built.stages if getattr(s.settings, "problems", "")}
    assert problems == {mini.stages[1].settings.problems}
