"""The quoted answer: lines of the library word for word, with numbered sources; or that the library has nothing on it.

No model takes part. The definition of the topic comes first, then the sections that were asked for, whole and in the
page's order, then "Get help now" where the topic has it. Of a long section of a document some lines stand for all.

What a page holds is data. The lines become Markdown that shows them as they are; a link that was in them is text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from medical_assistant.library.pages import DOCUMENT, Line, Page, Section, Source
from medical_assistant.library.passages import Found, Part, excerpt

FROM_LIBRARY = "From the library"
URGENT = "Get help now"
PARTLY = "The library may not have just what you asked. This is the closest that it has."
WHOM_TO_ASK = (
    "Ask a doctor, a nurse or a pharmacist. If it is urgent, call your local emergency number or go to the nearest "
    "emergency department."
)
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
    if found.coverage == "partly":
        writer.paragraph(PARTLY)
    for part in found.parts:
        if part.guessed and part.matched:
            writer.paragraph(f"I took this as a question about **{_plain(part.topic.title.lower())}**.")
        writer.part(part, titled=len(found.parts) > 1)
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

    def part(self, part: Part, titled: bool) -> None:
        page, shown = part.topic, {passage.section: passage.lines for passage in part.passages}
        if titled:
            self.paragraph(f"### {_plain(page.title)}")
        first = page.sections[0]
        if first not in shown and page.kind == "medicine":
            self._section(page, first, first.lines, headed=False)  # who must never take it stands there
        elif first not in shown and (page.kind != DOCUMENT or first is page.section("In short")):
            says = [line for line in first.lines if not line.item and not line.leads]  # no part of a list alone
            self._blocks += [self._line(page, line) for line in says[:1]]
        for section in sorted(shown, key=page.sections.index):
            self._section(page, section, shown[section], headed=section is not first or page.kind == DOCUMENT)
        urgent = page.section(URGENT)
        if urgent is not None and urgent not in shown:
            lines = excerpt(urgent.lines, [0.0] * len(urgent.lines)) if page.kind == DOCUMENT else urgent.lines
            self._section(page, urgent, lines, headed=True)

    def _section(self, page: Page, section: Section, lines: Sequence[Line], headed: bool) -> None:
        if headed:
            self.paragraph(f"**{_plain(section.heading)}**")
        block: list[str] = []
        for line in lines:
            if block and (line.item != block[-1].startswith("- ")):
                self._blocks.append("\n".join(block) if block[-1].startswith("- ") else " ".join(block))
                block = []
            block.append(f"- {self._line(page, line)}" if line.item else self._line(page, line))
        self._blocks.append("\n".join(block) if block[-1].startswith("- ") else " ".join(block))
        if len(lines) < len(section.lines):
            self.paragraph(MORE)

    def _line(self, page: Page, line: Line) -> str:
        self._lines.append((page, line))
        numbers = []
        for source in (page.sources[number] for number in line.sources):
            numbers.append(self._numbers.setdefault(source, len(self._numbers) + 1))
            self._pages.setdefault(source, page.title)
            self._quoted.setdefault(source, []).append(line.text)
        text = escaped(line.text)
        return f"{text} [{', '.join(map(str, numbers))}]" if numbers else text

    def answer(self) -> QuotedAnswer:
        sources = tuple(
            NumberedSource(number, source, self._pages[source], tuple(self._quoted[source]))
            for source, number in self._numbers.items()
        )
        return QuotedAnswer("\n\n".join(self._blocks), sources, tuple(self._lines))


def _nothing(found: Found) -> str:
    text = "I have nothing on this in my sources, so I do not guess."
    if found.nearest:
        titles = _listed([f"**{_plain(page.title)}**" for page in found.nearest])
        text += f" The nearest pages that I have: {titles}."
    return f"{text}\n\n{WHOM_TO_ASK}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


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
