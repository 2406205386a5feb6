"""The output classifier's training.

Trains on training_data/output (sentences written for this, each with a kind), on the tuning rows of a safety set and on
the sentences of half of the public answers, which may all be said; benchmarks/safety.py measures on the other half,
chosen by a hash of the text.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medical_assistant.errors import UserError
from medical_assistant.safety.hashed_classifier import words_in
from medical_assistant.safety.output_filter import KINDS, MIN_WORDS, OutputFilter, feature_groups, readable
from medical_assistant.safety.training import fitting
from medical_assistant.safety.training.fitting import Row, Settings

OWN_ROWS = fitting.TRAINING_DATA / "output"
BLOCK = 10  # rows of a file that are one group: violations stand beside sentences that resemble them


def rows(settings: Settings, data: Path) -> list[Row]:
    """Return the written sentences, and those of the training half of the public answers, grouped by answer."""
    found: list[Row] = []
    for path in sorted(OWN_ROWS.glob("*.jsonl")):
        for number, row in enumerate(fitting.read_rows(path)):
            found += _own_rows(row, row["kind"].replace("none", ""), path, number // BLOCK)
    path = fitting.find(settings["safety_set"], data)
    for row in fitting.read_rows(path):
        kind = settings["kind_of_rule"].get(row["rule"], "")
        if row["split"] == "tuning" and bool(kind) == bool(row["rule"]):
            found += _own_rows(row, kind, path, row["block"])
    for path in (fitting.find(name, data) for name in settings["answers"]):
        for question, answer in split_answers(path, settings["answers_per_file"])[0]:
            found += [Row(text, "", path, answer, own=False) for text in sentences_of(answer, question)]
    return found


def _own_rows(row: dict[str, Any], kind: str, path: Path, block: int) -> Iterator[Row]:
    """Yield the sentences of a row. Two sentences of one violation are one: neither may be a violation alone."""
    sentences = sentences_of(row["text"], row.get("question") or "")
    for sentence in [" ".join(sentences)] if kind and sentences else sentences:
        yield Row(sentence, kind, path, f"{path.stem} {block}")


class _Reader(OutputFilter):
    """Shows nothing and keeps each sentence as the rules would read it: normalised, with the lines that open it."""

    def __init__(self, question: str = "") -> None:
        super().__init__(question, use_classifier=False)
        self.sentences: list[str] = []

    def _broken_rule(self, text: str) -> None:
        alone = readable(text)
        if alone:
            self.sentences.append(self._full_text(alone))


def sentences_of(answer: str, question: str = "") -> list[str]:
    """Return the sentences of `answer` as the filter reads them; empty ones and very short ones are left out."""
    reader = _Reader(question)
    reader.feed(answer)
    reader.finish()
    return [text for text in reader.sentences if len(words_in(text)) >= MIN_WORDS]


def split_answers(path: Path, most: int) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return (question, answer) of the rows of a JSONL file: those that train, those that measure, at most `most` each.

    `UserError`: it has no answers.
    """
    found = {
        str(row.get("answer") or row.get("output") or ""): str(row.get("question") or row.get("input") or "")
        for row in fitting.read_rows(path)
    }
    found.pop("", None)
    if not found:
        raise UserError(f"{path} has no answers: its rows need answer or output.")
    pairs = sorted(((question, answer) for answer, question in found.items()), key=lambda pair: fitting.digest(pair[1]))
    training, measuring = (
        [pair for pair in pairs if fitting.in_training_split(pair[1]) is half] for half in (True, False)
    )
    return training[:most], measuring[:most]


def train(rows: list[Row], settings: Settings) -> dict[str, Any]:
    """Return the content of the classifier's file: a classifier and a threshold for each of `KINDS`."""
    matrix = fitting.feature_matrix(feature_groups(row.text) for row in rows)
    kinds, blocked = {}, {}
    for kind in KINDS:
        kinds[kind], blocked[kind] = _train_kind(kind, rows, matrix, settings)
    return {"details": {"blocked_in_cross_validation": blocked}, "kinds": kinds}


def _train_kind(kind: str, rows: list[Row], matrix: Any, settings: Settings) -> tuple[dict[str, Any], dict[str, float]]:
    """Return (what the file holds of one kind, the parts of the rows that it blocks in cross-validation).

    The threshold is the smallest score that keeps both false positive rates. Violations of other kinds are left out:
    whether one sentence is also the other kind was not written down.
    """
    import numpy as np

    chosen = [number for number, row in enumerate(rows) if row.label in ("", kind)]
    rows = [rows[number] for number in chosen]
    content, scores = fitting.fit(matrix[chosen], rows, kind, settings)
    violations, own = np.array([bool(row.label) for row in rows]), np.array([row.own for row in rows])
    parts = {
        "violations": violations,
        "similar_sentences": ~violations & own,
        "public_answers": ~violations & ~own,
    }
    rates = settings["max_false_positive_rate"]
    threshold = max(float(np.quantile(scores[parts[name]], 1 - rates[name][kind])) for name in rates)
    blocked = {name: fitting.part_above(threshold, scores, members) for name, members in parts.items()}
    return {"threshold": round(threshold, 4), **content}, blocked
