"""Which page a question is about: a linear ranking over a handful of signals for each page that comes into question.

Its weights are fitted by `medical_assistant.library.training` on pairs of pages (Joachims 2002, "Optimizing search
engines using clickthrough data": the page that answers goes before each of the others). Two of the signals are learned
as well: how often a name in a question meant its page, and the words in which people ask for a page (document
expansion, Nogueira et al. 2019, "Document expansion by query prediction", with questions that people wrote).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import bm25s

from medical_assistant.library.pages import Page
from medical_assistant.library.understand import Names, Reading, Topic

NAME_K = 3.0  # the weight of a name that counts half
PRIOR, PRIOR_ROWS = 0.6, 3.0  # how often a name means its page before any question was seen, as if seen so often
BM25_A_WORD = 5.0  # a score of this times the weight of the question's words counts as 1
ASKED_FOR = 30  # pages, by the words in which they were asked for
SIGNALS = (
    "name", "strength", "reliable", "strong_reliable", "title", "guessed", "name_share", "partial", "body_best",
    "body", "asked_for_best", "asked_for", "held", "section",
)  # fmt: skip


def best_documents(index: bm25s.BM25, stems: Sequence[str], limit: int) -> list[tuple[int, float]]:
    """Return (number, score) of the documents that hold any of these stems, the best first, equal ones by number.

    `stems` are in the index. Its own `retrieve` sorts among all documents: four times as long.
    """
    scores = index.get_scores(list(stems))
    found = scores.nonzero()[0]
    best = found[(-scores[found]).argsort(kind="stable")[:limit]]
    return list(zip(best.tolist(), scores[best].tolist(), strict=True))


class AskedFor:
    """BM25 over the stems of the words in which each page was asked for."""

    def __init__(self, words: Mapping[str, Sequence[str]]) -> None:
        """`words`: page id to stems."""
        self.words = {name: words[name] for name in sorted(words) if words[name]}
        self.stems = {name: frozenset(own) for name, own in self.words.items()}
        self._ids = list(self.words)
        self._known = frozenset().union(*self.stems.values())
        self._index = bm25s.BM25(k1=1.2, b=0.6)
        if self._ids:
            self._index.index([list(own) for own in self.words.values()], show_progress=False)

    def scores(self, stems: Sequence[str]) -> dict[str, float]:
        """Return the BM25 score of the best pages."""
        known = [stem for stem in stems if stem in self._known]
        if not known:
            return {}
        return {self._ids[number]: score for number, score in best_documents(self._index, known, ASKED_FOR)}


@dataclass(frozen=True)
class Ranking:
    """`weights`: of each of `SIGNALS`. `reliability`: how often (0-1) a name in a question meant its page, by
    `name_key`. `asked_for`: the stems in which each page was asked for.
    """

    weights: Mapping[str, float]
    reliability: Mapping[str, float]
    asked_for: AskedFor

    def reliable(self, page: Page, words: Collection[str]) -> float:
        """Return how often (0-1) these words in a question meant the page."""
        return self.reliability.get(name_key(page, words), PRIOR)

    def score(self, signals: Mapping[str, float]) -> float:
        return math.fsum(self.weights[name] * value for name, value in signals.items())

    def signals(
        self,
        reading: Reading,
        names: Names,
        candidate: Topic,
        body: Mapping[str, float],
        asked_for: Mapping[str, float],
        held: Collection[str],
        section: float,
    ) -> dict[str, float]:
        """Return what speaks for a page, by `SIGNALS`.

        `body` and `asked_for`: BM25 scores of pages. `held`: the stems of the page. `section`: how probable it is that
        one of its sections is asked for, 0 to 1.
        """
        page = candidate.page
        expanded = self.asked_for.stems.get(page.id, frozenset())

        def relative(scores: Mapping[str, float]) -> tuple[float, float]:
            score = scores.get(page.id, 0.0)
            return score / max(scores.values(), default=1.0), min(1.0, score / reading.total / BM25_A_WORD)

        named = bool(candidate.words)
        strength = candidate.weight / (candidate.weight + NAME_K)
        reliable = self.reliable(page, candidate.words) if named else 0.0
        body_best, body_score = relative(body)
        asked_best, asked_score = relative(asked_for)
        return {
            "name": float(named),
            "strength": strength,
            "reliable": reliable,
            "strong_reliable": strength * reliable,
            "title": float(named and candidate.matched == page.title),
            "guessed": float(named and candidate.guessed),
            "name_share": reading.share(candidate.words),
            "partial": names.partial(page, reading.weights.keys()),
            "body_best": body_best,
            "body": body_score,
            "asked_for_best": asked_best,
            "asked_for": asked_score,
            "held": reading.share(expanded.union(stem for stem in reading.weights if stem in held)),
            "section": section,
        }


def name_key(page: Page, words: Collection[str]) -> str:
    """Return how a name of a page stands in `Ranking.reliability`."""
    return f"{page.id}: {' '.join(sorted(words))}"


def ranking_of(content: Mapping[str, Any]) -> Ranking:
    """Return the ranking of ranking.json's content. Raises `KeyError`, `ValueError`, `TypeError` or `AttributeError`
    where it is broken.
    """
    return Ranking(
        {name: float(content["weights"][name]) for name in SIGNALS},
        {name: float(value) for name, value in content["reliability"].items()},
        AskedFor({name: words.split() for name, words in content["asked_for"].items()}),
    )
