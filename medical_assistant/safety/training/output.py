"""Train the learned part of the output watch, choose its thresholds and measure it.

    python -m medical_assistant.safety.training.output --answers FILE...

Trains on assets/output_training (sentences written for this, each with a kind), on the tuning rows of
tests/safety_sets/output_watch.jsonl and on the sentences of half of the answers of each `--answers` file (`answer` or
`output`), which may all be said; the other half, chosen by a hash of the text, measures. Scores of `FOLDS`-fold
cross-validation set the threshold of each kind: the smallest that withholds at most `WITHHELD` of the sentences of
public answers and at most `WITHHELD_NEIGHBOURS` of the own sentences that resemble violations. The file that is written
holds hashed weights, no text. Needs scikit-learn; the application does not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medical_assistant.data.records import read_source
from medical_assistant.errors import UserError
from medical_assistant.files import file_sha256
from medical_assistant.models.presets import ASSETS
from medical_assistant.safety.hashed_classifier import stored, write_model
from medical_assistant.safety.hashed_features import words_in
from medical_assistant.safety.output_classifier import KINDS, MIN_WORDS, MODEL_FILE, feature_groups, load_output_model
from medical_assistant.safety.output_filter import OutputFilter, readable
from medical_assistant.safety.training.hashed import feature_matrix, stored_weights, trains

OWN = ASSETS / "output_training"
SAFETY = ASSETS.parent / "tests" / "safety_sets" / "output_watch.jsonl"
KIND_OF_RULE = {
    "diagnosis_as_fact": "diagnosis_as_fact",
    "diagnosis_as_likely": "diagnosis_as_fact",
    "medicine_change": "medicine_change",
    "delay_of_care": "delay_of_care",
    "no_emergency_call": "delay_of_care",
}
ANSWERS = 1_500  # of each file: more change little and take minutes
# Delay is only looked for beside a red flag, where the fixed emergency text stands above the answer: a lost sentence
# costs less there.
WITHHELD = {"delay_of_care": 0.001, "medicine_change": 0.0005, "diagnosis_as_fact": 0.0005}
WITHHELD_NEIGHBOURS = {"delay_of_care": 0.05, "medicine_change": 0.02, "diagnosis_as_fact": 0.02}
BLOCK = 10
FOLDS, SEED = 5, 17
STRENGTH = 30.0  # inverse of the L2 penalty
OWN_WEIGHT = 3.0  # an own row stands for more wordings than one of many like sentences
SMALLEST_WEIGHT = 8  # in units of 1 / SCALE; smaller ones change no score by more than noise


@dataclass(frozen=True)
class Row:
    """A sentence as the watch reads it. `kind`: one of `KINDS`, "" for what may be said.

    Rows of one `group` stay together in cross-validation: those of an answer, or `BLOCK` rows of a file, in which
    violations stand beside their neighbours.
    """

    text: str
    kind: str
    group: str
    own: bool = True


class _Reader(OutputFilter):
    """Shows nothing and keeps each sentence as the rules would read it: normalised, with the lines that open it."""

    def __init__(self, question: str = "") -> None:
        super().__init__(question, learned=False)
        self.sentences: list[str] = []

    def _broken_rule(self, text: str) -> None:
        alone = readable(text)
        if alone:
            self.sentences.append(self._full_text(alone))


def as_read(answer: str, question: str = "") -> list[str]:
    """Return the sentences of `answer` as the watch reads them; empty ones and very short ones are left out."""
    reader = _Reader(question)
    reader.feed(answer)
    reader.finish()
    return [text for text in reader.sentences if len(words_in(text)) >= MIN_WORDS]


def own_rows(folder: Path = OWN, safety: Path = SAFETY) -> list[Row]:
    """Return the written sentences. Two sentences of one violation are one row: neither may be a violation alone."""
    rows: list[Row] = []
    for path in sorted(folder.glob("*.jsonl")):
        for number, row in enumerate(read_source(str(path)).rows):
            kind = row["kind"].replace("none", "")
            rows += _rows(row["text"], row.get("question", ""), kind, f"{path.stem} {number // BLOCK}")
    for number, row in enumerate(read_source(str(safety)).rows):
        kind = KIND_OF_RULE.get(row["rule"], "") if row["rule"] else ""
        if row["split"] == "tuning" and bool(kind) == bool(row["rule"]):
            rows += _rows(row["text"], row.get("question") or "", kind, f"{safety.stem} {number // BLOCK}")
    return rows


def _rows(text: str, question: str, kind: str, group: str) -> Iterator[Row]:
    sentences = as_read(text, question)
    for sentence in [" ".join(sentences)] if kind and sentences else sentences:
        yield Row(sentence, kind, group)


def answers(path: Path) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return (question, answer) of the rows of a JSONL file: those that train, those that measure, `ANSWERS` each.

    `UserError`: it has no answers.
    """
    found = {
        str(row.get("answer") or row.get("output") or ""): str(row.get("question") or row.get("input") or "")
        for row in read_source(str(path)).rows
    }
    found.pop("", None)
    if not found:
        raise UserError(f"{path} has no answers: its rows need answer or output.")
    pairs = [(question, answer) for answer, question in found.items()]
    pairs.sort(key=lambda pair: hashlib.sha256(pair[1].encode()).hexdigest())
    training, measuring = ([pair for pair in pairs if trains(pair[1]) is half] for half in (True, False))
    return training[:ANSWERS], measuring[:ANSWERS]


def train(rows: Sequence[Row], features: Any, kind: str) -> tuple[dict[str, Any], dict[str, float]]:
    """Return (what the file holds of one kind, the parts of the rows withheld in cross-validation).

    `features`: the matrix of `feature_matrix` for all rows. Violations of other kinds are left out: whether one
    sentence is also the other kind was not written down.
    """
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold

    chosen = [number for number, row in enumerate(rows) if row.kind in ("", kind)]
    rows, matrix = [rows[number] for number in chosen], features[chosen]
    labels, own = np.array([bool(row.kind) for row in rows]), np.array([row.own for row in rows])
    weights = np.where(own, OWN_WEIGHT, 1.0)

    def fit(members: Any) -> Any:
        model = LogisticRegression(C=STRENGTH, solver="liblinear", random_state=SEED)
        return model.fit(matrix[members], labels[members], sample_weight=weights[members])

    scores = np.zeros(len(rows))
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=SEED)
    for members, others in folds.split(matrix, labels, [row.group for row in rows]):
        scores[others] = fit(members).decision_function(matrix[others])
    parts = {"violations": labels, "neighbours": ~labels & own, "public_answers": ~labels & ~own}
    threshold = max(
        float(np.quantile(scores[parts["public_answers"]], 1 - WITHHELD[kind])),
        float(np.quantile(scores[parts["neighbours"]], 1 - WITHHELD_NEIGHBOURS[kind])),
    )
    model = fit(np.arange(len(rows)))
    reached = {
        name: round(float((scores[members] >= threshold).mean()), 5) if members.any() else 0.0
        for name, members in parts.items()
    }
    units = stored_weights(model.coef_[0], SMALLEST_WEIGHT)
    return {"threshold": round(threshold, 4), **stored(units, float(model.intercept_[0]))}, reached


def measure(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return `sentences`, and the part of them that the learned part withholds by kind, of (question, answer) pairs."""
    model = load_output_model()
    sentences = [text for question, answer in pairs for text in as_read(answer, question)]
    broken = [name for text in sentences for name in model.broken(text)]
    return {
        "sentences": len(sentences),
        **{name: round(broken.count(name) / max(1, len(sentences)), 5) for name in KINDS},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Train, write the model, measure it on the other half of the answers and write the figures into the file."""
    parser = argparse.ArgumentParser(prog="python -m medical_assistant.safety.training.output", description=__doc__)
    parser.add_argument("--answers", type=Path, required=True, nargs="+", help="answers that may be given, JSONL")
    parser.add_argument("--output", type=Path, default=MODEL_FILE)
    arguments = parser.parse_args(argv)
    rows = own_rows()
    sources = [
        {"name": path.name, "sha256": file_sha256(path), "rows": len(read_source(str(path)).rows)}
        for path in [*sorted(OWN.glob("*.jsonl")), SAFETY]
    ]
    left_out = {}
    for path in arguments.answers:
        training, left_out[path.name] = answers(path)
        for question, answer in training:
            rows += [Row(text, "", answer, own=False) for text in as_read(answer, question)]
        sources.append({"name": path.name, "sha256": file_sha256(path), "rows": len(training)})
    features = feature_matrix([feature_groups(row.text) for row in rows])
    kinds, reached = {}, {}
    for kind in KINDS:
        kinds[kind], reached[kind] = train(rows, features, kind)
    details: dict[str, Any] = {"trained_on": sources, "withheld_in_cross_validation": reached}
    write_model(arguments.output, {"details": details, "kinds": kinds})
    if arguments.output.resolve() == MODEL_FILE:
        load_output_model.cache_clear()
        details["withheld_of_the_other_half"] = {name: measure(pairs) for name, pairs in left_out.items()}
        write_model(arguments.output, {"details": details, "kinds": kinds})
    sys.stdout.write(json.dumps(details, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
