"""A scripted engine for tests: it answers from a function, and records what it was asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from medical_assistant.engines.base import EngineInfo, Options, Token
from medical_assistant.errors import AdapterError, EngineError

Script = Callable[[Sequence[dict[str, str]], Options], Iterable[str]]


def default_script(messages: Sequence[dict[str, str]], options: Options) -> Iterable[str]:
    """A short answer that names the model and repeats the question."""
    name = "fine-tuned" if options.adapter else "base"
    return f"This is the {name} answer to: {messages[-1]['content']}".replace(" ", "| ").split("|")


class StubEngine:
    """Answers with the pieces of `script`; a piece that is an exception is raised.

    `requests` holds the (messages, options) of every call, `closed` and `finished` count how the
    streams ended, `running` counts the streams that are open now.
    """

    weights = "as served"

    def __init__(
        self,
        script: Script = default_script,
        adapter: str | None = "stub/adapter",
        delay_s: float = 0.0,
        context_tokens: int = 2048,
        finish_reason: str = "stop",
    ) -> None:
        self.info = EngineInfo("stub", "stub-model", adapter, "0123456789abcdef" if adapter else None)
        self.context_tokens = context_tokens
        self.script = script
        self.delay_s = delay_s
        self.finish_reason = finish_reason
        self.lock = threading.Lock()
        self.restarts = 0
        self.reset()

    def reset(self) -> None:
        self.requests: list[tuple[list[dict[str, str]], Options]] = []
        self.closed = self.finished = self.running = 0
        self.closed_at_s = 0.0

    def stream(self, messages: Sequence[dict[str, str]], options: Options) -> Iterator[Token]:
        if options.adapter and self.info.adapter is None:
            raise AdapterError("No adapter is loaded.")
        with self.lock:
            self.requests.append(([dict(message) for message in messages], options))
        return self._stream(messages, options)

    def _stream(self, messages, options):
        with self.lock:
            self.running += 1
        try:
            for piece in self.script(messages, options):
                if isinstance(piece, Exception):
                    self.restarts += isinstance(piece, EngineError)
                    raise piece
                time.sleep(self.delay_s)
                yield Token(piece, -0.1)
        except GeneratorExit:
            self.closed += 1
            self.closed_at_s = time.monotonic()
            raise
        finally:
            with self.lock:
                self.running -= 1
        self.finished += 1
        return self.finish_reason

    def count_tokens(self, messages: Sequence[dict[str, str]]) -> int:
        return sum(4 + len(message["content"].split()) for message in messages)

    def close(self) -> None:
        pass


def endless(messages: Sequence[dict[str, str]], options: Options) -> Iterator[str]:
    """Words without end: only Stop ends it."""
    count = 0
    while True:
        count += 1
        yield f"word{count} "
