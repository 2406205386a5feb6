"""What was learned from questions, in files of assets/library: see `medical_assistant.library.training`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from medical_assistant.errors import UserError
from medical_assistant.files import ASSETS, read_json
from medical_assistant.library.classifier import TextClassifier, load_text_classifier
from medical_assistant.library.coverage import Gate, load_gate
from medical_assistant.library.ranking import SIGNALS, AskedFor, Ranking

FOLDER = ASSETS / "library"


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
    path = folder / "ranking.json"
    try:
        content = read_json(path)
        ranking = Ranking(
            {name: float(content["weights"][name]) for name in SIGNALS},
            {name: float(value) for name, value in content["reliability"].items()},
            AskedFor({name: words.split() for name, words in content["asked_for"].items()}),
        )
        uncorrected = frozenset((folder / "ordinary_words.txt").read_text(encoding="utf-8").split())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} or ordinary_words.txt is missing or broken: restore it, or fit it with "
            "python -m medical_assistant.library.training."
        ) from error
    return Trained(
        load_text_classifier(folder / "section_classifier.json"),
        load_text_classifier(folder / "scope_classifier.json"),
        ranking,
        load_gate(folder / "coverage.json"),
        uncorrected,
    )
