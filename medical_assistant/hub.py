"""Adapter folders on the Hugging Face Hub: pushed in one commit, pulled at a known commit.

Publish a folder that train.py wrote, with a card made from its training.json and metrics.json:

    python -m medical_assistant.hub FOLDER user/repository [--private] [--revision BRANCH]

Every failure becomes a `UserError`. The endpoint is huggingface_hub's (`HF_ENDPOINT`), and so are
the token (`HF_TOKEN` or `hf auth login`) and the cache (`HF_HOME`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from huggingface_hub import (
    CommitOperationAdd,
    HfApi,
    constants,
    get_token,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from medical_assistant.adapter import ADAPTER_FILES, CALIBRATION_FILE, GGUF_FILE, REPORT_FILE, load_adapter
from medical_assistant.errors import AdapterError, UserError, run_script
from medical_assistant.hub_errors import (
    FAILURES,
    TOKEN_PAGE,
    explain,
    is_transient,
    one_line,
    retry,
    root_cause,
)
from medical_assistant.presets import Preset

logger = logging.getLogger(__name__)

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# An adapter can be published before it is evaluated; load_adapter asks for adapter.gguf where there must be one.
OPTIONAL_FILES = ("metrics.json", CALIBRATION_FILE, REPORT_FILE, "loss.png", GGUF_FILE)
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")  # unpickling runs code: never moved
TIMEOUT_S = 10.0

_COMMIT_HASH = re.compile(r"[0-9a-f]{40}")
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


def require_token() -> str:
    """Return the Hub token. Raises `UserError` that says how to get one."""
    token = get_token()
    if not token:
        raise UserError(
            f"No Hugging Face token: create one with write permission at {TOKEN_PAGE}, "
            "then set HF_TOKEN or run `hf auth login`."
        )
    return token


def push_adapter(
    folder: str | Path,
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
    commit_message: str = "Upload adapter",
    more: Sequence[Path] = (),
) -> str:
    """Return the URL of the one commit that holds the files of the adapter in `folder`.

    The repository, and the branch `revision`, are made when missing. Only the files of the adapter
    contract are sent, and the files `more` under their own names. Nothing is requested before the folder
    is found complete and sound. Repeated after a lost answer, the push finds its own commit and does not
    make a second one.

    Raises `AdapterError` for the folder and `UserError` for a missing token or permission, a public
    repository where `private` was asked, no network, or a Hub that keeps failing.
    """
    folder = Path(folder)
    name, branch = split_revision(repository, revision)
    if branch and _COMMIT_HASH.fullmatch(branch):
        raise UserError(f"A commit cannot be changed: push to a branch of {name}, not to {branch}.")
    files = check_folder(folder)
    api = HfApi(token=require_token())

    def push() -> str:
        api.create_repo(name, private=private, exist_ok=True)
        if private and not api.model_info(name, timeout=TIMEOUT_S).private:
            raise UserError(f"{name} is already public: make it private in its settings or use another name.")
        if branch and branch != constants.DEFAULT_REVISION:
            api.create_branch(name, branch=branch, exist_ok=True)
        # Not upload_folder: huggingface_hub 2 may spread a folder over several commits.
        paths = [*(folder / file for file in files), *more]
        operations = [CommitOperationAdd(path.name, path) for path in paths]
        commit = api.create_commit(name, operations, commit_message=commit_message, revision=branch)
        return str(commit.commit_url)

    try:
        return retry(push)
    except FAILURES as error:
        raise explain(error, name, branch, write=True) from error


def check_folder(folder: Path) -> list[str]:
    """Return the contract's files in `folder`. Raises `AdapterError` when one is missing or broken."""
    missing = [file for file in ADAPTER_FILES if file not in OPTIONAL_FILES and not (folder / file).is_file()]
    if missing:
        pickle = next((path.name for path in folder.glob("adapter_model.*") if path.suffix in PICKLES), None)
        hint = f" ({pickle} is a pickle, which is never uploaded)" if pickle else ""
        raise AdapterError(f"{folder} has no {', '.join(missing)}{hint}: give a complete folder of train.py.")
    files = [file for file in ADAPTER_FILES if (folder / file).is_file()]
    contents = {}
    for file in files:
        if file.endswith(".json"):
            try:
                contents[file] = json.loads((folder / file).read_text(encoding="utf-8"))
            except ValueError as error:
                raise AdapterError(f"{folder / file} is broken ({error}): write it again.") from error
            if not isinstance(contents[file], dict):
                raise AdapterError(f"{folder / file} is not a JSON object: write it again.")
    base = contents[CONFIG].get("base_model_name_or_path")
    if not base:
        raise AdapterError(f"{folder / CONFIG} names no base model: train again.")
    load_adapter(folder, Preset(name=str(base), repository=str(base)))
    return files


def pull_adapter(repository: str, revision: str | None = None, cache_dir: str | Path | None = None) -> tuple[Path, str]:
    """Return (folder in the Hub cache, commit hash) of `user/repository[@revision]`.

    Only the files of the adapter contract are downloaded. A cached commit hash needs no network.
    When the Hub cannot be reached, the commit that a branch or tag had when it was last pulled is
    used, with a warning in the log that names it.

    Raises `AdapterError` when the repository holds no adapter in safetensors, else `UserError`.
    """
    name, revision = split_revision(repository, revision)

    def check(files: Sequence[str]) -> None:
        if CONFIG in files and WEIGHTS in files:
            return
        pickle = next((file for file in files if file.endswith(PICKLES)), None)
        if pickle:
            raise AdapterError(f"{name} holds {pickle}, a pickle, which is never loaded: publish {WEIGHTS}.")
        raise AdapterError(f"{name} is not an adapter, it has no {CONFIG} with {WEIGHTS}: check the name.")

    def download(local_files_only: bool) -> Path:
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

    folder = _pull(name, revision, check, download)
    return folder, folder.name


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

    return _pull(name, revision, check, download)


def _pull(
    name: str, revision: str | None, check: Callable[[Sequence[str]], None], download: Callable[[bool], Path]
) -> Path:
    """Return `download(False)` after `check(files of the repository)`, or the cached `download(True)`."""

    def fetch() -> Path:
        # Asked first: snapshot_download waits for ever on a dead line, and falls back in silence.
        info = HfApi().model_info(name, revision=revision, timeout=TIMEOUT_S)
        check([file.rfilename for file in info.siblings or ()])
        path = download(False)
        if info.sha not in path.parts:
            logger.warning("%s is at %s on the Hub: using the cached %s", name, info.sha, path)
        return path

    if revision and _COMMIT_HASH.fullmatch(revision):
        with contextlib.suppress(LocalEntryNotFoundError):
            return download(True)
    try:
        try:
            return fetch()
        except FAILURES as error:
            cause = root_cause(error)
            if not is_transient(cause) and not isinstance(cause, OfflineModeIsEnabled):
                raise
            with contextlib.suppress(LocalEntryNotFoundError):
                path = download(True)
                logger.warning("No answer from the Hub (%s): using the cached %s", one_line(cause), path)
                return path
            return retry(fetch)
    except FAILURES as error:
        raise explain(error, name, revision) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Write the card of an adapter folder and push the folder."""
    from medical_assistant.card import write_card

    parser = argparse.ArgumentParser(
        prog="python -m medical_assistant.hub",
        description="Write the card of an adapter folder and publish the folder on the Hugging Face Hub.",
    )
    parser.add_argument("folder", type=Path, help="adapter folder, as train.py writes it")
    parser.add_argument("repository", help="user/name on the Hub; made when it does not exist")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", help="branch to push to (default: main)")
    parser.add_argument("--keep-card", action="store_true", help="push README.md as it is")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args(argv)
    if not arguments.keep_card:
        write_card(arguments.folder, arguments.repository)
    url = push_adapter(arguments.folder, arguments.repository, private=arguments.private, revision=arguments.revision)
    sys.stdout.write(f"{url}\n")
    return 0


if __name__ == "__main__":
    run_script(main)
