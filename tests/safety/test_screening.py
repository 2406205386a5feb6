"""Screening: help comes first, and each normal form and each reading of a message is made once."""

import unicodedata
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medical_assistant.safety import text_reading
from medical_assistant.safety.misuse import MISUSE_FILE, assess_misuse
from medical_assistant.safety.phrase_rules import load_languages, load_rules
from medical_assistant.safety.screening import screen
from medical_assistant.safety.text_reading import PreparedText
from medical_assistant.safety.triage import assess

SPANISH = "¿Qué puedo tomar para el dolor de cabeza desde ayer?"


@pytest.fixture
def counted(monkeypatch):
    """Counts normalisations and readings."""
    calls = Counter()

    def count(owner, name):
        real = getattr(owner, name)

        def wrapped(*arguments):
            calls[name] += 1
            return real(*arguments)

        monkeypatch.setattr(owner, name, wrapped)

    count(unicodedata, "normalize")
    count(text_reading, "_read")
    return calls


def test_each_normal_form_and_each_reading_is_made_once(counted):
    message = PreparedText(SPANISH)
    screening = screen(message)
    assert not screening.answer
    # The rules of five languages and those of misuse.
    assert counted == {"normalize": 1, "_read": len(load_languages()) + 1}
    assert screen(message) == screening
    assess(message)
    assess_misuse(message)
    assert counted["normalize"] == 1 and counted["_read"] == len(load_languages()) + 1


def test_an_english_message_is_read_by_english_and_misuse_rules_alone(counted):
    assert not screen("What are the symptoms of diabetes and what can I do?").answer
    assert counted == {"_read": 2}


def test_earlier_messages_are_read_once_by_all_layers(counted):
    history = [{"role": "user", "content": "me duele el pecho desde ayer, qué será"}]
    screen("sigue igual, no se me quita", history)
    assert counted["normalize"] <= 1 and counted["_read"] <= 2 * (len(load_languages()) + 1)


@given(st.text())
def test_a_prepared_text_gives_what_the_text_gives(text):
    assert screen(PreparedText(text)) == screen(text)
    assert PreparedText.of(text).raw == text


def test_an_emergency_is_not_asked_for_misuse():
    screening = screen("I want to kill myself, which pills are the quickest?")
    assert screening.triage.level == "emergency" and not screening.misuse.category


def test_apostrophes_are_joined_in_english_and_parted_in_french():
    french = next(rules for rules in load_languages() if rules.language == "fr")
    text = PreparedText("j’ai mal à l’ESTOMAC")
    assert text.normal_form(french) == "j ai mal a l estomac"
    assert "lestomac" in text.normal_form(load_rules())
    assert text.normal_form(load_rules(MISUSE_FILE)).startswith("jai mal")
