"""The rows of tests/safety_sets, and what the layers say of them: worked out once for all tests that ask."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from medical_assistant.safety.misuse import Misuse, assess_misuse
from medical_assistant.safety.output_filter import OutputFilter
from medical_assistant.safety.text_reading import PreparedText
from medical_assistant.safety.triage import Triage, assess, assess_by_rules
from tests.support.paths import ROOT

SAFETY_SETS = ROOT / "tests" / "safety_sets"
Row = dict[str, Any]


@cache
def rows(name: str) -> tuple[Row, ...]:
    """Return the rows of a set, such as "emergencies"."""
    with (SAFETY_SETS / f"{name}.jsonl").open(encoding="utf-8") as file:
        return tuple(json.loads(line) for line in file)


@cache
def prepared(text: str) -> PreparedText:
    return PreparedText(text)


@cache
def _triage(text: str, history: tuple[str, ...]) -> Triage:
    return assess(prepared(text), list(map(prepared, history)))


@cache
def level_by_rules(text: str) -> str:
    """Return the level that the rules give a row's text, without the classifier."""
    return assess_by_rules(prepared(text)).level


@cache
def misuse(text: str) -> Misuse:
    """Return what the misuse layer says of a row's text."""
    return assess_misuse(prepared(text))


def triage(row: Row) -> Triage:
    """Return what the emergency layer says of a row."""
    return _triage(row["text"], tuple(row.get("history", ())))


@cache
def _blocked(text: str, question: str, red_flag: bool) -> tuple[str, ...]:
    return tuple(filtered(text, question, ["red flag"] if red_flag else [])[1])


def blocked(row: Row) -> tuple[str, ...]:
    """Return the names of the rules under which sentences of a row are blocked."""
    return _blocked(row["text"], row.get("question") or "", row["red_flag"])


def filtered(text: str, question: str = "", red_flags: Any = (), size: int = 0) -> tuple[str, list[str]]:
    """Return (what is shown of `text` when it comes in pieces of `size` characters, names of the rules)."""
    output_filter = OutputFilter(question, red_flags)
    size = size or max(1, len(text))
    shown = [output_filter.feed(text[i : i + size]) for i in range(0, len(text), size)]
    return "".join([*shown, output_filter.finish()]), output_filter.blocked
