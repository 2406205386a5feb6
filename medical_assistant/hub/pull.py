"""Adapters and model files from the Hugging Face Hub, or from its cache, which is checked first.

huggingface_hub asks of its cache only whether a file is there. Here a file of an adapter must also have the bytes that
its blob is named after: the ETag, which is the SHA-256 of a large file and Git's SHA-1 of a small one (huggingface_hub,
"Understand caching"); a proxy may put a plain SHA-1 there. A name of another form, and a cache without links, is not
checked.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id

from medical_assistant.errors import AdapterError, UserError
from medical_assistant.hub.download_check import COMMIT_HASH, check_cached, check_download
from medical_assistant.hub.errors import FAILURES, HubUnavailable, explain, is_transient, retry, root_cause
from medical_assistant.models.adapter import ADAPTER_FILES, GGUF_FILE

logger = logging.getLogger(__name__)

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SERVED_FILES = (CONFIG, WEIGHTS, "prompt.json", GGUF_FILE)  # an adapter is served without the others
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")  # unpickling runs code: never moved
TIMEOUT_S = 10.0

# git-check-ref-format(1), narrowed: huggingface_hub joins the revision to a path of its cache.
_REVISION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,254}[A-Za-z0-9_-])?")


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


@dataclass(frozen=True)
class PulledAdapter:
    """An adapter in the Hub's cache."""

    folder: Path
    commit: str
    notice: str | None = None  # why it may not be the newest: the Hub failed


def pull_adapter(repository: str, revision: str | None = None, cache_dir: str | Path | None = None) -> tuple[Path, str]:
    """Return (folder in the Hub cache, commit hash) of `user/repository[@revision]`; all else as `find_adapter`."""
    found = find_adapter(repository, revision, cache_dir)
    return found.folder, found.commit


def cached_commit(repository: str, revision: str | None = None, cache_dir: str | Path | None = None) -> str | None:
    """Return the commit that a branch or tag had when it was last pulled, or the commit hash itself; None for none.

    A note that is no commit hash is removed: huggingface_hub would stumble over it.
    """
    name, revision = split_revision(repository, revision)
    revision = revision or constants.DEFAULT_REVISION
    if COMMIT_HASH.fullmatch(revision):
        return revision
    folder = Path(cache_dir or constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")
    path = folder / "refs" / revision
    try:
        commit = path.read_bytes().decode("latin-1")
        if COMMIT_HASH.fullmatch(commit):
            return commit
        logger.warning("%s is no commit hash: removing it", path)
        path.unlink()
    except OSError:  # there is none, or it stays
        pass
    return None


def find_adapter(
    repository: str, revision: str | None = None, cache_dir: str | Path | None = None, *, cached_only: bool = False
) -> PulledAdapter:
    """Return the adapter of `user/repository[@revision]` in the Hub's cache, downloaded where it is not there.

    Only the files of the adapter contract are downloaded. A cached commit hash needs no network.
    When the Hub cannot be reached or fails on the way, or with `cached_only`, the commit that a branch or tag had
    when it was last pulled is used, with a warning in the log that names it. Files of the cache that are broken are
    removed from it and downloaded again.

    Raises `AdapterError` when the repository holds no adapter in safetensors, `HubUnavailable` when it cannot be
    had now, else `UserError`.
    """
    name, revision = split_revision(repository, revision)
    known, removed = cached_commit(repository, revision, cache_dir), list[str]()

    def check(files: Sequence[str]) -> None:
        if CONFIG in files and WEIGHTS in files:
            return
        pickle = next((file for file in files if file.endswith(PICKLES)), None)
        if pickle:
            raise AdapterError(f"{name} holds {pickle}, a pickle, which is never loaded: publish {WEIGHTS}.")
        raise AdapterError(f"{name} is not an adapter, it has no {CONFIG} with {WEIGHTS}: check the name.")

    def snapshot(revision: str | None, local_files_only: bool) -> Path:
        folder = snapshot_download(
            name,
            revision=revision,
            cache_dir=cache_dir,
            allow_patterns=list(ADAPTER_FILES),
            local_files_only=local_files_only,
        )
        if not (Path(folder) / WEIGHTS).is_file():
            raise LocalEntryNotFoundError(f"{WEIGHTS} is not in the cache.")
        return Path(folder)

    def download(local_files_only: bool) -> Path:
        # huggingface_hub notes a new commit before it has its files: offline, what it had before is asked for.
        wanted = known or revision if local_files_only else revision
        folder = snapshot(wanted, local_files_only)
        broken = check_cached(folder, SERVED_FILES, name)
        if broken:
            removed.extend(broken)
            folder = snapshot(wanted, local_files_only)
            if check_cached(folder, SERVED_FILES, name):
                raise HubUnavailable(f"{name} arrived broken twice: check proxy and disk, then try again.")
        return folder

    try:
        if cached_only:
            folder, notice = _cached(name, revision, download), None
        else:
            folder, notice = _pull(name, revision, check, download)
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

    def download(local_files_only: bool) -> Path:
        return Path(hf_hub_download(name, filename, revision=revision, local_files_only=local_files_only))

    return _pull(name, revision, check, download)[0]


def _pull(
    name: str, revision: str | None, check: Callable[[Sequence[str]], None], download: Callable[[bool], Path]
) -> tuple[Path, str | None]:
    """Return (`download(False)`, None) after `check(files of the repository)`, or the cached (`download(True)`, why).

    The reason is None as well where the user asked for the cache: by a commit hash, or by HF_HUB_OFFLINE.
    """

    def fetch() -> tuple[Path, str | None]:
        # Asked first: snapshot_download waits for ever on a dead line, and falls back in silence.
        info = HfApi().model_info(name, revision=revision, timeout=TIMEOUT_S, files_metadata=True)
        siblings = info.siblings or ()
        check([file.rfilename for file in siblings])
        path = download(False)
        folder = next((folder for folder in (path, *path.parents) if folder.name == info.sha), None)
        if folder is not None:
            if check_download(folder, siblings):
                path = download(False)
                if check_download(folder, siblings):
                    raise HubUnavailable(
                        f"{name} is not what the Hub says it is: check proxy and disk, then try again."
                    )
            return path, None
        logger.warning("%s is at %s on the Hub: using the cached %s", name, info.sha, path)
        return path, f"the Hub has {str(info.sha)[:12]} but did not send it"

    try:
        if revision and COMMIT_HASH.fullmatch(revision):
            with contextlib.suppress(LocalEntryNotFoundError):
                return download(True), None
        try:
            return fetch()
        except FAILURES as error:
            cause, problem = root_cause(error), explain(error, name, revision)
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
        raise explain(error, name, revision) from error


def _cached(name: str, revision: str | None, download: Callable[[bool], Path]) -> Path:
    try:
        return download(True)
    except LocalEntryNotFoundError as error:
        raise HubUnavailable(f"{name} is not in the cache: try again when the Hub answers.") from error
    except FAILURES as error:
        raise explain(error, name, revision) from error
