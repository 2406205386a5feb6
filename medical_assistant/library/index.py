"""The embedded library: all pages in memory, found by their names first, by BM25 over sections where no name fits.

The names a question holds are its topics; what it asks of them (`question_types.yaml`) finds the section. Without
a name BM25 (Robertson & Zaragoza 2009, "The Probabilistic Relevance Framework") over the sections proposes a page, and
`coverage` says whether that is close enough to be shown. Measured in benchmarks/library.py.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Container, Mapping, Sequence
from pathlib import Path

import bm25s
import Stemmer

from medical_assistant.errors import UserError
from medical_assistant.files import ASSETS
from medical_assistant.library.coverage import Gate, load_gate
from medical_assistant.library.pages import DOCUMENT, Line, Page, Section, heading_means, read_library, text_means
from medical_assistant.library.passages import QUOTED_LINES, Found, Part, Passage, excerpt
from medical_assistant.library.understand import (
    FUNCTION_WORDS,
    MAX_TYPES,
    SILENT,
    Names,
    QuestionType,
    Reading,
    Topic,
    load_question_types,
    question_types,
    words_of,
)

FOLDER = ASSETS / "library"
MAX_PARTS, MAX_SECTIONS = 2, 3
SEARCHED = 60  # sections
NAME_K = 3.0  # the weight of a name that counts half
PARTIAL_SHARE = 0.3  # for the share of a name that the question holds
BM25_SHARE = 0.6  # of the best page by BM25, against a name that is all of the question
SECOND_FROM = 0.6  # a second topic is named by words that are at least this telling, against the first's
WORDS_FROM = 3.0  # weight of the words for which a section is shown that no type asks for
# What is shown where nothing says what is asked.
DEFAULT_SECTIONS = {
    "condition": ("In short",),
    "symptom": ("Causes", "In short"),
    "medicine": ("How to take it", "In short"),
    "test": ("Normal values", "What it measures"),
    "vaccine": ("Who should have it", "In short"),
    "first-aid": ("What to do", "In short"),
    "topic": ("What to know", "In short"),
    DOCUMENT: ("In short",),
}
NEAREST = 3
NEAR_FROM = 0.3  # share of the telling words of the question that stand in the best page
# A page's name and the names it is also known by count this often against once for each word of a section.
TITLE_REPEATS, NAME_REPEATS = 3, 1
ALWAYS_DEFAULT = ("topic", "first-aid")  # whose pages are one subject in a few sections
TYPED_SHARE = 0.15  # for a page that has a section of the type asked for
REFERRING = frozenset(("it", "its", "them", "they", "these", "those"))
EARLIER_FACTOR = 0.8  # the weight of a name one message earlier
FOLLOWS_UP_WORDS = 12  # a shorter question without a topic of its own is read with the topic of the conversation


class Decision:
    """Decides which pages, and which of their sections, answer a question. A subclass knows the pages.

    Safe for concurrent calls: nothing changes after the start.
    """

    def __init__(
        self,
        types: Sequence[QuestionType],
        gate: Gate,
        names: Names,
        known: Container[str],
        stems_of: Mapping[str, Collection[str]],
        body_stems: Mapping[tuple[str, str], Collection[str]],
    ) -> None:
        """`known`: all stems of the library. `stems_of`: those of a page; `body_stems`: of (page id, heading)."""
        self.types = list(types)
        self.gate = gate
        self.names = names
        self._known = known
        self._stems_of = stems_of
        self._body_stems = body_stems

    def _ranked(self, reading: Reading) -> list[tuple[Page, float]]:
        """Return the pages by the BM25 score of their best section."""
        raise NotImplementedError

    def _topics(self, text: str) -> list[Topic]:
        """Return the pages that another message of the conversation names."""
        return self.names.topics(self.names.read(text))

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
        chosen = self._choose(question, topics, ranked, scores)
        parts = tuple(self._part(question, reading, topic) for topic in chosen)
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

    def passages(self, question: str) -> list[Passage]:
        """Return the sections that may answer, of all pages that come into question, the best first."""
        reading = self.names.read(question)
        topics = self.names.topics(reading)
        ranked = self._ranked(reading)
        scores = self._scores(reading, topics, ranked)
        named = {topic.page.id: topic for topic in topics}
        found = [named.get(page.id) or Topic(page, "", frozenset(), 0.0, True) for page, _ in ranked]
        found += [topic for topic in topics if topic not in found]
        weighed = [
            (scores[topic.page.id] + passage.score, passage)
            for topic in found
            for passage in self._part(question, reading, topic).passages
        ]
        return [passage for _, passage in sorted(weighed, key=lambda entry: -entry[0])]

    def _earlier_topic(
        self, question: str, reading: Reading, topics: Sequence[Topic], earlier: Sequence[str]
    ) -> Topic | None:
        """Return the conversation's topic where the question is short, and names none or says "it" of a symptom."""
        words = words_of(question)
        refers = REFERRING & set(words) and all(topic.page.kind == "symptom" for topic in topics)
        if len(words) > FOLLOWS_UP_WORDS or not (refers or not topics):
            return None
        asked = {
            found.name for kind in ("medicine", "condition") for found in question_types(question, kind, self.types)
        }
        # Words of its own that no page is named by ("stiff person syndrome") are a new topic, not a follow-up.
        if not refers and len(reading.stems) > (2 if asked - {"what_is"} else 1):
            return None
        named = [self._topics(before)[:1] for before in reversed(earlier)]
        weighed = [
            (topic.weight * EARLIER_FACTOR**age, -age, topic) for age, found in enumerate(named) for topic in found
        ]
        return max(weighed, key=lambda entry: entry[:2])[2] if weighed else None

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
        self, question: str, topics: Sequence[Topic], ranked: Sequence[tuple[Page, float]], scores: Mapping[str, float]
    ) -> list[Topic]:
        """Return the topics to answer on: the best, and another that other words of the question name as clearly.

        A page that has a section of the kind that is asked for goes before one of the same name that has none. Where
        the question asks what is asked of a medicine, the medicine that it names alone answers, not what it is for.
        """
        named = {topic.page.id: topic for topic in topics}
        found = [named.get(page.id) or Topic(page, "", frozenset(), 0.0, True) for page, _ in ranked]
        found += [topic for topic in topics if topic not in found]
        types = {kind: question_types(question, kind, self.types) for kind in {topic.page.kind for topic in found}}

        def fit(topic: Topic) -> float:
            wanted = (heading for asked in types[topic.page.kind] for heading in asked.sections[:1])
            return scores[topic.page.id] + TYPED_SHARE * any(topic.page.section(heading) for heading in wanted)

        order = sorted(found, key=fit, reverse=True)
        chosen = order[:1]
        for topic in order[1:]:
            clear = topic.words and topic.weight >= SECOND_FROM * chosen[0].weight
            if len(chosen) < MAX_PARTS and chosen[0].words and clear and not topic.words & chosen[0].words:
                chosen.append(topic)
        medicines = [topic for topic in order if topic.words and topic.page.kind == "medicine"][:MAX_PARTS]
        if medicines and any(set(asked.kinds) <= {"medicine", "vaccine"} for asked in types["medicine"]):
            return medicines
        return chosen

    def _part(self, question: str, reading: Reading, topic: Topic) -> Part:
        page = topic.page
        types = self._types(question, page)
        first = [next((name for name in found.sections if page.section(name)), "") for found in types]
        besides = [name for found in types for name in found.besides]
        headings = [name for name in dict.fromkeys((*first, *besides)) if page.section(name)]
        typed = len(headings)
        if not headings or page.kind in ALWAYS_DEFAULT:
            default = [name for name in DEFAULT_SECTIONS[page.kind] if page.section(name)][:1]
            headings += [name for name in default if name not in headings]
        headings += [name for name in self._by_words(page, reading, topic) if name not in headings]
        if page.kind == DOCUMENT:
            headings, typed = self._own_headings(page, reading, topic, headings, typed)
        headings = headings[:MAX_SECTIONS] or [page.sections[0].heading]
        passages = []
        for number, heading in enumerate(headings):
            section = page.section(heading)
            if section is not None:
                lines = self._lines(page, section, reading, topic)
                passages.append(Passage(page, section, lines, 1.0 if number < typed else 0.5))
        return Part(page, topic.matched, topic.guessed, tuple(found.name for found in types), tuple(passages))

    def _types(self, question: str, page: Page) -> list[QuestionType]:
        """Return what is asked of a page; of a document, whose kind is not known, what it has a section for."""
        if page.kind != DOCUMENT:
            return question_types(question, page.kind, self.types)
        lowered = question.lower()
        asked = (found for found in self.types if found.pattern.search(lowered))
        general = {name for found in self.types if DOCUMENT in found.kinds for name in found.sections}
        return [
            found
            for found in asked
            if any(page.section(name) for name in found.sections if DOCUMENT in found.kinds or name not in general)
        ][:MAX_TYPES]

    def _own_headings(
        self, page: Page, reading: Reading, topic: Topic, headings: Sequence[str], typed: int
    ) -> tuple[list[str], int]:
        """Return a document's headings for `headings`, those first whose words the question says, and how many fit."""
        about = {*topic.words, *self.names.stems(words_of(page.title))}
        said = []
        for section in page.sections:
            stems = {*self.names.stems(word for word in words_of(section.heading) if word not in FUNCTION_WORDS)}
            if stems - about and stems - about <= reading.all_stems:
                said.append(section.heading)
        found = [own.heading for own in (page.section(name) for name in headings) if own]
        fitting = dict.fromkeys([*said, *found[:typed]])
        return list(dict.fromkeys([*fitting, *found])), len(fitting)

    def _lines(self, page: Page, section: Section, reading: Reading, topic: Topic) -> tuple[Line, ...]:
        """Return the lines to quote: all, but of a long section of a document those about the question."""
        if page.kind != DOCUMENT:
            return section.lines
        if len(section.lines) <= QUOTED_LINES:
            return section.lines
        rest = set(reading.stems) - topic.words
        lowered = reading.text.lower()
        asked = {name for found in self.types if found.pattern.search(lowered) for name in found.sections[:1]}
        asked -= heading_means(section.heading)

        def weight(line: Line) -> float:
            hits = rest & {*self.names.stems(words_of(line.text))} if rest else ()
            return math.fsum(self.names.weight(stem) for stem in hits) + len(asked & text_means(line.text))

        return excerpt(section.lines, [weight(line) for line in section.lines])

    def _by_words(self, page: Page, reading: Reading, topic: Topic) -> list[str]:
        """Return the sections that hold telling words of the question that the page's names do not, the best first."""
        rest = set(reading.stems) - topic.words
        by_heading: dict[str, float] = {}
        for section in page.sections[1:]:
            hits = rest.intersection(self._body_stems[page.id, section.heading])
            weight = math.fsum(self.names.weight(stem) for stem in hits)
            if weight >= WORDS_FROM:
                by_heading[section.heading] = weight
        return sorted(by_heading, key=lambda heading: -by_heading[heading])

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
            "unknown": share([stem for stem in stems if stem not in self._known]),
            "short": 1.0 / (1.0 + len(reading.stems)),
            "strength": first.weight / (first.weight + NAME_K) if first else 0.0,
            "has_name": float(any(topic.words for topic in chosen)),
            "partial": self.names.partial(first.page, stems) if first else 0.0,
            "modified": float(first is not None and self._is_modified(reading, first)),
            "typed": float(any(part.types and part.passages[0].score == 1.0 for part in parts)),
            "margin": 1.0 - (bm25[1] if len(bm25) > 1 else 0.0) / bm25[0] if bm25 else 0.0,
            "bm25": min(1.0, bm25[0] / total / 5.0) if bm25 else 0.0,
        }

    def _is_modified(self, reading: Reading, topic: Topic) -> bool:
        """Return whether a telling word that the topic's page does not hold stands just before its name."""
        strange = set(reading.stems).difference(self._stems_of[topic.page.id])
        return any(
            before in strange and word in topic.words
            for before, word in zip(reading.sequence, reading.sequence[1:], strict=False)
        )


class EmbeddedLibrary(Decision):
    """Pages in memory."""

    def __init__(self, pages: Sequence[Page], types: Sequence[QuestionType], gate: Gate) -> None:
        self.pages = list(pages)
        self._sections = [(page, section) for page in self.pages for section in page.sections]
        stemmer = TextStemmer()
        names = {page.id: stemmer.telling(names_text(page)) for page in self.pages}
        bodies = [stemmer.telling(section_text(section)) for _, section in self._sections]
        body_stems = {
            (page.id, section.heading): frozenset(body)
            for (page, section), body in zip(self._sections, bodies, strict=True)
        }
        stems_of = {page.id: set(names[page.id]) for page in self.pages}
        for (page, _), body in zip(self._sections, bodies, strict=True):
            stems_of[page.id].update(body)
        weights = word_weights(Counter(stem for stems in stems_of.values() for stem in stems), len(self.pages))
        named = Names(self.pages, stemmer.stem_of, weights)
        super().__init__(types, gate, named, frozenset(weights), stems_of, body_stems)
        self._index = bm25s.BM25()
        documents = [names[page.id] + body for (page, _), body in zip(self._sections, bodies, strict=True)]
        self._index.index(documents, show_progress=False)

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


def word_weights(pages_with: Mapping[str, int], n_pages: int) -> dict[str, float]:
    """Return how telling each stem is, from the number of pages that hold it."""
    return {stem: math.log(1 + n_pages / count) for stem, count in pages_with.items()}


def names_text(page: Page) -> str:
    """Return the names of a page as they are indexed with each of its sections."""
    return " ".join([page.title] * TITLE_REPEATS + list(page.also_called) * NAME_REPEATS)


def section_text(section: Section) -> str:
    """Return what is indexed of a section."""
    return f"{section.heading} {' '.join(line.text for line in section.lines)}"


class TextStemmer:
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
        pages, load_question_types(FOLDER / "question_types.yaml"), load_gate(FOLDER / "coverage.json")
    )
