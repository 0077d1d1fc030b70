"""R1: cold start, reasoning RL, rejection sampling and SFT, RL for all scenarios.

The base makes R1-Zero, whose answers in readable form are the cold start; each stage's output is
the next one's input (arXiv:2501.12948, section 2.3):

    base ── r1_zero ── cold_data ── cold_start ── reasoning_rl ── curated ── sft ── r1
      └───────────────────────────────┘└──────────────────────────────────────┘     │
                                              helpfulness, harmlessness (from sft) ──┘

    mini   r1jax train --config=experiments/r1.py:mini --workdir=runs/r1_mini
           Any CPU with 2 cores, from random weights, on problems in English and Chinese and on
           a few general tasks; RESULTS.md has what came of it on three seeds.
    tiny   The same path in a minute, without learning anything: for tests.
    paper  r1jax train --config=experiments/r1.py:paper --config.weights=FOLDER \\
             --config.files.problems=PROBLEMS.jsonl --config.files.examples=GENERAL.jsonl \\
             --config.files.general="PROBLEMS.jsonl + PROMPTS.jsonl" \\
             --config.files.helpful=PAIRS.jsonl --config.files.harmless=PAIRS.jsonl --workdir=DIR
           The paper's settings (second-hand: arXiv:2501.12948 v2), for a pod; not run by us.
           `general` is the mixture of prompts of the last part, `examples` are those of other
           kinds than reasoning that the second fine-tuning is given.
"""

from ml_collections import ConfigDict, config_dict

from experiments import common

STAGES = (
    "base", "r1_zero", "cold_data", "cold_start", "reasoning_rl", "judge", "curated", "sft",
    "helpfulness", "harmlessness", "r1",
)  # fmt: skip
EVALUATED = ("base", "r1_zero", "cold_start", "reasoning_rl", "sft", "r1")
MEASURE = ("language", "format", "readable", "helpful", "harmless")


def get_config(variant: str = "mini") -> ConfigDict:
    variants = {"mini": mini, "tiny": tiny, "paper": paper}
    if variant not in variants:
        raise ValueError(f"r1.py:{variant} is unknown; variants: {', '.join(variants)}")
    return variants[variant]()


def mini() -> ConfigDict:
    config = common.base()
    config.template = "r1_zero_short"
    config.tokenizer = dict(corpus="task:mini_world", vocabulary=640, merge_words=True)
    config.model = common.MINI_MODEL
    config.stages = STAGES
    reasoning, general = "task:mini_world:4096", "task:mini_general:1024"
    rl = dict(
        kind="grpo", max_tokens=168, prompts_per_rollout=32, group_size=16, minibatches=2,
        clip_eps=0.2, kl_coef=0.001, lr=2e-4, warmup_steps=5, checkpoint_every=8, rows=128,
    )  # fmt: skip
    sft = dict(
        kind="sft", init="base", row_tokens=256, batch_rows=16, epochs=2, optimizer="muon", lr=4e-3,
        lr_end=4e-4, warmup_steps=5, log_every=10,
    )  # fmt: skip
    collect = dict(kind="rejection", samples=4, max_tokens=168, rows=128)
    reward_model = dict(
        kind="preference", init="sft", row_tokens=256, batch_pairs=32, epochs=1, lr=5e-3,
        optimizer="muon", warmup_steps=5,
    )  # fmt: skip

    config.base = dict(kind="pretrain", task="mini_world")
    config.r1_zero = dict(
        rl, init="base", problems=reasoning, steps=36, rewards=dict(accuracy=1.0, format=1.0)
    )
    config.cold_data = dict(
        collect, init="r1_zero", problems="task:mini_world:128", rewrite="task:mini_world", keep=1,
        extra=("task:mini_world:64",),
    )  # fmt: skip
    config.cold_start = dict(sft, examples="cold_data")
    config.reasoning_rl = dict(
        rl, init="cold_start", problems=reasoning, steps=40,
        rewards=dict(accuracy=1.0, format=1.0, language=1.0),
    )  # fmt: skip
    config.judge = dict(sft, examples="task:mini_judge:16000", epochs=1)
    config.curated = dict(
        collect, init="reasoning_rl", problems="task:mini_world:1024 + task:mini_judge:256",
        judge="judge", judge_audit=128, keep=2, extra=("task:mini_general:2048",),
        filters=(
            "mixed_language", "long_paragraph", "code_block", "missing_summary", "bare_answer",
            "foreign_summary", "duplicate",
        ),
    )  # fmt: skip
    config.sft = dict(sft, examples="curated")
    config.helpfulness = dict(reward_model, pairs="task:mini_general:helpful:8000", scope="final")
    config.harmlessness = dict(reward_model, pairs="task:mini_general:harmless:3000", scope="whole")
    config.r1 = dict(
        rl, init="sft", problems=reasoning, steps=24, temperature=0.7,
        rewards=dict(accuracy=1.0, format=1.0, language=1.0),
        preference=dict(
            models=dict(helpfulness="helpfulness", harmlessness="harmlessness"),
            weights=dict(helpfulness=1.0, harmlessness=1.0),
            rules=dict(helpful=0.0, harmless=0.0, language=1.0),
            problems=f"{reasoning} + {general}", last=8,
        ),
    )  # fmt: skip
    config.evaluate = dict(
        benchmarks=("mini_world", "mini_general"), samples=16, max_tokens=168, rows=128, every=8,
        measure=MEASURE, stages=EVALUATED,
    )  # fmt: skip
    return config


def tiny() -> ConfigDict:
    config = mini()
    config.model.update(width=32, layers=2, heads=2, kv_heads=1, mlp=64)
    config.base.update(
        textbook_rows=8, web_rows=8, web_steps=4, checkpoint_every=4, log_every=2,
        gate=dict(repair=0.0, resume=0.0, probes=8, every=4),
    )  # fmt: skip
    for name in ("r1_zero", "reasoning_rl", "r1"):
        config[name].update(
            steps=2, max_tokens=24, prompts_per_rollout=8, group_size=4, row_tokens=128, chunk=8,
            checkpoint_every=1,
        )  # fmt: skip
    config.r1.preference.last = 1
    for name in ("cold_data", "curated"):
        # A model that has learned nothing gets nothing right: the examples are the given ones.
        config[name].update(samples=2, max_tokens=24, filters=())
    config.judge.examples = "task:mini_judge:64"
    config.curated.judge_audit = 8
    for name in ("cold_start", "judge", "sft"):
        config[name].update(batch_rows=8, epochs=1, steps=2, log_every=1)
    for name, aspect in (("helpfulness", "helpful"), ("harmlessness", "harmless")):
        config[name].update(pairs=f"task:mini_general:{aspect}:64", batch_pairs=8, steps=2)
    config.evaluate.update(
        samples=2, max_tokens=24, every=2, benchmarks=("mini_world_dev", "mini_general_dev")
    )
    return config


def paper() -> ConfigDict:
    config = common.base()
    config.weights = config_dict.placeholder(str)  # a Hugging Face folder, the base
    config.files = ConfigDict(
        {
            name: config_dict.placeholder(str)
            for name in ("problems", "general", "examples", "helpful", "harmless")
        }
    )
    file, base = config.files.get_ref, config.get_ref("weights")
    config.template = "r1_zero"
    config.model = dict(path=base, remat=True, context=34_816)
    # The weights are the base, and the model that is trained is the judge.
    config.stages = tuple(name for name in STAGES if name not in ("base", "judge"))
    rl = dict(
        kind="grpo", problems=file("problems"), prompts_per_rollout=512, group_size=16,
        minibatches=16, reference_every=25, max_tokens=32_768, lr=3e-6, kl_coef=0.001,
        clip_eps=10.0, reward_workers=16, rows=1024, chunk=128, checkpoint_every=5,
    )  # fmt: skip
    sft = dict(
        kind="sft", init=base, row_tokens=32_768, batch_rows=128, epochs=2, lr=5e-5, lr_end=5e-6,
        checkpoint_every=100,
    )  # fmt: skip
    collect = dict(
        kind="rejection", problems=file("problems"), max_tokens=32_768, rows=1024, chunk=128,
        workers=16,
    )  # fmt: skip
    reward_model = dict(
        kind="preference", init="sft", row_tokens=32_768, batch_pairs=256, epochs=1, lr=6e-6,
        lr_end=6e-7,
    )  # fmt: skip
    rules = dict(accuracy=1.0, format=1.0, language=1.0)
    # 10,400 updates, of which 16 a rollout; the reference follows every 400 of them.
    config.r1_zero = dict(rl, init=base, steps=650, rewards=dict(accuracy=1.0, format=1.0))
    # Thousands of chains, rewritten into the readable pattern by the model itself.
    config.cold_data = dict(
        collect, init="r1_zero", questions=5000, samples=4, keep=1, rewrite="model",
    )  # fmt: skip
    config.cold_start = dict(sft, examples="cold_data")
    config.reasoning_rl = dict(rl, init="cold_start", steps=650, rewards=rules)
    # About 600,000 reasoning examples, with the file's 200,000 of other kinds.
    config.curated = dict(
        collect, init="reasoning_rl", samples=16, keep=8, judge="self", extra=(file("examples"),)
    )
    config.sft = dict(sft, examples="curated")
    config.helpfulness = dict(reward_model, pairs=file("helpful"), scope="final")
    config.harmlessness = dict(reward_model, pairs=file("harmless"), scope="whole")
    # 1,700 updates, the last 400 with preference rewards and general prompts.
    config.r1 = dict(
        rl, init="sft", steps=106, temperature=0.7, rewards=rules,
        preference=dict(
            models=dict(helpfulness="helpfulness", harmlessness="harmlessness"),
            weights=dict(helpfulness=1.0, harmlessness=1.0),
            rules=dict(format=1.0, language=1.0), problems=file("general"), last=25,
        ),
    )  # fmt: skip
    config.evaluate = dict(
        benchmarks=("aime_2024.jsonl",), samples=16, max_tokens=32_768, rows=512, every=25,
        measure=("language", "format", "readable"), stages=EVALUATED[1:],
    )  # fmt: skip
    return config
