"""Downloads against what the Hub's API says of their commit."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import pytest
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.hf_api import RepoSibling

from medical_assistant.errors import UserError
from medical_assistant.hub.download_check import check_download
from medical_assistant.hub.pull import pull_adapter, pull_file
from tests.support.hub_server import HubServer, read_folder

NAME = "alice/adapter"


@pytest.fixture
def downloaded(hub_server: HubServer, toy_adapter: Path) -> tuple[Path, list[RepoSibling]]:
    """(the snapshot in the cache, what the API says of its commit)."""
    hub_server.add_repository(NAME, read_folder(toy_adapter))
    return Path(snapshot_download(NAME)), HfApi().model_info(NAME, files_metadata=True).siblings


def test_what_was_downloaded_whole_stays(downloaded):
    folder, siblings = downloaded
    before = read_folder(folder)
    assert all(sibling.size and (sibling.lfs or sibling.blob_id) for sibling in siblings)
    assert check_download(folder, siblings) == [] and read_folder(folder) == before


@pytest.mark.parametrize(
    "name", ["adapter.gguf", "adapter_model.safetensors", "adapter_config.json", "prompt.json", "training.json"]
)
@pytest.mark.parametrize("fault", ["bit", "short", "long", "empty"])
def test_what_differs_is_removed_and_comes_whole_again(downloaded, toy_adapter, caplog, name, fault):
    folder, siblings = downloaded
    blob = (folder / name).resolve()
    content = blob.read_bytes()
    half = len(content) // 2
    blob.write_bytes(
        {
            "bit": content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :],
            "short": content[:-1],
            "long": content + b"\0",
            "empty": b"",
        }[fault]
    )
    with caplog.at_level(logging.WARNING):
        assert check_download(folder, siblings) == [name]
    assert name in caplog.text and folder.name in caplog.text
    assert not (folder / name).exists() and not blob.exists()
    assert Path(snapshot_download(NAME)) == folder
    assert check_download(folder, siblings) == []
    assert (folder / name).read_bytes() == (toy_adapter / name).read_bytes()


def test_the_file_of_another_commit_is_not_that_of_this_one(downloaded, hub_server, toy_adapter):
    folder, old = downloaded
    repository = hub_server.repositories["models", NAME]
    repository.commit({**repository.files(), "prompt.json": b"{}"}, "Change the prompt")
    new = HfApi().model_info(NAME, files_metadata=True).siblings
    assert check_download(folder, old) == [] and check_download(folder, new) == ["prompt.json"]


def test_files_that_are_not_there_or_of_which_nothing_is_known_are_not_checked(downloaded, tmp_path):
    folder, siblings = downloaded
    (folder / "prompt.json").unlink()
    assert check_download(folder, siblings) == []
    assert check_download(folder, [RepoSibling(rfilename="training.json")]) == []


def test_a_name_cannot_leave_the_folder(downloaded, tmp_path):
    folder, _ = downloaded
    outside = tmp_path / "outside.txt"
    outside.write_text("keep me")
    climbs = Path(*[".."] * len(folder.parts)) / outside.relative_to("/")
    assert (folder / climbs).is_file()
    for name in (str(climbs), str(outside)):
        assert check_download(folder, [RepoSibling(rfilename=name, size=1)]) == [] and outside.is_file()


# In a pull


@pytest.mark.parametrize("pull", [pull_adapter, lambda name: pull_file(name, "adapter.gguf")])
def test_what_is_not_that_of_the_commit_comes_once_more_and_is_then_refused(hub_server, toy_adapter, monkeypatch, pull):
    model_info = HfApi.model_info

    def tell_another_hash(*arguments, **options):
        found = model_info(*arguments, **options)
        next(file for file in found.siblings if file.rfilename == "adapter.gguf").lfs.sha256 = "0" * 64
        return found

    hub_server.add_repository(NAME, read_folder(toy_adapter))
    monkeypatch.setattr(HfApi, "model_info", tell_another_hash)
    with pytest.raises(UserError, match="is not what the Hub says it is"):
        pull(NAME)
    oid = hashlib.sha256((toy_adapter / "adapter.gguf").read_bytes()).hexdigest()
    assert hub_server.requests.count(f"GET /lfs/{oid}") == 2


def test_a_commit_that_was_pulled_whole_is_pulled_again_from_the_cache(hub_server, toy_adapter):
    hub_server.add_repository(NAME, read_folder(toy_adapter))
    folder, commit = pull_adapter(NAME)
    hub_server.requests.clear()
    assert pull_adapter(NAME) == (folder, commit)
    assert not [request for request in hub_server.requests if request.startswith(("GET /lfs/", f"GET /{NAME}/resolve"))]


def test_a_cache_whose_blob_was_changed_is_mended_by_a_pull(hub_server, toy_adapter):
    hub_server.add_repository(NAME, read_folder(toy_adapter))
    folder, commit = pull_adapter(NAME)
    for name in ("training.json", "adapter.gguf"):  # the first is not served, and checked all the same
        (folder / name).resolve().write_bytes(b"x" * (folder / name).stat().st_size)
    assert pull_adapter(NAME) == (folder, commit) and read_folder(folder) == read_folder(toy_adapter)
