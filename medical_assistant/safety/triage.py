"""The deterministic emergency layer: it reads every message before any model does.

`assess(message, history)` is the only entry. What counts as a red flag is data (`assets/safety/triage`, a file for
each language): concepts (phrases for one finding), context (negation, questions, past, idioms), numbers, and rules
over them, each with the guideline it comes from. `phrase_rules` loads the file, `text_reading` reads a message with
it, this module decides; `triage_classifier` may then raise the level.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from medical_assistant.safety.emergency_numbers import number_line
from medical_assistant.safety.phrase_rules import LEVELS, Rule, Rules, load_languages
from medical_assistant.safety.text_reading import PreparedText, Reading
from medical_assistant.safety.triage_classifier import raised_level

POSSIBLE_EMERGENCY = "possible_emergency"  # category of what only the classifier found
MAX_HISTORY = 6  # earlier user messages that can join the current one
_COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


@dataclass(frozen=True)
class Triage:
    """How soon the writer needs care.

    `level`: one of `LEVELS`. `reasons`: short phrases that name each red flag, gravest level only.
    `categories`: one id per reason. `sources`: the guideline behind each reason. `answer`: Markdown that
    the page shows in place of a generated answer, empty unless the level is "emergency". `notice`: one line
    to show above the chat, empty for "routine". `language`: ISO 639-1 code of the two texts.
    """

    level: str
    reasons: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    answer: str = ""
    notice: str = ""
    language: str = "en"


def assess(message: str | PreparedText, history: Sequence[str | PreparedText] = (), country: str = "") -> Triage:
    """Return the `Triage` of `message`, read together with `history` (earlier user messages, oldest first).

    Never raises, whatever the text. Earlier messages count only when this one follows up on them (adds a
    finding, says that it is worse or still there, asks whether to wait), not when it asks about something
    else or says that all is well. `country` (ISO 3166-1) chooses the numbers in the answer. The rules of every
    language read the message: the gravest level counts, and the texts are in the language that has the most words in
    the message among those that found it. The classifier may then raise the level.
    """
    text = PreparedText.of(message)
    triage = assess_by_rules(text, history, country)
    level = raised_level(text, triage.level)
    if level == triage.level:
        return triage
    rules, _ = max(
        zip(load_languages(), text.readings, strict=True),
        key=lambda pair: (bool(pair[1].concepts), pair[1].function_words, len(pair[1].concepts)),
    )
    # The classifier gives no reason: those of the rules stay where they are no milder than urgent. "This may be an
    # emergency: a question about your own medicines" explains nothing.
    kept = triage.language == rules.language and (level != "emergency" or triage.level == "urgent")
    reasons = (kept and triage.reasons) or (rules.answers["possible_emergency"],)
    sources = (kept and triage.sources) or (rules.sources["nhs_999"],)
    return _with_texts(level, reasons, (POSSIBLE_EMERGENCY,), sources, rules, country)


def banner_texts(language: str) -> dict[str, str]:
    """Return the words of the red banner in `language` (ISO 639-1), by the names under `banner` in its rules file."""
    return next(rules.answers["banner"] for rules in load_languages() if rules.language == language)


def assess_by_rules(
    message: str | PreparedText, history: Sequence[str | PreparedText] = (), country: str = ""
) -> Triage:
    """As `assess`, without the classifier."""
    earlier = [PreparedText.of(text) for text in history]
    found = [
        (_assess(reading, earlier, rules, country), reading)
        for rules, reading in zip(load_languages(), PreparedText.of(message).readings, strict=True)
    ]
    # "malaria" is Swahili too: no advice in a language of which the message has no other word.
    advised = [pair for pair in found if pair[0].language == "en" or _counts(*pair)]
    # "convulsion" is a word of three languages.
    return min(advised, key=lambda pair: (LEVELS.index(pair[0].level), -pair[1].function_words, -len(pair[0].reasons)))[
        0
    ]


def _counts(triage: Triage, reading: Reading) -> bool:
    return triage.level in ("emergency", "urgent") or reading.function_words > 0


def _assess(current: Reading, history: Sequence[PreparedText], rules: Rules, country: str) -> Triage:
    fired = _fire(rules, current)
    if current.follows_up and history:
        joined = current
        for earlier in history[: -MAX_HISTORY - 1 : -1]:
            reading = earlier.reading(rules)
            if reading.over:  # "I am safe now" closes what was said before it
                break
            joined = joined.join(reading)
        fired += [rule for rule in _fire(rules, joined) if rule not in fired]
    if not fired:
        return Triage("routine")
    level = min((rule.level for rule in fired), key=LEVELS.index)
    gravest = {rule.reason: rule for rule in reversed(fired) if rule.level == level}
    top = list(reversed(gravest.values()))
    return _with_texts(
        level,
        tuple(rule.reason for rule in top),
        tuple(dict.fromkeys(rule.category for rule in top)),
        tuple(dict.fromkeys(rules.sources[rule.source] for rule in top)),
        rules,
        country,
    )


def _with_texts(
    level: str, reasons: Sequence[str], categories: Sequence[str], sources: Sequence[str], rules: Rules, country: str
) -> Triage:
    return Triage(
        level=level,
        reasons=tuple(reasons),
        categories=tuple(categories),
        sources=tuple(sources),
        answer=_answer(rules, reasons, categories, country) if level == "emergency" else "",
        notice=_fill(rules.answers["notice"][level], reasons),
        language=rules.language,
    )


def _fire(rules: Rules, reading: Reading) -> list[Rule]:
    """Return the rules that hold, in file order; none does without a finding, which most languages do not have."""
    if not reading.concepts and not reading.measures:
        return []
    true = {part for part in rules.parts if _condition(part)(reading)}
    return [rule for rule in rules.rules if any(true.issuperset(line) for line in rule.when)]


@cache  # as many as the rules files have: about 900
def _condition(part: str) -> Callable[[Reading], bool]:
    """Return what tells whether one part of a rule ("a|b", "not a", "oxygen_percent < 92") holds for a reading."""
    if part.startswith("not "):
        condition = _condition(part[4:])
        return lambda reading: not condition(reading)
    words = part.split()
    if len(words) == 3 and words[1] in _COMPARE:
        measure, compare, bound = words[0], _COMPARE[words[1]], float(words[2])
        return lambda reading: any(name == measure and compare(value, bound) for name, value in reading.measures)
    concepts = frozenset(part.split("|"))
    return lambda reading: not concepts.isdisjoint(reading.concepts)


def _fill(template: str, reasons: Sequence[str]) -> str:
    text = ", ".join(reasons[:3])
    return template.format(reasons=text, Reasons=text[:1].upper() + text[1:])


def _answer(rules: Rules, reasons: Sequence[str], categories: Sequence[str], country: str) -> str:
    """Return Markdown: what to do now, whom to call, first aid for at most two categories."""
    texts = rules.answers
    crisis = categories[0] in texts["crisis_categories"]
    extra = dict.fromkeys(texts["extra_numbers"][c] for c in categories if c in texts["extra_numbers"])
    kinds = [*extra, "emergency"] if crisis else ["emergency", *extra]
    numbers = [number_line(kind, country, rules.language) or texts["numbers"][kind] for kind in kinds]
    first_aid = [texts["first_aid"][category] for category in categories[:2]]
    parts = [
        _fill(texts["crisis" if crisis else "emergency"], reasons),
        *numbers,
        texts["until_help"],
        *first_aid,
        texts["closing"],
    ]
    return "\n\n".join(parts)
