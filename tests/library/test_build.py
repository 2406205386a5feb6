"""A library of one's own: built once, renewed with what changed, and as it was before wherever a build ends early."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Collection, Iterable
from pathlib import Path

import pytest

import data_prep
from medical_assistant.errors import UserError
from medical_assistant.library.answer import quoted_answer
from medical_assistant.library.build import BuildSettings, Summary, build_library
from medical_assistant.library.pages import Page
from medical_assistant.library.store import StoredLibrary
from tests.library.conftest import PAGES
from tests.support.documents import MEDLINEPLUS_XML, web_server


class FakeStore:
    """A store in memory: `versions` of every folder name are kept, as Lance keeps them."""

    versions: dict[int, dict[str, Page]] = {}
    fails: BaseException | None = None

    def __init__(self, pages: dict[str, Page]) -> None:
        self.pages = pages

    @classmethod
    def open(cls, folder: Path, version: int | None) -> FakeStore:
        return cls(dict(cls.versions[version]) if version else {})

    def add(self, pages: Iterable[Page]) -> int:
        for page in pages:
            assert page.id not in self.pages, "an id that is there already"
            self.pages[page.id] = page
        if self.fails:
            raise self.fails
        return 0

    def delete(self, page_ids: Collection[str]) -> None:
        for page in page_ids:
            del self.pages[page]

    def finish(self) -> int:
        number = len(self.versions) + 1
        self.versions[number] = dict(self.pages)
        return number

    def forget_old(self) -> None:
        pass


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> type[FakeStore]:
    monkeypatch.setattr(FakeStore, "versions", {})
    monkeypatch.setattr(FakeStore, "fails", None)
    return FakeStore


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two documents and a page in the project's form."""
    folder = tmp_path / "pages"
    folder.mkdir()
    (folder / "knee.md").write_text("# Sore knee\n\nRest it.\n\n## Treatment\n\nPut ice on it.\n")
    (folder / "back.txt").write_text("Back pain\n\nKeep moving.\n")
    (folder / "malaria.md").write_text(PAGES["malaria"])
    return folder


def build(source: Path | str, output: Path, **settings: str | int) -> Summary:
    return build_library(BuildSettings(str(source), output, **settings), FakeStore.open)  # type: ignore[arg-type]


def titles(output: Path) -> list[str]:
    """Return the titles of the pages that a reader of the library finds now."""
    manifest = json.loads((output / "library.json").read_text())
    pages = FakeStore.versions[manifest["version"]]
    listed = [page for entry in manifest["sources"].values() for page in entry["pages"]]
    assert sorted(listed) == sorted(pages) and manifest["pages"] == len(pages)
    assert manifest["passages"] == sum(len(page.sections) for page in pages.values())
    return sorted(page.title for page in pages.values())


def test_a_folder_becomes_a_library(folder: Path, store: type[FakeStore], tmp_path: Path) -> None:
    summary = build(folder, tmp_path / "out", publisher="Our clinic", licence="MIT")
    assert titles(tmp_path / "out") == ["Back pain", "Malaria", "Sore knee"]
    assert (summary.pages, summary.new_pages, summary.read_sources) == (3, 3, 3)
    pages = {page.title: page for page in store.versions[1].values()}
    knee = pages["Sore knee"].sources[0]
    assert (knee.publisher, knee.licence) == ("Our clinic", "MIT") and pages["Malaria"].sources[0].publisher == "NHS"
    assert "3 pages with" in summary.lines(tmp_path / "out")[0]


def test_only_what_changed_is_read_again(folder: Path, store: type[FakeStore], tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(folder, out)
    summary = build(folder, out)
    assert (summary.read_sources, summary.unchanged_sources, summary.new_pages) == (0, 3, 0)
    assert len(store.versions) == 1  # nothing was written
    (folder / "knee.md").write_text("# Sore knee\n\nRest it well.\n")
    (folder / "back.txt").unlink()
    (folder / "new.md").write_text("# Gout\n\nIt hurts.\n")
    summary = build(folder, out)
    assert titles(out) == ["Gout", "Malaria", "Sore knee"]
    assert (summary.read_sources, summary.unchanged_sources, summary.removed_sources) == (2, 1, 1)
    assert (summary.new_pages, summary.removed_pages) == (2, 2)
    assert build(folder, out, licence="MIT").read_sources == 3  # other settings make other pages


def test_a_renamed_file_keeps_its_page(folder: Path, store: type[FakeStore], tmp_path: Path) -> None:
    build(folder, tmp_path / "out")
    (folder / "back.txt").rename(folder / "a.txt")
    summary = build(folder, tmp_path / "out")
    assert titles(tmp_path / "out") == ["Back pain", "Malaria", "Sore knee"]
    assert (summary.new_pages, summary.removed_pages) == (0, 0)


def test_a_duplicate_is_left_out_and_comes_back_when_the_first_goes(
    folder: Path, store: type[FakeStore], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (folder / "back2.txt").write_text("Pain in the back\n\nKEEP  moving!\n")  # the same words under another title
    assert build(folder, out).skipped["duplicates"] == 1
    assert titles(out) == ["Back pain", "Malaria", "Sore knee"]
    (folder / "back.txt").unlink()
    build(folder, out)
    assert titles(out) == ["Malaria", "Pain in the back", "Sore knee"]


def test_one_bad_file_among_many_is_a_warning(folder: Path, store: type[FakeStore], tmp_path: Path) -> None:
    (folder / "bad.pdf").write_bytes(b"%PDF-1.4 nothing")
    (folder / "empty.md").write_bytes(b"")
    (folder / "rows.jsonl").write_text('{"title": "A", "text": "B."}\nbroken\n')
    summary = build(folder, tmp_path / "out")
    assert len(summary.warnings) == 3 and summary.skipped["sources that cannot be read"] == 3
    assert all("\n" not in line for line in summary.warnings) and any("line 2" in line for line in summary.warnings)
    assert titles(tmp_path / "out") == ["Back pain", "Malaria", "Sore knee"]


def test_a_file_that_breaks_later_stays_as_it_was(folder: Path, store: type[FakeStore], tmp_path: Path) -> None:
    build(folder, tmp_path / "out")
    (folder / "knee.md").write_bytes(b"\x00" * 100)
    (folder / "back.txt").write_text("Back pain\n\nWalk.\n")
    summary = build(folder, tmp_path / "out")
    assert "is kept" in summary.warnings[0] and titles(tmp_path / "out") == ["Back pain", "Malaria", "Sore knee"]


def test_a_bad_file_alone_ends_the_build(store: type[FakeStore], tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(b"%PDF-1.4 nothing")
    with pytest.raises(UserError, match="broken PDF"):
        build(path, tmp_path / "out")
    assert not (tmp_path / "out").exists() and os.listdir(tmp_path) == ["a.pdf"]


def test_pages_without_text_are_counted(store: type[FakeStore], tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"title": "A", "text": "B."}\n{"title": "C", "text": "<p> </p>"}\n')
    assert build(path, tmp_path / "out").skipped["pages without text"] == 1


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "full"), RuntimeError("No space left")])
def test_a_build_that_ends_early_leaves_what_was_there(
    folder: Path, store: type[FakeStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, first: bool
) -> None:
    out = tmp_path / "out"
    if not first:
        build(folder, out)
        before = (out / "library.json").read_bytes()
    (folder / "new.md").write_text("# Gout\n\nIt hurts.\n")
    monkeypatch.setattr(FakeStore, "fails", error)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else UserError):
        build(folder, out)
    if first:
        assert sorted(os.listdir(tmp_path)) == ["pages"]
    else:
        assert (out / "library.json").read_bytes() == before and len(titles(out)) == 3
    monkeypatch.setattr(FakeStore, "fails", None)
    build(folder, out)
    assert titles(out) == ["Back pain", "Gout", "Malaria", "Sore knee"]


def test_another_folder_is_not_touched(folder: Path, store: type[FakeStore], tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.doc").write_text("mine")
    with pytest.raises(UserError, match="is no library"):
        build(folder, other)
    with pytest.raises(UserError, match="is no library"):
        build(folder, other / "thesis.doc")
    (other / "library.json").write_text('{"format": 99}')
    with pytest.raises(UserError, match="another version"):
        build(folder, other)
    assert (other / "thesis.doc").read_text() == "mine"
    build(folder, tmp_path / "out")
    with pytest.raises(UserError, match="was built from pages, not other"):
        build(other, tmp_path / "out")


def test_what_is_left_of_a_folder_that_was_emptied(folder: Path, store: type[FakeStore], tmp_path: Path) -> None:
    build(folder, tmp_path / "out")
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(UserError, match="holds no files"):
        build(folder, tmp_path / "out")
    assert len(titles(tmp_path / "out")) == 3


def test_web_pages_that_are_down_stay(store: type[FakeStore], tmp_path: Path) -> None:
    pages = {f"/{name}": (200, {"Content-Type": "text/plain"}, f"{name}\n\nIt is {name}.".encode()) for name in "ab"}
    with web_server(pages) as server:
        path = tmp_path / "addresses.txt"
        path.write_text(f"{server}/a\n{server}/b\n")
        build(path, tmp_path / "out")
        pages["/a"], pages["/b"] = (404, {}, b""), (200, {"Content-Type": "text/plain"}, b"b\n\nIt is another b.")
        summary = build(path, tmp_path / "out")
    assert titles(tmp_path / "out") == ["a", "b"] and "404" in summary.warnings[0] and summary.new_pages == 1


def test_data_prep_library_and_a_question(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole, with LanceDB: build, ask, renew, ask again."""
    (folder / "mplus_topics_2026-11-28.xml").write_text(MEDLINEPLUS_XML)
    (folder / "bad.pdf").write_bytes(b"%PDF-1.4 nothing")
    out = tmp_path / "out"
    arguments = ["library", "--source", str(folder), "--output", str(out)]
    assert data_prep.main(arguments) == 0
    told = capsys.readouterr()
    assert "4 pages with" in told.out and "sources that cannot be read: 1" in told.out
    assert told.err.startswith("warning: bad.pdf is a broken PDF")
    answer = quoted_answer(StoredLibrary(out).find("What are the symptoms of gout?"))
    assert "- Swelling [1]" in answer.text and answer.sources[0].source.licence == "Public domain"
    (folder / "knee.md").write_text("# Sore knee\n\nRest it.\n\n## Treatment\n\nCool the knee with a wet cloth.\n")
    assert data_prep.main(arguments) == 0
    assert "read 1, unchanged 3" in capsys.readouterr().out
    answer = quoted_answer(StoredLibrary(out).find("How do I treat a sore knee?"))
    assert "Cool the knee with a wet cloth." in answer.text and "Put ice on it" not in answer.text
    with pytest.raises(UserError, match="--output is missing"):
        data_prep.main(["library", "--source", str(folder)])


def test_ctrl_c_says_how_to_go_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("medical_assistant.library.build.build_library", interrupted)
    with pytest.raises(KeyboardInterrupt):
        data_prep.main(["library", "--source", str(folder), "--output", str(tmp_path / "out")])
    assert "is as it was before. The same command" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["library", "--help"]])
def test_help_names_both_uses(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        data_prep.main(arguments)
    assert end.value.code == 0 and "data_prep.py library --source" in capsys.readouterr().out
