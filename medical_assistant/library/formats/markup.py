"""HTML and Markdown as blocks. Scripts, styles, navigation, banners and links are left out; a link is its text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lxml.etree
import lxml.html
import yaml

from medical_assistant.errors import UserError
from medical_assistant.library.documents import Block, Document, web_address
from medical_assistant.library.formats.text import decoded
from medical_assistant.library.pages import LOADER, SECTIONS, Page, parse_page

MAX_DEPTH = 200  # of nested tags; libxml2 cuts deeper ones off at 256
MIN_MAIN_CHARACTERS = 200  # less main text than this is compared with the whole page's
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_DROPPED = frozenset(
    "script style noscript template nav header footer aside form button select textarea input iframe object embed svg "
    "math video audio canvas dialog head figure img link meta".split()
)
_ROLES = frozenset(("navigation", "banner", "contentinfo", "search", "dialog", "alertdialog", "complementary"))
_BANNER = re.compile(r"cookie|consent|gdpr|breadcrumb|skip-?link|share|social|newsletter|advert")
_AROUND = frozenset(  # classes and ids of what stands around the text, where a page has no tags for it
    "menu nav navbar navigation header footer sidebar topbar main-menu site-header site-footer page-header page-footer "
    "global-header global-footer main-nav".split()
)
_BLOCKS = frozenset(
    "address article blockquote body center dd details div dl dt fieldset figcaption html li main ol p pre quote "
    "section summary table tbody td tfoot th thead tr ul list item row cell head br hr lb caption".split()
)
_FRONT_FIELDS = {
    "title": ("title",),
    "address": ("address", "source", "url", "link", "canonical", "permalink"),
    "date": ("date", "updated", "last_reviewed", "lastmod", "modified", "checked", "written"),
    "licence": ("licence", "license", "rights"),
    "publisher": ("publisher", "author", "organisation", "organization", "site"),
}


def read_html(content: bytes, where: str, name: str, address: str) -> list[Document]:
    """Return the document of an HTML page: its main text (trafilatura), title, date and canonical address.

    `address`: where the page was fetched from, if it was. Where trafilatura keeps little, all that is no navigation is
    taken: a short page of one's own has no "main text" for it.
    """
    decoded(content[:20_000], where)  # is it text at all?
    try:
        import trafilatura
    except ImportError as error:
        raise UserError(
            f"{where}: HTML cannot be read ({type(error).__name__}: trafilatura): pip install -r requirements-cpu.txt."
        ) from error
    try:
        tree = trafilatura.load_html(content)
        if tree is None:
            return []
        whole = list(html_blocks(tree))  # before trafilatura, which changes the tree
        canonical = tree.xpath("string(//link[@rel='canonical']/@href)")
        titles = [" ".join(str(tree.xpath(f"string({path})")).split()) for path in ("//h1", "//title")]
        found: Any = trafilatura.bare_extraction(
            tree,
            url=address or None,
            with_metadata=True,
            include_comments=False,
            favor_recall=True,
            date_extraction_params={"extensive_search": False, "original_date": False},  # no dates guessed from text
        )
    except (ValueError, TypeError, RecursionError, lxml.etree.LxmlError) as error:
        raise UserError(f"{where} is not HTML that can be read ({type(error).__name__}): save it again.") from error
    main = list(html_blocks(found.body)) if found is not None and found.body is not None else []
    # trafilatura leaves out what looks like links or repeats; a page that says where its text is keeps all of that.
    length = sum(len(block.text) for block in main)
    blocks = main if length >= MIN_MAIN_CHARACTERS and length * 3 > sum(len(block.text) for block in whole) else whole
    title = next((text for text in titles if text), "") or name
    return [
        Document(
            title,
            tuple(blocks),
            address=web_address(str(canonical)) or address,
            date=(found.date or "") if found is not None else "",
            licence=(found.license or "") if found is not None else "",
        )
    ]


def fragment_blocks(html: str) -> list[Block]:
    """Return the blocks of a piece of HTML, such as a field of XML."""
    if not html.strip():
        return []
    parser = lxml.html.HTMLParser(encoding="utf-8", no_network=True, remove_comments=True)
    return list(html_blocks(lxml.html.document_fromstring(f"<div>{html}</div>".encode(), parser=parser)))


def html_blocks(tree: Any) -> Iterator[Block]:
    """Return the blocks of an lxml tree: HTML, or the tree that trafilatura makes of it ("head", "list", "item")."""
    main = tree.xpath(".//main|.//article|.//*[@role='main']") if isinstance(tree.tag, str) else []
    gathered: list[str] = []

    def flush(kind: str, level: int = 0) -> Iterator[Block]:
        text = " ".join("".join(gathered).split())
        gathered.clear()
        if text:
            yield Block("heading" if level else "item" if kind == "item" else "paragraph", text, level)

    def walk(element: Any, kind: str, depth: int) -> Iterator[Block]:
        if not isinstance(element.tag, str) or depth > MAX_DEPTH or _is_dropped(element):
            gathered.append(" ")
            return
        tag = element.tag.lower()
        level = _HEADINGS.get(tag) or (_level(element) if tag == "head" else 0)
        own = "item" if tag in ("li", "item", "dd") else kind
        if tag in ("tr", "row"):
            cells = [" ".join("".join(cell.itertext()).split()) for cell in element if isinstance(cell.tag, str)]
            yield from flush(kind)
            gathered.append(" | ".join(cell for cell in cells if cell))
            yield from flush("item")
            return
        if level or tag in _BLOCKS:
            yield from flush(kind)
        gathered.append(element.text or "")
        for child in element:
            yield from walk(child, own, depth + 1)
            gathered.append(child.tail or "")
        if level or tag in _BLOCKS:
            yield from flush(own, level)

    for root in [element for element in main if not any(other in main for other in element.iterancestors())] or [tree]:
        yield from walk(root, "paragraph", 0)
    yield from flush("paragraph")


def _is_dropped(element: Any) -> bool:
    tag, rend = element.tag.lower(), element.get("rend")
    if (tag in _DROPPED and not (tag == "head" and rend)) or element.get("role", "") in _ROLES:
        return True
    if element.get("hidden") is not None or element.get("aria-hidden") == "true":
        return True
    names = f"{element.get('class', '')} {element.get('id', '')}".lower()
    return tag in ("div", "section", "ul", "ol", "p") and bool(_BANNER.search(names) or _AROUND & set(names.split()))


def _level(element: Any) -> int:
    rend = str(element.get("rend", "h2"))
    return int(rend[1:]) if re.fullmatch("h[1-6]", rend) else 2


def read_markdown(content: bytes, where: str, path: Path, address: str) -> list[Document | Page]:
    """Return a page in the project's own form as it is, or the document of plain Markdown.

    Front matter of plain Markdown may say title, address (also "source", "url"), date, licence and publisher. Raises
    `UserError` for front matter that is not YAML, and as `pages.parse_page` for a page in the project's form.
    """
    text = decoded(content, where)
    matter, body = _front_matter(text, where)
    if matter.get("kind") in SECTIONS and isinstance(matter.get("sources"), list):
        return [parse_page(text, path)]
    fields = {key: _first(matter, names) for key, names in _FRONT_FIELDS.items()}
    blocks = tuple(markdown_blocks(body))
    heading = next((block.text for block in blocks if block.kind == "heading" and block.level == 1), "")
    names = matter.get("also_called") or matter.get("aliases") or ()
    names = [names] if isinstance(names, str) else names
    return [
        Document(
            fields["title"] or heading or path.stem.replace("-", " ").replace("_", " "),
            blocks,
            address=fields["address"] or address,
            date=fields["date"],
            licence=fields["licence"],
            publisher=fields["publisher"],
            also_called=tuple(str(name) for name in names) if isinstance(names, list) else (),
        )
    ]


def _front_matter(text: str, where: str) -> tuple[dict[str, Any], str]:
    parts = re.split(r"(?m)^---[ \t]*\n", text, maxsplit=2)
    if len(parts) != 3 or parts[0].strip():
        return {}, text
    try:
        matter = yaml.load(parts[1], LOADER)  # noqa: S506 - it builds texts, lists and dicts alone
    except (yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{where}: its front matter is not YAML ({reason}): correct it or remove it.") from error
    # A text between two rules is no front matter.
    return (matter, parts[2]) if isinstance(matter, dict) else ({}, text)


def _first(matter: dict[str, Any], names: tuple[str, ...]) -> str:
    return next((matter[name] for name in names if isinstance(matter.get(name), str) and matter[name].strip()), "")


def markdown_blocks(text: str) -> Iterator[Block]:
    """Return the blocks of CommonMark with tables; HTML in it is read as HTML."""
    from markdown_it import MarkdownIt

    kind, depth, level, row = "paragraph", 0, 0, list[str]()
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "list_item_open":
            depth += 1
        elif token.type == "list_item_close":
            depth -= 1
        elif token.type == "heading_open":
            level = int(token.tag[1])
        elif token.type == "heading_close":
            level = 0
        elif token.type == "tr_open":
            row = []
        elif token.type == "tr_close":
            yield Block("item", " | ".join(cell for cell in row if cell))
        elif token.type in ("th_open", "td_open"):
            kind = "cell"
        elif token.type in ("th_close", "td_close"):
            kind = "paragraph"
        elif token.type == "inline":
            content = _inline(token)
            if kind == "cell":
                row.append(content)
            elif content:
                yield Block("heading" if level else "item" if depth else "paragraph", content, level)
        elif token.type in ("fence", "code_block") and token.content.strip():
            yield Block("item" if depth else "paragraph", token.content)
        elif token.type == "html_block":
            yield from fragment_blocks(token.content)


def _inline(token: Any) -> str:
    parts = []
    for child in token.children or ():
        if child.type in ("text", "code_inline"):
            parts.append(child.content)
        elif child.type in ("softbreak", "hardbreak"):
            parts.append(" ")
    return " ".join("".join(parts).split())
