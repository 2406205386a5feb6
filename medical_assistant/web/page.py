"""The page: Gradio components around `chat.Assistant`. How an answer runs is in `web.turns`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, Literal

import gradio as gr
import yaml

from medical_assistant.chat.assistant import FINE_TUNED, LIBRARY, WHO_ANSWERS, Assistant, Reply
from medical_assistant.chat.confidence import WORDS, Calibration
from medical_assistant.chat.question import Question, prepare
from medical_assistant.engines.base import Options
from medical_assistant.errors import UserError
from medical_assistant.files import ASSETS
from medical_assistant.markdown import safe_in_template, safe_markdown
from medical_assistant.safety.emergency_numbers import countries, country_of
from medical_assistant.web.history import as_json, shown, shown_question, split_at
from medical_assistant.web.requests import RequestTracker
from medical_assistant.web.turns import SEND, STEP_ONE, Panel, read_options, ready

# Gradio gives a thread to each answer that runs or waits: more than `web.queue.MAX_WAITING` and the slots need, for
# the safety rules answer in one too, and at once.
MAX_THREADS = 160
# Gradio 6.31 has a session for each visitor and API call and keeps the last 10,000. Of ours, only a question between
# its two steps is in them: where that session has gone, the question is read again.
SESSIONS_KEPT = 100

BASE_ALONE = "Only the base model is available."
OTHER_ADAPTER = "This may not be the adapter that was asked for."


def build_page(assistant: Assistant, tracker: RequestTracker | None = None) -> gr.Blocks:
    """Return the page. `tracker` has the queue, counts and limits each client; without it nobody is limited."""
    tracker = tracker or RequestTracker()

    def forget(request: gr.Request) -> None:
        """Drop what Gradio keeps of a visitor who has left, for an hour else."""
        page.state_holder.session_data.pop(request.session_hash, None)

    def country_of_browser(request: gr.Request) -> str:
        return country_of(request.headers.get("accept-language", ""))

    with gr.Blocks(title="Medical Assistant", analytics_enabled=False, fill_height=True) as page:
        _html("header", elem_id="top", js_on_load=_asset("scroll.js"))
        _html("first_use", elem_id="first-use", js_on_load=_asset("first_use.js"))
        if assistant.problem:
            title = OTHER_ADAPTER if FINE_TUNED in assistant.models else BASE_ALONE
            _html("problem", {"title": title, "problem": safe_in_template(assistant.problem)}, elem_id="problem")
        emergency = _html("emergency", elem_id="emergency")
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Ask", elem_id="ask", scale=1):
                settings, country = _build_ask(assistant, emergency, tracker)
            if len(assistant.models) > 1:
                with gr.Tab("Compare", elem_id="compare", scale=1):
                    _build_compare(assistant, emergency, settings, country, tracker)
            with gr.Tab("About", elem_id="about"):
                gr.Markdown(_about(assistant), latex_delimiters=[])
        page.load(country_of_browser, None, country, **STEP_ONE)
        page.unload(forget)
        gr.api(
            _api_endpoint(assistant, tracker),
            api_name="chat",
            api_description="Answer a health question. The last value is the whole answer.",
            concurrency_limit=None,
        )
        if assistant.library is not None:
            gr.api(
                _library_endpoint(assistant, tracker),
                api_name="library",
                api_description="Answer a health question from the library, with its sources as data.",
                concurrency_limit=None,
            )
    page.queue(max_size=MAX_THREADS, default_concurrency_limit=None, api_open=False)
    return page


def launch_options() -> dict[str, Any]:
    """Return the keyword arguments of `launch` that belong to the page: look and privacy."""
    fonts: dict[str, Any] = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    theme = gr.themes.Default(primary_hue="teal", neutral_hue="slate", **fonts).set(
        # slate 400, Gradio's choice, has a contrast of 2.6 on white; WCAG 2.2 AA asks for 4.5
        body_text_color_subdued="*neutral_500",
        block_info_text_color="*neutral_500",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
    )
    return {
        "theme": theme,
        "css_paths": ASSETS / "style.css",
        "footer_links": ["api", "settings"],
        "run_history": False,  # it would keep conversations
        "enable_monitoring": False,
        "ssr_mode": False,
        "max_threads": MAX_THREADS,
        "state_session_capacity": SESSIONS_KEPT,
    }


def _asset(name: str) -> str:
    return (ASSETS / "page" / name).read_text(encoding="utf-8")


def _html(template: str, value: Any = None, **properties: Any) -> gr.HTML:
    """A block from assets/page. Foreign text among its values goes through `safe_in_template`."""
    properties = {"js_on_load": None, **properties}
    return gr.HTML(value, html_template=_asset(f"{template}.html"), apply_default_css=False, **properties)


def load_examples() -> list[dict[str, str]]:
    """Return `label` and `question` of each example of `assets/examples.yaml`."""
    examples: list[dict[str, str]] = yaml.safe_load((ASSETS / "examples.yaml").read_text(encoding="utf-8"))
    return examples


def _build_ask(assistant: Assistant, emergency: gr.HTML, tracker: RequestTracker) -> tuple[list[Any], gr.Dropdown]:
    """Build the tab; return the settings' inputs, and the country of the emergency numbers."""
    model = gr.Radio(
        WHO_ANSWERS if assistant.library is not None else WHO_ANSWERS[1:],
        value=assistant.models[0],
        label="Who answers",
        interactive=len(assistant.models) > 1,
        container=False,
        elem_id="model",
    )
    chat = _chatbot(
        "Conversation",
        elem_id="chat",
        editable="user",
        placeholder="## What would you like to know?",
        examples=[{"text": example["question"], "display_text": example["label"]} for example in load_examples()],
    )
    refusal = _html("refusal", elem_id="refusal", elem_classes="refusal")
    box = _question_box("Type a health question", elem_id="question")
    with gr.Accordion("Settings", open=False, elem_id="settings"):
        settings = _settings(assistant)
        choices = [("Not set", ""), *((known["name"], code) for code, known in countries().items())]
        country = gr.Dropdown(choices, value="", label="Country", info="For the emergency numbers", elem_id="country")

    panel = Panel(box, [chat], emergency, refusal, country, tracker, model)

    def ask(question: Question, model: str, *values: Any) -> Iterator[Reply]:
        return assistant.answer(question, model, read_options(*values))

    def retry(history: Any, event: gr.RetryData, *values: Any) -> tuple[Any, ...]:
        exchange, before = split_at(history, event.index)
        return panel.begin(exchange.question, before, *values)

    def edit(history: Any, event: gr.EditData, *values: Any) -> tuple[Any, ...]:
        exchange, before = split_at(history, event.index)
        # The field of Gradio's page begins with what is shown of the question.
        message = exchange.question if event.value == shown_question(exchange.question) else event.value
        return panel.begin(message, before, *values, edited=True)

    def example(event: gr.SelectData, *values: Any) -> tuple[Any, ...]:
        return panel.start(event.value["text"], *values)

    def undo(history: Any, event: gr.UndoData) -> tuple[Any, ...]:
        exchange, before = split_at(history, event.index)
        return ready(exchange.question), shown(before), as_json(before)

    interrupts = [chat.clear, chat.undo, chat.retry, chat.edit, chat.example_select]
    panel.answer_with(ask, [model, *settings], interrupts)
    box.submit(panel.start, [box, *panel.inputs], panel.outputs, **STEP_ONE)
    for event, step in ((chat.retry, retry), (chat.edit, edit), (chat.example_select, example)):
        event(step, panel.inputs, panel.outputs, **STEP_ONE)
    chat.undo(undo, panel.history, [box, chat, panel.history], **STEP_ONE)
    chat.clear(panel.clear, None, panel.outputs, **STEP_ONE)
    return settings, country


def _build_compare(
    assistant: Assistant, emergency: gr.HTML, settings: list[Any], country: gr.Dropdown, tracker: RequestTracker
) -> None:
    """One question, all that can answer side by side, one Stop."""
    with gr.Row(elem_id="pair"):
        chats = [
            _chatbot(name if name == LIBRARY else f"{name} model", show_label=True, elem_id=f"compare-{i}")
            for i, name in enumerate(assistant.models)
        ]
    refusal = _html("refusal", elem_id="compare-refusal", elem_classes="refusal")
    box = _question_box("Ask all the same question", elem_id="compare-question")

    panel = Panel(box, chats, emergency, refusal, country, tracker)

    def ask(question: Question, *values: Any) -> Iterator[tuple[Reply, ...]]:
        return assistant.answer_each(question, read_options(*values))

    def start(message: str, _history: Any, *values: Any) -> tuple[Any, ...]:
        return panel.begin(message, [], *values)  # each comparison is a conversation of its own

    clears = [chat.clear for chat in chats]
    panel.answer_with(ask, settings, clears)
    gr.on(clears, panel.clear, None, panel.outputs, **STEP_ONE)
    box.submit(start, [box, *panel.inputs], panel.outputs, **STEP_ONE)


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
        submit_btn=SEND,
    )


def _settings(assistant: Assistant) -> list[Any]:
    """The inputs of `read_options`, in its order."""
    default, longest = Options(), assistant.longest_answer
    return [
        gr.Slider(32, longest, min(default.max_new_tokens, longest), step=32, label="Longest answer (tokens)"),
        gr.Slider(0, 1.5, default.temperature, step=0.1, label="Temperature", info="0: the most likely word"),
        gr.Slider(0.05, 1, default.top_p, step=0.05, label="Top-p", info="Used only when the temperature is above 0"),
        gr.Number(default.seed, precision=0, minimum=0, label="Seed", info="The same seed gives the same answer"),
    ]


def _api_endpoint(assistant: Assistant, tracker: RequestTracker) -> Callable[..., Iterator[str]]:
    default = LIBRARY if assistant.library is not None else FINE_TUNED

    def chat(
        request: gr.Request,
        message: str,
        model: Literal["Library", "Fine-tuned", "Base"] = default,  # type: ignore[assignment]
        country: str = "",
        max_new_tokens: int = Options().max_new_tokens,
    ) -> Iterator[str]:
        options = Options(max_new_tokens=int(max_new_tokens))
        for reply in _answer_program(assistant, tracker, request, message, model, country, options):
            yield reply.plain_text()

    return chat


def _library_endpoint(assistant: Assistant, tracker: RequestTracker) -> Callable[..., dict[str, Any]]:
    def library(request: gr.Request, message: str, country: str = "") -> dict[str, Any]:
        *_, reply = _answer_program(assistant, tracker, request, message, LIBRARY, country)
        return library_json(reply)

    return library


def _answer_program(
    assistant: Assistant,
    tracker: RequestTracker,
    request: gr.Request,
    message: Any,
    model: str,
    country: str,
    options: Options | None = None,
) -> Iterator[Reply]:
    """Yield the answer to a program, which may send anything. What cannot be answered is a `gr.Error` that says why."""
    try:
        if not isinstance(message, str):
            raise UserError("The message is not a text: send a string.")
        question = prepare(message, country=country)
        for reply in tracker.watch(assistant.answer(question, model, options), request):
            yield reply
        if reply.failed:
            raise UserError(reply.notes[-1])
    except UserError as error:
        raise gr.Error(str(error), print_exception=False) from error


def library_json(reply: Reply) -> dict[str, Any]:
    """Return a library's reply as data: `text`, `answered_by`, `advice`, `coverage`, `sources` and `searched`.

    `answered_by` is "library", or "rules" for an emergency or a request for harm. `coverage` is "covered", "partly" or
    "not"; empty, and `searched` null, where nothing was searched.
    """
    searched = reply.searched
    return {
        "text": reply.text,
        "answered_by": reply.origin,
        "advice": reply.advice,
        "coverage": searched.coverage if searched else "",
        "sources": [
            {"number": entry.number, **asdict(entry.source), "page": entry.page, "quoted": list(entry.quoted)}
            for entry in reply.sources
        ],
        "searched": {**asdict(searched), "signals": dict(searched.signals)} if searched else None,
    }


def _about(assistant: Assistant) -> str:
    """Return the About text with what is loaded."""
    footers = [assistant.footer(model) if model != LIBRARY else LIBRARY for model in assistant.models]
    loaded = "\n".join(f"- {safe_markdown(' '.join(footer.split()))}" for footer in footers)
    missing = "" if FINE_TUNED in assistant.models else f"\n\n{FINE_TUNED}: not available."
    text = _asset("about.md").replace("{{confidence}}", _about_confidence(assistant.calibration))
    return text.replace("{{loaded}}", loaded + missing)


def _about_confidence(calibration: Calibration | None) -> str:
    """Return what the confidence under an answer means, or that there is none."""
    if calibration is None:
        return "Not shown: there is no calibration for the loaded model, or it cannot be read."
    # The label comes with the adapter, from whoever published it.
    label = safe_markdown(" ".join(calibration.label.split())[:300])
    return (
        f"A line below the first answer says how many in 10 answers of similar certainty were close to the reference "
        f"answer, measured on {calibration.n} test questions: {WORDS}. It does not say that an answer is true "
        f"({label}). Only {FINE_TUNED} at the tested settings (temperature {calibration.temperature:g}) has this line."
    )
