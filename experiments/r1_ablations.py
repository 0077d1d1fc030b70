"""What single parts of R1 do, each tried from a stage of a finished run of `experiments/r1.py`.

    mini   r1jax train --config=experiments/r1_ablations.py:mini --config.files.run=runs/r1_mini \\
             --workdir=runs/r1_mini_ablations
           `r1_zero_language` is R1-Zero with the reward for language consistency,
           `without_language` the run's reasoning RL without it (the paper's ablation, from
           either side). `preference_long` is paid by the reward models from the first step
           on and by nothing else, longer than the run is: their scores against what is true.
"""

from ml_collections import ConfigDict, config_dict

from experiments import common, r1


def get_config(variant: str = "mini") -> ConfigDict:
    if variant not in ("mini", "tiny"):
        raise ValueError(f"r1_ablations.py:{variant} is unknown; variants: mini, tiny")
    whole = r1.get_config(variant)
    config = common.base()
    config.files = dict(run=config_dict.placeholder(str))  # the workdir of a finished run
    run = config.files.get_ref("run")
    config.template, config.evaluate = whole.template, whole.evaluate
    config.evaluate.stages = ()
    config.model = dict(path=run)
    config.stages = ("r1_zero_language", "without_language", "preference_long")

    config.r1_zero_language = whole.r1_zero.copy_and_resolve_references()
    config.r1_zero_language.init = run + "/checkpoints/base"
    config.r1_zero_language.rewards.language = 1.0

    config.without_language = whole.reasoning_rl.copy_and_resolve_references()
    config.without_language.init = run + "/checkpoints/cold_start"
    del config.without_language.rewards.language

    config.preference_long = whole.r1.copy_and_resolve_references()
    config.preference_long.init = run + "/checkpoints/sft"
    config.preference_long.preference.update(
        last=0, problems="task:mini_general:1024", rules=dict(helpful=0.0, harmless=0.0)
    )
    for name in ("helpfulness", "harmlessness"):
        config.preference_long.preference.models[name] = run + f"/checkpoints/{name}"
    if variant == "mini":
        config.r1_zero_language.steps = 56
        # Warmer, faster and without the reference: what the run's own settings hold back.
        config.preference_long.update(steps=96, temperature=1.0, lr=6e-4, kl_coef=0.0)
    return config
