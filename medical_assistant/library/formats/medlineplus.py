"""MedlinePlus's file of all health topics, `mplus_topics_YYYY-MM-DD.xml` (https://medlineplus.gov/xml.html).

An element `health-topic` has the attributes `title`, `url`, `language` and `date-created`, names in `also-called`, and
its text as HTML in `full-summary`. Topics are in the public domain; the English ones are taken.
"""

from __future__ import annotations

import io

import lxml.etree

from medical_assistant.errors import UserError
from medical_assistant.library.documents import Document
from medical_assistant.library.formats.markup import fragment_blocks
from medical_assistant.library.formats.rows import without_credit


def read_medlineplus(content: bytes, where: str) -> list[Document]:
    """Return the English topics. Raises `UserError` for XML that is broken or of another kind."""
    found = []
    try:
        topics = lxml.etree.iterparse(
            io.BytesIO(content), tag="health-topic", resolve_entities=False, no_network=True, load_dtd=False
        )
        for _, topic in topics:
            if topic.get("language", "English") == "English":
                names = [topic.get("alt-title") or "", *(name.text or "" for name in topic.iterfind("also-called"))]
                found.append(
                    Document(
                        topic.get("title") or "",
                        tuple(without_credit(fragment_blocks(topic.findtext("full-summary") or ""))),
                        address=topic.get("url") or "",
                        date=topic.get("date-created") or "",
                        licence="Public domain",
                        publisher="MedlinePlus",
                        also_called=tuple(name for name in names if name),
                    )
                )
            topic.clear()
    except (lxml.etree.LxmlError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{where} is broken XML ({reason}): download it again.") from error
    if not found:
        raise UserError(
            f"{where} is not MedlinePlus's file of health topics, the only XML that is read: see docs/library.md."
        )
    return found
