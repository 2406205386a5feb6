"""PDF as a document: lines put together to paragraphs, headings told by their fonts, repeated headers left out."""

from __future__ import annotations

import io
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from medical_assistant.errors import UserError
from medical_assistant.library.documents import Block, Document
from medical_assistant.library.formats.text import BULLET

MIN_CHARACTERS_A_PAGE = 20  # of pages on average; a scan has none, or a stamp
EDGE_LINES = 2  # at the top and at the bottom of a page are looked at for headers and footers
MAX_HEADING_WORDS = 14
HEADING_SIZE = 1.12  # times the size of the text
_SCANNED = "holds pictures of pages, no text: run OCR over it (ocrmypdf IN OUT), then take its output"
_CONTENTS = re.compile(r"(?:\. ?){5}")  # a line of a table of contents
_UNTITLED = re.compile(r"^(untitled|microsoft word|powerpoint|document\d*|.*\.(docx?|pdf|indd|pptx?))\b", re.IGNORECASE)


_LIGATURES = str.maketrans({"\ufb00": "ff", "\ufb01": "fi", "\ufb02": "fl", "\ufb03": "ffi", "\ufb04": "ffl"})

_Piece = tuple[str, float, bool, float, float]  # text, size, bold, height on the page, left edge


@dataclass(frozen=True)
class TextLine:
    """A line of a page. `size` of its font, `gap` to the line above and `left` edge, all in points."""

    text: str
    size: float
    bold: bool
    gap: float
    left: float


def read_pdf(content: bytes, where: str, name: str) -> list[Document]:
    """Return the document of a PDF; its title is that of its metadata, else its largest first heading, else `name`.

    Raises `UserError` for a broken or encrypted file and for one without text.
    """
    import pypdf
    from pypdf.errors import PyPdfError

    logging.getLogger("pypdf").setLevel(logging.ERROR)  # it warns of each flaw that it repairs
    try:
        reader = pypdf.PdfReader(io.BytesIO(content))
        if reader.is_encrypted and not _opens(reader):
            raise UserError(f"{where} is encrypted: save it without a password, or leave it out.")
        pages = [_page_lines(page) for page in reader.pages]
        metadata = reader.metadata
        title = str(metadata.title or "").strip() if metadata else ""
        date = metadata.modification_date or metadata.creation_date if metadata else None
    except UserError:
        raise
    # A broken file raises whatever the part that met the flaw raises.
    except (PyPdfError, ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, OSError,
            ArithmeticError, AssertionError, NotImplementedError, MemoryError) as error:  # fmt: skip
        raise UserError(f"{where} is a broken PDF ({type(error).__name__}): export or download it again.") from error
    characters = sum(len(line.text) for page in pages for line in page)
    if not pages or characters < MIN_CHARACTERS_A_PAGE * len(pages) / 2:
        raise UserError(f"{where} {_SCANNED}.")
    pages = _without_repeats(pages)
    blocks = list(_blocks(pages))
    first = next((block.text for block in blocks if block.kind == "heading"), "")
    if not title or _UNTITLED.match(title) or len(title) < 3:
        title = first or (blocks[0].text[:100] if blocks else "") or name
    if not any(block.kind == "heading" and block.text != title for block in blocks):
        blocks = list(_by_page(pages))
    return [Document(title, tuple(blocks), date=date.date().isoformat() if date else "")]


def _opens(reader: Any) -> bool:
    """Return whether the empty password opens the file: many are encrypted only against changes."""
    from pypdf.errors import DependencyError

    try:
        return bool(reader.decrypt(""))
    except (DependencyError, NotImplementedError):
        return False


def _page_lines(page: Any) -> list[TextLine]:
    """Return the lines of a page from top to bottom as pypdf gives them, with the size of the font of most letters."""
    pieces: list[_Piece] = []

    def visit(text: str, outer: Sequence[float], inner: Sequence[float], font: Any, size: float) -> None:
        if text:
            left = inner[4] * outer[0] + inner[5] * outer[2] + outer[4]
            height = inner[4] * outer[1] + inner[5] * outer[3] + outer[5]
            scale = (abs(inner[3]) or abs(inner[1]) or 1.0) * (abs(outer[3]) or abs(outer[1]) or 1.0)
            bold = "bold" in str((font or {}).get("/BaseFont", "")).lower()
            pieces.append((text.translate(_LIGATURES), float(size or 0) * scale, bold, height, left))

    page.extract_text(visitor_text=visit)
    lines, current, last = list[TextLine](), list[_Piece](), None

    def finish() -> None:
        nonlocal last
        text = " ".join("".join(piece[0] for piece in current).split())
        if text and not _CONTENTS.search(text):
            _, size, bold, height, _ = max(current, key=lambda piece: len(piece[0].strip()))
            gap = abs(last - height) if last is not None else 0.0
            lines.append(TextLine(text, round(size, 1), bold, gap, min(piece[4] for piece in current)))
            last = height
        current.clear()

    for piece in pieces:
        for number, part in enumerate(piece[0].split("\n")):
            if number:
                finish()
            if part.strip() or current:
                current.append((part, *piece[1:]))
    finish()
    return lines


def _without_repeats(pages: Sequence[list[TextLine]]) -> list[list[TextLine]]:
    """Return the pages without page numbers and the lines that stand at the edge of most pages."""

    def key(line: TextLine) -> str:
        return re.sub(r"\d+", "0", line.text.casefold())

    edges = Counter(
        edge for page in pages for edge in {key(line) for line in [*page[:EDGE_LINES], *page[-EDGE_LINES:]]}
    )
    repeated = {text for text, count in edges.items() if len(pages) >= 2 and count > len(pages) / 2}
    kept = []
    for page in pages:
        inner = range(EDGE_LINES, len(page) - EDGE_LINES)
        kept.append(
            [
                line
                for number, line in enumerate(page)
                if number in inner
                or not (key(line) in repeated or re.fullmatch(r"(page )?0( (of|/) 0)?|- 0 -", key(line)))
            ]
        )
    return kept


def _blocks(pages: Sequence[list[TextLine]]) -> Iterator[Block]:
    """Return the blocks of all lines. A paragraph goes on over a page's end where its sentence does."""
    lines = [line for page in pages for line in page]
    sizes = Counter[float]()
    for line in lines:
        sizes[line.size] += len(line.text)
    body = sizes.most_common(1)[0][0] if sizes else 0.0
    usual_gap = Counter(round(line.gap) for line in lines if line.gap > 0).most_common(1)
    gap = float(usual_gap[0][0]) if usual_gap else 0.0
    larger = sorted({line.size for line in lines if line.size > body * HEADING_SIZE}, reverse=True)
    width = sorted(len(line.text) for line in lines)[int(len(lines) * 0.8)] if lines else 0
    words = set(re.findall(r"[a-z-]+", " ".join(line.text for line in lines).lower()))
    kind, gathered, heading = "paragraph", list[str](), (0.0, False)
    left, lead_left = 0.0, None  # of the line before; of the line that leads into the list we are in

    def flush() -> Iterator[Block]:
        if gathered:
            level = min(larger.index(heading[0]) + 1, 6) if heading[0] in larger else min(len(larger) + 1, 6)
            yield Block(kind, _dehyphenated(gathered, words), level if kind == "heading" else 0)  # type: ignore[arg-type]
            gathered.clear()

    for line in lines:
        if _is_heading(line, body):
            if kind != "heading" or heading != (line.size, line.bold) or line.gap > 2.5 * line.size:
                yield from flush()
            kind, heading, lead_left = "heading", (line.size, line.bold), None
            gathered.append(line.text)
            continue
        bullet = BULLET.match(line.text)
        before = gathered[-1] if gathered else ""
        ended, short = before.endswith((".", "!", "?", ":")), len(before) < 0.75 * width
        if kind != "heading" and before.endswith(":"):
            lead_left = left
        # Bullets may be drawn, not written. What stands further right than the line that leads into it is a list, and
        # what begins with a small letter.
        listed = lead_left is not None and (line.left > lead_left + 4 or line.text[0].islower())
        new_item = listed and (short or before.endswith(":"))
        list_ends = kind == "item" and lead_left is not None and not listed
        parted = (ended and (short or line.gap > 1.2 * gap or before.endswith(":"))) or line.gap > 1.5 * gap > 0
        if bullet or kind == "heading" or parted or new_item or list_ends:
            yield from flush()
            kind = "item" if bullet or listed else "paragraph"
            lead_left = lead_left if kind == "item" else None
        left = line.left
        gathered.append(line.text[bullet.end() :] if bullet else line.text)
    yield from flush()


def _is_heading(line: TextLine, body: float) -> bool:
    words = line.text.split()
    if len(words) > MAX_HEADING_WORDS or line.text.endswith((".", ",", ";")) or not any(map(str.isalpha, line.text)):
        return False
    return line.size > body * HEADING_SIZE or (line.bold and line.size >= body and len(words) <= 10
                                               and line.text[0].isupper() and not line.text.endswith(":"))  # fmt: skip


def _by_page(pages: Sequence[list[TextLine]]) -> Iterator[Block]:
    """Return the blocks of a text without headings, with a heading for each page."""
    for number, page in enumerate(pages, 1):
        if len(pages) > 1:
            yield Block("heading", f"Page {number}", 2)
        for block in _blocks([page]):
            yield block if block.kind != "heading" else Block("paragraph", block.text)


def _dehyphenated(lines: Sequence[str], words: set[str]) -> str:
    """Return the lines as one text: "inflam-" and "mation" are one word, "self-" and "care" where the text says so."""
    text = lines[0]
    for line in lines[1:]:
        first = re.match(r"[a-z]+", line)
        last = re.search(r"([A-Za-z]+)-$", text)
        if first and last:
            hyphened = f"{last[1]}-{first[0]}".lower()
            keep = hyphened in words and hyphened.replace("-", "") not in words
            text = text + line if keep else text[:-1] + line
        else:
            text = f"{text} {line}"
    return text
