"""What is kept of an answer: how it ended, how long it took, and not one word of it."""

from __future__ import annotations

import logging
import re
import threading
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import repeat
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medical_assistant.chat.assistant import RULES_LABEL, Assistant, Reply
from medical_assistant.chat.question import prepare
from medical_assistant.errors import EngineError, UserError
from medical_assistant.web.limits import ClientLimits, LimitError
from medical_assistant.web.queue import AnswerQueue
from medical_assistant.web.requests import FIRST_TEXT_BOUNDS_S, OUTCOMES, Metrics, RequestTracker
from tests.support.stub_engine import StubEngine, endless

EMERGENCY = "I have crushing chest pain and I cannot breathe"
CLIENT = SimpleNamespace(headers={}, client=SimpleNamespace(host="203.0.113.77"))
QUESTION = "What is planted-word-7261?"


@pytest.fixture
def tracker():
    return RequestTracker(ClientLimits())


def answer(engine, message=QUESTION):
    return Assistant(engine).answer(prepare(message), "Base")


def answer_each(engine, message=QUESTION):
    return Assistant(engine).answer_each(prepare(message))


def ask(tracker, engine, message=QUESTION, client=CLIENT):
    return list(tracker.watch(answer(engine, message), client))


def requests(tracker):
    """The outcomes that were counted, by name."""
    found = re.findall(r'requests_total\{outcome="(\w+)"\} (\S+)', tracker.metrics.text())
    return {outcome: int(float(count)) for outcome, count in found if float(count)}


def value(text, name):
    return float(re.search(rf"^medical_assistant_{re.escape(name)} (\S+)$", text, re.MULTILINE)[1])


# Outcomes


def test_an_answer_passes_through_and_is_counted(tracker):
    replies = ask(tracker, StubEngine())
    assert replies[-1].text == f"This is the base answer to: {QUESTION}"
    assert requests(tracker) == {"answered": 1} and tracker.running == 0
    assert value(tracker.metrics.text(), "first_text_seconds_count") == 1


def test_an_emergency_is_answered_past_every_limit():
    tracker, engine = RequestTracker(ClientLimits(per_minute=1)), StubEngine()
    ask(tracker, engine)
    engine.reset()
    tracker.ending = True
    assert "emergency number" in ask(tracker, engine, EMERGENCY)[-1].text
    both = list(tracker.watch(answer_each(engine, EMERGENCY), CLIENT))
    assert all("emergency number" in reply.text for reply in both[-1])
    assert requests(tracker) == {"answered": 1, "emergency": 2} and engine.requests == []


def test_a_message_that_cannot_be_answered_is_refused(tracker):
    with pytest.raises(UserError, match="empty"):
        ask(tracker, StubEngine(), " ")
    assert requests(tracker) == {"refused": 1}


def test_a_client_that_asks_too_much_is_limited_and_the_model_is_not_called():
    tracker, engine = RequestTracker(ClientLimits(per_minute=1)), StubEngine()
    ask(tracker, engine)
    with pytest.raises(LimitError, match="1 question a minute"):
        ask(tracker, engine)
    ask(tracker, engine, client=SimpleNamespace(headers={}, client=SimpleNamespace(host="203.0.113.78")))
    assert requests(tracker) == {"answered": 2, "limited": 1} and len(engine.requests) == 2


def test_an_engine_that_fails_on_the_way_is_counted(tracker):
    replies = ask(tracker, StubEngine(lambda messages, options: ["Half ", EngineError("It died: ask again.")]))
    assert replies[-1].failed and replies[-1].text.strip() == "Half"
    assert requests(tracker) == {"failed": 1}


def test_an_unexpected_error_is_counted_and_passed_on(tracker):
    def broken():
        yield Reply("", "Base")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(tracker.watch(broken(), CLIENT))
    assert requests(tracker) == {"failed": 1} and tracker.running == 0


def test_closing_stops_the_model_and_frees_the_clients_place():
    tracker, engine = (
        RequestTracker(ClientLimits(concurrent=1)),
        StubEngine(lambda messages, options: repeat("A word. ")),
    )
    with closing(tracker.watch(answer(engine), CLIENT)) as updates:
        while not next(updates).text:
            pass
        with pytest.raises(LimitError, match="1 answer at a time"):
            ask(tracker, engine)
    assert engine.running == 0 and engine.closed == 1 and tracker.running == 0
    engine.script = lambda messages, options: ["short"]
    ask(tracker, engine)
    assert requests(tracker) == {"stopped": 1, "limited": 1, "answered": 1}


def test_a_comparison_is_one_answer(tracker):
    updates = list(tracker.watch(answer_each(StubEngine()), CLIENT))
    assert [reply.text.split()[3] for reply in updates[-1]] in (["fine-tuned", "base"], ["base"])
    assert requests(tracker) == {"answered": 1}


def test_a_question_waits_its_turn_and_is_told_its_place(monkeypatch):
    monkeypatch.setattr("medical_assistant.web.requests.WAIT_UPDATE_S", 0.01)
    tracker, engine = RequestTracker(queue=AnswerQueue(slots=2)), StubEngine()
    with ExitStack() as others:
        others.enter_context(tracker.queue.join("another", slots=2))
        single = tracker.watch(answer(engine), CLIENT)
        both = tracker.watch(answer_each(engine), CLIENT)
        assert "You are next" in next(single).waiting
        assert all("One question is before yours" in reply.waiting for reply in next(both))
        assert engine.requests == [] and (tracker.queue.running, tracker.queue.waiting) == (1, 2)
        list(tracker.watch(answer(engine, EMERGENCY), CLIENT))  # does not wait
    assert [list(single)[-1].waiting, *(reply.waiting for reply in list(both)[-1])] == ["", "", ""]
    assert requests(tracker) == {"emergency": 1, "answered": 2} and len(engine.requests) == 3
    assert tracker.queue.running == tracker.queue.waiting == tracker.running == 0


def test_who_leaves_while_waiting_never_reaches_the_model(monkeypatch):
    monkeypatch.setattr("medical_assistant.web.requests.WAIT_UPDATE_S", 0.01)
    tracker, engine = RequestTracker(queue=AnswerQueue(slots=1)), StubEngine()
    with tracker.queue.join("another"):
        waiting = tracker.watch(answer(engine), CLIENT)
        next(waiting)
        waiting.close()
        assert tracker.queue.waiting == 0
        waiting = tracker.watch(answer(engine), CLIENT)
        next(waiting)
        tracker.ending = True
        with pytest.raises(UserError, match="restarting"):
            next(waiting)
    assert requests(tracker) == {"stopped": 1, "refused": 1} and engine.requests == []


def test_a_full_queue_is_said_and_counted():
    tracker, engine = RequestTracker(queue=AnswerQueue(slots=1, max_waiting=0)), StubEngine()
    with pytest.raises(UserError, match="Many people are asking"):
        ask(tracker, engine)
    assert requests(tracker) == {"limited": 1} and engine.requests == []


def test_a_request_for_harm_is_refused_past_the_limits():
    tracker = RequestTracker(ClientLimits(per_minute=1))
    ask(tracker, StubEngine())
    replies = [Counted("Not this.", RULES_LABEL, emergency=False, origin="rules")]
    assert list(tracker.watch((reply for reply in replies), CLIENT)) == replies
    assert requests(tracker) == {"answered": 1, "refused": 1}
    assert value(tracker.metrics.text(), "first_text_seconds_count") == 1


def test_without_limits_anybody_may_ask_on(tracker):
    tracker = RequestTracker()
    for _ in range(30):
        ask(tracker, StubEngine())
    assert requests(tracker) == {"answered": 30}


def test_what_the_page_answers_at_once_is_counted(tracker):
    tracker.note("emergency")
    tracker.note("refused")
    assert requests(tracker) == {"emergency": 1, "refused": 1}


# Figures


@dataclass(frozen=True)
class Counted(Reply):
    tokens: int = 0
    emergency: bool = False


def test_tokens_and_the_first_text_are_measured():
    clock = iter([100.0, 103.0, 110.0, 110.0])  # start, first text, end
    tracker = RequestTracker(ClientLimits(), clock=lambda: next(clock))
    grown = [Counted("", "Base"), Counted("a", "Base", tokens=1), Counted("a b", "Base", tokens=2)]
    list(tracker.watch((reply for reply in grown), CLIENT))
    text = tracker.metrics.text()
    assert value(text, "tokens_total") == 2 and value(text, "first_text_seconds_sum") == 3
    assert value(text, 'first_text_seconds_bucket{le="2.5"}') == 0
    assert value(text, 'first_text_seconds_bucket{le="5.0"}') == 1


def test_the_text_is_what_prometheus_reads():
    metrics = Metrics()
    metrics.add("answered", 12, 0.3)
    text = metrics.text(running=1, waiting=2, restarts=3)
    assert text.endswith("\n")
    names = re.findall(r"^# TYPE (medical_assistant_\w+) (?:counter|gauge|histogram)$", text, re.MULTILINE)
    for line in text.splitlines():
        if not line.startswith("#"):
            assert re.fullmatch(r'medical_assistant_\w+(\{(outcome|le)="[\w.+]+"\})? [\d.]+', line)
            assert line.startswith(tuple(names))
    for name, expected in (("running", 1), ("waiting", 2), ("engine_restarts_total", 3), ("tokens_total", 12)):
        assert value(text, name) == expected


@given(st.lists(st.floats(0, 100), max_size=30))
def test_the_histogram_adds_up(times_s):
    metrics = Metrics()
    for time_s in times_s:
        metrics.add("answered", 1, time_s)
    text = metrics.text()
    for bound in FIRST_TEXT_BOUNDS_S:
        assert value(text, f'first_text_seconds_bucket{{le="{bound}"}}') == sum(t <= bound for t in times_s)
    assert (
        value(text, 'first_text_seconds_bucket{le="+Inf"}') == value(text, "first_text_seconds_count") == len(times_s)
    )
    assert value(text, "first_text_seconds_sum") == pytest.approx(sum(times_s), abs=1e-5)


def test_many_threads_lose_no_count():
    metrics = Metrics()
    threads = [threading.Thread(target=lambda: [metrics.add("answered", 2, 0.1) for _ in range(500)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert value(metrics.text(), "tokens_total") == 8000
    assert value(metrics.text(), 'requests_total{outcome="answered"}') == 4000


# The log


@settings(max_examples=25)
@given(words=st.text(min_size=8, alphabet="bdfgkpqvwxz"), peer=st.ip_addresses())
def test_neither_text_nor_client_is_logged_or_counted(words, peer):
    records, handler = [], logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logger, level = logging.getLogger("medical_assistant"), logging.getLogger("medical_assistant").level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        tracker = RequestTracker(ClientLimits(per_minute=2))
        client = SimpleNamespace(headers={"x-forwarded-for": str(peer)}, client=SimpleNamespace(host=str(peer)))
        ask(tracker, StubEngine(lambda messages, options: [words, "!"]), f"What is {words}?", client)
        ask(tracker, StubEngine(lambda messages, options: [words, EngineError(words)]), words, client)
        with pytest.raises(LimitError):
            ask(tracker, StubEngine(), words, client)
        ask(tracker, StubEngine(), f"{EMERGENCY} {words}", client)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    # What an earlier test left running may log too, as long as it is not the text.
    assert sum(record.startswith("answer ") for record in records) == 4
    kept = "\n".join(records) + tracker.metrics.text()
    assert words not in kept and str(peer) not in kept


def test_the_log_line_has_an_id_the_outcome_and_the_figures(tracker, caplog):
    caplog.set_level(logging.INFO, logger="medical_assistant")
    for _ in range(2):
        ask(tracker, StubEngine())
    lines = [record.getMessage() for record in caplog.records]
    pattern = r"answer ([0-9a-f]{12}): answered, \d+\.\d\d s, first text \d+\.\d\d s, \d+ tokens"
    assert all(re.fullmatch(pattern, line) for line in lines) and len(lines) == 2
    assert lines[0][:19] != lines[1][:19] and "planted" not in caplog.text
    assert set(OUTCOMES) > {"answered"}


# The end


def test_at_the_end_no_answer_begins_and_running_ones_are_awaited(tracker, monkeypatch):
    monkeypatch.setattr("medical_assistant.web.requests.FLUSH_S", 0.01)
    engine = StubEngine(lambda messages, options: ["word "] * 10, delay_s=0.02)
    replies = []
    thread = threading.Thread(target=lambda: replies.extend(ask(tracker, engine)))
    thread.start()
    while not tracker.running:
        time.sleep(0.01)
    assert tracker.end(100.0) is True
    thread.join()
    assert replies[-1].text == "word " * 9 + "word"
    with pytest.raises(UserError, match="restarting.*ask again in a minute"):
        ask(tracker, engine)
    assert requests(tracker) == {"answered": 1, "refused": 1}


def test_the_end_does_not_wait_for_ever(tracker):
    engine = StubEngine(endless)
    with closing(tracker.watch(answer(engine), CLIENT)) as updates:
        next(updates)
        assert tracker.end(0.1) is False


def test_without_answers_the_end_is_at_once(tracker):
    assert tracker.end(1e6) is True
