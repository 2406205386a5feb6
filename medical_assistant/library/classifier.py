"""What a question is by its words: a multinomial logistic regression over runs of words and letters.

Two are used: which section of a page is asked for (section_classifier.json), and whether the question is one for a
health library at all (scope_classifier.json). For the first the words of the page's name are one sign for all names,
so that "gout treatment" and "flu treatment" are one question. `python -m medical_assistant.library.training` fits both
on questions whose authors saw no page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np

NOTHING = ""  # the label of what no section answers, and of what is no question for the library
NAME, NUMBER, START, END = "@", "#", "^", "$"
WORD_GRAMS, LETTER_GRAMS = (1, 2, 3), (4, 5)
MAX_GAP = 2  # words left out between the two of a pair
WEIGHT_SCALE = 100  # a weight is stored as a whole number of hundredths


def features(sequence: Sequence[str], name: Set[str], kind: str) -> set[str]:
    """Return what a question is classified by: runs of words, pairs of words, and letters against misspellings.

    `sequence`: the stem of each word; `name`: stems of the page's name in it; `kind`: of the page. A word stands once
    for all kinds and once for this one.
    """
    words: list[str] = []
    for stem in sequence:
        word = NAME if stem in name else NUMBER if stem[0].isdigit() else stem
        if word != NAME or words[-1:] != [NAME]:
            words.append(word)
    ended = [START, *words, END]
    found = {" ".join(ended[at : at + n]) for n in WORD_GRAMS for at in range(len(ended) - n + 1)}
    found |= {f"{a} _ {b}" for at, a in enumerate(words) for b in words[at + 2 : at + 2 + MAX_GAP]}
    found |= {f"{kind}|{word}" for word in words}
    found.add(f"{kind}|")
    for word in words:
        if word.isalpha():
            spelt = f"<{word}>"
            found |= {f"~{spelt[at : at + n]}" for n in LETTER_GRAMS for at in range(len(spelt) - n + 1)}
    return found


@dataclass(frozen=True)
class TextClassifier:
    """A sparse matrix of weights. Feature i of `number_of` has, for the labels with the numbers `columns[a:b]`, the
    weights `values[a:b]`, where a and b are `starts[i]` and `starts[i + 1]`.
    """

    labels: tuple[str, ...]
    bias: np.ndarray
    number_of: Mapping[str, int]
    starts: np.ndarray
    columns: np.ndarray
    values: np.ndarray

    def scores(self, found: Set[str]) -> dict[str, float]:
        """Return the log odds of each label for a question with these features."""
        known = self.number_of.keys() & found
        numbers = np.array(sorted(map(self.number_of.__getitem__, known)), dtype=np.intp)
        totals = np.array(self.bias)
        if known:
            starts, lengths = self.starts[numbers], self.starts[numbers + 1] - self.starts[numbers]
            ends = lengths.cumsum()
            weights = np.arange(ends[-1]) + (starts - ends + lengths).repeat(lengths)  # their numbers
            totals += np.bincount(self.columns[weights], self.values[weights], len(self.labels)) / math.sqrt(len(known))
        return dict(zip(self.labels, totals.tolist(), strict=True))


def softmax(scores: Mapping[str, float]) -> dict[str, float]:
    """Return the scores as shares of 1, by their exponentials."""
    highest = max(scores.values())
    powers = {name: math.exp(score - highest) for name, score in scores.items()}
    total = math.fsum(powers.values())
    return {name: power / total for name, power in powers.items()}


def classifier_of(content: Mapping[str, Any]) -> TextClassifier:
    """Return the classifier of a file's content. Raises `KeyError`, `ValueError` or `TypeError` where it is broken."""
    return TextClassifier(
        tuple(content["labels"]),
        np.array(content["bias"], dtype=np.float64),
        {feature: number for number, feature in enumerate(content["features"])},
        np.cumsum([0, *content["lengths"]]),
        np.array(content["columns"], dtype=np.intp),
        np.array(content["values"], dtype=np.float64) / WEIGHT_SCALE,
    )
