"""The misuse layer: a request for harm gets a fixed, kind refusal before any model sees it.

`assess_misuse(message, history)` is the only entry. It runs after the emergency layer: a person who wants to die is
that layer's business, here only the methods matter. Two parts decide: the rules of `assets/safety/misuse.yaml` (an
intent with an object, each with its public source), read with the code of the emergency layer, and a small classifier
that may only add a general refusal where the rules found none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from medical_assistant.safety import SAFETY_ASSETS, hashed_classifier
from medical_assistant.safety.deobfuscation import decoded_forms
from medical_assistant.safety.hashed_classifier import HashedClassifier
from medical_assistant.safety.phrase_rules import load_rules
from medical_assistant.safety.text_reading import PreparedText

MISUSE_FILE = SAFETY_ASSETS / "misuse.yaml"
CLASSIFIER_FILE = SAFETY_ASSETS / "misuse_classifier.json"
GENERAL = "general"  # category of what only the classifier found
MAX_HISTORY = 2  # earlier user messages that a follow-up can go on with
MAX_FOLLOW_UP_WORDS = 15
GOES_ON = frozenset(("goes_on", "covert"))  # concepts that go on with an earlier message
MIN_WORDS = 4  # the classifier reads no shorter sentences: they say too little
_SENTENCE_END = re.compile(r"[.!?;\n]+")
_WINDOW_WORDS, _OVERLAP_WORDS = 60, 15  # a text without stops is read in parts, as training rows are one sentence long


@dataclass(frozen=True)
class Misuse:
    """`category`: id of `assets/safety/misuse.yaml`, empty for an ordinary message. `answer`: Markdown that the page
    shows in place of a generated answer. `source`: the public text behind the rule."""

    category: str = ""
    answer: str = ""
    source: str = ""


def assess_misuse(message: str | PreparedText, history: Sequence[str | PreparedText] = ()) -> Misuse:
    """Return the `Misuse` of `message`; `history` holds the earlier user messages, oldest first.

    Never raises, whatever the text; `UserError` comes only from a broken rules or classifier file. The history counts
    for a short message that goes on with an earlier one ("tell me anyway", "so that she does not notice"). Any other
    message is judged alone: a refusal does not taint the questions after it.
    """
    rules = load_rules(MISUSE_FILE)
    text = PreparedText.of(message)
    found = _category(text)
    if not found and len(text.raw.split()) <= MAX_FOLLOW_UP_WORDS:
        concepts = text.reading(rules).concepts
        if concepts & GOES_ON:
            for earlier in map(PreparedText.of, history[-MAX_HISTORY:]):
                found = found or _by_rules(concepts | earlier.reading(rules).concepts) or _category(earlier)
    if not found:
        return Misuse()
    category, source = found
    return Misuse(category, _answer(category), source)


def _category(message: PreparedText) -> tuple[str, str] | None:
    """Return (category, source) of one message alone, None for an ordinary one."""
    rules = load_rules(MISUSE_FILE)
    forms = [message if form == message.raw else PreparedText(form) for form in decoded_forms(message.raw, rules)]
    for text in forms:
        if found := _by_rules(text.reading(rules).concepts):
            return found
    classifier, threshold = load_misuse_classifier()
    if any(harm_score(text.normal_form(rules), classifier) >= threshold for text in forms):
        return GENERAL, rules.answers["categories"][GENERAL]["source"]
    return None


def _by_rules(concepts: frozenset[str]) -> tuple[str, str] | None:
    """Return (category, source) of the first rule that holds, in file order: the gravest stand first."""
    rules = load_rules(MISUSE_FILE)
    for rule in rules.rules:
        if any(concepts.issuperset(line) for line in rule.when):
            return rule.category, rules.sources[rule.source]
    return None


@lru_cache(maxsize=64)
def _answer(category: str) -> str:
    texts = load_rules(MISUSE_FILE).answers["categories"][category]
    numbers = load_rules().answers["numbers"]  # of the emergency layer, so that a number is kept in one place
    return "\n\n".join([texts["refusal"], texts["alternative"], *(numbers[name] for name in texts.get("lines", ()))])


def harm_score(text: str, classifier: HashedClassifier) -> float:
    """Return the highest score (log odds) of the sentences of a normalised text, -inf if all are too short.

    The worst sentence counts, so that friendly words around a request do not hide it.
    """
    return max((classifier.score(hashed_classifier.word_buckets(words)) for words in _parts(text)), default=-math.inf)


def _parts(text: str) -> Iterator[tuple[str, ...]]:
    for sentence in dict.fromkeys(_SENTENCE_END.split(text)):
        words = hashed_classifier.words_in(sentence)
        for start in range(0, max(1, len(words) - _OVERLAP_WORDS), _WINDOW_WORDS - _OVERLAP_WORDS):
            part = words[start : start + _WINDOW_WORDS]
            if len(part) >= MIN_WORDS:
                yield part


@lru_cache(maxsize=4)
def load_misuse_classifier(path: Path = CLASSIFIER_FILE) -> tuple[HashedClassifier, float]:
    """Return the classifier, and the `harm_score` from which a text is a request for harm.

    `UserError`: the file is missing or not one that the training wrote.
    """
    return hashed_classifier.read_classifier(
        path, lambda data: (hashed_classifier.from_json(data), float(data["threshold"])), "misuse"
    )
