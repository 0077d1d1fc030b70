"""Rejection sampling: responses of a model that are worth learning from, as a file of examples.

Several responses to every question are sampled; kept are correct ones that no filter rejects
(arXiv:2501.12948, section 2.3.3), rewritten into the readable pattern where that is asked for
(section 2.3.1: so the cold start's data are collected from R1-Zero). Where no rule decides, a
model judges, given a reference and the prediction.

Questions are worked through in batches, and each batch is on disk before the next begins.
A response is a function of the seed, its question, the way it was asked and its number, so a run
that was stopped goes on with the next batch and ends with the same file, byte for byte.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from r1jax.compute import sampling_flops
from r1jax.data.mixing import Mixture
from r1jax.data.progress import BatchProgress, signature
from r1jax.data.prompting import WAYS, Asker, ask_to_rewrite
from r1jax.data.sources import fingerprint
from r1jax.data.tasks import TASKS
from r1jax.judging import GRADED, Judge, Verifier, needs_judge, prediction
from r1jax.rewards import Response, sections, whole_text
from r1jax.rewards.filters import DEFAULT, check_filters, rejections
from r1jax.rewards.graders import check_ready
from r1jax.rewards.hints import hint
from r1jax.rewards.judge import agreement
from r1jax.rewards.pool import RewardPool
from r1jax.run import Run
from r1jax.sampling.engine import SamplingConfig

REWRITE_MODEL, REWRITE_TASK = "model", "task:"
SELF = "self"
JOINED = ("question", "response", "source")  # of an example from elsewhere


@dataclass(frozen=True)
class RejectionConfig:
    """`samples` responses to each question of `problems` in each of the ways `prompts`.

    `problems` is a source or a mixture (`data.sources`), of which every problem is asked once; with
    `questions` only the first so many, in the mixture's order. `prompts` are out of
    `data.prompting.WAYS`; few_shot shows `shots` worked examples of the source `shots_from`.
    `rewrite` is '' (responses as they are), 'model' (the model rewrites its own) or 'task:NAME'
    (the synthetic family's `readable`); what is rewritten has to be correct still. `filters` (of
    `rewards.filters`) are asked in their order, of the text as it would be kept. At most `keep`
    responses to a question stay, drawn at random.

    Open problems (no rule decides, there is a reference) are judged by `judge`: 'self', the
    model that samples, or another one's name; without one they are left out and counted. It
    answers in at most `judge_tokens` tokens. `judge_audit` samples that a rule decides are given
    to the judge as well, which tells how far it can be trusted.

    The examples of the sources `extra` are joined to what is kept. `batch_prompts` questions are
    worked through between two saves; `workers` processes grade (0: this one).
    """

    problems: str
    max_tokens: int
    samples: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    questions: int = 0
    prompts: tuple[str, ...] = ("plain",)
    shots_from: str = ""
    shots: int = 2
    rewrite: str = ""
    filters: tuple[str, ...] = DEFAULT
    keep: int = 4
    judge: str = ""
    judge_tokens: int = 64
    judge_audit: int = 0
    extra: tuple[str, ...] = ()
    batch_prompts: int = 256
    workers: int = 0
    rows: int = 512  # decoded at a time
    chunk: int = 32  # tokens decoded between two looks of the host
    cache_mb: int = 0  # memory for keys and values while decoding (0: whatever `rows` take)

    def __post_init__(self):
        for name in ("samples", "keep", "shots", "judge_tokens", "batch_prompts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("questions", "judge_audit", "workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if not self.prompts or len(set(self.prompts)) < len(self.prompts):
            raise ValueError(f"prompts={self.prompts}: name each way once, and at least one")
        for way in self.prompts:
            if way not in WAYS:
                raise ValueError(f"prompts: {way!r} is unknown{hint(way, WAYS)}")
        if "few_shot" in self.prompts and not self.shots_from:
            raise ValueError("prompts has 'few_shot': set shots_from, a source of worked examples")
        check_filters(self.filters)
        if self.judge_audit and not self.judge:
            raise ValueError(f"judge_audit={self.judge_audit} needs a judge; set judge='self', say")
        _readable(self.rewrite)
        self.sampling  # noqa: B018 - its own checks

    @property
    def sampling(self) -> SamplingConfig:
        return SamplingConfig(
            self.max_tokens, temperature=self.temperature, top_p=self.top_p, rows=self.rows,
            chunk=self.chunk, cache_mb=self.cache_mb,
        )  # fmt: skip


def run(
    config: RejectionConfig,
    run: Run,
    problems: Sequence[Mapping] | Mixture,
    params,
    *,
    judge=None,
    judge_run: Run | None = None,
    shots: Sequence[Mapping] = (),
    extra: Sequence[Mapping] = (),
) -> dict[str, float]:
    """Writes the kept responses and `extra` to data/STAGE.jsonl; returns counts and rates.

    A row has `question` (bare), `response` (the whole text, with the think tag that the prompt may
    have opened), `id`, `source`, `asked` (the way) and `sample`. One of `extra`, which follow, has
    question, response and `source` as they were given.

    Args:
      judge: parameters of the judge, where the config names one other than 'self'.
      judge_run: model, tokenizer and prompt of the judge; None: those of `run`.
      shots: the examples of `shots_from`.
      extra: examples with `source`, where they are from.

    Returns counts by name; `acceptance_<filter>` is the share that passed it of the correct
    responses that got as far, `judge_agreement` the share of audited ones of which judge and
    rule say the same (no verdict is not the same).

    Raises ValueError, before any sampling, for what `check` refuses and where the judge is
    missing, and RuntimeError, with the counts, where nothing was kept.
    """
    if config.judge == SELF:
        judge = params
    if config.judge and judge is None:
        raise ValueError(f"judge={config.judge!r}: its parameters were not given")
    check(config, run, problems, shots)
    work = _Collector(config, run, problems, params, shots)
    about = {
        "config": asdict(config), "seed": run.seed, "template": asdict(run.template),
        "problems": fingerprint(work.problems), "shots": fingerprint(shots),
        "model": signature(params), "judge": config.judge and signature(judge),
    }  # fmt: skip
    judge = config.judge and Judge(
        judge_run or run, judge, max_tokens=config.judge_tokens, rows=config.rows,
        cache_mb=config.cache_mb,
    )  # fmt: skip
    path = run.workdir / "data" / f"{run.stage}.jsonl"
    with (
        BatchProgress(path.with_suffix(".partial.jsonl"), about) as progress,
        RewardPool(GRADED, config.workers) as pool,
    ):
        _work_through(work, progress, pool, judge or None)
        counts = {name: sum(b[name] for b in progress.batches) for name in progress.batches[0]}
        if not counts["kept"] and not extra:
            raise RuntimeError(
                f"{run.stage}: none of {counts['sampled']} responses was kept: "
                f"{ {name: n for name, n in counts.items() if n} }; start from a better model, "
                "ask in other ways (prompts), or leave a filter out"
            )
        progress.finish(path, [{name: e[name] for name in JOINED} for e in extra])
    counts |= {
        "questions": len(work.problems), "dropped_open": work.dropped, "extra": len(extra),
        "rows": counts["kept"] + len(extra),
    }  # fmt: skip
    return _with_agreement(counts) | _acceptance(config, counts)


def _work_through(
    work: "_Collector", progress: BatchProgress, pool: RewardPool, judge: Judge | None
) -> None:
    """The batches that are still to do, one after the other."""
    run, at_once, total = work.run, work.config.batch_prompts, len(work.problems)
    done = len(progress.batches)
    run.writer.rewind(run.stage, done)
    with run.writer.bar(total, run.stage, done=min(total, done * at_once), unit="question") as bar:
        for at in range(done * at_once, total, at_once):
            places, begun = range(at, min(at + at_once, total)), time.perf_counter()
            rows, counts = work.batch(places, Verifier(pool, judge))
            seconds, step = time.perf_counter() - begun, at // at_once + 1
            values = {f"rejection/{name}": n for name, n in _with_agreement(counts).items()}
            so_far = sum(before["flops"] for before in progress.batches)
            values["compute/flops"] = so_far + values.pop("rejection/flops")
            values["throughput/samples_per_s"] = counts["sampled"] / seconds
            values["throughput/tokens_per_s"] = counts["tokens"] / seconds
            run.writer.metrics(run.stage, step, values)
            if rows:
                run.writer.sample(run.stage, step, rows[0])
            progress.add(rows, counts)
            bar.update(len(places))
            bar.set_postfix_str("{correct} of {sampled} correct, {kept} kept".format(**counts))


def check(
    config: RejectionConfig,
    run: Run,
    problems: Sequence[Mapping] | Mixture,
    shots: Sequence[Mapping] = (),
) -> None:
    """Raises ValueError, with the numbers, for a prompt that leaves no room for a response, for
    too few worked examples, where nothing can be judged, and where this machine cannot grade."""
    chosen, dropped = _to_ask(config, problems)
    if not chosen:
        raise ValueError(
            f"all of the {dropped} problems are open, without a judge or a reference; set judge, "
            "or give references"
        )
    check_ready(chosen)
    asker = Asker(run, shots, config.shots)
    if "few_shot" in config.prompts and len(asker.examples) <= config.shots:
        raise ValueError(
            f"shots={config.shots}, and {len(asker.examples)} different questions are in "
            f"{config.shots_from!r}: it takes one more than are shown; lower shots or give more"
        )
    context = run.model.config.context
    for place, problem in enumerate(chosen):
        for way in config.prompts:
            length = len(asker(place, problem, way).prompt)
            if length + config.max_tokens > context:
                mend = "lower shots" if way == "few_shot" else "shorten it"
                raise ValueError(
                    f"problem {problem['id']!r} asked {way!r} has {length} tokens; with "
                    f"max_tokens={config.max_tokens} that exceeds the model's context of "
                    f"{context}: {mend}, or lower max_tokens"
                )


@dataclass(frozen=True)
class _Candidate:
    """A response to the question at `place`, and whether it is correct."""

    place: int
    way: str
    sample: int
    response: Response
    correct: bool


class _Collector:
    """The questions of one stage, and what is kept of a batch of them."""

    def __init__(self, config: RejectionConfig, run: Run, problems, params, shots):
        self.config, self.run, self.params = config, run, params
        self.asker = Asker(run, shots, config.shots)
        self.problems, self.dropped = _to_ask(config, problems)
        self.sampler = run.sampler(config.sampling)
        self.audited = self._audited()
        self.counts: Counter[str] = Counter()  # of the present batch

    def batch(self, places: Sequence[int], verifier: Verifier) -> tuple[list[dict], dict[str, int]]:
        """(rows, counts) of the questions at `places`."""
        self.counts, judge = Counter(), verifier.judge
        begun = (judge.tokens, judge.flops) if judge else (0, 0.0)
        candidates = self._sample(places, verifier)
        self._audit(candidates, judge)
        correct = [c for c in candidates if c.correct]
        finished = [c for c in correct if not c.response.truncated]
        of_place = {place: [] for place in places}
        for candidate, text in self._rewritten(finished, verifier):
            of_place[candidate.place].append((candidate, text))
        rows = [row for place, found in of_place.items() for row in self._kept(place, found)]
        self.counts.update(
            sampled=len(candidates), correct=len(correct), kept=len(rows),
            truncated=sum(c.response.truncated for c in candidates),
            rejected_truncated=len(correct) - len(finished),
            questions_kept=len({row["id"] for row in rows}),
            tokens=judge.tokens - begun[0] if judge else 0,
            flops=judge.flops - begun[1] if judge else 0.0,
        )  # fmt: skip
        self.counts.update(verifier.counts)
        return rows, {name: self.counts[name] for name in _names(self.config)}

    def _number(self, place: int, way: str) -> int:
        """Of a question asked in one way, in the stage's keys."""
        return place * len(WAYS) + WAYS.index(way)

    def _sample(self, places: Sequence[int], verifier: Verifier) -> list[_Candidate]:
        k = self.config.samples
        asked = [(place, way) for place in places for way in self.config.prompts]
        made = self._respond(
            [self.asker(i, self.problems[i], way).prompt for i, way in asked],
            [self._number(*one) for one in asked], [i for i, _ in asked], "samples", k, verifier,
        )  # fmt: skip
        return [_Candidate(*asked[row // k], row % k, *made[row]) for row in range(len(made))]

    def _respond(self, prompts, numbers, places, name: str, k: int, verifier: Verifier):
        """(response, whether it is correct) of k responses to each prompt."""
        responses: dict[int, Response] = {}

        def take(done) -> None:
            new = {
                row: self.run.response(*given, self.config.max_tokens)
                for row, given in done.items()
            }
            responses.update(new)
            verifier.begin({row: (self.problems[places[row // k]], r) for row, r in new.items()})

        self.sampler(
            self.params, prompts, self.run.key(name), prompt_ids=numbers, group_size=k, on_done=take
        )
        correct = verifier.finish()
        made = [(responses[row], correct[row]) for row in range(len(prompts) * k)]
        lengths = [response.tokens for response, _ in made]
        self.counts["tokens"] += sum(lengths)
        read = np.repeat([len(prompt) for prompt in prompts], k)
        self.counts["flops"] += sampling_flops(self.run.model.config, read, lengths, group_size=k)
        return made

    def _audited(self) -> set[tuple[int, str, int]]:
        """(place, way, sample) of the samples that rule and judge are both to judge."""
        config = self.config
        ruled = [i for i, p in enumerate(self.problems) if not needs_judge(p) and p["answer"]]
        each = len(config.prompts) * config.samples
        most = len(ruled) * each
        rng, count = self.run.generator("audit"), min(most, config.judge_audit)
        drawn = rng.choice(most, count, replace=False, shuffle=False).tolist() if count else []
        return {
            (ruled[n // each], config.prompts[n % each // config.samples], n % config.samples)
            for n in drawn
        }

    def _audit(self, candidates: Sequence[_Candidate], judge: Judge | None) -> None:
        chosen = [
            c
            for c in candidates
            if (c.place, c.way, c.sample) in self.audited and prediction(c.response) is not None
        ]
        said = judge([(self.problems[c.place], c.response) for c in chosen]) if chosen else []
        counts = agreement([c.correct for c in chosen], said)
        self.counts.update({f"audit_{name}": n for name, n in counts.items()})

    def _rewritten(self, candidates: Sequence[_Candidate], verifier: Verifier):
        """(candidate, whole text as it may be kept) of those that are correct so, too."""
        if not self.config.rewrite:
            return [(c, whole_text(c.response)) for c in candidates]
        by_model = self.config.rewrite == REWRITE_MODEL
        made = (self._by_model if by_model else self._by_task)(candidates, verifier)
        kept = [(c, whole_text(r)) for c, r, correct in made if correct and not r.truncated]
        self.counts["rejected_rewrite"] += len(candidates) - len(kept)
        return kept

    def _by_model(self, candidates: Sequence[_Candidate], verifier: Verifier):
        room = self.run.model.config.context - self.config.max_tokens
        asked = [
            ask_to_rewrite(self.run, self.problems[c.place], whole_text(c.response))
            for c in candidates
        ]
        fitting = [i for i, a in enumerate(asked) if len(a.prompt) <= room]
        if not fitting:
            return []
        chosen, k = [candidates[i] for i in fitting], self.config.samples
        made = self._respond(
            [asked[i].prompt for i in fitting],
            [self._number(c.place, c.way) * k + c.sample for c in chosen],
            [c.place for c in chosen], "rewrite", 1, verifier,
        )  # fmt: skip
        return [
            (candidates[i], response, correct and not asked[i].repeated_in(response.text))
            for i, (response, correct) in zip(fitting, made, strict=True)
        ]

    def _by_task(self, candidates: Sequence[_Candidate], verifier: Verifier):
        readable, template = _readable(self.config.rewrite), self.run.template
        made = {}
        for i, c in enumerate(candidates):
            text = readable(self.problems[c.place], whole_text(c.response))
            if text is not None:
                made[i] = Response(template.completion(text), think_opened=template.think_opened)
        verifier.begin({i: (self.problems[candidates[i].place], r) for i, r in made.items()})
        correct = verifier.finish()
        return [(candidates[i], response, correct[i]) for i, response in made.items()]

    def _kept(self, place: int, found: Sequence[tuple[_Candidate, str]]) -> list[dict]:
        """Rows of the responses to one question that are kept."""
        config, run, problem = self.config, self.run, self.problems[place]
        asked = {way: self.asker(place, problem, way) for way in config.prompts if found}
        clean = []
        for candidate, text in found:
            if asked[candidate.way].repeated_in(text):
                self.counts["rejected_leak"] += 1
            elif not _as_written(text, run.tokenizer.specials):
                self.counts["rejected_control"] += 1
            else:
                clean.append((candidate, text))
        why = rejections(
            problem["question"], [text for _, text in clean], config.filters,
            reply_in=problem.get("reply_in", ""),
        )  # fmt: skip
        self.counts.update(f"rejected_{name}" for name in why if name)
        passed = [one for one, reason in zip(clean, why, strict=True) if reason is None]
        drawn = run.generator("keep", place).permutation(len(passed))[: config.keep]
        self.counts["surplus"] += len(passed) - len(drawn)
        return [
            {
                "question": problem["question"], "response": text, "id": problem["id"],
                "source": problem.get("source", config.problems),
                "asked": candidate.way, "sample": candidate.sample,
            }
            for candidate, text in (passed[i] for i in sorted(drawn))
        ]  # fmt: skip


def _to_ask(
    config: RejectionConfig, problems: Sequence[Mapping] | Mixture
) -> tuple[list[Mapping], int]:
    """(problems in the order they are asked, how many are left out: nothing can judge them)."""
    given = problems.problems if isinstance(problems, Mixture) else list(problems)
    if config.questions and isinstance(problems, Mixture):
        indices = problems.indices(0, config.questions).tolist()
        if (different := len(set(indices))) < config.questions:
            raise ValueError(
                f"questions={config.questions} of {config.problems} are only {different} "
                "different ones; lower it, or change the weights"
            )
        given = [given[i] for i in indices]
    given = given[: config.questions or None]
    chosen = [p for p in given if not needs_judge(p) or (config.judge and p["answer"])]
    return chosen, len(given) - len(chosen)


def _as_written(text: str, specials: Sequence[str]) -> bool:
    """Whether training would read it as it stands: no half characters, no control tokens."""
    return (
        sections.visible(text)
        and "\ufffd" not in text
        and not any(word in text for word in specials)
    )


def _readable(rewrite: str):
    """The function of a task that rewrites, or None; raises ValueError for an unknown name."""
    if rewrite in ("", REWRITE_MODEL):
        return None
    known = {f"{REWRITE_TASK}{n}": t.readable for n, t in TASKS.items() if hasattr(t, "readable")}
    if rewrite not in known:
        raise ValueError(f"rewrite={rewrite!r} is unknown{hint(rewrite, [REWRITE_MODEL, *known])}")
    return known[rewrite]


# --- counts ----------------------------------------------------------------------------


def _steps(config: RejectionConfig) -> list[str]:
    """What a correct response has to pass, in this order."""
    rewrite = ["rewrite"] if config.rewrite else []
    return ["truncated", *rewrite, "leak", "control", *config.filters]


def _names(config: RejectionConfig) -> list[str]:
    """Of what is counted: correct = rejected_… + surplus + kept."""
    audits = [f"audit_{name}" for name in agreement([], [])] if config.judge_audit else []
    return [
        "sampled", "tokens", "flops", "truncated", "grading_errors", "judged", "judged_unparsed",
        *audits, "correct", *(f"rejected_{step}" for step in _steps(config)), "surplus", "kept",
        "questions_kept",
    ]  # fmt: skip


def _with_agreement(counts: Mapping[str, int]) -> dict[str, float]:
    """The counts, and how often judge and rule agree where any of the samples was audited."""
    audited = sum(n for name, n in counts.items() if name.startswith("audit_"))
    if not audited:
        return dict(counts)
    agreed = counts["audit_both_yes"] + counts["audit_both_no"]
    return counts | {"judge_agreement": agreed / audited}


def _acceptance(config: RejectionConfig, counts: Mapping[str, int]) -> dict[str, float]:
    left, rates = counts["correct"], {}
    for step in _steps(config):
        passed = left - counts[f"rejected_{step}"]
        if left:
            rates[f"acceptance_{step}"] = passed / left
        left = passed
    return rates
