"""The gate: its arithmetic, its thresholds, and that what the library does not have is not answered."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medical_assistant.library.coverage import LINES, SIGNALS, Gate, Line, gate_of
from medical_assistant.library.trained import FOLDER

LINE = Line(dict.fromkeys(SIGNALS, 1.0), -2.0)
GATE = Gate(LINE, LINE, 0.6, 0.4)


@given(st.fixed_dictionaries({name: st.floats(-1e6, 1e6) for name in SIGNALS}))
def test_a_probability_whatever_the_signals(signals):
    assert 0 <= GATE.probability(signals) <= 1


@pytest.mark.parametrize(("probability", "coverage"), [(0.6, "covered"), (0.59, "partly"), (0.4, "partly"), (0, "not")])
def test_thresholds(probability, coverage):
    assert GATE.coverage(probability) == coverage


@pytest.mark.parametrize("content", [{}, [], {"weights": {}}, {"weights": 3}])
def test_broken_content_is_refused(content):
    with pytest.raises((KeyError, TypeError)):
        gate_of(content)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=4).map(sorted))
def test_more_probable_is_never_less_covered(probabilities):
    order = ["not", "partly", "covered"]
    ranks = [order.index(GATE.coverage(probability)) for probability in probabilities]
    assert ranks == sorted(ranks)


def test_the_thresholds_are_those_of_the_curve():
    content = json.loads((FOLDER / "coverage.json").read_text(encoding="utf-8"))
    assert all(set(content[line]["weights"]) == set(SIGNALS) for line in LINES)
    at = {point["from"]: point for point in content["curve"]}
    assert at[content["partly_from"]]["let_through"] <= 0.07
    assert content["covered_from"] >= content["partly_from"]
    for before, after in zip(content["curve"], content["curve"][1:], strict=False):
        assert after["kept"] <= before["kept"] and after["let_through"] <= before["let_through"]


@pytest.mark.parametrize(
    "question",
    ["how do i bleed a radiator", "what is stiff person syndrome", "metforvir with alcohol", "python says memory leak"],
)
def test_what_the_library_does_not_have_is_not_answered(shipped, question):
    assert shipped.find(question).coverage == "not"


@pytest.mark.parametrize(
    "question",
    ["What is gout?", "what is malaria", "How is malaria treated?", "symptoms of dengue", "side effects of metformin"],
)
def test_a_plain_question_in_few_words_is_answered(shipped, question):
    assert shipped.find(question).coverage != "not"
