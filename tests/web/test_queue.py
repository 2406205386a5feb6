"""Who is next, who waits how long, and that nobody is forgotten."""

from __future__ import annotations

import random
import threading
import time
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medical_assistant.web.queue import AnswerQueue, Place, QueueFull


class Line:
    """A queue whose questions come and go by name."""

    def __init__(self, **options):
        self.now_s = 0.0
        self.queue = AnswerQueue(**options, clock=lambda: self.now_s)
        self.held, self.turns = {}, {}

    def join(self, name, client=None, slots=1):
        self.held[name] = ExitStack()
        self.turns[name] = self.held[name].enter_context(self.queue.join(client or name, slots))

    def leave(self, name):
        self.held.pop(name).close()
        del self.turns[name]

    def running(self):
        return "".join(name for name, turn in self.turns.items() if turn.wait(0) is None)

    def place(self, name):
        return self.turns[name].wait(0)


def test_first_come_first_served():
    line = Line(slots=2)
    for name in "abcde":
        line.join(name)
    assert line.running() == "ab" and (line.queue.running, line.queue.waiting) == (2, 3)
    line.leave("b")
    assert line.running() == "ac" and line.place("d").ahead == 0 and line.place("e").ahead == 1
    line.leave("d")  # whoever waits may leave too
    assert line.place("e").ahead == 0


def test_a_second_question_of_a_client_waits_until_others_have_had_their_first():
    line = Line(slots=1)
    line.join("a", client="greedy")
    line.join("b", client="greedy")
    line.join("c", client="patient")
    assert line.place("c").ahead == 0 and line.place("b").ahead == 1
    line.leave("a")
    assert line.running() == "b"  # its first has been answered, and it came before "c"
    line.leave("b")
    assert line.running() == "c"


def test_a_comparison_takes_two_places_and_is_not_overtaken():
    line = Line(slots=2)
    line.join("a")
    line.join("b", slots=2)
    line.join("c")
    assert line.running() == "a"
    line.leave("a")
    assert line.running() == "b"
    line.leave("b")
    assert line.running() == "c"


def test_a_comparison_runs_where_there_is_one_slot():
    line = Line(slots=1)
    line.join("a", slots=2)
    assert line.running() == "a"


def test_the_wait_is_estimated_from_how_long_answers_took():
    line = Line(slots=2)
    line.join("a")
    line.join("b")
    line.join("c")
    assert line.place("c") == Place(0, None)
    line.now_s = 10.0
    line.leave("a")
    line.join("d")
    line.join("e")
    assert line.place("d") == Place(0, 5.0) and line.place("e") == Place(1, 10.0)
    line.now_s = 60.0
    line.leave("b")  # 60 s: the mean moves a fifth of the way from 10 to 60
    assert line.place("e") == Place(0, 10.0)


@pytest.mark.parametrize(
    ("place", "text"),
    [
        (Place(0, None), "Waiting for the model. You are next."),
        (Place(0, 1.0), "Waiting for the model. You are next: about 5 seconds."),
        (Place(1, 57.0), "Waiting for the model. One question is before yours: about 55 seconds."),
        (Place(7, 58.0), "Waiting for the model. 7 questions are before yours: about 1 minute."),
        (Place(30, 130.0), "Waiting for the model. 30 questions are before yours: about 2 minutes."),
    ],
)
def test_a_place_in_words(place, text):
    assert place.text() == text


def test_a_full_queue_refuses_and_has_room_again():
    line = Line(slots=1, max_waiting=1)
    line.join("a")
    assert not line.queue.is_full
    line.join("b")
    assert line.queue.is_full
    with pytest.raises(QueueFull, match="wait a minute"), line.queue.join("c"):
        pass
    line.leave("a")
    assert not line.queue.is_full and line.running() == "b"


def test_a_turn_is_announced_at_once():
    queue, waited_s = AnswerQueue(slots=1), []
    with ExitStack() as first:
        first.enter_context(queue.join("a"))
        with queue.join("b") as turn:

            def wait():
                started_s = time.monotonic()
                assert turn.wait(20.0) is None
                waited_s.append(time.monotonic() - started_s)

            thread = threading.Thread(target=wait)
            thread.start()
            assert turn.wait(0.1) == Place(0, None)
            first.close()
            thread.join(10)
    assert 0.1 <= waited_s[0] < 5


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 2)), max_size=30), st.integers(1, 4), st.randoms())
def test_everybody_is_served_and_never_more_than_the_slots(questions, slots, chance: random.Random):
    line = Line(slots=slots)
    for number, (client, needed) in enumerate(questions):
        line.join(number, client, needed)
    while line.turns:
        running = [name for name, turn in line.turns.items() if turn.wait(0) is None]
        assert running and sum(line.turns[name].slots for name in running) <= slots
        line.leave(chance.choice(running))
    assert line.queue.running == line.queue.waiting == 0
