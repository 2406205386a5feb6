"""Does the library answer a question? A logistic regression over a handful of signals, and two thresholds.

Fitted by `benchmarks/library.py --fit` on questions that are and are not covered; coverage.json holds the weights and
the thresholds, which come from a measured risk-coverage curve on questions that did not fit it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medical_assistant.errors import UserError
from medical_assistant.library.passages import Coverage

# named, shown, unknown: share (0-1) of the question's telling words in the topic's name, in its page, in no page.
# margin: how far the best page by BM25 is ahead (0-1). agree: it is the chosen page. guessed: a name was corrected.
SIGNALS = ("named", "shown", "unknown", "margin", "agree", "guessed", "has_name")


@dataclass(frozen=True)
class Gate:
    weights: Mapping[str, float]
    bias: float
    covered_from: float
    partly_from: float

    def probability(self, signals: Mapping[str, float]) -> float:
        """Return how probable (0-1) it is that the passages answer the question."""
        score = self.bias + sum(self.weights[name] * signals[name] for name in SIGNALS)
        return 1.0 / (1.0 + math.exp(-max(-30.0, min(30.0, score))))

    def coverage(self, probability: float) -> Coverage:
        """Return "covered", "partly" or "not"."""
        if probability >= self.covered_from:
            return "covered"
        return "partly" if probability >= self.partly_from else "not"


def load_gate(path: Path) -> Gate:
    """Return the gate of `coverage.json`. Raises `UserError` when the file is missing or broken."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        weights = {name: float(content["weights"][name]) for name in SIGNALS}
        return Gate(weights, float(content["bias"]), float(content["covered_from"]), float(content["partly_from"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is missing or broken: restore it, or fit it with benchmarks/library.py.") from error
