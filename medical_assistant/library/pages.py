"""Library pages: Markdown files with front matter, fixed sections by kind, and a source for every statement.

A page's file is `assets/library/<kind>/<name>.md`; its name is the page's id. The front matter holds `title`, `kind`,
`also_called`, `sources` (`publisher`, `title`, `address`, `date`), `written` and `checked`. The body holds `## Heading`
sections of paragraphs and lists. A statement (a sentence, or an item of a list) ends with the numbers of its sources,
`[1]` or `[1, 3]`; only the line that leads into a list ends with a colon and needs none.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from medical_assistant.errors import UserError

DOCUMENT = "document"  # the kind of a page that was imported: its headings are its own
# The sections that a page of each kind may have, in their order. The first is required.
SECTIONS: dict[str, tuple[str, ...]] = {
    "condition": (
        "In short",
        "Signs",
        "Causes",
        "Who gets it",
        "How it is found",
        "Treatment",
        "What you can do",
        "Prevention",
        "How long it lasts",
        "Get help now",
        "See a doctor today",
        "See someone soon",
    ),
    "symptom": (
        "In short",
        "Causes",
        "What you can do",
        "Treatment",
        "Prevention",
        "How long it lasts",
        "Get help now",
        "See a doctor today",
        "See someone soon",
    ),
    "medicine": (
        "In short",
        "Used for",
        "Ask first if",
        "How to take it",
        "Side effects",
        "Do not mix with",
        "Pregnancy and breastfeeding",
        "Missed dose",
        "Too much",
        "Limits",
        "Get help now",
    ),
    "test": (
        "What it measures",
        "Normal values",
        "High",
        "Low",
        "Getting ready",
        "What happens",
        "Who needs it",
        "Get help now",
        "See a doctor today",
        "See someone soon",
    ),
    "vaccine": (
        "In short",
        "Who should have it",
        "When it is given",
        "Side effects",
        "Ask first if",
        "Get help now",
    ),
    "first-aid": (
        "In short",
        "Get help now",
        "What to do",
        "Do not",
        "See a doctor today",
        "See someone soon",
    ),
    "topic": (
        "In short",
        "What to know",
        "What you can do",
        "Prevention",
        "Get help now",
        "See a doctor today",
        "See someone soon",
    ),
    DOCUMENT: (),
}
URGENCY = ("Get help now", "See a doctor today", "See someone soon")  # by how soon
# What the headings of documents have in them, by the section that they stand for; one may stand for several.
_HEADINGS = {
    "Signs": r"symptom|\bsigns?\b|problems caused",
    "Causes": r"\bcaus|genetic change|\btriggers?\b|\bspreads?\b|transmi|how (?:do|does|can) .+ (?:get|catch)\b",
    "Who gets it": r"\brisks?\b|frequen|inherit|susceptib|how common|\bwho (?:gets|is)\b|\baffects\b",
    "How it is found": r"diagnos|\btests?\b|\bexams?\b|examination|screening|detect",
    "Treatment": r"\btreat|therap|\bcures?\b|\bmanag|\bsurgery\b|\bmedicines\b|\bmedications?\b",
    "What you can do": r"self.?care|at home|home remed|living with|life ?style|\bcop(?:e|ing)\b|caring for|\bdiet|"
    r"what (?:can|should) (?:i|you|we) do\b|how (?:can|do) (?:i|you|we)\b",
    "Prevention": r"prevent|protect",
    "How long it lasts": r"outlook|prognosis|how long|recover|expect\b",
    "Get help now": r"emergency|\burgent|\b(?:911|999|112)\b|get help",
    "See a doctor today": r"when (?:should .+ |to )?(?:see|call|contact|seek|get|talk)\b",
    "Used for": r"\bus(?:e|es|ed)\b(?!.*how)|indication",
    "Ask first if": r"warning|precaution|contraindicat|before (?:tak|us)ing|who should not",
    "How to take it": r"\bdos(?:e|es|age|ing)\b|how (?:to|should|do) .*(?:take|taken|use|used)\b",
    "Side effects": r"side.?effect|adverse",
    "Do not mix with": r"interact|\bmix",
    "Pregnancy and breastfeeding": r"pregnan|breast.?feed",
    "Missed dose": r"\bmiss(?:ed)? .*dose|forg[eo]t",
    "Too much": r"overdos|too much",
    "What it measures": r"measure|what (?:is|are) .+ used for|why .+ (?:test|done)",
    "Normal values": r"\bnormal\b|results? mean|reference range",
    "Getting ready": r"prepar|get(?:ting)? ready|before the test",
    "What happens": r"what happens|procedure|during the",
    "Who should have it": r"who should (?:get|have)",
    "When it is given": r"schedule|when .+ given",
    "What to do": r"first.?aid|what to do\b",
}
_HEADING_PATTERNS = {name: re.compile(pattern) for name, pattern in _HEADINGS.items()}
SECTION_NAMES = {name.lower(): name for names in SECTIONS.values() for name in names}
_INTRODUCES = re.compile(
    r"what (?:is|are)\b|overview|summary|\babout\b|introduction|definition|information|background|key (?:facts|points)"
)
# Every value is a text; libyaml's loader is eight times as fast as the one in Python.
LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
_HEADING, _ITEM = "## ", "- "
_CITED = re.compile(r"\[(\d+(?:,\s*\d+)*)\](?=\s|$)")
_FIELDS = ("title", "kind", "also_called", "sources", "written", "checked")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a statement comes from. `address` is http(s); `date` is that page's own date, empty if it has none.

    A document may have no address, or one that is no web address. `licence`: under which it was published, if known.
    """

    publisher: str
    title: str
    address: str
    date: str = ""
    licence: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """One statement as it is shown: `text` without its source numbers, `sources` as indices into the page's sources.

    `item`: it stands in a list. `leads`: it leads into the list that follows, and is not shown without it.
    """

    text: str
    sources: tuple[int, ...] = ()
    item: bool = False
    leads: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    heading: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Page:
    id: str
    title: str
    kind: str
    also_called: tuple[str, ...]
    sources: tuple[Source, ...]
    sections: tuple[Section, ...]
    written: str = ""
    checked: str = ""
    path: str = field(default="", compare=False)

    @functools.cached_property
    def standard_headings(self) -> frozenset[str]:
        """Those of `SECTIONS` under which `section` finds something."""
        if self.kind == DOCUMENT:
            return frozenset().union(*(heading_means(section.heading) for section in self.sections))
        return frozenset(section.heading for section in self.sections).intersection(SECTIONS[self.kind])

    def section(self, heading: str) -> Section | None:
        """Return the section under `heading`, None where the page has none.

        In a document, whose headings are its own, else the first whose heading means that one of `SECTIONS`.
        """
        for section in self.sections:
            if section.heading == heading:
                return section
        if self.kind != DOCUMENT:
            return None
        return next((section for section in self.sections if heading in heading_means(section.heading)), None)


@functools.lru_cache(maxsize=8192)
def heading_means(heading: str) -> frozenset[str]:
    """Return the sections (names in `SECTIONS`) that a document's heading stands for."""
    means = text_means(heading)
    if means:
        return means
    name = SECTION_NAMES.get(re.split(r" \(\d+\)$|: ", heading.lower())[0])  # also of a part, or with more below it
    return frozenset((name,) if name else ("In short",) if _INTRODUCES.search(heading.lower()) else ())


def text_means(text: str, sections: Collection[str] = _HEADING_PATTERNS.keys()) -> frozenset[str]:
    """Return those of `sections` in which a text with these words would stand."""
    lowered = text.lower()
    return frozenset(name for name in _HEADING_PATTERNS.keys() & sections if _HEADING_PATTERNS[name].search(lowered))


def read_library(*folders: Path) -> list[Page]:
    """Return the pages under the folders. Raises `UserError` as `read_page`, and where two pages have one id."""
    paths = [path for folder in dict.fromkeys(folders) for path in sorted(folder.rglob("*.md"))]
    pages = [read_page(path) for path in paths if path.name != "README.md"]
    seen: dict[str, str] = {}
    for page in pages:
        if page.id in seen:
            raise UserError(f"{page.path} and {seen[page.id]} have the same name: rename one.")
        seen[page.id] = page.path
    return pages


def read_page(path: Path) -> Page:
    """Return the page of a file in the project's Markdown form.

    Raises `UserError` with file and line for what is missing or in another form; a page without sources is refused.
    """
    return parse_page(path.read_text(encoding="utf-8"), path)


def parse_page(text: str, path: Path) -> Page:
    """Return the page of a text in the project's Markdown form; `path` names it. Raises `UserError` as `read_page`."""
    parts = text.split("---\n", 2)
    if len(parts) != 3 or parts[0]:
        raise UserError(f"{path} has no front matter: begin it with a line '---', the fields, and '---'.")
    try:
        matter = yaml.load(parts[1], LOADER)  # noqa: S506 - it builds texts, lists and dicts alone
    except yaml.YAMLError as error:
        raise UserError(f"{path}: its front matter is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(matter, dict) or set(matter) != set(_FIELDS):
        raise UserError(f"{path}: the front matter must have just the fields {', '.join(_FIELDS)}.")
    kind = str(matter["kind"])
    if kind not in SECTIONS:
        raise UserError(f"{path}: unknown kind {kind!r}: use one of {', '.join(SECTIONS)}.")
    first_line = parts[1].count("\n") + 3
    return Page(
        id=path.stem,
        title=str(matter["title"]),
        kind=kind,
        also_called=tuple(str(name) for name in matter["also_called"] or ()),
        sources=_sources(matter["sources"], path),
        sections=tuple(_sections(parts[2], path, first_line, len(matter["sources"] or ()))),
        written=str(matter["written"]),
        checked=str(matter["checked"]),
        path=str(path),
    )


def _sources(entries: Any, path: Path) -> tuple[Source, ...]:
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path} has no sources: a page must say where its statements come from.")
    found = []
    for entry in entries:
        if not isinstance(entry, dict) or not {"publisher", "title", "address"} <= set(entry):
            raise UserError(f"{path}: a source needs publisher, title and address.")
        if not re.match(r"https?://", str(entry["address"])):
            raise UserError(f"{path}: {entry['address']!r} is not a web address: use http:// or https://.")
        values = (str(entry.get(name, "") or "") for name in ("publisher", "title", "address", "date", "licence"))
        found.append(Source(*values))
    return tuple(found)


def _sections(body: str, path: Path, first_line: int, n_sources: int) -> Iterator[Section]:
    heading, lines = "", list[Line]()
    for number, text in enumerate(body.split("\n"), first_line):
        text = text.strip()
        if not text:
            continue
        if text.startswith(_HEADING):
            if heading:
                yield _section(heading, lines, path)
            heading, lines = text.removeprefix(_HEADING), []
        elif not heading:
            raise UserError(f"{path}, line {number}: text before the first '## ' heading.")
        else:
            lines += _lines(text, f"{path}, line {number}", n_sources)
    if not heading:
        raise UserError(f"{path} has no sections: write '## ' headings.")
    yield _section(heading, lines, path)


def _section(heading: str, lines: list[Line], path: Path) -> Section:
    if not lines:
        raise UserError(f"{path}: section {heading} is empty.")
    for line, following in zip(lines, [*lines[1:], None], strict=True):
        if line.leads and (following is None or not following.item):
            raise UserError(f"{path}, section {heading}: {line.text!r} leads into no list.")
    return Section(heading, tuple(lines))


def _lines(text: str, where: str, n_sources: int) -> Iterator[Line]:
    item = text.startswith(_ITEM)
    text = text.removeprefix(_ITEM)
    if text.endswith(":") and not item:
        yield Line(text, leads=True)
        return
    end = 0
    for match in _CITED.finditer(text):
        statement = text[end : match.start()].strip()
        if not statement:
            break
        numbers = tuple(int(number) - 1 for number in match[1].split(","))
        if not all(0 <= number < n_sources for number in numbers):
            raise UserError(f"{where}: {statement + match[0]!r} names a source that the page does not have.")
        yield Line(statement, numbers, item)
        end = match.end()
    if text[end:].strip():
        raise UserError(f"{where}: {text[end:].strip()!r} has no source: end it with its number, such as [1].")
