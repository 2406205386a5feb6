"""What a library can be made of: a folder, a file, a list of web addresses, a data set on the Hub; and its pages.

`list_sources` says what there is, `Source.read` gives the bytes of one of them, `read_pages` the pages in them. What
cannot be read raises `UserError` with one line; whether that ends the import is for `build` to say.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from medical_assistant.errors import UserError
from medical_assistant.library.documents import Document, page_id, page_of, web_address
from medical_assistant.library.pages import Page

FORMATS = (
    ".md .markdown .html .htm .xhtml .pdf .txt .jsonl .ndjson .json .csv .parquet .xml".split()
)  # endings of files that are read
ROWS = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
MAX_REDIRECTS = 5
CONNECT_TIMEOUT_S, FETCH_TIMEOUT_S = 10.0, 60.0
USER_AGENT = "medical-assistant-library/1.0"
_KINDS = {  # of a web page, by the type that its server names
    "text/html": ".html",
    "application/xhtml+xml": ".html",
    "application/pdf": ".pdf",
    "text/markdown": ".md",
    "text/plain": ".txt",
    "application/json": ".json",
    "application/jsonl": ".jsonl",
    "application/x-ndjson": ".jsonl",
    "text/csv": ".csv",
    "text/xml": ".xml",
    "application/xml": ".xml",
}
_NO_PAGES = ("readme.md", "license.md", "licence.md", "license.txt", "licence.txt")


class Content(NamedTuple):
    """The bytes of a source. `kind`: one of `FORMATS`. `address`: where a web page is at last, after redirects."""

    content: bytes
    kind: str
    address: str = ""


@dataclass(frozen=True)
class Source:
    """A file or a web page. `key` names it in the library: a path inside the folder, or an address."""

    key: str
    size: int
    read: Callable[[], Content]


@dataclass(frozen=True)
class SourceList:
    """`name`: of all sources together. `skipped`: how many files were left out, by reason."""

    name: str
    sources: tuple[Source, ...]
    skipped: Counter[str]


def list_sources(source: str, output: Path, max_file_bytes: int) -> SourceList:
    """Return the sources in a folder (but not in `output`), a file, a .txt list of addresses, or a Hub data set.

    Raises `UserError` when there is no such thing, and when a folder holds nothing that can be read.
    """
    if re.match(r"https?://", source, re.IGNORECASE):
        return _addresses(source, [source], max_file_bytes)
    path = Path(source)
    try:
        if path.is_dir():
            return _folder(path, output, max_file_bytes)
        if path.is_file():
            addresses = _address_list(path)
            if addresses:
                return _addresses(path.name, addresses, max_file_bytes)
            return SourceList(path.name, (_file(path, path.name, max_file_bytes),), Counter())
        exists = path.exists()
    except OSError as error:
        raise UserError(f"{source[:120]} cannot be read ({error.strerror}): check the path and its rights.") from error
    if exists or source.partition("@")[0].count("/") != 1 or source.startswith((".", "/", "~")):
        raise UserError(
            f"There is no file or folder {source[:120]}: give a folder, a file, a .txt list of web addresses or the id "
            "of a data set on the Hub."
        )
    return _data_set(source, max_file_bytes)


def _folder(folder: Path, output: Path, max_file_bytes: int) -> SourceList:
    """Return the files below a folder, sorted; hidden ones and links that lead out of it are left out."""
    root, skipped, sources = folder.resolve(), Counter[str](), list[Source]()
    left_out = output.resolve()
    for place, folders, names in os.walk(folder):
        here = Path(place)
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and (here / name).resolve() != left_out
        )
        for name in [name for name in folders if (here / name).is_symlink()]:
            skipped["links to folders"] += 1
            folders.remove(name)
        for name in sorted(names):
            path = here / name
            if name.startswith(".") or name.lower() in _NO_PAGES:
                continue
            if path.suffix.lower() not in FORMATS:
                skipped[f"files in another format ({path.suffix.lower()[:12] or 'no ending'})"] += 1
            elif path.is_symlink() and not path.resolve().is_relative_to(root):
                skipped["links out of the folder"] += 1
            elif not path.is_file():
                skipped["no files"] += 1
            else:
                sources.append(_file(path, path.relative_to(folder).as_posix(), max_file_bytes))
    if not sources:
        why = f" ({'; '.join(f'{count} {reason}' for reason, count in skipped.items())})" if skipped else ""
        raise UserError(f"{folder} holds no files that can be read{why}: put {', '.join(FORMATS)} files there.")
    return SourceList(root.name, tuple(sorted(sources, key=lambda source: source.key)), skipped)


def _file(path: Path, key: str, max_file_bytes: int) -> Source:
    def read() -> Content:
        try:
            size = path.stat().st_size
            if size > max_file_bytes:
                raise UserError(_too_large(key, size, max_file_bytes))
            return Content(path.read_bytes(), path.suffix.lower())
        except OSError as error:
            raise UserError(f"{key} cannot be read ({error.strerror}): check its rights.") from error

    return Source(key, path.stat().st_size, read)


def _too_large(key: str, size: int, max_file_bytes: int) -> str:
    limit_mb = max_file_bytes // 10**6
    return f"{key} has {size / 1e6:,.0f} MB, more than --max-file-mb {limit_mb}: split it, or allow more."


def _address_list(path: Path) -> list[str]:
    """Return the lines of a .txt file whose first line is a web address; nothing of another file."""
    if path.suffix.lower() != ".txt" or path.stat().st_size > 10**7:
        return []
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    return lines if lines and re.match(r"https?://", lines[0], re.IGNORECASE) else []


def _addresses(name: str, lines: Sequence[str], max_file_bytes: int) -> SourceList:
    skipped = Counter[str]()
    found: dict[str, Source] = {}
    for line in lines:
        address = web_address(line)
        if not address:
            skipped["lines that are no http(s) address"] += 1
        elif address not in found:
            found[address] = Source(address, 0, lambda address=address: fetch(address, max_file_bytes))  # type: ignore[misc]
    if not found:
        raise UserError(f"{name} holds no http(s) address: write one a line.")
    return SourceList(name, tuple(found.values()), skipped)


def fetch(address: str, max_file_bytes: int) -> Content:
    """Return what a web address serves. Raises `UserError` when it fails, is too large, too slow or not to be read."""
    import httpx

    started_s, content = time.monotonic(), bytearray()
    try:
        with (
            httpx.Client(
                follow_redirects=True, max_redirects=MAX_REDIRECTS, timeout=CONNECT_TIMEOUT_S, verify=True
            ) as client,
            client.stream("GET", address, headers={"User-Agent": USER_AGENT}) as response,
        ):
            if response.status_code != 200:
                raise UserError(f"{address} answers {response.status_code}: check the address.")
            for piece in response.iter_bytes():
                content += piece
                if len(content) > max_file_bytes:
                    raise UserError(_too_large(address, len(content), max_file_bytes))
                if time.monotonic() - started_s > FETCH_TIMEOUT_S:
                    raise UserError(f"{address} takes over {FETCH_TIMEOUT_S:.0f} s: download it, then give the file.")
            last = str(response.url)
            served = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UserError(f"{address} cannot be fetched ({type(error).__name__}): check address and network.") from error
    ending = Path(unquote(urlsplit(last).path)).suffix.lower()
    kind = ending if ending in FORMATS and served in ("text/plain", "application/octet-stream", "") else ""
    kind = kind or _KINDS.get(served, ending if ending in FORMATS else "")
    if not kind:
        raise UserError(f"{address} serves {served or 'nothing known'}: HTML, PDF, Markdown, text and JSONL are read.")
    return Content(bytes(content), kind, last)


def _data_set(repository: str, max_file_bytes: int) -> SourceList:
    from medical_assistant.hub.pull import pull_data_set

    folder = pull_data_set(repository, [f"*{ending}" for ending in FORMATS])
    # Files of the Hub's cache are links, so this is no folder to be walked as a user's.
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in FORMATS and path.is_file())
    paths = [path for path in paths if path.name.lower() not in _NO_PAGES]
    sources = tuple(_file(path, path.relative_to(folder).as_posix(), max_file_bytes) for path in paths)
    if not sources:
        raise UserError(f"The data set {repository} has no files that can be read: {', '.join(FORMATS)}.")
    return SourceList(repository.partition("@")[0], sources, Counter())


def read_pages(
    source: Source, content: Content, notes: Counter[str], publisher: str = "", licence: str = "", library: str = ""
) -> Iterator[tuple[float, Page | None]]:
    """Yield (share of the source done, its next page); None for a page without text.

    `publisher` and `licence` stand where a page names none; without a publisher its web host does, else its folder,
    else `library`. `notes` counts what was kept with something left out.
    Raises `UserError`, with one line, where the source is broken or holds no text.
    """
    if not content.content.strip():
        raise UserError(f"{source.key} is empty: remove it, or fill it.")
    documents = _documents(source, content)
    otherwise = (Path(source.key).parent.name if not content.address else "") or library
    for number, document in enumerate(documents, 1):
        if isinstance(document, Page):
            yield (
                number / len(documents),
                replace(document, id=page_id(document.id, document.sections), path=source.key),
            )
            continue
        page = page_of(document, publisher, licence, otherwise)
        if page is not None and document.address.strip() and not page.sources[0].address:
            notes["addresses that are not http(s), kept without a link"] += 1
        yield number / len(documents), page and replace(page, path=source.key)


def _documents(source: Source, content: Content) -> Sequence[Document | Page]:
    where, kind = source.key, content.kind
    path = Path(unquote(urlsplit(content.address).path) or "page") if content.address else Path(source.key)
    name = re.sub(r"[-_]+", " ", path.stem)
    if content.content.startswith(b"%PDF-"):
        kind = ".pdf"
    if kind == ".pdf":
        from medical_assistant.library.formats.pdf import read_pdf

        return [replace(found, address=content.address) for found in read_pdf(content.content, where, name)]
    if kind in ROWS:
        from medical_assistant.library.formats.rows import read_rows

        return read_rows(content.content, kind, where)
    if kind == ".xml":
        from medical_assistant.library.formats.medlineplus import read_medlineplus

        return read_medlineplus(content.content, where)
    if kind == ".txt":
        from medical_assistant.library.formats.text import read_text

        return [replace(found, address=content.address) for found in read_text(content.content, where, name)]
    from medical_assistant.library.formats.markup import read_html, read_markdown

    if kind in (".md", ".markdown"):
        return read_markdown(content.content, where, path, content.address)
    return read_html(content.content, where, name, content.address)
