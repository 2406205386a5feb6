"""Cleaning of question-answer pairs: repair the text, then say why a pair is not usable."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from medical_assistant.files import ASSETS
from medical_assistant.prompts import clean_text

# "%27" is an apostrophe, but "5%20 times" or "a 20%30" may be text: only escapes of ASCII punctuation and
# UTF-8 sequences are decoded, and only where no digit stands before the percent sign.
_PERCENT_ESCAPE = re.compile(r"(?<!\d)(?:%(?:2[0-9A-Fa-f]|3[A-Fa-f]|5[BDbd]|[C-Fc-f][0-9A-Fa-f]|[89ABab][0-9A-Fa-f]))+")
_SPACES = re.compile(r"[^\S\n]+")
_BLANK_LINES = re.compile(r"\s*\n\s*")
_WORD = re.compile(r"[^\W\d_]+")
# The end of the form "When to seek urgent medical care when I have Trachoma ?".
_SPACE_BEFORE_PUNCTUATION = re.compile(r"\s+([?.!,;:])(?=\s|$)")

EXAMPLES_A_STEP = 3


class StepLog:
    """Counts and examples of what each step removed, for the manifest."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, Any]] = {}

    def remove(self, step: str, reason: str, question: str, answer: str) -> None:
        """Count one pair removed by `step`; the first three of a step are kept as examples (200 characters)."""
        row = self._rows.setdefault(step, {"step": step, "reason": reason, "removed": 0, "examples": []})
        row["removed"] += 1
        if row["removed"] <= EXAMPLES_A_STEP:
            row["examples"].append({"question": question[:200], "answer": answer[:200]})

    def as_rows(self) -> list[dict[str, Any]]:
        """Return `{"step", "reason", "removed", "examples"}` for each step, in order of first use."""
        return list(self._rows.values())


@dataclass(frozen=True)
class CleaningRules:
    """Rules of `assets/cleaning.yaml`, compiled."""

    generic_words: frozenset[str]
    site_question: re.Pattern[str]
    site_answer: re.Pattern[str]


def load_rules(path: Path = ASSETS / "cleaning.yaml") -> CleaningRules:
    """Return the compiled rules."""
    content: Mapping[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return CleaningRules(
        generic_words=frozenset(content["generic_words"].split()),
        site_question=_any_of(content["site_question"]),
        site_answer=_any_of(content["site_answer"]),
    )


def _any_of(patterns: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.IGNORECASE)


def repair_text(text: str) -> str:
    """Return `text` with mojibake repaired (ftfy), `%27` and `&amp;` unescaped, NFC and single spaces.

    Template and control characters are taken apart as `prompts.clean_text` does when serving.
    """
    import ftfy

    text = ftfy.fix_text(html.unescape(text))
    text = _PERCENT_ESCAPE.sub(lambda match: _decode_percent(match.group()), text)
    text = clean_text(unicodedata.normalize("NFC", text))
    text = _SPACE_BEFORE_PUNCTUATION.sub(r"\1", text)
    return _BLANK_LINES.sub("\n", _SPACES.sub(" ", text)).strip()


def _decode_percent(escaped: str) -> str:
    try:
        return bytes.fromhex(escaped.replace("%", "")).decode("utf-8")
    except UnicodeDecodeError:
        return escaped


def names_something(question: str, rules: CleaningRules) -> bool:
    """Return whether a word is left when generic words are gone ("What are the risks?" names nothing)."""
    return any(word not in rules.generic_words for word in _WORD.findall(question.lower()) if len(word) > 1)


def rejection(
    question: str, answer: str, rules: CleaningRules, min_answer_words: int, max_answer_words: int
) -> tuple[str, str] | None:
    """Return (step, reason) when the repaired pair is not usable for training, else None."""
    words = len(answer.split())
    if not question or not answer:
        return "empty", "the question or the answer is empty"
    if words < min_answer_words:
        return "too_short", f"the answer has fewer than {min_answer_words} words"
    if words > max_answer_words:
        return "too_long", f"the answer has more than {max_answer_words} words: training would cut its end"
    if rules.site_question.search(question):
        return "site_question", "the question is about the web site the text comes from"
    if not names_something(question, rules):
        return "names_nothing", "the question does not say what it is about"
    if rules.site_answer.search(answer):
        return "points_elsewhere", "the answer is markup, navigation, or points at a figure or link"
    return None
