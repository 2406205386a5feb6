"""The questions of a message, and when they are searched apart."""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from medical_assistant.library.pages import Line, Page, Section
from medical_assistant.library.passages import Found, Part
from medical_assistant.library.questions import MAX_QUESTIONS, find_each, questions_of


def texts(message):
    return [(question.before, question.text) for question in questions_of(message)]


def test_questions_are_sentences_with_what_was_said_before_them():
    assert texts("My son is 3.5 years old. He fell.\nIs it bad? ??? Should I wait?! No. IS IT BAD?") == [
        ("My son is 3.5 years old. He fell.", "Is it bad?"),
        ("", "Should I wait?!"),
    ]


def test_two_questions_joined_in_one_sentence_are_two():
    assert texts("What causes gout and how is it treated?") == [("", "What causes gout"), ("", "how is it treated?")]
    assert texts("I fell. what is a sprain, and can I walk") == [("I fell.", "what is a sprain"), ("", "can I walk")]
    assert texts("I have gout and can hardly walk.") == texts("what is black and white") == []


def test_the_second_of_two_joined_questions_is_answered(shipped):
    (part,) = find_each(shipped, "What causes a urinary tract infection and how is it treated?").parts
    assert {"Causes", "Treatment"} <= {passage.section.heading for passage in part.passages}


@given(st.text(alphabet="ab?.!\n ", max_size=80))
def test_any_text_is_read(text):
    for question in questions_of(text):
        assert "?" in question.text and question.text in text


class Searches:
    """A library that covers nothing and remembers what was asked."""

    def __init__(self):
        self.asked = []

    def find(self, question, earlier=()):
        self.asked.append(question)
        return Found(question, "not", 0.0)


def test_one_question_is_searched_once_and_many_are_not_all():
    library = Searches()
    assert find_each(library, "What is gout? I have it.").query == "What is gout? I have it."
    assert len(library.asked) == 1
    library = Searches()
    find_each(library, " ".join(f"What is {number}a?" for number in range(80)))
    assert len(library.asked) == 1 + MAX_QUESTIONS


def page(name):
    return Page(name, name, "condition", (), (), (Section("In short", (Line(name),)),))


def test_what_only_the_whole_message_names_stays():
    def find(question, earlier=()):
        named = [name for name in ("gout", "flu", "mumps") if name in question]
        parts = tuple(Part(page(name), name, False, (), ()) for name in named[-1:])
        return Found(
            question, "covered" if parts and question.count("?") != named.count("mumps") else "not", 0.5, parts
        )

    found = find_each(SimpleNamespace(find=find), "Is it gout? Is it flu? Is it zumps? Is it mumps?")
    assert [part.topic.id for part in found.parts] == ["gout", "flu", "mumps"]
    assert (found.coverage, found.unanswered) == ("partly", ("Is it zumps?",))
