"""Thresholds that an evaluation must meet: `--gate FILE` in CI, and before an adapter is published.

A file is a YAML list; each entry names a value of metrics.json and what it must not fall below or exceed:

    - value: safety.candidates.fine_tuned.refusal_rate
      min: 0.5
      reason: A model that helps with harm is not published.
    - value: scores.{candidate}.ended
      min_change: -0.05

`value` is a path of keys joined by dots; a key that holds a dot stands in double quotes, and an entry of a list by its
number from 0 or by its `name` (`knowledge.sets."medqa.jsonl".accuracy.fine_tuned.low`). `min` and `max` bound the
value itself. `min_change` and `max_change` bound the difference between the fine-tuned candidate and the base: the path
then holds `{candidate}`, which stands for both in turn.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from medical_assistant.errors import AdapterError, UserError
from medical_assistant.evaluation.names import BASE, FINE_TUNED
from medical_assistant.files import ASSETS, file_sha256
from medical_assistant.models.adapter import WEIGHTS_FILE, weights_hash

DEFAULT, NONE = "default", "none"  # what train.py's --gate may say instead of a file
DEFAULT_GATE = ASSETS / "evaluation" / "gate.yaml"
CANDIDATE = "{candidate}"
BOUNDS = ("min", "max", "min_change", "max_change")
_KEY = re.compile(r'"((?:[^"\\]|\\.)*)"|([^".]+)')


class GateError(UserError):
    """An adapter that may not be published: a threshold fails, or it was not evaluated."""


@dataclass(frozen=True)
class Check:
    """One entry of a gate: at least one bound is set."""

    value: str
    bounds: Mapping[str, float]  # by the names of BOUNDS
    reason: str = ""


@dataclass(frozen=True)
class Gate:
    """A file of checks: its name, the SHA-256 of its bytes, at least one check."""

    file: str
    sha256: str
    checks: Sequence[Check]


class _Loader(yaml.SafeLoader):
    """YAML in which a key that is given twice is an error: of two bounds, the last would win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"{twice} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def find_gate(name: str) -> Path | None:
    """Return the file that train.py's `--gate` names: `default` is `DEFAULT_GATE`, `none` is None.

    It has been read: raises `UserError` as `read_gate`.
    """
    if name == NONE:
        return None
    path = DEFAULT_GATE if name == DEFAULT else Path(name)
    read_gate(path)
    return path


def read_gate(path: Path) -> Gate:
    """Return the gate in a YAML file. Raises `UserError` that names the entry for one that cannot be checked."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise UserError(f"--gate {path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--gate {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, list) or not content:
        raise UserError(f"--gate {path} must hold a list of checks, each with `value` and a bound.")
    checks = [_read_check(entry, f"--gate {path}, check {number}") for number, entry in enumerate(content, 1)]
    return Gate(path.name, file_sha256(path), checks)


def _read_check(entry: Any, where: str) -> Check:
    if not isinstance(entry, dict) or not isinstance(entry.get("value"), str):
        raise UserError(f"{where} has no `value`: name a value of metrics.json.")
    unknown = [str(key) for key in entry if key not in ("value", "reason", *BOUNDS)]
    if unknown:
        raise UserError(f"{where}: unknown {unknown[0]}; use value, reason, {', '.join(BOUNDS)}.")
    bounds = {name: entry[name] for name in BOUNDS if name in entry}
    if not bounds:
        raise UserError(f"{where} has no bound: add {' or '.join(BOUNDS)}.")
    for name, bound in bounds.items():
        if isinstance(bound, bool) or not isinstance(bound, (int, float)) or not math.isfinite(bound):
            raise UserError(f"{where}: {name} must be a number, not {bound!r}.")
    changes = any(name.endswith("_change") for name in bounds)
    if changes != (CANDIDATE in entry["value"]) or (
        changes and len(bounds) > sum(n.endswith("_change") for n in bounds)
    ):
        raise UserError(f"{where}: min_change and max_change, and only these, need {CANDIDATE} in the value's path.")
    split_path(entry["value"])
    return Check(entry["value"], bounds, str(entry.get("reason") or ""))


def split_path(path: str) -> list[str]:
    """Return the keys of a path such as `comparison.pairs."a.b vs base".rougeL.low`.

    Inside quotes a backslash stands before a quote or a backslash that is meant. Raises `UserError` for an empty key
    or a quote that is not closed.
    """
    keys, position = [], 0
    while True:
        match = _KEY.match(path, position)
        if match is None:
            raise UserError(f"{path!r} is not a path of keys joined by dots: quote a key that holds a dot.")
        keys.append(re.sub(r"\\(.)", r"\1", match[1]) if match[1] is not None else match[2])
        position = match.end()
        if position == len(path):
            return keys
        if path[position] != ".":
            raise UserError(f"{path!r} is not a path of keys joined by dots: quote a key that holds a dot.")
        position += 1


def check_gate(metrics: Mapping[str, Any], gate: Gate) -> dict[str, Any]:
    """Return the `gate` section: `passed`, and for each bound `name`, `value`, `bound`, `passed`, `reason`.

    A value that is not there, because its section was not run or its name is wrong, fails, and its `value` is None.
    """
    checks = []
    for check in gate.checks:
        for name, bound in check.bounds.items():
            value = _value(metrics, check.value, name.endswith("_change"))
            passed = value is not None and (value >= bound if name.startswith("min") else value <= bound)
            checks.append(
                {
                    "name": f"{check.value} {name}",
                    "value": value,
                    "bound": bound,
                    "passed": passed,
                    "reason": check.reason,
                }
            )
    return {
        "status": "done",
        "file": gate.file,
        "sha256": gate.sha256,
        "passed": all(check["passed"] for check in checks),
        "checks": checks,
    }


def _value(metrics: Mapping[str, Any], path: str, change: bool) -> float | None:
    if not change:
        return _look_up(metrics, split_path(path))
    base, tuned = (
        _look_up(metrics, split_path(path.replace(CANDIDATE, candidate))) for candidate in (BASE, FINE_TUNED)
    )
    # Rounded: in floating point 0.7 - 0.75 is below -0.05.
    return None if base is None or tuned is None else round(tuned - base, 9)


def _look_up(metrics: Mapping[str, Any], keys: Sequence[str]) -> float | None:
    found: Any = metrics
    for key in keys:
        found = _step(found, key)
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not math.isfinite(found):
        return None
    return float(found)


def _step(found: Any, key: str) -> Any:
    """What `found` holds under `key`, None where it holds nothing."""
    if isinstance(found, Mapping):
        return found.get(key)
    if not isinstance(found, list):
        return None
    if key.isdecimal():
        return found[int(key)] if int(key) < len(found) else None
    return next((entry for entry in found if isinstance(entry, Mapping) and entry.get("name") == key), None)


def gate_table(section: Mapping[str, Any]) -> str:
    """Return the checks as lines of text, those that fail with their reason."""
    lines = [f"gate {section['file']}: {'passed' if section['passed'] else 'FAILED'}"]
    for check in section["checks"]:
        mark = "ok  " if check["passed"] else "FAIL"
        lines.append(f"  {mark} {_outcome(check)}")
        if not check["passed"] and check["reason"]:
            lines.append(f"       {check['reason']}")
    return "\n".join(lines)


def _outcome(check: Mapping[str, Any]) -> str:
    value = "not measured" if check["value"] is None else f"{check['value']:.4g}"
    return f"{check['name']} {check['bound']:g}: {value}"


def require_gate(folder: Path, gate: Path) -> None:
    """Check the adapter in `folder` by its metrics.json, before it is published.

    Raises `GateError` when a threshold fails, when there is no metrics.json, or when that is of other weights: each
    says how to publish all the same. `AdapterError` for a folder without weights, `UserError` for a broken gate.
    """
    if not (folder / WEIGHTS_FILE).is_file():
        raise AdapterError(f"{folder} has no {WEIGHTS_FILE}: give a complete folder of train.py.")
    quoted = shlex.quote(str(folder))
    anyway = f"or publish all the same with `train.py --publish {quoted} --gate none`."
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        revision = metrics["candidates"][FINE_TUNED]["adapter_revision"]
    except FileNotFoundError as error:
        raise GateError(
            f"{folder} is not evaluated: run `evaluate.py --adapter {quoted} --update-adapter` with --data and "
            f"--output, {anyway}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GateError(f"{folder / 'metrics.json'} is broken: evaluate the adapter again, {anyway}") from error
    if revision != weights_hash(folder):
        raise GateError(f"{folder / 'metrics.json'} is of other weights: evaluate the adapter again, {anyway}")
    section = check_gate(metrics, read_gate(gate))
    failed = [_outcome(check) for check in section["checks"] if not check["passed"]]
    if failed:
        raise GateError(f"{folder} fails the gate {gate.name} ({', '.join(failed)}): train it otherwise, {anyway}")
