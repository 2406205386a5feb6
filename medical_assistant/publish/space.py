"""Create a Gradio Space on the Hugging Face Hub, or update one, from this repository's tracked files.

    python -m medical_assistant.publish.space user/name [--model tinyllama-1.1b] [--adapter user/repository@commit]

Needs a token with write permission (`HF_TOKEN` or `hf auth login`).
"""

from __future__ import annotations

import argparse
import logging
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, SpaceHardware, constants

from medical_assistant.errors import UserError, run_script
from medical_assistant.hub.errors import FAILURES, explain, retry
from medical_assistant.hub.pull import split_revision
from medical_assistant.hub.push import require_token
from medical_assistant.models.presets import find_preset

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
IGNORED = ("tests/*", "benchmarks/*", "training_data/*", ".ci/*", ".github/*")  # a Space does not need them
# ZeroGPU is what a free account may create; a Gradio Space on cpu-basic needs a paid plan.
DEFAULT_HARDWARE = SpaceHardware.ZERO_A10G


def deploy_space(
    space: str,
    *,
    hardware: SpaceHardware | None = None,
    private: bool = False,
    model: str | None = None,
    adapter: str | None = None,
) -> str:
    """Return the URL of the Space `user/name`, made when missing, that now holds this clone's files.

    Sent is the working tree's content of every file that git tracks, but for `IGNORED`. Files in the uploaded folders
    that git no longer tracks are removed; others are left alone. `hardware` None is ZeroGPU for a new Space and no
    change for an old one. `model` and `adapter` set the Space's variables MODEL and ADAPTER, which the app reads.

    Raises `UserError` for a wrong name, model or adapter, before any request, and for Hub failures.
    """
    name, revision = split_revision(space)
    if revision:
        raise UserError(f"A Space has no revision here: write {name}.")
    paths = tracked_files(ROOT)
    if model and find_preset(model).repository == model and Path(model).exists():
        raise UserError(f"{model} is a file of this machine, not of the Space: use a preset or a Hub id.")
    if adapter and not any(path.startswith(f"{adapter.rstrip('/')}/") for path in paths):  # a bundled one is a folder
        split_revision(adapter)
    api = HfApi(token=require_token())

    def upload() -> None:
        is_new = not api.repo_exists(name, repo_type="space")
        if is_new:
            flavor = hardware or DEFAULT_HARDWARE
            api.create_repo(name, repo_type="space", space_sdk="gradio", space_hardware=flavor, private=private)
        elif private and not api.space_info(name).private:
            raise UserError(f"{name} is already public: make it private in its settings or use another name.")
        # Variables first: the build that the upload starts must see them.
        for key, value in {"MODEL": model, "ADAPTER": adapter}.items():
            if value:
                api.add_space_variable(name, key, value)
        api.upload_folder(
            repo_id=name,
            repo_type="space",
            folder_path=folder,
            commit_message="Deploy",
            ignore_patterns=list(IGNORED),
            delete_patterns=sorted({f"{path.split('/')[0]}/*" for path in paths if "/" in path} - set(IGNORED)),
        )
        if hardware and not is_new:
            api.request_space_hardware(name, hardware)

    with tempfile.TemporaryDirectory() as folder:
        for path in paths:  # a copy: what git does not track, such as a file of secrets, cannot be sent
            (Path(folder) / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, Path(folder) / path)
        try:
            retry(upload)
        except FAILURES as error:
            raise explain(error, name, kind="spaces/", write=True) from error
    return f"{constants.ENDPOINT}/spaces/{name}"


def tracked_files(root: Path) -> list[str]:
    """Return the paths that git tracks in a clone. Raises `UserError` where it is none."""

    def list_files(*options: str) -> list[str]:
        command = ["git", "ls-files", "-z", *options]
        done = subprocess.run(command, cwd=root, capture_output=True, check=True, timeout=60)
        return [path for path in done.stdout.decode().split("\0") if path and (root / path).is_file()]

    try:
        paths, untracked = list_files(), list_files("--others", "--exclude-standard")
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"git cannot list the files of {root} ({error}): run this in a git clone.") from error
    if untracked:
        logger.warning("Not uploaded, since git does not track them: %s", ", ".join(untracked))
    return paths


def main(argv: Sequence[str] | None = None) -> int:
    """Deploy this repository to a Space and write its URL."""
    parser = argparse.ArgumentParser(
        prog="python -m medical_assistant.publish.space",
        description="Create or update a Hugging Face Space from the files that git tracks here.",
        epilog="A private adapter or a gated model needs the secret HF_TOKEN in the Space's settings.",
    )
    flavors = "such as zero-a10g, cpu-basic or t4-small (default: zero-a10g for a new Space, else no change)"
    parser.add_argument("space", help="user/name of the Space; made when it does not exist")
    parser.add_argument("--hardware", type=SpaceHardware, metavar="FLAVOR", help=flavors)
    parser.add_argument("--private", action="store_true", help="make a new Space private")
    parser.add_argument("--model", help="set the Space's MODEL: a preset of assets/models.yaml or a Hub id")
    parser.add_argument("--adapter", help="set the Space's ADAPTER: user/name[@commit] or a tracked folder")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    given = vars(parser.parse_args(argv))
    given.pop("debug")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    sys.stdout.write(f"{deploy_space(given.pop('space'), **given)}\n")
    return 0


if __name__ == "__main__":
    run_script(main)
