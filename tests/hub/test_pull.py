"""Downloads and the cache against the checksums that the Hub lists."""

from __future__ import annotations

import hashlib
import logging

import pytest
from huggingface_hub import HfApi

from medical_assistant.errors import AdapterError, UserError
from medical_assistant.hub.pull import pull_adapter, pull_file
from medical_assistant.hub.resolve import open_adapter
from medical_assistant.models.presets import Preset
from tests.support.hub_server import read_folder

NAME = "alice/adapter"
BASE = Preset(name="base", repository="alice/base")


def downloads(hub_server):
    return [request for request in hub_server.requests if request.startswith(("GET /lfs/", f"GET /{NAME}/resolve"))]


def test_a_commit_that_was_pulled_whole_is_pulled_again_from_the_cache(hub_server, toy_adapter):
    hub_server.add_repository(NAME, read_folder(toy_adapter))
    folder, commit, notice = pull_adapter(NAME)
    assert notice is None and read_folder(folder) == read_folder(toy_adapter)
    hub_server.requests.clear()
    assert pull_adapter(NAME) == (folder, commit, None)
    assert downloads(hub_server) == []


@pytest.mark.parametrize("fault", ["bit", "short", "long", "empty"])
def test_what_differs_in_the_cache_is_removed_and_comes_whole_again(hub_server, toy_adapter, caplog, fault):
    hub_server.add_repository(NAME, read_folder(toy_adapter))
    folder, commit, _ = pull_adapter(NAME)
    harmed = ["adapter.gguf", "adapter_model.safetensors", "adapter_config.json", "prompt.json", "training.json"]
    for name in harmed:  # the last is not served, and checked all the same
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
    hub_server.requests.clear()
    with caplog.at_level(logging.WARNING):
        assert pull_adapter(NAME) == (folder, commit, None)
    assert all(f"{name} of {NAME} was broken in the cache" in caplog.text for name in harmed)
    assert read_folder(folder) == read_folder(toy_adapter)
    names = {hashlib.sha256(content).hexdigest(): name for name, content in read_folder(toy_adapter).items()}
    fetched = {request.rpartition("/")[2] for request in downloads(hub_server)}
    assert {names.get(part, part) for part in fetched} == set(harmed)  # and nothing else


@pytest.mark.parametrize("pull", [pull_adapter, lambda name: pull_file(name, "adapter.gguf")])
def test_what_is_not_that_of_the_commit_comes_once_more_and_is_then_refused(hub_server, toy_adapter, monkeypatch, pull):
    list_repo_tree = HfApi.list_repo_tree

    def tell_another_hash(*arguments, **options):
        for entry in list_repo_tree(*arguments, **options):
            if entry.path == "adapter.gguf":
                entry.lfs.sha256 = "0" * 64
            yield entry

    hub_server.add_repository(NAME, read_folder(toy_adapter))
    monkeypatch.setattr(HfApi, "list_repo_tree", tell_another_hash)
    with pytest.raises(UserError, match="is not what the Hub says it is"):
        pull(NAME)
    oid = hashlib.sha256((toy_adapter / "adapter.gguf").read_bytes()).hexdigest()
    assert hub_server.requests.count(f"GET /lfs/{oid}") == 2
    assert not list((toy_adapter.parent / "hf_home").rglob("adapter.gguf"))  # nothing of it stays


# A name, a folder


def test_a_folder_and_a_repository_are_resolved_to_a_folder(hub_server, toy_adapter):
    commit = hub_server.add_repository(NAME, read_folder(toy_adapter)).find("main")
    local = open_adapter(str(toy_adapter), BASE)
    assert (local.folder, local.name) == (toy_adapter, str(toy_adapter))
    assert local.revision != commit  # the hash of its weights
    assert hub_server.requests == []
    for name in (NAME, f"{NAME}@main"):
        pulled = open_adapter(name, BASE)
        assert (pulled.folder.name, pulled.name, pulled.revision) == (commit, name, commit)


@pytest.mark.parametrize("folder", ["~/adapter", "/nowhere/adapter", "../adapter", "adapter", "a/b/c"])
def test_what_is_no_folder_and_no_repository_is_not_asked_for(hub_server, folder):
    with pytest.raises(AdapterError, match="There is no adapter folder"):
        open_adapter(folder, BASE)
    assert hub_server.requests == []
