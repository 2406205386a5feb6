"""What the fixed rules say of a message before any model: an emergency, a request for harm, or neither."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medical_assistant.prompts import Message
from medical_assistant.safety.misuse import Misuse, assess_misuse
from medical_assistant.safety.text_reading import PreparedText
from medical_assistant.safety.triage import Triage, assess


@dataclass(frozen=True)
class Screening:
    """The two layers' findings. In an emergency the misuse rules are not asked: help comes first.

    `in_english`: the message reads as English, or as nothing else that the rules know.
    """

    triage: Triage
    misuse: Misuse = Misuse()
    in_english: bool = True

    @property
    def answer(self) -> str:
        """The rules' answer in Markdown in place of a model's; empty where a model may answer."""
        return self.triage.answer or self.misuse.answer


def screen(message: str | PreparedText, history: Sequence[Message] = (), country: str = "") -> Screening:
    """Return what the safety rules say; in the app `chat.question.prepare` asks.

    A caller that reads the message elsewhere too passes it as `PreparedText`: then each normal form and each reading of
    it is made once. `history` holds earlier messages, oldest first; only the user's count. `country` (ISO 3166-1)
    chooses the emergency numbers. Never raises, whatever the text.
    """
    text = PreparedText.of(message)
    earlier = [PreparedText.of(before["content"]) for before in history if before["role"] == "user"]
    triage = assess(text, earlier, country)
    misuse = Misuse() if triage.level == "emergency" else assess_misuse(text, earlier)
    return Screening(triage, misuse, text.in_english)
