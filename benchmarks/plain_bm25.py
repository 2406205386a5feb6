"""What `bm25s` finds without this project's search: BM25 over titles, other names and text of every section."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import bm25s
import Stemmer

from medical_assistant.library.pages import Page

Key = tuple[str, str]  # page id, heading


class PlainBm25:
    """BM25 with the library's own stop words and English stems."""

    def __init__(self, pages: Sequence[Page]) -> None:
        self._keys = [(page.id, section.heading) for page in pages for section in page.sections]
        texts = [
            " ".join((page.title, *page.also_called, section.heading, *(line.text for line in section.lines)))
            for page in pages
            for section in page.sections
        ]
        self._stemmer = Stemmer.Stemmer("english")
        self._index = bm25s.BM25()
        self._index.index(self._tokens(texts), show_progress=False)

    def _tokens(self, texts: list[str]) -> Any:
        return bm25s.tokenize(texts, stopwords="en_plus", stemmer=self._stemmer, show_progress=False)

    def search(self, question: str, limit: int) -> list[Key]:
        """Return the best sections, at most `limit`, the best first."""
        numbers, _ = self._index.retrieve(self._tokens([question]), k=min(limit, len(self._keys)), show_progress=False)
        return [self._keys[int(number)] for number in numbers[0]]
