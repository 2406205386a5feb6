"""Thresholds that an evaluation must meet: `--gate FILE` in CI, and before an adapter is published.

A file is a YAML list; each entry names a value of metrics.json and what it must not fall below or exceed:

    - value: safety.candidates.fine_tuned.refusal_rate
      min: 0.5
      reason: A model that helps with harm is not published.
    - value: scores.{candidate}.ended
      min_change: -0.05

`value` is a path of keys joined by dots. A key that holds a dot stands in double quotes; an entry of a list is named by
its number from 0 or by its `name` (`knowledge.sets."medqa.jsonl".accuracy.fine_tuned.low`). `min` and `max` bound the
value itself. `min_change` and `max_change` bound the difference between the fine-tuned candidate and the base: the path
then holds `{candidate}`, which stands for both in turn.
"""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from medical_assistant.errors import AdapterError, UserError
from medical_assistant.evaluation.names import BASE, FINE_TUNED
from medical_assistant.evaluation.report.format import is_number
from medical_assistant.files import ASSETS, file_sha256
from medical_assistant.models.adapter import WEIGHTS_FILE, weights_hash

DEFAULT, NONE = "default", "none"  # what train.py's --gate may say instead of a file
DEFAULT_GATE = ASSETS / "evaluation" / "gate.yaml"
CANDIDATE = "{candidate}"
BOUNDS = ("min", "max", "min_change", "max_change")


class GateError(UserError):
    """An adapter that may not be published: a threshold fails, or it was not evaluated."""


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


def read_gate(path: Path) -> list[dict[str, Any]]:
    """Return the checks of a YAML file, at least one: `value`, its bounds by the names of `BOUNDS`, and maybe `reason`.

    Raises `UserError` that names the entry for one that cannot be checked.
    """
    try:
        checks = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise UserError(f"--gate {path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--gate {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(checks, list) or not checks:
        raise UserError(f"--gate {path} must hold a list of checks, each with `value` and a bound.")
    for number, check in enumerate(checks, 1):
        _validate(check, f"--gate {path}, check {number}")
    return checks


def _validate(check: Any, where: str) -> None:
    if not isinstance(check, dict) or not isinstance(check.get("value"), str):
        raise UserError(f"{where} has no `value`: name a value of metrics.json.")
    unknown = [str(key) for key in check if key not in ("value", "reason", *BOUNDS)]
    if unknown:
        raise UserError(f"{where}: unknown {unknown[0]}; use value, reason, {', '.join(BOUNDS)}.")
    bounds = [name for name in BOUNDS if name in check]
    if not bounds:
        raise UserError(f"{where} has no bound: add {' or '.join(BOUNDS)}.")
    for name in bounds:
        if not is_number(check[name]):
            raise UserError(f"{where}: {name} must be a number, not {check[name]!r}.")
        if name.endswith("_change") != (CANDIDATE in check["value"]):
            raise UserError(
                f"{where}: min_change and max_change, and only these, need {CANDIDATE} in the value's path."
            )
    split_path(check["value"])


def split_path(path: str) -> list[str]:
    """Return the keys of a path such as `comparison.pairs."a.b vs base".rougeL.low`: a line of CSV with dots.

    Raises `UserError` for an empty key or a quote that is not closed.
    """
    try:
        keys = next(csv.reader([path], delimiter=".", strict=True), [])
    except csv.Error:
        keys = []
    if not all(keys) or not keys:
        raise UserError(f"{path!r} is not a path of keys joined by dots: quote a key that holds a dot.")
    return keys


def check_gate(metrics: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the `gate` section: `passed`, and for each bound `name`, `value`, `bound`, `passed`, `reason`.

    A value that is not there, because its section was not run or its name is wrong, fails, and its `value` is None.
    Raises `UserError` as `read_gate`.
    """
    checks = []
    for check in read_gate(path):
        for name in (name for name in BOUNDS if name in check):
            value, bound = _value(metrics, check["value"]), check[name]
            passed = value is not None and (value >= bound if name.startswith("min") else value <= bound)
            found = {"name": f"{check['value']} {name}", "value": value, "bound": bound, "passed": passed}
            checks.append(found | {"reason": str(check.get("reason") or "")})
    return {
        "status": "done",
        "file": path.name,
        "sha256": file_sha256(path),
        "passed": all(check["passed"] for check in checks),
        "checks": checks,
    }


def _value(metrics: Mapping[str, Any], path: str) -> float | None:
    if CANDIDATE not in path:
        return _look_up(metrics, path)
    base, tuned = (_look_up(metrics, path.replace(CANDIDATE, candidate)) for candidate in (BASE, FINE_TUNED))
    # Rounded: in floating point 0.7 - 0.75 is below -0.05.
    return None if base is None or tuned is None else round(tuned - base, 9)


def _look_up(metrics: Mapping[str, Any], path: str) -> float | None:
    found: Any = metrics
    for key in split_path(path):
        if isinstance(found, list):
            named = {entry.get("name"): entry for entry in found if isinstance(entry, Mapping)}
            found = {**named, **{str(number): entry for number, entry in enumerate(found)}}
        found = found.get(key) if isinstance(found, Mapping) else None
    return float(found) if is_number(found) else None


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
    section = check_gate(metrics, gate)
    failed = [_outcome(check) for check in section["checks"] if not check["passed"]]
    if failed:
        raise GateError(f"{folder} fails the gate {gate.name} ({', '.join(failed)}): train it otherwise, {anyway}")
