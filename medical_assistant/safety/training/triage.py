"""The triage classifier's training, and the choice of the thresholds from which it raises a message.

Trains on the tuning rows of the safety sets, on the messages in training_data/triage (written for this, used for
nothing else), on the development file (`triage_label_corrections.jsonl` corrects debatable labels by id) and on a
sample of the ordinary questions. Held-back and blind rows do not train.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medical_assistant.safety.hashed_classifier import probability
from medical_assistant.safety.text_reading import PreparedText
from medical_assistant.safety.training import fitting
from medical_assistant.safety.training.fitting import Row, Settings
from medical_assistant.safety.triage import assess_by_rules
from medical_assistant.safety.triage_classifier import (
    MIN_WORDS,
    feature_groups,
    language_of,
    may_be_raised,
    words_of,
)

OWN_ROWS = fitting.TRAINING_DATA / "triage"
CORRECTIONS = fitting.TRAINING_DATA / "triage_label_corrections.jsonl"
EMERGENCY, URGENT = "emergency", "urgent"


@dataclass(frozen=True)
class Scored:
    """One row with its cross-validated `probability`, the `level` that the rules give, whether it `may_be_raised`, and
    its `language` ("english" or "other")."""

    row: Row
    probability: float
    level: str
    may_be_raised: bool
    language: str = "english"


def rows(settings: Settings, data: Path) -> list[Row]:
    """Return the rows that are long enough. `group`: the kind of file whose rows share one false positive rate."""
    found = [row for name in settings["safety_sets"] for row in safety_rows(fitting.find(name, data))]
    for path in sorted(OWN_ROWS.glob("*.jsonl")):
        found += [Row(row["text"], row["level"], path, "own") for row in fitting.read_rows(path)]
    found += development_rows(fitting.find(settings["development"], data))
    for path in (fitting.find(name, data) for name in settings["ordinary"]):
        texts = sorted(fitting.read_texts(path), key=fitting.digest)[: settings["rows_per_ordinary_file"]]
        found += [Row(text, "", path, "ordinary") for text in texts]
    return [row for row in found if len(words_of(PreparedText(row.text))) >= MIN_WORDS]


def safety_rows(path: Path) -> list[Row]:
    """Return the tuning rows of a safety set. The gravest level counts only where it is the first that a row accepts.

    A follow-up that is an emergency only together with earlier messages is joined to them.
    """
    found = []
    for row in fitting.read_rows(path):
        if row["split"] == "tuning":
            level = row["level"][0]
            text = ". ".join([*row.get("history", ()), row["text"]]) if level == EMERGENCY else row["text"]
            found.append(Row(text, level, path, "safety"))
    return found


def development_rows(path: Path, corrections: Path = CORRECTIONS) -> list[Row]:
    """Return the rows of `path`, with corrected levels: what the patient says, and the case as a clinician noted it."""
    corrected = {row["id"]: row["level"] for row in fitting.read_rows(corrections)}
    found = []
    for row in fitting.read_rows(path):
        level = corrected.get(row["id"], row["level"]).replace("crisis", EMERGENCY)
        found += [Row(row[key], level, path, "development") for key in ("patient_words", "text") if row.get(key)]
    return found


def train(rows: list[Row], settings: Settings) -> dict[str, Any]:
    """Return the content of the classifier's file: weights, the thresholds by language, what was measured."""
    texts = [PreparedText(row.text) for row in rows]
    matrix = fitting.feature_matrix(feature_groups(words_of(text), text.readings) for text in texts)
    content, scores = fitting.fit(matrix, rows, EMERGENCY, settings)
    scored = []
    for row, text, score in zip(rows, texts, scores, strict=True):
        language = language_of(text.readings) or "other"
        scored.append(Scored(row, probability(score), assess_by_rules(text).level, may_be_raised(text), language))
    thresholds = {
        language: choose_thresholds([one for one in scored if one.language == language], settings)
        for language in ("english", "other")
    }
    rounded = {language: [round(value, 4) for value in pair] for language, pair in thresholds.items()}
    return {"details": {"cross_validation": count(scored, thresholds)}, "thresholds": rounded, **content}


def choose_thresholds(scored: Sequence[Scored], settings: Settings) -> tuple[float, float]:
    """Return the probabilities from which a message is raised to "emergency" and to "urgent".

    Each is the smallest from `min_threshold` on that keeps `max_false_positive_rate` among the rows of each group that
    are neither. Rows that the rules already raise that high are not counted: the classifier adds nothing to them.
    """
    groups: dict[str, list[Scored]] = {}
    for one in scored:
        if one.row.label not in (EMERGENCY, URGENT):  # an urgent message called an emergency: only the haste is wrong
            groups.setdefault(one.row.group, []).append(one)
    found = []
    for level, done in ((EMERGENCY, (EMERGENCY,)), (URGENT, (EMERGENCY, URGENT))):
        threshold = settings["min_threshold"]
        for group in groups.values():
            added = (one.probability for one in group if one.may_be_raised and one.level not in done)
            raised = sorted(added, reverse=True)
            allowed = int(settings["max_false_positive_rate"][level] * len(group))
            if allowed and len(raised) > allowed:  # a group of fewer rows cannot show so small a share
                threshold = max(threshold, raised[allowed] + 0.001)
        found.append(threshold)
    return max(found), found[1]


def count(scored: Sequence[Scored], thresholds: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """Return `rows`, found `by_rules`, `by_classifier` alone, `added` by it, for each kind of rows of each file."""
    names = ("rows", "by_rules", "by_classifier", "added")
    counts: dict[str, Any] = {}
    for one in scored:
        kind = {EMERGENCY: "emergencies", URGENT: "urgent"}.get(one.row.label, "others")
        counted = counts.setdefault(one.row.path.stem, {}).setdefault(kind, dict.fromkeys(names, 0))
        by_rules = one.level == EMERGENCY
        by_classifier = one.may_be_raised and one.probability >= thresholds[one.language][0]
        for name, holds in zip(names, (True, by_rules, by_classifier, by_classifier and not by_rules), strict=True):
            counted[name] += holds
    return counts
