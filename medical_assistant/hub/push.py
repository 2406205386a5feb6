"""Adapter folders on the Hugging Face Hub: pushed in one commit; pulled, by `hub_pull`, at a known commit.

Publish a folder that train.py wrote, with a card made from its training.json and metrics.json:

    python -m medical_assistant.hub.push FOLDER user/repository [--private] [--revision BRANCH]

Every failure becomes a `UserError`. The endpoint is huggingface_hub's (`HF_ENDPOINT`), and so are
the token (`HF_TOKEN` or `hf auth login`) and the cache (`HF_HOME`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token

from medical_assistant.errors import AdapterError, UserError, run_script
from medical_assistant.hub.errors import FAILURES, TOKEN_PAGE, explain, retry
from medical_assistant.hub.pull import (
    COMMIT_HASH,
    CONFIG,
    PICKLES,
    TIMEOUT_S,
    pull_adapter,
    pull_file,
    split_revision,
)
from medical_assistant.models.adapter import ADAPTER_FILES, CALIBRATION_FILE, GGUF_FILE, REPORT_FILE, load_adapter
from medical_assistant.models.presets import Preset

__all__ = ["check_folder", "main", "pull_adapter", "pull_file", "push_adapter", "require_token", "split_revision"]

# An adapter can be published before it is evaluated; load_adapter asks for adapter.gguf where there must be one.
OPTIONAL_FILES = ("metrics.json", CALIBRATION_FILE, REPORT_FILE, "loss.png", GGUF_FILE)


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
    if branch and COMMIT_HASH.fullmatch(branch):
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


def main(argv: Sequence[str] | None = None) -> int:
    """Write the card of an adapter folder and push the folder."""
    from medical_assistant.publish.card import write_card

    parser = argparse.ArgumentParser(
        prog="python -m medical_assistant.hub.push",
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
