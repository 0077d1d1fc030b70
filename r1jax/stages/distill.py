"""Distillation against a teacher's distribution over tokens, beside its samples.

Off-policy the student learns on given responses, such as a curated set; the teacher says at every
token of them what it might have written instead. On-policy (GKD, arXiv:2306.13649, algorithm 1)
the student answers problems itself and the teacher scores that: the student learns where its
own mistakes lead it. Plain fine-tuning on the teacher's responses, the paper's distillation
(arXiv:2501.12948, section 2.4), is the stage `sft`.

Teacher and student may differ in family and size. They share the tokenizer: a token id has to
mean the same to both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np

from r1jax import compute
from r1jax.data.epochs import example_epochs
from r1jax.data.mixing import Mixture
from r1jax.data.packing import Document, Packed, pack, plan
from r1jax.divergence import check_divergence, head_divergence
from r1jax.learner import LAYOUT, apply_gradients, init_state
from r1jax.logprobs import head_logprobs
from r1jax.losses import distillation_loss, sft_loss
from r1jax.models import lora
from r1jax.models.decoder import Decoder
from r1jax.models.lora import LoraConfig
from r1jax.optim import OPTIMIZERS, Optimizer, warm_cosine
from r1jax.rewards import reflection
from r1jax.run import Run
from r1jax.sampling.engine import SamplingConfig
from r1jax.sharding import check_rows, rows
from r1jax.types import Counts, TrainState

MODES = ("off_policy", "on_policy")


@dataclass(frozen=True)
class DistillConfig:
    """What the student reads, and how far it is held to be from the teacher.

    `mode` "off_policy" reads `examples`, `epochs` times or for `steps` steps, of `batch_rows`
    packed rows of `row_tokens`. "on_policy" takes `steps` steps; in each the student answers
    `prompts_per_step` of `problems` `samples` times at `sampling_temperature`, and learns from all
    of these responses in one update, `batch_rows` rows at a time.

    `divergence`, `beta` and `temperature` are those of `r1jax.divergence`: "forward", "reverse"
    or "jsd". `sft_weight` adds so much of the negative log-likelihood of the given responses
    (off-policy only). The rate goes on a cosine from `lr` to `lr_end`. With `lora.rank` adapters
    are trained and nothing else.
    """

    teacher: str
    mode: str = "off_policy"
    examples: str = ""
    problems: str = ""
    divergence: str = "forward"
    beta: float = 0.5
    temperature: float = 1.0
    sft_weight: float = 0.0
    row_tokens: int = 1024
    batch_rows: int = 16
    epochs: int = 2
    steps: int = 0
    prompts_per_step: int = 64
    samples: int = 1
    max_tokens: int = 0
    sampling_temperature: float = 1.0
    lr: float = 5e-5
    lr_end: float = 5e-6
    warmup_steps: int = 0
    optimizer: str = "adamw"
    b2: float = 0.95
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    checkpoint_every: int = 100
    log_every: int = 10
    rows: int = 512  # decoded at a time
    chunk: int = 32  # tokens decoded between two looks of the host
    cache_mb: int = 0  # memory for keys and values while decoding (0: whatever `rows` take)
    lora: LoraConfig = field(default_factory=LoraConfig)

    def __post_init__(self):
        for name, known in (("mode", MODES), ("optimizer", OPTIMIZERS)):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name}={value!r} is unknown; known: {', '.join(known)}")
        check_divergence(self.divergence, self.beta)
        for name in (
            "row_tokens", "batch_rows", "epochs", "prompts_per_step", "samples", "checkpoint_every",
            "log_every",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("sft_weight", "steps", "warmup_steps", "lr_end", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        for name in ("lr", "temperature", "sampling_temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")
        wanted, other = ("problems", "examples") if self.on_policy else ("examples", "problems")
        if not getattr(self, wanted) or getattr(self, other):
            raise ValueError(f"mode={self.mode!r} reads {wanted}: set it, and not {other}")
        if self.on_policy:
            if not self.steps:
                raise ValueError("mode='on_policy' has no epochs: set steps")
            if self.sft_weight:
                raise ValueError(
                    f"sft_weight={self.sft_weight}: on-policy there are no given responses; set it "
                    "to 0, or mode='off_policy'"
                )
            self.sampling  # noqa: B018 - its own checks

    @property
    def on_policy(self) -> bool:
        return self.mode == "on_policy"

    @property
    def sampling(self) -> SamplingConfig:
        return SamplingConfig(
            self.max_tokens, temperature=self.sampling_temperature, rows=self.rows,
            chunk=self.chunk, cache_mb=self.cache_mb,
        )  # fmt: skip


def run(
    config: DistillConfig,
    run: Run,
    data: Sequence[Mapping] | Mixture,
    params,
    *,
    teacher_params,
    teacher_model: Decoder,
) -> dict:
    """Trains `params` on examples, or on problems (on-policy); returns the final parameters.

    Raises ValueError, before anything is compiled, for what `check` finds, rows that the mesh
    cannot cut, and a teacher that does not know all of the tokenizer's ids.
    """
    check_rows(run.mesh, batch_rows=config.batch_rows)
    vocabulary = shared_vocabulary(run, teacher_model)
    source = _source(config, run, data)
    optimizer = OPTIMIZERS[config.optimizer](
        b2=config.b2, weight_decay=config.weight_decay, clip_norm=config.clip_norm
    )
    learner = DistillationLearner(config, run, teacher_model, optimizer, vocabulary)
    frozen, trainable = lora.split(params, config.lora, run.key("lora"))
    state, flops = init_state(run.model, optimizer, run.mesh, params=trainable), 0.0
    with run.checkpoints(lora=config.lora) as checkpoints:
        if restored := checkpoints.restore(state):
            state, meta, _ = restored
            flops = meta["flops"]
        done, total = int(state.step), source.steps
        run.writer.rewind(run.stage, done)
        with run.writer.bar(total, run.stage, done=done) as bar:
            for step in range(done, total):
                packed, values = source(lora.join(frozen, state.params), step)
                lr = warm_cosine(
                    step, total, lr=config.lr, lr_end=config.lr_end,
                    warmup_steps=config.warmup_steps,
                )  # fmt: skip
                state, metrics = learner.update(state, frozen, teacher_params, packed, lr)
                flops += values.pop("flops") + _update_flops(config, run, teacher_model, packed)
                bar.update()
                last = step + 1 == total
                if last or (step + 1) % config.log_every == 0:
                    values |= {f"loss/{k}": float(v) for k, v in metrics.items()}
                    values |= {"lr": lr, "compute/flops": flops}
                    run.writer.metrics(run.stage, step + 1, values)
                    bar.set_postfix(divergence=f"{values['loss/divergence']:.3f}")
                if last or (step + 1) % config.checkpoint_every == 0:
                    checkpoints.save(state, {"flops": flops})
    return lora.join(frozen, state.params)


def check(config: DistillConfig, run: Run, data: Sequence[Mapping] | Mixture) -> None:
    """Raises ValueError for documents or prompts that do not fit, and for too few examples."""
    _source(config, run, data)


def shared_vocabulary(run: Run, teacher: Decoder) -> int:
    """Token ids that both models know; tables are padded beyond the tokenizer's differently."""
    known, student, teacher = (
        run.tokenizer.vocabulary, run.model.config.vocabulary, teacher.config.vocabulary
    )  # fmt: skip
    if teacher < known:
        raise ValueError(
            f"the teacher's vocabulary is {teacher}, but the student's tokenizer has {known} ids: "
            "it is another model's tokenizer; take a teacher and a student that share one"
        )
    return min(student, teacher)


class DistillationLearner:
    """Updates in micro-batches of `batch_rows` rows against a teacher, which is constant."""

    def __init__(
        self,
        config: DistillConfig,
        run: Run,
        teacher: Decoder,
        optimizer: Optimizer,
        vocabulary: int,
    ):
        self._config, self._mesh = config, run.mesh
        model, V = run.model, vocabulary

        def table(model, params):
            table_DV = model.head(params)
            return table_DV if table_DV.shape[1] == V else table_DV[:, :V]

        def loss_of(trainable, frozen, teacher_params, batch: Packed, whole: Counts):
            params, tokens_BT = lora.join(frozen, trainable), batch.tokens_BT
            places = {"positions_BT": batch.positions_BT, "segments_BT": batch.segments_BT}
            hidden_BTD, _, statistics = model.forward(params, tokens_BT, **places)
            teacher_BTd, _, _ = teacher.forward(teacher_params, tokens_BT, **places)
            student = (hidden_BTD[:, :-1], table(model, params))
            divergence_BT = head_divergence(
                *student, teacher_BTd[:, :-1], table(teacher, teacher_params),
                divergence=config.divergence, beta=config.beta, temperature=config.temperature,
                layout=LAYOUT,
            )  # fmt: skip
            mask_BT = batch.mask_BT[:, 1:]
            loss, metrics = distillation_loss(divergence_BT, mask_BT, whole=whole)
            if config.sft_weight:
                logp_BT = head_logprobs(*student, tokens_BT[:, 1:], layout=LAYOUT)
                nll, more = sft_loss(logp_BT, mask_BT, whole=whole)
                loss, metrics = loss + config.sft_weight * nll, metrics | more
            return loss, (metrics | {"total": loss}, statistics)

        gradient = jax.grad(loss_of, has_aux=True)

        def accumulate(sums, *arguments):
            return jax.tree.map(jnp.add, sums, gradient(*arguments))

        self._first = jax.jit(gradient)
        self._accumulate = jax.jit(accumulate, donate_argnums=0)
        self._apply = jax.jit(partial(apply_gradients, model, optimizer), donate_argnums=0)

    def update(
        self, state: TrainState, frozen, teacher_params, packed: list[list[Document]], lr: float
    ):
        """(state, metrics) after one update on rows of documents, as one batch."""
        documents = [d for row in packed for d in row]
        ends = np.cumsum([0, *map(len, packed)]).tolist()
        members = [list(range(a, b)) for a, b in pairwise(ends)]
        size = self._config.batch_rows
        members += [[]] * (-len(members) % size)
        tokens = sum(len(d.tokens) - max(d.prompt, 1) for d in documents)
        whole, sums = Counts(np.float32(len(packed)), np.float32(tokens)), None
        for at in range(0, len(members), size):
            batch = pack(documents, members[at : at + size], self._config.row_tokens)
            batch = jax.device_put(batch, rows(self._mesh))
            arguments = (state.params, frozen, teacher_params, batch, whole)
            sums = self._accumulate(sums, *arguments) if sums else self._first(*arguments)
        grads, (metrics, statistics) = sums
        state, norm = self._apply(state, frozen, grads, statistics, lr)
        return state, jax.device_get(metrics | {"gradient_norm": norm})


def _source(config: DistillConfig, run: Run, data):
    return (_Sampled if config.on_policy else _Given)(config, run, data)


class _Given:
    """Rows of given examples, every epoch in an order of its own."""

    def __init__(self, config: DistillConfig, run: Run, examples: Sequence[Mapping]):
        self._epochs = example_epochs(
            run, examples, row_tokens=config.row_tokens, batch_rows=config.batch_rows,
            epochs=config.epochs,
        )  # fmt: skip
        self.steps = min(config.steps, len(self._epochs)) if config.steps else len(self._epochs)

    def __call__(self, params, step: int) -> tuple[list[list[Document]], dict[str, float]]:
        """(rows of documents of a step, metrics)."""
        documents = self._epochs.documents
        return [[documents[i] for i in row] for row in self._epochs.batch(step)], {"flops": 0.0}


class _Sampled:
    """Rows of the student's own responses to problems."""

    def __init__(self, config: DistillConfig, run: Run, problems: Sequence[Mapping] | Mixture):
        self._config, self._run, self.steps = config, run, config.steps
        if not isinstance(problems, Mixture):
            problems = Mixture({"": problems}, {"": 1}, run.seed)
        self._stream = problems
        self._prompts = [run.prompt(p["question"]) for p in problems.problems]
        self._sampler = run.sampler(config.sampling)
        self._sampler.check(self._prompts)
        longest = max(map(len, self._prompts)) + config.max_tokens
        if longest > config.row_tokens:
            raise ValueError(
                f"a prompt with a response of max_tokens={config.max_tokens} can have {longest} "
                f"tokens, more than row_tokens={config.row_tokens}; raise it to {longest}"
            )

    def __call__(self, params, step: int) -> tuple[list[list[Document]], dict[str, float]]:
        """As `_Given`; the same for a step whenever it is asked."""
        config, run = self._config, self._run
        P, G = config.prompts_per_step, config.samples
        prompts = [self._prompts[i] for i in self._stream.indices(step, P)]
        rollout = self._sampler(
            params, prompts, run.key("rollout"), prompt_ids=step * P + np.arange(P), group_size=G
        )
        documents = [
            Document([*prompts[row // G], *tokens[:n].tolist()], len(prompts[row // G]))
            for row, (tokens, n) in enumerate(zip(rollout.tokens_BT, rollout.length_B, strict=True))
        ]
        planned = plan([len(d.tokens) for d in documents], config.row_tokens)
        tokens = float(rollout.length_B.sum())
        return [[documents[i] for i in row] for row in planned], {
            "rollout/length": float(rollout.length_B.mean()),
            "rollout/truncated": float(rollout.truncated_B.mean()),
            "rollout/reflections": float(
                np.mean([reflection.count(r.text) for r in run.responses(rollout)])
            ),
            "rollout/entropy": -float(rollout.logp_BT.sum()) / tokens,
            "rollout/tokens": tokens,
            "flops": compute.sampling_flops(
                run.model.config, rollout.prompt_length_B, rollout.length_B, group_size=G
            ),
        }


def _update_flops(config: DistillConfig, run: Run, teacher: Decoder, packed) -> float:
    documents = [d for row in packed for d in row]
    return compute.distillation_flops(
        run.model.config, teacher.config, [d.prompt for d in documents],
        [len(d.tokens) - d.prompt for d in documents], adapters=bool(config.lora.rank),
    )  # fmt: skip
