"""Process reward models and value models: a score after every step, from Monte Carlo labels.

The model's own responses are cut after each step, continued several times, and the share of
continuations that come to the right answer labels the step (`search.labels`). A process reward
model learns whether a step can still lead there, a value model how often it does.

Sources: arXiv:2312.08935 (labels without people); arXiv:2501.12948, section 4.2 (why neither
became part of R1).
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.data import packing
from r1jax.data.epochs import Epochs
from r1jax.data.mixing import Mixture
from r1jax.data.packing import Document
from r1jax.learner import init_state, scoring_step
from r1jax.metrics import auc
from r1jax.models import scoring
from r1jax.optim import adamw, warm_cosine
from r1jax.rewards.graders import check_ready
from r1jax.rewards.pool import RewardPool
from r1jax.run import Run
from r1jax.sampling.engine import SamplingConfig
from r1jax.scoring import Scorer
from r1jax.search.engine import Growth, sigmoid
from r1jax.search.labels import LABELS, Labelled, label, prefixes
from r1jax.search.steps import boundary_ids
from r1jax.sharding import check_rows, rows
from r1jax.types import Array
from r1jax.writers import read_lines, replace

log = logging.getLogger("r1jax")

SCOPES = ("steps", "value")


@dataclass(frozen=True)
class ProcessConfig:
    """`samples` responses to every problem, `continuations` of every prefix of them, with at
    most `max_tokens` tokens a response; a step ends with `separator`.

    `scope` "steps" trains a process reward model, by default on hard labels, "value" a value
    model, on soft ones. The last `held_out` problems are measured and not trained on. Packed
    rows of `row_tokens`, `batch_rows` a step, cosine from `lr` to `lr_end` over `epochs`.
    """

    problems: str
    max_tokens: int
    row_tokens: int
    scope: str = "steps"
    labels: str = ""
    samples: int = 8
    continuations: int = 8
    temperature: float = 1.0
    separator: str = "\n"
    held_out: int = 64
    problems_at_once: int = 64
    workers: int = 0
    rows: int = 512
    chunk: int = 32
    cache_mb: int = 0
    batch_rows: int = 16
    epochs: int = 2
    lr: float = 1e-3
    lr_end: float = 1e-4
    warmup_steps: int = 0
    b2: float = 0.95
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    checkpoint_every: int = 500
    log_every: int = 10

    def __post_init__(self):
        for name, known in (("scope", SCOPES), ("labels", ("", *LABELS))):
            if (value := getattr(self, name)) not in known:
                choices = ", ".join(map(repr, known))
                raise ValueError(f"{name}={value!r} is unknown; known: {choices}")
        for name in (
            "row_tokens", "samples", "continuations", "held_out", "problems_at_once", "batch_rows",
            "epochs", "checkpoint_every", "log_every",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("warmup_steps", "workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if not self.temperature > 0:
            raise ValueError(
                f"temperature={self.temperature} must be positive: equal continuations say nothing"
            )
        if not self.lr > 0:
            raise ValueError(f"lr={self.lr} must be positive")
        self.sampling  # noqa: B018 - its own checks

    @property
    def sampling(self) -> SamplingConfig:
        return SamplingConfig(
            self.max_tokens, temperature=self.temperature, rows=self.rows, chunk=self.chunk,
            cache_mb=self.cache_mb,
        )  # fmt: skip

    @property
    def kind(self) -> str:
        """Of the labels."""
        return self.labels or {"steps": "hard", "value": "soft"}[self.scope]


class StepBatch(NamedTuple):
    """Packed rows, with a label where a step ends."""

    tokens_BT: np.ndarray
    positions_BT: np.ndarray
    segments_BT: np.ndarray
    label_BT: np.ndarray  # float32, in [0, 1]
    mask_BT: np.ndarray  # float32: 1 where a step ends


def step_loss(score_BT: Array, batch: StepBatch) -> tuple[Array, dict[str, Array]]:
    """Binary cross-entropy at the ends of steps, in nats: mean over all steps of the batch.

        −(1/steps) Σ [ y log σ(s) + (1 − y) log σ(−s) ]

    Labels y may be shares. 0 without any step. The metric `nll` is the loss.
    """
    steps = jnp.maximum(jnp.sum(batch.mask_BT), 1)
    score_BT = jnp.where(batch.mask_BT > 0, score_BT, 0)
    right, wrong = jax.nn.log_sigmoid(score_BT), jax.nn.log_sigmoid(-score_BT)
    nats_BT = -(batch.label_BT * right + (1 - batch.label_BT) * wrong)
    loss = jnp.sum(nats_BT * batch.mask_BT) / steps
    return loss, {"nll": loss}


def run(config: ProcessConfig, run: Run, problems: Sequence[Mapping] | Mixture, params) -> dict:
    """Labels steps of the responses of `params` to `problems`; returns a score model's parameters.

    Labels are made once, in parts of `problems_at_once` problems, and kept in
    `data/STAGE.labels.jsonl`; an interrupted stage goes on after the last whole part. Raises
    ValueError for what `check` finds, and for responses that fill too few rows for a batch.
    """
    check(config, run, problems)
    problems = problems.problems if isinstance(problems, Mixture) else list(problems)
    labelled = _Labeller(config, run, problems)(params)
    held = len(problems) - config.held_out
    training = [x for x in labelled if x.problem < held]
    measure = _Measure(config, run, problems, [x for x in labelled if x.problem >= held])
    return _train(config, run, problems, training, params, measure)


def check(config: ProcessConfig, run: Run, problems: Sequence[Mapping] | Mixture) -> None:
    """Raises ValueError, before anything is sampled, for settings that cannot work.

    These are prompts that do not fit the model's context, rows too short for a response or that
    the mesh cannot cut, and too few problems to hold some out and fill a batch with the rest.
    """
    check_rows(run.mesh, batch_rows=config.batch_rows)
    problems = problems.problems if isinstance(problems, Mixture) else list(problems)
    if len(problems) <= config.held_out:
        raise ValueError(
            f"{len(problems)} problems, of which held_out={config.held_out} are held out: give "
            "more, or lower held_out"
        )
    # How long they will be nobody knows: no fewer than one a row.
    responses = (len(problems) - config.held_out) * config.samples
    if responses < config.batch_rows:
        raise _too_few(config, responses)
    names = len(problems) * config.samples * config.max_tokens
    if names > 2**31:
        raise ValueError(
            f"{len(problems)} problems × samples={config.samples} × max_tokens={config.max_tokens} "
            f"= {names} places to continue from, more than the {2**31} that have random keys of "
            "their own; lower one of them"
        )
    check_ready(problems)
    _Labeller(config, run, problems)


def _too_few(config: ProcessConfig, responses: int) -> ValueError:
    return ValueError(
        f"{responses} responses fill fewer than batch_rows={config.batch_rows} rows of "
        f"row_tokens={config.row_tokens}; lower batch_rows, or give more problems or samples"
    )


class _Labeller:
    """Makes the labels, or reads those that were made.

    Raises ValueError for prompts that do not fit the model's context, and rows too short for a
    response.
    """

    def __init__(self, config: ProcessConfig, run: Run, problems: Sequence[Mapping]):
        self.config, self.run, self.problems = config, run, problems
        self.path = run.workdir / "data" / f"{run.stage}.labels.jsonl"
        self.prompts = [run.prompt(p["question"]) for p in problems]
        run.sampler(config.sampling).check(self.prompts)
        self.boundaries = boundary_ids(run.tokenizer, config.separator)
        self.growth = Growth(
            run, config.sampling, self.boundaries, step_tokens=1, prompts=self.prompts
        )
        longest = max(map(len, self.prompts)) + config.max_tokens
        if longest > config.row_tokens:
            raise ValueError(
                f"row_tokens={config.row_tokens} is less than the longest prompt with max_tokens="
                f"{config.max_tokens} tokens of response: raise it to {longest}"
            )

    def __call__(self, params) -> list[Labelled]:
        config, total = self.config, len(self.problems)
        names = ("problems", "max_tokens", "samples", "continuations", "temperature", "separator")
        about = {k: v for k, v in asdict(config).items() if k in (*names, "problems_at_once")}
        about |= {"count": total, "seed": self.run.seed}
        kept, done = self._kept(about)
        self.path.parent.mkdir(exist_ok=True)
        # Written anew, without half a part that a kill left, then appended to.
        lines = [{"settings": about}, *(x.row() for x in kept)]
        replace(self.path, "".join(json.dumps(x) + "\n" for x in lines))
        bar = self.run.writer.bar(total, f"{self.run.stage} (labels)", done=done, unit="problem")
        with (
            bar,
            self.path.open("a", encoding="utf-8") as file,
            RewardPool({"accuracy": 1.0}, config.workers) as pool,
        ):
            for start in range(done, total, config.problems_at_once):
                chosen = range(start, min(start + config.problems_at_once, total))
                part = list(self.part(params, chosen, pool))
                file.write("".join(json.dumps(x.row()) + "\n" for x in part))
                file.flush()
                kept += part
                bar.update(len(chosen))
        return kept

    def _kept(self, about: Mapping) -> tuple[list[Labelled], int]:
        """(labels of whole parts that were made with the same settings, problems in them)."""
        lines = read_lines(self.path) if self.path.exists() else []
        if not lines or lines[0].get("settings") != about:
            if lines:
                log.info("%s: labels of other settings are made anew", self.path)
            return [], 0
        kept, at_once = [Labelled.of(row) for row in lines[1:]], self.config.problems_at_once
        done = len(kept) // self.config.samples
        if done < len(self.problems):
            done -= done % at_once
        return kept[: done * self.config.samples], done

    def part(self, params, chosen: range, pool: RewardPool):
        """Labelled responses to the problems `chosen`."""
        config, run = self.config, self.run
        grown = self.growth(
            params, [(p, ()) for p in chosen], config.samples, run.key("responses"), list(chosen),
            whole=True,
        )  # fmt: skip
        responses = {
            (p, j): tokens for p, group in zip(chosen, grown, strict=True)
            for j, tokens in enumerate(group)
        }  # fmt: skip
        boundaries = frozenset(self.boundaries)
        first_use = prefixes(responses, boundaries)
        states = list(first_use)
        # Each is named by its place alone: so its continuations, and with them the labels,
        # depend on no other problem and not on `problems_at_once`.
        ids = [
            (p * config.samples + sample) * config.max_tokens + end
            for (p, _), (sample, end) in first_use.items()
        ]
        grown = self.growth(
            params, states, config.continuations, run.key("continuations"), ids, whole=True
        )
        asked = [(p, tokens) for (p, _), tokens in responses.items()]
        asked += [(p, t) for (p, _), group in zip(states, grown, strict=True) for t in group]
        right = self.graded(asked, pool)
        right_k = np.array(right[len(responses) :]).reshape(len(states), config.continuations)
        shares = dict(zip(states, right_k.mean(axis=1).tolist(), strict=True))
        return label(responses, dict(zip(responses, right, strict=False)), shares, boundaries)

    def graded(self, asked: Sequence[tuple[int, tuple[int, ...]]], pool: RewardPool) -> list[bool]:
        """Whether each (problem, whole response) is right."""
        given = [
            (self.problems[p], self.run.response(tokens, not self.growth.ended(tokens)))
            for p, tokens in asked
        ]
        return [bool(parts["accuracy"]) for parts in pool.score_all(*zip(*given, strict=True))]


class _Measure:
    """How well a score model predicts the labels of held-out problems."""

    def __init__(self, config: ProcessConfig, run: Run, problems, labelled: Sequence[Labelled]):
        self._scorer, self._labelled = Scorer(run, run.model), labelled
        self._documents = [_document(run, problems, x) for x in labelled]
        self._label_n = np.array([y for x in labelled for y in x.labels(config.kind)])

    def __call__(self, params) -> dict[str, float]:
        """`process/…`: nll, accuracy (both sides of ½), Brier score, AUC, share of positives."""
        found = self._scorer(params, self._documents)
        score_n = np.concatenate(
            [
                score_T[document.prompt + np.array(x.ends)]
                for x, document, score_T in zip(self._labelled, self._documents, found, strict=True)
            ]
        )
        label_n, p_n = self._label_n, sigmoid(score_n)
        sure_n = np.clip(p_n, 1e-12, 1 - 1e-12)
        nll = -(label_n * np.log(sure_n) + (1 - label_n) * np.log(1 - sure_n)).mean()
        return {
            "process/nll": float(nll),
            "process/accuracy": float(np.mean((p_n > 0.5) == (label_n > 0.5))),
            "process/brier": float(np.mean((p_n - label_n) ** 2)),
            "process/auc": auc(score_n, label_n > 0.5),
            "process/positive": float(np.mean(label_n > 0.5)),
        }


def _document(run: Run, problems: Sequence[Mapping], labelled: Labelled) -> Document:
    """The sampled ids themselves behind the prompt."""
    prompt = run.prompt(problems[labelled.problem]["question"])
    return Document([*prompt, *labelled.tokens], len(prompt))


def pack(
    documents: Sequence[Document], labelled: Sequence[Labelled], rows, row_tokens: int, kind: str
) -> StepBatch:
    """Rows of documents (see `packing.plan`) with the labels of their steps."""
    packed = packing.pack(documents, rows, row_tokens)
    label_BT = np.zeros(packed.tokens_BT.shape, np.float32)
    mask_BT = np.zeros_like(label_BT)
    for r, members in enumerate(rows):
        at = 0
        for i in members:
            ends = at + documents[i].prompt + np.array(labelled[i].ends)
            label_BT[r, ends], mask_BT[r, ends] = labelled[i].labels(kind), 1
            at += len(documents[i].tokens)
    return StepBatch(packed.tokens_BT, packed.positions_BT, packed.segments_BT, label_BT, mask_BT)


def _train(config: ProcessConfig, run: Run, problems, labelled, params, measure: _Measure):
    """Trains all parameters and the head; resumable as any training is."""
    documents = [_document(run, problems, x) for x in labelled]
    epochs = Epochs(
        documents, row_tokens=config.row_tokens, batch_rows=config.batch_rows,
        epochs=config.epochs, seed=run.seed,
    )  # fmt: skip
    if not (total := len(epochs)):
        raise _too_few(config, len(documents))
    optimizer = adamw(b2=config.b2, weight_decay=config.weight_decay, clip_norm=config.clip_norm)
    update = scoring_step(run.model, optimizer, step_loss)
    state = init_state(run.model, optimizer, run.mesh, params=scoring.with_score(params))
    with run.checkpoints(extra=scoring.about(config.scope)) as checkpoints:
        if restored := checkpoints.restore(state):
            state = restored[0]
        done = int(state.step)
        run.writer.rewind(run.stage, done if restored else -1)
        if not restored:
            run.writer.metrics(run.stage, 0, measure(state.params))
        with run.writer.bar(total, run.stage, done=done) as bar:
            for step in range(done + 1, total + 1):
                members = epochs.batch(step - 1)
                batch = pack(documents, labelled, members, config.row_tokens, config.kind)
                batch = jax.device_put(batch, rows(run.mesh))
                lr = warm_cosine(
                    step - 1, total, lr=config.lr, lr_end=config.lr_end,
                    warmup_steps=config.warmup_steps,
                )  # fmt: skip
                state, metrics = update(state, batch, lr)
                bar.update()
                save = step == total or step % config.checkpoint_every == 0
                if save or step % config.log_every == 0:
                    values = {f"loss/{k}": float(v) for k, v in metrics.items()} | {"lr": lr}
                    values |= measure(state.params) if save else {}
                    run.writer.metrics(run.stage, step, values)
                    bar.set_postfix(loss=f"{values['loss/nll']:.3f}")
                if save:
                    checkpoints.save(state, {})
    return state.params
