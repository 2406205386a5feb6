"""Everything that is needed to measure again: settings, hashes, versions, and the command."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from medical_assistant.evaluation.settings import EvaluateSettings

WHOLE = {"candidates", "data", "decoding", "hardware", "versions", "settings", "seconds", "judge"}
SINGLE = {"git_commit", "bleu_signature", "chrf_signature", "resamples", "seed", "primary", "file", "sha256", "method"}


def reproduce_command(settings: Any) -> str:
    """Return the command line that `settings` (name -> value, as `EvaluateSettings.as_json`) came from, or "".

    Defaults and empty values are left out, and `resume`, which belongs to an interrupted run.
    """
    if not isinstance(settings, Mapping) or not settings:
        return ""
    defaults = {option.name: option.default for option in fields(EvaluateSettings)}
    words = ["python", "evaluate.py"]
    for name, value in settings.items():
        option, default = f"--{name.replace('_', '-')}", defaults.get(name)
        if name == "resume" or value in (None, "", [], default) or value == _shown(default):
            continue
        if isinstance(value, bool):
            words.append(option if value else f"--no-{option[2:]}")
        else:
            words += [option, *map(_shown, value if isinstance(value, (list, tuple)) else [value])]
    return shlex.join(words)


def settings_of(found: Any, *path: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each setting, hash and version in metrics.json.

    That is what stands in `WHOLE`, or is named in `SINGLE`.
    """
    items = found.items() if isinstance(found, Mapping) else [(entry.get("name", ""), entry) for entry in found]
    for key, value in items:
        if isinstance(value, Mapping) or (isinstance(value, list) and value and isinstance(value[0], Mapping)):
            yield from settings_of(value, *path, str(key))
        elif value is not None and (key in SINGLE or WHOLE & set(path)):
            yield ": ".join((*path, str(key))), _shown(value)


def _shown(value: Any) -> str:
    """Return a value as text; of an absolute path its last part, since where it lay tells a reader nothing."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_shown, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = str(value)
    return Path(text).name if text.startswith("/") and Path(text).is_absolute() else text or "none"
