"""A fair queue in front of the model, with a visible place in it and an estimated wait.

It replaces Gradio's own queue, which knows a place but shows it as "queue: 3/7" in a corner, takes a
comparison of two models for one answer, and serves a client's second question before another's first.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from medical_assistant.errors import UserError

MAX_WAITING = 64
BUSY = "Many people are asking at the moment: wait a minute, then send it again."
NEWEST_SHARE = 0.2  # of the newest answer in the mean: the last ten answers or so count


class QueueFull(UserError):
    """As many questions wait as may wait."""


@dataclass(frozen=True)
class Place:
    """`ahead`: questions that come before. `wait_s`: the estimated wait, None before any answer has been timed."""

    ahead: int
    wait_s: float | None

    def text(self) -> str:
        """Return the place in words."""
        before = {0: "You are next", 1: "One question is before yours"}.get(
            self.ahead, f"{self.ahead} questions are before yours"
        )
        return f"Waiting for the model. {before}{_about(self.wait_s)}."


def _about(wait_s: float | None) -> str:
    if wait_s is None:
        return ""
    if wait_s < 57.5:
        return f": about {max(5, 5 * round(wait_s / 5))} seconds"
    minutes = round(wait_s / 60)
    return f": about {minutes} minute{'s' * (minutes > 1)}"


@dataclass(eq=False)
class Ticket:
    """One question in the queue. `started_s` is None while it waits."""

    client: str
    slots: int
    started_s: float | None = None


class AnswerQueue:
    """At most `slots` answers at once and `max_waiting` questions that wait. Thread-safe; `clock` returns seconds.

    First come, first served, but a client's second question waits until its first has been answered while others
    wait. Nobody overtakes the first in the queue, who may need two slots, so nobody waits for ever.
    """

    def __init__(
        self, slots: int = 4, max_waiting: int = MAX_WAITING, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.slots = slots
        self._max_waiting = max_waiting
        self._clock = clock
        self._tickets: list[Ticket] = []  # running and waiting, in the order in which they came
        self._mean_s: float | None = None  # that an answer holds its slots
        # Its lock is reentrant: the garbage collector may end a dropped answer in a thread that holds it.
        self._changed = threading.Condition()

    @property
    def running(self) -> int:
        """The number of answers that are being written."""
        return sum(ticket.started_s is not None for ticket in list(self._tickets))

    @property
    def waiting(self) -> int:
        """The number of questions that wait."""
        return sum(ticket.started_s is None for ticket in list(self._tickets))

    @property
    def is_full(self) -> bool:
        """Whether one more question would be refused."""
        return self.waiting >= self._max_waiting

    @contextmanager
    def join(self, client: str, slots: int = 1) -> Iterator[Ticket]:
        """Wait or run for as long as the block runs, for `slots` answers at once (not more than there are).

        Raises `QueueFull` where too many wait.
        """
        ticket = Ticket(client, min(slots, self.slots))
        with self._changed:
            if self.is_full:
                raise QueueFull(BUSY)
            self._tickets.append(ticket)
            self._start_next()
        try:
            yield ticket
        finally:
            with self._changed:
                self._tickets.remove(ticket)
                if ticket.started_s is not None:
                    held_s = self._clock() - ticket.started_s
                    earlier_s = held_s if self._mean_s is None else self._mean_s
                    self._mean_s = NEWEST_SHARE * held_s + (1 - NEWEST_SHARE) * earlier_s
                self._start_next()

    def wait(self, ticket: Ticket, limit_s: float) -> Place | None:
        """Return None as soon as the model is free for the question, its place after `limit_s` seconds without."""
        with self._changed:
            self._changed.wait_for(lambda: ticket.started_s is not None, limit_s)
            return None if ticket.started_s is not None else self._place(ticket)

    def _start_next(self) -> None:
        free = self.slots - sum(ticket.slots for ticket in self._tickets if ticket.started_s is not None)
        for ticket in self._in_order():
            if ticket.slots > free:
                break
            ticket.started_s = self._clock()
            free -= ticket.slots
        self._changed.notify_all()

    def _in_order(self) -> list[Ticket]:
        """Return who waits, the next one first: clients with fewer questions before theirs, then by arrival."""
        earlier: Counter[str] = Counter()
        ranked = []
        for ticket in self._tickets:
            if ticket.started_s is None:
                ranked.append((earlier[ticket.client], ticket))
            earlier[ticket.client] += 1
        return [ticket for _, ticket in sorted(ranked, key=lambda entry: entry[0])]

    def _place(self, ticket: Ticket) -> Place:
        order = self._in_order()
        ahead = order.index(ticket)
        slots_needed = sum(other.slots for other in order[: ahead + 1])
        # Slots become free one after the other, on average one in mean / slots.
        return Place(ahead, None if self._mean_s is None else self._mean_s * slots_needed / self.slots)
