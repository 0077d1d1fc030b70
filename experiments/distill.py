"""Distillation: small students learn from the responses of a large teacher (paper, Table 6).

    mini   r1jax train --config=experiments/distill.py:mini \\
             --config.files.examples=runs/r1_mini/data/curated.jsonl --workdir=runs/distill_mini
           Any CPU with 2 cores. A student of another family than the teacher of
           experiments/r1.py:mini (Llama-like: no biases, untied; 112,368 parameters, its 59%),
           from random weights, on problems in English and Chinese:
               student       its own base
               rl            GRPO with rule rewards from it, as R1-Zero
               distilled     fine-tuned from it on the teacher's curated responses instead,
                             at the training FLOPs of `rl`
               distilled_rl  the same GRPO on top
               distilled_short, distilled_short_rl
                             fine-tuned for a sixth of the steps, and the same GRPO on top of that
           RESULTS.md has what came of it.
    aime   r1jax train --config=experiments/distill.py:aime \\
             --config.files.examples=CORRECT.jsonl --workdir=runs/distill_aime
           The same on mini-AIME with a smaller student (50,336 parameters, 29% of the teacher,
           experiments/r1_zero.py:mini); about 5 minutes. With 5,433 correct responses of the
           teacher, seed 0, eval/mini_aime_dev/pass@1 of the four came to 0.15, 0.51 (2.26e11
           FLOPs), 0.98 (2.17e11) and 0.99; `rl` with twice the steps (8.1e11) to 0.82.
    tiny   The path of `aime` in seconds, without learning anything: for tests.
    tokens  `distilled` of `mini` and, from the same base, the three ways to learn from the
           teacher's distribution over tokens: forward KL on its responses, reverse KL and
           generalised Jensen-Shannon divergence on the student's own. Needs beside
           --config.files.examples=FILE --config.files.teacher=DIR, a run with this tokenizer
           (runs/r1_mini).
    Qwen2.5-Math-1.5B, Qwen2.5-Math-7B, Llama-3.1-8B, Qwen2.5-14B, Qwen2.5-32B,
    Llama-3.3-70B-Instruct
           r1jax train --config=experiments/distill.py:Qwen2.5-Math-7B \\
             --config.weights=FOLDER --config.files.examples=CURATED.jsonl --workdir=DIR
           The paper's six students: fine-tuning on its 800,000 examples and no RL, with its
           settings (second-hand: arXiv:2501.12948 v2): 2 to 3 epochs, batch 64, context
           32,768, a cosine to a tenth of each student's rate. The weights have to be that
           student's. Not run by us. AIME 2024 pass@1 in the paper: 28.9, 55.5, 50.4, 69.7, 72.6
           and 70.0; RL on the 32B base instead of distillation 47.0.

Equal FLOPs in `mini` and `aime`: `supervised_steps` says, by `r1jax.compute` and mean lengths, how
many steps of fine-tuning cost what the steps of `rl` do: sampling, log-probabilities under the
reference, updates. The teacher's own cost is left out, as in the paper. Lengths vary with the
run, so what the stages did cost stands in metrics.jsonl as compute/flops.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ml_collections import ConfigDict, config_dict

from experiments import common


@dataclass(frozen=True)
class World:
    """A synthetic task, the size of the student there, and mean lengths in tokens: of prompts,
    of what the student samples while it learns by RL, of the teacher's responses."""

    task: str
    benchmarks: tuple[str, ...]
    vocabulary: int  # of the tokenizer
    context: int
    row_tokens: int
    max_tokens: int
    prompt: int
    sampled: int
    taught: int
    student: Mapping[str, int]
    repair: float  # of the gate at which the student's textbook is closed
    resume: float


WORLD = World(
    "mini_world", ("mini_world",), 640, 256, 256, 168, prompt=12, sampled=60, taught=41,
    student=dict(width=48, layers=2, heads=4, kv_heads=2, head_dim=12, mlp=128),
    repair=0.8, resume=0.85,
)  # fmt: skip
AIME = World(
    "mini_aime", ("mini_aime",), 400, 256, 256, 152, prompt=17, sampled=41, taught=108,
    student=dict(width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=96),
    repair=0.65, resume=0.6,
)  # fmt: skip
SHORT = 6  # of the steps of `distilled`, `distilled_short` takes one in so many
RATES = {  # of the paper's students, initial
    "Qwen2.5-Math-1.5B": 1e-4,
    "Qwen2.5-Math-7B": 8e-5,
    "Llama-3.1-8B": 5e-5,
    "Qwen2.5-14B": 7e-5,
    "Qwen2.5-32B": 6e-5,
    "Llama-3.3-70B-Instruct": 2e-5,
}


def get_config(variant: str = "mini") -> ConfigDict:
    if variant in RATES:
        return paper(variant)
    variants = {"mini": mini, "aime": aime, "tiny": tiny, "tokens": tokens}
    if variant not in variants:
        known = ", ".join([*variants, *RATES])
        raise ValueError(f"distill.py:{variant} is unknown; variants: {known}")
    return variants[variant]()


def mini() -> ConfigDict:
    config = comparison(WORLD)
    # Distillation at all of RL's FLOPs leaves nothing to add; so does RL add at a part of them?
    config.distilled_short = config.distilled.copy_and_resolve_references()
    config.distilled_short.steps = config.distilled.steps // SHORT
    config.distilled_short.examples = config.files.get_ref("examples")
    config.distilled_short_rl = dict(config.distilled_rl.to_dict(), init="distilled_short")
    config.stages = (*config.stages, "distilled_short", "distilled_short_rl")
    config.evaluate.stages = config.stages
    return config


def aime() -> ConfigDict:
    return comparison(AIME)


def comparison(world: World) -> ConfigDict:
    """RL, distillation, and both, from one base."""
    config = common.base()
    config.files = ConfigDict({"examples": config_dict.placeholder(str)})
    config.template = "r1_zero_short"
    config.tokenizer = dict(
        corpus=f"task:{world.task}", vocabulary=world.vocabulary, merge_words=True
    )
    config.model = dict(
        world.student, qkv_bias=False, tied=False, rope_theta=500_000.0, norm_eps=1e-5,
        context=world.context,
    )  # fmt: skip
    config.stages = ("student", "rl", "distilled", "distilled_rl")
    rl = dict(
        kind="grpo", problems=f"task:{world.task}:4096", steps=24, max_tokens=world.max_tokens,
        prompts_per_rollout=32, group_size=16, minibatches=2,
        rewards=dict(accuracy=1.0, format=1.0), clip_eps=0.2, kl_coef=0.001, lr=2e-4,
        warmup_steps=5, checkpoint_every=8, rows=128,
    )  # fmt: skip
    # What the base can do decides what comes of it. With repair=0.5 RL finds nothing to build on
    # (`aime`): guesses, short and in form, pay more than checks that fail, and it ends at 0.01,
    # where distillation reaches 0.61 and RL on top 0.69.
    config.student = dict(
        kind="pretrain",
        task=world.task,
        gate=dict(repair=world.repair, resume=world.resume, every=50),
    )
    config.rl = dict(rl, init="student")
    config.distilled = dict(
        kind="sft", init="student", examples=config.files.get_ref("examples"),
        row_tokens=world.row_tokens, batch_rows=8, epochs=20, lr=2e-3, lr_end=2e-4,
        warmup_steps=20, log_every=25,
    )  # fmt: skip
    config.distilled.steps = supervised_steps(config, world)
    config.distilled_rl = dict(rl, init="distilled")
    config.evaluate = dict(
        benchmarks=world.benchmarks, samples=16, max_tokens=world.max_tokens, rows=128, every=8,
        stages=config.stages,
    )  # fmt: skip
    return config


def supervised_steps(config: ConfigDict, world: World) -> int:
    """Steps of `config.distilled` that cost what all of `config.rl` does, in training FLOPs."""
    from r1jax import compute
    from r1jax.models.transformer import TransformerConfig

    model = TransformerConfig(world.vocabulary, **config.model)
    rl, sft = config.rl, config.distilled
    group = [world.prompt] * rl.group_size, [world.sampled] * rl.group_size
    a_group = compute.grpo_flops(model, *group, group_size=rl.group_size)
    an_example = compute.training_flops(model, [world.prompt], [world.taught])
    a_row = sft.row_tokens / (world.prompt + world.taught) * an_example  # rows are packed full
    return round(rl.steps * rl.prompts_per_rollout * a_group / (sft.batch_rows * a_row))


def tiny() -> ConfigDict:
    config = aime()
    config.files.examples = ""
    config.model.update(width=32, layers=2, heads=2, kv_heads=1, head_dim=16, mlp=64)
    config.student.update(
        textbook_rows=8, web_rows=8, web_steps=4, checkpoint_every=4, log_every=2,
        gate=dict(repair=0.0, resume=0.0, probes=8, every=4),
    )  # fmt: skip
    for name in ("rl", "distilled_rl"):
        config[name].update(
            steps=1, max_tokens=24, prompts_per_rollout=8, group_size=4, row_tokens=128,
            checkpoint_every=1, chunk=8,
        )  # fmt: skip
    config.distilled.update(batch_rows=1, epochs=1, steps=1, log_every=1)
    config.evaluate.update(samples=2, max_tokens=24, every=2, benchmarks=("mini_aime_dev",))
    return config


def tokens() -> ConfigDict:
    config = comparison(WORLD)
    config.files.teacher = config_dict.placeholder(str)
    config.stages = ("student", "distilled", "forward", "reverse", "jsd")
    config.evaluate.stages = config.stages
    sft, world = config.distilled, WORLD
    common_settings = dict(
        kind="distill", init="student", teacher=config.files.get_ref("teacher"),
        row_tokens=sft.row_tokens, batch_rows=sft.batch_rows, steps=sft.steps, lr=sft.lr,
        lr_end=sft.lr_end, warmup_steps=sft.warmup_steps, log_every=sft.log_every,
    )  # fmt: skip
    config.forward = dict(
        common_settings, examples=config.files.get_ref("examples"), epochs=sft.epochs
    )
    on_policy = dict(
        common_settings, mode="on_policy", problems=f"task:{world.task}:4096",
        prompts_per_step=sft.batch_rows * 2, max_tokens=world.max_tokens, rows=128,
    )  # fmt: skip
    config.reverse = dict(on_policy, divergence="reverse")
    config.jsd = dict(on_policy, divergence="jsd", beta=0.5)
    return config


def paper(student: str) -> ConfigDict:
    config = common.base()
    config.weights = config_dict.placeholder(str)  # a Hugging Face folder
    config.files = ConfigDict({"examples": config_dict.placeholder(str)})
    config.template = "r1_zero"
    config.tokenizer = dict(path=config.get_ref("weights"))
    config.model = dict(preset=student, context=32_768, remat=True)
    config.stages = ("distilled",)
    config.distilled = dict(
        kind="sft", init=config.get_ref("weights"), examples=config.files.get_ref("examples"),
        row_tokens=32_768, batch_rows=64, epochs=2, lr=RATES[student], lr_end=RATES[student] / 10,
        checkpoint_every=200,
    )  # fmt: skip
    return config
