"""What happens between a question and its answer, without the page.

`Assistant.answer` takes a `Question`, which only `prepare` makes: the safety rules have read it before any model can.
The library answers with quoted lines of its pages and needs no model. What a model writes passes the output filter and
the repetition detector before it is shown, and stands below what the library has on the same question.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from medical_assistant.chat.confidence import Calibration, Signals, describe
from medical_assistant.chat.question import Question, prepare
from medical_assistant.chat.repetition import RepetitionDetector, without_repetition
from medical_assistant.chat.small_talk import small_talk
from medical_assistant.engines.base import Engine, Options, Token
from medical_assistant.errors import AdapterError, EngineError, UserError, without_text
from medical_assistant.library.answer import FROM_LIBRARY, NumberedSource, QuotedAnswer, quoted_answer, source_list
from medical_assistant.library.passages import Found, Library
from medical_assistant.library.questions import find_each
from medical_assistant.prompts import Message, build_messages, trim_history
from medical_assistant.safety.output_filter import OutputFilter
from medical_assistant.safety.screening import Screening

logger = logging.getLogger(__name__)

LIBRARY, FINE_TUNED, BASE = "Library", "Fine-tuned", "Base"
WHO_ANSWERS = (LIBRARY, FINE_TUNED, BASE)

MAX_ANSWER_TOKENS = 1024

# One update per token costs Gradio half of the decoding speed (27-36 against 80-90 tokens/s).
UPDATE_INTERVAL_S = 0.07
BLOCKED_NOTE = "Part of this answer was left out because it could do harm. Ask a doctor, a nurse or a pharmacist."
REPETITION_NOTE = "The model began to repeat itself: the answer ends here."
MODEL_WARNING = "This model answers from memory and is often wrong."
NOT_ENGLISH = (
    "My library is in English, so I can answer only in English: ask in English, for example \u201cWhat are the signs "
    "of malaria?\u201d, or ask a doctor, a nurse or a pharmacist. In an emergency, call your local emergency number."
)
LIBRARY_FAILED_NOTE = "The library failed on this question: ask in other words."
RULES_LABEL = "Safety rules \u00b7 no model was used"
SMALL_TALK_LABEL = "Fixed reply \u00b7 no model was used"
COVERAGE_LINES = {"covered": "In the sources", "partly": "Partly in the sources", "not": "Not in the sources"}


@dataclass(frozen=True)
class Searched:
    """What the library searched for a question, for "Show what was searched" and the API.

    `query`: the question with the topic of the conversation. `topics`: titles of pages. `asked`: headings of
    sections. `coverage`, `probability` and `signals` as those of `Found`.
    """

    query: str
    topics: tuple[str, ...]
    asked: tuple[str, ...]
    coverage: str
    probability: float
    signals: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Reply:
    """An answer so far. `text` is what `origin` says; only `text` goes to a model as history."""

    text: str
    footer: str  # which model, adapter and engine answered
    advice: str = ""  # the safety layer's line before the answer
    notes: tuple[str, ...] = ()  # what the reader must know: shortened history, a restart, a cut
    failed: bool = False  # the engine failed on the way
    confidence: str = ""  # how often such answers were good, once the answer has ended; for the page alone
    tokens: int = 0  # that the model has made
    emergency: bool = False  # the rules answered an emergency
    waiting: str = ""  # the place in the queue, while others are answered; for the page alone
    origin: Literal["model", "library", "rules"] = "model"  # only a model's answer waits for a free slot
    warning: str = ""  # stands above what a model says
    library: str = ""  # what the library has on the question, above a model's answer
    sources: tuple[NumberedSource, ...] = ()  # of the quoted lines, in `text` or `library`
    searched: Searched | None = None  # where the library was asked

    def plain_text(self) -> str:
        """Return everything that the reader must see as one text, for the API. The quoted lines end with sources."""
        sources = f"Sources:\n\n{source_list(self.sources)}" if self.sources else ""
        quoted = [f"{FROM_LIBRARY}:", self.library, sources] if self.library else []
        own = [self.warning, self.text, *self.notes, "" if quoted else sources]
        return "\n\n".join(part for part in (self.advice, *quoted, *own) if part)


class Assistant:
    """A library and a model behind the safety rules. `problem` says why there is no fine-tuned model, if so.

    `calibration` is the adapter's, for the confidence under its answers; None shows none. `library` None: the models
    alone answer.
    """

    def __init__(
        self,
        engine: Engine,
        problem: str | None = None,
        calibration: Calibration | None = None,
        library: Library | None = None,
    ) -> None:
        self.engine = engine
        self.library = library
        self.problem = problem
        self.calibration = calibration
        prepare("")  # reads the rules now: a broken rules file must stop the start, not the first message
        OutputFilter("")

    @property
    def models(self) -> tuple[str, ...]:
        """The names that can answer, the default first: all, without those for which nothing is loaded."""
        missing = {FINE_TUNED} if self.engine.info.adapter is None else set()
        missing |= {LIBRARY} if self.library is None else set()
        return tuple(name for name in WHO_ANSWERS if name not in missing)

    @property
    def longest_answer(self) -> int:
        """The most tokens that the page lets an answer have: at most half of what the model can read."""
        return min(MAX_ANSWER_TOKENS, self.engine.context_tokens // 2)

    def footer(self, model: str) -> str:
        """Return what is shown with each answer of `model`, such as `Base · smollm2-135m · llama_cpp`."""
        if model == LIBRARY:
            return FROM_LIBRARY
        info = self.engine.info
        parts = [model, Path(info.model).name if "/" in info.model else info.model]
        if model == FINE_TUNED:
            parts.append(f"adapter {(info.adapter_revision or 'unknown')[:12]}")
        return " \u00b7 ".join([*parts, info.engine])

    def check_model(self, model: str) -> None:
        """Raise `UserError` for an unknown name or a missing library, `AdapterError` for a missing adapter."""
        if model not in WHO_ANSWERS:
            raise UserError(f"Unknown model {str(model)[:40]!r}: use {LIBRARY!r}, {FINE_TUNED!r} or {BASE!r}.")
        if model == LIBRARY and self.library is None:
            raise UserError(f"No library is loaded. Choose {BASE!r}, or start the app with --library shipped.")
        if model not in self.models:
            reason = self.problem or "No adapter is loaded."
            raise AdapterError(f"The fine-tuned model is not available ({reason}) Choose {BASE!r}.")

    def answer(
        self, question: Question, model: str, options: Options | None = None, with_library: bool = True
    ) -> Generator[Reply, None, None]:
        """Yield the answer as it grows, at most one update per `UPDATE_INTERVAL_S`; the library's comes whole.

        `options.adapter` is set from `model`. `with_library`: what the library has on the question stands above a
        model's answer; False only where it is shown beside it. Closing the generator stops the model. A question that
        the rules call an emergency, or a request for harm, gets their answer, and neither library nor model is asked.
        The generator raises `TypeError` for what is no `Question`, `UserError` for one that cannot be answered and
        as `check_model`. An engine that fails on the way does not raise: the text so far stays, with a note.
        """
        if not isinstance(question, Question):
            raise TypeError(f"An answer needs a Question of chat.question.prepare, not {type(question).__name__}.")
        if question.screening.answer:
            yield rules_reply(question.screening)
            return
        if question.refusal:
            raise UserError(question.refusal)
        self.check_model(model)
        if model == LIBRARY:
            yield self._library_reply(question)
            return
        options = replace(options or Options(), adapter=model == FINE_TUNED)
        if not 1 <= options.max_new_tokens <= MAX_ANSWER_TOKENS:
            raise UserError(f"An answer cannot have {options.max_new_tokens} tokens: use 1 to {MAX_ANSWER_TOKENS}.")
        triage = question.screening.triage
        reply = Reply("", self.footer(model), triage.notice, warning=MODEL_WARNING)
        if with_library:
            reply = self._above_a_model(reply, question)
        # The first update before the model works: Gradio can only close a generator that has yielded.
        yield reply
        try:
            messages, dropped = trim_history(
                build_messages(question.clean, _read_by_models(question.history)),
                self.engine.count_tokens,
                self.engine.context_tokens - options.max_new_tokens,
            )
            if dropped:
                reply = replace(reply, notes=(*reply.notes, _trimmed_note(dropped)))
            signals = Signals()
            output_filter = OutputFilter(question.clean, triage.reasons)
            for grown in _grow(reply, self.engine.stream(messages, options), signals, output_filter):
                reply = grown
                yield reply
            confidence = "" if question.history else self._confidence(reply, options, signals)
            if confidence:
                yield replace(reply, confidence=confidence)
        except EngineError as error:
            yield replace(reply, notes=(*reply.notes, f"This answer is not complete. {error}"), failed=True)
        except UserError:
            raise
        except Exception as error:  # a fault of ours: the text so far must not be lost with it
            logger.error("%s", without_text(error))
            note = "This answer is not complete. The model failed: ask again."
            yield replace(reply, notes=(*reply.notes, note), failed=True)

    def _library_reply(self, question: Question) -> Reply:
        """Return the library's answer, or the fixed reply to small talk."""
        advice = question.screening.triage.notice
        fixed = small_talk(question.clean)
        if fixed:
            return Reply(fixed, SMALL_TALK_LABEL, advice, origin="library")
        found = self._find(question)
        if found is None:
            return Reply("", FROM_LIBRARY, advice, (LIBRARY_FAILED_NOTE,), failed=True, origin="library")
        answer = quoted_answer(found)
        not_english = () if question.screening.in_english else (NOT_ENGLISH,)
        return Reply(
            NOT_ENGLISH if not_english and found.coverage == "not" else answer.text,
            _library_footer(answer),
            advice,
            () if found.coverage == "not" else not_english,
            confidence=COVERAGE_LINES[found.coverage],
            origin="library",
            sources=answer.sources,
            searched=_searched(found),
        )

    def _above_a_model(self, reply: Reply, question: Question) -> Reply:
        """Return `reply` with what the library has on the question, where it covers it."""
        if self.library is None:
            return reply
        found = self._find(question)
        if found is None:
            return replace(reply, notes=(*reply.notes, LIBRARY_FAILED_NOTE))
        if found.coverage != "covered":
            return replace(reply, searched=_searched(found))
        answer = quoted_answer(found)
        return replace(reply, library=answer.text, sources=answer.sources, searched=_searched(found))

    def _find(self, question: Question) -> Found | None:
        """Return what the library has on the question, None where it fails."""
        assert self.library is not None
        earlier = [message["content"] for message in question.history if message["role"] == "user"]
        try:
            return find_each(self.library, question.clean, earlier)
        except Exception as error:  # a fault of ours must not end the conversation
            logger.error("%s", without_text(error))
            return None

    def _confidence(self, reply: Reply, options: Options, signals: Signals) -> str:
        """Return the line for an answer that has ended, empty where nothing was measured on answers like it.

        Measured were greedy answers of the fine-tuned model to single questions. Under advice to see a doctor no
        figure may seem to weigh against it.
        """
        values = signals.values()
        if not options.adapter or reply.advice or not reply.text or values["ended"] is None:
            return ""
        if self.calibration is None or not self.calibration.covers(options, values):
            return ""
        return describe(self.calibration.confidence(values))

    def answer_each(self, question: Question, options: Options | None = None) -> Iterator[tuple[Reply, ...]]:
        """Yield the answers of all `models` to one question side by side, as `answer` each. Closing stops all.

        The first update comes before any work, as that of `answer`.
        """
        sides = [self.answer(question, model, options, with_library=False) for model in self.models]
        updates: queue.SimpleQueue[tuple[int, Reply | None]] = queue.SimpleQueue()
        stopped = threading.Event()

        def collect(index: int) -> None:
            try:
                for reply in sides[index]:
                    updates.put((index, reply))
                    if stopped.is_set():
                        return
            except UserError as error:
                updates.put((index, refused(error)))
            finally:
                sides[index].close()
                updates.put((index, None))

        shown = [_first(side) for side in sides]
        yield tuple(shown)
        with ThreadPoolExecutor(len(shown)) as pool:
            running = [pool.submit(collect, index) for index in range(len(sides))]
            try:
                left = len(shown)
                while left:
                    index, reply = updates.get()
                    if reply is None:
                        left -= 1
                        continue
                    shown[index] = reply
                    yield tuple(shown)
            finally:
                stopped.set()
        for side in running:
            side.result()  # an unexpected error is not swallowed


def _first(replies: Iterator[Reply]) -> Reply:
    """Return the first update, or what is shown where there is no answer."""
    try:
        return next(replies)
    except UserError as error:
        return refused(error)


def refused(error: UserError) -> Reply:
    """Return what is shown in place of an answer that cannot be given."""
    return Reply("", "Not answered", notes=(str(error),))


def rules_reply(screening: Screening) -> Reply:
    """Return the rules' answer to a message that no model may answer."""
    return Reply(screening.answer, RULES_LABEL, emergency=screening.triage.level == "emergency", origin="rules")


def _library_footer(answer: QuotedAnswer) -> str:
    """Return `From the library` with the number of pages that the answer quotes."""
    n_pages = len({page.id for page, _ in answer.lines})
    if not n_pages:
        return FROM_LIBRARY
    return f"{FROM_LIBRARY} \u00b7 {n_pages} page{'s' if n_pages > 1 else ''}"


def _searched(found: Found) -> Searched:
    return Searched(
        found.query,
        tuple(part.topic.title for part in found.parts),
        tuple(dict.fromkeys(name for part in found.parts for name in part.asked)),
        found.coverage,
        round(found.probability, 3),
        tuple((name, round(value, 3)) for name, value in found.signals),
    )


def _grow(reply: Reply, tokens: Iterator[Token], signals: Signals, output_filter: OutputFilter) -> Iterator[Reply]:
    """Yield `reply` with more and more text, by whole sentences that `output_filter` lets through.

    What was not shown yet is shown when the stream fails. `signals` gets the tokens, and whether the model ended by
    itself.
    """
    text, shown_at_s, reason, repetition = "", 0.0, "stop", RepetitionDetector()
    with closing(tokens):  # type: ignore[type-var]  # engines return generators
        while True:
            try:
                token = next(tokens)
            except StopIteration as end:
                reason = end.value or "stop"
                break
            except EngineError:
                yield replace(reply, text=text + output_filter.finish())
                raise
            signals.add(token)
            reply = replace(reply, tokens=len(signals.logprobs))
            text += output_filter.feed(token.text)
            if repetition.feed(token.text):
                reason = "repetition"
                break
            # Also without new text (the engine reads a long prompt): a generator can be closed only at a yield.
            if time.monotonic() - shown_at_s >= UPDATE_INTERVAL_S:
                yield replace(reply, text=text)
                shown_at_s = time.monotonic()
    text += output_filter.finish()
    # An answer that was cut short is none that its confidence was measured on: its end stays unknown.
    signals.ended = None if reason == "repetition" else reason == "stop"
    notes = reply.notes
    if output_filter.blocked:
        logger.info("blocked: %s", ", ".join(output_filter.blocked))  # names of rules, never the text
        notes += (BLOCKED_NOTE,)
    if reason == "repetition":
        text = without_repetition(text)
        notes += (REPETITION_NOTE,)
    if reason == "length":
        notes += ("The answer reached its length limit: raise \u201cLongest answer\u201d in Settings for more.",)
    if not text.strip() and not output_filter.blocked:
        notes += ("The model gave no answer: ask in other words.",)
    yield replace(reply, text=text.rstrip(), notes=notes)


def _read_by_models(history: Sequence[Message]) -> list[Message]:
    """Return the history without questions that no model answered: roles must alternate in a chat template."""
    answered = {index - 1 for index, message in enumerate(history) if message["role"] == "assistant"}
    return [message for index, message in enumerate(history) if message["role"] == "assistant" or index in answered]


def _trimmed_note(dropped: int) -> str:
    left_out = "oldest message was" if dropped == 1 else f"{dropped} oldest messages were"
    return f"The conversation is longer than the model can read: the {left_out} left out."
