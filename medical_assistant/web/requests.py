"""What the app keeps of an answer: counts and one log line, never text and never an address.

`RequestTracker.watch` stands between a request and `chat.Assistant`: it admits the client or refuses it, lets it
wait in the queue, counts how the answer ended, and knows at the end of the process what still runs.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any, TypeVar

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from medical_assistant.chat.assistant import Reply
from medical_assistant.errors import UserError
from medical_assistant.web.limits import ClientKeys, ClientLimits, LimitError
from medical_assistant.web.queue import AnswerQueue, QueueFull, Ticket

logger = logging.getLogger(__name__)

OUTCOMES = (
    "answered",
    "emergency",  # the safety rules answered
    "refused",  # a request for harm, a message that cannot be answered, or the app is ending
    "limited",  # the client asks too much, or too many wait
    "failed",  # the engine stopped on the way
    "stopped",  # by the user, or the page was closed
)
FIRST_TEXT_BOUNDS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
ENDING = "The app is restarting and takes no new questions: ask again in a minute."
# Between the last words of an answer and the end: Gradio still sends them to the page.
FLUSH_S = 0.5
# A client that leaves is noticed at the next update, so there is one each second, mostly the same one again.
WAIT_UPDATE_S = 1.0

Update = TypeVar("Update", Reply, tuple[Reply, ...])

prometheus_client.disable_created_metrics()  # one series more for each, which says when the app started


class Metrics:
    """Counts since the start, for Prometheus, in an own registry. Thread-safe. The only label is the outcome."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        kept: dict[str, Any] = {"namespace": "medical_assistant", "registry": self._registry}
        requests = Counter("requests", "Requests by how they ended.", ["outcome"], **kept)
        # All made here: later, the lock of `labels` could be held where the garbage collector ends a dropped answer.
        self._requests = {outcome: requests.labels(outcome) for outcome in OUTCOMES}
        self._first_text = Histogram(
            "first_text_seconds", "From the question to the first text of its answer.", buckets=FIRST_TEXT_BOUNDS_S,
            **kept,
        )  # fmt: skip
        self._tokens = Counter("tokens", "Tokens of all answers.", **kept)

    def add(self, outcome: str, tokens: int = 0, first_text_s: float | None = None) -> None:
        """Count one request with an outcome of `OUTCOMES`. `first_text_s` is None where no text came."""
        self._requests[outcome].inc()
        self._tokens.inc(tokens)
        if first_text_s is not None:
            self._first_text.observe(first_text_s)

    def text(self, running: int = 0, waiting: int = 0, restarts: int = 0) -> str:
        """Return everything in Prometheus' text format 0.0.4; the arguments are what counts at this moment."""
        now = CollectorRegistry()
        kept: dict[str, Any] = {"namespace": "medical_assistant", "registry": now}
        Counter("engine_restarts", "Times the model process died.", **kept).inc(restarts)
        Gauge("running", "Answers that are being written.", **kept).set(running)
        Gauge("waiting", "Questions that wait for the model.", **kept).set(waiting)
        return "".join(prometheus_client.generate_latest(registry).decode() for registry in (self._registry, now))


class RequestTracker:
    """All answers of the app, whoever asks. Thread-safe. No `limits`: everybody may ask as much as they like.

    `clock` returns seconds.
    """

    def __init__(
        self,
        limits: ClientLimits | None = None,
        keys: ClientKeys | None = None,
        clock: Callable[[], float] = time.monotonic,
        queue: AnswerQueue | None = None,
    ) -> None:
        self.metrics = Metrics()
        self.queue = queue or AnswerQueue()
        self.ending = False
        self._limits = limits
        self._keys = keys or ClientKeys()
        self._clock = clock

    @property
    def running(self) -> int:
        """The number of answers that are being written or wait for that."""
        return self.queue.running + self.queue.waiting

    def watch(self, updates: Iterator[Update], request: Any) -> Generator[Update, None, None]:
        """Yield `updates`, the generator of `Assistant.answer` or `answer_each`; count and log how it ends.

        `request` is a `gradio.Request` or None. Closing this closes `updates`. What the safety rules answer is
        never limited; neither that nor the library's answer waits for the model. Waiting begins with the first update
        of a model's answer, which the assistant gives before the model works: in the queue that update comes again
        with the place in `waiting`. Raises `LimitError` as `ClientLimits.enter`, `QueueFull`, `UserError` when the app
        is ending, and what `updates` raises.
        """
        outcome, tokens, first_text_s, started_s = "failed", 0, None, self._clock()
        by_rules = admitted = failed = False
        try:
            with closing(updates), ExitStack() as held:  # type: ignore[type-var]  # the assistant returns generators
                for update in updates:
                    replies = update if isinstance(update, tuple) else (update,)
                    for reply in replies:
                        if reply.origin == "rules":
                            by_rules, outcome = True, "emergency" if reply.emergency else "refused"
                    if not admitted and not by_rules:
                        if self.ending:
                            raise UserError(ENDING)
                        client = self._keys.of(request)
                        if self._limits is not None:
                            held.enter_context(self._limits.enter(client))
                        n_slots = sum(reply.origin == "model" for reply in replies)
                        if n_slots:
                            ticket = held.enter_context(self.queue.join(client, n_slots))
                            yield from self._wait(ticket, update)
                        admitted = True
                    failed = any(reply.failed for reply in replies)
                    tokens = sum(reply.tokens for reply in replies)
                    if admitted and first_text_s is None and any(reply.text for reply in replies):
                        first_text_s = self._clock() - started_s
                    yield update
            if not by_rules and not failed:
                outcome = "answered"
        except (LimitError, QueueFull):
            outcome = "limited"
            raise
        except UserError:
            outcome = "refused"
            raise
        except GeneratorExit:
            if not by_rules:
                outcome = "stopped"
            raise
        finally:
            self.note(outcome, self._clock() - started_s, tokens, first_text_s)

    def note(self, outcome: str, seconds: float = 0.0, tokens: int = 0, first_text_s: float | None = None) -> None:
        """Count and log a request that has ended, with an outcome of `OUTCOMES`.

        The page calls it for what it answered or refused at once, without the model.
        """
        self.metrics.add(outcome, tokens, first_text_s)
        first_text = "none" if first_text_s is None else f"{first_text_s:.2f} s"
        answer_id = secrets.token_hex(6)  # random: it says nothing of who asked
        logger.info("answer %s: %s, %.2f s, first text %s, %d tokens", answer_id, outcome, seconds, first_text, tokens)

    def _wait(self, ticket: Ticket, update: Update) -> Iterator[Update]:
        """Yield `update` with the place in the queue until the model is free for it."""
        while place := self.queue.wait(ticket, WAIT_UPDATE_S):
            if self.ending:
                raise UserError(ENDING)
            text = place.text()
            if isinstance(update, tuple):
                yield tuple(  # type: ignore[misc]
                    replace(reply, waiting=text) if reply.origin == "model" else reply for reply in update
                )
            else:
                yield replace(update, waiting=text)

    def end(self, limit_s: float) -> bool:
        """Admit no answer from now on and wait for those that run, `limit_s` at most; return whether all ended.

        Takes no lock and polls: it runs in a signal handler.
        """
        self.ending = True
        end_s = time.monotonic() + limit_s
        had_answers = self.running > 0
        while self.running and time.monotonic() < end_s:
            time.sleep(0.05)
        if had_answers and not self.running:
            time.sleep(FLUSH_S)
        return not self.running
