"""The one prompt contract: what the model is told, in training, evaluation and the app.

`build_messages` is the only place where a question becomes chat messages, so that the tokens a
model was trained on are the tokens it is served with.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence

from medical_assistant.errors import UserError

SYSTEM_PROMPT = (
    "You are a medical information assistant. Answer health questions accurately and in plain "
    "language. You do not replace a doctor."
)

# 4,000 characters are about 1,000 tokens of English: half of the smallest context we serve.
MAX_QUESTION_CHARACTERS = 4_000

Message = dict[str, str]

# Chat templates are text: "<|im_start|>system" typed by a user would become a real control token in
# any server that parses special tokens in the rendered prompt (llama.cpp does). A space after the
# opening bracket keeps the text readable and takes the token apart. Comparisons ("BP <90") and
# arrows stay as they are.
_TEMPLATE_TOKEN = re.compile(r"<(?=[|/!A-Za-z_\u2581\uff5c])|\[(?=/?(?:INST|SYS|AVAILABLE_TOOLS|TOOL))")
# Zero-width and bidirectional controls hide text from a reader (and from the triage rules).
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff]")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def clean_text(text: str) -> str:
    """Return `text` in NFC, without control and invisible characters and without template tokens.

    Idempotent: `clean_text(clean_text(x)) == clean_text(x)`.
    """
    text = unicodedata.normalize("NFC", text)
    text = _INVISIBLE.sub("", text)
    text = _CONTROL.sub(" ", text)
    return _TEMPLATE_TOKEN.sub(lambda match: match.group() + " ", text).strip()


def validate_question(question: str) -> str:
    """Return the cleaned question.

    Raises `UserError` with a sentence for the page when it is empty, over
    `MAX_QUESTION_CHARACTERS`, mostly not text (a pasted file), or without a single letter.
    """
    if not question.strip():
        raise UserError("The question is empty: type a health question.")
    if len(question) > MAX_QUESTION_CHARACTERS:
        raise UserError(f"The question has {len(question):,} characters: shorten it to {MAX_QUESTION_CHARACTERS:,}.")
    unreadable = sum(1 for c in question if _CONTROL.match(c) or c == "\ufffd")
    if unreadable > 0.05 * len(question):
        raise UserError("This looks like a file, not a question: paste the text of your question.")
    cleaned = clean_text(question)
    if not any(c.isalpha() for c in cleaned):
        raise UserError("There are no words in the question: ask it in a sentence.")
    return cleaned


def build_messages(question: str, history: Iterable[Mapping[str, str]] = ()) -> list[Message]:
    """Return chat messages: system prompt, `history`, then `question` as the last user message.

    `history` holds `{"role": "user" | "assistant", "content": str}` in order; other roles (a forged
    system message from an API client) are dropped. All text passes through `clean_text`.
    """
    earlier = [
        {"role": message["role"], "content": clean_text(message["content"])}
        for message in history
        if message["role"] in ("user", "assistant")
    ]
    return [
        {"role": "system", "content": SYSTEM_PROMPT},
        *earlier,
        {"role": "user", "content": clean_text(question)},
    ]


def trim_history(
    messages: Sequence[Message], count_tokens: Callable[[list[Message]], int], limit: int
) -> tuple[list[Message], int]:
    """Return (messages that fit in `limit` tokens, number of dropped messages).

    Drops the oldest question with its answer first; the system prompt and the last question stay.
    Raises `UserError` when these two alone do not fit.
    """
    kept = list(messages)
    dropped = 0
    while count_tokens(kept) > limit:
        if len(kept) <= 2:
            raise UserError("The question is too long for this model: shorten it.")
        # The next kept message must be a question: templates reject histories that open with an answer.
        end = 2
        while kept[end]["role"] != "user":
            end += 1
        dropped += end - 1
        del kept[1:end]
    return kept, dropped


def prompt_contract(chat_template: str, special_tokens: Mapping[str, str]) -> dict[str, object]:
    """Return the content of an adapter's `prompt.json`.

    Keys: `system_prompt`, `chat_template`, `special_tokens` (`bos_token`, `eos_token`) and `sha256`
    over the three, in canonical JSON.
    """
    contract: dict[str, object] = {
        "system_prompt": SYSTEM_PROMPT,
        "chat_template": chat_template,
        "special_tokens": dict(special_tokens),
    }
    canonical = json.dumps(contract, sort_keys=True, ensure_ascii=False).encode()
    return {**contract, "sha256": hashlib.sha256(canonical).hexdigest()}


def contract_difference(trained: Mapping[str, object], served: Mapping[str, object]) -> str | None:
    """Return None when the two contracts agree, else a phrase that names what differs."""
    for key in ("system_prompt", "chat_template", "special_tokens"):
        if trained.get(key) != served.get(key):
            return (
                f"{key.replace('_', ' ')}: trained with {trained.get(key)!r:.60}, served with {served.get(key)!r:.60}"
            )
    return None
