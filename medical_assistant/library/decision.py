"""Which pages, and which of their sections, answer a question, and whether they do.

The names a question holds, BM25 over the sections and over the words in which people ask for a page propose pages;
`ranking` puts them in order, a classifier says what is asked of them, `coverage` whether that is near enough to show.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import replace

from medical_assistant.library.classifier import NOTHING, features, softmax
from medical_assistant.library.pages import DOCUMENT, SECTIONS, URGENCY, Line, Page, Section, heading_means, text_means
from medical_assistant.library.passages import QUOTED_LINES, Found, Part, Passage, excerpt
from medical_assistant.library.ranking import BM25_A_WORD, NAME_K, name_key
from medical_assistant.library.trained import Trained
from medical_assistant.library.understand import FUNCTION_WORDS, Names, Reading, Topic, words_of

MAX_PARTS, MAX_SECTIONS = 2, 3
# For the words that a section shares with the question, by how telling they are, as log odds.
OVERLAP_WEIGHT, MAX_OVERLAP = 0.2, 12.0
HEADING_SAID = 3.0  # for a document's heading whose words are in the question, as log odds
SHOW_FROM = 0.2  # of the probability of the best section, for another that is shown
CANDIDATES = 20  # pages by BM25, of each kind
# A second topic has a score at most so far below the first's, words of its own that are at least this telling against
# the first's, and a name that meant its page this often; a title where no question was seen.
SECOND_LAG, SECOND_FROM, SECOND_RELIABLE = 5.0, 0.2, 0.3
# Sections that only medicines have: a question for one is about the medicine that it names, not what it is taken for.
OF_MEDICINES = frozenset(SECTIONS["medicine"]) - {"In short", "Used for", "Get help now"}
MEDICINE_FROM = 0.5  # probability that one of them is asked for
SHOWN_TOGETHER = {**dict.fromkeys(URGENCY, URGENCY), "High": ("Normal values",), "Low": ("Normal values",)}
ALWAYS_SHOWN = {"first-aid": ("What to do",)}
NEAREST = 3
NEAR_LAG = 3.0  # behind the score of the first
OFF_TOPIC_FROM = 0.85  # probability that no section of a page answers
NEAR_FROM = 0.3  # share of the telling words of the question that stand in the best page
EARLIER_FACTOR = 0.8  # the weight of a name one message earlier
# A question of at most so many words may be a follow-up, where that is so much more probable (log odds, probability).
FOLLOWS_UP_WORDS, FOLLOWS_UP_LEAD, FOLLOWS_UP_FROM = 12, 1.0, 0.8


class Decision:
    """Decides over the pages that a subclass knows. Safe for concurrent calls: nothing changes after the start."""

    def __init__(
        self,
        trained: Trained,
        names: Names,
        known: Container[str],
        stems_of: Mapping[str, Collection[str]],
        body_stems: Mapping[tuple[str, str], Collection[str]],
    ) -> None:
        """`known`: all stems of the library. `stems_of`: those of a page; `body_stems`: of (page id, heading)."""
        self.trained = trained
        self.names = names
        self._known = known
        self._stems_of = stems_of
        self._body_stems = body_stems

    def ranked(self, reading: Reading) -> list[tuple[Page, float]]:
        """Return the pages by the BM25 score of their best section."""
        raise NotImplementedError

    def _page(self, name: str) -> Page | None:
        """Return the page with this id, None where there is none."""
        raise NotImplementedError

    def _distinct(self, ranked: Sequence[tuple[Page, float]]) -> list[float]:
        """Return the scores by which it is judged how far the best page is ahead."""
        return [score for _, score in ranked]

    def _topics(self, text: str) -> list[Topic]:
        """Return the pages that another message of the conversation names."""
        return self.names.topics(self.names.read(text))

    def find(self, question: str, earlier: Sequence[str] = ()) -> Found:
        """Return what the library has on `question`; `earlier` holds the user's messages before it, oldest first.

        A short question is also read with the topic of the conversation before it. That reading is taken where its
        answer is clearly more probable than that of the question alone.
        """
        alone = self._find(question)
        if not earlier or len(words_of(question)) > FOLLOWS_UP_WORDS:
            return alone
        before = self._earlier_topic(earlier)
        if before is None:
            return alone
        followed = self._find(f"{before.title}: {question}")
        clearly = log_odds(followed.probability) - log_odds(alone.probability) >= FOLLOWS_UP_LEAD
        if followed.probability < FOLLOWS_UP_FROM or not clearly:
            return alone
        return replace(followed, parts=tuple(replace(part, guessed=True) for part in followed.parts))

    def _find(self, question: str) -> Found:
        reading = self.names.read(question)
        ranked = self.ranked(reading)
        ordered = self.ordered(reading, self.names.topics(reading), ranked)
        chosen = self._choose(reading, ordered)
        # "A cold or flu" asks the same of both: the names of all topics are one sign.
        subject = frozenset[str]().union(*(topic.subject for topic in chosen))
        parts = tuple(self._part(reading, replace(topic, subject=subject)) for topic in chosen)
        signals = self._signals(reading, chosen, parts, ranked, [score for _, score in ordered])
        probability = self.trained.gate.probability(signals)
        near = [topic.page for topic, score in ordered if ordered[0][1] - score <= NEAR_LAG]
        nearest = {page.id: page for page in (*(part.topic for part in parts), *near)}
        if signals["shown"] < NEAR_FROM:  # what shares no telling word with the question is not near it
            nearest = {}
        coverage = self.trained.gate.coverage(probability)
        return Found(
            reading.text,
            coverage,
            probability,
            parts,
            tuple(nearest.values())[:NEAREST],
            tuple(sorted(signals.items())),
            off_topic=coverage == "not" and signals["nothing"] >= OFF_TOPIC_FROM,
        )

    def passages(self, question: str) -> list[Passage]:
        """Return the sections that may answer, of all pages that come into question, the best first."""
        reading = self.names.read(question)
        ordered = self.ordered(reading, self.names.topics(reading), self.ranked(reading))
        weighed = [
            (score + passage.score, passage)
            for topic, score in ordered
            for passage in self._part(reading, topic).passages
        ]
        return [passage for _, passage in sorted(weighed, key=lambda entry: -entry[0])]

    def _earlier_topic(self, earlier: Sequence[str]) -> Page | None:
        """Return the page that the conversation is about: one that it names, the last messages before the others."""
        named = [self._topics(before)[:1] for before in reversed(earlier)]
        weighed = [
            (topic.weight * EARLIER_FACTOR**age, -age, topic) for age, found in enumerate(named) for topic in found
        ]
        if weighed:
            return max(weighed, key=lambda entry: entry[:2])[2].page
        last = self._find(earlier[-1])
        return last.parts[0].topic if last.parts and last.coverage != "not" else None

    def ordered(
        self, reading: Reading, topics: Sequence[Topic], ranked: Sequence[tuple[Page, float]]
    ) -> list[tuple[Topic, float]]:
        """Return the pages that come into question, each with its score, the best first."""
        ranking = self.trained.ranking
        found = self.page_signals(reading, topics, ranked)
        scored = [(topic, ranking.score(signals)) for topic, signals in found]
        ordered = sorted(scored, key=lambda entry: (-entry[1], entry[0].page.id))
        for_whom = self.names.for_person(ordered[0][0].page, reading.person) if ordered else None
        if for_whom is not None:  # "fever" of a child is the page on fever in children, whatever names it
            first, score = ordered[0]
            rest = [entry for entry in ordered if entry[0].page is not for_whom and entry[0] is not first]
            ordered = [(replace(first, page=for_whom), score), *rest]
        return ordered

    def page_signals(
        self, reading: Reading, topics: Sequence[Topic], ranked: Sequence[tuple[Page, float]]
    ) -> list[tuple[Topic, dict[str, float]]]:
        """Return the pages that come into question, each with what speaks for it (`ranking.SIGNALS`)."""
        asked_for = self.trained.ranking.asked_for.scores(reading.stems)
        body = {page.id: score for page, score in ranked}
        candidates = {topic.page.id: topic for topic in topics}
        asked_pages = (self._page(name) for name in list(asked_for)[:CANDIDATES])
        for page in (*(page for page, _ in ranked[:CANDIDATES]), *filter(None, asked_pages)):
            candidates.setdefault(page.id, Topic(page, "", frozenset(), 0.0, True))
        asked = {
            key: self._asked(reading, *key)
            for key in {(topic.subject, topic.page.kind) for topic in candidates.values()}
        }
        found = []
        for topic in candidates.values():
            probable = asked[topic.subject, topic.page.kind]
            section = math.fsum(probable[heading] for heading in topic.page.standard_headings)
            signals = self.trained.ranking.signals(
                reading, self.names, topic, body, asked_for, self._stems_of[topic.page.id], section
            )
            found.append((topic, signals))
        return found

    def _weight(self, stems: Collection[str]) -> float:
        return math.fsum(self.names.weight(stem) for stem in stems if stem not in FUNCTION_WORDS)

    def _choose(self, reading: Reading, ordered: Sequence[tuple[Topic, float]]) -> list[Topic]:
        """Return the topics to answer on: the best, and another that other words of the question name as clearly.

        Where the question asks what is asked of a medicine, the medicine that it names alone answers, not what it is
        for.
        """
        order = [topic for topic, _ in ordered]
        chosen = order[:1]
        for topic, score in ordered[1:]:
            if len(chosen) < MAX_PARTS and chosen[0].words and ordered[0][1] - score <= SECOND_LAG:
                own, of_first = (self._weight(a.words - b.words) for a, b in ((topic, chosen[0]), (chosen[0], topic)))
                seen = self.trained.ranking.reliability.get(name_key(topic.page, topic.words))
                reliable = topic.matched == topic.page.title if seen is None else seen >= SECOND_RELIABLE
                if reliable and of_first and own >= SECOND_FROM * self._weight(chosen[0].words):
                    chosen.append(topic)
        medicines = [topic for topic in order if topic.words and topic.page.kind == "medicine"][:MAX_PARTS]
        if medicines:
            asked = self._asked(reading, medicines[0].subject, "medicine")
            if math.fsum(asked[heading] for heading in OF_MEDICINES) >= MEDICINE_FROM:
                return medicines
        return chosen

    def _asked(self, reading: Reading, name: frozenset[str], kind: str) -> dict[str, float]:
        """Return how probable it is that each section which a page of this kind may have is asked for, or nothing.

        A document may have any.
        """
        scores = self._scores(reading, name, kind)
        headings = scores if kind == DOCUMENT else (*SECTIONS[kind], NOTHING)
        return softmax({heading: scores[heading] for heading in headings})

    def _scores(self, reading: Reading, name: frozenset[str], kind: str) -> dict[str, float]:
        """Return the log odds of each section. A document, of which no question was trained, counts as a condition."""
        kind = "condition" if kind == DOCUMENT else kind
        return self.trained.sections.scores(features(reading.sequence, name, kind))

    def _part(self, reading: Reading, topic: Topic) -> Part:
        page = topic.page
        scores = self._section_scores(reading, topic)
        probable = softmax(scores)
        best = max(probable.values())
        asked = [name for name in probable if probable[name] >= SHOW_FROM * best]
        asked = sorted(asked, key=lambda name: -probable[name])[:MAX_SECTIONS]
        together = [name for heading in asked for name in SHOWN_TOGETHER.get(heading, ())]
        passages = []
        for heading in dict.fromkeys([*asked, *together, *ALWAYS_SHOWN.get(page.kind, ())]):
            section = page.section(heading)
            if section is not None:
                lines = self._lines(page, section, reading, topic)
                passages.append(Passage(page, section, lines, probable[section.heading]))
        return Part(page, topic.matched, topic.guessed, tuple(asked), tuple(passages))

    def _section_scores(self, reading: Reading, topic: Topic) -> dict[str, float]:
        """Return how well each section of the page fits what is asked, as log odds."""
        page = topic.page
        general = self._scores(reading, topic.subject, page.kind)
        rest = set(reading.stems) - topic.subject
        scores = {}
        for section in page.sections:
            shared = rest.intersection(self._body_stems[page.id, section.heading])
            overlap = min(MAX_OVERLAP, math.fsum(self.names.weight(stem) for stem in shared))
            if page.kind == DOCUMENT:
                score = self._document_score(general, reading, topic, section)
            else:
                score = general[section.heading]
            scores[section.heading] = score + OVERLAP_WEIGHT * overlap
        return scores

    def _document_score(self, general: Mapping[str, float], reading: Reading, topic: Topic, section: Section) -> float:
        """Return the score of a section whose heading is a document's own: by what it means, and by its own words."""
        means = heading_means(section.heading)
        score = max((general[name] for name in means), default=min(general.values()))
        about = {*topic.subject, *self.names.stems(words_of(topic.page.title))}
        stems = {*self.names.stems(word for word in words_of(section.heading) if word not in FUNCTION_WORDS)} - about
        if not stems or not stems <= reading.all_stems:
            return score
        return max(score, general[NOTHING]) + HEADING_SAID  # nothing known is asked for, but what this heading says

    def _lines(self, page: Page, section: Section, reading: Reading, topic: Topic) -> tuple[Line, ...]:
        """Return the lines to quote: all, but of a long section of a document those about the question."""
        if page.kind != DOCUMENT or len(section.lines) <= QUOTED_LINES:
            return section.lines
        rest = set(reading.stems) - topic.subject
        general = self._scores(reading, topic.subject, page.kind)
        asked = {max(general, key=lambda name: general[name])} - heading_means(section.heading)

        def weight(line: Line) -> float:
            hits = rest & {*self.names.stems(words_of(line.text))} if rest else ()
            return math.fsum(self.names.weight(stem) for stem in hits) + len(text_means(line.text, asked))

        return excerpt(section.lines, [weight(line) for line in section.lines])

    def _signals(
        self,
        reading: Reading,
        chosen: Sequence[Topic],
        parts: Sequence[Part],
        ranked: Sequence[tuple[Page, float]],
        scores: Sequence[float],
    ) -> dict[str, float]:
        """Return what speaks for the chosen pages: see `coverage.SIGNALS`."""
        share = reading.share
        expanded = self.trained.ranking.asked_for.stems
        shown = frozenset[str]().union(*(self._stems_of[topic.page.id] for topic in chosen))
        asked_for = frozenset[str]().union(*(expanded.get(topic.page.id, frozenset()) for topic in chosen))
        known = share(self._known)
        bm25 = self._distinct(ranked)
        first = chosen[0] if chosen else None
        return {
            "shown": share(shown),
            "asked_for": share(shown | asked_for),
            "known_held": share(shown | asked_for) / (known or 1.0),
            "unknown": 1.0 - known,
            "strange": float(reading.strange),
            "short": 1.0 / (1.0 + len(reading.stems)),
            "strength": first.weight / (first.weight + NAME_K) if first else 0.0,
            "has_name": float(any(topic.words for topic in chosen)),
            "partial": self.names.partial(first.page, reading.weights.keys()) if first else 0.0,
            "modified": float(first is not None and self._is_modified(reading, first)),
            "asked": max((part.passages[0].score for part in parts), default=0.0),
            "nothing": self._asked(reading, first.subject, first.page.kind)[NOTHING] if first else 1.0,
            "scope": -self.trained.scope.scores(features(reading.sequence, frozenset(), ""))[NOTHING],
            "margin": 1.0 - (bm25[1] if len(bm25) > 1 else 0.0) / bm25[0] if bm25 else 0.0,
            "bm25": min(1.0, bm25[0] / reading.total / BM25_A_WORD) if bm25 else 0.0,
            "score": scores[0] if scores else 0.0,
            "ahead": scores[0] - scores[1] if len(scores) > 1 else 0.0,
        }

    def _is_modified(self, reading: Reading, topic: Topic) -> bool:
        """Return whether a telling word that the topic's page does not hold stands just before its name."""
        strange = set(reading.stems).difference(self._stems_of[topic.page.id])
        return any(
            before in strange and word in topic.words
            for before, word in zip(reading.sequence, reading.sequence[1:], strict=False)
        )


def log_odds(probability: float) -> float:
    """Return log(p / (1 - p)), for 0 and 1 as well."""
    kept = min(max(probability, 1e-6), 1.0 - 1e-6)
    return math.log(kept / (1.0 - kept))
