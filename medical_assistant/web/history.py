"""The chat history: what was really asked and answered, and how the page shows it.

The page keeps the history itself in a hidden `gr.JSON` of the browser's tab, so that the server stores no conversation.
A chatbot only shows it: nothing is read back from what is shown.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from medical_assistant.chat.assistant import FROM_LIBRARY, Reply, Searched
from medical_assistant.library.answer import NumberedSource, escaped, source_list
from medical_assistant.library.pages import Source
from medical_assistant.markdown import safe_markdown
from medical_assistant.prompts import MAX_QUESTION_CHARACTERS, Message

SHOWN_CHARACTERS = MAX_QUESTION_CHARACTERS  # of a message of any length, which only the safety rules answer
# What is kept of such a message: still too long for a model when it is asked again.
KEPT_CHARACTERS = 2 * MAX_QUESTION_CHARACTERS
EMPTY_ANSWER = "\u2026"  # shown until the first words arrive
STOPPED_NOTE = "Stopped."
SEARCHED_TITLE = "Show what was searched"
_CITATION = re.compile(r" \[(\d+(?:, \d+)*)\](?=\s|$)")
_TEXT_FIELDS = ("text", "footer", "advice", "confidence", "warning", "library")


@dataclass(frozen=True)
class Exchange:
    """A question as it was asked, and the reply of each chat that the page shows side by side; none yet: empty."""

    question: str
    replies: tuple[Reply, ...] = ()

    def shown(self, chat: int = 0) -> list[dict[str, Any]]:
        """Return the Gradio messages of the exchange in the chatbot number `chat`."""
        asked = {"role": "user", "content": shown_question(self.question)}
        answers = self.replies[chat : chat + 1]
        return [asked, *(message for reply in answers for message in _shown_reply(reply))]

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
    sources = tuple(
        source
        for entry in _list(fields.get("sources"))
        if isinstance(entry, dict) and (source := _read_source(entry)) is not None
    )
    searched = fields.get("searched")
    return Reply(
        origin="library" if fields.get("origin") == "library" else "model",
        notes=notes,
        sources=sources,
        searched=_read_searched(searched) if isinstance(searched, dict) else None,
        **{name: _text(fields.get(name)) for name in _TEXT_FIELDS},  # type: ignore[arg-type]
    )


def _read_source(fields: dict[str, Any]) -> NumberedSource | None:
    """Return a source as `as_json` writes it, None without a number."""
    number, source = fields.get("number"), fields.get("source")
    if type(number) is not int or not isinstance(source, dict):
        return None
    read = Source(*(_text(source.get(name)) for name in ("publisher", "title", "address", "date", "licence")))
    return NumberedSource(number, read, _text(fields.get("page")), _texts(fields.get("quoted")))


def _read_searched(fields: dict[str, Any]) -> Searched:
    signals = [pair for pair in _list(fields.get("signals")) if isinstance(pair, list) and len(pair) == 2]
    return Searched(
        _text(fields.get("query")),
        _texts(fields.get("topics")),
        _texts(fields.get("asked")),
        _text(fields.get("coverage")),
        _number(fields.get("probability")),
        tuple((_text(name), _number(value)) for name, value in signals),
    )


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(item for item in _list(value) if isinstance(item, str))


def _number(value: Any) -> float:
    return value if isinstance(value, float) and math.isfinite(value) else 0.0


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def as_json(history: Sequence[Exchange]) -> list[dict[str, Any]]:
    """Return the value of the hidden component, which `read_history` reads. A place in the queue is not among it."""
    return [
        {
            "question": exchange.question[:KEPT_CHARACTERS],
            "replies": [_reply_as_json(reply) for reply in exchange.replies],
        }
        for exchange in history
    ]


def _reply_as_json(reply: Reply) -> dict[str, Any]:
    return {
        **{name: getattr(reply, name) for name in _TEXT_FIELDS},
        "origin": reply.origin,
        "notes": list(reply.notes),
        "sources": [asdict(source) for source in reply.sources],
        "searched": None if reply.searched is None else asdict(reply.searched),
    }


def shown(history: Sequence[Exchange], chat: int = 0) -> list[dict[str, Any]]:
    """Return the value of the chatbot number `chat`."""
    return [message for exchange in history for message in exchange.shown(chat)]


def messages(history: Sequence[Exchange]) -> list[Message]:
    """Return the questions and the answers to them, oldest first, for `prepare`.

    Footers, advice, notes, what stands above a model's answer, and questions that never got an answer stay behind. Of
    what the library answered only the question is there.
    """
    found = []
    for exchange in history:
        reply = exchange.replies[0] if exchange.replies else Reply("", "")
        if reply.text.strip():
            found.append({"role": "user", "content": exchange.question})
            if reply.origin != "library":  # a model would repeat its lines, with their source numbers, as its own
                found.append({"role": "assistant", "content": reply.text})
    return found


def split_at(value: Any, message: int) -> tuple[Exchange, list[Exchange]]:
    """Return the exchange that shows the chatbot's message number `message`, and the ones before it."""
    history = read_history(value)
    at = [index for index, exchange in enumerate(history) for _ in exchange.shown()][message]
    return history[at], history[:at]


def shown_question(question: str) -> str:
    """Return a question as Markdown without markup, shortened where it is very long."""
    return safe_markdown(question[:SHOWN_CHARACTERS]) or EMPTY_ANSWER


def _shown_reply(reply: Reply) -> list[dict[str, Any]]:
    """Return the chatbot's messages: the answer in parts, and what was searched, which opens with a click.

    The parts are the advice, the library's lines with their sources, a model's warning and words, and the lines below.
    """
    said = [reply.footer, reply.confidence]
    if reply.origin == "library":
        said = [" \u00b7 ".join(line for line in said if line)]
    lines = [*reply.notes, reply.waiting, *said]
    # The model's name and the words of an error come from whoever made the model.
    below = "\n\n".join(f"*{safe_markdown(' '.join(line.split()))}*" for line in lines if line)
    parts = [f"**{safe_markdown(reply.advice)}**"] if reply.advice else []
    sources = [safe_markdown(f"**Sources**\n\n{source_list(reply.sources)}")] if reply.sources else []
    if reply.library:
        parts += [f"**{FROM_LIBRARY}**\n\n{_shown_text(reply.library)}", *sources]
        sources = []
    if reply.warning:
        parts.append(f"**{safe_markdown(reply.warning)}**")
    text = _shown_text(reply.text) if reply.origin == "library" else safe_markdown(reply.text)
    parts += [text or EMPTY_ANSWER, *sources, below]
    messages: list[dict[str, Any]] = [{"role": "assistant", "content": parts}]
    if reply.searched is not None:
        title = {"title": SEARCHED_TITLE, "status": "done"}
        searched = shown_search(reply.searched, reply.sources)
        messages.append({"role": "assistant", "content": searched, "metadata": title})
    return messages


def _shown_text(text: str) -> str:
    """Return the library's lines as Markdown; source numbers become emphasis, which assets/style.css makes small.

    A number in brackets that a page holds itself has a backslash before it.
    """
    return _CITATION.sub("\u00a0*_[\\1]_*", safe_markdown(text))


def shown_search(searched: Searched, sources: Sequence[NumberedSource] = ()) -> str:
    """Return as Markdown what was searched, how well it fits, and the lines that each source stands for."""
    signals = ", ".join(f"{name} {value:g}" for name, value in searched.signals)
    rows = {
        "Searched for": searched.query,
        "Topics": ", ".join(searched.topics) or "none",
        "Asked about": ", ".join(searched.asked) or "what it is",
        "Coverage": f"{searched.coverage} (probability {searched.probability:.2f})",
        "Signals": signals,
    }
    lines = [f"- {name}: {' '.join(text.split())}" for name, text in rows.items() if text]
    lines += [f"- Source {entry.number} for: {escaped(' | '.join(entry.quoted))}" for entry in sources]
    return safe_markdown("\n".join(lines))
