"""The learned second part of the misuse layer: a logistic regression over hashed n-grams, without any library.

Words, pairs of words and the pieces of words (3 to 5 characters, so that a slip of spelling costs little) are hashed
into `BUCKETS` weights (Weinberger et al. 2009, arXiv:0902.2206). `misuse_training` writes the file that is read here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from medical_assistant.models.presets import ASSETS
from medical_assistant.safety.hashed_classifier import Regression, read_model, restore
from medical_assistant.safety.hashed_features import features, words_in

MODEL_FILE = ASSETS / "misuse_model.json"
MIN_WORDS = 4  # shorter pieces say too little
_SENTENCE_END = re.compile(r"[.!?;\n]+")
_WINDOW_WORDS, _OVERLAP_WORDS = 60, 15  # a text without stops is read in parts, as training rows are one sentence long


@dataclass(frozen=True)
class MisuseModel:
    """A text whose score by `regression` reaches `threshold` (log odds) is a request for harm."""

    regression: Regression
    threshold: float
    details: dict[str, Any]  # what it was trained on, what was measured

    def score(self, text: str) -> float:
        """Return the highest score (log odds) of the sentences of a normalised text, -inf if all are too short.

        The worst sentence counts, so that friendly words around a request do not hide it.
        """
        return max((self.regression.score(features(words)) for words in _parts(text)), default=-math.inf)


def _parts(text: str) -> Iterator[tuple[str, ...]]:
    for sentence in dict.fromkeys(_SENTENCE_END.split(text)):
        words = words_in(sentence)
        for start in range(0, max(1, len(words) - _OVERLAP_WORDS), _WINDOW_WORDS - _OVERLAP_WORDS):
            part = words[start : start + _WINDOW_WORDS]
            if len(part) >= MIN_WORDS:
                yield part


@lru_cache(maxsize=4)
def load_model(path: Path = MODEL_FILE) -> MisuseModel:
    """Return the trained weights. `UserError`: the file is missing or not one that `misuse_training` wrote."""
    return read_model(
        path, lambda data: MisuseModel(restore(data), float(data["threshold"]), data["details"]), "misuse_training"
    )
