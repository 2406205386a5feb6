"""Push and pull against a server that speaks the Hub's protocol to the real client."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medical_assistant.engines.llama_cpp import LlamaCppEngine
from medical_assistant.errors import AdapterError, UserError
from medical_assistant.hub.pull import pull_adapter, pull_file, split_revision
from medical_assistant.hub.push import push_adapter
from medical_assistant.models.adapter import ADAPTER_FILES, load_adapter
from medical_assistant.models.presets import Preset
from tests.support.hub_server import READ_TOKEN, WRITE_TOKEN, HubServer, read_folder, write_toy_adapter
from tests.support.paths import ROOT

NAME = "alice/adapter"


def forget_cache() -> None:
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


# Push and pull.


def test_pull_returns_the_pushed_bytes_of_one_commit(hub_server: HubServer, toy_adapter: Path, signed_in: None) -> None:
    url = push_adapter(toy_adapter, NAME)
    repository = hub_server.repositories["models", NAME]
    assert repository.messages == ["initial commit", "Upload adapter"]
    commit = repository.find("main")
    assert url == f"{hub_server.endpoint}/{NAME}/commit/{commit}"
    folder, pulled, _ = pull_adapter(NAME)
    assert pulled == commit
    assert read_folder(folder) == read_folder(toy_adapter)
    assert set(read_folder(folder)) == set(ADAPTER_FILES)
    assert not hub_server.token_seen_by_cdn


def test_push_without_metrics(hub_server: HubServer, toy_adapter: Path, signed_in: None) -> None:
    (toy_adapter / "metrics.json").unlink()
    push_adapter(toy_adapter, NAME, private=True)
    repository = hub_server.repositories["models", NAME]
    assert repository.private
    assert "metrics.json" not in repository.files()


def test_pinned_commit_keeps_its_bytes_after_a_new_push(
    hub_server: HubServer, toy_adapter: Path, tmp_path: Path, signed_in: None
) -> None:
    first = push_adapter(toy_adapter, NAME).rpartition("/")[2]
    newer = write_toy_adapter(tmp_path / "newer", seed=1)
    second = push_adapter(newer, NAME).rpartition("/")[2]
    assert first != second
    for pinned in (f"{NAME}@{first}", f"{NAME}@{first[:10]}"):
        forget_cache()
        folder, commit, _ = pull_adapter(pinned)
        assert (read_folder(folder), commit) == (read_folder(toy_adapter), first)
    folder, commit, _ = pull_adapter(NAME)
    assert (read_folder(folder), commit) == (read_folder(newer), second)


def test_a_dora_has_no_gguf(hub_server: HubServer, toy_adapter: Path, signed_in: None) -> None:
    config = json.loads((toy_adapter / "adapter_config.json").read_text())
    (toy_adapter / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    (toy_adapter / "adapter.gguf").unlink()
    push_adapter(toy_adapter, NAME)
    folder, _, _ = pull_adapter(NAME)
    assert set(read_folder(folder)) == set(ADAPTER_FILES) - {"adapter.gguf"}
    adapter = load_adapter(folder, Preset(name="base", repository="alice/base"))
    with pytest.raises(AdapterError, match="llama.cpp cannot load a DoRA: use the transformers engine.* --merge"):
        LlamaCppEngine(folder / "base.gguf", adapter)
    (folder / "adapter.gguf").write_bytes(b"of another run")
    with pytest.raises(AdapterError, match="is a DoRA and has an adapter.gguf"):
        load_adapter(folder, Preset(name="base", repository="alice/base"))


def test_push_to_a_branch_leaves_main_alone(hub_server: HubServer, toy_adapter: Path, signed_in: None) -> None:
    push_adapter(toy_adapter, NAME, revision="candidate")
    repository = hub_server.repositories["models", NAME]
    assert set(repository.files("main")) == {".gitattributes"}
    assert pull_adapter(NAME, "candidate")[1] == repository.find("candidate")
    with pytest.raises(UserError, match="push to a branch"):
        push_adapter(toy_adapter, NAME, revision=repository.find("main"))


def test_child_process_with_hf_endpoint(hub_server: HubServer, toy_adapter: Path, tmp_path: Path) -> None:
    """End to end with nothing patched: the client reads HF_ENDPOINT, HF_HOME and HF_TOKEN itself."""
    environment = {**os.environ, "HF_TOKEN": WRITE_TOKEN, "PYTHONPATH": str(ROOT)}
    push = [sys.executable, "-m", "medical_assistant.publish.adapter", str(toy_adapter), NAME]
    done = subprocess.run(push, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    commit = hub_server.repositories["models", NAME].find("main")
    assert done.stdout.strip() == f"{hub_server.endpoint}/{NAME}/commit/{commit}"
    pull = "import sys; from medical_assistant.hub.pull import pull_adapter; print(pull_adapter(sys.argv[1])[0])"
    done = subprocess.run(
        [sys.executable, "-c", pull, f"{NAME}@{commit}"],
        env={**environment, "HF_TOKEN": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert read_folder(Path(done.stdout.strip())) == read_folder(toy_adapter)
    environment["HF_TOKEN"] = READ_TOKEN
    done = subprocess.run(push, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: The token may not write to {NAME}")
    assert done.stderr.count("\n") == 1


# Nothing unsafe moves.


def test_pickles_stay_where_they_are(hub_server: HubServer, toy_adapter: Path, signed_in: None) -> None:
    for name in ("adapter_model.bin", "optimizer.pt", "rng_state.pkl", "notes.txt"):
        (toy_adapter / name).write_bytes(b"\x80\x04.")
    push_adapter(toy_adapter, NAME)
    repository = hub_server.repositories["models", NAME]
    assert set(repository.files()) == {*ADAPTER_FILES, ".gitattributes"}
    repository.commit({**repository.files(), "adapter_model.bin": b"\x80\x04."}, "Add a pickle")
    hub_server.requests.clear()
    folder, _, _ = pull_adapter(NAME)
    assert set(read_folder(folder)) == set(ADAPTER_FILES)
    assert not [request for request in hub_server.requests if request.endswith((".bin", ".pt", ".pkl"))]


def test_repository_with_a_pickle_only_is_refused(hub_server: HubServer) -> None:
    hub_server.add_repository(NAME, {"adapter_config.json": b"{}", "adapter_model.bin": b"\x80\x04."})
    with pytest.raises(AdapterError, match=r"holds adapter_model\.bin, a pickle"):
        pull_adapter(NAME)
    with pytest.raises(UserError, match="is a pickle"):
        pull_file(NAME, "adapter_model.bin")
    assert not [request for request in hub_server.requests if "/resolve/" in request]


def test_repository_without_an_adapter_is_refused(hub_server: HubServer) -> None:
    hub_server.add_repository(NAME, {"config.json": b"{}", "model.safetensors": b""})
    with pytest.raises(AdapterError, match="is not an adapter"):
        pull_adapter(NAME)


@pytest.mark.parametrize(
    "name", sorted(set(ADAPTER_FILES) - {"metrics.json", "calibration.json", "report.md", "loss.png"})
)
def test_incomplete_folder_makes_no_request(
    hub_server: HubServer, toy_adapter: Path, signed_in: None, name: str
) -> None:
    (toy_adapter / name).unlink()
    with pytest.raises(AdapterError, match=f"has no {name}"):
        push_adapter(toy_adapter, NAME)
    assert hub_server.requests == []


@pytest.mark.parametrize("name", sorted(set(ADAPTER_FILES) - {"README.md", "report.md", "loss.png"}))
def test_broken_file_makes_no_request(hub_server: HubServer, toy_adapter: Path, signed_in: None, name: str) -> None:
    (toy_adapter / name).write_bytes((toy_adapter / name).read_bytes()[:-9])
    with pytest.raises(UserError, match=name):
        push_adapter(toy_adapter, NAME)
    assert hub_server.requests == []


# Offline.


def test_offline_uses_the_same_revision_from_the_cache_and_says_so(
    hub_server: HubServer, toy_adapter: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    repository = hub_server.add_repository(NAME, read_folder(toy_adapter))
    repository.references["v1"] = repository.find("main")
    folder, commit, _ = pull_adapter(NAME, "v1")
    path = pull_file(NAME, "adapter.gguf", "v1")
    assert caplog.records == []
    hub_server.stop()
    with caplog.at_level(logging.WARNING):
        assert pull_adapter(NAME, "v1")[:2] == (folder, commit)
        assert pull_file(NAME, "adapter.gguf", "v1") == path
    said = [record.getMessage() for record in caplog.records if record.name == "medical_assistant.hub.pull"]
    assert len(said) == 2 and all("Cannot reach" in text and commit in text for text in said)
    with pytest.raises(UserError, match="Cannot reach"):  # main was never pulled, v1 is no answer for it
        pull_adapter(NAME)


def test_cached_commit_needs_no_network(hub_server: HubServer, toy_adapter: Path) -> None:
    commit = hub_server.add_repository(NAME, read_folder(toy_adapter)).find("main")
    folder, _, _ = pull_adapter(NAME)
    hub_server.requests.clear()
    assert pull_adapter(f"{NAME}@{commit}")[:2] == (folder, commit)
    assert hub_server.requests == []


def test_half_a_snapshot_is_not_used_offline(hub_server: HubServer, toy_adapter: Path) -> None:
    hub_server.add_repository(NAME, read_folder(toy_adapter))
    folder, commit, _ = pull_adapter(NAME)
    (folder / "prompt.json").unlink()
    hub_server.stop()
    for revision in (None, commit):
        with pytest.raises(UserError, match="Cannot reach"):
            pull_adapter(NAME, revision)


def test_offline_mode(hub_server: HubServer, toy_adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_server.add_repository(NAME, read_folder(toy_adapter))
    pulled = pull_adapter(NAME)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert pull_adapter(NAME) == pulled
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        pull_adapter("alice/other")


# Names.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("user/repo", ("user/repo", None)),
        ("user/repo@main", ("user/repo", "main")),
        ("user/repo.v1@v1.0/rc-2", ("user/repo.v1", "v1.0/rc-2")),
    ],
)
def test_split_revision(text: str, expected: tuple[str, str | None]) -> None:
    assert split_revision(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "repo", "a/b/c", "a/", "/b", "a/b@", "a/b@-x", "a/b@x@y", "a/b@a..b", "a--b/c", "a b/c", "a/b.git"],
)
def test_split_revision_refuses(text: str) -> None:
    with pytest.raises(UserError):
        split_revision(text)


def test_two_revisions_must_agree() -> None:
    assert split_revision("a/b@v1", "v1") == ("a/b", "v1")
    with pytest.raises(UserError, match="give one"):
        split_revision("a/b@v1", "v2")


@given(st.text(alphabet=st.sampled_from("ab/@.-_ \n%\\:é"), max_size=30))
def test_a_name_that_passes_cannot_leave_the_cache(text: str) -> None:
    try:
        name, revision = split_revision(text)
    except UserError as error:
        assert "\n" not in str(error)
        return
    cache = Path("/cache/refs")
    for part in (name, revision or "main"):
        assert (cache / part).resolve().is_relative_to(cache)


def test_training_json_is_pushed_unchanged(hub_server: HubServer, toy_adapter: Path, signed_in: None) -> None:
    push_adapter(toy_adapter, NAME)
    pushed = hub_server.repositories["models", NAME].files()["training.json"]
    assert json.loads(pushed) == json.loads((toy_adapter / "training.json").read_text())
