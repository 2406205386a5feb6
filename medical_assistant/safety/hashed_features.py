"""Words as hashed features, for the small regressions behind the safety rules: no vocabulary, no library at run time.

The trained weights in `assets` hold for exactly this hashing: after a change here, train all of them again.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from functools import lru_cache

BUCKETS = 2**15
_WORD = re.compile(r"[a-z]+|\d+")
_PIECES = (3, 4, 5)  # characters


def words_in(text: str) -> tuple[str, ...]:
    """Return the words of a normalised text; all numbers are one word."""
    return tuple("#" if word[0].isdigit() else word for word in _WORD.findall(text))


def features(words: Sequence[str]) -> set[int]:
    """Return the buckets (0 to `BUCKETS` - 1) of the words, their pairs and their pieces (arXiv:0902.2206).

    Each has the same value, 1 / sqrt(number of buckets).
    """
    buckets = {hashed(f"{first} {second}") for first, second in zip(("^", *words), (*words, "$"), strict=True)}
    return buckets.union(*(_of_word(word) for word in words))


def hashed(piece: str) -> int:
    """Return the bucket of `piece`."""
    return zlib.crc32(piece.encode()) % BUCKETS


@lru_cache(maxsize=20_000)  # bounds the memory of a server that runs for months
def _of_word(word: str) -> frozenset[int]:
    word = word[:40]
    marked = f"<{word}>"
    pieces = (marked[i : i + n] for n in _PIECES for i in range(len(marked) - n + 1))
    return frozenset(map(hashed, [word, *pieces]))
