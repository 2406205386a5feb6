"""What a question is about: the pages it names, and what it asks of them.

Names are found word by word on stems, in any order ("pain in my knee" is "knee pain"). A word that is in no page is
corrected towards the words of names alone: towards ordinary words, "COVID" once became "CVID" and "sprained" "stained".
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import Stemmer
import yaml
from bm25s.stopwords import STOPWORDS_EN_PLUS
from rapidfuzz import process
from rapidfuzz.distance import DamerauLevenshtein

from medical_assistant.library.pages import SECTIONS, Page

MAX_TYPES = 2
MIN_CORRECTED_LETTERS = 5
_WORD = re.compile(r"[a-z0-9][a-z0-9']*")
# Function words, and the words of asking itself, which say nothing of the topic.
STOP_WORDS = frozenset(STOPWORDS_EN_PLUS) | frozenset(
    "ask bad best cause caused causes day days difference feel feeling get give given go good happen happens happened "
    "help hi hello know like long lot make makes many mean means month months much need needs old people person please "
    "question really right safe say sign signs symptom symptoms take taken taking tell thank thanks thing things treat "
    "treated treatment use used using want way week weeks well year years".split()
)
# How people name whom they ask for; the names of pages say "child" and "baby".
_AGED = r"\w+[- ](?:{})[- ]old"
_PEOPLE = (
    (
        re.compile(rf"\b(newborn|infant|{_AGED.format('days?|weeks?|wks?')}|(?:1|2|one|two)[- ]months?[- ]old)\b"),
        "baby",
    ),
    (re.compile(rf"\b(toddler|son|daughter|kids?|children|{_AGED.format('months?|years?|yrs?')})\b"), "child"),
)


def words_of(text: str) -> list[str]:
    """Return the words of a text, lower case, without accents and apostrophes of possession."""
    plain = unicodedata.normalize("NFKD", text.lower().replace("\u2019", "'"))
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    return [re.sub(r"'s?$", "", word) for word in _WORD.findall(plain.replace("-", " "))]


@dataclass(frozen=True)
class QuestionType:
    name: str
    pattern: re.Pattern[str]
    sections: tuple[str, ...]
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class Topic:
    """A page that a question names. `weight`: how telling the matched words are. `words`: those words' stems."""

    page: Page
    matched: str
    words: frozenset[str]
    weight: float
    guessed: bool


def load_question_types(path: Path) -> list[QuestionType]:
    """Return the types of `question_types.yaml`, in its order."""
    content: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [
        QuestionType(
            name,
            re.compile("|".join(f"(?:{pattern})" for pattern in entry["patterns"])),
            tuple(entry["sections"]),
            tuple(entry.get("kinds", SECTIONS)),
        )
        for name, entry in content.items()
    ]


class Names:
    """The names of all pages, and which of them a question holds."""

    def __init__(self, pages: Sequence[Page]) -> None:
        self._stemmer = Stemmer.Stemmer("english")
        self._pages = pages
        self._names: defaultdict[frozenset[str], list[tuple[int, str]]] = defaultdict(list)
        for number, page in enumerate(pages):
            for name in {page.title, *page.also_called, page.id.replace("-", " ")}:
                stems = frozenset(self.stems(words_of(name)))
                if stems:
                    self._names[stems].append((number, name))
        self._by_word: defaultdict[str, list[frozenset[str]]] = defaultdict(list)
        for stems in self._names:
            for stem in stems:
                self._by_word[stem].append(stems)
        counts = Counter(stem for page in pages for stem in set(self.stems(words_of(f"{page.title} {page.id}"))))
        self._counts = counts
        self._known = set(self._by_word)
        self._letters = {
            word
            for page in pages
            for name in (page.title, *page.also_called)
            for word in words_of(name)
            if len(word) >= MIN_CORRECTED_LETTERS
        }

    def stems(self, words: Iterable[str]) -> list[str]:
        """Return the stems of the words that say something."""
        return [str(stem) for stem in self._stemmer.stemWords([word for word in words if word not in STOP_WORDS])]

    def weight(self, stem: str) -> float:
        """Return how telling a stem is: few pages have it in their title."""
        return math.log(1 + len(self._pages) / (1 + self._counts.get(stem, 0)))

    def correct(self, words: Sequence[str], known: set[str]) -> tuple[list[str], set[str]]:
        """Return the words with unknown ones corrected towards a word of a name, and the stems that were corrected."""
        corrected, changed = [], set[str]()
        for word in words:
            new = word
            if len(word) >= MIN_CORRECTED_LETTERS and word not in STOP_WORDS and not self._is_known(word, known):
                allowed = 1 if len(word) < 8 else 2
                found = process.extractOne(
                    word, self._letters, scorer=DamerauLevenshtein.distance, score_cutoff=allowed
                )
                if found:
                    new = found[0]
                    changed.update(self.stems([new]))
            corrected.append(new)
        return corrected, changed

    def _is_known(self, word: str, known: set[str]) -> bool:
        stem = self._stemmer.stemWord(word)
        return word in self._letters or stem in self._known or stem in known

    def topics(self, question: str, known: set[str]) -> list[Topic]:
        """Return the pages that a question names, the most telling first. `known`: stems of the pages' texts."""
        lowered = question.lower()
        words = words_of(question)
        words += [person for pattern, person in _PEOPLE if pattern.search(lowered)]
        words, guessed = self.correct(words, known)
        stems = set(self.stems(words))
        candidates = {name for stem in stems for name in self._by_word.get(stem, ()) if name <= stems}
        found: dict[int, Topic] = {}
        for name in candidates:
            weight = sum(self.weight(stem) for stem in name)
            for number, text in self._names[name]:
                topic = Topic(self._pages[number], text, name, weight, bool(name & guessed))
                if number not in found or found[number].weight < weight:
                    found[number] = topic
        return sorted(found.values(), key=lambda topic: -topic.weight)


def question_types(question: str, kind: str, types: Sequence[QuestionType]) -> list[QuestionType]:
    """Return what a question asks of a topic of `kind`: at most `MAX_TYPES`, in the order of the file."""
    lowered = question.lower()
    return [found for found in types if kind in found.kinds and found.pattern.search(lowered)][:MAX_TYPES]
