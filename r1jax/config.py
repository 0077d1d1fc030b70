"""From an experiment's ConfigDict to checked dataclasses: the only reader of ConfigDict.

Every section of a config becomes a frozen dataclass with types and defaults, before any
work starts. A misspelt key fails with the nearest known one, a value of the wrong type or
out of range with its full name.
"""

import ast
import dataclasses
import difflib
import hashlib
import importlib.util
import json
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict, FieldReference


class ConfigError(ValueError):
    """A config, file or flag is at fault; the message says where and what to do."""


def load(path: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """The config of `FILE.py:variant`, with overrides such as `--config.grpo.lr=1e-4`.

    An override may also set what the experiment leaves at its default; `pipeline.parse`
    refuses keys that nothing reads, and values of the wrong type.
    Raises ConfigError for a missing file, an unknown variant, or an unreadable override.
    """
    file, _, variant = path.partition(":")
    if not Path(file).is_file():
        raise ConfigError(f"--config: there is no file {file}")
    # Experiments import what they share as `experiments.common`, wherever they are run from.
    if (root := str(Path(file).resolve().parent.parent)) not in sys.path:
        sys.path.insert(0, root)
    spec = importlib.util.spec_from_file_location(f"r1jax_config_{Path(file).stem}", file)
    if spec is None:
        raise ConfigError(f"--config: {file} is not a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"--config: {file} defines no get_config(variant)")
    try:
        config = module.get_config(variant) if variant else module.get_config()
    except ValueError as error:
        raise ConfigError(f"--config={path}: {error}") from error
    words = list(overrides)
    while words:
        name, given, text = words.pop(0).partition("=")
        if not name.startswith("--config."):
            raise ConfigError(f"{name} is unknown; overrides look like --config.grpo.lr=1e-4")
        if not given:
            if not words or words[0].startswith("--"):
                raise ConfigError(f"{name} has no value; write {name}=…")
            text = words.pop(0)
        _override(config, name.removeprefix("--"), text)
    return config


def _override(config: ConfigDict, name: str, text: str) -> None:
    """Sets `config.a.b` (the name, with that prefix) to what `text` says."""
    *sections, key = name.split(".")[1:]
    for depth, section in enumerate(sections, start=2):
        if section not in config:
            config[section] = ConfigDict()
        config = config[section]
        if not isinstance(config, ConfigDict):
            raise ConfigError(f"--{name}: {'.'.join(name.split('.')[:depth])} is no section")
    value = text
    if not (key in config and config.get_type(key) is str):
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):  # a text needs no quotes
            value = {"true": True, "false": False}.get(text.lower(), text)
    with config.ignore_type():  # ConfigDict would refuse a pair for a number; `build` knows types
        config[key] = value


def unknown(what: str, name: str, known: Sequence[str]) -> str:
    """`what` is unknown; did you mean …?"""
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"{what} is unknown; " + (
        f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"
    )


def build(cls, section: Mapping, where: str):
    """`cls(**section)`, a dataclass, with nested dataclasses built alike.

    Raises ConfigError for unknown keys, missing values, wrong types, and for what `cls` itself
    refuses, all named by their place in the config.
    """
    check_section(section, where)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints, values = typing.get_type_hints(cls), {}
    for key, value in section.items():
        if key not in fields:
            raise ConfigError(unknown(f"{where}.{key}", key, list(fields)))
        values[key] = _value(hints[key], value, f"{where}.{key}")
    for name, field in fields.items():
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"{where}.{name} is not set")
    try:
        return cls(**values)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def check_section(value, where: str) -> None:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}={value!r} is a {type(value).__name__}, not a section")


def _value(hint, value, where: str):
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where)
    if value is None and type(None) not in typing.get_args(hint):
        raise ConfigError(f"{where} is not set; give it with --{where}=…")
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in allowed:
        if dataclasses.is_dataclass(option) and isinstance(value, Mapping):
            return build(option, value, where)
        origin = typing.get_origin(option) or option
        if origin is tuple and isinstance(value, tuple | list):
            return _tuple(typing.get_args(option), value, where)
        if origin is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if origin in (int, str, bool) and type(value) is origin:
            return value
        if origin is Mapping and isinstance(value, Mapping):
            return dict(value)
        if option is type(None) and value is None:
            return None
    wanted = " or ".join(getattr(o, "__name__", str(o)) for o in allowed)
    raise ConfigError(f"{where}={value!r} is a {type(value).__name__}, not {wanted}")


def _tuple(kinds, values: Sequence, where: str) -> tuple:
    if kinds[-1] is ...:
        kinds = kinds[:1] * len(values)
    if len(kinds) != len(values):
        raise ConfigError(f"{where}={tuple(values)!r} has {len(values)} values, not {len(kinds)}")
    pairs = zip(kinds, values, strict=True)
    return tuple(_value(kind, v, f"{where}[{i}]") for i, (kind, v) in enumerate(pairs))


def plain(config: ConfigDict) -> dict:
    """The config as plain JSON values, references resolved at any depth."""
    return json.loads(json.dumps(config.to_dict(), default=_plain))


def _plain(value):
    """What `json` is to write for a value that it does not know."""
    # ConfigDict resolves those among its own values alone, none within a tuple.
    if isinstance(value, FieldReference):
        return value.get()
    return value.to_dict() if isinstance(value, ConfigDict) else list(value)


def digest(plain_config: Mapping) -> str:
    """SHA-256 (hex, 16 digits) of a plain config."""
    text = json.dumps(plain_config, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def difference(old: Mapping, new: Mapping, prefix: str = "config") -> list[str]:
    """Lines `config.grpo.lr: 0.1 -> 0.2` for every value that differs."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        a, b, name = old.get(key), new.get(key), f"{prefix}.{key}"
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += difference(a, b, name)
        elif a != b:
            lines.append(f"{name}: {a!r} -> {b!r}")
    return lines
