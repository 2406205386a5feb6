"""Rows (JSONL, JSON, CSV, Parquet) as documents: MedQuAD, MedlinePlus topics, and rows with fields of any names.

A row is a page, or part of one: rows with the same title and address that each have a `section` or a question are one
page with a section each.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from medical_assistant.data.records import parquet_rows, text_rows
from medical_assistant.errors import UserError
from medical_assistant.library.documents import Block, Document
from medical_assistant.library.formats.markup import fragment_blocks
from medical_assistant.library.formats.text import decoded, text_blocks

# The names that a field may have, the likeliest first.
TITLE = ("title", "question", "condition", "topic", "focus", "question_focus", "name", "heading")
TEXT = ("text", "answer", "content", "body", "full_text", "article", "summary", "abstract", "description")
ADDRESS = ("url", "address", "source_url", "link", "uri", "document_url")
DATE = ("date", "last_reviewed", "updated", "last_updated", "date_modified", "date_created", "published")
LICENCE = ("licence", "license", "rights")
PUBLISHER = ("publisher", "source", "document_source", "organisation", "organization", "author", "site")
NAMES = ("also_called", "aliases", "synonyms", "alternative_names")
SECTION = ("section", "section_title", "question_type", "qtype")
KINDS = ("row", "id", "qid", "tags", "keywords", "categories", "category", "type", "language", "text_2026")
MIN_SECTION_WORDS = 6  # of another field's text; fewer are a label

MEDQUAD_LICENCE = "CC BY 4.0 (MedQuAD)"
MEDQUAD_SOURCES = {
    "GHR": "Genetics Home Reference (NIH)",
    "GARD": "Genetic and Rare Diseases Information Center (NIH)",
    "NIDDK": "National Institute of Diabetes and Digestive and Kidney Diseases (NIH)",
    "NINDS": "National Institute of Neurological Disorders and Stroke (NIH)",
    "MPlusHealthTopics": "MedlinePlus",
    "NIHSeniorHealth": "NIH SeniorHealth",
    "CancerGov": "National Cancer Institute (NIH)",
    "NHLBI": "National Heart, Lung, and Blood Institute (NIH)",
    "CDC": "CDC",
}
# MedQuAD's question types as headings of `pages.SECTIONS`, or of `pages.heading_means`.
MEDQUAD_HEADINGS = {
    "information": "In short",
    "symptoms": "Signs",
    "causes": "Causes",
    "treatment": "Treatment",
    "prevention": "Prevention",
    "exams and tests": "How it is found",
    "susceptibility": "Who gets it",
    "outlook": "Outlook",
    "genetic changes": "Genetic changes",
}
FIELD_HEADINGS = {
    "overview": "In short",
    "symptoms": "Signs",
    "self_care": "What you can do",
    "when_to_seek_help": "When to get help",
}
_REPEATED_QUESTION = re.compile(r"\s*[A-Z][^.?!\n]{5,140}\?\s+(?=\S)")  # which many answers begin with
# Whose page it is, on the last line of a MedlinePlus topic.
_CREDIT = re.compile(
    r"(?:NIH|Centers?|Food and Drug|Dept|Department|Agency|Environmental|Federal|United States|U\.S\.|National)\b.*"
)


def read_rows(content: bytes, kind: str, where: str) -> list[Document]:
    """Return the documents of a file of rows; `kind` is its ending. Raises `UserError` with the broken line."""
    if kind == ".parquet":
        rows: Iterable[dict[str, Any]] = parquet_rows(content, where)
    else:
        rows = text_rows(decoded(content, where), ".jsonl" if kind == ".ndjson" else kind, where)
    found = list(_documents(rows))
    if not found:
        raise UserError(
            f"{where} has no rows with text: name its fields title (or question) and text (or answer), as in --help."
        )
    return found


def _documents(rows: Iterable[Mapping[str, Any]]) -> Iterator[Document]:
    grouped: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        focus = row.get("focus") or row.get("question_focus")
        if focus and row.get("question") and row.get("answer"):
            grouped.setdefault(("medquad", str(focus), _text(row, ADDRESS) or _text(row, PUBLISHER)), []).append(row)
        elif _text(row, SECTION):
            grouped.setdefault(("sections", _text(row, TITLE), _text(row, ADDRESS)), []).append(row)
        else:
            grouped["row", str(len(grouped)), ""] = [row]
    for (form, title, _), members in grouped.items():
        if form == "row":
            document = _from_row(members[0])
        else:
            document = _from_sections(title, members, medquad=form == "medquad")
        if document is not None:
            yield document


def _from_sections(title: str, rows: Sequence[Mapping[str, Any]], medquad: bool) -> Document:
    """Return the page of rows that are a section each."""
    blocks: list[Block] = []
    by_heading: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        name = _text(row, SECTION)
        heading = medquad_heading(name) if medquad else name
        by_heading.setdefault(heading or str(row.get("question", "")), []).append(row)
    for heading in sorted(by_heading, key=lambda name: name != "In short"):  # what it is comes first
        blocks.append(Block("heading", heading, 2))
        for row in by_heading[heading]:
            text = _text(row, TEXT)
            repeated = _REPEATED_QUESTION.match(text) if medquad else None
            blocks += [_below(block) for block in _body_blocks(text[repeated.end() :] if repeated else text)]
    first = rows[0]
    publisher = _text(first, PUBLISHER)
    return Document(
        title,
        tuple(blocks),
        address=_text(first, ADDRESS),
        date=_text(first, DATE),
        licence=_text(first, LICENCE) or (MEDQUAD_LICENCE if medquad and publisher in MEDQUAD_SOURCES else ""),
        publisher=MEDQUAD_SOURCES.get(publisher, publisher) if medquad else publisher,
        also_called=tuple(name for row in rows for name in _list(row, NAMES)),
    )


def _from_row(row: Mapping[str, Any]) -> Document | None:
    title, address = re.sub(r"^Overview\s*[-:\u2013]\s*", "", _text(row, TITLE)), _text(row, ADDRESS)
    medlineplus = is_medlineplus_topic(address)
    blocks = _body_blocks(_text(row, TEXT))
    blocks += _given_sections(row.get("sections"))
    known = {*TITLE, *TEXT, *ADDRESS, *DATE, *LICENCE, *PUBLISHER, *NAMES, *SECTION, *KINDS, "sections"}
    for name, value in row.items():
        if name not in known:
            blocks += _field_blocks(str(name), value)
    if medlineplus:
        blocks = without_credit(blocks)
    if not any(block.kind != "heading" for block in blocks):
        return Document(title, ()) if title else None
    return Document(
        title,
        tuple(blocks),
        address=address,
        date=_text(row, DATE),
        licence=_text(row, LICENCE) or ("Public domain" if medlineplus else ""),
        publisher="MedlinePlus" if medlineplus else _text(row, PUBLISHER),
        also_called=tuple(_list(row, NAMES)),
    )


def is_medlineplus_topic(address: str) -> bool:
    """Return whether an address is that of a MedlinePlus health topic: its encyclopedia and drug pages are licensed."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return False
    return parts.hostname == "medlineplus.gov" and parts.path.count("/") == 1


def without_credit(blocks: Sequence[Block]) -> list[Block]:
    """Return the blocks of a MedlinePlus topic without its last line, which names the institute that wrote it."""
    end = len(blocks)
    while end and len(blocks[end - 1].text) < 110 and _CREDIT.fullmatch(blocks[end - 1].text.strip()):
        if blocks[end - 1].text.rstrip().endswith("."):
            break
        end -= 1
    return list(blocks[:end])


def _given_sections(sections: Any) -> list[Block]:
    """Return the blocks of a field `sections`: heading -> text, or a list of {heading, text}."""
    pairs: list[tuple[str, Any]] = []
    if isinstance(sections, Mapping):
        pairs = [(str(name), value) for name, value in sections.items()]
    elif isinstance(sections, list):
        for entry in sections:
            if isinstance(entry, Mapping):
                pairs.append((_text(entry, ("heading", "title", "section", "name")), entry.get("text") or
                              _text(entry, TEXT)))  # fmt: skip
            else:
                pairs.append(("", entry))
    blocks: list[Block] = []
    for heading, value in pairs:
        body = _value_blocks(value)
        if body and heading:
            blocks.append(Block("heading", heading, 2))
        blocks += [_below(block) for block in body]
    return blocks


def _field_blocks(name: str, value: Any) -> list[Block]:
    """Return the section of a field of another name: a list of lines, or a text of some words."""
    if isinstance(value, str) and len(value.split()) < MIN_SECTION_WORDS:
        return []
    body = _value_blocks(value)
    heading = FIELD_HEADINGS.get(name.lower(), _humanised(name))
    return [Block("heading", heading, 2), *(_below(block) for block in body)] if body else []


def _value_blocks(value: Any) -> list[Block]:
    if isinstance(value, str):
        return _body_blocks(value)
    if not isinstance(value, list):
        return []
    blocks: list[Block] = []
    for entry in (entry.strip() for entry in value if isinstance(entry, str)):
        # Lists of lines mix items with sentences and the lines that lead into a list.
        sentence = entry[:1].isupper() and entry.endswith((".", "!", "?"))
        blocks.append(Block("paragraph" if sentence or entry.endswith(":") else "item", entry))
    return blocks


def _body_blocks(text: str) -> list[Block]:
    if re.search(r"<(?:p|ul|ol|li|br|h[1-6]|div)\b[^>]*>", text, re.IGNORECASE):
        return fragment_blocks(text)
    return list(text_blocks(text.replace("\r\n", "\n")))


def _below(block: Block) -> Block:
    """Return a heading of a section's text one level lower than the section's."""
    return Block("heading", block.text, min(max(block.level, 2) + 1, 6)) if block.kind == "heading" else block


def _text(row: Mapping[str, Any], names: Sequence[str]) -> str:
    for name in names:
        value = row.get(name)
        if isinstance(value, (str, int, float)) and not isinstance(value, bool) and str(value).strip():
            return str(value).strip()
    return ""


def _list(row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    for name in names:
        value = row.get(name)
        if isinstance(value, list) and value:
            return [str(entry) for entry in value if isinstance(entry, str)]
        if isinstance(value, str) and value:
            return [part.strip() for part in re.split(r"[;|]", value)]
    return []


def medquad_heading(question_type: str) -> str:
    """Return the heading under which answers to a type of MedQuAD's questions stand."""
    return MEDQUAD_HEADINGS.get(question_type.lower(), _humanised(question_type))


def _humanised(name: str) -> str:
    """Return "Exams and tests" for "exams_and_tests"."""
    text = re.sub(r"[_\s]+", " ", name).strip()
    return text[:1].upper() + text[1:]
