"""Who is next: a fair queue in front of the model, with a visible place in it and an estimated wait.

It stands in place of Gradio's own queue, which knows a place but shows it as "queue: 3/7" in a corner, takes a
comparison of two models for one answer, and serves a client's second question before another's first.
"""

from __future__ import annotations

import threading
import time
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


class Ticket:
    """One question in the queue."""

    def __init__(self, queue: AnswerQueue, client: str, slots: int) -> None:
        self.client = client
        self.slots = slots
        self.started_s: float | None = None
        self._queue = queue

    def wait(self, limit_s: float) -> Place | None:
        """Return None as soon as the model is free for this question, its place after `limit_s` seconds without."""
        return self._queue.wait(self, limit_s)


class AnswerQueue:
    """At most `slots` answers at once and `max_waiting` questions that wait. Thread-safe; `clock` returns seconds.

    First come, first served, but a client's second question waits until its first has been answered while others
    wait. Nobody overtakes the one in front, who may need two slots, so nobody waits for ever.
    """

    def __init__(
        self, slots: int = 4, max_waiting: int = MAX_WAITING, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.slots = slots
        self._max_waiting = max_waiting
        self._clock = clock
        self._turns: list[Ticket] = []  # running and waiting, in the order in which they came
        self._mean_s: float | None = None  # that an answer holds its slots
        # Its lock is reentrant: the garbage collector may end a dropped answer in a thread that holds it.
        self._changed = threading.Condition()

    @property
    def running(self) -> int:
        """The number of answers that are being written."""
        return sum(turn.started_s is not None for turn in list(self._turns))

    @property
    def waiting(self) -> int:
        """The number of questions that wait."""
        return sum(turn.started_s is None for turn in list(self._turns))

    @property
    def is_full(self) -> bool:
        """Whether one more question would be refused."""
        return self.waiting >= self._max_waiting

    @contextmanager
    def join(self, client: str, slots: int = 1) -> Iterator[Ticket]:
        """Stand in line for as long as the block runs, for `slots` answers at once (not more than there are).

        Raises `QueueFull` where too many wait.
        """
        turn = Ticket(self, client, min(slots, self.slots))
        with self._changed:
            if self.is_full:
                raise QueueFull(BUSY)
            self._turns.append(turn)
            self._start_next()
        try:
            yield turn
        finally:
            with self._changed:
                self._turns.remove(turn)
                if turn.started_s is not None:
                    self._learn(self._clock() - turn.started_s)
                self._start_next()

    def wait(self, turn: Ticket, limit_s: float) -> Place | None:
        """As `Ticket.wait`."""
        with self._changed:
            self._changed.wait_for(lambda: turn.started_s is not None, limit_s)
            return None if turn.started_s is not None else self._place(turn)

    def _learn(self, seconds: float) -> None:
        share = 1.0 if self._mean_s is None else NEWEST_SHARE
        self._mean_s = share * seconds + (1 - share) * (self._mean_s or 0.0)

    def _start_next(self) -> None:
        free = self.slots - sum(turn.slots for turn in self._turns if turn.started_s is not None)
        for turn in self._in_line():
            if turn.slots > free:
                break
            turn.started_s = self._clock()
            free -= turn.slots
        self._changed.notify_all()

    def _in_line(self) -> list[Ticket]:
        """Return who waits, the next one first: clients with fewer questions before theirs, then by arrival."""
        earlier: dict[str, int] = {}
        ranked = []
        for turn in self._turns:
            rank = earlier.get(turn.client, 0)
            earlier[turn.client] = rank + 1
            if turn.started_s is None:
                ranked.append((rank, turn))
        return [turn for _, turn in sorted(ranked, key=lambda entry: entry[0])]

    def _place(self, turn: Ticket) -> Place:
        line = self._in_line()
        ahead = line.index(turn)
        slots_needed = sum(other.slots for other in line[: ahead + 1])
        # Slots become free one after the other, on average one in mean / slots.
        return Place(ahead, None if self._mean_s is None else self._mean_s * slots_needed / self.slots)
