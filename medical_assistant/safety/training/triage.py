"""Train the second line of the emergency layer, choose its thresholds and measure it.

    python -m medical_assistant.safety.training.triage --development FILE --ordinary FILE...

Trains on the tuning rows of `SETS` in tests/safety, on the messages in assets/triage_training (written for this, used
for nothing else), on `--development` (rows with `id`, `level`, `patient_words` and `text`;
`assets/triage_label_corrections.jsonl` puts debatable labels right by id) and on `SAMPLE` questions of each
`--ordinary` file (`question`, `input`, `prompt` or `text`). Held-back and blind rows do not train. Scores of
`FOLDS`-fold cross-validation set the thresholds: the smallest with at most `ADDED_EMERGENCIES` of the messages that are
neither emergencies nor urgent raised to "emergency", and `ADDED_URGENT` raised to "urgent", beyond what the rules
already say, among the rows of tests/safety, of the corpus, and of the ordinary files, each by themselves. The file that
is written holds hashed weights, no text. Needs scikit-learn; the application does not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medical_assistant.data.records import read_source
from medical_assistant.errors import UserError
from medical_assistant.files import file_sha256
from medical_assistant.models.presets import ASSETS
from medical_assistant.safety.hashed_classifier import stored, write_model
from medical_assistant.safety.text_reading import read_all
from medical_assistant.safety.training.hashed import feature_matrix, stored_weights
from medical_assistant.safety.triage import assess_by_rules
from medical_assistant.safety.triage_classifier import (
    MIN_WORDS,
    MODEL_FILE,
    feature_groups,
    is_about_now,
    language_of,
    load_second_line,
    words_of,
)

SAFETY = ASSETS.parent / "tests" / "safety_sets"
SETS = (
    "emergencies", "not_emergencies", "follow_ups", "other_levels", "vignettes",
    "language_es", "language_fr", "language_pt", "language_sw",
)  # fmt: skip
CORPUS = ASSETS / "triage_training"
CORRECTIONS = ASSETS / "triage_label_corrections.jsonl"
TEXT_KEYS = ("question", "input", "prompt", "text")
EMERGENCY_LEVELS = ("emergency", "crisis")
SAMPLE = 500  # questions of each ordinary file: they are many and alike
ADDED_EMERGENCIES, ADDED_URGENT = 0.03, 0.05
LEAST = 0.3  # no threshold lies below: two of five rows are emergencies
FOLDS, SEED = 10, 17
STRENGTH = 10.0  # inverse of the L2 penalty
SMALLEST_WEIGHT = 4  # in units of 1 / SCALE; smaller ones change no score by more than noise


@dataclass(frozen=True)
class Row:
    """One message: whether it is an emergency, or at least urgent, its set, and the sets that share one threshold."""

    text: str
    emergency: bool
    name: str
    urgent: bool = False
    pool: str = "ordinary"


def safety_rows(folder: Path = SAFETY) -> list[Row]:
    """Return the tuning rows of `SETS`. The gravest level counts only where it is the first that a row accepts.

    A follow-up that is an emergency only together with earlier messages is joined to them.
    """
    rows = []
    for name in SETS:
        for row in _read(folder / f"{name}.jsonl"):
            if row["split"] == "tuning":
                emergency = row["level"][0] == "emergency"
                text = ". ".join([*row.get("history", ()), row["text"]]) if emergency else row["text"]
                rows.append(Row(text, emergency, name, row["level"][0] == "urgent", "safety"))
    return rows


def corpus_rows(folder: Path = CORPUS) -> list[Row]:
    """Return the messages that were written for training, a set for each file."""
    return [
        Row(row["text"], row["level"] == "emergency", path.stem, row["level"] == "urgent", "corpus")
        for path in sorted(folder.glob("*.jsonl"))
        for row in _read(path)
    ]


def development_rows(path: Path, corrections: Path = CORRECTIONS) -> list[Row]:
    """Return the rows of `path`, with corrected levels: what the patient says, and the case as a clinician noted it."""
    corrected = {row["id"]: row["level"] for row in _read(corrections)}
    rows = []
    for row in _read(path):
        level = corrected.get(row["id"], row["level"])
        for text in filter(None, (row.get("patient_words"), row.get("text"))):
            rows.append(Row(text, level in EMERGENCY_LEVELS, path.name, level == "urgent", "dev"))
    return rows


def ordinary_rows(path: Path) -> list[Row]:
    """Return `SAMPLE` of the different questions of `path`, the same ones each time. `UserError`: there are none."""
    texts = {next((str(row[key]) for key in TEXT_KEYS if row.get(key)), "") for row in _read(path)} - {""}
    if not texts:
        raise UserError(f"{path} has no questions: its rows need one of {', '.join(TEXT_KEYS)}.")
    return [Row(text, False, path.name) for text in sorted(texts, key=_digest)[:SAMPLE]]


def train(feature_groups: Sequence[Sequence[set[int]]], labels: Sequence[bool]) -> tuple[list[int], float, list[float]]:
    """Return (weights in units of 1 / `SCALE`, bias, probability of each row by a model trained without it)."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    matrix = feature_matrix(feature_groups)
    wanted = np.array(labels)

    def fit(members: Any) -> Any:
        model = LogisticRegression(C=STRENGTH, solver="liblinear", random_state=SEED)
        return model.fit(matrix[members], wanted[members])

    probabilities = np.zeros(len(wanted))
    for members, others in StratifiedKFold(FOLDS, shuffle=True, random_state=SEED).split(matrix, wanted):
        probabilities[others] = fit(members).predict_proba(matrix[others])[:, 1]
    model = fit(np.arange(len(wanted)))
    kept = stored_weights(model.coef_[0], SMALLEST_WEIGHT)
    return kept, float(model.intercept_[0]), [float(p) for p in probabilities]


@dataclass(frozen=True)
class Scored:
    """One row with its cross-validated `probability`, the `level` that the rules give, whether it `may_rise`, and its
    `language` ("english" or "other")."""

    row: Row
    probability: float
    level: str
    may_rise: bool
    language: str = "english"


def thresholds(scored: Sequence[Scored]) -> tuple[float, float]:
    """Return the probabilities from which a message is raised to "emergency" and to "urgent".

    Rows that the rules already raise that high are not counted: the second line adds nothing to them. An urgent
    message that is called an emergency is forgiven: the way is right, the haste too great.
    """
    pools: dict[str, list[Scored]] = {}
    for one in scored:
        if not one.row.emergency and not one.row.urgent:
            pools.setdefault(one.row.pool, []).append(one)
    found = []
    for share, done in ((ADDED_EMERGENCIES, ("emergency",)), (ADDED_URGENT, ("emergency", "urgent"))):
        least = LEAST
        for pool in pools.values():
            raised = sorted((one.probability for one in pool if one.may_rise and one.level not in done), reverse=True)
            allowed = int(share * len(pool))
            if allowed and len(raised) > allowed:  # a pool of fewer rows cannot show so small a share
                least = max(least, raised[allowed] + 0.001)
        found.append(least)
    return max(found), found[1]


def measure(scored: Sequence[Scored], least: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """Return `rows`, found `by_rules`, `by_second_line` alone, `added` by it, for each kind of rows of each set.

    `least`: the thresholds by language, as the file has them.
    """
    names = ("rows", "by_rules", "by_second_line", "added")
    counts: dict[str, Any] = {}
    for one in scored:
        kinds = counts.setdefault(one.row.name, {})
        kind = "emergencies" if one.row.emergency else "urgent" if one.row.urgent else "others"
        count = kinds.setdefault(kind, dict.fromkeys(names, 0))
        by_rules, by_second_line = one.level == "emergency", one.may_rise and one.probability >= least[one.language][0]
        for name, holds in zip(names, (True, by_rules, by_second_line, by_second_line and not by_rules), strict=True):
            count[name] += holds
    return counts


def main(argv: Sequence[str] | None = None) -> int:
    """Train, choose the thresholds, measure by cross-validation and write the weights."""
    parser = argparse.ArgumentParser(prog="python -m medical_assistant.safety.training.triage", description=__doc__)
    parser.add_argument("--development", type=Path, help="messages with a level, JSONL")
    parser.add_argument("--ordinary", type=Path, nargs="*", default=[], help="questions that are no emergency, JSONL")
    parser.add_argument("--output", type=Path, default=MODEL_FILE)
    arguments = parser.parse_args(argv)
    rows = safety_rows() + corpus_rows()
    files = [*(SAFETY / f"{name}.jsonl" for name in SETS), *sorted(CORPUS.glob("*.jsonl"))]
    if arguments.development:
        rows += development_rows(arguments.development)
        files += [arguments.development, CORRECTIONS]
    for path in arguments.ordinary:
        rows += ordinary_rows(path)
        files.append(path)
    rows = [row for row in rows if len(words_of(row.text)) >= MIN_WORDS]
    readings = [read_all(row.text) for row in rows]
    groups = [feature_groups(words_of(row.text), found) for row, found in zip(rows, readings, strict=True)]
    weights, bias, probabilities = train(groups, [row.emergency for row in rows])
    scored = [
        Scored(
            row,
            probability,
            assess_by_rules(row.text, readings=found).level,
            is_about_now(found) and bool(language_of(found)),
            language_of(found) or "other",
        )
        for row, probability, found in zip(rows, probabilities, readings, strict=True)
    ]
    least = {
        language: thresholds([one for one in scored if one.language == language]) for language in ("english", "other")
    }
    details = {
        "trained_on": [
            {
                "name": path.name,
                "sha256": file_sha256(path),
                "rows": sum(row.name in (path.name, path.stem) for row in rows),
            }
            for path in files
        ],
        "cross_validation": measure(scored, least),
    }
    rounded = {language: [round(value, 4) for value in pair] for language, pair in least.items()}
    write_model(arguments.output, {"details": details, "thresholds": rounded, **stored(weights, bias)})
    load_second_line.cache_clear()
    sys.stdout.write(json.dumps({"thresholds": least, **details}, indent=1) + "\n")
    return 0


def _read(path: Path) -> list[dict[str, Any]]:
    return read_source(str(path)).rows


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
