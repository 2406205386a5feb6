"""Numbers by country: what a browser names, what the emergency answer shows."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medical_assistant.safety.emergency_numbers import countries, country_of, dialled, number_line
from medical_assistant.safety.phrase_rules import load_languages
from medical_assistant.safety.triage import assess


@pytest.mark.parametrize(
    ("header", "country"),
    [
        ("en-GB,en;q=0.9", "GB"),
        ("pt-BR,pt;q=0.9,en-US;q=0.8", "BR"),
        ("de,de-AT;q=0.8", "AT"),
        ("zh-Hans-CN", "CN"),
        ("en", ""),
        ("xx-ZZ, fr-FR;q=0.1", "FR"),
        ("*", ""),
        ("", ""),
    ],
)
def test_country_of_a_browser(header: str, country: str) -> None:
    assert country_of(header) == country


@given(st.text())
def test_any_header_gives_a_known_country_or_none(header: str) -> None:
    assert country_of(header) in {"", *countries()}


def test_every_country_has_an_emergency_number_and_only_numbers() -> None:
    for code, known in countries().items():
        assert re.fullmatch("[A-Z]{2}", code) and known["emergency"], code
        for kind, number in known.items():
            assert isinstance(number, str), (code, kind, "quote it: YAML reads 000 as a number")
            assert kind == "name" or 2 <= len(dialled(number)) <= 12, (code, kind)


@pytest.mark.parametrize(
    ("number", "digits"),
    [("999 / 112", "999"), ("1-800-222-1222", "18002221222"), ("988 (call or text)", "988"), ("none", "")],
)
def test_a_phone_can_dial_it(number: str, digits: str) -> None:
    assert dialled(number) == digits


@pytest.mark.parametrize("language", [rules.language for rules in load_languages()])
def test_every_language_has_every_line(language: str) -> None:
    for kind in ("emergency", "crisis", "poison", "violence"):
        assert "988" in number_line("crisis", "US", language)
        line = number_line(kind, "US", language)
        assert line and "{" not in line
        assert language == "en" or line != number_line(kind, "US", "en")


def test_the_emergency_answer_names_the_numbers_of_the_country() -> None:
    answer = assess("my son swallowed bleach", country="GB").answer
    assert "**Emergency number (United Kingdom):** 999 / 112" in answer and "111" in answer
    assert "911" not in answer and "1-800" not in answer
    crisis = assess("I want to kill myself", country="US").answer
    assert "988" in crisis and "Samaritans" not in crisis


def test_without_a_known_country_the_common_numbers_are_shown() -> None:
    common = assess("crushing chest pain going down my left arm")
    assert "your local emergency number" in common.answer and "112" in common.answer and "911" in common.answer
    assert assess("crushing chest pain going down my left arm", country="ZZ") == common
    # Kenya's crisis line is not known here: the list of lines stays.
    assert "findahelpline.com" in assess("I want to kill myself", country="KE").answer
