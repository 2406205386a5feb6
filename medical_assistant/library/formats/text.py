"""Text without markup, as blocks: headings, lists and paragraphs told by their lines alone; and bytes as text."""

from __future__ import annotations

import re
from collections.abc import Iterator

from medical_assistant.errors import UserError
from medical_assistant.library.documents import Block, Document

MAX_HEADING_CHARACTERS, MAX_QUESTION_CHARACTERS = 70, 110
WRAPPED_CHARACTERS = 100  # no line of a text that was wrapped by hand is longer
_CONTROL = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f]")
BULLET = re.compile(r"\s*(?:[-*\u2022\u25aa\u25cf\u25e6\u2023\uf0b7\u2013]|o(?=\s\s?[A-Z])|\(?\d{1,2}[.)])\s+(?=\S)")
_INLINE_ITEM = re.compile(r"(?<=[.:;)])\s+-\s+(?=[A-Z0-9])")  # "such as: - Red cells. - Platelets."


def decoded(content: bytes, where: str) -> str:
    """Return bytes as text: UTF-8, UTF-16 where it says so, else Windows-1252. Raises `UserError` for what is none."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = content.decode("utf-16", "replace")
    else:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = content.decode("cp1252", "replace")
    start = text[:20_000]
    if "\0" in start or len(_CONTROL.findall(start)) > 0.02 * len(start) or start.count("\ufffd") > 0.1 * len(start):
        raise UserError(f"{where} is not text, whatever its name says: remove it, or give it in another format.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_text(content: bytes, where: str, name: str) -> list[Document]:
    """Return the document of a plain text: its first line is its title where it stands alone, else `name`."""
    text = decoded(content, where).strip()
    first, _, rest = text.partition("\n")
    alone = len(first) <= MAX_HEADING_CHARACTERS and not first.rstrip().endswith((".", ":", ","))
    if alone and rest.strip() and (not rest.split("\n", 1)[0].strip() or len(rest) > 3 * len(first)):
        return [Document(first.lstrip("# "), tuple(text_blocks(rest)))]
    return [Document(name, tuple(text_blocks(text)))]


def text_blocks(text: str) -> Iterator[Block]:
    """Return the blocks of a text without markup.

    Questions and short lines before text are headings; lines with a bullet, and those that follow a line ending with a
    colon up to the next blank line, are items of a list. Lines of a text that was wrapped by hand are joined.
    """
    lines = [line.strip() for line in (_joined(text) if _is_wrapped(text) else text.split("\n"))]
    lead, listed, blank = False, False, True  # after a colon; inside its list; after a blank line
    for number, line in enumerate(lines):
        following = lines[number + 1] if number + 1 < len(lines) else ""
        if not line:
            if listed:
                lead = listed = False
            blank = True
            continue
        bullet = BULLET.match(line)
        if bullet:
            for piece in _INLINE_ITEM.split(line[bullet.end() :]):
                yield Block("item", piece)
            lead = listed = False
        elif _is_heading(line, following, blank, lead):
            yield Block("heading", line.lstrip("# ").rstrip(":"), 2)
            lead = listed = False
        elif lead:
            yield Block("item", line)
            listed = True
        else:
            first, *items = _INLINE_ITEM.split(line)
            yield Block("paragraph", first)
            for piece in items:
                yield Block("item", piece)
            lead = line.endswith(":")
        blank = False


def _is_heading(line: str, following: str, blank: bool, lead: bool) -> bool:
    if re.match(r"#{1,6} \S", line):
        return True
    if not line[0].isupper() or ". " in line:
        return False
    if line.endswith("?"):
        return len(line) <= MAX_QUESTION_CHARACTERS and bool(following) and not following.endswith("?")
    short = len(line) <= MAX_HEADING_CHARACTERS and len(line.split()) <= 9
    return short and blank and not lead and line[-1].isalnum() and len(following) > len(line)


def _is_wrapped(text: str) -> bool:
    """Return whether the lines of the text end at a margin, not where its paragraphs end."""
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) < 4 or max(map(len, lines)) > WRAPPED_CHARACTERS:
        return False
    ended = sum(line.rstrip().endswith((".", "!", "?", ":", ";")) for line in lines)
    long = sum(len(line) > 45 for line in lines)
    return long > len(lines) / 2 and ended < len(lines) / 2


def _joined(text: str) -> Iterator[str]:
    paragraph = ""
    for line in text.split("\n"):
        starts = not line.strip() or BULLET.match(line) or line.startswith("#")
        if starts or not paragraph or paragraph.endswith(":"):
            yield paragraph
            paragraph = line.strip()
        else:
            paragraph = f"{paragraph} {line.strip()}"
        if not line.strip():
            yield ""
            paragraph = ""
    yield paragraph
