"""A logistic regression over hashed features: its score, and the file in `assets` that holds it; no pickle, no text.

`restore` reads what `stored` wrote; the file around it (thresholds, details) belongs to the module that uses it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from medical_assistant.errors import UserError
from medical_assistant.safety.hashed_features import BUCKETS

SCALE = 100  # weights are stored as whole hundredths
Model = TypeVar("Model")


@dataclass(frozen=True)
class Regression:
    """`weights[bucket]` and `bias` in log odds."""

    weights: tuple[float, ...]
    bias: float

    def score(self, *groups: set[int]) -> float:
        """Return the log odds of a text. Each group of buckets adds its weights over the root of their number."""
        return self.bias + sum(
            sum(self.weights[bucket] for bucket in group) / math.sqrt(len(group)) for group in groups if group
        )


def probability(score: float) -> float:
    """Return the probability (0 to 1) of log odds."""
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, score))))


def stored(units: Sequence[int], bias: float) -> dict[str, Any]:
    """Return what a file holds: `bias`, `index` (the buckets with a weight), `weights` in units of 1 / `SCALE`."""
    index = [bucket for bucket, weight in enumerate(units) if weight]
    return {"bias": round(bias, 4), "index": index, "weights": [units[bucket] for bucket in index]}


def restore(data: Mapping[str, Any]) -> Regression:
    """Return the regression of `stored`. `ValueError`, `KeyError`, `TypeError`, `IndexError`: it is none."""
    weights = [0.0] * BUCKETS
    for bucket, weight in zip(data["index"], data["weights"], strict=True):
        weights[bucket] = weight / SCALE
    return Regression(tuple(weights), float(data["bias"]))


def read_model(path: Path, build: Callable[[Any], Model], training: str) -> Model:
    """Return what `build` makes of the JSON in `path`. `UserError`: the file is missing or not one of `training`."""
    try:
        return build(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(
            f"{path.name} cannot be read ({type(error).__name__}): restore it, or write it again with "
            f"python -m medical_assistant.{training}."
        ) from error


def write_model(path: Path, data: Mapping[str, Any]) -> None:
    """Write `data` as JSON without blanks."""
    path.write_text(json.dumps(data, separators=(",", ":")) + "\n", encoding="utf-8")
