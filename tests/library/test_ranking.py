"""The ranking of pages: its signals, whatever the question, and the words in which pages were asked for."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medical_assistant.library.index import EmbeddedLibrary
from medical_assistant.library.ranking import PRIOR, SIGNALS, AskedFor

PIECES = st.sampled_from(["malaria", "gout", "ibuprofen", "fever", "treat", "my", "what is", "12", "blorp", "'"])
QUESTIONS = st.text(max_size=80) | st.lists(PIECES, max_size=10).map(" ".join)


def signals(library, question):
    """Return the signals of each page that comes into question, by its id."""
    reading = library.names.read(question)
    found = library.page_signals(reading, library.names.topics(reading), library.ranked(reading))
    return {topic.page.id: signals for topic, signals in found}


@given(QUESTIONS)
def test_every_page_has_every_signal_and_shares_are_shares(small, question):
    for found in signals(small, question).values():
        assert set(found) == set(SIGNALS)
        assert all(0 <= value <= 1 + 1e-9 for value in found.values()), found
        assert math.isfinite(small.trained.ranking.score(found))


@given(QUESTIONS)
def test_pages_come_in_the_order_of_their_scores(small, question):
    reading = small.names.read(question)
    ordered = small.ordered(reading, small.names.topics(reading), small.ranked(reading))
    assert [score for _, score in ordered] == sorted((score for _, score in ordered), reverse=True)
    assert len({topic.page.id for topic, _ in ordered}) == len(ordered)


def test_a_page_that_is_named_by_its_title(small):
    found = signals(small, "what causes gout")["gout"]
    assert found["name"] == found["title"] == found["partial"] == found["name_share"] == 1.0 and not found["guessed"]
    assert signals(small, "what causes gouty arthritis")["gout"]["title"] == 0.0
    assert signals(small, "is maleria bad")["malaria"]["guessed"] == 1.0
    assert signals(small, "uric acid")["gout"]["name"] == 0.0


def test_a_name_that_seldom_meant_its_page_is_less_reliable(small):
    ranking = replace(small.trained.ranking, reliability={"gout: gout": 0.1})
    library = EmbeddedLibrary(small.pages, replace(small.trained, ranking=ranking))
    assert signals(library, "what causes gout")["gout"]["reliable"] == 0.1
    assert signals(library, "what is malaria")["malaria"]["reliable"] == PRIOR  # no question was seen


def test_words_in_which_a_page_was_asked_for_propose_it(small):
    ranking = replace(small.trained.ranking, asked_for=AskedFor({"gout": ["wine", "toe"], "not-there": ["wine"]}))
    library = EmbeddedLibrary(small.pages, replace(small.trained, ranking=ranking))
    found = signals(library, "wine")
    assert set(found) == {"gout"} and found["gout"]["asked_for_best"] > 0 and found["gout"]["held"] == 1.0


def test_pages_that_were_asked_for():
    asked_for = AskedFor({"gout": ["toe", "toe", "wine"], "wine-page": ["wine", "grape"], "none": []})
    assert list(asked_for.scores(["toe"])) == ["gout"] and set(asked_for.scores(["wine"])) == {"gout", "wine-page"}
    assert asked_for.scores(["blorp"]) == {} == AskedFor({}).scores(["toe"])


def test_a_score_is_the_weighted_sum(small):
    ranking = replace(small.trained.ranking, weights=dict(zip(SIGNALS, range(len(SIGNALS)), strict=True)))
    assert ranking.score(dict.fromkeys(SIGNALS, 0.5)) == pytest.approx(sum(range(len(SIGNALS))) / 2)
