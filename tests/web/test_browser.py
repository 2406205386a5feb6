"""The page in a real browser (Chromium), with a scripted engine behind it."""

from __future__ import annotations

import re
import shutil
import time
from contextlib import ExitStack
from itertools import count

import pytest
import yaml

from medical_assistant.engines.base import EngineInfo
from medical_assistant.errors import EngineError
from medical_assistant.prompts import clean_text
from medical_assistant.web.queue import AnswerQueue
from tests.support.paths import ROOT
from tests.support.served_app import serve, wait_until
from tests.support.stub_engine import StubEngine, default_script, endless

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync "
    "--no-first-run"
).split()

EMERGENCY = "I have crushing chest pain and I cannot breathe"


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def slow(*values, **properties):
    """A parameter of which another one, by default, shows the same way through the page."""
    return pytest.param(*values, marks=pytest.mark.slow, **properties)


@pytest.fixture
def start():
    """`serve` for as long as a test runs, for a page of its own."""
    with ExitStack() as running:
        yield lambda *arguments, **options: running.enter_context(serve(*arguments, **options))


@pytest.fixture
def engine(served_app):
    return served_app.engine


@pytest.fixture(scope="module")
def context(browser):
    """What most tests share, so that the page's 70 files come from its cache: 1.2 s in place of 2.5."""
    context = browser.new_context()
    yield context
    context.close()


@pytest.fixture
def page(context, served_app, engine):
    page = context.new_page()
    forget = {"origin": served_app.url.rstrip("/"), "storageTypes": "cookies,local_storage"}
    context.new_cdp_session(page).send("Storage.clearDataForOrigin", forget)
    yield visit(page, served_app.url)
    page.close()


def open_page(browser, url, **options):
    """Return a page of a visitor of its own; the test closes its context."""
    return visit(browser.new_context(**options).new_page(), url)


def open_pages(browser, url, number):
    """Return pages of `number` visitors (to the server, each page is one) that share one cache."""
    first = open_page(browser, url)
    return [first, *(visit(first.context.new_page(), url) for _ in range(number - 1))]


def visit(page, url):
    page.set_default_timeout(30_000)  # the test machine may be busy
    page.outside = []
    page.on("request", lambda request: page.outside.append(request.url) if "127.0.0.1" not in request.url else None)
    page.violations = []
    page.on("console", lambda line: page.violations.append(line.text) if "Security Policy" in line.text else None)
    page.goto(url)
    page.wait_for_selector("#question textarea")
    return page


def ask(page, message, box="#question"):
    page.fill(f"{box} textarea", message)
    page.press(f"{box} textarea", "Enter")


def answer(page, number=0, chat="#chat"):
    return page.locator(f"{chat} .bot-row").nth(number)


def wait_for_text(page, text, selector="#chat"):
    page.locator(selector, has_text=text).wait_for()


def wait_for_send(page, box="#question"):
    page.locator(f"{box} button", has_text="Ask").wait_for()


def stream_without_end(page, engine):
    """Ask for an answer that only a stop ends; return when words of it are in the page."""
    engine.script, engine.delay_s = endless, 0.01
    ask(page, "Tell me everything")
    wait_for_text(page, "word20 ")


def wait_for_close(engine, streams=1):
    """Only a closed stream ends an answer without end. How soon: `test_the_real_engine_is_idle_within_a_second`."""
    wait_until(lambda: engine.closed >= streams, timeout_s=15)


def test_a_question_gets_a_streamed_answer_with_its_source(page, engine):
    engine.script, engine.delay_s = lambda *_: [f"Part{i} of it. " for i in range(40)], 0.02
    ask(page, "What is anaemia?")
    wait_for_text(page, "Part5 of it.")
    assert "Part39" not in page.inner_text("#chat")  # it grows
    wait_for_text(page, "Part39")
    assert "Fine-tuned · stub-model · adapter 0123456789ab · stub" in answer(page).inner_text()
    assert page.input_value("#question textarea") == ""
    style = page.locator("#chat .user-row .prose p").evaluate("e => getComputedStyle(e)")  # as its own text wants it
    assert style["unicodeBidi"] == "plaintext" and style["textAlign"] == "start"
    assert page.outside == [] and page.violations == []


@pytest.mark.slow  # by default: test_turns.py, which model the toggle asks
def test_the_toggle_chooses_the_model_and_the_label(page, engine):
    page.click("#model >> text=Base")
    ask(page, "What is anaemia?")
    wait_for_text(page, "the base answer")
    assert "Base · stub-model · stub" in answer(page).inner_text()
    assert [options.adapter for _, options in engine.requests] == [False]


@pytest.mark.slow  # by default: test_edit_retry_and_undo, test_turns.py
def test_mistake_7_history_reaches_the_model_without_labels(page, engine):
    ask(page, "First question?")
    wait_for_text(page, "answer to: First question?")
    wait_for_send(page)
    ask(page, "Second question?")
    wait_for_text(page, "answer to: Second question?")
    messages, _ = engine.requests[-1]
    assert [m["content"] for m in messages[1:]] == [
        "First question?",
        "This is the fine-tuned answer to: First question?",
        "Second question?",
    ]


@pytest.mark.slow  # by default: chat/test_assistant.py
def test_a_long_conversation_is_shortened_and_the_page_says_so(page, engine):
    engine.script, engine.context_tokens = lambda *_: [f"word{i} " for i in range(60)], 400
    for number in range(3):
        ask(page, f"Question {number}?")
        page.locator("#chat .bot-row").nth(number).wait_for()
        wait_for_send(page)
    assert "oldest messages were left out" in answer(page, 2).inner_text()
    assert [m["content"] for m in engine.requests[-1][0]][1] == "Question 1?"


def test_mistake_5_stop_ends_the_stream_of_an_example_and_keeps_the_text(page, engine):
    engine.script, engine.delay_s = endless, 0.01
    page.locator("#chat .example").first.click()
    wait_for_text(page, "word20 ")
    assert engine.requests[0][0][-1]["content"].startswith("What are the signs of dehydration")
    page.click("#question button >> text=Stop")
    wait_for_close(engine)
    wait_for_text(page, "Stopped.")
    assert "word20 " in answer(page).inner_text()
    wait_for_send(page)
    engine.script = default_script
    ask(page, "Short?")
    wait_for_text(page, "answer to: Short?")


@pytest.mark.slow  # by default: test_turns.py, what cancels an answer
def test_clear_stops_the_computation(page, engine):
    stream_without_end(page, engine)
    page.click("#chat [aria-label=Clear]")
    wait_for_close(engine)
    page.locator("#chat .example").first.wait_for()
    page.wait_for_timeout(300)  # nothing late comes back
    assert page.locator("#chat .bot-row").count() == 0


def test_a_closed_tab_stops_the_computation(browser, served_app, engine):
    page = open_page(browser, served_app.url)
    stream_without_end(page, engine)
    page.close()
    wait_for_close(engine)


@pytest.fixture(scope="module")
def real_engine():
    """(CPU seconds so far of the llama.cpp engine, URL of a page on it)."""
    pytest.importorskip("xllamacpp")
    from medical_assistant.engines.llama_cpp import LlamaCppEngine
    from medical_assistant.models.presets import find_preset

    gguf = find_preset("smollm2-135m").embedded_gguf()
    if gguf is None:
        pytest.skip("the embedded model is not installed")
    engine = LlamaCppEngine(gguf)
    child = pytest.importorskip("psutil").Process(engine.child_pid())
    with serve(engine) as app:
        yield lambda: sum(child.cpu_times()[:2]), app.url
    engine.close()


@pytest.mark.slow  # by default: test_faults.py, the server with the engine; here the closed stream
@pytest.mark.parametrize("way", ["stop", "close the tab", "reload"])
def test_the_real_engine_is_idle_within_a_second(browser, real_engine, way):
    cpu_s, url = real_engine
    page = open_page(browser, url)
    ask(page, "Tell me all about vitamins, one after the other")
    page.wait_for_function("document.querySelector('#chat .bot-row')?.innerText.length > 60")
    before_s = cpu_s()
    if way == "stop":
        page.click("#question button >> text=Stop")
    elif way == "reload":
        page.reload()
    else:
        page.context.close()
    time.sleep(1)
    stopped_s = cpu_s()
    time.sleep(1)
    assert stopped_s - before_s < 1  # a whole answer is 2 s of one core
    assert cpu_s() - stopped_s < 0.05
    if way != "close the tab":
        page.context.close()


@pytest.mark.slow  # by default: test_edit_retry_and_undo, the same buttons later
def test_edit_retry_and_undo_wait_for_the_answer_or_stop(page, engine):
    stream_without_end(page, engine)
    for name in ("Edit", "Retry", "Undo"):  # Gradio disables them; were they enabled, they would cancel
        button = page.locator(f"#chat [aria-label={name}]")
        assert button.count() == 0 or button.first.is_disabled(), name
    page.click("#question button >> text=Stop")
    wait_for_close(engine)
    engine.script = default_script
    page.click("#chat [aria-label=Edit]")
    page.locator("#chat textarea").fill("Something shorter?")
    page.click("#chat [aria-label=Submit]")
    wait_for_text(page, "answer to: Something shorter?")
    assert page.locator("#chat .bot-row").count() == 1


def test_a_question_sent_while_answering_cancels_the_first(page, engine):
    stream_without_end(page, engine)
    engine.script = default_script
    ask(page, "Something else?")
    wait_for_text(page, "answer to: Something else?")
    wait_until(lambda: engine.closed == 1, timeout_s=15)
    assert engine.running == 0
    wait_for_send(page)
    engine.script = endless  # one that follows a cancelled one can be cancelled and stopped too
    for number in (2, 3):
        ask(page, f"Question {number}?")
        page.locator("#chat .bot-row").nth(number).get_by_text("word9 ").wait_for()
        wait_until(lambda number=number: (engine.running, engine.closed) == (1, number - 1), timeout_s=15)
    page.click("#question button >> text=Stop")
    wait_until(lambda: (engine.running, engine.closed) == (0, 3), timeout_s=15)
    wait_for_send(page)


@pytest.mark.slow  # by default: test_a_question_sent_while_answering_cancels_the_first
def test_the_rules_see_a_message_sent_while_answering(page, engine):
    stream_without_end(page, engine)
    ask(page, EMERGENCY)
    page.locator("#emergency [role=alert]").wait_for()
    wait_for_close(engine)
    wait_for_text(page, "no model was used")
    assert len(engine.requests) == 1


@pytest.mark.slow  # by default: test_turns.py
def test_a_refused_edit_comes_back_into_the_box(page, engine):
    ask(page, "One?")
    wait_for_text(page, "answer to: One?")
    wait_for_send(page)
    page.click("#chat [aria-label=Edit]")
    page.locator("#chat textarea").fill("12345")
    page.click("#chat [aria-label=Submit]")
    wait_for_text(page, "no words", "#refusal [role=alert]")
    assert page.input_value("#question textarea") == "12345" and len(engine.requests) == 1


def test_edit_retry_and_undo(page, engine):
    for number, question in enumerate(("One?", "Two?")):
        ask(page, question)
        wait_for_text(page, f"answer to: {question}")
        answer(page, number).wait_for()
        wait_for_send(page)
    page.click("#chat [aria-label=Retry]")
    wait_until(lambda: len(engine.requests) == 3)
    wait_for_send(page)
    assert engine.requests[2][0] == engine.requests[1][0]
    page.locator("#chat [aria-label=Edit]").nth(1).click()
    page.locator("#chat textarea").fill("Three?")
    page.click("#chat [aria-label=Submit]")
    wait_for_text(page, "answer to: Three?")
    assert [m["content"] for m in engine.requests[3][0]][1::2] == ["One?", "Three?"]
    wait_for_send(page)
    page.click("#chat [aria-label=Undo]")
    page.wait_for_function("document.querySelector('#question textarea').value === 'Three?'")
    assert page.locator("#chat .bot-row").count() == 1


@pytest.mark.slow  # by default: nothing, the button is Gradio's
def test_an_answer_can_be_copied(browser, served_app, engine):
    page = open_page(browser, served_app.url, permissions=["clipboard-read", "clipboard-write"])
    ask(page, "One?")
    wait_for_text(page, "answer to: One?")
    wait_for_send(page)
    answer(page).locator("xpath=..").locator("[aria-label='Copy message']").last.click()
    page.wait_for_timeout(100)
    assert "This is the fine-tuned answer to: One?" in page.evaluate("navigator.clipboard.readText()")
    page.context.close()


def test_mistake_9_an_emergency_shows_the_notice_and_does_not_generate(page, engine):
    ask(page, EMERGENCY)
    notice = page.locator("#emergency [role=alert]")
    notice.wait_for()
    assert "possible heart attack" in notice.inner_text() and "911" in notice.inner_text()
    wait_for_text(page, "no model was used")
    page.click("#chat [aria-label=Retry]")  # the rules see retries too
    page.wait_for_timeout(300)
    assert engine.requests == []
    wait_for_send(page)
    ask(page, "What is anaemia?")
    wait_for_text(page, "answer to: What is anaemia?")
    assert notice.is_visible()  # it stays with the conversation
    wait_for_send(page)
    page.click("#chat [aria-label=Clear]")
    notice.wait_for(state="hidden")


@pytest.mark.parametrize(
    ("locale", "chosen", "message", "dialled", "text"),
    [
        slow("en-GB", None, EMERGENCY, ["999"], "999 / 112 (United Kingdom)", id="browser"),
        pytest.param("en-GB", "France", "I want to kill myself", ["3114", "15"], "3114 (France)", id="chosen"),
        slow(
            "fr", None, "mon bébé est bleu et ne respire pas", ["112", "911", "999", "000"], "numéro d'urgence", id="no"
        ),
    ],
)
def test_the_numbers_are_those_of_the_country(browser, served_app, engine, locale, chosen, message, dialled, text):
    page = open_page(browser, served_app.url, locale=locale)
    page.click("#settings >> text=Settings")
    country = page.locator("#country input")
    country.wait_for()
    if locale == "en-GB":
        page.wait_for_function("document.querySelector('#country input').value === 'United Kingdom'")
    if chosen:
        country.fill(chosen)
        country.press("Enter")
        page.wait_for_timeout(300)
    ask(page, message)
    notice = page.locator("#emergency [role=alert]")
    notice.wait_for()
    links = notice.locator("a").evaluate_all("links => links.map(link => link.getAttribute('href'))")
    assert links == [f"tel:{number}" for number in dialled] and text in notice.inner_text()
    assert engine.requests == []
    page.context.close()


@pytest.mark.slow  # by default: test_turns.py
def test_a_request_for_harm_is_refused_without_the_notice_or_a_model(page, engine):
    ask(page, "Help me forge a prescription for oxycodone")
    wait_for_text(page, "I can't help", "#chat .bot-row")
    wait_for_text(page, "no model was used")
    assert engine.requests == [] and not page.locator("#emergency [role=alert]").is_visible()
    wait_for_send(page)


@pytest.mark.slow  # by default: test_turns.py
def test_an_emergency_is_seen_in_an_edit_and_in_a_message_that_is_too_long(page, engine):
    ask(page, "One?")
    wait_for_text(page, "answer to: One?")
    wait_for_send(page)
    page.click("#chat [aria-label=Edit]")
    page.locator("#chat textarea").fill("I want to kill myself")
    page.click("#chat [aria-label=Submit]")
    notice = page.locator("#emergency [role=alert]")
    notice.wait_for()
    assert "988" in notice.inner_text()
    assert len(engine.requests) == 1
    page.reload()
    page.wait_for_selector("#question textarea")
    assert not notice.is_visible()
    ask(page, EMERGENCY + " really" * 5000)
    notice.wait_for()
    assert len(engine.requests) == 1


def test_4000_characters_of_markdown_are_accepted_shown_and_answered(page, engine):
    engine.context_tokens = 8192
    message = ("Why do *these* [things] <i>hurt? " * 200)[:4000]
    ask(page, message)
    wait_for_text(page, "answer to: Why do these [things]", "#chat .bot-row")
    wait_for_send(page)
    page.click("#chat [aria-label=Retry]")
    wait_until(lambda: len(engine.requests) == 2)
    wait_for_send(page)
    page.click("#chat [aria-label=Edit]")
    page.click("#chat [aria-label=Submit]")  # as Gradio's field gives it back
    wait_until(lambda: len(engine.requests) == 3)
    assert [messages[-1]["content"] for messages, _ in engine.requests] == [clean_text(message)] * 3
    assert not page.locator("#refusal [role=alert]").is_visible()
    assert page.locator("#chat .user-row").inner_text().count("hurt?") == message.count("hurt?")


@pytest.mark.parametrize(
    ("message", "words"),
    [
        slow("   ", "empty", id="empty"),
        pytest.param("word " * 2000, "10,000 characters", id="long"),
        slow("\U0001f600\U0001f600", "no words", id="emoji"),
        slow("\x01\x02 ab", "a file", id="binary"),
    ],
)
def test_a_refused_message_says_why_and_stays_in_the_box(page, engine, message, words):
    ask(page, message)
    wait_for_text(page, words, "#refusal [role=alert]")
    assert page.input_value("#question textarea") == message
    assert engine.requests == [] and page.locator("#chat .bot-row").count() == 0
    ask(page, "One?")
    wait_for_text(page, "answer to: One?")
    assert not page.locator("#refusal [role=alert]").is_visible()


def payload_groups():
    """{group: texts} of tests/safety_sets/xss.yaml. The mark of the n-th text of all is `top.marked=n`."""
    groups = yaml.safe_load((ROOT / "tests" / "safety_sets" / "xss.yaml").read_text(encoding="utf-8"))
    numbers = count(1)
    return {
        name: [text.replace("RUN", f"top.marked={next(numbers)}").replace("OUT", "outside.example") for text in texts]
        for name, texts in ((name, texts.values()) for name, texts in groups.items())
    }


# What a page must not have made of foreign text. Chats and footers are `.prose`; handlers are nowhere in Gradio's page.
FOUND_IN_PAGE = """() => {
    const found = [];
    const tags = "script,iframe,object,embed,form,svg,math,link,meta,base,style,template,video,audio,source,img," +
        "picture,image,input,button,textarea,select,details,dialog,marquee,slot,noscript,title,canvas";
    for (const prose of document.querySelectorAll(".prose, #emergency, #problem, #refusal")) {
        for (const element of prose.querySelectorAll(prose.matches(".prose") ? tags : "script,iframe,img,svg,form"))
            if (!element.closest("button.copy_code_button")) found.push(element.outerHTML);  // Gradio's own
        for (const element of prose.querySelectorAll("[style],[id=config],[popover],[formaction]"))
            if (prose.matches(".prose") && !element.closest("pre")) found.push(element.outerHTML);
    }
    for (const element of document.querySelectorAll("*"))
        for (const name of Element.prototype.getAttributeNames.call(element)) {  // a form's own may be an input
            const value = Element.prototype.getAttribute.call(element, name);
            if (/^on/i.test(name) || /^\\s*(javascript|vbscript|data:text)/i.test(value))
                found.push(`${name}=${value}`);
        }
    for (const link of document.querySelectorAll("a[href]"))
        if (!/^(https?:|tel:|[.]?[/])/.test(link.getAttribute("href"))) found.push(link.outerHTML);
    return {found, mark: window.marked ?? null, frames: window.length};
}"""


@pytest.fixture
def watched(browser):
    """A function that opens a page; at the end nothing ran in it, and nothing left it."""
    pages, happened = [], []

    def open_watched(url):
        page = open_page(browser, url)
        page.on("dialog", lambda dialog: happened.append(f"dialog: {dialog.message}") or dialog.dismiss())
        page.on("framenavigated", lambda frame: happened.append(f"went to {frame.url}"))
        page.context.on("page", lambda page: happened.append(f"opened {page.url}"))
        page.on("download", lambda download: happened.append(f"downloaded {download.url}"))
        pages.append((page, page.url))
        return page

    yield open_watched
    for page, url in pages:
        page.wait_for_timeout(300)
        # Hovering and focus are what some wait for.
        page.evaluate("document.querySelectorAll('.prose *').forEach(e => e.dispatchEvent(new Event('mouseover')))")
        assert page.evaluate(FOUND_IN_PAGE) == {"found": [], "mark": None, "frames": 0}
        assert (happened, page.outside, page.violations, page.url) == ([], [], [], url)
        page.context.close()


def test_markup_from_user_and_model_is_shown_as_text(watched, served_app, engine, monkeypatch):
    # Fifty tags are no message of a patient: the classifier may take them for anything, and no model would answer.
    monkeypatch.setattr("medical_assistant.safety.triage.raised_level", lambda text, level, *_: level)
    page, groups = watched(served_app.url), payload_groups()
    assert sum(map(len, groups.values())) >= 40
    for number, (name, texts) in enumerate(groups.items()):
        text = "\n\n".join(texts)
        pieces = [f"{name} begins\n\n", *(text[i : i + 29] for i in range(0, len(text), 29)), "\n\n\nthe end"]
        # Half of a tag or a link is rendered too, on its way.
        engine.script, engine.delay_s = lambda messages, options, pieces=pieces: pieces, 0.002
        ask(page, f"{name}\n\n{text}")
        answer(page, number).get_by_text("begins").first.wait_for()
        wait_for_send(page)
        assert page.evaluate(FOUND_IN_PAGE) == {"found": [], "mark": None, "frames": 0}, name
    assert len(engine.requests) == len(groups) and "<|" not in engine.requests[-1][0][-1]["content"]
    for row in ("user-row", "bot-row"):
        assert re.search(r"script\s*>\s*top\.marked", page.inner_text(f"#chat .{row} >> nth=2"))
    texts = list(groups.values())
    for number in range(3):  # of a message 4,000 characters are shown
        message = " ".join(text for group in texts[number::3] for text in group)
        assert len(message) < 3_900
        ask(page, f"{EMERGENCY}. {message}")
        answer(page, len(groups) + number).get_by_text("no model was used").wait_for()
        wait_for_send(page)
    notice = page.inner_text("#emergency [role=alert]")
    assert "possible heart attack" in notice and len(engine.requests) == len(groups)


def test_what_a_hostile_adapter_and_model_say_of_themselves_runs_nothing(watched):
    """Gradio evaluates an HTML template as a JavaScript literal once Handlebars has filled it."""
    text = "\n\n".join(text for texts in payload_groups().values() for text in texts)
    engine = StubEngine(lambda messages, options: [EngineError(f"The adapter {text} failed.")])
    engine.info = EngineInfo("stub", text.replace("/", "|"), text, text)
    with serve(engine, f"The adapter names {text}.") as app:
        page = watched(app.url)
        wait_for_text(page, "top.marked", "#problem")
        ask(page, "What is anaemia?")
        wait_for_text(page, "failed")
        wait_for_send(page)
        page.click("button[role=tab] >> text=About")
        page.locator(".prose:visible", has_text="top.marked").first.wait_for()


@pytest.mark.slow  # by default: chat/test_assistant.py, test_app.py
def test_a_dead_engine_keeps_the_text_and_says_what_to_do(page, engine):
    died = EngineError("The model process died and is restarting: ask again.")
    engine.script = lambda messages, options: ["Half ", "an answer", died]
    ask(page, "What is anaemia?")
    wait_for_text(page, "restarting: ask again")
    assert "Half an answer" in answer(page).inner_text() and "Traceback" not in page.inner_text("body")
    wait_for_send(page)
    engine.script = default_script
    ask(page, "Again?")
    wait_for_text(page, "answer to: Again?")


@pytest.mark.slow  # by default: test_turns.py, what the page is made of
def test_mistake_6_a_missing_adapter_is_said_and_disables_the_toggle(browser, start):
    page = open_page(browser, start(StubEngine(adapter=None), "Adapter <b>x</b> is truncated.").url)
    assert "Adapter <b>x</b> is truncated." in page.inner_text("#problem")
    assert page.locator("#model input:disabled").count() == 2
    assert page.locator("#model input:checked").get_attribute("value") == "Base"
    ask(page, "What is anaemia?")
    wait_for_text(page, "the base answer")
    assert "Base · stub-model · stub" in answer(page).inner_text()
    page.context.close()


@pytest.mark.slow  # by default: test_turns.py, test_requests.py
def test_a_full_queue_is_said_and_the_rules_do_not_wait(browser, start):
    engine = StubEngine(endless, delay_s=0.01)
    url = start(engine, queue=AnswerQueue(slots=1, max_waiting=1)).url
    running, waiting, refused = open_pages(browser, url, 3)
    ask(running, "One")
    wait_for_text(running, "word5 ")
    ask(waiting, "Two")
    wait_for_text(waiting, "You are next")
    ask(refused, "Three")
    wait_for_text(refused, "Many people are asking", "#refusal")
    assert refused.input_value("#question textarea") == "Three"
    ask(refused, EMERGENCY)
    refused.locator("#emergency [role=alert]").wait_for()
    wait_for_text(refused, "no model was used")
    running.click("#question button >> text=Stop")
    wait_for_text(waiting, "word5 ")
    assert "You are next" not in waiting.inner_text("#chat")
    waiting.click("#question button >> text=Stop")
    wait_until(lambda: engine.running == 0)
    running.context.close()


@pytest.mark.slow  # by default: test_requests.py
def test_a_question_can_be_stopped_while_it_waits_in_the_queue(browser, start):
    engine = StubEngine(endless, delay_s=0.01)
    url = start(engine, queue=AnswerQueue(slots=1)).url
    running, waiting = open_pages(browser, url, 2)
    ask(running, "One")
    wait_for_text(running, "word5 ")
    ask(waiting, "Two")
    wait_for_text(waiting, "You are next")
    waiting.click("#question button >> text=Stop")
    wait_for_text(waiting, "Stopped.")
    running.click("#question button >> text=Stop")
    wait_until(lambda: engine.running == 0)
    running.wait_for_timeout(500)
    assert len(engine.requests) == 1
    running.context.close()


def test_the_server_keeps_no_text_and_forgets_a_visitor_whose_tab_is_closed(browser, served_app, engine):
    sessions = served_app.page.state_holder.session_data
    others = set(sessions)
    page = open_page(browser, served_app.url)
    ask(page, "planted-question?")
    wait_for_text(page, "answer to: planted-question?")
    wait_for_send(page)
    mine = {name: session for name, session in sessions.items() if name not in others}
    assert mine and not any("planted" in repr(session.config_values) for session in mine.values())
    assert not any(value for session in mine.values() for value in session.state_data.values())
    page.context.close()
    wait_until(lambda: not mine.keys() & sessions.keys())


@pytest.mark.slow  # by default: test_turns.py
def test_the_settings_reach_the_model(page, engine):
    page.click("#settings >> text=Settings")
    page.locator("#settings input[type=number] >> nth=3").wait_for()
    page.wait_for_timeout(500)  # on a slow machine the fields are drawn before they listen
    for field, value in enumerate(("64", "0.7", None, "5")):
        if value:
            page.fill(f"#settings input[type=number] >> nth={field}", value)
            page.press(f"#settings input[type=number] >> nth={field}", "Tab")
    page.wait_for_function("document.querySelector('#settings input[type=range]').value === '64'")
    page.wait_for_timeout(300)  # from the fields to the page's state
    ask(page, "One?")
    wait_for_text(page, "answer to: One?")
    options = engine.requests[0][1]
    assert (options.max_new_tokens, options.temperature, options.seed) == (64, 0.7, 5)


def test_compare_asks_both_models_and_stops_both(page, engine):
    page.click("button[role=tab] >> text=Compare")
    ask(page, "One?", "#compare-question")
    wait_for_text(page, "the fine-tuned answer", "#compare-0")
    wait_for_text(page, "the base answer", "#compare-1")
    wait_for_send(page, "#compare-question")
    engine.script, engine.delay_s = endless, 0.01
    ask(page, "Two?", "#compare-question")
    for chat in ("#compare-0", "#compare-1"):
        wait_for_text(page, "word20 ", chat)
    page.click("#compare-question button >> text=Stop")
    wait_for_close(engine, streams=2)
    ask(page, EMERGENCY, "#compare-question")
    page.locator("#emergency [role=alert]").wait_for()
    assert len(engine.requests) == 4


@pytest.mark.slow  # by default: test_on_a_phone_everything_is_in_view
def test_the_first_use_notice_is_remembered_by_the_browser(browser, served_app):
    page = open_page(browser, served_app.url)
    notice = page.locator(".first-use")
    notice.wait_for()
    notice.locator("button").click()
    assert not notice.is_visible()
    page.reload()
    page.wait_for_selector("#question textarea")
    page.wait_for_timeout(200)
    assert not notice.is_visible() and page.locator(".disclaimer").is_visible()
    page.context.close()


@pytest.mark.parametrize("scheme", ["light", slow("dark")])
def test_on_a_phone_everything_is_in_view(browser, served_app, engine, tmp_path, scheme):
    page = open_page(browser, served_app.url, viewport={"width": 390, "height": 844}, color_scheme=scheme)
    boxes = ("#top .disclaimer", "#question textarea")
    in_view(page, boxes)  # with the first-use notice
    page.click(".first-use button")
    page.reload()
    page.wait_for_selector("#question textarea")
    assert not page.locator(".first-use").is_visible()  # the browser remembers that it was read
    ask(page, EMERGENCY)
    page.locator("#emergency [role=alert]").wait_for()
    wait_for_text(page, "no model was used")
    in_view(page, (*boxes, "#emergency [role=alert]", "#question button"))
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.locator("#chat").bounding_box()["height"] >= 180
    page.screenshot(path=tmp_path / f"phone-{scheme}.png")
    page.context.close()


def in_view(page, selectors):
    height = page.viewport_size["height"]
    for selector in selectors:
        box = page.locator(selector).first.bounding_box()
        assert box and box["y"] >= 0 and box["y"] + box["height"] <= height, selector


def test_the_page_can_be_used_with_a_keyboard_and_a_screen_reader(page, engine):
    assert page.locator("h1").count() == 1 and page.get_attribute("html", "lang") == "en"
    assert page.get_by_role("textbox", name="Your question").is_visible()
    for role, name in (("radio", "Base"), ("tab", "About"), ("button", "Settings")):
        assert page.get_by_role(role, name=name).first.is_visible(), name
    reached = []
    for _ in range(25):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("document.activeElement.closest('[id]')?.id + ' ' + document.activeElement.tagName")
        )
    assert any(item.startswith("question TEXTAREA") for item in reached)
    assert any("model" in item or "INPUT" in item for item in reached)
    page.focus("#question textarea")
    page.keyboard.type("One?")
    page.keyboard.press("Enter")
    wait_for_text(page, "answer to: One?")


@pytest.mark.slow  # by default: test_a_question_gets_a_streamed_answer_with_its_source
def test_right_to_left_text_reads_from_the_right(page, engine):
    ask(page, "ما هو فقر الدم؟")
    wait_for_text(page, "answer to: ما هو فقر الدم؟")
    paragraph = page.locator("#chat .user-row .prose p")
    assert paragraph.evaluate("e => getComputedStyle(e).unicodeBidi") == "plaintext"
    assert paragraph.evaluate("e => getComputedStyle(e).textAlign") == "start"
    assert engine.requests[0][0][-1]["content"] == "ما هو فقر الدم؟"
