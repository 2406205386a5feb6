"""Adapter folders pushed to the Hugging Face Hub, each in one commit.

Every failure becomes a `UserError`. The endpoint is huggingface_hub's (`HF_ENDPOINT`), and so are
the token (`HF_TOKEN` or `hf auth login`) and the cache (`HF_HOME`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token

from medical_assistant.errors import AdapterError, UserError
from medical_assistant.files import read_json
from medical_assistant.hub.errors import FAILURES, TOKEN_PAGE, explain, retry
from medical_assistant.hub.pull import COMMIT_HASH, PICKLES, TIMEOUT_S, split_revision
from medical_assistant.models.adapter import (
    ADAPTER_FILES,
    CALIBRATION_FILE,
    CONFIG_FILE,
    GGUF_FILE,
    REPORT_FILE,
    load_adapter,
)
from medical_assistant.models.presets import Preset

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

    Raises `UserError` for a folder that is incomplete or broken, a missing token or permission, a public
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
    """Return the contract's files in `folder`. Raises `UserError` when one is missing or broken."""
    missing = [file for file in ADAPTER_FILES if file not in OPTIONAL_FILES and not (folder / file).is_file()]
    if missing:
        pickle = next((path.name for path in folder.glob("adapter_model.*") if path.suffix in PICKLES), None)
        hint = f" ({pickle} is a pickle, which is never uploaded)" if pickle else ""
        raise AdapterError(f"{folder} has no {', '.join(missing)}{hint}: give a complete folder of train.py.")
    files = [file for file in ADAPTER_FILES if (folder / file).is_file()]
    contents = {file: read_json(folder / file) for file in files if file.endswith(".json")}
    base = contents[CONFIG_FILE].get("base_model_name_or_path")
    if not base:
        raise AdapterError(f"{folder / CONFIG_FILE} names no base model: train again.")
    load_adapter(folder, Preset(name=str(base), repository=str(base)))
    return files
