"""The learned second line of the emergency layer: it may raise the level of a message, never lower it.

A logistic regression over words, pairs of words and pieces of words (3 to 5 characters), hashed into `BUCKETS` weights
(Weinberger et al. 2009, arXiv:0902.2206). `triage_second_line_training` writes the file that this module reads.
The rules stay the first line: the regression knows no source and gives no reason, so its thresholds are high, and it
speaks only when `triage_reading.read` finds a symptom or a reading of somebody now.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from medical_assistant.errors import UserError
from medical_assistant.hashed_features import BUCKETS, features
from medical_assistant.presets import ASSETS
from medical_assistant.triage_reading import normalise, read
from medical_assistant.triage_rules import LEVELS, load_rules

MODEL_FILE = ASSETS / "triage_second_line.json"
SCALE = 100  # weights are stored as whole hundredths
MIN_WORDS = 5  # shorter messages say too little: "I feel faint now" is no emergency by itself
MAX_WORDS = 400  # a long history is read from both ends
_WORD = re.compile(r"[a-z]+|\d+")


@dataclass(frozen=True)
class SecondLine:
    """`weights[bucket]` and `bias` of the regression.

    `emergency_from`, `urgent_from`: the probability (0 to 1) from which a message is raised to that level.
    `details`: what it was trained on and what was measured.
    """

    weights: tuple[float, ...]
    bias: float
    emergency_from: float
    urgent_from: float
    details: dict[str, Any]


def second_line(text: str) -> float:
    """Return the probability (0 to 1) that `text` describes an emergency, 0 when it has fewer than `MIN_WORDS` words.

    It is the probability of the training rows, where every second one is an emergency, not of messages in general.
    """
    model = load_second_line()
    words = words_of(text)
    if len(words) < MIN_WORDS:
        return 0.0
    buckets = features(words)
    score = model.bias + sum(model.weights[bucket] for bucket in buckets) / math.sqrt(len(buckets))
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, score))))


def raised_level(text: str, level: str) -> str:
    """Return `level` (one of `LEVELS`), or a graver one when the regression is sure enough; never a milder one.

    Questions in general, denials, history and spells that are over leave no finding in `read`: they are not raised.
    """
    if level == "emergency" or not is_about_now(text):
        return level
    model, probability = load_second_line(), second_line(text)
    reached = [
        name
        for name, least in (("emergency", model.emergency_from), ("urgent", model.urgent_from))
        if probability >= least
    ]
    return min([level, *reached], key=LEVELS.index)


def is_about_now(text: str) -> bool:
    """Return whether `text` states a symptom or a reading of somebody now and does not say that all is well again."""
    reading = read(text, load_rules())
    return not reading.over and bool(reading.concepts or reading.measures)


def words_of(text: str) -> tuple[str, ...]:
    """Return the first and last words of the normalised text, at most `MAX_WORDS`; all numbers are one word."""
    found = ["#" if word[0].isdigit() else word for word in _WORD.findall(normalise(text, load_rules()))]
    half = MAX_WORDS // 2
    return tuple(found if len(found) <= MAX_WORDS else found[:half] + found[-half:])


@lru_cache(maxsize=4)
def load_second_line(path: Path = MODEL_FILE) -> SecondLine:
    """Return the trained weights. `UserError`: the file is missing or not one that the training wrote."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        weights = [0.0] * BUCKETS
        bucket = 0
        for step, weight in zip(data["steps"], data["weights"], strict=True):
            bucket += step
            weights[bucket] = weight / SCALE
        return SecondLine(
            tuple(weights),
            float(data["bias"]),
            float(data["emergency_from"]),
            float(data["urgent_from"]),
            data["details"],
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(
            f"{path.name} cannot be read ({type(error).__name__}): restore it, or write it again with "
            "python -m medical_assistant.triage_second_line_training."
        ) from error
