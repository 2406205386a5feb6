"""What an engine answers, read to its end."""

from __future__ import annotations

from collections.abc import Sequence

from medical_assistant.engines.base import Engine, Options, Token
from medical_assistant.prompts import Message


def read_stream(engine: Engine, options: Options, messages: Sequence[Message]) -> tuple[list[Token], str]:
    """Return (tokens, finish reason)."""
    tokens, stream = [], engine.stream(messages, options)
    while True:
        try:
            tokens.append(next(stream))
        except StopIteration as stop:
            return tokens, stop.value


def read_text(engine: Engine, options: Options, messages: Sequence[Message]) -> str:
    return "".join(token.text for token in read_stream(engine, options, messages)[0])
