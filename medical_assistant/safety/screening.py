"""What the fixed rules say of a message before any model: an emergency, a request for harm, or neither."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medical_assistant.prompts import Message
from medical_assistant.safety.misuse import Misuse, assess_misuse
from medical_assistant.safety.triage import Triage, assess


@dataclass(frozen=True)
class Screening:
    """The two layers' findings. In an emergency the misuse rules are not asked: help comes first."""

    triage: Triage
    misuse: Misuse = Misuse()

    @property
    def answer(self) -> str:
        """The rules' answer in Markdown in place of a model's; empty where a model may answer."""
        return self.triage.answer or self.misuse.answer


def screen(message: str, history: Sequence[Message] = (), country: str = "") -> Screening:
    """Return what the safety rules say of a message of any length or form. In the app, `chat.question.prepare` asks.

    `history` holds earlier messages, oldest first; only the user's count. `country` (ISO 3166-1) chooses the emergency
    numbers. Never raises, whatever the text.
    """
    earlier = [before["content"] for before in history if before["role"] == "user"]
    triage = assess(message, earlier, country)
    return Screening(triage) if triage.level == "emergency" else Screening(triage, assess_misuse(message, earlier))
