"""What was learned from questions, in files of assets/library: see `medical_assistant.library.training`."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from medical_assistant.errors import UserError
from medical_assistant.files import ASSETS
from medical_assistant.library.classifier import TextClassifier, classifier_of
from medical_assistant.library.coverage import Gate, gate_of
from medical_assistant.library.ranking import Ranking, ranking_of

FOLDER = ASSETS / "library"
Learned = TypeVar("Learned")


@dataclass(frozen=True)
class Trained:
    """`uncorrected`: ordinary words that look like a name's ("happy", not "nappy")."""

    sections: TextClassifier
    scope: TextClassifier
    ranking: Ranking
    gate: Gate
    uncorrected: Collection[str]


def load_trained(folder: Path = FOLDER) -> Trained:
    """Return what the files of `folder` hold. Raises `UserError` when one is missing or broken."""
    return Trained(
        sections=_read(folder / "section_classifier.json", lambda text: classifier_of(json.loads(text))),
        scope=_read(folder / "scope_classifier.json", lambda text: classifier_of(json.loads(text))),
        ranking=_read(folder / "ranking.json", lambda text: ranking_of(json.loads(text))),
        gate=_read(folder / "coverage.json", lambda text: gate_of(json.loads(text))),
        uncorrected=_read(folder / "ordinary_words.txt", lambda text: frozenset(text.split())),
    )


def _read(path: Path, parse: Callable[[str], Learned]) -> Learned:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is missing or broken: restore it, or fit it with python -m medical_assistant.library.training."
        ) from error
