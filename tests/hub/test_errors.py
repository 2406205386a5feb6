"""Failures of the Hub: what passes is outlasted, what stays is told in one sentence of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medical_assistant.errors import UserError
from medical_assistant.hub import errors as hub_errors
from medical_assistant.hub.errors import HubUnavailable
from medical_assistant.hub.pull import pull_adapter, pull_file
from medical_assistant.hub.push import push_adapter
from tests.support.hub_server import (
    DROP,
    LOSE_ANSWER,
    OTHER_TOKEN,
    READ_TOKEN,
    WRITE_TOKEN,
    HubServer,
    read_folder,
    write_toy_adapter,
)

NAME = "alice/adapter"


def every_call(toy_adapter: Path) -> list[Callable[[], object]]:
    return [
        lambda: push_adapter(toy_adapter, NAME),
        lambda: pull_adapter(NAME),
        lambda: pull_file(NAME, "adapter.gguf"),
    ]


# Failures that pass.


@pytest.mark.parametrize(
    "path", ["/api/repos/create", "/api/validate-yaml", "/preupload/", "/info/lfs/", "/lfs/", "/commit/"]
)
@pytest.mark.parametrize("status", [503, 429, DROP])
def test_push_outlasts_two_failures(
    hub_server: HubServer, toy_adapter: Path, signed_in: None, path: str, status: int
) -> None:
    hub_server.fail_next(status, times=2, path=path, body="<html>Bad gateway</html>")
    push_adapter(toy_adapter, NAME)
    assert hub_server.failures == []
    assert hub_server.repositories["models", NAME].messages == ["initial commit", "Upload adapter"]


@pytest.mark.parametrize("status", [503, 429, DROP])
@pytest.mark.parametrize("path", [f"/api/models/{NAME}", "/tree/", "/resolve/", "/lfs/"])
def test_pull_outlasts_two_failures(hub_server: HubServer, toy_adapter: Path, path: str, status: int) -> None:
    hub_server.add_repository(NAME, read_folder(toy_adapter))
    hub_server.fail_next(status, times=2, path=path)
    assert read_folder(pull_adapter(NAME)[0]) == read_folder(toy_adapter)
    assert hub_server.failures == []


def test_lost_answer_does_not_make_a_second_commit(hub_server: HubServer, toy_adapter: Path, signed_in: None) -> None:
    hub_server.fail_next(LOSE_ANSWER, path="/commit/")
    url = push_adapter(toy_adapter, NAME)
    repository = hub_server.repositories["models", NAME]
    assert repository.messages == ["initial commit", "Upload adapter"]
    assert url.endswith(repository.find("main"))
    assert sum("/commit/" in request for request in hub_server.requests) == 1


def test_waits_double_with_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", waits.append)

    def fail() -> None:
        raise hub_errors.httpx2.ReadTimeout("slow")

    with pytest.raises(hub_errors.httpx2.ReadTimeout):
        hub_errors.retry(fail)
    assert len(waits) == hub_errors.ATTEMPTS - 1
    for attempt, wait_s in enumerate(waits):
        assert 2**attempt <= wait_s <= 2**attempt + 0.5


def test_retry_after_is_obeyed_up_to_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", waits.append)
    asked = iter(["7", "9999", "Wed, 21 Oct 2026 07:28:00 GMT"])

    def fail() -> None:
        request = hub_errors.httpx2.Request("GET", "http://hub")
        response = hub_errors.httpx2.Response(429, headers={"Retry-After": next(asked, "")}, request=request)
        raise hub_errors.HfHubHTTPError("slow down", response=response)

    with pytest.raises(hub_errors.HfHubHTTPError):
        hub_errors.retry(fail)
    assert 7 < waits[0] < 12 and 60 < waits[1] < 65  # on top of the wait that doubles
    assert waits[2] < 6


# Failures that stay: each has a sentence of its own, on one line.


def sentence(raised: pytest.ExceptionInfo[UserError]) -> str:
    text = str(raised.value)
    assert "\n" not in text and len(text) < 300 and text.endswith(".") and ": " in text
    return text


def test_every_failure_has_its_own_sentence(
    hub_server: HubServer, toy_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_server.add_repository("alice/secret", read_folder(toy_adapter), private=True)
    hub_server.add_repository("alice/gated", read_folder(toy_adapter), gated=True)
    hub_server.add_repository(NAME, read_folder(toy_adapter))

    def failure_of(call: Callable[..., object], *arguments: Any, token: str | None = None, **options: Any) -> str:
        monkeypatch.setenv("HF_TOKEN", token or "")
        with pytest.raises(UserError) as raised:
            call(*arguments, **options)
        return sentence(raised)

    sentences = [
        failure_of(push_adapter, toy_adapter, NAME),
        failure_of(push_adapter, toy_adapter, NAME, token=READ_TOKEN),
        failure_of(push_adapter, toy_adapter, NAME, token="hf_revoked"),
        failure_of(push_adapter, toy_adapter, NAME, token=WRITE_TOKEN, private=True),
        failure_of(pull_adapter, "alice/none"),
        failure_of(pull_adapter, f"{NAME}@v9"),
        failure_of(pull_adapter, "alice/gated"),
        failure_of(pull_file, NAME, "base.gguf"),
        failure_of(pull_adapter, "not a repository"),
        failure_of(pull_adapter, f"{NAME}@../../etc"),
    ]
    for part, text in zip(
        [
            "No Hugging Face token",
            "may not write to alice/adapter",
            "refuses the token",
            "already public",
            "alice/none does not exist, or it is private",
            "alice/adapter has no revision v9",
            "alice/gated is gated: accept its licence",
            "has no file base.gguf: choose one of adapter.gguf",
            "is not a Hub repository",
            "is not a revision",
        ],
        sentences,
        strict=True,
    ):
        assert part in text
    assert len(set(sentences)) == len(sentences)
    # A private repository looks like none, to a stranger (401) and to another account (404) alike.
    for name in ("alice/none", f"{NAME}@v9", "alice/gated", "alice/secret", "a b"):
        with pytest.raises(UserError) as raised:
            pull_adapter(name)
        assert not isinstance(raised.value, HubUnavailable), name  # no other adapter may serve in its place
    for token in (None, OTHER_TOKEN):
        text = failure_of(pull_adapter, "alice/secret", token=token)
        assert "alice/secret does not exist, or it is private" in text
    assert "may not write" in failure_of(push_adapter, toy_adapter, "alice/new", token=OTHER_TOKEN)
    assert "is gated" in failure_of(pull_adapter, "alice/gated", token=OTHER_TOKEN)
    assert "refuses the token" in failure_of(pull_adapter, NAME, token="hf_revoked")


def test_owner_reads_private_and_accepted_licence_reads_gated(
    hub_server: HubServer, toy_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_server.add_repository("alice/secret", read_folder(toy_adapter), private=True)
    hub_server.add_repository("alice/gated", read_folder(toy_adapter), gated=True, readers={"bob"})
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    assert read_folder(pull_adapter("alice/secret")[0]) == read_folder(toy_adapter)
    monkeypatch.setenv("HF_TOKEN", OTHER_TOKEN)
    assert read_folder(pull_adapter("alice/gated")[0]) == read_folder(toy_adapter)


@pytest.mark.parametrize(
    ("status", "text"),
    [(503, "keeps answering 503"), (429, "limits the number of requests"), (DROP, "Cannot reach")],
)
def test_hub_that_keeps_failing(
    hub_server: HubServer, toy_adapter: Path, signed_in: None, status: int, text: str
) -> None:
    hub_server.add_repository(NAME, read_folder(toy_adapter))
    (toy_adapter / "README.md").write_text("# Changed\n")
    (toy_adapter / "adapter_model.safetensors").write_bytes(
        (write_toy_adapter(toy_adapter.parent / "other", seed=1) / "adapter_model.safetensors").read_bytes()
    )
    push, pull, pull_one = every_call(toy_adapter)
    # The client wraps what happens to one file of many: the sentence is of the failure below.
    for path, calls in {
        "/api/": [push, pull, pull_one],
        "/lfs/": [push],
        "/resolve/": [pull, pull_one],
    }.items():
        for call in calls:
            hub_server.fail_next(status, times=5_000, path=path)
            with pytest.raises(HubUnavailable, match=text) as raised:
                call()
            sentence(raised)
            hub_server.failures.clear()


def test_no_network(hub_server: HubServer, toy_adapter: Path, signed_in: None) -> None:
    hub_server.stop()
    for call in every_call(toy_adapter):
        with pytest.raises(HubUnavailable, match="Cannot reach") as raised:
            call()
        sentence(raised)


def test_full_disk(hub_server: HubServer, toy_adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import file_download

    hub_server.add_repository(NAME, read_folder(toy_adapter))

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(file_download, "http_get", full)
    with pytest.raises(UserError, match="disk is full") as raised:
        pull_adapter(NAME)
    sentence(raised)
