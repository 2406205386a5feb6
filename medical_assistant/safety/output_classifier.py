"""The learned part of the output watch: regressions that know wording which no pattern of the rules foresaw.

One for each of `KINDS`, over the words, pairs of words and pieces of words of a sentence (`hashed_features`), and over
its words and pairs with a class in place of each drug, disease and so on. `output_training` writes the file that is
read here. It may only withhold more, under the name and source of a rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from medical_assistant.models.presets import ASSETS
from medical_assistant.safety.hashed_classifier import Regression, read_model, restore
from medical_assistant.safety.hashed_features import features, hashed, words_in
from medical_assistant.safety.output_rules import load_classes

MODEL_FILE = ASSETS / "output_model.json"
KINDS = ("delay_of_care", "medicine_change", "diagnosis_as_fact")  # names of rules
ASSERTED = "diagnosis_as_fact"  # a question back asserts none
MIN_WORDS = 3  # shorter sentences say too little: "Stop it." is the rules' business


@dataclass(frozen=True)
class OutputModel:
    """`kinds[name]`: the regression, and the score (log odds) from which a sentence is withheld under that name."""

    kinds: dict[str, tuple[Regression, float]]
    details: dict[str, Any]  # what it was trained on, what was measured

    def broken(self, text: str) -> list[str]:
        """Return those of `KINDS` that a sentence, as the watch reads it, is taken to be; most sentences are none."""
        if len(words_in(text)) < MIN_WORDS:
            return []
        found = feature_groups(text)
        return [
            name
            for name, (regression, threshold) in self.kinds.items()
            if regression.score(*found) >= threshold and not (name == ASSERTED and text.endswith("?"))
        ]


def feature_groups(text: str) -> tuple[set[int], set[int]]:
    """Return the buckets of the words of a sentence, and of its words and pairs with classes put in."""
    words = words_in(text)
    for pattern, name in load_classes():
        text = pattern.sub(name, text)
    classed = ["^", *words_in(text), "$"]
    pairs = (f"{first} {second}" for first, second in pairwise(classed))
    return features(words), {hashed(f"~{piece}") for piece in (*classed, *pairs)}


@lru_cache(maxsize=4)
def load_output_model(path: Path = MODEL_FILE) -> OutputModel:
    """Return the trained weights. `UserError`: the file is missing or not one that `output_training` wrote."""

    def build(data: Any) -> OutputModel:
        kinds = {name: (restore(data["kinds"][name]), float(data["kinds"][name]["threshold"])) for name in KINDS}
        return OutputModel(kinds, data["details"])

    load_classes()  # now: broken ones must stop the start, not the first answer
    return read_model(path, build, "output_training")
