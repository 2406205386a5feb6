"""Everything that is needed to measure again: settings, hashes, versions, and the command."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from medical_assistant.evaluation.report.report_parts import Command, Paragraph, Section, Table
from medical_assistant.evaluation.settings import EvaluateSettings

# Sections of metrics.json whose settings belong into the table, with the keys that are settings.
NAMED = {
    "comparison": ("resamples", "seed", "primary"),
    "statements": ("sha256",),
    "safety": ("sha256",),
    "gate": ("file", "sha256"),
}
WHOLE = ("data", "decoding", "hardware", "versions", "settings", "seconds")
SINGLE = ("n", "git_commit", "bleu_signature", "chrf_signature")


def settings_section(metrics: Mapping[str, Any]) -> Section:
    """Every setting, hash and version, with the command that gives these figures again."""
    section = Section("settings", "How to measure this again")
    command = reproduce_command(metrics.get("settings"))
    if command:
        commit = metrics.get("git_commit")
        at = f" at commit {commit}" if commit else ""
        section.add(
            Paragraph(
                f"In the project's folder{at}, with the same data and versions. Settings that are not named have "
                "their defaults; files are named by the last part of their path."
            ),
            Command(command),
        )
    else:
        section.add(Paragraph("The command is not known: the run recorded no settings."))
    rows = [[name, _value(value)] for name, value in _items(metrics)]
    section.add(Table("Settings, hashes and versions", ("Setting", "Value"), rows, words=(0, 1)))
    return section


def reproduce_command(settings: Any) -> str:
    """Return the command line that `settings` (name -> value, as `EvaluateSettings.as_json`) came from, or "".

    Defaults and empty values are left out, and `resume`, which belongs to an interrupted run.
    """
    if not isinstance(settings, Mapping) or not settings:
        return ""
    defaults = {option.name: option.default for option in fields(EvaluateSettings)}
    words = ["python", "evaluate.py"]
    for name, value in settings.items():
        option = f"--{name.replace('_', '-')}"
        if name == "resume" or value in (None, "", [], defaults.get(name)) or value == _value(defaults.get(name)):
            continue
        if isinstance(value, bool):
            words.append(option if value else f"--no-{option[2:]}")
        elif isinstance(value, (list, tuple)):
            words += [option, *map(_value, value)]
        else:
            words += [option, _value(value)]
    return shlex.join(words)


def _items(metrics: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key in SINGLE:
        if metrics.get(key) is not None:
            yield {"n": "questions"}.get(key, key), metrics[key]
    for key, candidate in metrics["candidates"].items():
        yield from _flat(f"candidate {key}", candidate)
    for key in WHOLE:
        yield from _flat(key, metrics.get(key))
    for key, names in NAMED.items():
        content = metrics.get(key) or {}
        for name in names:
            if content.get(name) is not None:
                yield f"{key}: {name}", content[name]
    for entry in (metrics.get("knowledge") or {}).get("sets") or ():
        for name in ("sha256", "method"):
            if entry.get(name):
                yield f"knowledge, {entry.get('name')}: {name}", entry[name]
    judge = (metrics.get("statements") or {}).get("judge") or {}
    for name in ("kind", "name", "revision", "prompt_sha256"):
        if judge.get(name):
            yield f"judge: {name}", judge[name]


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{name}: {key}" if ": " not in name else f"{name}, {key}", inner)
    elif value is not None:
        yield name, value


def _value(value: Any) -> str:
    """A value as text; of an absolute path its last part, since where it lay tells a reader nothing."""
    if isinstance(value, (list, tuple)):
        return ", ".join(_value(item) for item in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = str(value)
    return Path(text).name if text.startswith("/") and Path(text).is_absolute() else text or "none"
