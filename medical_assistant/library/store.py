"""A library on the disk, for what outgrows memory: a LanceDB table of sections, searched by full text (BM25).

A row is one section. Two columns are indexed: `names`, the words of the page's names (first row of a page alone), and
`text`, those of the names and of the section. Both hold stems, made by the code that reads questions, so that a word
of a question and one of a page always meet; their indices split at spaces and change nothing. A question reads the
best sections of both, loads their pages, and `Decision` decides among them with word weights of the whole store.

Every change of a Lance table is a new version. Readers open the version that library.json names, and so see neither an
unfinished nor a killed build. How many pages hold each word stands in a table of its own for each version.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import lancedb
import pyarrow as pa
from lancedb.index import FTS, BTree
from lancedb.table import Table

from medical_assistant.errors import UserError
from medical_assistant.files import read_json
from medical_assistant.library.decision import Decision
from medical_assistant.library.index import TextStemmer, names_text, section_text, word_weights
from medical_assistant.library.pages import Line, Page, Section, Source
from medical_assistant.library.passages import Found
from medical_assistant.library.trained import load_trained
from medical_assistant.library.understand import PERSON_STEMS, Names, Reading, Topic, words_of

FORMAT = 1  # of library.json and the tables
MANIFEST = "library.json"
REBUILD = "build it again with: python data_prep.py library --source FOLDER --output {folder}"
SECTIONS_TABLE, WORDS_TABLE = "sections", "words-{version}"
SECTIONS_SCHEMA = pa.schema(
    [
        ("page", pa.string()),  # its id
        ("place", pa.int32()),  # of the section in its page, from 0
        ("names", pa.string()),
        ("text", pa.string()),
        ("head", pa.string()),  # JSON of the page without its sections, in its first row
        ("section", pa.string()),  # JSON
    ]
)
WORDS_SCHEMA = pa.schema([("role", pa.string()), ("word", pa.string()), ("pages", pa.int64())])
# A stem of the text, a word of a name, a short word in small letters ("add", see `understand.ordinary_words`).
STEM, NAME, PLAIN = "stem", "name", "plain"
_PLAIN_WORD = re.compile(r"(?<!\S)[a-z]{1,6}(?!\S)")
BATCH_ROWS = 2_000
NAMED_PAGES, SEARCHED_SECTIONS, DECIDED_PAGES = 16, 60, 12
# Lance multiplies BM25 by k1 + 1, with k1 1.2; bm25s, on whose scores the gate was fitted, does not, with k1 1.5.
LANCE_SCALE = 2.37  # the median ratio of their scores of 400 questions over the shipped pages
MAX_WORDS = 32  # of a question that are searched, the most telling ones
EARLIER_MESSAGES, EARLIER_PAGES = 6, 5  # of the conversation, and how many pages each may name
KEPT = timedelta(days=1)  # a version that a running app may have open
NEVER = timedelta(days=36500)
_STEMS_AS_THEY_ARE = FTS(
    base_tokenizer="whitespace", stem=False, remove_stop_words=False, lower_case=False, ascii_folding=False
)
_WEB_ADDRESS = re.compile(r"https?://", re.IGNORECASE)

Row = dict[str, Any]
Words = Counter[tuple[str, str]]  # (role, word) -> pages


class Store:
    """A library that is being written. Nothing of it is seen until library.json names the version of `finish`."""

    def __init__(self, database: lancedb.DBConnection, table: Table, words: Words, n_pages: int) -> None:
        self._database, self._table = database, table
        self._words, self.n_pages = words, n_pages
        self._stemmer = TextStemmer()

    @classmethod
    def open(cls, folder: Path, version: int | None = None) -> Store:
        """Return the store in `folder` as it was at `version`; None begins anew.

        What a killed build has left after that version is gone. Raises `UserError` when the version is not there.
        """
        database = lancedb.connect(folder)
        if version is None:
            mode: Literal["create", "overwrite"] = "overwrite" if _has(database, SECTIONS_TABLE) else "create"
            table = database.create_table(SECTIONS_TABLE, schema=SECTIONS_SCHEMA, mode=mode)
            return cls(database, table, Counter(), 0)
        table = _open_version(folder, version)
        words, n_pages = _read_words(folder, version)
        table.restore()
        return cls(database, table, words, n_pages)

    def add(self, pages: Iterable[Page]) -> int:
        """Write the pages, whose ids must be new, and return how many passages (sections) they have.

        What `pages` raises is raised here, and then none of them is written.
        """
        written, raised = 0, list[BaseException]()

        def batches() -> Iterator[pa.RecordBatch]:
            nonlocal written
            rows = self._rows(pages)
            try:
                while batch := list(islice(rows, BATCH_ROWS)):
                    written += len(batch)
                    yield pa.RecordBatch.from_pylist(batch, schema=SECTIONS_SCHEMA)
            except BaseException as error:
                raised.append(error)  # Lance would pass on its text alone
                raise

        try:
            self._table.add(pa.RecordBatchReader.from_batches(SECTIONS_SCHEMA, batches()))
        except Exception:
            if raised:
                raise raised[0] from None
            raise
        return written

    def _rows(self, pages: Iterable[Page]) -> Iterator[Row]:
        for page in pages:
            rows = page_rows(page, self._stemmer)
            self._words.update(_page_words(page, rows))
            self.n_pages += 1
            yield from rows

    def delete(self, page_ids: Collection[str]) -> None:
        """Remove the pages; those that are not there are none."""
        ids = iter(sorted(set(page_ids)))
        while batch := list(islice(ids, 500)):
            rows = _rows_of(self._table, batch)
            for own in _by_page(rows):
                self._words.subtract(_page_words(_page(own), own))
                self.n_pages -= 1
            self._table.delete(_among(batch))

    def finish(self) -> int:
        """Make the full-text indices and return the version to name in library.json."""
        self._table.optimize(cleanup_older_than=NEVER)
        for column in ("names", "text"):
            self._table.create_index(column, config=_STEMS_AS_THEY_ARE, replace=True)
        self._table.create_index("page", config=BTree(), replace=True)
        version = int(self._table.version)
        words = [(role, word, pages) for (role, word), pages in self._words.items() if pages > 0]
        words.append(("", "", self.n_pages))
        columns = [list(column) for column in zip(*words, strict=True)]
        name = WORDS_TABLE.format(version=version)
        if _has(self._database, name):  # of a version that was given up
            self._database.drop_table(name)
        self._database.create_table(name, pa.table(columns, schema=WORDS_SCHEMA))
        return version

    def forget_old(self) -> None:
        """Remove versions older than a day. Call it when library.json names the newest."""
        self._table.optimize(cleanup_older_than=KEPT)
        kept = {WORDS_TABLE.format(version=entry["version"]) for entry in self._table.list_versions()}
        prefix = WORDS_TABLE.format(version="")
        for name in self._database.list_tables(limit=10**6).tables:
            if name.startswith(prefix) and name not in kept:
                self._database.drop_table(name)


class StoredLibrary:
    """The library in a folder that `data_prep.py library` built. Safe for concurrent calls."""

    def __init__(self, folder: Path) -> None:
        """Open the version that library.json names. Raises `UserError` when something is missing or of another form."""
        self.manifest = read_manifest(folder)
        version = int(self.manifest["version"])
        self._table = _open_version(folder, version)
        words, self.n_pages = _read_words(folder, version)
        by_role: dict[str, dict[str, int]] = {STEM: {}, NAME: {}, PLAIN: {}}
        for (role, word), pages in words.items():
            by_role[role][word] = pages
        self.weights = word_weights(by_role[STEM], self.n_pages)
        self.trained = load_trained()
        self.names = Names((), {}, self.weights, by_role[NAME], by_role[PLAIN], self.trained.uncorrected)

    def find(self, question: str, earlier: Sequence[str] = ()) -> Found:
        """Return what the library has on `question`; `earlier` holds the user's messages before it, oldest first."""
        return self.decision(question).find(question, earlier[-EARLIER_MESSAGES:])

    def decision(self, question: str) -> StoredDecision:
        """Return the pages that come into question, to decide among."""
        return StoredDecision(self, self.names.read(question))

    def best_words(self, stems: Collection[str]) -> str:
        """Return the most telling stems that the library holds, as the indices take them."""
        known = [stem for stem in dict.fromkeys(stems) if stem in self.weights]
        return " ".join(sorted(known, key=lambda stem: (-self.weights[stem], stem))[:MAX_WORDS])

    def search(self, column: str, words: str, limit: int) -> list[tuple[str, float]]:
        """Return (page id, BM25 score) of the best rows, the best first."""
        if not words:
            return []
        query = self._table.search(words, query_type="fts", fts_columns=column)
        found = query.select(["page", "_score"]).limit(limit).to_arrow()
        scores = (score / LANCE_SCALE for score in found["_score"].to_pylist())
        return list(zip(found["page"].to_pylist(), scores, strict=True))

    def load(self, page_ids: Collection[str]) -> Iterator[tuple[Page, list[Row]]]:
        """Yield the pages, each with its rows in order."""
        for rows in _by_page(_rows_of(self._table, page_ids)) if page_ids else ():
            yield _page(rows), rows


class StoredDecision(Decision):
    """The pages of a store that may answer one question. Used once."""

    def __init__(self, library: StoredLibrary, reading: Reading) -> None:
        self._library = library
        self._pages: dict[str, Page] = {}
        self._own_stems: defaultdict[str, set[str]] = defaultdict(set)
        self._section_stems: dict[tuple[str, str], frozenset[str]] = {}
        super().__init__(library.trained, library.names, library.weights, self._own_stems, self._section_stems)
        self._hits: dict[str, list[tuple[str, float]]] = {}
        self._load([*self._named(reading, NAMED_PAGES), *self._best_pages(reading)])

    def _named(self, reading: Reading, limit: int) -> list[str]:
        """Return the ids of pages whose names have words of the question."""
        words = self._library.best_words([*reading.stems, PERSON_STEMS.get(reading.person, "")])
        return [page for page, _ in self._library.search("names", words, limit)]

    def _best_pages(self, reading: Reading) -> dict[str, float]:
        """Return the ids of the pages of the best sections, each with its best score."""
        words = self._library.best_words(reading.stems)
        if words not in self._hits:
            self._hits[words] = self._library.search("text", words, SEARCHED_SECTIONS)
        best: dict[str, float] = {}
        for page, score in self._hits[words]:
            best.setdefault(page, score)
        return dict(islice(best.items(), DECIDED_PAGES))

    def _load(self, page_ids: Iterable[str]) -> None:
        """Add pages, where they are not there yet, to those that are decided among."""
        new = dict.fromkeys(page for page in page_ids if page not in self._pages)
        for page, rows in self._library.load(new):
            self._pages[page.id] = page
            n_names = len(rows[0]["names"].split())
            for section, row in zip(page.sections, rows, strict=True):
                stems = row["text"].split()
                self._section_stems[page.id, section.heading] = frozenset(stems[n_names:])
                self._own_stems[page.id].update(stems)
        if new:
            self.names = self._library.names.of(list(self._pages.values()))

    def _page(self, name: str) -> Page | None:
        return self._pages.get(name)

    def _topics(self, text: str) -> list[Topic]:
        reading = self.names.read(text)
        self._load(self._named(reading, EARLIER_PAGES))
        return self.names.topics(reading)

    def ranked(self, reading: Reading) -> list[tuple[Page, float]]:
        best = self._best_pages(reading)
        self._load(best)
        return [(self._pages[page], score) for page, score in best.items()]

    def _distinct(self, ranked: Sequence[tuple[Page, float]]) -> list[float]:
        """Return one score for each title: several sources on one subject do not make it less clear."""
        of_title: dict[str, float] = {}
        for page, score in ranked:
            of_title.setdefault(page.title.casefold(), score)
        return list(of_title.values())


def _has(database: lancedb.DBConnection, name: str) -> bool:
    return name in database.list_tables(limit=10**6).tables


def page_rows(page: Page, stemmer: TextStemmer) -> list[Row]:
    """Return the rows of a page, one for each section."""
    names = stemmer.telling(names_text(page))
    head = asdict(replace(page, sections=()))
    return [
        {
            "page": page.id,
            "place": place,
            "names": " ".join(names) if place == 0 else None,
            "text": " ".join(names + stemmer.telling(section_text(section))),
            "head": json.dumps(head, ensure_ascii=False) if place == 0 else "",
            "section": json.dumps(
                [section.heading, [[line.text, line.sources, line.item, line.leads] for line in section.lines]],
                ensure_ascii=False,
            ),
        }
        for place, section in enumerate(page.sections)
    ]


def _by_page(rows: Iterable[Row]) -> list[list[Row]]:
    """Return the rows of each page, in the order of its sections."""
    found = defaultdict[str, list[Row]](list)
    for row in rows:
        found[row["page"]].append(row)
    return [sorted(own, key=lambda row: int(row["place"])) for own in found.values()]


def _page(rows: Sequence[Row]) -> Page:
    """Return the page that `page_rows` made these rows of. An address that is no web address is left out."""
    head = json.loads(rows[0]["head"])
    for source in head["sources"]:
        source["address"] = source["address"] if _WEB_ADDRESS.match(source["address"]) else ""
    sections = (json.loads(row["section"]) for row in rows)
    return Page(
        **{
            **head,
            "also_called": tuple(head["also_called"]),
            "sources": tuple(Source(**source) for source in head["sources"]),
            "sections": tuple(
                Section(heading, tuple(Line(text, tuple(sources), item, leads) for text, sources, item, leads in lines))
                for heading, lines in sections
            ),
        }
    )


def _page_words(page: Page, rows: Iterable[Row]) -> Words:
    """Return the words that a page counts for, each once."""
    stems = {stem for row in rows for stem in row["text"].split()}
    names = {word for name in (page.title, *page.also_called) for word in words_of(name)}
    lines = " ".join(line.text for section in page.sections for line in section.lines)
    plain = set(_PLAIN_WORD.findall(lines))
    return Counter((role, word) for role, words in ((STEM, stems), (NAME, names), (PLAIN, plain)) for word in words)


def _among(page_ids: Iterable[str]) -> str:
    quoted = ", ".join("'" + name.replace("'", "''") + "'" for name in page_ids)
    return f"page IN ({quoted})"


def _rows_of(table: Table, page_ids: Iterable[str]) -> list[Row]:
    columns = SECTIONS_SCHEMA.names
    rows: list[Row] = table.search().where(_among(page_ids)).select(columns).to_arrow().to_pylist()
    return rows


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return library.json. Raises `UserError` when it is missing, broken or of another format."""
    path = folder / MANIFEST
    again = REBUILD.format(folder=folder)
    try:
        content = read_json(path)
    except UserError as error:
        raise UserError(f"{path} is missing or broken: {again}") from error
    if content.get("format") != FORMAT:
        raise UserError(f"{folder} is a library of format {content.get('format')!r}, not {FORMAT}: {again}")
    if type(content.get("version")) is not int:
        raise UserError(f"{path} names no version: {again}")
    return content


def _open_version(folder: Path, version: int) -> Table:
    try:
        table = lancedb.connect(folder).open_table(SECTIONS_TABLE)
        table.checkout(version)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(_not_whole(folder, version)) from error
    return table


def _read_words(folder: Path, version: int) -> tuple[Words, int]:
    """Return how many pages hold each word, and how many pages there are."""
    try:
        table = lancedb.connect(folder).open_table(WORDS_TABLE.format(version=version)).to_arrow()
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(_not_whole(folder, version)) from error
    keys = zip(table["role"].to_pylist(), table["word"].to_pylist(), strict=True)
    words: Words = Counter(dict(zip(keys, table["pages"].to_pylist(), strict=True)))
    return words, words.pop(("", ""), 0)


def _not_whole(folder: Path, version: int) -> str:
    return f"{folder} is not whole (version {version} of its table is missing): {REBUILD.format(folder=folder)}"
