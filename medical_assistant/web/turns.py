"""The two steps of a turn in the page, and what may interrupt it.

Step one is not queued: the safety rules answer at once, even when every slot of the model is busy,
and a refused message stays in its box. Step two is queued and streams the model's answer.

Gradio 6.31's page, which this follows (js/core, `DependencyManager`): an event's listeners run one
after the other in the order they were made, so the listener that cancels is made first; and after a
cancellation it forgets the newest run of the cancelled listener, which may be the next answer. So
two listeners ("lanes") take turns, each started by the change of a hidden number and each with a
canceller of its own (one canceller for both waits for the first, then finds the next answer).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import gradio as gr

from medical_assistant.chat.assistant import Assistant, refused, rules_reply
from medical_assistant.engines.base import Options
from medical_assistant.errors import UserError
from medical_assistant.markdown import safe_in_template
from medical_assistant.prompts import validate_question
from medical_assistant.safety.emergency_numbers import countries, dialled
from medical_assistant.safety.screening import screen
from medical_assistant.safety.triage import Triage, banner_texts
from medical_assistant.web.history import assistant_turn, conversation, question_text, stopped_turn, user_turn
from medical_assistant.web.queue import BUSY
from medical_assistant.web.requests import RequestTracker

LANES = 2
SEND, STOP = "Ask", "Stop"  # words: Gradio's icons have no name for a screen reader
PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
STEP_ONE: dict[str, Any] = {**PRIVATE, "queue": False}

T = TypeVar("T")
Turns = list[dict[str, Any]]  # a Chatbot's value


@dataclass(frozen=True)
class Received:
    """What step one makes of a message. Exactly one of `refusal` and `turns` is set."""

    turns: Turns | None = None  # the conversation with the message, and the rules' answer where they answer
    refusal: str | None = None
    banner: dict[str, Any] | None = None  # values of assets/page/emergency.html
    asks_the_model: bool = False


def receive(message: str, turns: Turns, busy: bool, country: str = "") -> Received:
    """Screen and validate `message`, in this order. `busy`: too many wait for the model."""
    screening = screen(message, conversation(turns), country)
    if screening.answer:
        answered = [*turns, user_turn(message), assistant_turn(rules_reply(screening))]
        return Received(answered, banner=_banner(screening.triage, country))
    try:
        validate_question(message)
    except UserError as error:
        return Received(refusal=str(error))
    return Received(refusal=BUSY) if busy else Received([*turns, user_turn(message)], asks_the_model=True)


def _banner(triage: Triage, country: str) -> dict[str, Any] | None:
    if triage.level != "emergency":
        return None
    known = countries().get(country, {})
    is_crisis = "suicide" in triage.categories
    texts = banner_texts(triage.language)
    return {
        "heading": texts["crisis" if is_crisis else "emergency"],
        "texts": texts,
        "reasons": ", ".join(triage.reasons),
        "is_crisis": is_crisis,
        "language": triage.language,
        "country": known.get("name", ""),
        **{
            kind: {"text": number, "dial": dialled(number)}
            for kind in ("emergency", "crisis")
            if (number := known.get(kind))
        },
    }


@dataclass(frozen=True)
class Panel:
    """A question box with its chats, the blocks that its turns change, and the hidden lanes."""

    box: gr.Textbox
    chats: Sequence[gr.Chatbot]
    emergency: gr.HTML
    refusal: gr.HTML
    lanes: Sequence[gr.Number]
    country: gr.Dropdown
    answers: RequestTracker

    @property
    def outputs(self) -> list[Any]:
        """What step one may change; `start` and `clear` return updates in this order."""
        return [self.box, *self.chats, self.emergency, self.refusal, *self.lanes]

    @property
    def inputs(self) -> list[Any]:
        """What step one reads beside the message and the turns, in the order of `start`."""
        return [self.country, *self.lanes]

    def start(self, message: str, turns: Turns, country: str, *lanes: float, edited: bool = False) -> tuple[Any, ...]:
        """Step one."""
        got = receive(message, turns, self.answers.queue.is_full, country)
        next_lane = [gr.skip() for _ in lanes]
        if not got.asks_the_model:
            self.answers.note("emergency" if got.banner else "refused")
        if got.refusal:
            # After an edit the page shows the new text over the old answer: take both back into the box.
            box, chat = (ready(message), turns) if edited else (gr.skip(), gr.skip())
            return box, *[chat] * len(self.chats), gr.skip(), {"message": safe_in_template(got.refusal)}, *next_lane
        if got.asks_the_model:
            next_lane[lanes.index(min(lanes))] = max(lanes) + 1
        box = answering("") if got.asks_the_model else ready("")
        return box, *[got.turns] * len(self.chats), got.banner or gr.skip(), None, *next_lane

    def clear(self) -> tuple[Any, ...]:
        return ready(), *[[] for _ in self.chats], None, None, *[gr.skip() for _ in self.lanes]

    def stop(self, *chats: Turns) -> tuple[Any, ...]:
        return ready(), *(stopped_turn(turns) for turns in chats)

    def answer_with(self, respond: Callable[..., Any], inputs: list[Any], interrupts: list[Any]) -> None:
        """Connect step two and Stop. `interrupts` are events that cancel it; make their own listeners later."""
        outputs = [self.box, *self.chats]
        answers = [lane.change(respond, inputs, outputs, concurrency_limit=None, **PRIVATE) for lane in self.lanes]
        for answer in answers:
            answer.failure(ready, None, self.box, **STEP_ONE)
            gr.on([self.box.stop, self.box.submit, *interrupts], None, cancels=[answer])
        self.box.stop(self.stop, list(self.chats), [self.box, *self.chats], **STEP_ONE)


def hidden_lanes() -> list[gr.Number]:
    return [gr.Number(0, visible="hidden", container=False) for _ in range(LANES)]


def ready(text: str | None = None) -> Any:
    """The question box with its Ask button, holding `text` where given."""
    return gr.update(submit_btn=SEND, stop_btn=False, **({} if text is None else {"value": text}))


def answering(text: str | None = None) -> Any:
    """The question box with Stop in place of Ask."""
    return gr.update(submit_btn=False, stop_btn=STOP, **({} if text is None else {"value": text}))


def read_options(max_new_tokens: float, temperature: float, top_p: float, seed: float | None) -> Options:
    """Return the settings' values as `Options`."""
    return Options(True, int(max_new_tokens), float(temperature), float(top_p), int(seed or 0))


def marked_changes(updates: Iterator[T]) -> Iterator[tuple[bool, T]]:
    """Yield each update, and before it whether it differs from the last: who waits gets the same one each second."""
    last = None
    for update in updates:
        yield update != last, update
        last = update


# Step two yields updates of (box, *chats). It sets the box itself: a `.then` would also follow a cancellation.


def respond_with(assistant: Assistant, answers: RequestTracker) -> Callable[..., Iterator[tuple[Any, ...]]]:
    """Return step two for one chat; its inputs are the chat, the toggle and the settings."""

    def respond(turns: Turns, model: str, request: gr.Request, *values: Any) -> Iterator[tuple[Any, ...]]:
        history, message = conversation(turns[:-1]), question_text(turns[-1])
        try:
            replies = assistant.answer(message, history, model, read_options(*values))
            for changed, reply in marked_changes(answers.watch(replies, request)):
                yield (answering(), [*turns, assistant_turn(reply)]) if changed else (gr.skip(), gr.skip())
        except UserError as error:
            yield gr.skip(), [*turns, assistant_turn(refused(error))]
        yield ready(), gr.skip()

    return respond


def respond_with_both(assistant: Assistant, answers: RequestTracker) -> Callable[..., Iterator[tuple[Any, ...]]]:
    """Return step two for one chat per model; its inputs are the chats and the settings."""

    def respond(left: Turns, right: Turns, request: gr.Request, *values: Any) -> Iterator[tuple[Any, ...]]:
        try:
            both = assistant.answer_both(question_text(left[-1]), read_options(*values))
            for changed, replies in marked_changes(answers.watch(both, request)):
                chats = ([*left, assistant_turn(reply)] if changed else gr.skip() for reply in replies)
                yield answering() if changed else gr.skip(), *chats
        except UserError as error:
            yield gr.skip(), *[[*left, assistant_turn(refused(error))]] * 2
        yield ready(), gr.skip(), gr.skip()

    return respond
