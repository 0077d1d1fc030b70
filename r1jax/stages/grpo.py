"""Group relative policy optimisation with rule rewards: the loop of R1-Zero.

A step: sample a group of responses to each of a batch of questions, score them on the
host, take advantages within groups, take log-probabilities under the reference, update
on minibatches (arXiv:2501.12948, section 2.2.1).

One step ahead (`ahead`) the responses of a step are sampled before the update of the step
before it, and judged during that update.

The position in the stream of questions (counted in batches) is all the data state there
is: questions, their order and their random keys are functions of it and the seed. The sampler's
log-probabilities serve as those of the old policy: it samples at the temperature that the
update scores at, without top-p, and agrees with the update's forward pass to rounding. Where
that is not so (older weights, another precision) `importance_cap` corrects for it.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from r1jax import compute
from r1jax.data.mixing import Mixture
from r1jax.experience import Begun, PreferenceRewards, Rounds, Scorer
from r1jax.learner import PolicyLearner, init_state
from r1jax.losses import LOSSES, truncated_importance
from r1jax.losses.grpo import clip_range
from r1jax.models import lora
from r1jax.models.lora import LoraConfig
from r1jax.optim import OPTIMIZERS, warmup
from r1jax.rewards import check_weights
from r1jax.rewards.pool import LIMIT_S, RewardPool
from r1jax.rollouts import join, packed_shape
from r1jax.run import Run
from r1jax.sampling.engine import SamplingConfig
from r1jax.sharding import batch_axis_size, check_rows
from r1jax.types import Rollout


@dataclass(frozen=True)
class GrpoConfig:
    """Settings of the stage; the defaults are the paper's where it states them.

    `clip_eps` is ε or (low, high). `prompts_per_rollout` questions are answered
    `group_size` times, cut by whole groups into `minibatches`, each used once an epoch;
    gradients are accumulated over micro-batches of `micro_rows` packed rows (0: one a piece
    of the mesh) of `row_tokens` tokens, or what one response may need. The reference
    becomes the policy every `reference_every` steps (0: never). With `dynamic_sampling`
    groups of equal rewards are replaced by further questions' (DAPO), in at most
    `max_sampling_rounds` rounds. With `lora.rank` adapters are trained on top of the
    policy's weights, which serve the reference too: it is the policy without them.

    `rewards` are rules, `preference` adds rewards by models to them.

    `problems` is a source or a mixture of several by weight (`data.sources`). Those stay whose rate
    in the file `pass_rates` (`r1jax eval` writes it) lies in `pass_rate_band`, and that share no
    run of words with the benchmarks in `decontaminate`.

    With `ahead` the responses of step n + 1 are sampled with the weights that step n starts from
    (the first two steps' with the initial ones), and workers (`reward_workers`) judge them
    while step n updates. On one mesh sampling and update still take turns: what is won is the
    time that rewards take. With `dynamic_sampling` this holds for the first round; further ones
    need its rewards, and are sampled with the weights of their own step.
    With `importance_cap` C (0: none; needed by `ahead`) the old policy π_old is the one that
    the update starts from, not the sampler's μ: log-probabilities under it are computed anew,
    and the loss of every token is weighted by the constant min(π_old / μ, C)
    (`losses.truncated_importance`).
    """

    problems: str
    steps: int
    max_tokens: int
    prompts_per_rollout: int = 32
    group_size: int = 16
    temperature: float = 1.0
    minibatches: int = 1
    epochs: int = 1
    micro_rows: int = 0
    row_tokens: int = 1024
    loss: str = "grpo"
    clip_eps: float | tuple[float, float] = 0.2
    kl_coef: float = 0.001
    normalise_std: bool = True
    rewards: Mapping[str, float] = field(default_factory=lambda: {"accuracy": 1.0, "format": 1.0})
    preference: PreferenceRewards | None = None
    reward_workers: int = 0  # processes that score; 0: this one
    reward_limit_s: float = LIMIT_S  # for one response
    reference_every: int = 0
    pass_rates: str = ""
    pass_rate_band: tuple[float, float] = (0.0, 1.0)
    decontaminate: tuple[str, ...] = ()
    dynamic_sampling: bool = False
    max_sampling_rounds: int = 4
    ahead: bool = False
    importance_cap: float = 0.0
    optimizer: str = "adamw"
    lr: float = 3e-6
    warmup_steps: int = 0
    b1: float = 0.9
    b2: float = 0.95
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    checkpoint_every: int = 10
    rows: int = 512  # decoded at a time
    chunk: int = 32  # tokens decoded between two looks of the host
    cache_mb: int = 0  # memory for keys and values while decoding (0: whatever `rows` take)
    lora: LoraConfig = field(default_factory=LoraConfig)

    def __post_init__(self):
        for name, known in (("loss", LOSSES), ("optimizer", OPTIMIZERS)):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name}={value!r} is unknown; known: {', '.join(known)}")
        for name in (
            "steps", "prompts_per_rollout", "minibatches", "epochs", "row_tokens",
            "max_sampling_rounds", "checkpoint_every",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in (
            "micro_rows", "kl_coef", "lr", "warmup_steps", "reference_every", "reward_workers",
        ):  # fmt: skip
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        clip_range(self.clip_eps)  # its own checks
        if not (self.importance_cap == 0 or self.importance_cap >= 1):
            raise ValueError(
                f"importance_cap={self.importance_cap} must be 0 (no correction) or at least 1, "
                "the weight of a token that both policies give the same probability"
            )
        if self.ahead and not self.importance_cap:
            raise ValueError(
                "ahead=True learns from responses of older weights: correct for that with "
                "importance_cap, for example 2.0"
            )
        if self.group_size < 2:
            raise ValueError(f"group_size={self.group_size}: a group needs 2 or more to compare")
        if self.prompts_per_rollout % self.minibatches:
            n, m = self.prompts_per_rollout, self.minibatches
            raise ValueError(
                f"prompts_per_rollout={n} is not divisible by minibatches={m}; "
                f"use {n - n % m or m} or {n + -n % m}"
            )
        if not self.reward_limit_s > 0:
            raise ValueError(f"reward_limit_s={self.reward_limit_s} must be positive")
        low, high = self.pass_rate_band
        if not 0 <= low <= high <= 1:
            raise ValueError(f"pass_rate_band={low, high} has to be 0 <= low <= high <= 1")
        if self.pass_rate_band != (0.0, 1.0) and not self.pass_rates:
            raise ValueError("pass_rate_band needs pass_rates, a file that `r1jax eval` writes")
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature} must be positive to learn from")
        check_weights(self.rewards)
        if self.preference and self.preference.last > self.steps:
            raise ValueError(
                f"preference.last={self.preference.last} is more than steps={self.steps}"
            )
        if self.preference and (both := self.preference.models.keys() & self.rewards.keys()):
            raise ValueError(f"{sorted(both)[0]!r} is a model and a rule; rename the model")
        self.sampling  # noqa: B018 - its own checks

    @property
    def sampling(self) -> SamplingConfig:
        return SamplingConfig(
            self.max_tokens, temperature=self.temperature, rows=self.rows, chunk=self.chunk,
            cache_mb=self.cache_mb,
        )  # fmt: skip

    @property
    def measured(self) -> dict[str, float]:
        """Every rule reward that some problem has, with its weight in the stage's own sum."""
        rules = self.preference.rules if self.preference else {}
        return dict.fromkeys(rules, 0.0) | dict(self.rewards)


def run(
    config: GrpoConfig,
    run: Run,
    params,
    problems: Sequence[Mapping] | Mixture,
    *,
    late: Mixture | None = None,
    scorers: Mapping[str, Scorer] = {},
    evaluate: Callable[[dict, int], dict] | None = None,
    evaluate_every: int = 0,
    loss: Callable | None = None,
) -> dict:
    """Trains `params` on `problems`; returns the final parameters.

    `late` are the problems of `preference.problems`, `scorers` its models by name, as functions
    (problems, responses) -> rewards.

    `evaluate(params, step)` gives metrics, before the first step, every
    `evaluate_every` steps and after the last. `loss` replaces the configured one: a
    function (logp_BT, old_logp_BT, ref_logp_BT, adv_B, mask_BT, *, whole), with `importance_cap`
    also importance_BT.
    Raises ValueError, before anything is compiled, for prompts that do not fit the
    model's context and for rows that the mesh cannot cut.
    """
    frozen, trainable = lora.split(params, config.lora, run.key("lora"))
    loop = _Loop(config, run, frozen, trainable, (problems, late), scorers, loss)
    # New adapters add nothing, exactly: under them the reference is the base.
    state, reference, upcoming = loop.state, trainable if config.kl_coef else None, _Upcoming(0)
    with (
        run.checkpoints(lora=config.lora) as checkpoints,
        RewardPool(config.measured, config.reward_workers, limit_s=config.reward_limit_s) as pool,
    ):
        restored, flops = checkpoints.restore(state, reference=reference), 0.0
        if restored:
            state, meta, reference = restored
            upcoming, flops = _Upcoming.restored(meta), meta["flops"]
        step = int(state.step) // (config.minibatches * config.epochs)
        run.writer.rewind(run.stage, step if restored else -1)
        if evaluate and not restored:
            run.writer.metrics(run.stage, 0, evaluate(lora.join(frozen, state.params), 0))
        with run.writer.bar(config.steps, run.stage, done=step) as bar:
            while step < config.steps:
                state, upcoming, values = loop.step(state, reference, step, upcoming, pool)
                step += 1
                flops = values["compute/flops"] = flops + values["compute/flops"]
                refresh = config.reference_every and step % config.reference_every == 0
                if reference is not None and refresh:
                    reference = jax.tree.map(jnp.copy, state.params)
                last = step == config.steps
                if evaluate and (last or (evaluate_every and step % evaluate_every == 0)):
                    values |= evaluate(lora.join(frozen, state.params), step)
                run.writer.metrics(run.stage, step, values)
                if last or step % config.checkpoint_every == 0:
                    saved = upcoming.saved()
                    saved["meta"]["flops"] = flops
                    checkpoints.save(state, **saved, step=step, reference=reference)
                bar.set_postfix_str(_summary(values))
                bar.update()
    return lora.join(frozen, state.params)


def _summary(values: Mapping[str, float]) -> str:
    shown = (
        ("reward/total", "reward", ".2f"),
        ("reward/accuracy", "accuracy", ".2f"),
        ("rollout/length", "length", ".0f"),
        ("throughput/tokens_per_s", "tok/s", ".0f"),
    )
    return " ".join(
        f"{short} {values[name]:{form}}" for name, short, form in shown if name in values
    )


class _Experience(NamedTuple):
    """What a step learns from."""

    rollout: Rollout
    adv_B: np.ndarray
    position: int  # in the stream of questions, in batches, after what was read
    values: dict[str, float]  # metrics


class _Upcoming(NamedTuple):
    """Where the next step begins: a position in the stream, and with `ahead` what it is given.

    That is saved as it is: the weights that sampled it are gone, and no reward is asked twice.
    """

    position: int
    experience: _Experience | None = None

    def saved(self) -> dict:
        """Arguments of `Checkpoints.save`."""
        meta, made = {"position": self.position}, self.experience
        if made is None:
            return {"meta": meta}
        meta["ahead"] = {"position": made.position, "values": made.values}
        return {"meta": meta, "arrays": made.rollout._asdict() | {"adv_B": made.adv_B}}

    @classmethod
    def restored(cls, meta: Mapping) -> "_Upcoming":
        if "ahead" not in meta:
            return cls(meta["position"])
        arrays = dict(meta["arrays"])
        adv_B = arrays.pop("adv_B")
        return cls(meta["position"], _Experience(Rollout(**arrays), adv_B, **meta["ahead"]))


class _Loop:
    """The compiled programs of one stage, and a step made of them."""

    def __init__(self, config: GrpoConfig, run: Run, frozen, trainable, problems, scorers, loss):
        self.config, self.run, self.frozen = config, run, frozen
        check_rows(run.mesh, micro_rows=config.micro_rows)
        if loss is None:
            extra = {"length_constant": config.max_tokens} if config.loss == "dr_grpo" else {}
            loss = partial(
                LOSSES[config.loss], clip_eps=config.clip_eps, kl_coef=config.kl_coef, **extra
            )
        optimizer = OPTIMIZERS[config.optimizer](
            b1=config.b1, b2=config.b2, weight_decay=config.weight_decay, clip_norm=config.clip_norm
        )
        self.rounds = Rounds(config, run, run.sampler(config.sampling), *problems, scorers)
        shape = packed_shape(
            run.model.kernel, rows=config.micro_rows or batch_axis_size(run.mesh),
            tokens=config.row_tokens, prompt=max(map(len, self.rounds.prompts)),
            response=config.max_tokens,
        )  # fmt: skip
        self.learner = PolicyLearner(
            run.model, optimizer, loss, temperature=config.temperature, shape=shape, mesh=run.mesh
        )
        self.state = init_state(run.model, optimizer, run.mesh, params=trainable)

    def step(self, state, reference, step: int, upcoming: _Upcoming, pool: RewardPool):
        """One step: (state, what is upcoming then, metrics)."""
        config, clock = self.config, [time.perf_counter()]
        params, made = lora.join(self.frozen, state.params), upcoming.experience
        made = made or self.experience(params, step, upcoming.position, pool)
        rollout, adv_B, position, values = made
        goes_on = step + 1 < config.steps
        begun = (
            self.rounds.sample(params, step + 1, position, pool)
            if config.ahead and goes_on
            else None
        )
        clock.append(time.perf_counter())
        rollout, importance_BT, corrected = self.corrected(params, rollout)
        ref_logp_BT = None
        if reference is not None:
            ref_logp_BT = self.learner.logprobs(lora.join(self.frozen, reference), rollout)
        clock.append(time.perf_counter())
        rng, sums = self.run.generator("minibatches", step), {}
        lr = config.lr * warmup(step, config.warmup_steps)
        rows_PG = np.arange(len(adv_B)).reshape(-1, config.group_size)
        for _ in range(config.epochs):
            for groups in np.split(rng.permutation(len(rows_PG)), config.minibatches):
                chosen = rows_PG[groups].ravel()
                state, metrics = self.learner.update(
                    state, self.frozen, rollout, chosen, adv_B, ref_logp_BT, lr, importance_BT
                )
                # Fetching waits for the update: on fake CPU devices a queue of steps with
                # collectives can deadlock.
                for name, value in jax.device_get(metrics).items():
                    sums[name] = sums.get(name, 0.0) + float(value)
        clock.append(time.perf_counter())
        upcoming = _Upcoming(position)
        if begun is not None:
            params = lora.join(self.frozen, state.params)
            made = self.experience(params, step + 1, position, pool, begun)
            upcoming = _Upcoming(position, made)
        clock.append(time.perf_counter())
        updates = config.minibatches * config.epochs
        values = values | corrected
        values["compute/flops"] += self.update_flops(rollout)
        values |= {f"loss/{name}": value / updates for name, value in sums.items()}
        values["lr"] = lr
        values["throughput/tokens_per_s"] = values["rollout/tokens"] / (clock[-1] - clock[0])
        phases = ("rollout", "reference", "update", *(["rewards"] if config.ahead else []))
        for name, seconds in zip(phases, np.diff(clock), strict=False):
            values[f"throughput/{name}_s"] = float(seconds)
        return state, upcoming, values

    def corrected(self, params, rollout: Rollout):
        """(rollout, weights of its tokens, metrics) for an update that starts from `params`.

        Without `importance_cap` the rollout as it is, and no weights.
        """
        if not (cap := self.config.importance_cap):
            return rollout, None, {}
        old_logp_BT = self.learner.logprobs(params, rollout)
        importance_BT, metrics = truncated_importance(
            old_logp_BT, rollout.logp_BT, rollout.mask_BT, cap=cap
        )
        metrics = {f"rollout/{name}": value for name, value in metrics.items()}
        return rollout._replace(logp_BT=old_logp_BT), importance_BT, metrics

    def experience(
        self, params, step: int, position: int, pool: RewardPool, begun: Begun | None = None
    ) -> _Experience:
        """Rollout, rewards and advantages of a step, whose questions begin at `position`.

        With dynamic sampling, rounds of further questions replace the groups whose rewards are
        all equal; what is missing after the last round is filled with such. `begun` is the
        first round, where it was sampled before.
        """
        config, G = self.config, self.config.group_size
        P, useful, useless, statistics = config.prompts_per_rollout, [], [], []
        for _ in range(config.max_sampling_rounds if config.dynamic_sampling else 1):
            begun = begun or self.rounds.sample(params, step, position, pool)
            rollout, adv_B, values = self.rounds.judged(begun, step, pool)
            begun, position = None, position + 1
            statistics.append(values)
            equal_P = ~adv_B.reshape(P, G).any(axis=1)
            for group in range(P):
                part = slice(group * G, (group + 1) * G)
                group_of = (Rollout(*(x[part] for x in rollout)), adv_B[part])
                (useless if equal_P[group] else useful).append(group_of)
            if len(useful) >= P:
                break
        chosen = useful + useless if config.dynamic_sampling else None
        names = dict.fromkeys(name for s in statistics for name in s)
        values = {k: float(np.mean([s[k] for s in statistics if k in s])) for k in names}
        values["rollout/rounds"] = len(statistics)
        for name in ("rollout/tokens", "compute/flops"):
            values[name] = float(sum(s[name] for s in statistics))
        if chosen is None:
            return _Experience(rollout, adv_B, position, values)
        return _Experience(
            join([rollout for rollout, _ in chosen[:P]]),
            np.concatenate([adv for _, adv in chosen[:P]]), position, values,
        )  # fmt: skip

    def update_flops(self, rollout: Rollout) -> float:
        """Of a step, what follows sampling."""
        config = self.config
        return compute.policy_update_flops(
            self.run.model.config, rollout.prompt_length_B, rollout.length_B,
            group_size=config.group_size, epochs=config.epochs, reference=bool(config.kl_coef),
            rescored=bool(config.importance_cap), adapters=bool(config.lora.rank),
        )  # fmt: skip
