"""The learned second line of the emergency layer: it may raise the level of a message, never lower it.

A logistic regression over words, pairs of words, pieces of words (3 to 5 characters) and what the rules find, hashed
into 32,768 weights (Weinberger et al. 2009, arXiv:0902.2206). `triage_second_line_training` writes the file that
this module reads. The rules stay the first line: the regression knows no source and gives no reason, so its thresholds
are high, and it speaks only when `triage_reading.read` finds a symptom or a value of somebody now.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any

from medical_assistant.models.presets import ASSETS
from medical_assistant.safety.hashed_classifier import Regression, probability, read_model, restore
from medical_assistant.safety.hashed_features import features, hashed, words_in
from medical_assistant.safety.phrase_rules import LEVELS, load_rules
from medical_assistant.safety.text_reading import Reading, normalise

MODEL_FILE = ASSETS / "triage_second_line.json"
MIN_WORDS = 5  # shorter messages say too little: "I feel faint now" is no emergency by itself
MAX_WORDS = 400  # a long history is read from both ends
MAX_CONCEPTS = 30  # bounds the pairs; a vignette has about ten


@dataclass(frozen=True)
class SecondLine:
    """`regression`: the log odds of an emergency.

    `thresholds["english"]`, `thresholds["other"]`: the probabilities (0 to 1) from which a message in that language is
    raised to "emergency" and to "urgent".
    `details`: what it was trained on and what was measured.
    """

    regression: Regression
    thresholds: dict[str, tuple[float, float]]
    details: dict[str, Any]


def second_line(text: str, readings: Sequence[Reading]) -> float:
    """Return the probability (0 to 1) that `text` describes an emergency, 0 when it has fewer than `MIN_WORDS` words.

    `readings`: those of `read_all`. It is the probability of the training rows, where two of five are emergencies,
    not of messages in general.
    """
    words = words_of(text)
    if len(words) < MIN_WORDS:
        return 0.0
    return probability(load_second_line().regression.score(*feature_groups(words, readings)))


def feature_groups(words: Sequence[str], readings: Sequence[Reading]) -> tuple[set[int], set[int]]:
    """Return the buckets of the words, and of what the rules of all languages find: concepts, their pairs, measures.

    Concepts know negation and questions, and carry one name in all languages. Each group is scaled by itself.
    """
    concepts = sorted(frozenset().union(*(reading.concepts for reading in readings)))[:MAX_CONCEPTS]
    measures = {name for reading in readings for name, _ in reading.measures}
    found = [*concepts, *map(" ".join, combinations(concepts, 2)), *measures]
    return features(words), {hashed(f"[{name}]") for name in found}


def raised_level(text: str, level: str, readings: Sequence[Reading]) -> str:
    """Return `level` (one of `LEVELS`), or a graver one when the regression is sure enough; never a milder one.

    `readings`: those of `read_all`. Questions in general, denials, history and spells that are over leave no finding
    there: they are not raised.
    """
    language = language_of(readings)
    if level == "emergency" or not language or not is_about_now(readings):
        return level
    found = second_line(text, readings)
    thresholds = load_second_line().thresholds[language]
    reached = [name for name, least in zip(("emergency", "urgent"), thresholds, strict=True) if found >= least]
    return min([level, *reached], key=LEVELS.index)


def language_of(readings: Sequence[Reading]) -> str:
    """Return "english", "other", or "" for what is no sentence of a language with rules, such as code.

    There are two thresholds: far fewer messages in the other languages trained the regression.
    """
    english, *others = (reading.function_words for reading in readings)
    if not english and not any(others):
        return ""
    return "other" if max(others) > english else "english"


def is_about_now(readings: Sequence[Reading]) -> bool:
    """Return whether some reading states a symptom or a value of somebody now, and none says that all is well again."""
    stated = any(reading.concepts or reading.measures for reading in readings)
    return stated and not any(reading.over for reading in readings)


def words_of(text: str) -> tuple[str, ...]:
    """Return the first and last words of the normalised text, at most `MAX_WORDS`; all numbers are one word."""
    found = words_in(normalise(text, load_rules()))
    half = MAX_WORDS // 2
    return found if len(found) <= MAX_WORDS else found[:half] + found[-half:]


@lru_cache(maxsize=4)
def load_second_line(path: Path = MODEL_FILE) -> SecondLine:
    """Return the trained weights. `UserError`: the file is missing or not one that the training wrote."""

    def build(data: Any) -> SecondLine:
        thresholds = {name: (float(least[0]), float(least[1])) for name, least in data["thresholds"].items()}
        return SecondLine(restore(data), thresholds, data["details"])

    return read_model(path, build, "triage_second_line_training")
