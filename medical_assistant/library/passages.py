"""What a search of the library gives: passages of pages, what they were found for, and whether the library knows.

The quoted answer, the sources under it, the API and any later check of written answers work on these objects alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from medical_assistant.library.pages import Line, Page, Section

Coverage = Literal["covered", "partly", "not"]
QUOTED_LINES = 12  # of a long section of a document; a list stays whole


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
    where the question is not covered. `signals`: what `probability` was computed from, by name. Of a message with
    several questions, `unanswered`: those that nothing covers; `left_out`: how many were not looked at. `off_topic`:
    the question is not covered and is, by its words, none that a page on health answers.
    """

    query: str
    coverage: Coverage
    probability: float
    parts: tuple[Part, ...] = ()
    nearest: tuple[Page, ...] = ()
    signals: tuple[tuple[str, float], ...] = ()
    unanswered: tuple[str, ...] = ()
    left_out: int = 0
    off_topic: bool = False


def excerpt(lines: Sequence[Line], weights: Sequence[float]) -> tuple[Line, ...]:
    """Return about `QUOTED_LINES` lines that stand together, those with the largest sum of `weights`, else the first.

    A list stays whole, with the line that leads into it.
    """
    if len(lines) <= QUOTED_LINES:
        return tuple(lines)
    starts = [at for at, line in enumerate(lines) if not at or not (line.item and _in_list(lines[at - 1]))]
    ends = [*starts[1:], len(lines)]
    best, best_weight = (0, 0), -1.0
    for number, start in enumerate(starts):
        fitting = [end for end in ends[number:] if end - start <= QUOTED_LINES] or [ends[number]]
        weight = math.fsum(weights[start : fitting[-1]])
        if weight > best_weight:
            best, best_weight = (start, fitting[-1]), weight
    return tuple(lines[slice(*best)])


def _in_list(line: Line) -> bool:
    return line.item or line.leads


class Library(Protocol):
    """A store of pages that can be asked. Safe for concurrent calls."""

    def find(self, question: str, earlier: Sequence[str] = ()) -> Found:
        """Return what there is on `question`; `earlier` holds the user's messages before it, oldest first."""
