from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medical_assistant.data.cleaning import StepLog, load_rules, names_something, rejection, repair_text

RULES = load_rules()


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("Alzheimer%27s disease", "Alzheimer's disease"),
        ("Sj%C3%B6gren", "Sjögren"),
        ("cafÃ© &amp; tea", "café & tea"),
        ("a  b\t c \n\n d", "a b c\nd"),
        ("in 20%25 of 5%27 people", "in 20%25 of 5%27 people"),  # digits before: not an escape
        ("Who is at risk for Goiter ?", "Who is at risk for Goiter?"),
        ("a 5% solution", "a 5% solution"),
    ],
)
def test_repair(raw: str, clean: str) -> None:
    assert repair_text(raw) == clean


@given(st.text(max_size=200))
def test_repair_never_fails_and_leaves_single_spaces(text: str) -> None:
    repaired = repair_text(text)
    assert "  " not in repaired and repaired == repaired.strip()


@pytest.mark.parametrize(
    "question",
    ["What are the risks?", "When to Contact a Medical Professional?", "When may I resume my regular activities?"],
)
def test_questions_that_name_nothing(question: str) -> None:
    assert not names_something(question, RULES)


@pytest.mark.parametrize("question", ["What are the risks of aspirin?", "What causes Gout?", "What is the CFTR gene?"])
def test_questions_that_name_something(question: str) -> None:
    assert names_something(question, RULES)


@pytest.mark.parametrize(
    ("question", "answer", "step"),
    [
        ("", "An answer of five words.", "empty"),
        ("What is gout?", "Pain.", "too_short"),
        ("What is gout?", "word " * 300, "too_long"),
        ("Who is the editor in chief of WikiDoc?", "A professor of medicine somewhere.", "site_question"),
        ("What are the risks?", "Bleeding and infection are rare risks.", "names_nothing"),
        ("What is gout?", "Click here to read more on gout.", "points_elsewhere"),
        ("What is gout?", "A joint disease, see figure 2 below.", "points_elsewhere"),
    ],
)
def test_rejections(question: str, answer: str, step: str) -> None:
    problem = rejection(question, answer, RULES, 4, 200)
    assert problem is not None and problem[0] == step


def test_a_clicking_knee_is_kept() -> None:
    assert (
        rejection("Why does my knee hurt?", "Your knee buckles, clicks, or locks after injury.", RULES, 4, 200) is None
    )


def test_log_keeps_three_examples() -> None:
    log = StepLog()
    for i in range(5):
        log.remove("empty", "nothing there", f"q{i}", "")
    (row,) = log.as_rows()
    assert row["removed"] == 5 and len(row["examples"]) == 3 and row["reason"] == "nothing there"
