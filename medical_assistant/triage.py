"""The deterministic emergency layer: it reads every message before any model does.

`assess(message, history)` is the only entry. What counts as a red flag is data (`assets/triage.yaml`):
concepts (phrases for one finding), context (negation, questions, past, idioms), numbers, and rules over
them, each with the guideline it comes from. `triage_rules` loads the file, `triage_reading` reads a message
with it, this module decides.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

from medical_assistant.triage_reading import Reading, read
from medical_assistant.triage_rules import Rule, Rules, load_rules

LEVELS = ("emergency", "urgent", "see_clinician", "routine")
MAX_HISTORY = 6  # earlier user messages that can join the current one
_COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


@dataclass(frozen=True)
class Triage:
    """How soon the writer needs care.

    `level`: one of `LEVELS`. `reasons`: short phrases that name each red flag, gravest level only.
    `categories`: one id per reason. `sources`: the guideline behind each reason. `answer`: Markdown that
    the page shows in place of a generated answer, empty unless the level is "emergency". `notice`: one line
    to show above the chat, empty for "routine".
    """

    level: str
    reasons: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    answer: str = ""
    notice: str = ""


def assess(message: str, history: Sequence[str] = ()) -> Triage:
    """Return the `Triage` of `message`, read together with `history` (earlier user messages, oldest first).

    Never raises, whatever the text. Earlier messages count only when this one follows up on them (adds a
    finding, says that it is worse or still there, asks whether to wait), not when it asks about something
    else or says that all is well.
    """
    rules = load_rules()
    current = read(str(message), rules)
    fired = _fire(rules, current)
    if current.follows_up and history:
        joined = current
        for earlier in list(history)[: -MAX_HISTORY - 1 : -1]:
            reading = read(str(earlier), rules)
            if reading.over:  # "I am safe now" closes what was said before it
                break
            joined = joined.join(reading)
        fired += [rule for rule in _fire(rules, joined) if rule not in fired]
    if not fired:
        return Triage("routine")
    level = min((rule.level for rule in fired), key=LEVELS.index)
    gravest = {rule.reason: rule for rule in reversed(fired) if rule.level == level}
    top = list(reversed(gravest.values()))
    reasons = tuple(rule.reason for rule in top)
    categories = tuple(dict.fromkeys(rule.category for rule in top))
    return Triage(
        level=level,
        reasons=reasons,
        categories=categories,
        sources=tuple(dict.fromkeys(rules.sources[rule.source] for rule in top)),
        answer=_answer(rules, reasons, categories) if level == "emergency" else "",
        notice=_fill(rules.answers["notice"][level], reasons),
    )


def _fire(rules: Rules, reading: Reading) -> list[Rule]:
    """Return the rules that hold, in file order."""

    def holds(part: str) -> bool:
        if part.startswith("not "):
            return not holds(part[4:])
        words = part.split()
        if len(words) == 3 and words[1] in _COMPARE:
            return any(
                name == words[0] and _COMPARE[words[1]](value, float(words[2])) for name, value in reading.measures
            )
        return any(concept in reading.concepts for concept in part.split("|"))

    return [rule for rule in rules.rules if any(all(holds(part) for part in line) for line in rule.when)]


def _fill(template: str, reasons: Sequence[str]) -> str:
    text = ", ".join(reasons[:3])
    return template.format(reasons=text, Reasons=text[:1].upper() + text[1:])


def _answer(rules: Rules, reasons: Sequence[str], categories: Sequence[str]) -> str:
    """Return Markdown: what to do now, whom to call, first aid for at most two categories."""
    texts = rules.answers
    crisis = categories[0] in texts["crisis_categories"]
    extra = dict.fromkeys(texts["extra_numbers"][c] for c in categories if c in texts["extra_numbers"])
    numbers = [texts["numbers"][name] for name in ([*extra, "emergency"] if crisis else ["emergency", *extra])]
    first_aid = [texts["first_aid"][category] for category in categories[:2]]
    parts = [
        _fill(texts["crisis" if crisis else "emergency"], reasons),
        *numbers,
        "**Until help comes:**",
        *first_aid,
        texts["closing"],
    ]
    return "\n\n".join(parts)
