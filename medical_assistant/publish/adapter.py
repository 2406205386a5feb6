"""Publishing an adapter folder so that a failed upload is finished by one command later.

    python -m medical_assistant.publish.adapter FOLDER user/repository [--private] [--revision BRANCH]

What is pushed, in one commit: the files of the adapter contract (`adapter.ADAPTER_FILES`) with a card that
names the repository, and, where asked for, the merged GGUF files, which llama.cpp and Ollama load by
themselves. The merged safetensors stay local: beside an adapter_config.json they would make it a matter of
luck whether PEFT, transformers and vLLM take the repository for an adapter or for a whole model.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from medical_assistant.errors import AdapterError, UserError, run_script
from medical_assistant.evaluation.gate import GateError, require_gate
from medical_assistant.files import read_json, write_json
from medical_assistant.hub.pull import split_revision
from medical_assistant.hub.push import check_folder, push_adapter
from medical_assistant.publish.card import write_card
from medical_assistant.publish.merging import merged_ggufs

PENDING = "publish.json"  # in the adapter folder while a push is due; never pushed


def publish_adapter(
    folder: Path,
    repository: str,
    *,
    private: bool = False,
    merged: bool = False,
    gate: Path | None = None,
    evaluate: Callable[[], object] | None = None,
) -> str:
    """Return the URL of the one commit that holds the adapter in `folder`, with a new card.

    `repository` is `user/name` or `user/name@branch`; `merged` adds `folder/merged/merged-*.gguf`. Before
    the first request the goal is noted in `folder/publish.json`, which goes when the push is done: however
    it ends (no network, no token, Ctrl-C, a crash), `finish_publishing(folder)` goes on. With `gate`, the
    folder's metrics.json, which `evaluate` may write first, must meet its thresholds.

    Raises `AdapterError` for a folder that cannot be published, `GateError` for one that fails the gate; else
    `UserError`, whose line says what failed, that nothing is lost, and how to go on.
    """
    name, branch = split_revision(repository)
    ggufs = merged_ggufs(folder) if merged else []
    if merged and not ggufs:
        raise UserError(
            f"{folder} has no merged GGUF: run `python -m medical_assistant.publish.merging {folder}` first."
        )
    write_card(folder, name, [path.name for path in ggufs])
    check_folder(folder)
    pending = folder / PENDING
    try:
        write_json(pending, {"repository": repository, "private": private, "merged": merged})
    except OSError as error:
        raise UserError(f"{pending} cannot be written ({error.strerror}): free the disk or its permissions.") from error
    try:
        if gate:
            if evaluate:
                evaluate()
            require_gate(folder, gate)
            write_card(folder, name, [path.name for path in ggufs])  # again: with what was measured
        url = push_adapter(folder, name, private=private, revision=branch, more=ggufs)
    except GateError:
        raise  # it says how to go on
    except UserError as error:
        command = f"python train.py --publish {shlex.quote(str(folder))}"
        raise UserError(f"{error} Nothing is lost: `{command}` finishes the job.") from error
    pending.unlink()
    return url


def finish_publishing(folder: Path, repository: str | None = None, gate: Path | None = None) -> str:
    """Return the URL of the commit of an adapter whose push is due, or that `repository` is given for.

    `repository` replaces the one that was noted; what else was asked for then still holds. With `gate`, the
    folder's metrics.json must meet its thresholds. Raises `UserError` when nothing is due and no repository is
    given, else as `publish_adapter`.
    """
    if not folder.is_dir():
        raise AdapterError(f"There is no adapter folder {folder}: give the --output of a training run.")
    pending = folder / PENDING
    try:
        goal = read_json(pending) if pending.exists() else {}
    except UserError as error:
        raise UserError(f"{pending} is broken: remove it, and give --push-to-hub user/name.") from error
    name = repository or goal.get("repository")
    if not name:
        raise UserError(f"No push of {folder} is due: give --push-to-hub user/name to publish it.")
    private, merged = bool(goal.get("private")), bool(goal.get("merged"))
    return publish_adapter(folder, str(name), private=private, merged=merged, gate=gate)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the card of an adapter folder, push the folder and write the URL of the commit."""
    parser = argparse.ArgumentParser(
        prog="python -m medical_assistant.publish.adapter",
        description="Write the card of an adapter folder and publish the folder on the Hugging Face Hub.",
    )
    parser.add_argument("folder", type=Path, help="adapter folder, as train.py writes it")
    parser.add_argument("repository", help="user/name on the Hub; made when it does not exist")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", help="branch to push to (default: main)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    given = parser.parse_args(argv)
    name, branch = split_revision(given.repository, given.revision)
    url = publish_adapter(given.folder, f"{name}@{branch}" if branch else name, private=given.private)
    sys.stdout.write(f"{url}\n")
    return 0


if __name__ == "__main__":
    run_script(main)
