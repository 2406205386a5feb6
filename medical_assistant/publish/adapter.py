"""Publishing an adapter folder so that a failed upload is finished by one command later.

What is pushed, in one commit: the files of the adapter contract (`adapter.ADAPTER_FILES`) with a card that
names the repository, and, where asked for, the merged GGUF files, which llama.cpp and Ollama load by
themselves. The merged safetensors stay local: beside an adapter_config.json they would make it a matter of
luck whether PEFT, transformers and vLLM take the repository for an adapter or for a whole model.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medical_assistant.errors import AdapterError, UserError
from medical_assistant.evaluation.gate import GateError, require_gate
from medical_assistant.hub.push import check_folder, push_adapter, split_revision
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
    _write(pending, {"repository": repository, "private": private, "merged": merged})
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
    goal = _read(folder / PENDING, optional=repository is not None)
    return publish_adapter(
        folder,
        repository or goal["repository"],
        private=goal.get("private", False),
        merged=goal.get("merged", False),
        gate=gate,
    )


def _write(path: Path, goal: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_text(json.dumps(goal, indent=2) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): free the disk or its permissions.") from error


def _read(path: Path, optional: bool) -> dict[str, Any]:
    """The goal in publish.json, {} where there is none and that is allowed."""
    if not path.exists():
        if optional:
            return {}
        raise UserError(f"No push of {path.parent} is due: give --push-to-hub user/name to publish it.")
    try:
        goal = json.loads(path.read_text(encoding="utf-8"))
        return {
            "repository": str(goal["repository"]),
            "private": bool(goal.get("private")),
            "merged": bool(goal.get("merged")),
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is broken: remove it, and give --push-to-hub user/name.") from error
