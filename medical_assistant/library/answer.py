"""The quoted answer: lines of the library word for word, with numbered sources; or that the library has nothing on it.

No model takes part. The definition of the topic comes first, then the sections that were asked for, whole and in the
page's order, then "Get help now" where the topic has it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from medical_assistant.library.pages import Line, Page, Section, Source
from medical_assistant.library.passages import Found, Part

FROM_LIBRARY = "From the library"
URGENT = "Get help now"
PARTLY = "The library may not have just what you asked. This is the closest that it has."
WHOM_TO_ASK = (
    "Ask a doctor, a nurse or a pharmacist. If it is urgent, call your local emergency number or go to the nearest "
    "emergency department."
)
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
            writer.paragraph(f"I took this as a question about **{part.topic.title.lower()}**.")
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
        page, shown = part.topic, [passage.section for passage in part.passages]
        if titled:
            self.paragraph(f"### {page.title}")
        first = page.sections[0]
        if first not in shown and page.kind == "medicine":
            self._section(page, first, headed=False)  # who must never take it stands there
        elif first not in shown:
            self._blocks.append(self._line(page, first.lines[0]))
        for section in sorted(shown, key=page.sections.index):
            self._section(page, section, headed=section is not first)
        urgent = page.section(URGENT)
        if urgent is not None and urgent not in shown:
            self._section(page, urgent, headed=True)

    def _section(self, page: Page, section: Section, headed: bool) -> None:
        if headed:
            self.paragraph(f"**{section.heading}**")
        block: list[str] = []
        for line in section.lines:
            if block and (line.item != block[-1].startswith("- ")):
                self._blocks.append("\n".join(block) if block[-1].startswith("- ") else " ".join(block))
                block = []
            block.append(f"- {self._line(page, line)}" if line.item else self._line(page, line))
        self._blocks.append("\n".join(block) if block[-1].startswith("- ") else " ".join(block))

    def _line(self, page: Page, line: Line) -> str:
        self._lines.append((page, line))
        numbers = []
        for source in (page.sources[number] for number in line.sources):
            numbers.append(self._numbers.setdefault(source, len(self._numbers) + 1))
            self._pages.setdefault(source, page.title)
            self._quoted.setdefault(source, []).append(line.text)
        return f"{line.text} [{', '.join(map(str, numbers))}]" if numbers else line.text

    def answer(self) -> QuotedAnswer:
        sources = tuple(
            NumberedSource(number, source, self._pages[source], tuple(self._quoted[source]))
            for source, number in self._numbers.items()
        )
        return QuotedAnswer("\n\n".join(self._blocks), sources, tuple(self._lines))


def _nothing(found: Found) -> str:
    text = "I have nothing on this in my sources, so I do not guess."
    if found.nearest:
        titles = _listed([f"**{page.title}**" for page in found.nearest])
        text += f" The nearest pages that I have: {titles}."
    return f"{text}\n\n{WHOM_TO_ASK}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def source_list(sources: Sequence[NumberedSource]) -> str:
    """Return the sources as a Markdown list: number, publisher, linked title, date. Page texts cannot end the link."""
    lines = []
    for entry in sources:
        source = entry.source
        date = f", {source.date}" if source.date else ""
        address = _NO_ADDRESS.sub(lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode()), source.address)
        lines.append(f"{entry.number}. {_plain(source.publisher)}: [{_plain(source.title)}]({address}){_plain(date)}")
    return "\n".join(lines)


def _plain(text: str) -> str:
    return " ".join(text.replace("[", "(").replace("]", ")").split())
