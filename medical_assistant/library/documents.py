"""Documents that are brought along, and the library page each becomes: sections, sentences and list items, one source.

A reader of a format (`formats/`) gives a `Document` of blocks; `page_of` cleans the text, splits it at headings and
sentences, keeps list items with the line that leads into them, and parts what is too long to be quoted.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from urllib.parse import urlsplit

from medical_assistant.library.pages import DOCUMENT, Line, Page, Section, Source
from medical_assistant.prompts import clean_text

FIRST_HEADING = "In short"  # of the text before the first heading: what a page begins with says what it is about
MAX_SECTION_WORDS = 300
MAX_LINE_CHARACTERS = 800
MAX_TITLE_CHARACTERS, MAX_HEADING_CHARACTERS, MAX_FIELD_CHARACTERS = 150, 150, 200
MAX_NAMES = 40
PUBLISHERS = {"medlineplus.gov": "MedlinePlus", "nhs.uk": "NHS", "cdc.gov": "CDC", "who.int": "WHO"}
DATE_FORMATS = ("%d %B %Y", "%d %b %Y", "%B %d, %Y", "%m/%d/%Y", "%Y/%m/%d")  # become ISO 8601; the rest stays as it is

# Words before a full stop that does not end a sentence; those of `_BEFORE_NUMBER` only where a number follows.
_ABBREVIATIONS = frozenset(
    "dr mr mrs ms prof st e.g i.e eg ie vs cf al fig figs approx dept ca incl jr sr ph.d m.d u.s u.k e.u d.c".split()
)
_BEFORE_NUMBER = frozenset("no nos p pp vol ch sec art ref eq jan feb mar apr jun jul aug sep sept oct nov dec".split())
_TITLES = frozenset(("dr", "mr", "mrs", "ms", "prof", "st"))
_BOUNDARY = re.compile(r"[.!?][\"')\]\u201d\u2019]*(\s+)(?=[\"'(\[\u201c\u2018]*[A-Z0-9\u00c0-\u00de])")
# "text.[3]" would read as the answer's own source 3. After a space, "[70-99] mg/dL" is a value, and stays.
_CITATION = re.compile(r"(?<=\S)\[\d{1,3}(?: ?[,;\u2013-] ?\d{1,3})*\]")
_WORD = re.compile(r"\w+")
_NO_WEB_ADDRESS = re.compile(r"[\s<>\"\x00-\x1f]")


@dataclass(frozen=True)
class Block:
    """A heading (of `level` 1 to 6), a paragraph, or an item of a list."""

    kind: Literal["heading", "paragraph", "item"]
    text: str
    level: int = 0


@dataclass(frozen=True)
class Document:
    """One page as a reader found it. What is not known is empty. `address` may be anything that its file says."""

    title: str
    blocks: tuple[Block, ...]
    address: str = ""
    date: str = ""
    licence: str = ""
    publisher: str = ""
    also_called: tuple[str, ...] = ()


def page_of(document: Document, publisher: str = "", licence: str = "", otherwise: str = "") -> Page | None:
    """Return the page of a document; None where it holds no text.

    `publisher` and `licence` stand where the document names none; without a publisher its web host does, else
    `otherwise`. Its id ends with the hash of its text: pages with the same text, whatever their titles, have the same
    `text_hash`.
    """
    title = _shortened(plain_text(document.title), MAX_TITLE_CHARACTERS).strip("# \u00b6")
    sections = tuple(_sections(document.blocks, title))
    if not sections:
        return None
    title = title or _shortened(sections[0].lines[0].text, 80)
    address = web_address(document.address)
    source = Source(
        publisher=_field(document.publisher) or _field(publisher) or publisher_of(address) or _field(otherwise),
        title=title,
        address=address,
        date=iso_date(_field(document.date)),
        licence=_field(document.licence) or _field(licence),
    )
    names = dict.fromkeys(_field(name) for name in document.also_called[:MAX_NAMES])
    return Page(
        id=page_id(title, sections),
        title=title,
        kind=DOCUMENT,
        also_called=tuple(name for name in names if name and name != title),
        sources=(source,),
        sections=sections,
    )


def page_id(name: str, sections: Iterable[Section]) -> str:
    """Return a page's id: its name in small letters, and the hash of its text."""
    words = _WORD.findall(" ".join(line.text for section in sections for line in section.lines).casefold())
    slug = "-".join(re.findall(r"[a-z0-9]+", name.lower()))[:60].strip("-") or "page"
    return f"{slug}-{hashlib.sha256(' '.join(words).encode()).hexdigest()[:16]}"


def text_hash(page_id: str) -> str:
    """Return the part of a page's id that is the same for the same text."""
    return page_id.rpartition("-")[2]


def web_address(text: str) -> str:
    """Return an http or https address without spaces and markup; "" for anything else."""
    text = text.strip()
    try:
        parts = urlsplit(text)
    except ValueError:
        return ""
    sound = parts.scheme.lower() in ("http", "https") and parts.netloc and len(text) <= 2000
    return text if sound and not _NO_WEB_ADDRESS.search(text) and plain_text(text) == text else ""


def publisher_of(address: str) -> str:
    """Return who publishes a web address: a known name, else its host."""
    host = (urlsplit(address).hostname or "").removeprefix("www.")
    return next((name for known, name in PUBLISHERS.items() if host == known or host.endswith(f".{known}")), host)


def iso_date(text: str) -> str:
    """Return a date in ISO 8601 where it is in a form that is known, else `text`."""
    for form in DATE_FORMATS if text else ():
        try:
            return datetime.strptime(text, form).date().isoformat()
        except ValueError:
            continue
    return text


def plain_text(text: str) -> str:
    """Return `text` on one line: no control or invisible characters, no lone surrogates, single spaces."""
    return " ".join(clean_text(text.encode("utf-8", "replace").decode()).split())


def sentences(text: str) -> list[str]:
    """Return the sentences of a text: split after . ! ? before a capital or a number, but not after abbreviations."""
    found, start = [], 0
    for match in _BOUNDARY.finditer(text):
        at = match.start()
        if text[at] == "." and not _ends_sentence(text[max(start, at - 60) : at], text[match.end()]):
            continue
        found.append(text[start : match.start(1)].strip())
        start = match.end()
    found.append(text[start:].strip())
    return [sentence for sentence in found if sentence]


def _ends_sentence(before: str, after: str) -> bool:
    """Return whether a full stop between these ends a sentence; `after` is the next character."""
    words = before.split()
    if not words:
        return False
    word = words[-1].lstrip("(['\"\u201c\u2018").lower()
    if word in _ABBREVIATIONS or (word in _BEFORE_NUMBER and after.isdigit()):
        return False
    if len(words) == 1 and word.isdigit():
        return False  # "1. Take": the number of an item
    initial = len(word) == 1 and word.isalpha()
    # "hepatitis B. It" ends one; "Dr. J. Smith" and "J. Smith" at the beginning do not.
    return not (initial and (len(words) == 1 or words[-2].rstrip(".").lower() in _TITLES or len(words[-2]) == 2))


def _field(text: str) -> str:
    return _shortened(plain_text(text), MAX_FIELD_CHARACTERS)


def _shortened(text: str, characters: int) -> str:
    return text if len(text) <= characters else f"{text[:characters].rpartition(' ')[0] or text[:characters]} ..."


def _sections(blocks: Sequence[Block], title: str) -> Iterator[Section]:
    """Return the sections under the document's own headings; a heading without text goes in front of those below it."""
    parents: list[tuple[int, str]] = []  # the headings above, with their levels
    heading, gathered = FIRST_HEADING, list[Block]()
    used: dict[str, int] = {}
    for block in (*blocks, Block("heading", "")):
        if block.kind != "heading":
            gathered.append(block)
            continue
        for part in _parts(list(_units(gathered))):
            used[heading] = used.get(heading, 0) + 1
            yield Section(f"{heading} ({used[heading]})" if used[heading] > 1 else heading, tuple(part))
        text = _shortened(_CITATION.sub("", plain_text(block.text)), MAX_HEADING_CHARACTERS).strip("# \u00b6")
        gathered = []
        if not text:
            continue
        parents = [parent for parent in parents if parent[0] < block.level]
        above = [name.rstrip(" ?:.") for _, name in parents if name.casefold() != title.casefold()]
        parents.append((block.level, text))
        same = text.casefold() == title.casefold()
        heading = (
            FIRST_HEADING if same and not above else _shortened(": ".join([*above, text]), 2 * MAX_HEADING_CHARACTERS)
        )


def _units(blocks: Sequence[Block]) -> Iterator[list[Line]]:
    """Return what is not parted: the lines of a paragraph, or a list with the line that leads into it."""
    unit: list[Line] = []
    for block, following in zip(blocks, (*blocks[1:], None), strict=False):
        text = _CITATION.sub("", plain_text(block.text)).strip()
        if not _WORD.search(text):
            continue
        if block.kind == "item":
            unit += [Line(piece, (0,), item=True) for piece in _pieces(text)]
            continue
        if unit:
            yield _list_unit(unit)
        lines = [Line(piece, (0,)) for sentence in sentences(text) for piece in _pieces(sentence)]
        unit = []
        if following is not None and following.kind == "item" and lines[-1].text.endswith(":"):
            unit = [Line(lines.pop().text, (0,), leads=True)]
        if lines:
            yield lines
    if unit:
        yield _list_unit(unit)


def _list_unit(unit: list[Line]) -> list[Line]:
    """Return a list's lines; what leads into no item is a line as any other."""
    return [Line(unit[0].text, (0,))] if len(unit) == 1 and unit[0].leads else unit


def _parts(units: Sequence[list[Line]]) -> Iterator[list[Line]]:
    """Return the lines of a section, parted where it has over `MAX_SECTION_WORDS` words.

    A list is parted between its items alone, and the line that leads into it begins each part.
    """
    part, words = list[Line](), 0
    for unit in units:
        size = sum(len(line.text.split()) for line in unit)
        if part and words + size > MAX_SECTION_WORDS:
            yield part
            part, words = [], 0
        if size <= MAX_SECTION_WORDS:
            part, words = part + unit, words + size
            continue
        lead = unit[:1] if unit[0].leads else []
        for line in unit[len(lead) :]:
            length = len(line.text.split())
            if words and words + length > MAX_SECTION_WORDS:
                yield part
                part, words = [], 0
            part, words = (part or list(lead)) + [line], words + length
    if part:
        yield part


def _pieces(text: str) -> Iterator[str]:
    """Return a line in pieces that can be shown: a text without sentences is cut at a space."""
    start = 0
    while start < len(text):
        end = start + MAX_LINE_CHARACTERS
        if end < len(text):
            space = text.rfind(" ", start + MAX_LINE_CHARACTERS // 2, end)
            end = space if space > 0 else end
        piece = text[start:end].strip()
        if piece:
            yield piece
        start = end
