"""The output classifier: it knows wording that no pattern of the output rules foresaw.

A logistic regression for each of `KINDS`, over the words, pairs of words and character n-grams of a sentence
(`hashed_classifier`), and over its words and pairs with a class in place of each drug, disease and so on.
`safety.training` writes the file that is read here. It may only block more, under the name and source of a rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from medical_assistant.safety import SAFETY_ASSETS
from medical_assistant.safety.hashed_classifier import (
    HashedClassifier,
    bucket_of,
    from_json,
    read_classifier,
    word_buckets,
    words_in,
)
from medical_assistant.safety.output_rules import load_output_rules

CLASSIFIER_FILE = SAFETY_ASSETS / "output_classifier.json"
KINDS = ("delay_of_care", "medicine_change", "diagnosis_as_fact")  # names of rules
ASSERTED = "diagnosis_as_fact"  # a question back asserts none
MIN_WORDS = 3  # shorter sentences say too little: "Stop it." is the rules' business


@dataclass(frozen=True)
class OutputClassifier:
    """`kinds[name]`: the classifier, and the score (log odds) from which a sentence is blocked under that name."""

    kinds: dict[str, tuple[HashedClassifier, float]]
    details: dict[str, Any]  # what it was trained on, what was measured

    def kinds_of(self, text: str) -> list[str]:
        """Return those of `KINDS` that a sentence, as the filter reads it, is taken to be; most sentences are none."""
        if len(words_in(text)) < MIN_WORDS:
            return []
        found = feature_groups(text)
        return [
            name
            for name, (classifier, threshold) in self.kinds.items()
            if classifier.score(*found) >= threshold and not (name == ASSERTED and text.endswith("?"))
        ]


def feature_groups(text: str) -> tuple[set[int], set[int]]:
    """Return the buckets of the words of a sentence, and of its words and pairs with classes put in."""
    words = words_in(text)
    for pattern, name in load_output_rules().word_classes:
        text = pattern.sub(name, text)
    classed = ["^", *words_in(text), "$"]
    pairs = (f"{first} {second}" for first, second in pairwise(classed))
    return word_buckets(words), {bucket_of(f"~{piece}") for piece in (*classed, *pairs)}


@lru_cache(maxsize=4)
def load_output_classifier(path: Path = CLASSIFIER_FILE) -> OutputClassifier:
    """Return the trained weights. `UserError`: the file is missing or not one that the training wrote."""

    def build(data: Any) -> OutputClassifier:
        kinds = {name: (from_json(data["kinds"][name]), float(data["kinds"][name]["threshold"])) for name in KINDS}
        return OutputClassifier(kinds, data["details"])

    load_output_rules()  # now: broken ones must stop the start, not the first answer
    return read_classifier(path, build, "output")
