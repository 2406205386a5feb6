"""The embedded library: what is indexed of a page, and the pages by BM25."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medical_assistant.errors import UserError
from medical_assistant.library.index import (
    SEARCHED,
    EmbeddedLibrary,
    TextStemmer,
    names_text,
    open_library,
    section_text,
    word_weights,
)


def test_the_shipped_library_opens(shipped):
    assert isinstance(shipped, EmbeddedLibrary) and len(shipped.pages) == len({page.id for page in shipped.pages})


def test_an_empty_folder_is_said(tmp_path):
    with pytest.raises(UserError, match="no pages"):
        open_library(tmp_path)


@given(st.text(max_size=120))
def test_pages_are_ranked_by_their_best_section(small, text):
    ranked = small.ranked(small.names.read(text))
    scores = [score for _, score in ranked]
    assert scores == sorted(scores, reverse=True) and all(score > 0 for score in scores)
    assert len({page.id for page, _ in ranked}) == len(ranked) <= SEARCHED


def test_the_words_of_one_page_find_it(small):
    assert small.ranked(small.names.read("uric acid"))[0][0].id == "gout"
    assert small.ranked(small.names.read("what is the")) == []


def test_a_rare_word_tells_more():
    weights = word_weights({"everywhere": 100, "once": 1}, 100)
    assert weights["once"] > weights["everywhere"] > 0


def test_titles_names_and_headings_are_indexed(small):
    gout = next(page for page in small.pages if page.id == "gout")
    assert names_text(gout).count("Gout") == 3 and "bad toe" in names_text(gout)
    assert section_text(gout.sections[1]) == "Causes Uric acid causes gout."


def test_words_that_say_nothing_of_a_topic_are_left_out():
    stemmer = TextStemmer()
    assert stemmer.telling("What is the treatment of swollen knees?") == ["swollen", "knee"]
    assert stemmer.stem_of["treatment"] == "treatment"
