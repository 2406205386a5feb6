"""The embedded library: all pages in memory, found by their names first, by BM25 over sections where no name fits.

The names a question holds are its topics; what it asks of them (`question_types.yaml`) finds the section. Without
a name BM25 (Robertson & Zaragoza 2009, "The Probabilistic Relevance Framework") over the sections proposes a page, and
`coverage` says whether that is close enough to be shown. Measured in benchmarks/library.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import bm25s

from medical_assistant.files import ASSETS
from medical_assistant.library.coverage import Gate, load_gate
from medical_assistant.library.pages import Page, Section, read_library
from medical_assistant.library.passages import Found, Part, Passage
from medical_assistant.library.understand import (
    Names,
    QuestionType,
    Topic,
    load_question_types,
    question_types,
    words_of,
)

FOLDER = ASSETS / "library"
MAX_PARTS = 2
NEAREST = 3
NEAR_FROM = 0.5  # share of the telling words of the question that stand in the best page
# A page's name and the names it is also known by count this often against once for each word of a section.
TITLE_REPEATS, NAME_REPEATS = 3, 1
FOLLOWS_UP_WORDS = 8  # a shorter question without a topic of its own is read with the topic of the conversation


class EmbeddedLibrary:
    """Pages in memory. Safe for concurrent calls: nothing changes after the start."""

    def __init__(self, pages: Sequence[Page], types: Sequence[QuestionType], gate: Gate) -> None:
        self.pages = list(pages)
        self._types = list(types)
        self._gate = gate
        self._names = Names(self.pages)
        self._sections = [(page, section) for page in self.pages for section in page.sections]
        documents = [self._names.stems(words_of(_document(page, section))) for page, section in self._sections]
        self._index = bm25s.BM25()
        self._index.index(documents, show_progress=False)
        self._known = {stem for document in documents for stem in document}
        self._stems_of = {
            page.id: frozenset(
                self._names.stems(words_of(" ".join(_document(page, section) for section in page.sections)))
            )
            for page in self.pages
        }

    def find(self, question: str, earlier: Sequence[str] = ()) -> Found:
        """Return what the library has on `question`; `earlier` holds the user's messages before it, oldest first."""
        query, topics = question, self._names.topics(question, self._known)
        if not topics and len(words_of(question)) <= FOLLOWS_UP_WORDS:
            for before in reversed(earlier):
                topics = self._names.topics(before, self._known)
                if topics:
                    query = f"{topics[0].page.title}: {question}"
                    break
        ranked = self._ranked(query)
        chosen = self._choose(topics, ranked)
        if not chosen and ranked:
            page, _ = ranked[0]
            chosen = [Topic(page, "", frozenset(), 0.0, True)]
        parts = tuple(self._part(question, topic) for topic in chosen)
        signals = self._signals(query, chosen, ranked)
        probability = self._gate.probability(signals)
        nearest = list({page.id: page for page in (*(part.topic for part in parts), *(p for p, _ in ranked))}.values())
        if signals["shown"] < NEAR_FROM:
            nearest = []  # what shares no telling word with the question is not near it
        return Found(
            query,
            self._gate.coverage(probability),
            probability,
            parts,
            tuple(nearest[:NEAREST]),
            tuple(sorted(signals.items())),
        )

    def _ranked(self, query: str) -> list[tuple[Page, float]]:
        """Return the pages by the BM25 score of their best section."""
        stems = [stem for stem in self._names.stems(words_of(query)) if stem in self._known]
        if not stems:
            return []
        k = min(20, len(self._sections))
        numbers, scores = self._index.retrieve([stems], k=k, show_progress=False)
        best: dict[str, tuple[Page, float]] = {}
        for number, score in zip(numbers[0], scores[0], strict=True):
            page = self._sections[int(number)][0]
            if page.id not in best:
                best[page.id] = (page, float(score))
        return list(best.values())

    def _choose(self, topics: Sequence[Topic], ranked: Sequence[tuple[Page, float]]) -> list[Topic]:
        """Return the topics to answer on: the best, and others that other words of the question name."""
        scores = {page.id: score for page, score in ranked}
        best_score = max(scores.values(), default=1.0)
        order = sorted(topics, key=lambda topic: -(topic.weight + scores.get(topic.page.id, 0.0) / best_score))
        chosen: list[Topic] = []
        for topic in order:
            taken = frozenset[str]().union(*(other.words for other in chosen))
            if len(chosen) < MAX_PARTS and not topic.words & taken:
                chosen.append(topic)
        medicines = [topic for topic in chosen if topic.page.kind == "medicine"]
        return medicines[:1] + [topic for topic in chosen if topic not in medicines[:1]]

    def _part(self, question: str, topic: Topic) -> Part:
        page = topic.page
        types = question_types(question, page.kind, self._types)
        wanted = [heading for found in types for heading in found.sections[:2]] or [page.sections[0].heading]
        passages: list[Passage] = []
        for found in types:
            section = next((s for s in (page.section(heading) for heading in found.sections) if s is not None), None)
            if section is not None and section not in [passage.section for passage in passages]:
                passages.append(Passage(page, section, section.lines, 1.0 if section.heading in wanted else 0.5))
        if not passages:
            passages = [Passage(page, page.sections[0], page.sections[0].lines, 0.5 if types else 1.0)]
        return Part(page, topic.matched, topic.guessed, tuple(found.name for found in types), tuple(passages))

    def _signals(self, query: str, chosen: Sequence[Topic], ranked: Sequence[tuple[Page, float]]) -> dict[str, float]:
        """Return what speaks for the chosen pages: see `coverage.SIGNALS`."""
        stems = set(self._names.stems(words_of(query)))
        weights = {stem: self._names.weight(stem) for stem in stems}
        total = sum(weights.values()) or 1.0
        named = frozenset[str]().union(*(topic.words for topic in chosen))
        shown = frozenset[str]().union(*(self._stems_of[topic.page.id] for topic in chosen))
        scores = [score for _, score in ranked]
        margin = 1.0 - scores[1] / scores[0] if len(scores) > 1 and scores[0] > 0 else 0.0
        top = bool(ranked and chosen and ranked[0][0] is chosen[0].page)
        return {
            "named": sum(weights.get(stem, 0.0) for stem in named & stems) / total,
            "shown": sum(weights[stem] for stem in stems & shown) / total,
            "unknown": sum(weights[stem] for stem in stems - self._known) / total,
            "margin": margin,
            "agree": float(top),
            "guessed": float(any(topic.guessed for topic in chosen)),
            "has_name": float(any(topic.words for topic in chosen)),
        }


def _document(page: Page, section: Section) -> str:
    names = " ".join([page.title] * TITLE_REPEATS + list(page.also_called) * NAME_REPEATS)
    return f"{names} {section.heading} {' '.join(line.text for line in section.lines)}"


def open_library(folder: Path = FOLDER) -> EmbeddedLibrary:
    """Return the library of a folder of pages. Raises `UserError` as `pages.read_library`."""
    return EmbeddedLibrary(
        read_library(folder), load_question_types(FOLDER / "question_types.yaml"), load_gate(FOLDER / "coverage.json")
    )
