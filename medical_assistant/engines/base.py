"""The engine protocol: all that the app and the evaluation know of a model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from medical_assistant.errors import AdapterError
from medical_assistant.prompts import Message

if TYPE_CHECKING:
    from medical_assistant.models.adapter import Adapter


@dataclass(frozen=True)
class Options:
    """How to answer one request."""

    adapter: bool = True  # LoRA on (fine-tuned) or off (base)
    max_new_tokens: int = 256
    temperature: float = 0.0  # 0 is greedy
    top_p: float = 1.0  # in (0, 1]
    seed: int = 42


@dataclass(frozen=True)
class Token:
    """New text and the natural-log probability the model gave it (of the token, at temperature 1).

    The text is empty while a character is not complete, and in a keep-alive token (probability 1) while a
    long prompt is read. The probability is NaN where llama.cpp sends none.
    """

    text: str
    logprob: float
    entropy: float = math.nan  # nats, of the distribution the token is from; llama.cpp: a lower bound from its top 10


@dataclass(frozen=True)
class Answer:
    """A whole answer of `Engine.answer_all`."""

    text: str
    finish_reason: str  # "stop" or "length"
    logprobs: tuple[float, ...]  # natural logarithm, one a token
    entropies: tuple[float, ...]  # nats, one a token
    seconds: float  # from the request to the last token, waiting for others in the batch included


@dataclass(frozen=True)
class EngineInfo:
    """Which engine, model and adapter answer; shown with each answer."""

    engine: str  # "llama_cpp" or "transformers"
    model: str  # preset name, Hub id or path, as asked for
    adapter: str | None  # folder or repository; None when only the base is loaded
    adapter_revision: str | None  # commit hash on the Hub, or the first 12 hex digits of the weights' SHA-256

    @classmethod
    def of(cls, engine: str, model: str, adapter: Adapter | None) -> EngineInfo:
        """Return the description of an engine that has loaded `adapter`, or the base alone."""
        return cls(engine, model, adapter.name if adapter else None, adapter.revision if adapter else None)

    def check_adapter(self, options: Options) -> None:
        """Raise `AdapterError` when `options` ask for an adapter and none is loaded."""
        if options.adapter and self.adapter is None:
            raise AdapterError("No adapter is loaded: choose the base model, or load an adapter.")


class Engine(Protocol):
    """Safe for concurrent calls. Closing the iterator of `stream` stops the computation."""

    info: EngineInfo
    weights: str  # "as served", or which copies of them
    context_tokens: int  # prompt and answer together, for one request

    def stream(self, messages: Sequence[Message], options: Options) -> Iterator[Token]:
        """Yield new text as it is made. The iterator's return value (`StopIteration.value`) is
        the finish reason: "stop" (the model ended by itself) or "length".

        Raises `EngineError` when the engine fails, `AdapterError` when `options.adapter` is on
        and no adapter is loaded: the base never answers in its place.
        """
        ...

    def answer_all(self, conversations: Sequence[Sequence[Message]], options: Options) -> Iterator[tuple[int, Answer]]:
        """Yield (index in `conversations`, whole answer) as the answers are done, computed in batches.

        Errors: as `stream`. Closing the iterator waits for no answer that has not begun.
        """
        ...

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Return the number of prompt tokens of `messages` under the model's chat template."""
        ...

    def close(self) -> None:
        """Free the model. Streams in progress end with `EngineError`."""
        ...
