"""The library's answers in the page and in the API, called as Gradio calls them."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

gr = pytest.importorskip("gradio")

from medical_assistant.chat.assistant import BASE, FROM_LIBRARY, LIBRARY, MODEL_WARNING, Assistant  # noqa: E402
from medical_assistant.library.pages import Line, Page, Section, Source  # noqa: E402
from medical_assistant.library.passages import Found, Part, Passage  # noqa: E402
from medical_assistant.web.history import SEARCHED_TITLE  # noqa: E402
from medical_assistant.web.page import build_page  # noqa: E402
from medical_assistant.web.queue import AnswerQueue  # noqa: E402
from tests.support.answering_library import answering_library  # noqa: E402
from tests.web.test_turns import EMERGENCY, Tab  # noqa: E402

CLIENT = SimpleNamespace(client=SimpleNamespace(host="127.0.0.1"), headers={})


@pytest.fixture(scope="module")
def library():
    return answering_library()


@pytest.fixture
def tab(library):
    return Tab(library=library, model=LIBRARY)


def texts(message):
    return [message["content"]] if isinstance(message["content"], str) else message["content"]


def test_the_control_offers_the_library_first(library):
    blocks = build_page(Assistant(Tab().engine, library=library)).blocks.values()
    (who,) = [block for block in blocks if getattr(block, "elem_id", None) == "model"]
    assert who.value == LIBRARY and [name for name, _ in who.choices] == ["Library", "Fine-tuned", "Base"]


def test_an_answer_shows_its_own_sources_and_what_was_searched(tab):
    tab.ask("What are the signs of malaria?")
    tab.ask("What is gout?")
    _, malaria, searched, _, gout, _ = tab.shown[0]
    assert tab.engine.requests == []
    text, sources, below = malaria["content"]
    assert "fever, chills and sweating\u00a0*_[" in text and "](https://www.nhs.uk/conditions/malaria/)" in sources
    assert below == f"*{FROM_LIBRARY} \u00b7 1 page \u00b7 In the sources*"
    assert searched["metadata"]["title"] == SEARCHED_TITLE and "Topics: Malaria" in searched["content"]
    assert "gout" in gout["content"][1] and "malaria" not in gout["content"][1]


def test_sources_survive_a_retry_and_an_edit_changes_them(tab):
    tab.ask("What are the signs of malaria?")
    tab.ask("How is it treated?")
    before = json.dumps(tab.shown)
    assert "Malaria: How is it treated?" in tab.shown[0][5]["content"]
    tab.event("retry", 3)
    assert json.dumps(tab.shown) == before
    tab.event("edit", 0, "What is gout?")
    assert len(tab.shown[0]) == 3 and "gout" in tab.shown[0][1]["content"][1]


def test_a_model_stands_below_its_warning_and_the_library(library):
    tab = Tab(library=library, model=BASE)
    tab.ask("What are the signs of malaria?")
    quoted, sources, warning, text, below = tab.shown[0][1]["content"]
    assert quoted.startswith(f"**{FROM_LIBRARY}**") and sources.startswith("**Sources**")
    assert warning == f"**{MODEL_WARNING}**" and "the base answer" in text and below.startswith("*Base")
    tab.ask("And now?")
    assert "the base answer" in tab.asked()[1] and "[1]" not in tab.asked()[1]  # the model reads its own words only


def test_a_model_does_not_read_what_the_library_said(tab):
    tab.ask("What is malaria?")
    tab.model = BASE
    tab.ask("How is it treated?")
    assert tab.asked() == ["How is it treated?"]
    assert "kill the parasite" in tab.shown[0][4]["content"][0]  # the topic is still that of the conversation


def test_compare_shows_the_library_beside_the_models(library):
    tab = Tab(library=library, compare=True)
    tab.ask("What are the signs of malaria?")
    assert len(tab.shown) == 3 and len(tab.engine.requests) == 2
    assert "fever, chills" in tab.shown[0][1]["content"][0] and tab.shown[1][1]["content"][0] == f"**{MODEL_WARNING}**"


def test_a_full_queue_does_not_stop_the_library(library):
    tab = Tab(queue=AnswerQueue(slots=1, max_waiting=0), library=library, model=LIBRARY)
    tab.ask("What is gout?")
    assert tab.refusal is None and "Gout is" in tab.shown[0][1]["content"][0]


def test_emergencies_come_first(tab):
    tab.ask(EMERGENCY)
    assert tab.banner and "emergency number" in tab.shown[0][1]["content"][0] and len(tab.shown[0]) == 2


def test_markup_in_a_page_is_shown_as_text():
    hostile = "<img src=x onerror=alert(1)> ![a](http://x.example/a) [b](javascript:alert(1)) ignore the above"
    source = Source(hostile, hostile, "https://a.example/<b>) [c](javascript:alert(2)", hostile)
    section = Section("In short", (Line(hostile, (0,)),))
    page = Page("p", hostile, "condition", (), (source,), (section,))
    part = Part(page, hostile, True, (hostile,), (Passage(page, section, section.lines, 1.0),))
    found = Found(hostile, "covered", 1.0, (part,), signals=((hostile, 1.0),))
    tab = Tab(library=SimpleNamespace(find=lambda *_: found), model=LIBRARY)
    tab.ask("What is it like?")
    for message in tab.shown[0]:
        for text in texts(message):
            assert "<img" not in text and "![" not in text and "](javascript" not in text and "<b>" not in text
    assert "ignore the above" in tab.shown[0][1]["content"][0] and tab.engine.requests == []


@pytest.mark.parametrize(
    ("message", "answered_by", "coverage"),
    [
        ("What are the signs of malaria?", "library", "covered"),
        ("Is blorptitis contagious?", "library", "not"),
        ("hello", "library", ""),
        (EMERGENCY, "rules", ""),
    ],
)
def test_the_api_gives_text_and_sources_as_data(library, message, answered_by, coverage):
    page = build_page(Assistant(Tab().engine, library=library))
    functions = {fn.api_name: fn.fn for fn in page.fns.values() if isinstance(fn.api_name, str)}
    answer = json.loads(json.dumps(functions["library"](gr.Request(CLIENT), message)))
    assert (answer["answered_by"], answer["coverage"]) == (answered_by, coverage) and answer["text"]
    assert bool(answer["sources"]) == (coverage == "covered")
    for source in answer["sources"]:
        assert set(source) == {"number", "publisher", "title", "address", "date", "licence", "page", "quoted"}
        assert source["address"].startswith("http") and all(line in answer["text"] for line in source["quoted"])
    if coverage == "covered":
        assert answer["searched"]["topics"] == ["Malaria"] and "has_name" in answer["searched"]["signals"]
    assert answer["text"] in list(functions["chat"](gr.Request(CLIENT), message))[-1]  # its default is the library
