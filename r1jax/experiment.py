"""An experiment's config, checked as far as that needs no file: named stages and what feeds them.

    config.stages = ("pretrain", "grpo")       in this order
    config.pretrain.kind = "pretrain"          which loop of `r1jax.stages`
    config.grpo.init = "pretrain"              whose parameters it starts from

What a stage is given, it names: an earlier stage, or a folder or file. Which fields can do so,
and what they may name, the kind of the stage says (`kinds.KINDS`).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from r1jax import config, models
from r1jax.assembly import TokenizerConfig
from r1jax.config import ConfigError
from r1jax.kinds import KINDS, Kind, Reference
from r1jax.models.families import CONFIGS, FREE, Config
from r1jax.models.presets import PRESETS
from r1jax.rewards.hints import hint
from r1jax.stages.evaluate import EvaluateConfig
from r1jax.templates import TEMPLATES


@dataclass(frozen=True)
class MeshConfig:
    data: int = 1
    fsdp: int = -1
    tensor: int = 1
    expert: int = 1


@dataclass(frozen=True)
class Stage:
    """One entry of `config.stages`; `init` is an earlier stage, a folder, or '' (random)."""

    name: str
    kind: str
    init: str
    settings: Any  # the config class of its kind
    references: tuple[Reference, ...]  # what it names, `init` among it
    earlier: frozenset[str]  # the names of the stages before it

    @property
    def does(self) -> Kind:
        return KINDS[self.kind]

    @property
    def reads_later(self) -> bool:
        """Whether it reads examples that an earlier stage has to make first."""
        return any(r.makes == "examples" and r.target in self.earlier for r in self.references)


@dataclass(frozen=True)
class Experiment:
    """A whole config, checked. `template` names a prompt of `r1jax.templates`, or is 'chat':
    the tokenizer's own chat template, given the variables `chat` (and a `system` message)."""

    seed: int
    template: str
    chat: Mapping
    mesh: MeshConfig
    tokenizer: TokenizerConfig
    model: Mapping
    stages: tuple[Stage, ...]
    evaluate: EvaluateConfig | None
    plain: Mapping = field(repr=False)


def parse(plain: Mapping) -> Experiment:
    """Checks a plain config as far as that needs no file; raises ConfigError."""
    plain = dict(plain)
    names = plain.get("stages", ())
    if not isinstance(names, list | tuple):
        raise ConfigError(f"config.stages={names!r} is no tuple; write ({names!r},)")
    known = {
        "seed", "template", "chat", "mesh", "tokenizer", "model", "stages", "evaluate", "data",
        "weights", "files", *names,
    }  # fmt: skip
    # A stage that `stages` leaves out may stay defined.
    known |= {
        name for name, value in plain.items() if isinstance(value, Mapping) and "kind" in value
    }
    for key in plain:
        if key not in known:
            raise ConfigError(config.unknown(f"config.{key}", key, sorted(known)))
    if "weights" in plain and not plain["weights"]:
        raise ConfigError(
            "config.weights is not set; give it with --config.weights=FOLDER (Hugging Face's, a "
            "run's or a checkpoint's)"
        )
    config.check_section(files := plain.get("files", {}), "config.files")
    for name, value in files.items():
        if not value:
            name = f"config.files.{name}"
            raise ConfigError(f"{name} is not set; give it with --{name}=…")
    if not names:
        raise ConfigError("config.stages is empty; name at least one stage")
    template = plain.get("template", "r1_zero")
    if template != "chat" and template not in TEMPLATES:
        raise ConfigError(
            config.unknown(f"config.template={template!r}", template, [*TEMPLATES, "chat"])
        )
    chat = plain.get("chat", {})
    config.check_section(chat, "config.chat")
    seed = plain.get("seed", 0)
    if type(seed) is not int or seed < 0:
        raise ConfigError(f"config.seed={seed!r} must be an integer >= 0")
    model = plain.get("model", {})
    config.check_section(model, "config.model")
    model_config(model, vocabulary=1)
    tokenizer = plain.get("tokenizer") or {}
    if not tokenizer and "path" in model:
        tokenizer = {"path": str(models.tokenizer_folder(model["path"]))}
    stages = _stages(plain, names)
    evaluation = plain.get("evaluate")
    evaluation = evaluation and config.build(EvaluateConfig, evaluation, "config.evaluate")
    makers = [stage.name for stage in stages if stage.does.makes == "model"]
    for name in evaluation.stages if evaluation else ():
        if name not in makers:
            raise ConfigError(
                f"config.evaluate.stages has {name!r}, which is no stage that makes a model; those "
                f"are {', '.join(makers)}"
            )
    return Experiment(
        seed=seed,
        template=template,
        chat=chat,
        mesh=config.build(MeshConfig, plain.get("mesh", {}), "config.mesh"),
        tokenizer=config.build(TokenizerConfig, tokenizer, "config.tokenizer"),
        model=model,
        stages=stages,
        evaluate=evaluation,
        plain=plain,
    )


def model_config(section: Mapping, *, vocabulary: int) -> Config:
    """The config that `config.model` means; raises ConfigError.

    `path` takes a folder's (Hugging Face's, a run's or a checkpoint's), `preset` a published
    model's; beside either only what leaves the weights as they are may be set. Without one,
    `family` says which kind is described, and `vocabulary` counts unless it is given.
    """
    section = dict(section)
    path, preset = section.pop("path", None), section.pop("preset", None)
    family = section.pop("family", "dense")  # says nothing beside the other two
    if path and preset:
        raise ConfigError(f"config.model has path={path!r} and preset={preset!r}; give one")
    if family not in CONFIGS:
        raise ConfigError(config.unknown(f"config.model.family={family!r}", family, list(CONFIGS)))
    if preset and preset not in PRESETS:
        raise ConfigError(config.unknown(f"config.model.preset={preset!r}", preset, list(PRESETS)))
    if not (path or preset):
        return config.build(CONFIGS[family], {"vocabulary": vocabulary, **section}, "config.model")
    base = PRESETS[preset] if preset else models.read_config(path)
    allowed = FREE if path else (*FREE, "rope_theta", "rope_scaling")
    if fixed := [name for name in section if name not in allowed]:
        raise ConfigError(
            f"config.model.{fixed[0]} cannot be set beside {'path' if path else 'preset'}, which "
            f"says what it is; what can: {', '.join(allowed)}"
        )
    changed = {**dataclasses.asdict(base), **section}
    return config.build(type(base), changed, "config.model")


def _stages(plain: Mapping, names: Sequence[str]) -> tuple[Stage, ...]:
    stages: dict[str, Stage] = {}
    for name in names:
        if name in stages:
            raise ConfigError(f"config.stages names {name!r} twice; give every stage its own name")
        stages[name] = _stage(plain, name, stages, names)
    return tuple(stages.values())


def _stage(plain: Mapping, name: str, earlier: Mapping[str, Stage], names: Sequence[str]) -> Stage:
    if name not in plain:
        raise ConfigError(f"config.stages names {name!r}, but there is no config.{name}")
    config.check_section(plain[name], f"config.{name}")
    section = dict(plain[name])
    kind, init = section.pop("kind", name), section.pop("init", "")
    if kind not in KINDS:
        raise ConfigError(config.unknown(f"config.{name}.kind={kind!r}", kind, list(KINDS)))
    if KINDS[kind].needs_init and not init:
        raise ConfigError(
            f"config.{name}.init is not set: name a stage or a checkpoint to start from"
        )
    settings = config.build(KINDS[kind].config, section, f"config.{name}")
    references = list(KINDS[kind].references(settings))
    if init:
        references.insert(0, Reference("init", init, "model"))
    for reference in references:
        _check_reference(f"config.{name}.{reference.field}", reference, earlier, names)
    return Stage(name, kind, init, settings, tuple(references), frozenset(earlier))


def _check_reference(
    where: str, reference: Reference, earlier: Mapping[str, Stage], names: Sequence[str]
) -> None:
    target, wanted = reference.target, reference.makes
    if target in earlier:
        if (makes := earlier[target].does.makes) != wanted:
            raise ConfigError(
                f"{where}={target!r}: that stage makes {_A[makes]}, and what is needed here is "
                f"{_A[wanted]}"
            )
        scope = getattr(earlier[target].settings, "scope", "")
        if reference.scopes and scope not in reference.scopes:
            raise ConfigError(
                f"{where}={target!r}: that stage makes a model with scope {scope!r}, and what is "
                f"needed here is {' or '.join(map(repr, reference.scopes))}"
            )
        return
    if target in names:
        raise ConfigError(
            f"{where}={target!r}: that stage does not come before; put it earlier in config.stages"
        )
    there = Path(target).is_dir()
    if wanted == "examples":
        there = Path(target).is_file() or target.startswith("task:")
    if not there:
        what = "a .jsonl file or task:NAME:COUNT" if wanted == "examples" else "a checkpoint folder"
        made = [name for name, stage in earlier.items() if stage.does.makes == wanted]
        raise ConfigError(
            f"{where}={target!r} is neither an earlier stage that makes {_A[wanted]} "
            f"({', '.join(made) or 'none does'}) nor {what}{hint(target, made) if made else ''}"
        )


_A = {
    "model": "a model", "score": "a model that scores", "examples": "a file of examples",
    "results": "a table of results",
}  # fmt: skip
