"""What a search of the library gives: passages of pages, what they were found for, and whether the library knows.

The quoted answer, the sources under it, the API and any later check of written answers work on these objects alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from medical_assistant.library.pages import Line, Page, Section

Coverage = Literal["covered", "partly", "not"]


@dataclass(frozen=True)
class Passage:
    """Contiguous lines of one section. `score`: how probable it is that this is asked of the page, 0 to 1."""

    page: Page
    section: Section
    lines: tuple[Line, ...]
    score: float = 0.0


@dataclass(frozen=True)
class Part:
    """One thing that was asked: a topic, what is asked of it, and the passages that say it, the best first.

    `matched`: the words of the question that named the topic. `guessed`: the name was misspelt, or only close.
    `asked`: the headings of the sections that are asked for, the most probable first.
    """

    topic: Page
    matched: str
    guessed: bool
    asked: tuple[str, ...]
    passages: tuple[Passage, ...]


@dataclass(frozen=True)
class Found:
    """What the library has on a question.

    `query`: the question as it was searched, with the topic of the conversation where it names none. `coverage` comes
    from `probability` (that the passages answer the question, 0 to 1) and two thresholds. `nearest`: pages to offer
    where the question is not covered. `signals`: what `probability` was computed from, by name.
    """

    query: str
    coverage: Coverage
    probability: float
    parts: tuple[Part, ...] = ()
    nearest: tuple[Page, ...] = ()
    signals: tuple[tuple[str, float], ...] = ()


class Library(Protocol):
    """A store of pages that can be asked. Safe for concurrent calls."""

    def find(self, question: str, earlier: Sequence[str] = ()) -> Found:
        """Return what there is on `question`; `earlier` holds the user's messages before it, oldest first."""
