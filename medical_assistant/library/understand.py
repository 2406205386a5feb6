"""What a question is about: the pages it names, and whom it is asked for.

Names are found word by word on stems, in any order ("pain in my knee" is "knee pain"). A word that is in no page is
corrected towards the words of names alone: towards ordinary words, "COVID" once became "CVID" and "sprained" "stained".
"""

from __future__ import annotations

import copy
import functools
import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Container, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import chain

import Stemmer
from bm25s.stopwords import STOPWORDS_EN_PLUS
from rapidfuzz import process
from rapidfuzz.distance import DamerauLevenshtein

from medical_assistant.library.pages import DOCUMENT, SECTION_NAMES, Page

MIN_CORRECTED_LETTERS, LONG_WORD_LETTERS = 5, 9  # one letter may be wrong from the first, two from the second
ALIAS_FACTOR = 0.9  # a title says best what a page is about
OTHER_PERSON_FACTOR = 0.6
SCATTERED_FACTOR, MAX_BETWEEN = 0.6, 4  # a name whose words stand apart, with more than this many others between
_SOUNDS = str.maketrans("zkq", "scc")  # letters that misspellings put for each other
_WORD = re.compile(r"[a-z0-9][a-z0-9']*")
_POSSESSION = re.compile(r"'s?$")
# The words of asking itself: they belong to a name that holds them, but say nothing of the topic on their own.
ASKING_WORDS = frozenset(
    "ask bad best cause caused causes day days difference feel feeling get getting give given go going good happen "
    "happens happened help hi hello know like long lot make makes many mean means month months much need needs old "
    "people person please question really right safe say sign signs symptom symptoms take taken taking tell thank "
    "thanks thing things treat treated treatment use used using want way week weeks well year years".split()
)
FUNCTION_WORDS = frozenset(STOPWORDS_EN_PLUS) - ASKING_WORDS
SILENT = FUNCTION_WORDS | ASKING_WORDS
# How people name whom they ask for, the youngest first; the titles of pages say "babies", "children" and "adults".
_AGE = r"\b{}[- ]?(?:{})[- ]?old\b"
_DAYS, _MONTHS, _YEARS = "days?|weeks?|wks?", "months?|mths?|mos?", "years?|yrs?|yo"
_PEOPLE = (
    ("baby", rf"\b(?:baby|babies|newborns?|infants?)\b|{_AGE.format('[0-9a-z]+', _DAYS)}"
             rf"|{_AGE.format('(?:[1-9]|1[01]|one|two|three|four|five|six)', _MONTHS)}"),
    ("child", rf"\b(?:toddler|sons?|daughters?|kids?|child|children|lad|boys?|girls?)\b"
              rf"|{_AGE.format('(?:[1-9]|1[0-5])', _YEARS)}|{_AGE.format('[0-9a-z]+', _MONTHS)}"),
    ("adult", r"\b(?:adults?|grown|wife|husband|mum|dad|nan|pregnant)\b"),
)  # fmt: skip
_WHOM = re.compile(r"\bin (?:a |an |your )?(bab|child|adult)")  # in the title of a page
_PEOPLE_PATTERNS = tuple((person, re.compile(pattern)) for person, pattern in _PEOPLE)
PERSON_STEMS = {"baby": "babi", "child": "child", "adult": "adult"}
# Whose page answers for a person, the best first; "" is a page that is for all.
OF_PERSON = {"baby": ("baby", "child"), "child": ("child",), "adult": ("adult", ""), "": ()}


def words_of(text: str) -> list[str]:
    """Return the words of a text, lower case, without accents and apostrophes of possession."""
    plain = text.lower().replace("\u2019", "'").replace("-", " ")
    if not plain.isascii():
        plain = "".join(letter for letter in unicodedata.normalize("NFKD", plain) if not unicodedata.combining(letter))
    words: list[str] = _WORD.findall(plain)
    return [_POSSESSION.sub("", word) if "'" in word else word for word in words] if "'" in plain else words


@dataclass(frozen=True)
class Topic:
    """A page that a question names. `words`: the stems of the name. `weight`: how telling they are together.

    `subject`: those of the question's stems that say only what it is about. The other words of a name such as "foods to
    avoid with gout" say what is asked.
    """

    page: Page
    matched: str
    words: frozenset[str]
    weight: float
    guessed: bool
    subject: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Reading:
    """A question as it is searched: its words, misspelt names corrected, and whom it is about.

    `sequence`: the stem of each word, in order. `stems`: those of them that say something of the topic; `weights`: how
    telling each is. `corrected`: the stems that another spelling was corrected to. `strange`: how many words are
    neither in a page nor ordinary English: other names, or badly misspelt. `person`: "baby", "child", "adult" or empty.
    """

    text: str
    sequence: tuple[str, ...]
    stems: tuple[str, ...]
    weights: Mapping[str, float]
    all_stems: frozenset[str]
    corrected: frozenset[str]
    strange: int
    person: str

    @functools.cached_property
    def total(self) -> float:
        """The sum of the weights; 1 where there are none, to divide by."""
        return math.fsum(self.weights.values()) or 1.0

    def share(self, some: Container[str]) -> float:
        """Return how much (0-1) of the question's telling words is in `some`, by weight."""
        return math.fsum(weight for stem, weight in self.weights.items() if stem in some) / self.total


class Names:
    """The names of all pages, and which of them a question holds."""

    def __init__(
        self,
        pages: Sequence[Page],
        stems: Mapping[str, str],
        weights: Mapping[str, float],
        name_words: Collection[str] = (),
        ordinary: Collection[str] | None = None,
        uncorrected: Collection[str] = (),
        in_pages: Container[str] | None = None,
    ) -> None:
        """`stems`: of every word of the pages. `weights`: how telling a stem is, by how few pages hold it.

        `uncorrected`: words that are right as they are, though no page has them. `in_pages`: stems that a page has,
        where `weights` has others too.
        Of pages that are elsewhere: `name_words`, the words of their names, and `ordinary`, see `ordinary_words`.
        """
        self._stemmer = Stemmer.Stemmer("english")
        self._stem_of = dict(stems)
        self._weights = weights
        self._unknown_weight = max(weights.values(), default=1.0)
        self._uncorrected = uncorrected
        self._in_pages = weights if in_pages is None else in_pages
        self._ordinary = ordinary_words(pages) if ordinary is None else ordinary
        found = self._index(pages)
        medicines = (name for page in pages if page.kind == "medicine" for name in (page.title, *page.also_called))
        self._medicine_words = {word for name in medicines for word in words_of(name)}
        self._letters = sorted(word for word in found.union(name_words) if len(word) >= MIN_CORRECTED_LETTERS)

    def of(self, pages: Sequence[Page]) -> Names:
        """Return the names of these pages alone, read as before: with the same weights and corrections."""
        names = copy.copy(self)
        names._index(pages)
        return names

    def _index(self, pages: Sequence[Page]) -> set[str]:
        """Note the names of the pages and return their words."""
        self._pages = pages
        self._names: defaultdict[frozenset[str], list[tuple[int, str]]] = defaultdict(list)
        self._of_page: defaultdict[str, list[frozenset[str]]] = defaultdict(list)
        name_words = set[str]()
        for number, page in enumerate(pages):
            # A document's id is made by whoever imported it.
            own = dict.fromkeys((page.title, page.title if page.kind == DOCUMENT else page.id.replace("-", " ")))
            for name in dict.fromkeys((*own, *page.also_called)):
                if name.isupper() and name.lower() in self._ordinary:
                    continue  # "ADD" is a name, "add" is not
                if page.kind == DOCUMENT and name.lower() in SECTION_NAMES:
                    continue  # a document on "side effects" is not on those of what is asked about
                words = words_of(name)
                name_words.update(words)
                telling = [word for word in words if word not in FUNCTION_WORDS]
                bare = len(words) > 1 and len(telling) == 1 and name not in own
                if bare or all(word in ASKING_WORDS for word in telling):
                    telling = words  # "out of breath" is not named by "breath", nor "feeling down" by "feeling"
                if len(telling) > 1 or not SILENT.issuperset(telling):
                    key = frozenset(self.stems(telling))
                    self._names[key].append((number, name))
                    self._of_page[page.id].append(key)
        self._for_whom = {(subject_of(page.title), person_in(page.title)): page for page in pages}
        self._by_word: defaultdict[str, list[frozenset[str]]] = defaultdict(list)
        for key in self._names:
            for stem in key:
                self._by_word[stem].append(key)
        return name_words

    def stems(self, words: Iterable[str]) -> list[str]:
        """Return the stem of each word; those of the pages' words are known already."""
        return [self._stem_of.get(word) or str(self._stemmer.stemWord(word)) for word in words]

    def weight(self, stem: str) -> float:
        """Return how telling a stem is: few pages hold it, or none."""
        return self._weights.get(stem, self._unknown_weight)

    def read(self, question: str) -> Reading:
        """Return the question as it is searched, whatever text it is."""
        lowered = question.lower()
        person = next((name for name, pattern in _PEOPLE_PATTERNS if pattern.search(lowered)), "")
        words, corrected = self._correct(words_of(question))
        telling = [word for word in words if word not in FUNCTION_WORDS]
        all_stems = set(self.stems(words))
        if person:
            all_stems.add(PERSON_STEMS[person])
        stems = tuple(self.stems(word for word in telling if word not in ASKING_WORDS and not word.isdigit()))
        return Reading(
            question,
            tuple(self.stems(words)),
            stems,
            {stem: self.weight(stem) for stem in stems},
            frozenset(all_stems),
            frozenset(corrected),
            sum(len(word) >= MIN_CORRECTED_LETTERS and not self._is_right(word) for word in words),
            person,
        )

    def _is_right(self, word: str) -> bool:
        known = word in SILENT or self.stems([word])[0] in self._in_pages
        return known or word in self._uncorrected

    def _correct(self, words: Sequence[str]) -> tuple[list[str], set[str]]:
        """Return the words with unknown ones corrected towards a word of a name, and the stems that were corrected."""
        read, changed = [], set[str]()
        for word in words:
            new = word
            if len(word) >= MIN_CORRECTED_LETTERS and not self._is_right(word):
                allowed = 1 if len(word) < LONG_WORD_LETTERS else 2
                found = process.extractOne(
                    word, self._letters, scorer=DamerauLevenshtein.distance, score_cutoff=allowed
                )
                if found and self._may_be(word, found[0]):
                    new = found[0]
                    changed.update(self.stems([new]))
            read.append(new)
        return read, changed

    def _may_be(self, word: str, name: str) -> bool:
        """Return whether a word may be a misspelling of a name's word.

        It begins as the name does, or leaves its first letter out ("soriasis"). At most one consonant differs; none in
        a word of a medicine's names, where another consonant is another medicine.
        """
        differs = DamerauLevenshtein.distance(_consonants(word), _consonants(name))
        return word[0] in name[:2] and differs <= (0 if name in self._medicine_words else 1)

    def topics(self, reading: Reading) -> list[Topic]:
        """Return the pages that a question names, the most telling name first."""
        telling = frozenset(reading.stems) | {PERSON_STEMS.get(reading.person, "")}
        candidates = {
            name
            for stem in reading.all_stems
            for name in self._by_word.get(stem, ())
            if name <= reading.all_stems and name & telling
        }
        found: dict[int, Topic] = {}
        # Sorted, and with sums that do not depend on an order: sets come in another order in each process.
        for name in sorted(candidates, key=sorted):
            weight = math.fsum(self.weight(stem) for stem in name if stem not in FUNCTION_WORDS)
            weight *= 1.0 if _stand_together(name, reading.sequence) else SCATTERED_FACTOR
            for number, text in self._names[name]:
                page = self._pages[number]
                fits = weight * (OTHER_PERSON_FACTOR if is_for_others(page, reading.person) else 1.0)
                fits *= 1.0 if text == page.title else ALIAS_FACTOR
                if number not in found or found[number].weight < fits:
                    subject = self._title_stems(page) & reading.all_stems or name
                    found[number] = Topic(page, text, name, fits, bool(name & reading.corrected), subject)
        return sorted(found.values(), key=lambda topic: (-topic.weight, topic.page.id))

    def _title_stems(self, page: Page) -> frozenset[str]:
        return frozenset(self.stems(word for word in words_of(page.title) if word not in SILENT))

    def for_person(self, page: Page, person: str) -> Page | None:
        """Return the page on the same subject for this person, where there is one and `page` is not it."""
        for whom in OF_PERSON[person]:
            found = self._for_whom.get((subject_of(page.title), whom))
            if found:
                return None if found is page else found
        return None

    def partial(self, page: Page, stems: Set[str]) -> float:
        """Return how much (0-1) of that name of the page that fits best is among `stems`, by weight."""
        best = 0.0
        for name in self._of_page[page.id]:
            shared = name & stems
            if shared:
                whole = math.fsum(self.weight(stem) for stem in name)
                best = max(best, math.fsum(self.weight(stem) for stem in shared) / whole)
        return best


def ordinary_words(pages: Iterable[Page]) -> set[str]:
    """Return the words of the pages' lines that are, in capitals, another name of a page: "add" is not "ADD"."""
    pages = list(pages)
    capitals = {name.lower() for page in pages for name in page.also_called if name.isupper()}
    lines = (section.lines for page in pages for section in page.sections)
    return capitals.intersection(" ".join(line.text for line in chain.from_iterable(lines)).split())


def _stand_together(name: frozenset[str], sequence: Sequence[str]) -> bool:
    """Return whether the words of a name stand near each other somewhere, as in "pain in my left knee"."""
    last: dict[str, int] = {}
    for at, stem in enumerate(sequence):
        if stem in name:
            last[stem] = at
            if len(last) == len(name) and at - min(last.values()) < len(name) + MAX_BETWEEN:
                return True
    return len(name) == 1 or not name <= set(sequence)  # the person is not among the words


def _consonants(word: str) -> str:
    """Return what of a word misspellings keep: its consonants by sound, without doubles."""
    return re.sub(r"(.)\1+", r"\1", re.sub("[aeiouyh]", "", word.replace("ph", "f").translate(_SOUNDS)))


@functools.lru_cache(maxsize=4096)
def person_in(title: str) -> str:
    """Return whom a page is about, by its title: "baby", "child", "adult" or nobody's ("")."""
    match = _WHOM.search(title.lower())
    return {"bab": "baby", "child": "child", "adult": "adult"}[match[1]] if match else ""


def subject_of(title: str) -> str:
    """Return what a page is about without whom: "fever" for "Fever in children"."""
    return _WHOM.split(title.lower())[0].strip()


def is_for_others(page: Page, person: str) -> bool:
    """Return whether the page's title says whom it is about, and the question means another."""
    meant = person_in(page.title)
    return bool(meant) and meant != person and not (meant == "adult" and not person)
