"""The triage classifier: it may raise the level that the rules give a message, never lower it.

A logistic regression over words, pairs of words, character n-grams and what the rules find (`hashed_classifier`).
`safety.training` writes the file that this module reads. The rules decide first: the classifier knows no source and
gives no reason, so its thresholds are high, and it is asked only when the rules find a symptom or a value of somebody
now.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any

from medical_assistant.safety import SAFETY_ASSETS, hashed_classifier
from medical_assistant.safety.hashed_classifier import HashedClassifier
from medical_assistant.safety.phrase_rules import LEVELS, load_rules
from medical_assistant.safety.text_reading import PreparedText, Reading

CLASSIFIER_FILE = SAFETY_ASSETS / "triage_classifier.json"
MIN_WORDS = 5  # shorter messages say too little: "I feel faint now" is no emergency by itself
MAX_WORDS = 400  # a long history is read from both ends
MAX_CONCEPTS = 30  # bounds the pairs; a vignette has about ten


@lru_cache(maxsize=4)
def load_triage_classifier(path: Path = CLASSIFIER_FILE) -> tuple[HashedClassifier, dict[str, tuple[float, float]]]:
    """Return the classifier of emergencies, and for "english" and "other" messages the two probabilities (0 to 1) from
    which one is raised to "emergency" and to "urgent".

    `UserError`: the file is missing or not one that the training wrote.
    """

    def build(data: Any) -> tuple[HashedClassifier, dict[str, tuple[float, float]]]:
        thresholds = {name: (float(pair[0]), float(pair[1])) for name, pair in data["thresholds"].items()}
        return hashed_classifier.from_json(data), thresholds

    return hashed_classifier.read_classifier(path, build, "triage")


def raised_level(text: PreparedText, level: str) -> str:
    """Return `level` (one of `LEVELS`), or a graver one when the classifier is sure enough; never a milder one.

    Questions in general, denials, history and spells that are over leave no finding in the readings: they are not
    raised.
    """
    if level == "emergency" or not may_be_raised(text):
        return level
    found = emergency_probability(text)
    thresholds = load_triage_classifier()[1][language_of(text.readings)]
    reached = [name for name, least in zip(("emergency", "urgent"), thresholds, strict=True) if found >= least]
    return min([level, *reached], key=LEVELS.index)


def may_be_raised(text: PreparedText) -> bool:
    """Return whether a message in a language with rules states a symptom or a value of somebody now."""
    stated = any(reading.concepts or reading.measures for reading in text.readings)
    over = any(reading.over for reading in text.readings)
    return stated and not over and bool(language_of(text.readings))


def emergency_probability(text: PreparedText) -> float:
    """Return the probability (0 to 1) that `text` describes an emergency, 0 when it has fewer than `MIN_WORDS` words.

    It is the probability among the training rows, where two of five are emergencies, not among messages in general.
    """
    words = words_of(text)
    if len(words) < MIN_WORDS:
        return 0.0
    return hashed_classifier.probability(load_triage_classifier()[0].score(*feature_groups(words, text.readings)))


def feature_groups(words: Sequence[str], readings: Sequence[Reading]) -> tuple[set[int], set[int]]:
    """Return the buckets of the words, and of what the rules of all languages find: concepts, their pairs, measures.

    Concepts know negation and questions, and carry one name in all languages. Each group is scaled by itself.
    """
    concepts = sorted(frozenset().union(*(reading.concepts for reading in readings)))[:MAX_CONCEPTS]
    measures = {name for reading in readings for name, _ in reading.measures}
    found = [*concepts, *map(" ".join, combinations(concepts, 2)), *measures]
    return hashed_classifier.word_buckets(words), {hashed_classifier.bucket_of(f"[{name}]") for name in found}


def language_of(readings: Sequence[Reading]) -> str:
    """Return "english", "other", or "" for what is no sentence of a language with rules, such as code.

    There are two thresholds: far fewer messages in the other languages trained the classifier.
    """
    english, *others = (reading.function_words for reading in readings)
    if not english and not any(others):
        return ""
    return "other" if max(others) > english else "english"


def words_of(text: PreparedText) -> tuple[str, ...]:
    """Return the first and last words of the normalised text, at most `MAX_WORDS`; all numbers are one word."""
    found = hashed_classifier.words_in(text.normal_form(load_rules()))
    half = MAX_WORDS // 2
    return found if len(found) <= MAX_WORDS else found[:half] + found[-half:]
