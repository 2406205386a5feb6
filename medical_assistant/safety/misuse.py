"""The misuse layer: a request for harm gets a fixed, kind refusal before any model sees it.

`assess_misuse(message, history)` is the only entry. It runs after the emergency layer: a person who wants to die is
that layer's business, here only the methods matter. Two parts decide: the rules of `assets/misuse.yaml` (an intent with
an object, each with its public source), read with the code of the emergency layer, and a small learned model
(`misuse_model`) that may only add a general refusal where the rules found none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from medical_assistant.models.presets import ASSETS
from medical_assistant.safety.deobfuscation import readings
from medical_assistant.safety.misuse_classifier import load_model
from medical_assistant.safety.phrase_rules import load_rules
from medical_assistant.safety.text_reading import normalise, read

MISUSE_FILE = ASSETS / "misuse.yaml"
GENERAL = "general"  # category of what only the model found
MAX_HISTORY = 2  # earlier user messages that a follow-up can go on with
MAX_FOLLOW_UP_WORDS = 15
GOES_ON = frozenset(("goes_on", "covert"))  # concepts that go on with an earlier message


@dataclass(frozen=True)
class Misuse:
    """`category`: id of `assets/misuse.yaml`, empty for an ordinary message. `answer`: Markdown that the page shows in
    place of a generated answer. `source`: the public text behind the rule."""

    category: str = ""
    answer: str = ""
    source: str = ""


def assess_misuse(message: str, history: Sequence[str] = ()) -> Misuse:
    """Return the `Misuse` of `message`; `history` holds the earlier user messages, oldest first.

    Never raises, whatever the text; `UserError` comes only from a broken rules or model file. The history counts for a
    short message that goes on with an earlier one ("tell me anyway", "so that she does not notice"). Any other message
    is judged alone: a refusal does not taint the questions after it.
    """
    rules = load_rules(MISUSE_FILE)
    message = str(message)
    found = _category(message)
    if not found and len(message.split()) <= MAX_FOLLOW_UP_WORDS:
        concepts = read(message, rules).concepts
        if concepts & GOES_ON:
            for earlier in [str(text) for text in history][-MAX_HISTORY:]:
                found = found or _by_rules(concepts | read(earlier, rules).concepts) or _category(earlier)
    if not found:
        return Misuse()
    category, source = found
    return Misuse(category, _answer(category), source)


def _category(message: str) -> tuple[str, str] | None:
    """Return (category, source) of one message alone, None for an ordinary one."""
    rules = load_rules(MISUSE_FILE)
    texts = readings(message, rules)
    for text in texts:
        found = _by_rules(read(text, rules).concepts)
        if found:
            return found
    model = load_model()
    if any(model.score(normalise(text, rules)) >= model.threshold for text in texts):
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
