"""A small model that answers greedily can begin to repeat itself: this notices it, so that the answer can end there.

The measure is that of seq-rep-4 (Welleck et al. 2020, arXiv:1908.04319), on words: a run of 4-grams that all occurred
before. Ordinary answers repeat a phrase; `LONGEST_RUN` of them in a row are a sentence or two, word for word.
"""

from __future__ import annotations

import re

GRAM_WORDS = 4
LONGEST_RUN = 24  # 4-grams in a row, 27 words
_WORD = re.compile(r"\w+")
_SENTENCE_END = re.compile(r"[.!?\u2026:\u3002\uff01\uff1f][\"'\u201d\u2019)\]*_]{0,4}(?=\s)|\n")


class RepetitionDetector:
    """Reads an answer as it streams."""

    def __init__(self) -> None:
        self._rest = ""  # may go on in the next piece
        self._last: tuple[str, ...] = ()
        self._seen: set[tuple[str, ...]] = set()
        self._run = 0

    def feed(self, piece: str) -> bool:
        """Return whether the text, with `piece` at its end, repeats itself."""
        text = self._rest + piece
        complete = len(text.rstrip()) if text[-1:].isspace() else max(text.rfind(" "), text.rfind("\n"), 0)
        self._rest = text[complete:]
        return any(self._read(word.lower()) for word in _WORD.findall(text[:complete]))

    def _read(self, word: str) -> bool:
        self._last = (*self._last, word)[-GRAM_WORDS:]
        if len(self._last) == GRAM_WORDS:
            self._run = self._run + 1 if self._last in self._seen else 0
            self._seen.add(self._last)
        return self._run >= LONGEST_RUN


def without_repetition(text: str) -> str:
    """Return `text` up to the last sentence before it began to repeat itself, all of it where it does not."""
    words, detector = list(_WORD.finditer(text)), RepetitionDetector()
    for number, word in enumerate(words):
        if detector.feed(word.group() + " "):
            start = words[number - LONGEST_RUN - GRAM_WORDS + 2].start()
            ends = [match.end() for match in _SENTENCE_END.finditer(text, 0, start)]
            return text[: ends[-1]].rstrip() if ends else text[:start].rstrip()
    return text
