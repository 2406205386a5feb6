"""Settings of a script: defaults < `--config` YAML < command line, into a frozen dataclass or a plain dict."""

from __future__ import annotations

import argparse
import dataclasses
import os
import typing
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import yaml

from medical_assistant.errors import UserError
from medical_assistant.files import ROOT

Settings = TypeVar("Settings")


class Option(NamedTuple):
    """One setting: `kind` is int, float, str, bool, Path or tuple (of words); with the default `dataclasses.MISSING` it
    is required."""

    kind: type
    default: Any
    help: str | None = None
    choices: Sequence[str] | None = None


def setting(default: Any, help: str, choices: Sequence[str] | None = None) -> Any:
    """Return a dataclass field with its default and its line in `--help`."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


def required(help: str) -> Any:
    """Return a dataclass field that the user must give."""
    return setting(dataclasses.MISSING, help)


def options_of(cls: type) -> dict[str, Option]:
    """Return the options of a dataclass of `setting` fields, by name."""
    hints = typing.get_type_hints(cls)
    return {
        field.name: Option(
            _plain_type(hints[field.name]), field.default, field.metadata["help"], field.metadata["choices"]
        )
        for field in dataclasses.fields(cls)
    }


def parse_settings(cls: type[Settings], argv: Sequence[str] | None, description: str | None) -> Settings:
    """Return `cls`, a dataclass of `setting` fields, from `read_options`. Raises `UserError` as that does, and for a
    required setting that is missing."""
    options = options_of(cls)
    given = read_options(options, argv, description)
    for name, option in options.items():
        if name not in given and option.default is dataclasses.MISSING:
            raise UserError(f"{flag(name)} is missing: {option.help}.")
    return cls(**given)


def read_options(options: Mapping[str, Option], argv: Sequence[str] | None, description: str | None) -> dict[str, Any]:
    """Return what the user gave, by name, and nothing else: the `--config` file, and over it the command line.

    An option `lora_r` of kind int is `--lora-r 16` on the command line and `lora_r: 16` in YAML; one of kind bool is
    `--flag/--no-flag`, a tuple is `--names A B` and a list in YAML. `--debug` is accepted by every script
    (`errors.run_script`). `--help` prints and exits with status 0. Raises `UserError` for an unknown name and for a
    value of a wrong kind, on the command line and in the file.
    """
    parser = _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file with any of the settings below")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    for name, option in options.items():
        _add_option(parser, name, option)
    found, unknown = parser.parse_known_args(argv)
    if unknown:
        name = unknown[0].partition("=")[0]
        if not name.startswith("-"):
            raise UserError(f"Unexpected {name!r}: settings are given as --name value.")
        known = [word for action in parser._actions for word in action.option_strings]
        raise UserError(f"Unknown option {name}: {did_you_mean(name, known, 'see --help.')}")
    # Settings are frozen: a tuple, not argparse's list.
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in vars(found).items()}
    config: Any = given.pop("config")
    given.pop("debug")
    values = convert_values(f"--config {config}", read_yaml(config, "--config"), options) if config else {}
    return {**values, **given}


def did_you_mean(name: str, names: Iterable[str], otherwise: str | None = None) -> str:
    """Return "did you mean X?" for the nearest of `names`; where none is near `otherwise`, or the list of them."""
    names = list(names)
    close = get_close_matches(str(name), names, n=1)
    return f"did you mean {close[0]}?" if close else otherwise or f"use one of {', '.join(names)}."


def flag(name: str) -> str:
    """Return the option of a setting: "--lora-r" for "lora_r"."""
    return f"--{name.replace('_', '-')}"


def read_yaml(path: Path, option: str) -> dict[Any, Any]:
    """Return the mapping in a YAML file that the user gave for `option`. Raises `UserError` where there is none."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{option} {path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{option} {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if content is not None and not isinstance(content, dict):
        raise UserError(f"{option} {path} must hold `name: value` lines.")
    return content or {}


def convert_values(where: str, content: Mapping[Any, Any], options: Mapping[str, Option]) -> dict[str, Any]:
    """Return the settings of a YAML mapping, each of its option's kind. Raises `UserError`, beginning with `where`,
    for an unknown name and for a value of another kind or not among the choices."""
    for name in content:
        if name not in options:
            raise UserError(f"{where}: unknown {name!r}: {did_you_mean(name, options)}")
    return {name: _convert(f"{where}: {name}", value, options[name]) for name, value in content.items()}


def _convert(where: str, value: Any, option: Option) -> Any:
    kind, default, _, choices = option
    if value is None and default is None:
        return None
    if choices and value not in choices:
        raise UserError(f"{where} must be one of {', '.join(choices)}, not {value!r}.")
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    if kind is tuple and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    # PyYAML reads 2e-4 as text, and 1 is a valid float.
    try:
        if kind in (int, float, Path) and not isinstance(value, bool):
            converted = kind(value)
            if kind is not int or converted == float(value):
                return converted
    except (TypeError, ValueError, OverflowError):
        pass
    raise UserError(f"{where} must be {_WANTED.get(kind, kind.__name__)}, not {value!r}.")


_WANTED: dict[Any, str] = {tuple: "a list of words", int: "a whole number", float: "a number", Path: "a path"}


class _Parser(argparse.ArgumentParser):
    """argparse with one line for an error, where it prints all options first."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message[:1].upper()}{message[1:]}: see --help.")


def _plain_type(hint: Any) -> type:
    """`int | None` -> `int`; `tuple[str, ...]` -> `tuple`."""
    if typing.get_origin(hint) is tuple:
        return tuple
    return next((part for part in typing.get_args(hint) if part is not type(None)), hint)


def _add_option(parser: argparse.ArgumentParser, name: str, option: Option) -> None:
    kind, default, text, choices = option
    if text:
        text = text.replace("%", "%%")
        if default is dataclasses.MISSING:
            text += " (required)"
        elif default not in (None, "", ()):
            text += f" (default: {str(default).removeprefix(f'{ROOT}{os.sep}')})"  # the same text on every machine
    # Absent options stay out of the namespace, so that they do not hide what the YAML file says.
    if kind is bool:
        parser.add_argument(flag(name), action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
    elif kind is tuple:
        parser.add_argument(flag(name), nargs="+", default=argparse.SUPPRESS, help=text)
    else:
        parser.add_argument(
            flag(name),
            type=kind,
            default=argparse.SUPPRESS,
            choices=choices,
            metavar=None if choices else kind.__name__.upper(),
            help=text,
        )
