"""Train the learned part of the misuse layer and measure the whole layer on the rows that were left out.

    python -m medical_assistant.safety.training.misuse --requests FILE --ordinary FILE... \\
        --output assets/misuse_model.json

`--requests`: harmful requests (`prompt` or `text`), such as MedSafetyBench (Han et al. 2024, arXiv:2403.03744, MIT).
`--ordinary`: questions that must be answered (`question`, `input`, `prompt` or `text`). Half of the rows of each file,
chosen by a hash of the text, train; the other half measures. The contrast rows of `assets/misuse_rows.yaml` all train.
The file that is written holds hashed weights, no text. Needs scikit-learn; the application does not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from medical_assistant.data.records import read_source
from medical_assistant.errors import UserError
from medical_assistant.files import file_sha256
from medical_assistant.models.presets import ASSETS
from medical_assistant.safety.hashed_classifier import stored, write_model
from medical_assistant.safety.hashed_features import features, words_in
from medical_assistant.safety.misuse import GENERAL, MISUSE_FILE, assess_misuse
from medical_assistant.safety.misuse_classifier import MODEL_FILE, load_model
from medical_assistant.safety.phrase_rules import load_rules
from medical_assistant.safety.text_reading import normalise
from medical_assistant.safety.training.hashed import feature_matrix, stored_weights, trains

OWN_ROWS = ASSETS / "misuse_rows.yaml"
_OF_WRITER = re.compile(r"\b(?:I|my|myself)\b")
TEXT_KEYS = ("prompt", "question", "input", "text")
FOUND = 0.93  # part of the harmful training rows that the threshold finds in cross-validation: the highest that does
# With one division into folds, eight more rows moved the harmful part found from 0.92 to 0.86.
FOLDS, REPEATS = 5, 3
STRENGTH = 100.0  # inverse of the L2 penalty; of 10, 30 and 100 the best in cross-validation
OWN_WEIGHT = 3.0  # a contrast row stands for more kinds of messages than one of many like questions
SMALLEST_WEIGHT = 3  # in units of 1 / SCALE; smaller ones change no score by more than noise


def read_texts(path: Path) -> list[str]:
    """Return the different texts of a JSONL file. `UserError`: no such file, or no text in it."""
    rows = read_source(str(path)).rows
    texts = [next((str(row[key]) for key in TEXT_KEYS if row.get(key)), "") for row in rows]
    found = list(dict.fromkeys(text for text in texts if text))
    if not found:
        raise UserError(f"{path} has no texts: its rows need one of {', '.join(TEXT_KEYS)}.")
    return found


@dataclass(frozen=True)
class Row:
    """A text to train on. Rows of one `group` say nearly the same and stay together in cross-validation."""

    text: str
    harmful: bool
    group: str
    own: bool = False


def own_rows(path: Path = OWN_ROWS) -> list[Row]:
    """Return the contrast rows: each action in `frames_each` of the frames, and the lines."""
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    rows = [Row(str(line), False, str(line), own=True) for line in data["ordinary_lines"]]
    for key, harmful in (("ordinary_actions", False), ("harmful_actions", True)):
        for action in data[key]:
            frames = data["frames"] + data["professional_frames"] * (not _OF_WRITER.search(action))
            first = hashlib.sha256(action.encode()).digest()[1]
            # 5 has no common factor with 9 and 13 frames: the frames of one action differ.
            texts = [frames[(first + 5 * i) % len(frames)].format(action) for i in range(data["frames_each"])]
            rows += [Row(text, harmful, action, own=True) for text in texts]
    return rows


def train(rows: Sequence[Row]) -> tuple[list[int], float, float, dict[str, float]]:
    """Return (weights in units of 1 / `SCALE`, bias, threshold, parts of the rows that reach it in cross-validation).

    The threshold is the score that `FOUND` of the harmful rows reach, when each is scored by models that were trained
    without its group. The parts: `ordinary` of the public questions, `own_ordinary` of the own rows, of which many are
    harder than any real message (frames of harmful requests around harmless actions).
    """
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold

    rules = load_rules(MISUSE_FILE)
    matrix = feature_matrix([[features(words_in(normalise(row.text, rules)))] for row in rows])
    labels, own = np.array([row.harmful for row in rows]), np.array([row.own for row in rows])
    weights = np.where(own, OWN_WEIGHT, 1.0)

    def fit(members: Any) -> Any:
        model = LogisticRegression(C=STRENGTH, solver="liblinear", random_state=0)
        return model.fit(matrix[members], labels[members], sample_weight=weights[members])

    scores = np.zeros(len(rows))
    for seed in range(REPEATS):
        folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
        for members, others in folds.split(matrix, labels, [row.group for row in rows]):
            scores[others] += fit(members).decision_function(matrix[others]) / REPEATS
    threshold = float(np.quantile(scores[labels & ~own], 1 - FOUND))
    reached = {"ordinary": ~labels & ~own, "own_ordinary": ~labels & own}
    model = fit(np.arange(len(rows)))
    return (
        stored_weights(model.coef_[0], SMALLEST_WEIGHT),
        float(model.intercept_[0]),
        threshold,
        {name: round(float((scores[members] >= threshold).mean()), 5) for name, members in reached.items()},
    )


def measure(texts: Sequence[str]) -> dict[str, Any]:
    """Return `rows`, the part of them that the `rules` refuse, and the part that rules and model refuse (`both`)."""
    found = [assess_misuse(text).category for text in texts]
    by_rules = sum(bool(category) and category != GENERAL for category in found)
    return {
        "rows": len(texts),
        "rules": round(by_rules / max(1, len(texts)), 4),
        "both": round(sum(map(bool, found)) / max(1, len(texts)), 4),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Train, write the model, measure the layer on the other half and write the figures into the model file."""
    parser = argparse.ArgumentParser(prog="python -m medical_assistant.safety.training.misuse", description=__doc__)
    parser.add_argument("--requests", type=Path, required=True, nargs="+", help="harmful requests, JSONL")
    parser.add_argument("--ordinary", type=Path, required=True, nargs="+", help="ordinary questions, JSONL")
    parser.add_argument("--output", type=Path, default=MODEL_FILE)
    arguments = parser.parse_args(argv)
    rows = own_rows()
    sources = [{"name": OWN_ROWS.name, "sha256": file_sha256(OWN_ROWS), "rows": len(rows)}]
    left_out: dict[str, list[str]] = {}
    for paths, harmful in ((arguments.requests, True), (arguments.ordinary, False)):
        for path in paths:
            texts = read_texts(path)
            chosen = [text for text in texts if trains(text)]
            rows += [Row(text, harmful, text) for text in chosen]
            sources.append({"name": path.name, "sha256": file_sha256(path), "rows": len(chosen)})
            left_out[path.name] = [text for text in texts if not trains(text)]
    weights, bias, threshold, reached = train(rows)
    details: dict[str, Any] = {
        "trained_on": sources,
        "refused_in_cross_validation": {"harmful": FOUND, **reached},
        "refused_of_the_other_half": {},
    }
    _write(arguments.output, weights, bias, threshold, details)
    if arguments.output.resolve() == MODEL_FILE:
        load_model.cache_clear()
        details["refused_of_the_other_half"] = {name: measure(texts) for name, texts in left_out.items()}
        _write(arguments.output, weights, bias, threshold, details)
    sys.stdout.write(json.dumps({"threshold": threshold, **details}, indent=1) + "\n")
    return 0


def _write(path: Path, weights: Sequence[int], bias: float, threshold: float, details: dict[str, Any]) -> None:
    write_model(path, {"details": details, "threshold": round(threshold, 4), **stored(weights, bias)})


if __name__ == "__main__":
    sys.exit(main())
