"""Data sets from the Hugging Face Hub, or from its cache: the files of a commit."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from medical_assistant.errors import UserError
from medical_assistant.hub.errors import FAILURES, HubUnavailable, explain, is_transient, retry, root_cause
from medical_assistant.hub.pull import COMMIT_HASH, TIMEOUT_S, split_revision

logger = logging.getLogger(__name__)


class PulledDataset(NamedTuple):
    """A data set in the Hub's cache. `files`: paths inside `folder`, sorted; links to the cache's blobs."""

    folder: Path
    commit: str
    files: tuple[str, ...]


def pull_dataset(
    repository: str, revision: str | None = None, *, wanted: Callable[[str, int], bool] = lambda name, size: True
) -> PulledDataset:
    """Return the files of `user/repository[@revision]` for which `wanted(name, size in bytes)` holds, downloaded.

    Without the Hub, what the cache has of it is used, with a warning in the log. Raises `UserError` when there is no
    such data set or none of its files is wanted, `HubUnavailable` when it cannot be had now.
    """
    name, revision = split_revision(repository, revision)

    def fetch() -> PulledDataset:
        info = HfApi().dataset_info(name, revision=revision, timeout=TIMEOUT_S, files_metadata=True)
        files = [file.rfilename for file in info.siblings or () if wanted(file.rfilename, file.size or 0)]
        if not files:
            raise UserError(f"The data set {name} has no files that can be read here: look at its list of files.")
        commit = str(info.sha)
        return _pulled(_snapshot(name, commit, files, cached=False), commit, files)

    try:
        if COMMIT_HASH.fullmatch(revision or ""):
            with contextlib.suppress(LocalEntryNotFoundError):
                return _cached(name, revision, wanted)
        try:
            return fetch()
        except FAILURES as error:
            problem = explain(error, name, revision, kind="datasets/")
            if not isinstance(problem, HubUnavailable):
                raise
            with contextlib.suppress(LocalEntryNotFoundError):
                pulled = _cached(name, revision, wanted)
                logger.warning("Using the cached %s (%s)", name, str(problem).rstrip("."))
                return pulled
            if not is_transient(root_cause(error)):
                raise
            return retry(fetch)
    except FAILURES as error:
        raise explain(error, name, revision, kind="datasets/") from error


def _snapshot(name: str, revision: str | None, files: Sequence[str] | None, cached: bool) -> Path:
    return Path(
        snapshot_download(
            name, repo_type="dataset", revision=revision, allow_patterns=files and list(files), local_files_only=cached
        )
    )


def _cached(name: str, revision: str | None, wanted: Callable[[str, int], bool]) -> PulledDataset:
    folder = _snapshot(name, revision, None, cached=True)
    paths = (path for path in folder.rglob("*") if path.is_file())
    files = [path.relative_to(folder).as_posix() for path in paths if wanted(path.name, path.stat().st_size)]
    if not files:
        raise LocalEntryNotFoundError(f"{name} is not in the cache.")
    return _pulled(folder, folder.name, files)


def _pulled(folder: Path, commit: str, files: Sequence[str]) -> PulledDataset:
    return PulledDataset(folder, commit, tuple(sorted(files)))
