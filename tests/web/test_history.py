"""What the page keeps of a conversation, and what it shows of it."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medical_assistant.chat.assistant import Reply
from medical_assistant.markdown import safe_markdown
from medical_assistant.prompts import build_messages, clean_text
from medical_assistant.web.history import (
    EMPTY_ANSWER,
    KEPT_CHARACTERS,
    SHOWN_CHARACTERS,
    Exchange,
    as_json,
    messages,
    read_history,
    shown,
    split_at,
)

REPLY = Reply("The answer\n\nin two parts", "Base · m · e", advice="See a doctor.", notes=("Cut short.",))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                (
                    "question replies stopped text footer advice notes confidence warning library sources searched "
                    "number source address quoted query topics types coverage probability signals"
                ).split()
            )
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)


def kept(history):
    """The history as it comes back from a browser."""
    return read_history(json.loads(json.dumps(as_json(history))))


def test_only_the_models_words_go_back_to_it():
    history = [Exchange("Why?", (REPLY,))]
    assert messages(kept(history)) == [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "The answer\n\nin two parts"},
    ]
    assert messages(kept([history[0].stop()])) == messages(history)


def test_an_answer_is_shown_with_advice_before_and_notes_below():
    advice, text, below = shown([Exchange("Why?", (REPLY,))])[1]["content"]
    assert (advice, text) == ("**See a doctor.**", REPLY.text)
    assert below == "*Cut short.*\n\n*Base · m · e*"


def test_confidence_is_the_last_line_and_goes_when_the_answer_is_stopped():
    exchange = Exchange("a?", (Reply("Text", "Fine-tuned · m", notes=("Cut.",), confidence="Confidence: low"),))
    assert shown(kept([exchange]))[1]["content"][-1].endswith("*Fine-tuned · m*\n\n*Confidence: low*")
    assert shown(kept([exchange.stop()]))[1]["content"][-1] == "*Stopped.*\n\n*Cut.*\n\n*Fine-tuned · m*"


def test_questions_without_an_answer_stay_behind():
    history = [
        Exchange("Stopped at once?").stop(),
        Exchange("Next?", (Reply("Yes", "f"),)),
        Exchange("Never answered?"),
    ]
    assert shown(kept(history))[1]["content"] == [EMPTY_ANSWER, "*Stopped.*"]
    assert messages(kept(history)) == [{"role": "user", "content": "Next?"}, {"role": "assistant", "content": "Yes"}]


def test_a_place_in_the_queue_is_shown_but_not_kept():
    exchange = Exchange("a?", (Reply("", "f", waiting="You are next."),))
    assert "You are next." in shown([exchange])[1]["content"][-1]
    assert "next" not in json.dumps(as_json([exchange]))


def test_each_chat_shows_its_own_reply():
    history = kept([Exchange("a?", (Reply("left", "f"), Reply("right", "f")))])
    assert [shown(history, chat)[1]["content"][0] for chat in (0, 1)] == ["left", "right"]
    assert len(shown(history, 2)) == 1


def test_a_message_of_the_page_belongs_to_its_exchange():
    history = [Exchange("a?", (REPLY,)), Exchange("b?"), Exchange("c?", (REPLY,))]
    for number, at in enumerate([0, 0, 1, 2, 2]):
        exchange, before = split_at(as_json(history), number)
        assert exchange.question == history[at].question and len(before) == at
    with pytest.raises(IndexError):
        split_at(as_json(history), 5)


def test_a_very_long_message_is_shown_and_kept_in_part_and_too_long_for_a_model():
    (exchange,) = kept([Exchange("a" * 100_000, (REPLY,))])
    assert len(exchange.question) == KEPT_CHARACTERS > SHOWN_CHARACTERS
    assert len(shown([exchange])[0]["content"]) == SHOWN_CHARACTERS


@given(TEXTS, TEXTS)
def test_the_model_reads_what_was_asked_and_answered_not_what_was_shown(question, answer):
    history = kept([Exchange(question, (Reply(answer, "footer"),))])
    sent = build_messages("Next?", messages(history))[1:-1]
    asked = [{"role": "user", "content": clean_text(question)}, {"role": "assistant", "content": clean_text(answer)}]
    assert sent == (asked if answer.strip() else [])


@given(JSON)
def test_any_json_is_a_history(value):
    history = read_history(value)
    assert kept(history) == history or any(len(exchange.question) > KEPT_CHARACTERS for exchange in history)
    for message in messages(history):
        assert message["role"] in ("user", "assistant") and isinstance(message["content"], str)
    shown(history), shown(history, 1)


@pytest.mark.parametrize("value", [None, 3, "text", {}, [None, 3, "x", []], [{"question": 3, "replies": "x"}]])
def test_what_has_no_form_is_left_out(value):
    assert messages(read_history(value)) == []


@given(st.text(alphabet="<>![]()/aA:|?!- \n&;\"'jh", max_size=80))
def test_what_a_program_gives_as_history_is_shown_without_markup(text):
    source = {"publisher": text, "title": text, "address": f"https://a.example/{text}", "date": text}
    reply = {name: text for name in ("text", "footer", "advice", "confidence", "warning", "library")}
    reply |= {
        "notes": [text],
        "sources": [{"number": 1, "source": source, "page": text, "quoted": [text]}],
        "searched": {"query": text, "topics": [text], "types": [text], "coverage": text, "signals": [[text, 0.5]]},
    }
    for message in shown(read_history([{"question": text, "replies": [reply]}])):
        for part in [message["content"]] if isinstance(message["content"], str) else message["content"]:
            assert not re.search(r"<[A-Za-z/!?|]|!\[|\]\((?!https?://)", part)


@given(st.text(alphabet="<>![]()/aA:|?!- \n&;\"'jh", max_size=80))
def test_shown_text_holds_no_markup(text):
    text = safe_markdown(text)
    assert not re.search(r"<[A-Za-z/!?|]|!\[|\]\((?!https?://)", text)
    assert safe_markdown(text) == text


def test_shown_text_keeps_what_is_harmless():
    for text in ("Below 38 < x", "BP <90/60", "**bold** and [NHS](https://www.nhs.uk)", "- one\n- two", "مرحبا"):
        assert safe_markdown(text) == text
