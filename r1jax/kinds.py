"""The kinds of stages: what each may name, reads, checks beforehand, and how it is run.

A stage's loop knows arrays, problems and examples, never names: here the names in its config
become what it is given.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from r1jax import models
from r1jax.data.examples import load_examples
from r1jax.data.mixing import load_mixture
from r1jax.data.pairs import load_pairs
from r1jax.data.sources import checksums, fingerprint
from r1jax.inference import open_model
from r1jax.models import lora, scoring
from r1jax.rewards.graders import check_ready
from r1jax.run import Run
from r1jax.scoring import RESPONSE_SCOPES, load_scorer
from r1jax.stages import (
    distill,
    grpo,
    preference,
    pretrain,
    process,
    rejection,
    search,
    sft,
)

PREFERENCE = "preference.models."  # field of a GRPO stage, then a score model's own name


class Reference(NamedTuple):
    """A field of a stage's config that names an earlier stage, a folder or a file."""

    field: str
    target: str
    makes: str  # what the named stage must make
    scopes: tuple[str, ...] = ()  # of a score model: those that will do


class Data(NamedTuple):
    """Problems, examples or pairs that a stage reads."""

    rows: list[dict]
    given: Any  # to the stage
    read: dict[str, Any]  # of which files, and what was left out

    def summary(self) -> dict[str, Any] | None:
        """For the manifest."""
        if not self.rows:
            return None
        return {"rows": len(self.rows), "sha256": fingerprint(self.rows)} | self.read


NOTHING = Data([], None, {})


class Given(NamedTuple):
    """What a stage is run on."""

    data: Data
    params: Any  # of its init; None: random ones
    folders: Mapping[str, Path]  # of the models that its config names, by field
    evaluate: Callable | None
    evaluate_every: int
    loss: Callable | None  # in place of the configured one


class Made(NamedTuple):
    """What a stage leaves beside its files."""

    params: Any = None
    counts: Mapping[str, float] = {}


Locate = Callable[[str], str]  # of examples: a stage's name to its file, all else as it is


class Kind(NamedTuple):
    """`read(settings, seed, locate)`, `check(settings, run, data)`, `run(settings, run, given)`."""

    config: type
    makes: str  # 'model', 'score', 'examples' or 'results'
    run: Callable[[Any, Run, Given], Made]
    read: Callable[[Any, int, Locate], Data] = lambda *_: NOTHING
    check: Callable[[Any, Run, Data], None] = lambda *_: None
    references: Callable[[Any], Sequence[Reference]] = lambda _: ()
    needs_init: bool = True


# --- what they read --------------------------------------------------------------------


def _problems(settings, seed: int, locate: Locate) -> Data:
    del locate
    mixture, counts = load_mixture(settings.problems, seed=seed)
    return Data(
        mixture.problems, mixture, {"sources": counts, "files": checksums(settings.problems)}
    )


def _grpo_problems(settings: grpo.GrpoConfig, seed: int, locate: Locate) -> Data:
    del locate

    def load(source: str):
        return load_mixture(
            source, seed=seed, pass_rates=settings.pass_rates, band=settings.pass_rate_band,
            without=settings.decontaminate,
        )  # fmt: skip

    mixture, counts = load(settings.problems)
    read = {"sources": counts, "files": checksums(settings.problems)}
    rows, late = mixture.problems, None
    if settings.preference and settings.preference.problems:
        late, counts = load(settings.preference.problems)
        rows = rows + late.problems
        read |= {"late": {"sources": counts, "files": checksums(settings.preference.problems)}}
    return Data(rows, (mixture, late), read)


def _examples(settings: sft.SftConfig, seed: int, locate: Locate) -> Data:
    del seed
    path = locate(settings.examples)
    examples = load_examples(path)
    given = path == settings.examples  # else a stage made them, and the manifest says which
    return Data(examples, examples, {"files": checksums(path)} if given else {})


def _pairs(settings: preference.PreferenceConfig, seed: int, locate: Locate) -> Data:
    del seed, locate
    pairs = load_pairs(settings.pairs)
    return Data(pairs, pairs, {})


def _rejection_data(settings: rejection.RejectionConfig, seed: int, locate: Locate) -> Data:
    problems = _problems(settings, seed, locate)
    extra = [
        example | {"source": source}
        for source in settings.extra
        for example in load_examples(locate(source))
    ]
    shots = load_examples(locate(settings.shots_from)) if settings.shots_from else []
    return Data(problems.rows + extra + shots, (problems.given, extra, shots), problems.read)


def _distill_data(settings: distill.DistillConfig, seed: int, locate: Locate) -> Data:
    return (_problems if settings.on_policy else _examples)(settings, seed, locate)


# --- what would stop them when the ones before are done --------------------------------


def _check_lora(settings, run: Run) -> None:
    if settings := getattr(settings, "lora", None):
        shapes = jax.eval_shape(run.model.init, jax.random.key(0))
        jax.eval_shape(lambda p: lora.split(p, settings, jax.random.key(0)), shapes)


def _check_grpo(settings: grpo.GrpoConfig, run: Run, data: Data) -> None:
    _check_prompts(settings, run, data)
    _check_lora(settings, run)


def _check_sft(settings: sft.SftConfig, run: Run, data: Data) -> None:
    sft.check(settings, run, data.given)
    _check_lora(settings, run)


def _check_rejection(settings: rejection.RejectionConfig, run: Run, data: Data) -> None:
    problems, _, shots = data.given
    rejection.check(settings, run, problems, shots)


def _check_distill(settings: distill.DistillConfig, run: Run, data: Data) -> None:
    distill.check(settings, run, data.given)
    _check_lora(settings, run)


def _check_prompts(settings, run: Run, data: Data) -> None:
    check_ready(data.rows)
    run.sampler(settings.sampling).check([run.prompt(p["question"]) for p in data.rows])


def _by(stage) -> Callable[[Any, Run, Data], None]:
    """The stage's own check, of what it is given."""
    return lambda settings, run, data: stage.check(settings, run, data.given)


def check_scope(reference: Reference, path: str | Path) -> None:
    """Raises ValueError, naming the field, where the score model at `path` is of another scope
    than will do; CheckpointError where there is none."""
    scope = scoring.read_scope(path)
    if reference.scopes and scope not in reference.scopes:
        raise ValueError(
            f"{reference.field}={reference.target!r} has the scope {scope!r}, and what is needed "
            f"here is {' or '.join(map(repr, reference.scopes))}; name a score model that was "
            "trained with it"
        )


# --- how they run ----------------------------------------------------------------------


def _pretrain(settings, run: Run, given: Given) -> Made:
    return Made(pretrain.run(settings, run))


def _sft(settings, run: Run, given: Given) -> Made:
    return Made(sft.run(settings, run, given.data.given, given.params))


def _grpo(settings: grpo.GrpoConfig, run: Run, given: Given) -> Made:
    problems, late = given.data.given
    scorers = {}
    for reference in _score_models(settings):
        folder = given.folders[reference.field]
        check_scope(reference, folder)
        scorers[reference.field.removeprefix(PREFERENCE)] = load_scorer(folder, run)
    params = grpo.run(
        settings, run, given.params, problems, late=late, scorers=scorers,
        evaluate=given.evaluate, evaluate_every=given.evaluate_every, loss=given.loss,
    )  # fmt: skip
    return Made(params)


def _rejection(settings: rejection.RejectionConfig, run: Run, given: Given) -> Made:
    problems, extra, shots = given.data.given
    judge_run = judge = None
    if "judge" in given.folders:
        judge_run, judge = open_model(given.folders["judge"], mesh=run.mesh)
    counts = rejection.run(
        settings, run, problems, given.params, judge=judge, judge_run=judge_run, shots=shots,
        extra=extra,
    )  # fmt: skip
    return Made(counts=counts)


def _preference(settings, run: Run, given: Given) -> Made:
    return Made(preference.run(settings, run, given.data.given, given.params))


def _process(settings, run: Run, given: Given) -> Made:
    return Made(process.run(settings, run, given.data.given, given.params))


def _distill(settings, run: Run, given: Given) -> Made:
    teacher_model, teacher = models.load(given.folders["teacher"], mesh=run.mesh)
    params = distill.run(
        settings, run, given.data.given, given.params, teacher_params=teacher,
        teacher_model=teacher_model,
    )  # fmt: skip
    return Made(params)


def _search(settings, run: Run, given: Given) -> Made:
    score = {}
    for reference in _guides(settings):
        folder = given.folders[reference.field]
        check_scope(reference, folder)
        # On the run's own model: scores are of its tokens, at its positions.
        score[reference.field] = scoring.load_params(folder, run.model, run.mesh)
    found = search.run(
        settings, run, given.data.given, given.params, score.get("process_model"),
        score.get("value_model"),
    )  # fmt: skip
    return Made(counts={"rows": len(found["rows"])})


def _teacher(settings: distill.DistillConfig) -> list[Reference]:
    found = [Reference("teacher", settings.teacher, "model")]
    if settings.examples:
        found.append(Reference("examples", settings.examples, "examples"))
    return found


def _guides(settings: search.SearchConfig) -> list[Reference]:
    named = (
        ("process_model", settings.process_model, "steps"),
        ("value_model", settings.value_model, "value"),
    )
    return [Reference(f, target, "score", (scope,)) for f, target, scope in named if target]


def _judge(settings: rejection.RejectionConfig) -> list[Reference]:
    named = settings.judge not in ("", rejection.SELF)
    found = [Reference("judge", settings.judge, "model")] if named else []
    found += [Reference(f"extra[{i}]", x, "examples") for i, x in enumerate(settings.extra)]
    if settings.shots_from:
        found.append(Reference("shots_from", settings.shots_from, "examples"))
    return found


def _score_models(settings: grpo.GrpoConfig) -> list[Reference]:
    models = settings.preference.models if settings.preference else {}
    return [
        Reference(f"{PREFERENCE}{name}", target, "score", RESPONSE_SCOPES)
        for name, target in models.items()
    ]


KINDS: dict[str, Kind] = {
    "pretrain": Kind(pretrain.PretrainConfig, "model", _pretrain, needs_init=False),
    "sft": Kind(
        sft.SftConfig, "model", _sft, _examples, _check_sft,
        lambda settings: [Reference("examples", settings.examples, "examples")], needs_init=False,
    ),
    "grpo": Kind(
        grpo.GrpoConfig, "model", _grpo, _grpo_problems, _check_grpo, _score_models
    ),
    "rejection": Kind(
        rejection.RejectionConfig, "examples", _rejection, _rejection_data, _check_rejection, _judge
    ),
    "preference": Kind(
        preference.PreferenceConfig, "score", _preference, _pairs, _by(preference)
    ),
    "process": Kind(process.ProcessConfig, "score", _process, _problems, _by(process)),
    "distill": Kind(
        distill.DistillConfig, "model", _distill, _distill_data, _check_distill, _teacher
    ),
    "search": Kind(
        search.SearchConfig, "results", _search, _problems, _by(search), _guides
    ),
}  # fmt: skip
