"""`make deploy`: a clone's tracked files become a Space."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from huggingface_hub import SpaceHardware

from medical_assistant.errors import UserError
from medical_assistant.publish import space as deploy
from tests.support.hub_server import OTHER_TOKEN, WRITE_TOKEN, HubServer

NAME = "alice/medical-assistant"
UPLOADED = {
    "app.py": b"import gradio\n",
    "README.md": b"---\ntitle: Medical Assistant\nsdk: gradio\napp_file: app.py\n---\n# Medical Assistant\n",
    "requirements.txt": b"gradio\n",
    ".gitignore": b".venv/\n/data/\n",
    "medical_assistant/__init__.py": b"",
    "assets/examples.yaml": b"- What is asthma?\n",
    "assets/adapters/toy/adapter_model.safetensors": b"\0\1\2",
}
KEPT_HERE = {
    "tests/test_app.py": b"",
    "benchmarks/decode.py": b"",
    "training_data/triage/en.jsonl": b"{}",
    ".ci/run": b"",
}
NOT_TRACKED = {".venv/bin/python": b"", "data/patients.jsonl": b"{}", "notes.txt": b"todo"}


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository whose untracked files must stay here; deploy's own ROOT points at it."""
    root = tmp_path / "clone"
    for path, content in {**UPLOADED, **KEPT_HERE, **NOT_TRACKED}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    subprocess.run(["git", "add", "-f", *UPLOADED, *KEPT_HERE], cwd=root, check=True)
    monkeypatch.setattr(deploy, "ROOT", root)
    return root


def test_new_space_gets_the_tracked_files_in_one_commit(
    hub_server: HubServer,
    clone: Path,
    signed_in: None,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert deploy.main([NAME]) == 0
    assert capsys.readouterr().out == f"{hub_server.endpoint}/spaces/{NAME}\n"
    space = hub_server.repositories["spaces", NAME]
    assert space.messages == ["initial commit", "Deploy"]
    files = space.files()
    files.pop(".gitattributes")
    assert files == UPLOADED
    assert (space.hardware, space.variables, space.private) == ("zero-a10g", {}, False)
    assert "notes.txt" in caplog.text and "patients" not in caplog.text


def test_options_set_hardware_variables_and_privacy(hub_server: HubServer, clone: Path, signed_in: None) -> None:
    pinned = "alice/adapter@" + "0" * 40
    deploy.main([NAME, "--hardware", "cpu-basic", "--private", "--model", "tinyllama-1.1b", "--adapter", pinned])
    space = hub_server.repositories["spaces", NAME]
    assert (space.hardware, space.private) == ("cpu-basic", True)
    assert space.variables == {"MODEL": "tinyllama-1.1b", "ADAPTER": pinned}
    paths = [request.rpartition("/")[2] for request in hub_server.requests]
    assert paths.index("variables") < paths.index("main")  # the build starts with the commit


def test_update_replaces_removes_and_leaves_alone(hub_server: HubServer, clone: Path, signed_in: None) -> None:
    mine = {"mine.txt": b"kept", "tests/mine.py": b""}
    old = {"assets/old.yaml": b"", "medical_assistant/old.py": b"", "app.py": b"old", **mine}
    space = hub_server.add_repository(NAME, old, kind="spaces", hardware="t4-small")
    deploy.deploy_space(NAME)
    files = space.files()
    files.pop(".gitattributes")
    assert files == {**UPLOADED, **mine}
    assert space.messages[2:] == ["Deploy"]
    assert space.hardware == "t4-small"
    deploy.deploy_space(NAME, hardware=SpaceHardware.ZERO_A10G)
    assert space.hardware == "zero-a10g"
    assert space.messages[2:] == ["Deploy"]  # nothing had changed


def test_deploy_outlasts_failures(hub_server: HubServer, clone: Path, signed_in: None) -> None:
    for path in ("/api/repos/create", "/variables", "/commit/"):
        hub_server.fail_next(503, path=path)
    deploy.deploy_space(NAME, model="smollm2-135m")
    assert hub_server.failures == []
    space = hub_server.repositories["spaces", NAME]
    assert space.messages == ["initial commit", "Deploy"]
    assert (space.hardware, space.variables) == ("zero-a10g", {"MODEL": "smollm2-135m"})
    hub_server.fail_next(503, times=99, path="/commit/")
    (clone / "app.py").write_bytes(b"changed")
    with pytest.raises(UserError, match="keeps answering 503"):
        deploy.deploy_space(NAME)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["medical-assistant"], "is not a Hub repository"),
        ([NAME + "@main"], "has no revision"),
        ([NAME, "--model", "no such model"], "Unknown model"),
        ([NAME, "--model", "/"], "file of this machine"),
        ([NAME, "--adapter", "../somewhere"], "is not a Hub repository"),
    ],
)
def test_wrong_arguments_make_no_request(
    hub_server: HubServer, clone: Path, signed_in: None, arguments: list[str], text: str
) -> None:
    with pytest.raises(UserError, match=text):
        deploy.main(arguments)
    assert hub_server.requests == []


def test_bundled_adapter_is_a_tracked_folder(hub_server: HubServer, clone: Path, signed_in: None) -> None:
    deploy.deploy_space(NAME, adapter="assets/adapters/toy")
    assert hub_server.repositories["spaces", NAME].variables == {"ADAPTER": "assets/adapters/toy"}


def test_unknown_hardware_is_refused_by_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        deploy.main([NAME, "--hardware", "quantum"])
    assert exit_.value.code == 2
    assert "quantum" in capsys.readouterr().err


def test_failures_have_their_sentence(hub_server: HubServer, clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(UserError, match="No Hugging Face token"):
        deploy.deploy_space(NAME)
    assert hub_server.requests == []
    monkeypatch.setenv("HF_TOKEN", OTHER_TOKEN)
    with pytest.raises(UserError, match=f"may not write to {NAME}"):
        deploy.deploy_space(NAME)
    monkeypatch.setenv("HF_TOKEN", WRITE_TOKEN)
    hub_server.paid_plan = False
    with pytest.raises(UserError, match="needs a paid plan"):
        deploy.deploy_space(NAME, hardware=SpaceHardware.CPU_BASIC)
    deploy.deploy_space(NAME)  # ZeroGPU is free
    with pytest.raises(UserError, match="already public"):
        deploy.deploy_space(NAME, private=True)
    hub_server.stop()
    with pytest.raises(UserError, match="Cannot reach"):
        deploy.deploy_space(NAME)


def test_a_folder_that_is_no_clone(
    hub_server: HubServer, clone: Path, tmp_path: Path, signed_in: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(deploy, "ROOT", tmp_path / "empty")
    with pytest.raises(UserError):
        deploy.deploy_space(NAME)
    assert hub_server.requests == []
