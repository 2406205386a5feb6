"""Names in a question, misspelt ones, whom it is about, and what it asks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medical_assistant.library.index import FOLDER
from medical_assistant.library.pages import SECTIONS
from medical_assistant.library.understand import load_question_types, question_types, words_of

TYPES = load_question_types(FOLDER / "question_types.yaml")


def topic(library, question):
    topics = library.names.topics(library.names.read(question))
    return topics[0].page.id if topics else None


@given(st.text(max_size=80))
def test_words_are_plain_lower_case(text):
    assert all(word and not word.endswith("'s") and word == word.lower() for word in words_of(text))


def test_words_lose_accents_and_possession():
    assert words_of("Mum\u2019s Caf\u00e9-au-lait, O'Brien's") == ["mum", "cafe", "au", "lait", "o'brien"]


@pytest.mark.parametrize(
    ("question", "page"),
    [
        ("what is malaria", "malaria"),
        ("maleria signs", "malaria"),  # misspelt
        ("pain in my throat", "sore-throat"),  # in another order
        ("advil with food", "ibuprofen"),  # a brand
        ("iboprufen", "ibuprofen"),
        ("my 4yr old has a fever", "fever-in-children"),
        ("fever in my daughter", "fever-in-children"),
        ("i am 45 with a fever", "fever-in-adults"),
        ("the bad weather", None),  # "bad toe" is no name of "bad"
        ("my toe is big", None),
        ("how do i bake bread", None),
    ],
)
def test_names_are_found(small, question, page):
    assert topic(small, question) == page


@pytest.mark.parametrize("word", ["metforvir", "gouch", "nettle", "ibuplexate"])
def test_words_that_only_look_like_a_name_are_not_corrected(small, word):
    assert topic(small, f"what about {word}") is None


def test_a_correction_is_marked(small):
    named = small.names.topics(small.names.read("maleria"))[0]
    assert named.guessed and named.matched == "Malaria"
    assert not small.names.topics(small.names.read("malaria"))[0].guessed


@pytest.mark.parametrize(
    ("question", "kind", "name"),
    [
        ("can you drink beer on this", "medicine", "mixing"),
        ("5 hours late with my tablet", "medicine", "missed_dose"),
        ("is it ok when pregnant", "medicine", "pregnancy"),
        ("mine was 58", "test", "reading"),
        ("how is it treated?", "condition", "treatment"),
        ("how long does it last", "condition", "how_long"),
        ("why did i get it", "condition", "causes"),
        ("when should i go to hospital", "symptom", "when_to_worry"),
        ("can i catch it", "condition", "causes"),
        ("how do i stop getting it", "condition", "prevention"),
    ],
)
def test_what_is_asked(question, kind, name):
    assert name in [found.name for found in question_types(question, kind, TYPES)]


def test_types_name_sections_that_their_kinds_have():
    for found in TYPES:
        for kind in found.kinds:
            assert kind in SECTIONS
        headings = {heading for kind in found.kinds for heading in SECTIONS[kind]}
        assert {*found.sections, *found.besides} <= headings, found.name


@given(st.text(max_size=200), st.sampled_from(sorted(SECTIONS)))
def test_at_most_two_types_whatever_the_text(text, kind):
    assert len(question_types(text, kind, TYPES)) <= 2
