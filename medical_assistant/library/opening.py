"""The library, or the libraries, that the app was started with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from medical_assistant.errors import UserError
from medical_assistant.library.index import open_library
from medical_assistant.library.passages import Found, Library
from medical_assistant.library.trained import FOLDER

SHIPPED = "shipped"
STORED_FILES = ("library.json", "sections.lance")  # in the folder of a stored library
DATA_SET_FILES = ("library.json", "*.lance/*", "*.md")  # patterns of fnmatch, whose * takes a slash too
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?:@[\w./-]+)?")


class Libraries:
    """Several libraries that are asked in order. Safe for concurrent calls as they are."""

    def __init__(self, libraries: Sequence[Library]) -> None:
        self.libraries = list(libraries)

    def find(self, question: str, earlier: Sequence[str] = ()) -> Found:
        """Return what the first has that covers the question, else what most probably answers it."""
        answers = []
        for library in self.libraries:
            found = library.find(question, earlier)
            if found.coverage == "covered":
                return found
            answers.append(found)
        return max(answers, key=lambda found: found.probability)


def open_libraries(names: str) -> Library:
    """Return the library of `names`, with commas between, in the order in which they are asked.

    A name is "shipped", the folder of a library that `data_prep.py library` built, a folder of Markdown pages in our
    form, or a data set of the Hub that holds one of these. Folders of pages are one library with each other.
    Raises `UserError` for what is missing, empty or broken, and for a page name that stands in two folders.
    """
    folders = [_folder(name.strip()) for name in names.split(",") if name.strip()]
    of_pages = [folder for folder in folders if not any((folder / name).exists() for name in STORED_FILES)]
    libraries: list[Library] = []
    for folder in folders:
        if folder not in of_pages:
            from medical_assistant.library.store import StoredLibrary  # lancedb takes a second

            libraries.append(StoredLibrary(folder))
        elif folder == of_pages[0]:
            libraries.append(open_library(*of_pages))
    if not libraries:
        raise UserError(f"--library {names!r} names no library: give a folder, '{SHIPPED}' or 'none'.")
    return libraries[0] if len(libraries) == 1 else Libraries(libraries)


def _folder(name: str) -> Path:
    """Return the folder of a library, downloaded where `name` is a data set of the Hub."""
    folder = FOLDER if name == SHIPPED else Path(name)
    if folder.is_dir():
        return folder
    if not _HUB_NAME.fullmatch(name):
        raise UserError(
            f"{name} is not a folder of library pages: give --library a folder, the name of a Hub data set "
            f"(user/name), '{SHIPPED}' or 'none'."
        )
    from medical_assistant.hub.pull import pull_data_set

    try:
        return pull_data_set(name, DATA_SET_FILES)
    except UserError as error:
        raise UserError(f"{name} is no folder here and cannot be had from the Hub. {error}") from error
