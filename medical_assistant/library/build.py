"""A library of one's own, built from what `importers` finds: only what changed is read, and it is whole or as before.

`library.json` in the folder names the version of the table that readers open, and says for every source its SHA-256,
the ids of its pages, and the hashes of those that were left out as duplicates. It is replaced when all is written: a
build that is stopped or fails changes nothing that anybody sees. The first build fills a folder beside `output` that
takes its name at the end.
"""

from __future__ import annotations

import errno
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from medical_assistant.errors import NO_SPACE, UserError
from medical_assistant.files import new_folder, read_json, write_json
from medical_assistant.library.documents import text_hash
from medical_assistant.library.importers import Content, Source, SourceList, list_sources, read_pages
from medical_assistant.library.pages import Page
from medical_assistant.library.store import FORMAT, MANIFEST, Store

READERS = 1  # raise it when the readers give other pages: everything is read again then
NO_TEXT, DUPLICATE, UNREADABLE = "pages without text", "duplicates", "sources that cannot be read"


class PageStore(Protocol):
    """What is built: `store.Store`."""

    def add(self, pages: Iterable[Page]) -> int: ...
    def delete(self, page_ids: Collection[str]) -> None: ...
    def finish(self) -> int: ...
    def forget_old(self) -> None: ...


@dataclass(frozen=True)
class BuildSettings:
    """`publisher` and `licence` stand where a page names none."""

    source: str
    output: Path
    publisher: str = ""
    licence: str = ""
    max_file_mb: int = 100

    def of_pages(self) -> dict[str, Any]:
        """Return what makes other pages of the same files."""
        return {"readers": READERS, "publisher": self.publisher, "licence": self.licence}


@dataclass
class Summary:
    """What a build did. `skipped`: reason -> how many. `warnings`: a line for each source that could not be read."""

    pages: int = 0
    passages: int = 0
    unchanged_sources: int = 0
    read_sources: int = 0
    removed_sources: int = 0
    new_pages: int = 0
    removed_pages: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def lines(self, output: Path) -> list[str]:
        """Return what to tell the user."""
        told = [f"{reason}: {count:,}" for reason, count in (self.skipped + self.notes).items() if count]
        return [
            f"{self.pages:,} pages with {self.passages:,} passages in {output} ({self.seconds:.1f} s): "
            f"new {self.new_pages:,}, removed {self.removed_pages:,}.",
            f"Sources: read {self.read_sources:,}, unchanged {self.unchanged_sources:,}, "
            f"gone {self.removed_sources:,}.",
            *([f"Left out: {'; '.join(told)}."] if told else []),
        ]


Entries = dict[str, dict[str, Any]]  # source -> {"sha256", "pages", "passages", "no_text", "duplicates"}
Progress = Callable[[float], None]  # called with the bytes that were read since the last call


def build_library(
    settings: BuildSettings,
    open_store: Callable[[Path, int | None], PageStore] = Store.open,
    start_progress: Callable[[int], Progress] = lambda total: lambda done: None,
) -> Summary:
    """Build or renew the library in `settings.output`, and return what was done.

    `start_progress` is given the bytes to read and returns what is called as they are read. Raises `UserError` for
    bad input, a folder that holds something else, and a full disk; the library stays as it was then.
    """
    started_s = time.monotonic()
    output, summary = settings.output, Summary()
    if settings.max_file_mb < 1:
        raise UserError("--max-file-mb must be 1 or more.")
    manifest = _read_manifest(output)
    found = list_sources(settings.source, output, settings.max_file_mb * 10**6)
    if manifest and manifest["source"] != found.name:
        raise UserError(
            f"{output} was built from {manifest['source']}, not {found.name}: choose another --output, or remove it."
        )
    summary.skipped += found.skipped
    try:
        if manifest:
            _renew(output, manifest, found, settings, summary, open_store, start_progress)
        else:
            with new_folder(output) as folder:
                _renew(folder, {}, found, settings, summary, open_store, start_progress)
    except (OSError, RuntimeError) as error:
        number = error.errno if isinstance(error, OSError) else None
        if number not in NO_SPACE and "No space left" not in str(error) and number not in (errno.EACCES, errno.EROFS):
            raise
        what = "cannot be written" if number in (errno.EACCES, errno.EROFS) else "is on a full disk"
        raise UserError(
            f"{output} {what}; it is as it was before: make room, then run the same command again."
        ) from error
    summary.seconds = time.monotonic() - started_s
    return summary


def _read_manifest(output: Path) -> dict[str, Any]:
    """Return library.json; {} where there is nothing yet. Raises `UserError` for a folder that holds anything else."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return {}
    if not (output / MANIFEST).is_file():
        raise UserError(f"{output} exists and is no library: choose another --output, nothing was overwritten.")
    manifest = read_json(output / MANIFEST)
    sound = isinstance(manifest.get("sources"), dict) and type(manifest.get("version")) is int
    if manifest.get("format") != FORMAT or not sound or "source" not in manifest:
        raise UserError(f"{output} is a library of another version: remove it, then build it again.")
    return manifest


def _renew(
    folder: Path,
    manifest: dict[str, Any],
    found: SourceList,
    settings: BuildSettings,
    summary: Summary,
    open_store: Callable[[Path, int | None], PageStore],
    start_progress: Callable[[int], Progress],
) -> None:
    same_readers = manifest.get("pages_made_with") == settings.of_pages()
    before: Entries = manifest.get("sources", {})
    importer = _Importer(found, before, settings, summary, start_progress)
    importer.find_changed(same_readers)
    sources = {source.key for source in found.sources}
    gone = [key for key in before if key not in sources]
    summary.removed_sources = len(gone)
    replaced = [page for key, entry in before.items() if key not in importer.entries for page in entry["pages"]]
    if importer.changed or gone:
        store = open_store(folder, manifest.get("version"))
        store.delete(replaced)
        store.add(importer.new_pages())
        importer.check_some_pages()
        version = store.finish()
    else:
        store, version = None, manifest["version"]
    pages = [page for entry in importer.entries.values() for page in entry["pages"]]
    summary.new_pages = len(set(pages) - {page for entry in before.values() for page in entry["pages"]})
    summary.removed_pages = len(set(replaced) - set(pages))
    summary.pages = len(pages)
    summary.passages = sum(entry["passages"] for entry in importer.entries.values())
    if store is not None:
        content = {
            "format": FORMAT,
            "version": version,
            "source": found.name,
            "pages": summary.pages,
            "passages": summary.passages,
            "pages_made_with": settings.of_pages(),
            "sources": dict(sorted(importer.entries.items())),
        }
        write_json(folder / MANIFEST, content)
        store.forget_old()
    for entry in importer.entries.values():
        summary.skipped[NO_TEXT] += entry["no_text"]
        summary.skipped[DUPLICATE] += len(entry["duplicates"])


class _Importer:
    """Reads the sources that changed. `entries`: of library.json, filled as pages are read."""

    def __init__(
        self,
        found: SourceList,
        before: Entries,
        settings: BuildSettings,
        summary: Summary,
        start_progress: Callable[[int], Progress],
    ) -> None:
        self._found, self._before, self._settings, self._summary = found, before, settings, summary
        self._start_progress = start_progress
        self.entries: Entries = {}
        self.changed: list[tuple[Source, Content | None]] = []  # what was fetched is kept
        self._seen: set[str] = set()  # hashes of the texts that the library has

    def find_changed(self, same_readers: bool) -> None:
        """Find the sources that are new or have other bytes, and those of which something was left out for what goes.

        A source that the library has and that cannot be read now stays in it as it was.
        """
        for source in self._found.sources:
            earlier = self._before.get(source.key)
            if earlier is None:
                self.changed.append((source, None))
                continue
            try:
                content = source.read()
                if same_readers and earlier["sha256"] == hashlib.sha256(content.content).hexdigest():
                    self.entries[source.key] = earlier
                    continue
                next(self._read(source, content, Counter()), None)  # raises where it is broken
                self.changed.append((source, content if not source.size else None))
            except UserError as error:
                self._fail(source, error, " What the library had of it is kept.")
                self.entries[source.key] = earlier
        self._read_duplicates_again()
        self._summary.unchanged_sources = len(self.entries)
        self._seen = {text_hash(page) for entry in self.entries.values() for page in entry["pages"]}

    def _read_duplicates_again(self) -> None:
        """Read the unchanged sources again of which a page was left out as a duplicate of one that goes now."""
        lost = {
            text_hash(page) for key, entry in self._before.items() if key not in self.entries for page in entry["pages"]
        }
        for source in self._found.sources:
            if source.key in self.entries and lost.intersection(self.entries[source.key]["duplicates"]):
                del self.entries[source.key]
                self.changed.append((source, None))

    def new_pages(self) -> Iterator[Page]:
        """Yield the pages of the sources that changed, no text twice."""
        progress = self._start_progress(sum(source.size for source, _ in self.changed))
        for source, content in self.changed:
            try:
                yield from self._pages(source, content or source.read(), progress)
            except UserError as error:
                self._fail(source, error, "")

    def _pages(self, source: Source, content: Content, progress: Progress) -> Iterator[Page]:
        digest = hashlib.sha256(content.content).hexdigest()
        pages, duplicates = list[str](), list[str]()
        passages, no_text, done = 0, 0, 0.0
        for share, page in self._read(source, content, self._summary.notes):
            progress((share - done) * len(content.content))
            done = share
            if page is None:
                no_text += 1
                continue
            digest_of_text = text_hash(page.id)
            if digest_of_text in self._seen:
                duplicates.append(digest_of_text)
                continue
            self._seen.add(digest_of_text)
            pages.append(page.id)
            passages += len(page.sections)
            yield page
        if not pages and not duplicates:
            raise UserError(f"{source.key} holds no text: leave it out, or give it in another format.")
        self.entries[source.key] = {
            "sha256": digest,
            "pages": pages,
            "passages": passages,
            "no_text": no_text,
            "duplicates": duplicates,
        }
        self._summary.read_sources += 1

    def _read(self, source: Source, content: Content, notes: Counter[str]) -> Iterator[tuple[float, Page | None]]:
        return read_pages(source, content, notes, self._settings.publisher, self._settings.licence, self._found.name)

    def _fail(self, source: Source, error: UserError, more: str) -> None:
        """Note a source that cannot be read; the only one ends the build."""
        if len(self._found.sources) == 1:
            raise error
        self._summary.warnings.append(f"{error}{more}")
        self._summary.skipped[UNREADABLE] += 1

    def check_some_pages(self) -> None:
        """Raise `UserError` when no source gave a page."""
        if not any(entry["pages"] for entry in self.entries.values()):
            reason = f" The first: {self._summary.warnings[0]}" if self._summary.warnings else ""
            raise UserError(f"{self._found.name} gave no pages at all.{reason}")
