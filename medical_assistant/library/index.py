"""The embedded library: all pages in memory, found by their names first, by BM25 over sections where no name fits.

The names a question holds are its topics; a trained classifier (`sections`) says what it asks of them. Without a name BM25 (Robertson & Zaragoza 2009, "The Probabilistic Relevance Framework") over the sections proposes a page, and
`coverage` says whether that is close enough to be shown. Measured in benchmarks/library.py.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import bm25s
import Stemmer

from medical_assistant.errors import UserError
from medical_assistant.files import ASSETS
from medical_assistant.library.coverage import Gate, load_gate
from medical_assistant.library.pages import SECTIONS, Page, Section, read_library
from medical_assistant.library.passages import Found, Part, Passage
from medical_assistant.library.sections import (
    NOTHING,
    SectionClassifier,
    features,
    load_section_classifier,
    softmax,
)
from medical_assistant.library.understand import SILENT, Names, Reading, Topic, words_of

FOLDER = ASSETS / "library"
MAX_PARTS, MAX_SECTIONS = 2, 3
SEARCHED = 60  # sections
NAME_K = 3.0  # the weight of a name that counts half
PARTIAL_SHARE = 0.3  # for the share of a name that the question holds
BM25_SHARE = 0.6  # of the best page by BM25, against a name that is all of the question
SECOND_FROM = 0.6  # a second topic is named by words that are at least this telling, against the first's
MAX_OVERLAP = 12.0  # weight of the words that a section shares with the question
URGENCY = ("Get help now", "See a doctor today", "See someone soon")
SHOWN_TOGETHER = {**dict.fromkeys(URGENCY, URGENCY), "High": ("Normal values",), "Low": ("Normal values",)}
ALWAYS_SHOWN = {"first-aid": ("What to do",)}
NEAREST = 3
NEAR_FROM = 0.3  # share of the telling words of the question that stand in the best page
# A page's name and the names it is also known by count this often against once for each word of a section.
TITLE_REPEATS, NAME_REPEATS = 3, 1
ASKED_SHARE = 0.15  # for a page that has the sections that are asked for
COMPARED = 8  # pages, the best by their names and BM25, whose sections are compared with what is asked
# Sections that only medicines have: a question for one is about the medicine that it names, not what it is taken for.
OF_MEDICINES = frozenset(SECTIONS["medicine"]) - {"In short", "Used for", "Get help now"}
MEDICINE_FROM = 0.5  # probability that one of them is asked for
REFERRING = frozenset(("it", "its", "them", "they", "these", "those"))
EARLIER_FACTOR = 0.8  # the weight of a name one message earlier
FOLLOWS_UP_WORDS = 12  # a shorter question without a topic of its own is read with the topic of the conversation


class EmbeddedLibrary:
    """Pages in memory. Safe for concurrent calls: nothing changes after the start."""

    def __init__(self, pages: Sequence[Page], sections: SectionClassifier, gate: Gate) -> None:
        self.pages = list(pages)
        self.sections = sections
        self.gate = gate
        self._sections = [(page, section) for page in self.pages for section in page.sections]
        stemmer = _Stemmer()
        names = {page.id: stemmer.telling(_names(page)) for page in self.pages}
        bodies = [stemmer.telling(_body(section)) for _, section in self._sections]
        self._body_stems = {
            (page.id, section.heading): frozenset(body)
            for (page, section), body in zip(self._sections, bodies, strict=True)
        }
        self._stems_of = {page.id: set(names[page.id]) for page in self.pages}
        for (page, _), body in zip(self._sections, bodies, strict=True):
            self._stems_of[page.id].update(body)
        pages_with = Counter(stem for stems in self._stems_of.values() for stem in stems)
        weights = {stem: math.log(1 + len(self.pages) / count) for stem, count in pages_with.items()}
        self.names = Names(self.pages, stemmer.stem_of, weights)
        self._known = frozenset(weights)
        self._index = bm25s.BM25()
        documents = [names[page.id] + body for (page, _), body in zip(self._sections, bodies, strict=True)]
        self._index.index(documents, show_progress=False)

    def find(self, question: str, earlier: Sequence[str] = ()) -> Found:
        """Return what the library has on `question`; `earlier` holds the user's messages before it, oldest first."""
        reading = self.names.read(question)
        topics = self.names.topics(reading)
        before = self._earlier_topic(question, reading, topics, earlier)
        if before:
            topics = [before]
            reading = self.names.read(f"{before.page.title}: {question}")
        ranked = self._ranked(reading)
        scores = self._scores(reading, topics, ranked)
        chosen = self._choose(reading, topics, ranked, scores)
        parts = tuple(self._part(reading, topic) for topic in chosen)
        signals = self._signals(reading, chosen, parts, ranked)
        probability = self.gate.probability(signals)
        by_id = {page.id: page for page in (*(topic.page for topic in topics), *(page for page, _ in ranked))}
        best = sorted(by_id, key=lambda name: -scores[name])
        order = dict.fromkeys([*(part.topic.id for part in parts), *best])
        nearest = [by_id[name] for name in order]
        if signals["shown"] < NEAR_FROM:
            nearest = []  # what shares no telling word with the question is not near it
        return Found(
            reading.text,
            self.gate.coverage(probability),
            probability,
            parts,
            tuple(nearest[:NEAREST]),
            tuple(sorted(signals.items())),
        )

    def _earlier_topic(
        self, question: str, reading: Reading, topics: Sequence[Topic], earlier: Sequence[str]
    ) -> Topic | None:
        """Return the conversation's topic where the question is short, and names none or says "it" of a symptom."""
        words = words_of(question)
        refers = REFERRING & set(words) and all(topic.page.kind == "symptom" for topic in topics)
        if len(words) > FOLLOWS_UP_WORDS or not (refers or not topics):
            return None
        # Words of its own that no page is named by ("stiff person syndrome") are a new topic, not a follow-up.
        if not refers and len(reading.stems) > 1:
            return None
        named = [self.names.topics(self.names.read(before))[:1] for before in reversed(earlier)]
        weighed = [
            (topic.weight * EARLIER_FACTOR**age, -age, topic) for age, found in enumerate(named) for topic in found
        ]
        return max(weighed, key=lambda entry: entry[:2])[2] if weighed else None

    def _ranked(self, reading: Reading) -> list[tuple[Page, float]]:
        """Return the pages by the BM25 score of their best section."""
        stems = [stem for stem in reading.stems if stem in self._known]
        if not stems:
            return []
        numbers, scores = self._index.retrieve([stems], k=min(SEARCHED, len(self._sections)), show_progress=False)
        best: dict[str, tuple[Page, float]] = {}
        for number, score in zip(numbers[0], scores[0], strict=True):
            page = self._sections[int(number)][0]
            if score > 0 and page.id not in best:
                best[page.id] = (page, float(score))
        return list(best.values())

    def _scores(
        self, reading: Reading, topics: Sequence[Topic], ranked: Sequence[tuple[Page, float]]
    ) -> dict[str, float]:
        """Return how well each page fits: the share of the question that names it, and its BM25 against the best."""
        best = max((score for _, score in ranked), default=1.0) or 1.0
        stems = frozenset(reading.stems)
        scores = {
            page.id: BM25_SHARE * score / best + PARTIAL_SHARE * self.names.partial(page, stems)
            for page, score in ranked
        }
        for topic in topics:
            scores[topic.page.id] = scores.get(topic.page.id, 0.0) + topic.weight / (topic.weight + NAME_K)
        return scores

    def _choose(
        self,
        reading: Reading,
        topics: Sequence[Topic],
        ranked: Sequence[tuple[Page, float]],
        scores: Mapping[str, float],
    ) -> list[Topic]:
        """Return the topics to answer on: the best, and another that other words of the question name as clearly.

        A page that has the sections that are asked for goes before one of the same name that has none. Where the
        question asks what is asked of a medicine, the medicine that it names alone answers, not what it is for.
        """
        named = {topic.page.id: topic for topic in topics}
        found = [named.get(page.id) or Topic(page, "", frozenset(), 0.0, True) for page, _ in ranked]
        found += [topic for topic in topics if topic not in found]
        best = sorted(found, key=lambda topic: -scores[topic.page.id])[:COMPARED]

        def fit(topic: Topic) -> float:
            asked = self._asked(reading, topic)
            return scores[topic.page.id] + ASKED_SHARE * math.fsum(
                probability for heading, probability in asked.items() if topic.page.section(heading)
            )

        order = sorted(best, key=fit, reverse=True)
        chosen = order[:1]
        for topic in order[1:]:
            clear = topic.words and topic.weight >= SECOND_FROM * chosen[0].weight
            if len(chosen) < MAX_PARTS and chosen[0].words and clear and not topic.words & chosen[0].words:
                chosen.append(topic)
        medicines = [topic for topic in order if topic.words and topic.page.kind == "medicine"][:MAX_PARTS]
        if medicines:
            asked = self._asked(reading, medicines[0])
            if math.fsum(asked[heading] for heading in OF_MEDICINES) >= MEDICINE_FROM:
                return medicines
        return chosen

    def _asked(self, reading: Reading, topic: Topic) -> dict[str, float]:
        """Return how probable it is that each section which a page of this kind may have is asked for, or nothing."""
        return self.sections.probabilities(features(reading.sequence, topic.words, topic.page.kind), topic.page.kind)

    def _part(self, reading: Reading, topic: Topic) -> Part:
        page = topic.page
        scores = self.sections.scores(features(reading.sequence, topic.words, page.kind))
        rest = set(reading.stems) - topic.words
        for section in page.sections:
            shared = rest & self._body_stems[page.id, section.heading]
            overlap = min(MAX_OVERLAP, math.fsum(self.names.weight(stem) for stem in shared))
            scores[section.heading] += self.sections.overlap_weight * overlap
        probable = softmax({section.heading: scores[section.heading] for section in page.sections})
        best = max(probable.values())
        asked = [name for name in probable if probable[name] >= self.sections.show_from * best]
        asked = sorted(asked, key=lambda name: -probable[name])[:MAX_SECTIONS]
        together = [name for heading in asked for name in SHOWN_TOGETHER.get(heading, ())]
        headings = dict.fromkeys([*asked, *together, *ALWAYS_SHOWN.get(page.kind, ())])
        passages = []
        for heading in headings:
            section = page.section(heading)
            if section is not None:
                passages.append(Passage(page, section, section.lines, probable[heading]))
        return Part(page, topic.matched, topic.guessed, tuple(asked), tuple(passages))

    def _signals(
        self, reading: Reading, chosen: Sequence[Topic], parts: Sequence[Part], ranked: Sequence[tuple[Page, float]]
    ) -> dict[str, float]:
        """Return what speaks for the chosen pages: see `coverage.SIGNALS`."""
        stems = set(reading.stems)
        weights = {stem: self.names.weight(stem) for stem in stems}
        total = math.fsum(weights.values()) or 1.0

        def share(some: Collection[str]) -> float:
            return math.fsum(weight for stem, weight in weights.items() if stem in some) / total

        shown = frozenset[str]().union(*(self._stems_of[topic.page.id] for topic in chosen))
        bm25 = [score for _, score in ranked]
        first = chosen[0] if chosen else None
        return {
            "shown": share(shown),
            "unknown": share(stems - self._known),
            "short": 1.0 / (1.0 + len(reading.stems)),
            "strength": first.weight / (first.weight + NAME_K) if first else 0.0,
            "has_name": float(any(topic.words for topic in chosen)),
            "partial": self.names.partial(first.page, stems) if first else 0.0,
            "modified": float(first is not None and self._is_modified(reading, first)),
            "asked": max((part.passages[0].score for part in parts), default=0.0),
            "nothing": self._asked(reading, first)[NOTHING] if first else 1.0,
            "margin": 1.0 - (bm25[1] if len(bm25) > 1 else 0.0) / bm25[0] if bm25 else 0.0,
            "bm25": min(1.0, bm25[0] / total / 5.0) if bm25 else 0.0,
        }

    def _is_modified(self, reading: Reading, topic: Topic) -> bool:
        """Return whether a telling word that the topic's page does not hold stands just before its name."""
        strange = set(reading.stems) - self._stems_of[topic.page.id]
        return any(
            before in strange and word in topic.words
            for before, word in zip(reading.sequence, reading.sequence[1:], strict=False)
        )


def _names(page: Page) -> str:
    return " ".join([page.title] * TITLE_REPEATS + list(page.also_called) * NAME_REPEATS)


def _body(section: Section) -> str:
    return f"{section.heading} {' '.join(line.text for line in section.lines)}"


class _Stemmer:
    """Stems texts, each distinct word once. `stem_of`: what it met."""

    def __init__(self) -> None:
        self._stemmer = Stemmer.Stemmer("english")
        self.stem_of: dict[str, str] = {}

    def telling(self, text: str) -> list[str]:
        """Return the stems of a text's words but for those that say nothing of a topic."""
        words = words_of(text)
        new = [word for word in words if word not in self.stem_of]
        self.stem_of.update(zip(new, self._stemmer.stemWords(new), strict=True))
        return [self.stem_of[word] for word in words if word not in SILENT]


def open_library(folder: Path = FOLDER) -> EmbeddedLibrary:
    """Return the library of a folder of pages. Raises `UserError` as `pages.read_library`."""
    pages = read_library(folder)
    if not pages:
        raise UserError(f"{folder} has no pages: name a folder of Markdown pages in the library's form.")
    return EmbeddedLibrary(
        pages, load_section_classifier(FOLDER / "section_classifier.json"), load_gate(FOLDER / "coverage.json")
    )
