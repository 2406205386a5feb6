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
from dataclasses import replace
from typing import Any

import gradio as gr

from medical_assistant.chat.assistant import LIBRARY, Reply, refused, rules_reply
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

    `who_answers` is the control that says it, None where all answer.

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
        who_answers: gr.Radio | None = None,
    ) -> None:
        self.box = box
        self.chats = list(chats)
        self.tracker = tracker
        self.history = gr.JSON([], visible=False)
        self.pending = gr.State(None, time_to_live=PENDING_S)
        slots = [gr.Number(0, visible="hidden", container=False) for _ in range(STREAM_SLOTS)]
        self._slots = slots
        self.inputs: list[Any] = [self.history, country, *slots, *([who_answers] if who_answers else [])]
        self.conversation: list[Any] = [self.box, *self.chats, self.history, self.pending]
        self.outputs: list[Any] = [*self.conversation, emergency, refusal, *slots]

    def start(self, message: str, history: Any, country: str, *values: Any) -> tuple[Any, ...]:
        """Step one, with what `inputs` are; return values of `outputs`."""
        return self.begin(message, read_history(history), country, *values)

    def begin(
        self, message: Any, exchanges: list[Exchange], country: str, *values: Any, edited: bool = False
    ) -> tuple[Any, ...]:
        """Step one for `message` after `exchanges`; `values` are those of the slots and of `who_answers`."""
        slots, who_answers = values[:STREAM_SLOTS], values[STREAM_SLOTS:]
        question = prepare(message if isinstance(message, str) else "", messages(exchanges), country)
        by_rules = bool(question.screening.answer)
        needs_model = not by_rules and LIBRARY not in who_answers
        refusal = question.refusal or (BUSY if needs_model and self.tracker.queue.is_full else "")
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
        return ready(), *self._show([*exchanges[:-1], *(last.stop(len(self.chats)) for last in exchanges[-1:])]), None

    def answer_with(self, ask: Callable[..., Iterator[Any]], inputs: list[Any], interrupts: list[Any]) -> None:
        """Connect step two and Stop. `ask(question, *values of inputs)` gives updates of the assistant.

        `interrupts` are events that cancel it; make their own listeners later.
        """

        def respond(history: Any, pending: Any, request: gr.Request, *values: Any) -> Iterator[tuple[Any, ...]]:
            yield from self._stream(lambda question: ask(question, *values), history, pending, request)

        inputs = [self.history, self.pending, *inputs]
        for slot in self._slots:
            answer = slot.change(respond, inputs, self.conversation, concurrency_limit=None, **PRIVATE)
            answer.failure(ready, None, self.box, **STEP_ONE)
            gr.on([self.box.stop, self.box.submit, *interrupts], None, cancels=[answer])
        self.box.stop(self.stop, self.history, self.conversation, **STEP_ONE)

    def _stream(
        self, ask: Callable[[Question], Iterator[Any]], history: Any, pending: Any, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        """Step two: yield values of `conversation`, the updates of `ask` to the last question of `history`.

        It sets the box itself: a `.then` would also follow a cancellation.
        """
        unchanged = (gr.skip(), *self._skip_chats(), None)
        *earlier, last = read_history(history) or [Exchange("")]
        if last.question and not last.replies:
            before, previous = self._show(earlier), None
            question = pending_question(pending, last.question, earlier)

            def with_replies(replies: tuple[Reply, ...]) -> list[Any]:
                answered = self._show([replace(last, replies=replies)])
                return [*(old + new for old, new in zip(before, answered, strict=True)), None]

            try:
                for update in self.tracker.watch(ask(question), request):
                    # Who waits in the queue gets the same update each second.
                    if update == previous:
                        yield unchanged
                    else:
                        yield answering(), *with_replies(update if isinstance(update, tuple) else (update,))
                    previous = update
            except UserError as error:
                yield gr.skip(), *with_replies((refused(error),) * len(self.chats))
        yield ready(), *unchanged[1:]

    def _show(self, exchanges: Sequence[Exchange]) -> list[Any]:
        """Return the values of the chats and of `history`."""
        return [*(shown(exchanges, chat) for chat in range(len(self.chats))), as_json(exchanges)]

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
