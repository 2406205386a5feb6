"""The quoted answer: lines of the library word for word, with numbered sources; or that the library has nothing on it.

No model takes part. The topic's name and definition come first, then the sections that were asked for, whole, the most
probable first, then "Get help now" of all topics, as a block quote, where they have it. Of a long section of a document
some lines stand for all.

What a page holds is data. The lines become Markdown that shows them as they are; a link that was in them is text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from medical_assistant.library.pages import DOCUMENT, URGENCY, Line, Page, Section, Source
from medical_assistant.library.passages import Found, Part, excerpt

FROM_LIBRARY = "From the library"
URGENT = URGENCY[0]
WHOLE_PARTS = 2  # of more topics only the section that was most probably asked for is shown
SHOWN_OF_QUESTION = 120  # characters
PARTLY = "The library may not have just what you asked. This is the closest that it has."
WHOM_TO_ASK = (
    "Ask a doctor, a nurse or a pharmacist. If it is urgent, call your local emergency number or go to the nearest "
    "emergency department."
)
HELP_WITH_MANY = (
    "Call your local emergency number if somebody is very ill or quickly gets worse. For the warning signs, ask about "
    "one of these alone."
)
OFF_TOPIC = (
    "I have nothing on this: my sources are about people's health. If it is about your health or that of someone else, "
    "please ask in other words, or ask a doctor, a nurse or a pharmacist."
)
LEFT_OUT = "There was more in your message: {n} more question{s}. Please ask again, one thing at a time."
MORE = "There is more on this in the source."
_WEB_ADDRESS = re.compile(r"https?://", re.IGNORECASE)
# What begins markup: CommonMark 0.31 sections 2.5 (entities), 4 (at the start of a line) and 6, GitHub's strikethrough
# and tables, and formulas.
_MARKUP = re.compile(r"[\\`*_~$\[\]|]|&(?=#?\w+;)|^(?:>|[#+=-](?!\w)|\d+(?=[.)]\s))")
_NO_ADDRESS = re.compile(r"[\s()<>\\\[\]]")  # would end a Markdown link, CommonMark 0.31 section 6.3


@dataclass(frozen=True)
class NumberedSource:
    """A source as it stands under an answer. `quoted`: the lines of the answer that cite it."""

    number: int
    source: Source
    page: str
    quoted: tuple[str, ...]


@dataclass(frozen=True)
class QuotedAnswer:
    """`text`: Markdown with source numbers such as [1]. `lines`: every quoted line, for the check against its page."""

    text: str
    sources: tuple[NumberedSource, ...]
    lines: tuple[tuple[Page, Line], ...]


def quoted_answer(found: Found) -> QuotedAnswer:
    """Return the answer to what was found; where nothing covers the question, whom to ask and the nearest pages."""
    if found.coverage == "not" or not found.parts:
        return QuotedAnswer(_nothing(found), (), ())
    writer = _Writer()
    if found.coverage == "partly" and not found.unanswered:
        writer.paragraph(PARTLY)
    for part in found.parts:
        if part.guessed and part.matched:
            writer.paragraph(f"I took this as a question about **{_plain(part.topic.title.lower())}**.")
        else:
            writer.paragraph(f"### {_plain(part.topic.title)}")
        writer.part(part, brief=len(found.parts) > WHOLE_PARTS)
    if len(found.parts) > WHOLE_PARTS:
        writer.paragraph(f"> **{URGENT}**\n>\n> {HELP_WITH_MANY}")
    else:
        writer.when_to_get_help(found.parts)
    if found.unanswered:
        questions = _listed([f"\u201c{_plain(_shortened(question))}\u201d" for question in found.unanswered])
        writer.paragraph(f"I have nothing on {questions}. {WHOM_TO_ASK}")
    if found.left_out:
        writer.paragraph(LEFT_OUT.format(n=found.left_out, s="s" if found.left_out > 1 else ""))
    return writer.answer()


class _Writer:
    """Puts passages one after another and numbers their sources across pages."""

    def __init__(self) -> None:
        self._blocks: list[str] = []
        self._numbers: dict[Source, int] = {}
        self._pages: dict[Source, str] = {}
        self._quoted: dict[Source, list[str]] = {}
        self._lines: list[tuple[Page, Line]] = []

    def paragraph(self, text: str) -> None:
        self._blocks.append(text)

    def part(self, part: Part, brief: bool) -> None:
        """Write what was asked of a topic, the most probable section first; `brief`: that one alone."""
        page, shown = part.topic, _asked(part)
        first = page.sections[0]
        sections = list(shown)[:1] if brief else list(shown)
        if first in sections or page.kind == "medicine":  # who must never take it stands there
            lines = shown.get(first, first.lines)
            self._blocks += self._section(page, first, lines, headed=page.kind == DOCUMENT)
        elif not brief and (page.kind != DOCUMENT or first is page.section("In short")):
            says = [line for line in first.lines if not line.item and not line.leads]  # no part of a list alone
            self._blocks += [self._line(page, line) for line in says[:1]]
        for section in sections:
            if section is not first:
                self._blocks += self._section(page, section, shown[section], headed=True)

    def when_to_get_help(self, parts: Sequence[Part]) -> None:
        """Write "Get help now" of all topics, as a block quote, and what else was asked of how urgent it is."""
        for heading in URGENCY:
            sections = [(part.topic, *urgent) for part in parts if (urgent := _urgent(part, heading))]
            blocks: list[str] = []
            for named in dict.fromkeys(section.heading for _, section, _ in sections):
                blocks.append(f"**{_plain(named)}**")
                blocks += self._under_their_leads([entry for entry in sections if entry[1].heading == named])
            if heading == URGENT and blocks:
                blocks = ["\n".join(f"> {line}".rstrip() for line in "\n\n".join(blocks).split("\n"))]
            self._blocks += blocks

    def _under_their_leads(self, sections: Sequence[tuple[Page, Section, Sequence[Line]]]) -> list[str]:
        """Return the lines of several pages, those of lists that the same words lead into as one list, each once."""
        groups: dict[str, list[tuple[Page, Line]]] = {}
        cut = False
        for page, section, lines in sections:
            lead = ""
            for line in lines:
                lead = line.text if line.leads else lead if line.item else ""
                group = groups.setdefault(lead, [])
                if all(line.text != known.text for _, known in group):
                    group.append((page, line))
            cut = cut or len(lines) < len(section.lines)
        blocks = [block for group in groups.values() for block in self._paragraphs(group)]
        return [*blocks, MORE] if cut else blocks

    def _section(self, page: Page, section: Section, lines: Sequence[Line], headed: bool) -> list[str]:
        headed = headed and section.heading.casefold() != page.title.casefold()
        blocks = [f"**{_plain(section.heading)}**"] if headed else []
        blocks += self._paragraphs([(page, line) for line in lines])
        return [*blocks, MORE] if len(lines) < len(section.lines) else blocks

    def _paragraphs(self, lines: Sequence[tuple[Page, Line]]) -> list[str]:
        """Return sentences as paragraphs, a line that leads into a list as one of its own, and lists."""
        blocks: list[str] = []
        before: Line | None = None
        for page, line in lines:
            text = self._line(page, line)
            if before and line.item and before.item:
                blocks[-1] += f"\n- {text}"
            elif before and not (line.item or line.leads or before.item or before.leads):
                blocks[-1] += f" {text}"
            else:
                blocks.append(f"- {text}" if line.item else text)
            before = line
        return blocks

    def _line(self, page: Page, line: Line) -> str:
        self._lines.append((page, line))
        numbers = set()
        for source in (page.sources[number] for number in line.sources):
            numbers.add(self._numbers.setdefault(source, len(self._numbers) + 1))
            self._pages.setdefault(source, page.title)
            self._quoted.setdefault(source, []).append(line.text)
        text = escaped(line.text)
        return f"{text} [{', '.join(map(str, sorted(numbers)))}]" if numbers else text

    def answer(self) -> QuotedAnswer:
        sources = tuple(
            NumberedSource(number, source, self._pages[source], tuple(self._quoted[source]))
            for source, number in self._numbers.items()
        )
        return QuotedAnswer("\n\n".join(self._blocks), sources, tuple(self._lines))


def _asked(part: Part) -> dict[Section, tuple[Line, ...]]:
    """Return the sections to show of a part, without those that `_urgent` gives."""
    own = part.topic.kind == DOCUMENT
    return {
        passage.section: passage.lines for passage in part.passages if own or passage.section.heading not in URGENCY
    }


def _urgent(part: Part, heading: str) -> tuple[Section, tuple[Line, ...]] | None:
    """Return a section of `URGENCY` and its lines, where it is to be shown: "Get help now" always, others if found."""
    page, shown = part.topic, {passage.section: passage.lines for passage in part.passages}
    section = page.section(heading)
    if section is None or (page.kind == DOCUMENT and (heading != URGENT or section in shown)):
        return None
    if section in shown:
        return section, shown[section]
    if heading != URGENT:
        return None
    return section, excerpt(section.lines, [0.0] * len(section.lines)) if page.kind == DOCUMENT else section.lines


def _nothing(found: Found) -> str:
    if found.off_topic:
        return OFF_TOPIC
    blocks = ["I have nothing on this in my sources, so I do not guess."]
    if found.nearest:
        titles = _listed([f"**{_plain(page.title)}**" for page in found.nearest])
        blocks.append(f"If you meant one of these, ask about it by its name: {titles}.")
    return "\n\n".join([*blocks, WHOM_TO_ASK])


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _shortened(question: str) -> str:
    return question if len(question) <= SHOWN_OF_QUESTION else f"{question[:SHOWN_OF_QUESTION].rstrip()}\u2026"


def source_list(sources: Sequence[NumberedSource]) -> str:
    """Return the sources as a Markdown list: number, publisher, linked title, date. Page texts cannot end the link.

    Without an address of the web the title stands alone.
    """
    lines = []
    for entry in sources:
        source = entry.source
        date = f", {source.date}" if source.date else ""
        title = _plain(source.title)
        if _WEB_ADDRESS.match(source.address):
            address = _NO_ADDRESS.sub(
                lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode()), source.address
            )
            title = f"[{title}]({address})"
        lines.append(f"{entry.number}. {_plain(source.publisher)}: {title}{_plain(date)}")
    return "\n".join(lines)


def escaped(text: str) -> str:
    """Return a page's text as one line of Markdown that shows it letter by letter; `markdown.safe_markdown` does tags.

    Text without markup stays as it is, so that a quoted line is found in its page word for word.
    """
    return _MARKUP.sub(_backslash, " ".join(text.split()))


def _backslash(match: re.Match[str]) -> str:
    return f"{match[0]}\\" if match[0].isdecimal() else f"\\{match[0]}"


def _plain(text: str) -> str:
    return escaped(text.replace("[", "(").replace("]", ")"))
