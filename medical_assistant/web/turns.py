"""The two steps of an answer in the page, and what may interrupt it.

Step one is not queued: `prepare` reads the message and the safety rules answer at once, even when every slot of the
model is busy, and a refused message stays in its box. Step two is queued and streams the model's answer to the
`Question` of step one, which waits in the session's state.

Gradio 6.31's page, which this follows (js/core, `DependencyManager`): an event's listeners run one after the other in
the order they were made, so the listener that cancels is made first; and after a cancellation it forgets the newest
run of the cancelled listener, which may be the next answer. So two listeners take turns, each started by the change of
a hidden number, its stream slot, and each with a canceller of its own (one canceller for both waits for the first, then
finds the next answer).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import gradio as gr

from medical_assistant.chat.assistant import Assistant, Reply, refused, rules_reply
from medical_assistant.chat.question import Question, prepare
from medical_assistant.engines.base import Options
from medical_assistant.errors import UserError
from medical_assistant.markdown import safe_in_template
from medical_assistant.safety.emergency_numbers import countries, dialled
from medical_assistant.safety.triage import Triage, banner_texts
from medical_assistant.web.history import Exchange, as_json, messages, read_history, shown
from medical_assistant.web.queue import BUSY
from medical_assistant.web.requests import RequestTracker

STREAM_SLOTS = 2
SEND, STOP = "Ask", "Stop"  # words: Gradio's icons have no name for a screen reader
PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
STEP_ONE: dict[str, Any] = {**PRIVATE, "queue": False}
PENDING_S = 600  # a question whose step two never came is forgotten

Replies = tuple[Reply, ...]  # one for each chat


def emergency_banner(triage: Triage, country: str = "") -> dict[str, Any] | None:
    """Return the values of assets/page/emergency.html, None where there is no emergency."""
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


class Panel:
    """A question box with its chats, the blocks that an answer changes, and what the page keeps out of sight.

    `history`: what was asked and answered, see `web.history`. `pending`: the `Question` between the two steps.
    """

    def __init__(
        self,
        box: gr.Textbox,
        chats: Sequence[gr.Chatbot],
        emergency: gr.HTML,
        refusal: gr.HTML,
        country: gr.Dropdown,
        tracker: RequestTracker,
    ) -> None:
        self.box = box
        self.chats = list(chats)
        self.tracker = tracker
        self.history = gr.JSON([], visible=False)
        self.pending = gr.State(None, time_to_live=PENDING_S)
        slots = [gr.Number(0, visible="hidden", container=False) for _ in range(STREAM_SLOTS)]
        self._slots = slots
        self.inputs: list[Any] = [self.history, country, *slots]
        self.conversation: list[Any] = [self.box, *self.chats, self.history, self.pending]
        self.outputs: list[Any] = [*self.conversation, emergency, refusal, *slots]

    def start(self, message: str, history: Any, country: str, *slots: float) -> tuple[Any, ...]:
        """Step one, with what `inputs` are; return values of `outputs`."""
        return self.begin(message, read_history(history), country, *slots)

    def begin(
        self, message: Any, exchanges: list[Exchange], country: str, *slots: float, edited: bool = False
    ) -> tuple[Any, ...]:
        """Step one for `message` after `exchanges`."""
        question = prepare(message if isinstance(message, str) else "", messages(exchanges), country)
        by_rules = bool(question.screening.answer)
        refusal = question.refusal or (BUSY if not by_rules and self.tracker.queue.is_full else "")
        banner = emergency_banner(question.screening.triage, country)
        next_slots = [gr.skip() for _ in slots]
        if by_rules or refusal:
            self.tracker.note("emergency" if banner else "refused")
        if refusal:
            # After an edit the page shows the new text over the old answer: take both back into the box.
            box, chats = (ready(message), self._show(exchanges)) if edited else (gr.skip(), self._skip_chats())
            return box, *chats, None, gr.skip(), {"message": safe_in_template(refusal)}, *next_slots
        if by_rules:
            exchanges.append(Exchange(question.raw, (rules_reply(question.screening),) * len(self.chats)))
            return ready(""), *self._show(exchanges), None, banner or gr.skip(), None, *next_slots
        exchanges.append(Exchange(question.raw))
        next_slots[slots.index(min(slots))] = max(slots) + 1
        return answering(""), *self._show(exchanges), question, gr.skip(), None, *next_slots

    def clear(self) -> tuple[Any, ...]:
        return ready(), *self._show([]), None, None, None, *[gr.skip() for _ in self._slots]

    def stop(self, history: Any) -> tuple[Any, ...]:
        exchanges = read_history(history)
        return ready(), *self._show([*exchanges[:-1], *(last.stop() for last in exchanges[-1:])]), None

    def stream(
        self, ask: Callable[[Question], Iterator[Replies]], history: Any, pending: Any, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        """Step two: yield values of `conversation`, the replies of `ask` to the last question of `history`.

        It sets the box itself: a `.then` would also follow a cancellation.
        """
        unchanged = (gr.skip(), *self._skip_chats(), None)
        *earlier, last = read_history(history) or [Exchange("")]
        if last.question and not last.replies:
            before = [shown(earlier, chat) for chat in range(len(self.chats))], as_json(earlier)
            question, previous = pending_question(pending, last.question, earlier), None
            try:
                for replies in self.tracker.watch(ask(question), request):
                    # Who waits in the queue gets the same update each second.
                    yield (answering(), *self._with(before, last, replies)) if replies != previous else unchanged
                    previous = replies
            except UserError as error:
                yield gr.skip(), *self._with(before, last, (refused(error),) * len(self.chats))
        yield ready(), *unchanged[1:]

    def answer_with(self, respond: Callable[..., Any], inputs: list[Any], interrupts: list[Any]) -> None:
        """Connect step two and Stop. `respond`: a step two whose inputs are history, pending and `inputs`.

        `interrupts` are events that cancel it; make their own listeners later.
        """
        inputs = [self.history, self.pending, *inputs]
        for slot in self._slots:
            answer = slot.change(respond, inputs, self.conversation, concurrency_limit=None, **PRIVATE)
            answer.failure(ready, None, self.box, **STEP_ONE)
            gr.on([self.box.stop, self.box.submit, *interrupts], None, cancels=[answer])
        self.box.stop(self.stop, self.history, self.conversation, **STEP_ONE)

    def _show(self, exchanges: Sequence[Exchange]) -> list[Any]:
        """Return the values of the chats and of `history`."""
        return [*(shown(exchanges, chat) for chat in range(len(self.chats))), as_json(exchanges)]

    def _with(self, before: tuple[list[Any], list[Any]], last: Exchange, replies: tuple[Reply, ...]) -> list[Any]:
        """Return the values of the chats, of `history` and of `pending`, where `before` is what stays as it is."""
        exchange = replace(last, replies=replies)
        chats = [[*value, *exchange.shown(chat)] for chat, value in enumerate(before[0])]
        return [*chats, [*before[1], exchange.as_json()], None]

    def _skip_chats(self) -> list[Any]:
        return [gr.skip() for _ in (*self.chats, self.history)]


def pending_question(pending: Any, raw: str, earlier: Sequence[Exchange]) -> Question:
    """Return the question of step one; another one, or none (an expired session, a direct call), is read now."""
    context = messages(earlier)
    if isinstance(pending, Question) and pending.is_of(raw, context):
        return pending
    return prepare(raw, context)


def ready(text: str | None = None) -> Any:
    """The question box with its Ask button, holding `text` where given."""
    return gr.update(submit_btn=SEND, stop_btn=False, **({} if text is None else {"value": text}))


def answering(text: str | None = None) -> Any:
    """The question box with Stop in place of Ask."""
    return gr.update(submit_btn=False, stop_btn=STOP, **({} if text is None else {"value": text}))


def read_options(max_new_tokens: float, temperature: float, top_p: float, seed: float | None) -> Options:
    """Return the settings' values as `Options`."""
    return Options(True, int(max_new_tokens), float(temperature), float(top_p), int(seed or 0))


def respond_with(assistant: Assistant, panel: Panel) -> Callable[..., Iterator[tuple[Any, ...]]]:
    """Return step two for one chat; its inputs are the panel's, the toggle and the settings."""

    def respond(history: Any, pending: Any, model: str, request: gr.Request, *values: Any) -> Iterator[tuple[Any, ...]]:
        def ask(question: Question) -> Iterator[Replies]:
            with closing(assistant.answer(question, model, read_options(*values))) as replies:
                for reply in replies:
                    yield (reply,)

        yield from panel.stream(ask, history, pending, request)

    return respond


def respond_with_both(assistant: Assistant, panel: Panel) -> Callable[..., Iterator[tuple[Any, ...]]]:
    """Return step two for one chat per model; its inputs are the panel's and the settings."""

    def respond(history: Any, pending: Any, request: gr.Request, *values: Any) -> Iterator[tuple[Any, ...]]:
        def ask(question: Question) -> Iterator[Replies]:
            return assistant.answer_both(question, read_options(*values))

        yield from panel.stream(ask, history, pending, request)

    return respond
