"""The page: Gradio components around `chat.Assistant`.

A turn has two steps. Step one is not queued: the safety rules answer at once, even when every slot
of the model is busy, and a refused message stays in its box. Step two is queued and streams the
model's answer; Stop, Clear, Undo, Retry, Edit and an example click cancel it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import gradio as gr

from medical_assistant.chat import (
    BASE,
    FINE_TUNED,
    MODELS,
    Assistant,
    Example,
    assistant_turn,
    conversation,
    emergency_reply,
    question_text,
    refused,
    screen,
    stopped_turn,
    user_turn,
)
from medical_assistant.engines.base import Options
from medical_assistant.errors import UserError
from medical_assistant.presets import ASSETS
from medical_assistant.prompts import validate_question
from medical_assistant.triage import Triage

# The page refuses in words at this many waiting answers. Gradio's own limit, twice that, leaves the page without
# its next step (no `.then` runs) and says "Error"; only a burst or many API calls reach it.
QUEUE_SIZE = 32
BUSY = "Many people are asking at the moment: wait a minute, then send it again."
PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
STEP_ONE: dict[str, Any] = {**PRIVATE, "queue": False}
# "multiple": with "once", a question sent while the last one is being cancelled would be dropped.
STEP_TWO: dict[str, Any] = {**PRIVATE, "trigger_mode": "multiple"}

Turns = list[dict[str, Any]]  # a Chatbot's value
Receiver = Callable[[str, Turns], tuple[Any, Any, Any, Any]]  # updates of (box, chat, emergency notice, refusal)


def build_page(assistant: Assistant, examples: Sequence[Example], slots: int = 4) -> gr.Blocks:
    """Return the page, with its queue: at most `slots` answers at once, `QUEUE_SIZE` waiting."""
    engine_queue = {"concurrency_id": "engine", "concurrency_limit": slots}  # one for page and API
    receive = _receiver(lambda: len(page._queue) >= QUEUE_SIZE)
    with gr.Blocks(title="Medical Assistant", analytics_enabled=False, fill_height=True) as page:
        _html("header", elem_id="top", js_on_load=_asset("notice.js"))
        if assistant.problem:
            _html("problem", {"problem": assistant.problem}, elem_id="problem")
        emergency = _html("emergency", elem_id="emergency")
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Ask", elem_id="ask", scale=1):
                settings = _build_ask(assistant, examples, emergency, receive, engine_queue)
            if len(assistant.models) > 1:
                with gr.Tab("Compare", elem_id="compare", scale=1):
                    _build_compare(assistant, emergency, settings, receive, engine_queue)
            with gr.Tab("About", elem_id="about"):
                gr.Markdown(_about(assistant))
        gr.api(
            _api_endpoint(assistant),
            api_name="chat",
            api_description="Answer a health question. The last value is the whole answer.",
            **engine_queue,
        )
    page.queue(max_size=2 * QUEUE_SIZE, default_concurrency_limit=slots, api_open=False)
    return page


def launch_options() -> dict[str, Any]:
    """Return the keyword arguments of `launch` that belong to the page: look and privacy."""
    fonts: dict[str, Any] = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    return {
        "theme": gr.themes.Default(primary_hue="teal", neutral_hue="slate", **fonts),
        "css_paths": ASSETS / "style.css",
        "footer_links": ["api", "settings"],
        "run_history": False,  # it would keep conversations
        "enable_monitoring": False,
        "ssr_mode": False,
        "share": False,
    }


def _asset(name: str) -> str:
    return (ASSETS / "page" / name).read_text(encoding="utf-8")


def _html(template: str, value: Any = None, **properties: Any) -> gr.HTML:
    """A block from assets/page: values are escaped by the template, scripts do not come from values."""
    properties = {"js_on_load": None, **properties}
    return gr.HTML(value, html_template=_asset(f"{template}.html"), apply_default_css=False, **properties)


def _build_ask(
    assistant: Assistant,
    examples: Sequence[Example],
    emergency: gr.HTML,
    receive: Receiver,
    engine_queue: dict[str, Any],
) -> list[Any]:
    """Build the tab; return the settings' inputs."""
    model = gr.Radio(
        MODELS,
        value=assistant.models[0],
        label="Model",
        interactive=len(assistant.models) > 1,
        container=False,
        elem_id="model",
    )
    chat = _chatbot(
        "Conversation",
        elem_id="chat",
        editable="user",
        placeholder="## What would you like to know?",
        examples=[{"text": example.question, "display_text": example.label} for example in examples],
    )
    refusal = _html("refusal", elem_id="refusal", elem_classes="refusal")
    box = _question_box("Type a health question", elem_id="question")
    with gr.Accordion("Settings", open=False, elem_id="settings"):
        settings = _settings(assistant)

    def retry(turns: Turns, event: gr.RetryData) -> tuple[Any, ...]:
        return receive(question_text(turns[event.index]), turns[: event.index])

    def edit(turns: Turns, event: gr.EditData) -> tuple[Any, ...]:
        box, chat, emergency, refusal = receive(event.value, turns[: event.index])
        if refusal:  # the page shows the edited text over the old answer: take both back into the box
            box, chat = _ready(event.value), turns[: event.index]
        return box, chat, emergency, refusal

    def example(turns: Turns, event: gr.SelectData) -> tuple[Any, ...]:
        return receive(event.value["text"], turns)

    def undo(turns: Turns, event: gr.UndoData) -> tuple[Any, ...]:
        return _ready(question_text(turns[event.index])), turns[: event.index]

    shown = [box, chat, emergency, refusal]
    steps = [
        box.submit(receive, [box, chat], shown, **STEP_ONE),
        chat.retry(retry, chat, shown, **STEP_ONE),
        chat.edit(edit, chat, shown, **STEP_ONE),
        chat.example_select(example, chat, shown, **STEP_ONE),
    ]
    respond = _responder(assistant)
    answers = [
        step.then(respond, [chat, model, *settings], [chat, box], **STEP_TWO, **engine_queue) for step in steps
    ]
    for answer in answers:
        answer.failure(_ready, None, box, **STEP_ONE)
    chat.undo(undo, chat, [box, chat], **STEP_ONE)
    chat.clear(lambda: (_ready(), [], None, None), None, shown, **STEP_ONE)
    stops = [box.stop, box.submit, chat.clear, chat.undo, chat.retry, chat.edit, chat.example_select]
    gr.on(stops, None, cancels=answers)
    box.stop(_stop, chat, [box, chat], **STEP_ONE)
    return settings


def _build_compare(
    assistant: Assistant,
    emergency: gr.HTML,
    settings: list[Any],
    receive: Receiver,
    engine_queue: dict[str, Any],
) -> None:
    """One question, both models side by side, one Stop."""
    with gr.Row(elem_id="pair"):
        chats = [_chatbot(f"{name} model", show_label=True, elem_id=f"compare-{i}") for i, name in enumerate(MODELS)]
    refusal = _html("refusal", elem_id="compare-refusal", elem_classes="refusal")
    box = _question_box("Ask both models the same question", elem_id="compare-question")

    def receive_for_both(message: str, *turns: Turns) -> tuple[Any, ...]:
        box_update, new_turns, banner, refusal_line = receive(message, [])
        return box_update, new_turns, new_turns, banner, refusal_line

    def respond(left: Turns, right: Turns, *values: Any) -> Iterator[tuple[Any, ...]]:
        if not left or left[-1]["role"] != "user":
            yield left, right, _ready()
            return
        for replies in assistant.answer_both(question_text(left[-1]), _options(*values)):
            yield *([*left, assistant_turn(reply)] for reply in replies), _answering()
        yield gr.skip(), gr.skip(), _ready()

    step = box.submit(receive_for_both, [box, *chats], [box, *chats, emergency, refusal], **STEP_ONE)
    answer = step.then(respond, [*chats, *settings], [*chats, box], **STEP_TWO, **engine_queue)
    answer.failure(_ready, None, box, **STEP_ONE)
    gr.on([box.stop, box.submit], None, cancels=[answer])
    box.stop(_stop_both, chats, [box, *chats], **STEP_ONE)


def _chatbot(label: str, show_label: bool = False, **properties: Any) -> gr.Chatbot:
    return gr.Chatbot(
        label=label,
        show_label=show_label,
        height="auto",
        scale=1,
        layout="bubble",
        buttons=["copy"],  # no share button
        latex_delimiters=[],
        allow_tags=False,
        feedback_options=None,
        **properties,
    )


def _question_box(placeholder: str, elem_id: str) -> gr.Textbox:
    return gr.Textbox(
        placeholder=placeholder,
        label="Your question",
        show_label=False,
        elem_id=elem_id,
        max_lines=6,
        submit_btn=True,
    )


def _settings(assistant: Assistant) -> list[Any]:
    """The inputs of `_options`, in its order."""
    default, longest = Options(), min(1024, assistant.engine.context_tokens // 2)
    return [
        gr.Slider(32, longest, min(default.max_new_tokens, longest), step=32, label="Longest answer (tokens)"),
        gr.Slider(
            0, 1.5, default.temperature, step=0.1, label="Temperature", info="0: always the likeliest words"
        ),
        gr.Slider(0.05, 1, default.top_p, step=0.05, label="Top-p", info="Used where the temperature is above 0"),
        gr.Number(default.seed, precision=0, minimum=0, label="Seed", info="Same seed, same answer"),
    ]


def _options(max_new_tokens: float, temperature: float, top_p: float, seed: float | None) -> Options:
    return Options(True, int(max_new_tokens), float(temperature), float(top_p), int(seed or 0))


def _receiver(busy: Callable[[], bool]) -> Receiver:
    """Step one. A refused message changes nothing but the refusal's line."""

    def receive(message: str, turns: Turns) -> tuple[Any, Any, Any, Any]:
        triage = screen(message, conversation(turns))
        if triage.level == "emergency":
            reply = assistant_turn(emergency_reply(triage))
            return _ready(""), [*turns, user_turn(message), reply], _banner(triage), None
        try:
            validate_question(message)
            if busy():
                raise UserError(BUSY)
        except UserError as error:
            return gr.skip(), gr.skip(), gr.skip(), {"message": str(error)}
        return _answering(""), [*turns, user_turn(message)], gr.skip(), None

    return receive


def _responder(assistant: Assistant) -> Callable[..., Iterator[tuple[Any, Any]]]:
    """Step two: updates of (chat, box). It sets the box itself, for a `.then` would also follow a cancellation."""

    def respond(turns: Turns, model: str, *values: Any) -> Iterator[tuple[Any, Any]]:
        if not turns or turns[-1]["role"] != "user":  # step one answered or refused the message
            yield turns, _ready()
            return
        history, message = conversation(turns[:-1]), question_text(turns[-1])
        try:
            for reply in assistant.answer(message, history, model, _options(*values)):
                yield [*turns, assistant_turn(reply)], _answering()
        except UserError as error:
            yield [*turns, assistant_turn(refused(error))], gr.skip()
        yield gr.skip(), _ready()

    return respond


def _ready(text: str | None = None) -> Any:
    """The question box with its Send button, holding `text` where given."""
    return gr.update(submit_btn=True, stop_btn=False, **({} if text is None else {"value": text}))


def _answering(text: str | None = None) -> Any:
    """The question box with Stop in place of Send."""
    return gr.update(submit_btn=False, stop_btn=True, **({} if text is None else {"value": text}))


def _stop(turns: Turns) -> tuple[Any, Turns]:
    return _ready(), stopped_turn(turns)


def _stop_both(*chats: Turns) -> tuple[Any, ...]:
    return _ready(), *(stopped_turn(turns) for turns in chats)


def _banner(triage: Triage) -> dict[str, Any]:
    """The values of assets/page/emergency.html."""
    return {"reasons": ", ".join(triage.reasons), "crisis": "suicide" in triage.categories}


def _api_endpoint(assistant: Assistant) -> Callable[..., Iterator[str]]:
    def chat(message: str, model: Literal["Fine-tuned", "Base"] = "Fine-tuned") -> Iterator[str]:
        try:
            assistant.check_model(model)
            for reply in assistant.answer(message, [], model):
                yield reply.plain_text()
            if reply.failed:
                raise UserError(reply.notes[-1])
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return chat


def _about(assistant: Assistant) -> str:
    """Return the About text with what is loaded."""
    loaded = "\n".join(f"- {assistant.footer(model)}" for model in assistant.models)
    missing = "" if FINE_TUNED in assistant.models else f"\n\n{FINE_TUNED}: not available. {BASE} only."
    return _asset("about.md").replace("{{loaded}}", loaded + missing)
