"""Who is next, who waits how long, and that nobody is forgotten."""

from __future__ import annotations

import random
import threading
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medical_assistant.web.queue import AnswerQueue, Place, QueueFull


class Questions:
    """A queue whose questions come and go by name."""

    def __init__(self, **options):
        self.now_s = 0.0
        self.queue = AnswerQueue(**options, clock=lambda: self.now_s)
        self.held, self.tickets = {}, {}

    def join(self, name, client=None, slots=1):
        self.held[name] = ExitStack()
        self.tickets[name] = self.held[name].enter_context(self.queue.join(client or name, slots))

    def leave(self, name):
        self.held.pop(name).close()
        del self.tickets[name]

    def running(self):
        return "".join(name for name, ticket in self.tickets.items() if self.queue.wait(ticket, 0) is None)

    def place(self, name):
        return self.queue.wait(self.tickets[name], 0)


def test_first_come_first_served():
    questions = Questions(slots=2)
    for name in "abcde":
        questions.join(name)
    assert questions.running() == "ab" and (questions.queue.running, questions.queue.waiting) == (2, 3)
    questions.leave("b")
    assert questions.running() == "ac" and questions.place("d").ahead == 0 and questions.place("e").ahead == 1
    questions.leave("d")  # whoever waits may leave too
    assert questions.place("e").ahead == 0


def test_a_second_question_of_a_client_waits_until_others_have_had_their_first():
    questions = Questions(slots=1)
    questions.join("a", client="greedy")
    questions.join("b", client="greedy")
    questions.join("c", client="patient")
    assert questions.place("c").ahead == 0 and questions.place("b").ahead == 1
    questions.leave("a")
    assert questions.running() == "b"  # its first has been answered, and it came before "c"
    questions.leave("b")
    assert questions.running() == "c"


def test_a_comparison_takes_two_places_and_is_not_overtaken():
    questions = Questions(slots=2)
    questions.join("a")
    questions.join("b", slots=2)
    questions.join("c")
    assert questions.running() == "a"
    questions.leave("a")
    assert questions.running() == "b"
    questions.leave("b")
    assert questions.running() == "c"


def test_a_comparison_runs_where_there_is_one_slot():
    questions = Questions(slots=1)
    questions.join("a", slots=2)
    assert questions.running() == "a"


def test_the_wait_is_estimated_from_how_long_answers_took():
    questions = Questions(slots=2)
    questions.join("a")
    questions.join("b")
    questions.join("c")
    assert questions.place("c") == Place(0, None)
    questions.now_s = 10.0
    questions.leave("a")
    questions.join("d")
    questions.join("e")
    assert questions.place("d") == Place(0, 5.0) and questions.place("e") == Place(1, 10.0)
    questions.now_s = 60.0
    questions.leave("b")  # 60 s: the mean moves a fifth of the way from 10 to 60
    assert questions.place("e") == Place(0, 10.0)


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
    questions = Questions(slots=1, max_waiting=1)
    questions.join("a")
    assert not questions.queue.is_full
    questions.join("b")
    assert questions.queue.is_full
    with pytest.raises(QueueFull, match="wait a minute"), questions.queue.join("c"):
        pass
    questions.leave("a")
    assert not questions.queue.is_full and questions.running() == "b"


def test_a_free_model_is_announced_at_once():
    queue, announced = AnswerQueue(slots=1), threading.Event()
    with ExitStack() as first:
        first.enter_context(queue.join("a"))
        with queue.join("b") as ticket:

            def wait():
                assert queue.wait(ticket, 1e6) is None
                announced.set()

            thread = threading.Thread(target=wait, daemon=True)
            thread.start()
            assert queue.wait(ticket, 0.05) == Place(0, None) and not announced.is_set()
            first.close()
            thread.join()
    assert announced.is_set()


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 2)), max_size=30), st.integers(1, 4), st.randoms())
def test_everybody_is_served_and_never_more_than_the_slots(asked, slots, chance: random.Random):
    questions = Questions(slots=slots)
    for number, (client, needed) in enumerate(asked):
        questions.join(number, client, needed)
    while questions.tickets:
        running = [name for name, ticket in questions.tickets.items() if questions.queue.wait(ticket, 0) is None]
        assert running and sum(questions.tickets[name].slots for name in running) <= slots
        questions.leave(chance.choice(running))
    assert questions.queue.running == questions.queue.waiting == 0
