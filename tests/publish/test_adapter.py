"""A push that fails leaves a folder that one command publishes."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from medical_assistant.errors import AdapterError, UserError
from medical_assistant.models.adapter import ADAPTER_FILES
from medical_assistant.publish.adapter import PENDING, finish_publishing, main, publish_adapter
from tests.support.hub_server import DROP, LOSE_ANSWER, READ_TOKEN, WRITE_TOKEN, HubServer, read_folder

NAME = "alice/adapter"


@pytest.fixture
def merged_adapter(toy_adapter: Path) -> Path:
    """The toy adapter with a `merged` folder, as `--merge` leaves it."""
    (toy_adapter / "merged").mkdir()
    for name in ("merged-Q8_0.gguf", "model.safetensors", "config.json"):
        (toy_adapter / "merged" / name).write_bytes(b"GGUF merged weights")
    return toy_adapter


def failure_of(call, *arguments, **options) -> str:
    """The one line that a user sees."""
    with pytest.raises(UserError) as raised:
        call(*arguments, **options)
    text = str(raised.value)
    assert "\n" not in text
    return text


def test_one_commit_holds_the_files_and_a_card_that_names_the_repository(
    hub_server: HubServer, toy_adapter: Path, signed_in: None
) -> None:
    url = publish_adapter(toy_adapter, NAME)
    repository = hub_server.repositories["models", NAME]
    assert repository.messages == ["initial commit", "Upload adapter"]
    assert url.endswith(repository.find("main"))
    assert set(repository.files()) == {*ADAPTER_FILES, ".gitattributes"}
    card = repository.files()["README.md"].decode()
    assert f"ADAPTER={NAME}@" in card and "](loss.png)" in card and "merged" not in card
    assert not (toy_adapter / PENDING).exists()


def test_merged_gguf_goes_into_the_same_commit_and_safetensors_stay(
    hub_server: HubServer, merged_adapter: Path, signed_in: None
) -> None:
    publish_adapter(merged_adapter, NAME, merged=True)
    repository = hub_server.repositories["models", NAME]
    assert repository.messages == ["initial commit", "Upload adapter"]
    assert set(repository.files()) == {*ADAPTER_FILES, "merged-Q8_0.gguf", ".gitattributes"}
    assert repository.files()["merged-Q8_0.gguf"] == b"GGUF merged weights"
    assert "llama-server -m merged-Q8_0.gguf" in repository.files()["README.md"].decode()


def test_merged_is_not_pushed_unasked_nor_promised_in_vain(
    hub_server: HubServer, toy_adapter: Path, signed_in: None
) -> None:
    assert "has no merged GGUF" in failure_of(publish_adapter, toy_adapter, NAME, merged=True)
    assert hub_server.requests == []
    (toy_adapter / "merged").mkdir()
    (toy_adapter / "merged" / "merged-Q4_0.gguf").write_bytes(b"GGUF")
    publish_adapter(toy_adapter, NAME)
    assert "merged-Q4_0.gguf" not in hub_server.repositories["models", NAME].files()


@pytest.mark.parametrize("path", ["/api/repos/create", "/preupload/", "/lfs/", "/commit/"])
@pytest.mark.parametrize("status", [503, DROP])
def test_a_hub_that_fails_throughout_then_works(
    hub_server: HubServer, merged_adapter: Path, signed_in: None, path: str, status: int
) -> None:
    hub_server.fail_next(status, times=5_000, path=path)
    text = failure_of(publish_adapter, merged_adapter, f"{NAME}@candidate", private=True, merged=True)
    assert text.endswith(f"Nothing is lost: `python train.py --publish {merged_adapter}` finishes the job.")
    goal = json.loads((merged_adapter / PENDING).read_text())
    assert goal == {"repository": f"{NAME}@candidate", "private": True, "merged": True}
    kept = read_folder(merged_adapter)
    # Interrupted a second time: still there, still the same.
    assert "Nothing is lost" in failure_of(finish_publishing, merged_adapter)
    assert read_folder(merged_adapter) == kept
    hub_server.failures.clear()
    finish_publishing(merged_adapter)
    repository = hub_server.repositories["models", NAME]
    assert repository.private and repository.messages == ["initial commit", "Upload adapter"]
    assert set(repository.files("main")) == {".gitattributes"}
    assert set(repository.files("candidate")) == {*ADAPTER_FILES, "merged-Q8_0.gguf", ".gitattributes"}
    assert not (merged_adapter / PENDING).exists()


def test_an_answer_lost_for_good_makes_no_second_commit(
    hub_server: HubServer, toy_adapter: Path, signed_in: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub made the commit, and was gone before the client could learn of it."""
    take_failure = hub_server.take_failure

    def lose_the_commit_then_fail(path: str) -> tuple[int, str] | None:
        if "/commit/" in path:
            hub_server.fail_next(503, times=5_000)
            return LOSE_ANSWER, ""
        return take_failure(path)

    with monkeypatch.context() as patched:
        patched.setattr(hub_server, "take_failure", lose_the_commit_then_fail)
        failure_of(publish_adapter, toy_adapter, NAME)
    hub_server.failures.clear()
    url = finish_publishing(toy_adapter)
    repository = hub_server.repositories["models", NAME]
    assert repository.messages == ["initial commit", "Upload adapter"]
    assert url.endswith(repository.find("main"))


def test_ctrl_c_in_the_upload_keeps_the_goal(
    hub_server: HubServer, toy_adapter: Path, signed_in: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medical_assistant.publish import adapter as publishing

    def interrupt(*arguments: object, **options: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(publishing, "push_adapter", interrupt)
        with pytest.raises(KeyboardInterrupt):
            publish_adapter(toy_adapter, NAME)
    assert finish_publishing(toy_adapter).endswith(hub_server.repositories["models", NAME].find("main"))


def test_missing_and_powerless_tokens(
    hub_server: HubServer, toy_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = failure_of(publish_adapter, toy_adapter, NAME)
    assert text.startswith("No Hugging Face token") and "--publish" in text
    assert hub_server.requests == []
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    assert "may not write" in failure_of(finish_publishing, toy_adapter)
    monkeypatch.setenv("HF_TOKEN", WRITE_TOKEN)
    finish_publishing(toy_adapter)
    assert hub_server.repositories["models", NAME].messages == ["initial commit", "Upload adapter"]


def test_another_repository_may_be_named_afterwards(hub_server: HubServer, toy_adapter: Path, signed_in: None) -> None:
    assert "may not write" in failure_of(publish_adapter, toy_adapter, "bob/adapter", private=True)
    finish_publishing(toy_adapter, NAME)
    assert hub_server.repositories["models", NAME].private
    assert f"ADAPTER={NAME}@" in hub_server.repositories["models", NAME].files()["README.md"].decode()
    assert not (toy_adapter / PENDING).exists()


def test_nothing_is_due(hub_server: HubServer, toy_adapter: Path, signed_in: None) -> None:
    assert "give --push-to-hub" in failure_of(finish_publishing, toy_adapter)
    assert "no adapter folder" in failure_of(finish_publishing, toy_adapter / "none")
    assert hub_server.requests == []
    finish_publishing(toy_adapter, NAME)  # a folder that was never pushed can be
    assert "metrics.json" in hub_server.repositories["models", NAME].files()


@pytest.mark.parametrize("content", ["", "[]", '"x"', "\xff"])
def test_broken_note(hub_server: HubServer, toy_adapter: Path, signed_in: None, content: str) -> None:
    (toy_adapter / PENDING).write_text(content, encoding="latin-1")
    assert "is broken" in failure_of(finish_publishing, toy_adapter)
    (toy_adapter / PENDING).write_text("{}")
    assert "give --push-to-hub" in failure_of(finish_publishing, toy_adapter)
    assert hub_server.requests == []


def test_bad_names_and_folders_leave_no_note(hub_server: HubServer, toy_adapter: Path, signed_in: None) -> None:
    assert "is not a Hub repository" in failure_of(publish_adapter, toy_adapter, "adapter")
    (toy_adapter / "prompt.json").unlink()
    with pytest.raises(AdapterError, match=r"has no prompt\.json"):
        publish_adapter(toy_adapter, NAME)
    assert not (toy_adapter / PENDING).exists() and hub_server.requests == []


def test_the_command_can_be_pasted(hub_server: HubServer, toy_adapter: Path) -> None:
    folder = toy_adapter.rename(toy_adapter.parent / "my first; run")
    command = failure_of(publish_adapter, folder, NAME).split("`")[-2]
    assert shlex.split(command) == ["python", "train.py", "--publish", str(folder)]


def test_the_command_publishes_with_a_card_for_its_repository(
    hub_server: HubServer, toy_adapter: Path, signed_in: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(toy_adapter), NAME, "--private", "--revision", "candidate"]) == 0
    repository = hub_server.repositories["models", NAME]
    commit = repository.find("candidate")
    assert repository.private and commit != repository.find("main")
    assert capsys.readouterr().out == f"{hub_server.endpoint}/{NAME}/commit/{commit}\n"
    assert f"ADAPTER={NAME}@" in repository.files("candidate")["README.md"].decode()
    assert "Two revisions" in failure_of(main, [str(toy_adapter), f"{NAME}@v1", "--revision", "v2"])
