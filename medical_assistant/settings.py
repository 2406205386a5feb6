"""Settings of a script: a frozen dataclass, filled from defaults < `--config` YAML < command line."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml

from medical_assistant.errors import UserError

Settings = TypeVar("Settings")


def setting(default: Any, help: str, choices: Sequence[str] | None = None) -> Any:
    """Return a dataclass field with its default and its line in `--help`."""
    metadata = {"help": help, "choices": choices}
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def required(help: str) -> Any:
    """Return a dataclass field that the user must give."""
    return setting(dataclasses.MISSING, help)


def parse_settings(cls: type[Settings], argv: Sequence[str] | None, description: str | None) -> Settings:
    """Return `cls` from the command line and, where given, a YAML file.

    A field `lora_rank: int` is `--lora-rank 16` on the command line and `lora_rank: 16` in YAML; a
    field `bool` is `--flag/--no-flag`, a field `tuple[str, ...]` is `--names A B` and a list in YAML.
    `--debug` is accepted by every script (`errors.run_script`).
    Unknown options exit with status 2; an unknown key or a wrong type in the YAML file, and a
    missing required setting, raise `UserError`.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file with any of the settings below")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    for name, field in fields.items():
        _add_option(parser, name, _plain_type(hints[name]), field)
    given = vars(parser.parse_args(argv))
    given.pop("debug")
    config = given.pop("config")
    values = _read_config(config, {name: _plain_type(hints[name]) for name in fields}) if config else {}
    values.update(given)
    for name, field in fields.items():
        if name not in values and field.default is dataclasses.MISSING:
            raise UserError(f"--{name.replace('_', '-')} is missing: {field.metadata['help']}.")
    return cls(**values)


def _plain_type(hint: Any) -> type:
    """`int | None` -> `int`; `tuple[str, ...]` -> `tuple`."""
    if typing.get_origin(hint) is tuple:
        return tuple
    return next((part for part in typing.get_args(hint) if part is not type(None)), hint)


def _add_option(parser: argparse.ArgumentParser, name: str, kind: type, field: dataclasses.Field[Any]) -> None:
    text = field.metadata["help"].replace("%", "%%")
    if field.default is dataclasses.MISSING:
        text += " (required)"
    elif field.default not in (None, "", ()):
        text += f" (default: {field.default})"
    option = f"--{name.replace('_', '-')}"
    # Absent options stay out of the namespace, so that they do not hide what the YAML file says.
    if kind is bool:
        parser.add_argument(option, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
    elif kind is tuple:
        parser.add_argument(option, action=_Tuple, nargs="+", default=argparse.SUPPRESS, help=text)
    else:
        parser.add_argument(
            option,
            type=kind,
            default=argparse.SUPPRESS,
            choices=field.metadata["choices"],
            metavar=None if field.metadata["choices"] else kind.__name__.upper(),
            help=text,
        )


class _Tuple(argparse.Action):
    """Several words after one option, as a tuple: settings are frozen."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        setattr(namespace, self.dest, tuple(values))


def _read_config(path: Path, types: dict[str, type]) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise UserError(f"--config {path} cannot be read: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise UserError(f"--config {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"--config {path} must hold `setting: value` lines.")
    for key in content:
        if key not in types:
            close = get_close_matches(str(key), types, n=1)
            fix = f"did you mean {close[0]}?" if close else f"the settings are {', '.join(types)}."
            raise UserError(f"--config {path}: unknown {key}; {fix}")
    return {name: _convert(path, name, value, types[name]) for name, value in content.items()}


def _convert(path: Path, name: str, value: Any, kind: type) -> Any:
    if value is None or isinstance(value, kind):
        return value
    if kind is tuple and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    # PyYAML reads 2e-4 as text, and 1 is a valid float.
    try:
        if kind in (int, float, Path) and not isinstance(value, bool):
            converted = kind(value)
            if kind is not int or converted == float(value):
                return converted
    except (TypeError, ValueError):
        pass
    wanted = "a list of words" if kind is tuple else kind.__name__
    raise UserError(f"--config {path}: {name} must be {wanted}, not {value!r}.")
