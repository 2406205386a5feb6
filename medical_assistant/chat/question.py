"""A message that the safety rules have read. Nothing else gets from a person to a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import InitVar, dataclass

from medical_assistant.errors import UserError
from medical_assistant.prompts import Message, validate_question
from medical_assistant.safety.screening import Screening, screen

_PREPARED = object()  # only `prepare` has it


@dataclass(frozen=True, eq=False, repr=False)  # no repr: it would carry a person's words into a log
class Question:
    """One message, read once and handed on. Made by `prepare` alone: the constructor raises `TypeError`.

    `raw`: what was sent. `clean`: what a model reads, `prompts.clean_text` of `raw`; empty where no model may answer.
    `history`: the messages before it, of the user and the assistant only, oldest first. `screening`: what the safety
    rules found. `refusal`: why nothing answers it, for the page; empty where the rules or a model do.
    """

    raw: str
    clean: str
    history: tuple[Message, ...]
    screening: Screening
    refusal: str
    _key: InitVar[object]

    def __post_init__(self, _key: object) -> None:
        if _key is not _PREPARED:
            raise TypeError("A Question comes from chat.question.prepare, which screens the message.")

    def is_of(self, raw: str, history: Sequence[Message]) -> bool:
        """Return whether this is `raw` asked after `history`, so that it need not be read again."""
        return self.raw == raw and list(self.history) == _of_the_conversation(history)


def prepare(raw: str, history: Iterable[Message] = (), country: str = "") -> Question:
    """Screen and validate a message, whatever its length or form: the one place where that happens.

    `history` holds `{"role", "content"}` in order; other roles than user and assistant are dropped. `country`
    (ISO 3166-1) chooses the emergency numbers. Raises `TypeError` for a message that is not a text.
    """
    if not isinstance(raw, str):
        raise TypeError(f"A message is a str, not {type(raw).__name__}.")
    # Half of an emoji, as some keyboards send it, is no valid text: neither a model nor a server takes it.
    raw = raw.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    earlier = _of_the_conversation(history)
    screening = screen(raw, earlier, country)
    clean = refusal = ""
    if not screening.answer:
        try:
            clean = validate_question(raw)
        except UserError as error:
            refusal = str(error)
    return Question(raw, clean, tuple(earlier), screening, refusal, _PREPARED)


def _of_the_conversation(messages: Iterable[Message]) -> list[Message]:
    return [
        {"role": message["role"], "content": message["content"]}
        for message in messages
        if message["role"] in ("user", "assistant")
    ]
