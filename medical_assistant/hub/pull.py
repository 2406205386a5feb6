"""Adapters, model files and data sets from the Hugging Face Hub, or from its cache; both are checked.

huggingface_hub asks of its cache only whether a file is there, and of what arrives only its size. Here what was
downloaded must have the checksums that the Hub lists for its commit (`HfApi.verify_repo_checksums`). Without the Hub,
a cached file of an adapter must have the bytes that its blob is named after: the ETag, which is the SHA-256 of a large
file and Git's SHA-1 of a small one (huggingface_hub, "Understand caching"). A name of another form, and a cache
without links, is not checked.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id
from huggingface_hub.utils.sha import git_hash

from medical_assistant.errors import AdapterError, UserError
from medical_assistant.hub.errors import FAILURES, HubUnavailable, explain, is_transient, retry, root_cause
from medical_assistant.models.adapter import ADAPTER_FILES, CONFIG_FILE, GGUF_FILE, REQUIRED_FILES, WEIGHTS_FILE

logger = logging.getLogger(__name__)

SERVED_FILES = (*REQUIRED_FILES, GGUF_FILE)  # an adapter is served without the others
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")  # unpickling runs code: never moved
TIMEOUT_S = 10.0
DATA_SET = "dataset"
_PREFIXES = {"model": "", DATA_SET: "datasets/"}  # of the pages of the Hub

COMMIT_HASH = re.compile(r"[0-9a-f]{40}")
# git-check-ref-format(1), narrowed: huggingface_hub joins the revision to a path of its cache.
_REVISION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,254}[A-Za-z0-9_-])?")


class PulledAdapter(NamedTuple):
    """An adapter in the Hub's cache."""

    folder: Path
    commit: str
    notice: str | None = None  # why it may not be the newest: the Hub failed


def split_revision(repository: str, revision: str | None = None) -> tuple[str, str | None]:
    """Return (`user/repository`, revision or None) from `user/repository[@revision]`.

    Raises `UserError` when the name or the revision is not valid on the Hub, or when two different
    revisions are given.
    """
    name, at, suffix = repository.partition("@")
    try:
        validate_repo_id(name)
    except HFValidationError:
        name = ""
    if name.count("/") != 1:
        raise UserError(f"{repository[:120]!r} is not a Hub repository: write user/name[@revision].")
    if at and revision is not None and suffix != revision:
        raise UserError(f"Two revisions for {name}, {suffix[:80]!r} and {revision[:80]!r}: give one.")
    revision = suffix if at else revision
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise UserError(f"{revision[:120]!r} is not a revision: use a branch, a tag or a commit hash.")
    return name, revision


def cached_commit(repository: str, revision: str | None = None, kind: str = "model") -> str | None:
    """Return the commit that a branch or tag had when it was last pulled, or the commit hash itself; None for none.

    A note of the cache that is no commit hash is removed: huggingface_hub cannot read it.
    """
    name, revision = split_revision(repository, revision)
    revision = revision or constants.DEFAULT_REVISION
    if COMMIT_HASH.fullmatch(revision):
        return revision
    path = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=kind) / "refs" / revision
    try:
        commit = path.read_bytes().decode("latin-1")
        if COMMIT_HASH.fullmatch(commit):
            return commit
        logger.warning("%s is no commit hash: removing it", path)
        path.unlink()
    except OSError:  # there is none, or it stays
        pass
    return None


def pull_adapter(repository: str, revision: str | None = None, *, cached_only: bool = False) -> PulledAdapter:
    """Return the adapter of `user/repository[@revision]` in the Hub's cache, downloaded where it is not there.

    Only the files of the adapter contract are downloaded. A cached commit hash needs no network.
    When the Hub cannot be reached or fails on the way, or with `cached_only`, the commit that a branch or tag had
    when it was last pulled is used, with a warning in the log that names it. Files of the cache that are broken are
    removed from it and downloaded again.

    Raises `AdapterError` when the repository holds no adapter in safetensors, `HubUnavailable` when it cannot be
    had now, else `UserError`.
    """
    name, revision = split_revision(repository, revision)
    known, removed = cached_commit(name, revision), list[str]()

    def check(files: Sequence[str]) -> None:
        if CONFIG_FILE in files and WEIGHTS_FILE in files:
            return
        pickle = next((file for file in files if file.endswith(PICKLES)), None)
        if pickle:
            raise AdapterError(f"{name} holds {pickle}, a pickle, which is never loaded: publish {WEIGHTS_FILE}.")
        raise AdapterError(f"{name} is not an adapter, it has no {CONFIG_FILE} with {WEIGHTS_FILE}: check the name.")

    def download(cached: bool) -> Path:
        # huggingface_hub notes a new commit before it has its files: offline, what it had before is asked for.
        wanted = known or revision if cached else revision
        folder = Path(
            snapshot_download(name, revision=wanted, allow_patterns=list(ADAPTER_FILES), local_files_only=cached)
        )
        broken = [file for file in SERVED_FILES if _differs_from_name(folder / file)] if cached else []
        removed.extend(_remove(folder, broken, name))
        if broken or not (folder / WEIGHTS_FILE).is_file():
            raise LocalEntryNotFoundError(f"{name} is not whole in the cache.")
        return folder

    try:
        folder, notice = _pull(name, revision, check, download, cached_only)
    except HubUnavailable as error:
        if not removed:
            raise
        raise HubUnavailable(f"{name} was broken in the cache ({', '.join(removed)}). {error}") from error
    return PulledAdapter(folder, folder.name, notice)


def pull_file(repository: str, filename: str, revision: str | None = None) -> Path:
    """Return the path of one file, such as a base model's GGUF, in the Hub cache.

    Offline and errors: as `pull_adapter`.
    """
    name, revision = split_revision(repository, revision)
    if filename.endswith(PICKLES):
        raise UserError(f"{filename} is a pickle, which is never downloaded: use a GGUF or safetensors file.")

    def check(files: Sequence[str]) -> None:
        if filename not in files:
            others = [file for file in files if Path(file).suffix == Path(filename).suffix]
            choice = f"choose one of {', '.join(others[:8])}" if others else "check the repository"
            raise UserError(f"{name} has no file {filename}: {choice}.")

    def download(cached: bool) -> Path:
        return Path(hf_hub_download(name, filename, revision=revision, local_files_only=cached))

    return _pull(name, revision, check, download)[0]


def pull_data_set(repository: str, patterns: Sequence[str]) -> Path:
    """Return the folder of the Hub data set `user/repository[@revision]` in the Hub's cache.

    Only files that fit one of `patterns`, such as "*.md", are downloaded. Offline and errors: as `pull_adapter`.
    """
    name, revision = split_revision(repository)
    known = cached_commit(name, revision, DATA_SET)

    def download(cached: bool) -> Path:
        wanted = known or revision if cached else revision
        folder = snapshot_download(
            name, repo_type=DATA_SET, revision=wanted, allow_patterns=list(patterns), local_files_only=cached
        )
        return Path(folder)

    return _pull(name, revision, lambda files: None, download, kind=DATA_SET)[0]


def _pull(
    name: str,
    revision: str | None,
    check: Callable[[Sequence[str]], None],
    download: Callable[[bool], Path],
    cached_only: bool = False,
    kind: str = "model",
) -> tuple[Path, str | None]:
    """Return (`download(False)`, None) after `check(files of the repository)`, or the cached (`download(True)`, why).

    The reason is None as well where the user asked for the cache: by a commit hash, or by HF_HUB_OFFLINE.
    """

    def fetch() -> tuple[Path, str | None]:
        # Asked first: snapshot_download waits for ever on a dead line, and falls back in silence.
        ask = HfApi().dataset_info if kind == DATA_SET else HfApi().model_info
        info = ask(name, revision=revision, timeout=TIMEOUT_S)
        check([file.rfilename for file in info.siblings or ()])
        path, commit = download(False), str(info.sha)
        if not any(folder.name == commit for folder in (path, *path.parents)):
            logger.warning("%s is at %s on the Hub: using the cached %s", name, commit, path)
            return path, f"the Hub has {commit[:12]} but did not send it"
        if _remove_broken(name, commit, kind):
            path = download(False)
            if _remove_broken(name, commit, kind):
                raise HubUnavailable(f"{name} is not what the Hub says it is: check proxy and disk, then try again.")
        return path, None

    try:
        if cached_only or COMMIT_HASH.fullmatch(revision or ""):
            try:
                return download(True), None
            except LocalEntryNotFoundError as error:
                if cached_only:
                    raise HubUnavailable(f"{name} is not in the cache: try again when the Hub answers.") from error
        try:
            return fetch()
        except FAILURES as error:
            cause, problem = root_cause(error), explain(error, name, revision, kind=_PREFIXES[kind])
            if not isinstance(problem, HubUnavailable):
                raise
            with contextlib.suppress(LocalEntryNotFoundError):
                path = download(True)
                offline = isinstance(cause, OfflineModeIsEnabled)
                reason = "HF_HUB_OFFLINE is set" if offline else str(problem).rstrip(".")
                logger.warning("Using the cached %s (%s)", path, reason)
                return path, None if offline else reason
            if not is_transient(cause):
                raise
            return retry(fetch)
    except FAILURES as error:
        raise explain(error, name, revision, kind=_PREFIXES[kind]) from error


def _remove_broken(name: str, commit: str, kind: str) -> list[str]:
    """Return the files of a cached commit that have not the checksums the Hub lists, removed from the cache.

    Reads all cached files of the commit: a second for each GB.
    """
    found = HfApi().verify_repo_checksums(name, revision=commit, repo_type=kind)
    return _remove(found.verified_path, [mismatch["path"] for mismatch in found.mismatches], name)


def _differs_from_name(path: Path) -> bool:
    """Return whether a cached file has not the hash that its blob is named after; False where the name is none."""
    name = path.resolve().name
    if not path.is_file() or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", name):
        return False
    content = path.read_bytes()
    # Git's SHA-1 of a small file, for which a proxy may put a plain one, and the SHA-256 of a large one.
    plain = (hashlib.sha1(content).hexdigest(), hashlib.sha256(content).hexdigest())
    return name not in (git_hash(content), *plain)


def _remove(folder: Path, files: list[str], name: str) -> list[str]:
    """Return `files`, removed from a snapshot folder together with their blobs."""
    for file in files:
        logger.warning("%s of %s was broken in the cache: removed it", file, name)
        blob = (folder / file).resolve()
        (folder / file).unlink()
        blob.unlink(missing_ok=True)
    return files
