"""The chat history: what was really asked and answered, and how the page shows it.

The page keeps the history itself in a hidden `gr.JSON` of the browser's tab, so that the server stores no conversation.
A chatbot only shows it: nothing is read back from what is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from medical_assistant.chat.assistant import Reply
from medical_assistant.markdown import safe_markdown
from medical_assistant.prompts import MAX_QUESTION_CHARACTERS, Message

SHOWN_CHARACTERS = MAX_QUESTION_CHARACTERS  # of a message of any length, which only the safety rules answer
# What is kept of such a message: still too long for a model when it is asked again.
KEPT_CHARACTERS = 2 * MAX_QUESTION_CHARACTERS
EMPTY_ANSWER = "\u2026"  # shown until the first words arrive
STOPPED_NOTE = "Stopped."
_KEPT_FIELDS = ("text", "footer", "advice", "notes", "confidence")


@dataclass(frozen=True)
class Exchange:
    """A question as it was asked, and the reply of each chat that the page shows side by side; none yet: empty."""

    question: str
    replies: tuple[Reply, ...] = ()

    def shown(self, chat: int = 0) -> list[dict[str, Any]]:
        """Return the Gradio messages of the exchange in the chatbot number `chat`."""
        asked = {"role": "user", "content": shown_question(self.question)}
        answers = self.replies[chat : chat + 1]
        return [asked, *({"role": "assistant", "content": _shown_reply(reply)} for reply in answers)]

    def stop(self, chats: int = 1) -> Exchange:
        """Return the exchange as the user stopped it: half an answer has no confidence."""
        replies = self.replies or (Reply("", ""),) * chats
        stopped = [replace(reply, notes=(STOPPED_NOTE, *reply.notes), confidence="") for reply in replies]
        return replace(self, replies=tuple(stopped))


def read_history(value: Any) -> list[Exchange]:
    """Return the history, oldest first, from what a browser or a program sends: any JSON. What has no form is left out.

    Its texts are as untrusted as a message: `prepare` screens them, `build_messages` cleans them, and `shown` takes out
    markup.
    """
    history = []
    for item in _list(value):
        if isinstance(item, dict):
            replies = [_read_reply(reply) for reply in _list(item.get("replies")) if isinstance(reply, dict)]
            history.append(Exchange(_text(item.get("question")), tuple(replies)))
    return history


def _read_reply(fields: dict[str, Any]) -> Reply:
    notes = tuple(note for note in _list(fields.get("notes")) if isinstance(note, str))
    text, footer, advice, confidence = (_text(fields.get(name)) for name in ("text", "footer", "advice", "confidence"))
    return Reply(text, footer, advice, notes, confidence=confidence)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def as_json(history: Sequence[Exchange]) -> list[dict[str, Any]]:
    """Return the value of the hidden component, which `read_history` reads. A place in the queue is not among it."""
    return [
        {
            "question": exchange.question[:KEPT_CHARACTERS],
            "replies": [{name: getattr(reply, name) for name in _KEPT_FIELDS} for reply in exchange.replies],
        }
        for exchange in history
    ]


def shown(history: Sequence[Exchange], chat: int = 0) -> list[dict[str, Any]]:
    """Return the value of the chatbot number `chat`."""
    return [message for exchange in history for message in exchange.shown(chat)]


def messages(history: Sequence[Exchange]) -> list[Message]:
    """Return the questions and the answers to them, oldest first, for `prepare`.

    Footers, advice, notes, and questions that never got an answer stay behind.
    """
    found = []
    for exchange in history:
        answer = exchange.replies[0].text if exchange.replies else ""
        if answer.strip():
            found += [{"role": "user", "content": exchange.question}, {"role": "assistant", "content": answer}]
    return found


def split_at(value: Any, message: int) -> tuple[Exchange, list[Exchange]]:
    """Return the exchange that shows the chatbot's message number `message`, and the ones before it."""
    history = read_history(value)
    at = [index for index, exchange in enumerate(history) for _ in exchange.shown()][message]
    return history[at], history[:at]


def shown_question(question: str) -> str:
    """Return a question as Markdown without markup, shortened where it is very long."""
    return safe_markdown(question[:SHOWN_CHARACTERS]) or EMPTY_ANSWER


def _shown_reply(reply: Reply) -> list[str]:
    """Return the parts of a chatbot message: advice where there is some, the answer, and the lines below it."""
    lines = [*reply.notes, reply.waiting, reply.footer, reply.confidence]
    # The model's name and the words of an error come from whoever made the model.
    below = "\n\n".join(f"*{safe_markdown(' '.join(line.split()))}*" for line in lines if line)
    advice = [f"**{safe_markdown(reply.advice)}**"] if reply.advice else []
    return [*advice, safe_markdown(reply.text) or EMPTY_ANSWER, below]
