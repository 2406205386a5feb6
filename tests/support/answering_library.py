"""The shipped library as the tests of the page and of the chat need it: what names a page is covered.

Whether a question is covered is decided, and measured, elsewhere; here it is about what a covered one looks like.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

from medical_assistant.library.index import EmbeddedLibrary, open_library
from medical_assistant.library.pages import Page
from medical_assistant.library.passages import Found


class AnsweringLibrary:
    """A library of which every question that names a page is covered, and no other."""

    def __init__(self, library: EmbeddedLibrary) -> None:
        self._library = library

    @property
    def pages(self) -> list[Page]:
        return self._library.pages

    def find(self, question: str, earlier: Sequence[str] = ()) -> Found:
        found = self._library.find(question, earlier)
        named = bool(found.parts) and bool(found.parts[0].matched)
        return replace(found, coverage="covered" if named else "not")


@cache
def answering_library() -> AnsweringLibrary:
    return AnsweringLibrary(open_library())
