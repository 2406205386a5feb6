"""The library's answers in a real browser (Chromium): what is read, opened, asked again and compared."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("gradio")

from medical_assistant.chat.assistant import MODEL_WARNING  # noqa: E402
from medical_assistant.library.answer import WHOM_TO_ASK  # noqa: E402
from medical_assistant.web.history import SEARCHED_TITLE  # noqa: E402
from tests.support.answering_library import answering_library  # noqa: E402
from tests.support.served_app import serve  # noqa: E402
from tests.support.stub_engine import StubEngine  # noqa: E402
from tests.web.test_browser import (  # noqa: E402
    CHROMIUM,
    answer,
    ask,
    browser,  # noqa: F401  # a fixture
    open_page,
    wait_for_send,
    wait_for_text,
)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)")
PHONE = {"width": 390, "height": 844}
COVERED = "What are the signs of malaria?"


@pytest.fixture(scope="module")
def library_app():
    with serve(StubEngine(), library=answering_library()) as app:
        yield app


@pytest.fixture
def page(browser, library_app):  # noqa: F811
    library_app.reset()
    page = open_page(browser, library_app.url, viewport=PHONE)
    yield page
    assert (page.outside, page.violations) == ([], [])
    page.context.close()


def ask_and_wait(page, message, number=0):
    """Ask and return the answer, which the library gives whole."""
    ask(page, message)
    answer(page, number).get_by_text("From the library").last.wait_for()
    wait_for_send(page)
    return answer(page, number)


def order_of(text, *parts):
    for part in parts:
        before, found, text = text.partition(part)
        assert found, f"{part} is not after {before[-80:]}"


# What of the page a person with poor sight, or a screen reader, could not read: text with a contrast below 4.5
# (WCAG 2.2, 1.4.3), links without a name, headings that skip a level, what is wider than the page.
UNREADABLE = """() => {
    const found = [];
    const numbers = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
    const over = (top, below) => {
        const alpha = top.length > 3 ? top[3] : 1;
        return [0, 1, 2].map((i) => top[i] * alpha + below[i] * (1 - alpha));
    };
    const light = (color) => {
        const [r, g, b] = color.map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    for (const element of document.querySelectorAll("#chat .message-row .prose *, #chat .thought-group *")) {
        const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
        if (!own || !element.getClientRects().length) continue;
        const around = [];
        for (let e = element; e; e = e.parentElement) around.unshift(getComputedStyle(e));
        let back = [255, 255, 255], opacity = 1;
        for (const style of around) {
            back = over(numbers(style.backgroundColor), back);
            opacity *= style.opacity;
        }
        const front = over([...numbers(getComputedStyle(element).color).slice(0, 3), opacity], back);
        const [low, high] = [light(front), light(back)].sort((a, b) => a - b);
        const contrast = (high + 0.05) / (low + 0.05);
        if (contrast < 4.5) found.push(`${contrast.toFixed(2)} ${element.tagName} ${element.innerText.slice(0, 40)}`);
    }
    for (const link of document.querySelectorAll("#chat a")) if (!link.innerText.trim()) found.push(link.outerHTML);
    for (const other of document.querySelectorAll("#chat .bot-row :is(h1, h4, h5, h6)")) found.push(other.outerHTML);
    if (document.documentElement.scrollWidth > innerWidth) found.push(`width ${document.documentElement.scrollWidth}`);
    return found;
}"""


QUESTION_IN_VIEW = """(chat) => document.querySelector(`${chat} .user-row`).getBoundingClientRect().top
    >= document.querySelector(`${chat} .bubble-wrap`).getBoundingClientRect().top"""


def test_an_answer_with_sources_opens_what_was_searched_and_stays_when_asked_again(page):
    first = ask_and_wait(page, COVERED)
    text = first.inner_text()
    order_of(
        text, "Malaria", "Signs", "fever, chills and sweating", "Get help now", "Sources", "1 page", SEARCHED_TITLE
    )
    assert "Get help now" in first.locator("blockquote").inner_text()
    links = first.locator("ol a").evaluate_all("links => links.map(link => [link.href, link.target, link.rel])")
    assert links and all(href.startswith("https://") and target == "_blank" for href, target, _ in links)
    page.wait_for_function(QUESTION_IN_VIEW, arg="#chat")
    assert page.evaluate(UNREADABLE) == []
    first.locator(".thought-group .title").click()
    searched = first.locator(".thought-group .content, .thought-group")
    wait_for_text(page, "Searched for: What are the signs of malaria?", "#chat .thought-group")
    for words in ("Topics: Malaria", "Asked about: Signs", "Coverage: covered (probability", "Source 1 for:"):
        assert words in searched.first.inner_text()
    page.click("#chat [aria-label=Retry]")
    wait_for_send(page)
    page.wait_for_timeout(200)
    again = answer(page).inner_text()
    assert again.split("Sources")[1].split(SEARCHED_TITLE)[0] == text.split("Sources")[1].split(SEARCHED_TITLE)[0]


@pytest.mark.slow  # by default: test_library_page.py, chat/test_library_answers.py
def test_a_follow_up_two_topics_and_what_is_not_covered(page):
    ask_and_wait(page, "What is malaria?")
    follow_up = ask_and_wait(page, "how is it treated?", 1)
    order_of(follow_up.inner_text(), "Malaria", "Treatment", "kill the parasite", "Get help now", "Sources")
    two = ask_and_wait(page, "is it a cold or flu", 2).inner_text()
    order_of(two, "Flu", "Common cold", "Get help now", "Sources", "2 pages")
    assert two.count("Get help now") == 1
    mixed = ask_and_wait(page, "can i take ibuprofen with warfarin", 3).inner_text()
    order_of(mixed, "Warfarin", "Do not mix with", "Ibuprofen", "Do not mix with", "Get help now", "2 pages")
    nothing = ask_and_wait(page, "Is blorptitis contagious?", 4)
    assert "I have nothing on this" in nothing.inner_text() and WHOM_TO_ASK in nothing.inner_text()
    assert nothing.locator("a").count() == 0 and page.evaluate(UNREADABLE) == []


@pytest.mark.slow  # by default: test_library_page.py
def test_who_answers_can_be_changed_in_a_conversation(page, library_app):
    ask_and_wait(page, COVERED)
    for number, name in enumerate(("Fine-tuned", "Base"), 1):
        page.click(f"#model >> text={name}")
        ask(page, COVERED)
        wait_for_text(page, f"the {name.lower()} answer", f"#chat .bot-row >> nth={number}")
        wait_for_send(page)
        order_of(answer(page, number).inner_text(), "From the library", "Sources", MODEL_WARNING, "answer to")
    page.click("#model >> text=Library")
    assert MODEL_WARNING not in ask_and_wait(page, "What is gout?", 3).inner_text()
    assert [options.adapter for _, options in library_app.engine.requests] == [True, False]
    assert page.evaluate(UNREADABLE) == []


@pytest.mark.slow  # by default: test_library_page.py
def test_compare_sets_the_library_beside_both_models(page):
    page.click("button[role=tab] >> text=Compare")
    ask(page, COVERED, "#compare-question")
    wait_for_text(page, "Sources", "#compare-0")
    wait_for_text(page, "the fine-tuned answer", "#compare-1")
    wait_for_text(page, "the base answer", "#compare-2")
    page.wait_for_timeout(2_200)  # Gradio scrolls with each update, the page back
    assert page.evaluate(QUESTION_IN_VIEW, "#compare-0")
    assert MODEL_WARNING not in page.inner_text("#compare-0")
    assert all(MODEL_WARNING in page.inner_text(f"#compare-{number}") for number in (1, 2))
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]


@pytest.mark.slow  # by default: chat/test_library_answers.py
@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("<b>What</b> is <script>top.marked=1</script> gout?", "Gout"),
        ("fever " * 200, "Fever"),
        ("x" * 3_000, "I have nothing on this"),
        ("\u0645\u0627 \u0647\u064a \u0623\u0639\u0631\u0627\u0636", "My library is in English"),
    ],
)
def test_odd_messages_break_nothing(page, message, words):
    assert words in ask_and_wait(page, message).inner_text()
    assert page.evaluate("window.marked") is None and page.evaluate(UNREADABLE) == []
    assert not re.search("Traceback|Error", page.inner_text("body"))
