"""What the paper tried and left out: process reward models and Monte Carlo tree search.

On the base model of r1_zero.py, labels by Monte Carlo train a process reward model and a value
model; re-ranking, guided beam search and tree search by them are compared with plain sampling at
equal numbers of generated tokens; last, the process reward is what reinforcement learning is
paid, with the accuracy measured beside it (arXiv:2501.12948, section 4.2).

    base ── prm ───┬── search          results/search.json: accuracy by method and budget
      ├─── value ──┘
      └─── prm_rl                      eval/mini_aime/pass@1 against reward/process

    mini   r1jax train --config=experiments/failed_attempts.py:mini --workdir=runs/failed_mini
           Any CPU with 2 cores, some ten CPU-minutes beside the base model. Expect the process
           reward model to predict held-out labels with AUC 0.89, and at the tokens of 64 samples
           (means of three seeds, RESULTS.md): majority vote 0.55, best of 64 by process reward
           0.70, votes weighted by it 0.83, beam search 0.88, tree search 0.53 by values and 0.74
           by rollouts. Paid the process reward, accuracy goes from 0.12 to 0.56 at step 16 and to
           0.01 at step 32, while the reward still rises, from 0.81 to 0.85.
    tiny   The same path in a minute, without learning anything: for tests.
    published
           r1jax train --config=experiments/failed_attempts.py:published \\
             --config.weights=FOLDER --config.data=PROBLEMS.jsonl --workdir=DIR
           The same on any published model, for 8 accelerators of 80 GB or more; the benchmark
           is --config.search.problems=FILE. Not run by us.
"""

from ml_collections import ConfigDict, config_dict

from experiments import common, r1_zero


def get_config(variant: str = "mini") -> ConfigDict:
    variants = {"mini": mini, "tiny": tiny, "published": published}
    if variant not in variants:
        raise ValueError(
            f"failed_attempts.py:{variant} is unknown; variants: {', '.join(variants)}"
        )
    return variants[variant]()


def mini() -> ConfigDict:
    config = r1_zero.mini()
    config.stages = ("pretrain", "prm", "value", "search", "prm_rl")
    labels = dict(
        kind="process", init="pretrain", problems="task:mini_aime:448", samples=8,
        continuations=8, max_tokens=152, held_out=64, row_tokens=192, rows=512, lr=1e-3,
        lr_end=1e-4, epochs=2,
    )  # fmt: skip
    config.prm = labels | dict(scope="steps")
    config.value = labels | dict(scope="value")
    config.search = dict(
        kind="search", init="pretrain", problems="mini_aime", process_model="prm",
        value_model="value", samples=(4, 16, 64), max_tokens=152,
    )  # fmt: skip
    config.prm_rl = config.grpo.to_dict() | dict(
        rewards=dict(accuracy=0.0, format=0.0),  # measured, not paid
        preference=dict(models=dict(process="prm"), weights=dict(process=1.0), on="all"),
    )
    del config.grpo
    return config


def tiny() -> ConfigDict:
    config, small = mini(), r1_zero.tiny()
    config.model.update(small.model)
    config.pretrain.update(small.pretrain)
    config.evaluate.update(small.evaluate)
    for name in ("prm", "value"):
        config[name].update(
            problems="task:mini_aime:12", samples=2, continuations=2, max_tokens=24, held_out=4,
            batch_rows=2, epochs=1, row_tokens=64, rows=64, chunk=8, log_every=1,
        )  # fmt: skip
    config.search.update(
        problems="task:mini_aime:4", samples=(2, 4), expansions=2, max_tokens=24, step_tokens=8,
        tree_expansions=2, rows=64, chunk=8,
    )  # fmt: skip
    of_grpo = ("steps", "max_tokens", "prompts_per_rollout", "group_size", "row_tokens", "chunk")
    config.prm_rl.update({name: small.grpo[name] for name in of_grpo}, checkpoint_every=1)
    return config


def published() -> ConfigDict:
    config = common.base()
    config.weights = config_dict.placeholder(str)  # a Hugging Face folder
    config.data = config_dict.placeholder(str)
    config.template = "r1_zero"
    config.model = dict(path=config.get_ref("weights"), remat=True)
    config.stages = ("prm", "value", "search", "prm_rl")
    labels = dict(
        kind="process", init=config.get_ref("weights"), problems=config.get_ref("data"),
        samples=8, continuations=8, max_tokens=2048, row_tokens=4096, held_out=256,
        batch_rows=32, epochs=1, lr=1e-5, lr_end=1e-6, warmup_steps=50, workers=8, chunk=128,
        checkpoint_every=200,
    )  # fmt: skip
    config.prm = dict(scope="steps") | labels
    config.value = dict(scope="value") | labels
    config.search = dict(
        kind="search", init=config.get_ref("weights"), problems="math_500.jsonl",
        process_model="prm", value_model="value", samples=(4, 16, 64), max_tokens=2048,
        step_tokens=256, temperature=0.8, workers=8, chunk=64,
    )  # fmt: skip
    config.prm_rl = r1_zero.published().grpo.to_dict() | dict(
        init=config.get_ref("weights"),
        problems=config.get_ref("data"),
        rewards=dict(accuracy=0.0, format=0.0),
        preference=dict(models=dict(process="prm"), weights=dict(process=1.0), on="all"),
    )
    return config
