"""Create a Gradio Space on the Hugging Face Hub, or update one, from this repository's tracked files.

    python -m medical_assistant.publish.space user/name [--model tinyllama-1.1b] [--adapter user/repository@commit]

The working tree's content of every file that git tracks is uploaded in one commit, without the
tests, benchmarks and continuous integration. Needs a token with write permission (`HF_TOKEN` or
`hf auth login`).
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, SpaceHardware, constants

from medical_assistant.errors import UserError, run_script
from medical_assistant.hub.errors import FAILURES, explain, retry
from medical_assistant.hub.push import require_token, split_revision
from medical_assistant.models.presets import find_preset

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
NOT_UPLOADED = ("tests/", "benchmarks/", ".ci/", ".github/")
REQUIRED = ("app.py", "README.md", "requirements.txt")
# ZeroGPU is what a free account may create; a Gradio Space on cpu-basic needs a paid plan.
DEFAULT_HARDWARE = SpaceHardware.ZERO_A10G


def tracked_files(root: Path) -> list[str]:
    """Return the paths that a Space gets: tracked by git, present, not in `NOT_UPLOADED`.

    Raises `UserError` when git is missing, `root` is no repository, or `REQUIRED` files are not tracked.
    """
    paths = _list_files(root)
    missing = [path for path in REQUIRED if path not in paths]
    if missing:
        raise UserError(f"git does not track {', '.join(missing)} in {root}: `git add` first, then deploy.")
    untracked = _list_files(root, "--others", "--exclude-standard")
    if untracked:
        logger.warning("Not uploaded, since git does not track them: %s", ", ".join(untracked))
    return paths


def _list_files(root: Path, *options: str) -> list[str]:
    command = ["git", "ls-files", "-z", *options]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"git cannot list the files of {root} ({error}): run this in a git clone.") from error
    paths = [path for path in done.stdout.decode().split("\0") if path and not path.startswith(NOT_UPLOADED)]
    return [path for path in paths if (root / path).is_file()]


def deploy_space(
    space: str,
    *,
    root: Path | None = None,
    hardware: SpaceHardware | None = None,
    private: bool = False,
    model: str | None = None,
    adapter: str | None = None,
) -> str:
    """Return the URL of the Space `user/name`, made when missing, that now holds the tracked files.

    `root` is the git clone, by default the one this package lies in. `hardware` None is ZeroGPU for
    a new Space and no change for an old one. `model` and `adapter` set the Space's variables MODEL
    and ADAPTER, which the app reads. Files in the uploaded folders that git no longer tracks are
    removed in the same commit; others are left alone.

    Raises `UserError` for a wrong name, model or adapter, before any request, and for Hub failures.
    """
    name, revision = split_revision(space)
    if revision:
        raise UserError(f"A Space has no revision here: write {name}.")
    root = root or ROOT
    paths = tracked_files(root)
    variables = {}
    if model:
        variables["MODEL"] = _check_model(model)
    if adapter:
        if adapter not in _folders(paths):  # an adapter may be bundled with the Space
            split_revision(adapter)
        variables["ADAPTER"] = adapter
    api = HfApi(token=require_token())

    def upload() -> None:
        is_new = not api.repo_exists(name, repo_type="space")
        if is_new:
            api.create_repo(
                name,
                repo_type="space",
                space_sdk="gradio",
                space_hardware=hardware or DEFAULT_HARDWARE,
                private=private,
                exist_ok=True,
            )
        elif private and not api.space_info(name).private:
            raise UserError(f"{name} is already public: make it private in its settings or use another name.")
        # Variables first: the build that the commit starts must see them.
        for key, value in variables.items():
            api.add_space_variable(name, key, value)
        present = api.list_repo_files(name, repo_type="space")
        folders = tuple(f"{folder}/" for folder in {path.split("/")[0] for path in paths if "/" in path})
        stale = [path for path in present if path.startswith(folders) and path not in paths]
        api.create_commit(
            name,
            [*(CommitOperationAdd(path, root / path) for path in paths), *map(CommitOperationDelete, stale)],
            commit_message="Deploy",
            repo_type="space",
        )
        if hardware and not is_new:
            api.request_space_hardware(name, hardware)

    try:
        retry(upload)
    except FAILURES as error:
        raise explain(error, name, kind="spaces/", write=True) from error
    return f"{constants.ENDPOINT}/spaces/{name}"


def _check_model(model: str) -> str:
    if Path(model).exists() or "\\" in model:
        raise UserError(f"{model} is a file of this machine, not of the Space: use a preset or a Hub id.")
    find_preset(model)
    return model


def _folders(paths: Sequence[str]) -> set[str]:
    """Every folder that the uploaded files lie in."""
    return {str(parent) for path in paths for parent in Path(path).parents if str(parent) != "."}


def main(argv: Sequence[str] | None = None) -> int:
    """Deploy this repository to a Space and write its URL."""
    parser = argparse.ArgumentParser(
        prog="python -m medical_assistant.publish.space",
        description="Create or update a Hugging Face Space from the files that git tracks here.",
        epilog="A private adapter or a gated model needs the secret HF_TOKEN in the Space's settings.",
    )
    parser.add_argument("space", help="user/name of the Space; made when it does not exist")
    parser.add_argument(
        "--hardware",
        type=SpaceHardware,
        metavar="FLAVOR",
        help="such as zero-a10g, cpu-basic or t4-small (default: zero-a10g for a new Space, else no change)",
    )
    parser.add_argument("--private", action="store_true", help="make a new Space private")
    parser.add_argument("--model", help="set the Space's MODEL: a preset of assets/models.yaml or a Hub id")
    parser.add_argument("--adapter", help="set the Space's ADAPTER: user/name[@commit] or a tracked folder")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    url = deploy_space(
        arguments.space,
        hardware=arguments.hardware,
        private=arguments.private,
        model=arguments.model,
        adapter=arguments.adapter,
    )
    sys.stdout.write(f"{url}\n")
    return 0


if __name__ == "__main__":
    run_script(main)
