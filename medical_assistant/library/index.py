"""The embedded library: all pages in memory, with BM25 over their sections.

Robertson & Zaragoza 2009, "The Probabilistic Relevance Framework". Measured in benchmarks/library.py.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import bm25s
import Stemmer

from medical_assistant.errors import UserError
from medical_assistant.library.decision import Decision
from medical_assistant.library.pages import Page, Section, read_library
from medical_assistant.library.ranking import best_documents
from medical_assistant.library.trained import FOLDER, Trained, load_trained
from medical_assistant.library.understand import SILENT, Names, Reading, words_of

SEARCHED = 60  # sections
# A page's name and the names it is also known by count this often against once for each word of a section.
TITLE_REPEATS, NAME_REPEATS = 3, 1


class EmbeddedLibrary(Decision):
    """Pages in memory."""

    def __init__(self, pages: Sequence[Page], trained: Trained) -> None:
        self.pages = list(pages)
        self._sections = [(page, section) for page in self.pages for section in page.sections]
        stemmer = TextStemmer()
        names = {page.id: stemmer.telling(names_text(page)) for page in self.pages}
        bodies = [stemmer.telling(section_text(section)) for _, section in self._sections]
        body_stems = {
            (page.id, section.heading): tuple(dict.fromkeys(body))  # half the memory of a set
            for (page, section), body in zip(self._sections, bodies, strict=True)
        }
        stems_of = {page.id: set(names[page.id]) for page in self.pages}
        for (page, _), body in zip(self._sections, bodies, strict=True):
            stems_of[page.id].update(body)
        asked_for = trained.ranking.asked_for.stems  # "diagnosed" is in no page, and tells nothing of a topic
        counts = Counter(stem for name, stems in stems_of.items() for stem in stems.union(asked_for.get(name, ())))
        weights = word_weights(counts, len(self.pages))
        self._indexed = frozenset[str]().union(*stems_of.values())
        named = Names(self.pages, stemmer.stem_of, weights, uncorrected=trained.uncorrected, in_pages=self._indexed)
        self._by_id = {page.id: page for page in self.pages}
        super().__init__(trained, named, frozenset(weights), stems_of, body_stems)
        self._index = bm25s.BM25()
        documents = [names[page.id] + body for (page, _), body in zip(self._sections, bodies, strict=True)]
        self._index.index(documents, show_progress=False)

    def _page(self, name: str) -> Page | None:
        return self._by_id.get(name)

    def ranked(self, reading: Reading) -> list[tuple[Page, float]]:
        """Return the pages by the BM25 score of their best section."""
        stems = [stem for stem in reading.stems if stem in self._indexed]
        if not stems:
            return []
        best: dict[str, tuple[Page, float]] = {}
        for number, score in best_documents(self._index, stems, SEARCHED):
            page = self._sections[number][0]
            best.setdefault(page.id, (page, score))
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
        new = list(set(words).difference(self.stem_of))
        self.stem_of.update(zip(new, self._stemmer.stemWords(new), strict=True))
        return [self.stem_of[word] for word in words if word not in SILENT]


def open_library(*folders: Path) -> EmbeddedLibrary:
    """Return the pages of folders as one library; those that ship, without any.

    Raises `UserError` as `pages.read_library`, and where there are no pages.
    """
    pages = read_library(*(folders or (FOLDER,)))
    if not pages:
        named = ", ".join(map(str, folders or (FOLDER,)))
        raise UserError(f"{named} holds no pages: give a folder of .md pages in the library's form.")
    return EmbeddedLibrary(pages, load_trained())
