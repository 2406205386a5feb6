"""Chat history as the page holds it: a Gradio chatbot message has a list of parts.

An answer's parts are (advice,) text, footer: the text is the last but one, found by position and not by its looks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medical_assistant.chat.assistant import Reply
from medical_assistant.chat.confidence import LINE
from medical_assistant.markdown import safe_markdown
from medical_assistant.prompts import Message

SHOWN_MESSAGE_CHARACTERS = 4_000
EMPTY_ANSWER = "\u2026"  # shown until the first words arrive


def user_turn(message: str) -> dict[str, Any]:
    """Return the user's message as it is shown, shortened where it is very long."""
    shown = message[:SHOWN_MESSAGE_CHARACTERS]
    return {"role": "user", "content": safe_markdown(shown) or EMPTY_ANSWER}


def assistant_turn(reply: Reply) -> dict[str, Any]:
    """Return `reply` as a chatbot message."""
    lines = [*reply.notes, *filter(None, [reply.waiting]), reply.footer, *filter(None, [reply.confidence])]
    # The model's name and the words of an error come from whoever made the model.
    footer = "\n\n".join(f"*{safe_markdown(' '.join(line.split()))}*" for line in lines)
    parts = [safe_markdown(reply.text) or EMPTY_ANSWER, footer]
    if reply.advice:
        parts.insert(0, f"**{safe_markdown(reply.advice)}**")
    return {"role": "assistant", "content": parts}


def stopped_turn(turns: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return `turns` with a line that says that the last answer was stopped, and without its confidence."""
    if not turns:
        return []
    *earlier, last = [dict(turn) for turn in turns]
    if last["role"] == "user":
        return [*earlier, last, {"role": "assistant", "content": [EMPTY_ANSWER, "*Stopped.*"]}]
    *parts, footer = _parts(last["content"])
    footer = footer.partition(f"\n\n*{LINE}")[0]
    return [*earlier, {"role": "assistant", "content": [*parts, f"*Stopped.*\n\n{footer}"]}]


def conversation(turns: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Return the questions and the models' answers of a chatbot's value, oldest first.

    Footers, advice, notes, and questions that never got an answer stay behind.
    """
    messages: list[Message] = []
    for turn in turns:
        parts = _parts(turn["content"])
        text = parts[-2] if turn["role"] == "assistant" and len(parts) > 1 else parts[0] if parts else ""
        if turn["role"] == "assistant" and text == EMPTY_ANSWER:
            continue
        if turn["role"] == "user" and messages and messages[-1]["role"] == "user":
            messages.pop()
        messages.append({"role": turn["role"], "content": text})
    if messages and messages[-1]["role"] == "user":
        messages.pop()
    return messages


def question_text(turn: Mapping[str, Any]) -> str:
    """Return the text of a user's turn."""
    return "".join(_parts(turn["content"]))


def _parts(content: object) -> list[str]:
    items: list[Any] = content if isinstance(content, list) else [content]
    return [item if isinstance(item, str) else str(item.get("text") or "") for item in items]
