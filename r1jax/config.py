"""From an experiment's ConfigDict to checked dataclasses: the only reader of ConfigDict.

Every section of a config becomes a frozen dataclass with types and defaults, before any
work starts. A misspelt key fails with the nearest known one, a value of the wrong type or
out of range with its full name.
"""

import dataclasses
import difflib
import hashlib
import json
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags


class ConfigError(ValueError):
    """A config, file or flag is at fault; the message says where and what to do."""


def load(path: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """The config of `FILE.py:variant`, with overrides such as `--config.grpo.lr=1e-4`.

    Raises ConfigError for a missing file, an unknown variant or key, or an unreadable value.
    """
    file = path.partition(".py")[0] + ".py"
    if not Path(file).is_file():
        raise ConfigError(f"--config: there is no file {file}")
    # Experiments import what they share as `experiments.common`, wherever they are run from.
    if (root := str(Path(file).resolve().parent.parent)) not in sys.path:
        sys.path.insert(0, root)
    try:
        return _parse(path, overrides)
    except (AttributeError, KeyError) as error:
        known = _keys(_parse(path))
        raise ConfigError(_unknown_override(overrides, known) or str(error)) from error
    except flags.UnrecognizedFlagError as error:
        raise ConfigError(f"{error}; overrides look like --config.grpo.lr=1e-4") from error
    except (flags.Error, TypeError, ValueError) as error:
        raise ConfigError(f"--config={path} {' '.join(overrides)}: {error}") from error


def _parse(path: str, overrides: Sequence[str] = ()) -> ConfigDict:
    argv = ["r1jax", f"--config={path}", *overrides]
    values = flags.FlagValues()
    # The overrides that it defines flags for are those of sys_argv, not of the call below.
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    if stray := values(argv)[1:]:
        raise flags.UnrecognizedFlagError(stray[0])
    return values["config"].value


def _keys(config: ConfigDict, prefix: str = "") -> list[str]:
    found = []
    for key in config:
        name = f"{prefix}{key}"
        found.append(name)
        if isinstance(config[key], ConfigDict):
            found += _keys(config[key], f"{name}.")
    return found


def _unknown_override(overrides: Sequence[str], known: list[str]) -> str | None:
    for override in overrides:
        name = override.lstrip("-").partition("=")[0].removeprefix("config.")
        if name not in known:
            return unknown(f"config.{name}", name, known)
    return None


def unknown(what: str, name: str, known: Sequence[str]) -> str:
    """`what` is unknown; did you mean …?"""
    close = difflib.get_close_matches(name, known, n=1)
    return f"{what} is unknown; " + (
        f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"
    )


def build(cls, section: Mapping, where: str):
    """`cls(**section)`, a dataclass, with nested dataclasses built alike.

    Raises ConfigError for unknown keys, missing values, wrong types, and for what `cls` itself
    refuses, all named by their place in the config.
    """
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


def _value(hint, value, where: str):
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where)
    if value is None and type(None) not in typing.get_args(hint):
        raise ConfigError(f"{where} is not set; give it with --{where}=…")
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in allowed:
        origin = typing.get_origin(option) or option
        if origin is tuple and isinstance(value, tuple | list):
            return tuple(value)
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


def plain(config: ConfigDict) -> dict:
    """The config as plain JSON values, references resolved."""
    return json.loads(json.dumps(config.to_dict(), default=list))


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
