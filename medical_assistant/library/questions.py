"""A message with several questions: each is searched on its own where the whole message hides a topic."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from medical_assistant.library.pages import Section
from medical_assistant.library.passages import Coverage, Found, Library, Part, Passage

MAX_QUESTIONS = 5
_SENTENCE = re.compile(r"[^.!?\n]*(?:[.!?](?!\s|$)[^.!?\n]*)*[.!?]*")
_ASKS = r"(?:how|what|when|why|where|who|which|can|could|should|do|does|is|are|will)\b"
_BEGINS_TO_ASK = re.compile(_ASKS, re.IGNORECASE)
_NEXT_QUESTION = re.compile(rf",?\s+(?:and|or|also|but)\s+(?={_ASKS})", re.IGNORECASE)
_LETTER = re.compile(r"[^\W\d_]")


@dataclass(frozen=True)
class Asked:
    """A question of a message. `before`: the sentences since the last one, which may say what it is about."""

    text: str
    before: str


def find_each(library: Library, message: str, earlier: Sequence[str] = ()) -> Found:
    """Return what the library has on a message, as `Library.find`; of several questions what it has on each.

    The message is searched as a whole first. Its first `MAX_QUESTIONS` questions are answered apart only where at least
    two are covered and one of them asks for what the whole did not find: "Is it serious?" alone is no question.
    What only the whole found stays.
    """
    whole = library.find(message, earlier)
    questions = questions_of(message)
    if len(questions) < 2:
        return whole
    found, before = [], list(earlier)
    for question in questions[:MAX_QUESTIONS]:
        found.append(_find(library, question, before))
        before += [question.before, question.text]
    answered = [one for one in found if one.coverage != "not" and one.parts]
    of_whole = whole.parts if whole.coverage != "not" else ()
    known = {part.topic.id for part in of_whole}
    shown = {(part.topic.id, passage.section.heading) for part in of_whole for passage in part.passages}
    best = {
        (part.topic.id, next((passage.section.heading for passage in part.passages), ""))
        for one in answered
        for part in one.parts
    }
    if len(answered) < 2 or shown >= best:
        return whole
    parts = _joined([*(part for one in answered for part in one.parts), *of_whole])
    left_out = max(len(questions), len(parts)) - MAX_QUESTIONS
    unanswered = tuple(
        question.text
        for question, one in zip(questions, found, strict=False)
        if one not in answered and known.isdisjoint(part.topic.id for part in one.parts)
    )
    covered: Coverage = "covered" if all(one.coverage == "covered" for one in found) else "partly"
    return replace(
        min(answered, key=lambda one: one.probability),
        query=" ".join(one.query for one in found),
        coverage=covered,
        parts=parts[:MAX_QUESTIONS],
        nearest=(),
        unanswered=unanswered,
        left_out=max(0, left_out),
    )


def questions_of(message: str) -> list[Asked]:
    """Return the questions of a message, each text once, in order.

    A question is a sentence that ends with a question mark; one that begins as a question and goes on with another
    ("what causes gout and how is it treated") is two.
    """
    questions: dict[str, Asked] = {}
    before: list[str] = []
    for match in _SENTENCE.finditer(message):
        sentence = match[0].strip()
        if not _LETTER.search(sentence):
            continue
        asked = _NEXT_QUESTION.split(sentence) if _BEGINS_TO_ASK.match(sentence) else [sentence]
        if len(asked) == 1 and not sentence.rstrip("!.").endswith("?"):
            before.append(sentence)
            continue
        for question in asked:
            questions.setdefault(question.casefold(), Asked(question, " ".join(before)))
            before = []
    return list(questions.values())


def _find(library: Library, question: Asked, earlier: Sequence[str]) -> Found:
    """Return what there is on a question, alone or with the sentences before it, whichever is covered better."""
    alone = library.find(question.text, [*earlier, question.before] if question.before else earlier)
    if alone.coverage == "covered" or not question.before:
        return alone
    return max(alone, library.find(f"{question.before} {question.text}", earlier), key=lambda found: found.probability)


def _joined(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Return the parts with all that was asked of one page as one part, in the order of the questions."""
    of_page: dict[str, Part] = {}
    for part in parts:
        known = of_page.get(part.topic.id)
        if known is None:
            of_page[part.topic.id] = part
            continue
        passages: dict[Section, Passage] = {passage.section: passage for passage in (*known.passages, *part.passages)}
        of_page[part.topic.id] = replace(
            known, asked=tuple(dict.fromkeys((*known.asked, *part.asked))), passages=tuple(passages.values())
        )
    return tuple(of_page.values())
