"""The misuse classifier's training.

Half of the rows of each public file, chosen by a hash of the text, train; the other half measures the whole layer. The
contrast rows of `training_data/misuse_rows.yaml` all train.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from medical_assistant.safety.hashed_classifier import word_buckets, words_in
from medical_assistant.safety.misuse import GENERAL, MISUSE_FILE, assess_misuse
from medical_assistant.safety.phrase_rules import load_rules
from medical_assistant.safety.text_reading import PreparedText
from medical_assistant.safety.training import fitting
from medical_assistant.safety.training.fitting import Row, Settings

OWN_ROWS = fitting.TRAINING_DATA / "misuse_rows.yaml"
HARMFUL = "harmful"
_OF_WRITER = re.compile(r"\b(?:I|my|myself)\b")


def rows(settings: Settings, data: Path) -> list[Row]:
    """Return the contrast rows and the training half of the public files."""
    found = own_rows(OWN_ROWS)
    for key, label in (("requests", HARMFUL), ("ordinary", "")):
        for path in (fitting.find(name, data) for name in settings[key]):
            texts = filter(fitting.in_training_split, fitting.read_texts(path))
            found += [Row(text, label, path, text, own=False) for text in texts]
    return found


def own_rows(path: Path) -> list[Row]:
    """Return the contrast rows: each action in `frames_each` of the frames, and the lines."""
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    found = [Row(str(line), "", path, str(line)) for line in data["ordinary_lines"]]
    for key, label in (("ordinary_actions", ""), ("harmful_actions", HARMFUL)):
        for action in data[key]:
            frames = data["frames"] + data["professional_frames"] * (not _OF_WRITER.search(action))
            # 5 has no common factor with 9 and 13 frames: the frames of one action differ.
            chosen = [frames[(fitting.digest(action)[1] + 5 * i) % len(frames)] for i in range(data["frames_each"])]
            found += [Row(frame.format(action), label, path, action) for frame in chosen]
    return found


def train(rows: list[Row], settings: Settings) -> dict[str, Any]:
    """Return the content of the classifier's file.

    The threshold is the highest score that `target_recall` of the harmful rows reach in cross-validation. The details
    say what part of the public questions (`ordinary`) and of the own rows (`own_ordinary`) reaches it; many of these
    are harder than any real message, with frames of harmful requests around harmless actions.
    """
    import numpy as np

    rules = load_rules(MISUSE_FILE)
    matrix = fitting.feature_matrix([word_buckets(words_in(PreparedText(row.text).normal_form(rules)))] for row in rows)
    content, scores = fitting.fit(matrix, rows, HARMFUL, settings)
    harmful, own = np.array([row.label == HARMFUL for row in rows]), np.array([row.own for row in rows])
    threshold = float(np.quantile(scores[harmful & ~own], 1 - settings["target_recall"]))
    refused = {
        "harmful": settings["target_recall"],
        "ordinary": fitting.part_above(threshold, scores, ~harmful & ~own),
        "own_ordinary": fitting.part_above(threshold, scores, ~harmful & own),
    }
    return {"details": {"refused_in_cross_validation": refused}, "threshold": round(threshold, 4), **content}


def measure(settings: Settings, data: Path) -> dict[str, Any]:
    """Return what part of the other half of each file the `rules` refuse, and rules and classifier (`both`)."""
    refused = {}
    for path in (fitting.find(name, data) for name in settings["requests"] + settings["ordinary"]):
        texts = [text for text in fitting.read_texts(path) if not fitting.in_training_split(text)]
        found = [assess_misuse(text).category for text in texts]
        by_rules = sum(bool(category) and category != GENERAL for category in found)
        parts = {"rules": by_rules / max(1, len(texts)), "both": sum(map(bool, found)) / max(1, len(texts))}
        refused[path.name] = {"rows": len(texts), **{name: round(part, 4) for name, part in parts.items()}}
    return {"refused_of_the_other_half": refused}
