"""R1-Zero: GRPO with rule rewards from a base model, no fine-tuning before it.

    mini   r1jax train --config=experiments/r1_zero.py:mini --workdir=runs/r1_zero_mini
           Any CPU with 2 cores, about 4 minutes, from random weights. Makes a base model
           (0.17 M parameters), then lifts it on mini-AIME in 32 steps: expect
           eval/mini_aime/pass@1 from about 0.17 to 0.99, cons@16 from 0.41 to 0.99,
           responses from about 38 to 111 tokens; about 230 CPU-seconds.
    tiny   The same path in seconds, without learning anything: for tests and notebooks.
    gsm8k  r1jax train --config=experiments/r1_zero.py:gsm8k \\
             --config.data=gsm8k_train.jsonl --workdir=runs/r1_zero_gsm8k
           Real problems through the whole path on a tiny model, some minutes on a CPU.
           Accuracy stays near 0: what it shows is that the path holds on real text.
    published
           r1jax train --config=experiments/r1_zero.py:published --config.weights=FOLDER \\
             --config.data=PROBLEMS.jsonl --workdir=DIR
           The same on any published model (Qwen2.5, Qwen3, Llama 3, DeepSeek-V3; a folder with
           config.json, safetensors and tokenizer), for Qwen2.5-Math-7B and 8 accelerators of
           80 GB or more. With --config.grpo.lora.rank=32 only adapters are trained. For the
           accuracy curve: --config.evaluate.benchmarks="('aime_2024.jsonl',)"
           --config.evaluate.max_tokens=3072. Run by us on small random weights alone: none
           could be fetched.
    paper  r1jax train --config=experiments/r1_zero.py:paper --config.weights=FOLDER \\
             --config.data=PROBLEMS.jsonl --workdir=DIR
           The paper's settings (second-hand: arXiv:2501.12948 v2), for a pod and weights such as
           Qwen2.5-32B; not yet run by us. The paper's run on DeepSeek-V3-Base goes from 15.6
           to 71.0 AIME pass@1, on a 32B base to 47.0.
"""

from ml_collections import ConfigDict, config_dict

from experiments import common


def get_config(variant: str = "mini") -> ConfigDict:
    variants = {
        "mini": mini, "tiny": tiny, "gsm8k": gsm8k, "published": published, "paper": paper,
    }  # fmt: skip
    if variant not in variants:
        raise ValueError(f"r1_zero.py:{variant} is unknown; variants: {', '.join(variants)}")
    return variants[variant]()


def mini() -> ConfigDict:
    config = common.base()
    config.template = "r1_zero_short"
    config.tokenizer = dict(corpus="task:mini_aime", vocabulary=400, merge_words=True)
    config.model = common.MINI_MODEL
    config.stages = ("pretrain", "grpo")
    config.pretrain = dict(kind="pretrain", task="mini_aime")
    config.grpo = dict(
        kind="grpo", init="pretrain", problems="task:mini_aime:4096", steps=32, max_tokens=152,
        prompts_per_rollout=32, group_size=16, minibatches=2,
        rewards=dict(accuracy=1.0, format=1.0), clip_eps=0.2, kl_coef=0.001, lr=2e-4,
        warmup_steps=5, optimizer="adamw", checkpoint_every=8, rows=128,
    )  # fmt: skip
    config.evaluate = dict(benchmarks=("mini_aime",), samples=16, max_tokens=152, rows=128, every=4)
    return config


def tiny() -> ConfigDict:
    config = mini()
    config.model.update(width=32, layers=2, heads=2, kv_heads=1, mlp=64)
    config.pretrain.update(
        textbook_rows=8, web_rows=8, web_steps=4, checkpoint_every=4, log_every=2,
        gate=dict(repair=0.0, resume=0.0, probes=8, every=4),
    )  # fmt: skip
    config.grpo.update(
        steps=3, max_tokens=24, prompts_per_rollout=8, group_size=4, row_tokens=128,
        checkpoint_every=1, chunk=8,
    )  # fmt: skip
    config.evaluate.update(samples=2, max_tokens=24, every=2, benchmarks=("mini_aime_dev",))
    return config


def gsm8k() -> ConfigDict:
    config = common.base()
    config.data = config_dict.placeholder(str)  # a .jsonl file of GSM8K's rows
    config.template = "r1_zero"
    config.tokenizer = dict(corpus=config.get_ref("data"), vocabulary=2048)
    config.model = dict(width=64, layers=3, heads=4, kv_heads=2, head_dim=16, mlp=192, context=1024)
    config.stages = ("base", "grpo")
    config.base = dict(
        kind="sft", examples=config.get_ref("data"), row_tokens=768, batch_rows=8, epochs=1,
        steps=100, lr=3e-3, lr_end=3e-4, warmup_steps=10, checkpoint_every=50,
    )  # fmt: skip
    config.grpo = dict(
        kind="grpo", init="base", problems=config.get_ref("data"), steps=4, max_tokens=128,
        prompts_per_rollout=8, group_size=8, minibatches=1, lr=1e-4,
        rewards=dict(accuracy=1.0, format=1.0), checkpoint_every=2,
    )  # fmt: skip
    return config


def _on_weights() -> ConfigDict:
    """GRPO alone, from the model in a folder that is to be given."""
    config = common.base()
    config.weights = config_dict.placeholder(str)  # a Hugging Face folder
    config.data = config_dict.placeholder(str)
    config.template = "r1_zero"
    config.model = dict(path=config.get_ref("weights"), remat=True)
    config.stages = ("grpo",)
    return config


def published() -> ConfigDict:
    config = _on_weights()
    config.grpo = dict(
        kind="grpo", init=config.get_ref("weights"), problems=config.get_ref("data"),
        steps=200, max_tokens=3072, prompts_per_rollout=64, group_size=16, minibatches=2,
        row_tokens=4096, rewards=dict(accuracy=1.0, format=1.0), lr=1e-6, kl_coef=0.001,
        clip_eps=0.2, reward_workers=8, chunk=128, checkpoint_every=20,
    )  # fmt: skip
    return config


def paper() -> ConfigDict:
    config = _on_weights()
    config.model.context = 34_816
    config.grpo = dict(
        kind="grpo", init=config.get_ref("weights"), problems=config.get_ref("data"),
        # 8,192 outputs a rollout, 16 minibatches of 32 questions × 16, each used once.
        prompts_per_rollout=512, group_size=16, minibatches=16, epochs=1,
        # 10,400 updates, of which 16 a rollout; the reference follows every 400 updates.
        steps=650, reference_every=25, max_tokens=32_768, temperature=1.0,
        lr=3e-6, kl_coef=0.001, clip_eps=10.0, rewards=dict(accuracy=1.0, format=1.0),
        reward_workers=16, rows=1024, chunk=128, checkpoint_every=5,
    )  # fmt: skip
    config.evaluate = dict(
        benchmarks=("aime_2024.jsonl",), samples=16, max_tokens=32_768, rows=512, every=10
    )
    return config
