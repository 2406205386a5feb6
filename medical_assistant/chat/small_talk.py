"""Fixed replies to greetings, thanks and "what can you do": nothing is searched and no model is asked."""

from __future__ import annotations

import functools
import re

import yaml

from medical_assistant.files import ASSETS

_NO_WORD = re.compile(r"[^\w\s]|_")
_SENTENCE_END = re.compile(r"[.,!?;\n]+")
LONGEST = 80  # characters: what is longer is a question


@functools.cache
def _replies() -> tuple[tuple[re.Pattern[str], str], ...]:
    """Return the patterns of assets/page/small_talk.yaml with their replies, in order."""
    entries = yaml.safe_load((ASSETS / "page" / "small_talk.yaml").read_text(encoding="utf-8"))
    return tuple((re.compile("|".join(f"(?:{p})" for p in entry["patterns"])), entry["reply"]) for entry in entries)


def small_talk(text: str) -> str:
    """Return the fixed reply to a message of which every word is small talk, else an empty text.

    Of several sentences ("Hello! What can you do?") the last one is replied to.
    """
    if len(text) > LONGEST:
        return ""
    sentences = [sentence for sentence in _SENTENCE_END.split(text) if _words(sentence)]
    replies = [_reply(sentence) for sentence in sentences]
    return _reply(text) or (replies[-1] if replies and all(replies) else "")


def _reply(text: str) -> str:
    words = _words(text)
    return next((reply for pattern, reply in _replies() if pattern.fullmatch(words)), "")


def _words(text: str) -> str:
    return " ".join(_NO_WORD.sub("", text.lower()).split())
