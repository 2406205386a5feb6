"""A logistic regression over hashed words, and the JSON file of its weights: no library, no vocabulary, no text.

Words, pairs of words and character n-grams are hashed into `BUCKETS` weights (feature hashing: Weinberger et al. 2009,
arXiv:0902.2206). The weights in `assets/safety` hold for exactly this hashing: after a change here, train all
classifiers again (`python -m medical_assistant.safety.training`).
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from medical_assistant.errors import UserError

BUCKETS = 2**15
CHARACTER_NGRAMS = (3, 4, 5)  # so that a slip of spelling costs little
WEIGHT_SCALE = 100  # weights are stored as whole hundredths
_MAX_WORD_CHARACTERS = 40
_WORD = re.compile(r"[a-z]+|\d+")
Classifier = TypeVar("Classifier")


@dataclass(frozen=True)
class HashedClassifier:
    """`weights[bucket]` and `bias` in log odds."""

    weights: tuple[float, ...]
    bias: float

    def score(self, *groups: set[int]) -> float:
        """Return the log odds of a text. Each group of buckets adds its weights over the root of their number."""
        return self.bias + sum(
            sum(self.weights[bucket] for bucket in group) / math.sqrt(len(group)) for group in groups if group
        )


def probability(score: float) -> float:
    """Return the probability (0 to 1) of log odds."""
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, score))))


def words_in(text: str) -> tuple[str, ...]:
    """Return the words of a normalised text; all numbers are one word."""
    return tuple("#" if word[0].isdigit() else word for word in _WORD.findall(text))


def word_buckets(words: Sequence[str]) -> set[int]:
    """Return the buckets (0 to `BUCKETS` - 1) of the words, of their pairs and of their character n-grams."""
    pairs = {bucket_of(f"{first} {second}") for first, second in zip(("^", *words), (*words, "$"), strict=True)}
    return pairs.union(*(_buckets_of_word(word) for word in words))


def bucket_of(feature: str) -> int:
    """Return the bucket of `feature`."""
    return zlib.crc32(feature.encode()) % BUCKETS


@lru_cache(maxsize=20_000)  # bounds the memory of a server that runs for months
def _buckets_of_word(word: str) -> frozenset[int]:
    word = word[:_MAX_WORD_CHARACTERS]
    marked = f"<{word}>"
    ngrams = (marked[i : i + n] for n in CHARACTER_NGRAMS for i in range(len(marked) - n + 1))
    return frozenset(map(bucket_of, [word, *ngrams]))


def to_json(weights: Sequence[int], bias: float) -> dict[str, Any]:
    """Return what a file holds: `bias`, `buckets` (those with a weight), `weights` in units of 1 / `WEIGHT_SCALE`."""
    buckets = [bucket for bucket, weight in enumerate(weights) if weight]
    return {"bias": round(bias, 4), "buckets": buckets, "weights": [weights[bucket] for bucket in buckets]}


def from_json(data: Mapping[str, Any]) -> HashedClassifier:
    """Return the classifier of `to_json`. `ValueError`, `KeyError`, `TypeError`, `IndexError`: it is none."""
    weights = [0.0] * BUCKETS
    for bucket, weight in zip(data["buckets"], data["weights"], strict=True):
        weights[bucket] = weight / WEIGHT_SCALE
    return HashedClassifier(tuple(weights), float(data["bias"]))


def read_classifier(path: Path, build: Callable[[Any], Classifier], name: str) -> Classifier:
    """Return what `build` makes of the JSON in `path`.

    `UserError`: the file is missing, or not one that the training of `name` ("triage", "misuse", "output") wrote.
    """
    try:
        return build(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(
            f"{path.name} cannot be read ({type(error).__name__}): restore it, or write it again with "
            f"python -m medical_assistant.safety.training {name}."
        ) from error
