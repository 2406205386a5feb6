"""Names in a question, misspelt ones, ordinary words that look like a name, and whom it is about."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medical_assistant.library.index import EmbeddedLibrary
from medical_assistant.library.understand import words_of


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


@pytest.mark.parametrize("word", ["happy", "later", "doesnt", "liner"])
def test_an_ordinary_word_is_not_corrected_to_a_name(shipped, word):
    """ "happy" is not "nappy", whether or not a page has it."""
    assert not shipped.names.read(f"is it {word}").corrected


def test_what_is_right_as_it_is_comes_from_the_trained_words(small):
    library = EmbeddedLibrary(small.pages, replace(small.trained, uncorrected={"maleria"}))
    assert topic(small, "maleria") == "malaria" and topic(library, "maleria") is None


@pytest.mark.parametrize(
    ("word", "page"),
    [
        ("maleria", "malaria"),
        ("ibuprophen", "ibuprofen"),
        ("diabetis", "type-2-diabetes"),
        ("amoxicilin", "amoxicillin"),
    ],
)
def test_a_misspelt_name_is_corrected(shipped, word, page):
    assert page in [topic.page.id for topic in shipped.names.topics(shipped.names.read(f"is {word} bad"))]


@given(st.text(max_size=120))
def test_any_text_is_read(small, text):
    reading = small.names.read(text)
    assert set(reading.stems) <= set(reading.sequence) and reading.corrected <= reading.all_stems
    assert reading.person in ("", "baby", "child", "adult")
    weights = [topic.weight for topic in small.names.topics(reading)]
    assert weights == sorted(weights, reverse=True)
    assert all(0 <= small.names.partial(page, reading.all_stems) <= 1 for page in small.pages)
