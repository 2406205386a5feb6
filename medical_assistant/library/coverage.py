"""Does the library answer a question? Logistic regressions over a handful of signals, and two thresholds.

Fitted by `medical_assistant.library.training` on questions that are and are not covered. coverage.json holds the
weights and the thresholds, which come from a measured risk-coverage curve on questions that did not fit it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medical_assistant.library.passages import Coverage

# Shares (0-1) of the question's telling words, weighed by how few pages hold them: `shown` in the topics' pages,
# `asked_for` there or in the words in which those were asked for, `known_held` the same of the words that some page
# has, `unknown` in no page. `strange`: how many words are not even ordinary English. `short`: 1 for no telling word,
# less for each. `has_name`: the question names a topic; `strength`: how telling the first one's name is; `partial`:
# how much of its best name is in the question; `modified`: a word that the page does not hold stands before its name
# ("reverse asthma"). `asked`: how probable the section shown first is what is asked; `nothing`: that no section of such
# a page answers; `scope`: log odds that this is a question for a health library at all. `margin`: how far the best page
# by BM25 is ahead; `bm25`: its score a word. `score`: of the first page by `ranking`, and how far it is `ahead`.
SIGNALS = (
    "shown", "asked_for", "known_held", "unknown", "strange", "short", "has_name", "strength", "partial", "modified",
    "asked", "nothing", "scope", "margin", "bm25", "score", "ahead",
)  # fmt: skip


LINES = {"named": True, "unnamed": False}  # what a question with, and one without the name of a topic is judged by


@dataclass(frozen=True)
class Line:
    """A logistic regression: a weight for each of `SIGNALS`, and a bias."""

    weights: Mapping[str, float]
    bias: float

    def probability(self, signals: Mapping[str, float]) -> float:
        score = self.bias + math.fsum(self.weights[name] * signals[name] for name in SIGNALS)
        return 1.0 / (1.0 + math.exp(-max(-30.0, min(30.0, score))))


@dataclass(frozen=True)
class Gate:
    named: Line
    unnamed: Line
    covered_from: float
    partly_from: float

    def probability(self, signals: Mapping[str, float]) -> float:
        """Return how probable (0-1) it is that the passages answer the question."""
        return (self.named if signals["has_name"] else self.unnamed).probability(signals)

    def coverage(self, probability: float) -> Coverage:
        """Return "covered", "partly" or "not"."""
        if probability >= self.covered_from:
            return "covered"
        return "partly" if probability >= self.partly_from else "not"


def gate_of(content: Mapping[str, Any]) -> Gate:
    """Return the gate of coverage.json's content. Raises `KeyError`, `ValueError` or `TypeError` where it is broken."""
    named, unnamed = (
        Line({name: float(content[line]["weights"][name]) for name in SIGNALS}, float(content[line]["bias"]))
        for line in LINES
    )
    return Gate(named, unnamed, float(content["covered_from"]), float(content["partly_from"]))
