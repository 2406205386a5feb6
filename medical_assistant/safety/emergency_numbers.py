"""Whom to call, by country: `assets/safety/emergency_numbers.yaml`, and the country that a browser names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from medical_assistant.safety import SAFETY_ASSETS
from medical_assistant.safety.phrase_rules import read_yaml

NUMBERS_FILE = SAFETY_ASSETS / "emergency_numbers.yaml"
_LOCALE = re.compile(r"[A-Za-z]{2,3}[-_](?:[A-Za-z]{4}[-_])?([A-Za-z]{2})\b")


def countries() -> Mapping[str, Mapping[str, str]]:
    """Return {ISO 3166-1 code: {"name", "emergency" and where known "crisis", "poison", "violence"}}, by name."""
    return dict(sorted(_read()["countries"].items(), key=lambda item: item[1]["name"]))


def country_of(accept_language: str) -> str:
    """Return the code of the first known country in an Accept-Language header (RFC 9110, 12.5.4), "" without one.

    Only a region names a country ("en-GB", "pt-BR"): a language alone is spoken in many.
    """
    for code in _LOCALE.findall(accept_language[:500]):
        if code.upper() in _read()["countries"]:
            return str(code.upper())
    return ""


def dialled(number: str) -> str:
    """Return the digits of the first number in a text such as "999 / 112" or "1-800-222-1222", for a `tel:` link."""
    first = re.match(r"[\d -]+", number)
    return re.sub(r"\D", "", first.group()) if first else ""


def number_line(kind: str, country: str, language: str) -> str:
    """Return the Markdown line for one `kind` of number ("emergency", "crisis", "poison", "violence").

    Empty for an unknown country, and for a kind that is not known there: then the text for no country stands.
    """
    known = _read()["countries"].get(country) or {}
    if kind not in known:
        return ""
    lines = _read()["lines"]
    return str(lines.get(language, lines["en"])[kind]).format(country=known["name"], number=known[kind])


@lru_cache(maxsize=1)
def _read() -> dict[str, Any]:
    return read_yaml(NUMBERS_FILE)
