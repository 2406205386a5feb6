"""The classifier of questions: its features, its arithmetic, and its file."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medical_assistant.library.classifier import NAME, NOTHING, NUMBER, classifier_of, features, softmax
from medical_assistant.library.trained import FOLDER

WORDS = st.lists(
    st.sampled_from(["gout", "treat", "how", "12", "caf\u00e9", "a"]) | st.text("abc1'", min_size=1), max_size=9
)
SMALL = {"labels": ["a", "b"], "bias": [0.5, 0.0], "features": ["x", "y"], "lengths": [1, 2], "columns": [1, 0, 1],
         "values": [100, 200, -100]}  # fmt: skip


@given(WORDS, st.sets(st.sampled_from(["gout", "treat"])))
def test_features_do_not_tell_one_name_from_another(sequence, name):
    named = features(sequence, name, "condition")
    other = features([f"other{word}" if word in name else word for word in sequence],
                     {f"other{word}" for word in name}, "condition")  # fmt: skip
    assert named == other and "condition|" in named


def test_names_of_several_words_and_numbers_are_one_sign():
    found = features(["knee", "pain", "for", "12", "day"], {"knee", "pain"}, "symptom")
    assert f"^ {NAME} for" in found and f"{NUMBER} day $" in found and f"{NAME} _ {NUMBER}" in found
    assert f"symptom|{NAME}" in found and "~<day" in found and not any("knee" in feature for feature in found)


def test_a_score_is_the_bias_and_the_weights_of_the_features_that_are_known():
    classifier = classifier_of(SMALL)
    assert classifier.scores(["unknown"]) == {"a": 0.5, "b": 0.0}
    assert classifier.scores(["x", "y", "unknown"]) == pytest.approx({"a": 0.5 + 2 / math.sqrt(2), "b": 0.0})


@given(st.dictionaries(st.text(max_size=3), st.floats(-700, 700), min_size=1, max_size=6))
def test_shares_are_a_probability_in_the_order_of_the_scores(scores):
    shares = softmax(scores)
    assert math.fsum(shares.values()) == pytest.approx(1) and all(0 <= share <= 1 for share in shares.values())
    assert shares[max(scores, key=scores.get)] == max(shares.values())


@given(WORDS)
def test_any_words_have_scores(shipped, sequence):
    for classifier in (shipped.trained.sections, shipped.trained.scope):
        scores = classifier.scores(features(sequence, set(), "condition"))
        assert set(scores) == set(classifier.labels) and all(map(math.isfinite, scores.values()))


def test_nothing_is_a_label_of_both(shipped):
    assert NOTHING in shipped.trained.sections.labels and NOTHING in shipped.trained.scope.labels


@pytest.mark.parametrize("content", [[], {}, {**SMALL, "columns": None}, {**SMALL, "bias": ["?"]}])
def test_broken_content_is_refused(content):
    with pytest.raises((KeyError, TypeError, ValueError)):
        classifier_of(content)


@pytest.mark.parametrize("name", ["section_classifier.json", "scope_classifier.json"])
def test_what_ships_is_whole(name):
    classifier = classifier_of(json.loads((FOLDER / name).read_text(encoding="utf-8")))
    assert classifier.starts[-1] == len(classifier.columns) == len(classifier.values)
    assert len(classifier.starts) == len(classifier.number_of) + 1
    assert classifier.columns.max() < len(classifier.labels) == len(classifier.bias)
