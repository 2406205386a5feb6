"""The start of the app with a Hub, a cache or a disk that fails: what serves instead, and what the page says."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from medical_assistant.errors import UserError
from medical_assistant.hub.errors import HubUnavailable
from medical_assistant.hub.pull import pull_adapter
from medical_assistant.hub.resolve import open_adapter
from medical_assistant.models.presets import find_preset
from medical_assistant.web.startup import find_in_time, load_model
from tests.support import hub_routes
from tests.support.hub_server import DROP, HubServer, read_folder, write_toy_adapter
from tests.support.paths import ROOT
from tests.support.stub_engine import StubEngine

NAME = "alice/adapter"
MODEL = "smollm2-135m"
BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
BUNDLED = os.path.relpath(ROOT / "assets" / "adapters" / MODEL)
EVERY_REQUEST = {"times": 5_000, "path": "/"}


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters are pulled and checked as ever; the engine itself is a stub."""

    def load(model: str, adapter: str | None, engine: str) -> StubEngine:
        checked = open_adapter(adapter, find_preset(model)) if adapter else None
        stub = StubEngine(adapter=checked.name if checked else None)
        if checked:
            stub.info = type(stub.info)("stub", model, checked.name, checked.revision)
        return stub

    monkeypatch.setattr("medical_assistant.engines.load.load_engine", load)


@pytest.fixture
def published(hub_server: HubServer, tmp_path: Path) -> HubServer:
    """A Hub that has an adapter for the embedded model."""
    hub_server.add_repository(NAME, read_folder(write_toy_adapter(tmp_path / "published", base_model=BASE)))
    return hub_server


def publish_newer(hub: HubServer, folder: Path) -> None:
    files = read_folder(write_toy_adapter(folder, seed=1, base_model=BASE))
    repository = hub.repositories["models", NAME]
    repository.commit({**repository.files(), **files}, "A newer one")


@contextlib.contextmanager
def slow_server() -> Iterator[str]:
    """The address of a server that sends a header's first bytes, and then one more every tenth of a second."""
    ended = threading.Event()

    def drip(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while not ended.wait(0.1):
                connection.sendall(b".")

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=drip, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            ended.set()
            listener.shutdown(socket.SHUT_RDWR)


# The Hub at the start


def break_hub(hub: HubServer, fault: int | str) -> None:
    if fault == "down":
        hub.stop()
    else:
        assert isinstance(fault, int)
        hub.fail_next(fault, body="<html>Bad gateway</html>", **EVERY_REQUEST)


FAULTS = pytest.mark.parametrize(
    ("fault", "words"),
    [("down", "Cannot reach"), (DROP, "Cannot reach"), (429, "limits the number"), (500, "keeps answering 500")],
)


@FAULTS
def test_with_nothing_cached_the_bundled_adapter_serves_and_the_page_says_so(
    published: HubServer, engines: None, caplog: pytest.LogCaptureFixture, fault: int | str, words: str
) -> None:
    break_hub(published, fault)
    engine, problem = load_model(MODEL, NAME, "auto")
    assert problem is not None and problem.startswith(f"The adapter {NAME} could not be loaded (") and words in problem
    assert problem.endswith("): serving the bundled adapter.") and problem in caplog.text
    bundled = open_adapter(ROOT / "assets/adapters" / MODEL, find_preset(MODEL))
    assert engine.info.adapter == os.path.relpath(bundled.folder) and engine.info.adapter_revision == bundled.revision


@FAULTS
def test_a_cached_revision_serves_and_the_page_says_so(
    published: HubServer, engines: None, caplog: pytest.LogCaptureFixture, fault: int | str, words: str
) -> None:
    commit = pull_adapter(NAME).commit
    break_hub(published, fault)
    engine, problem = load_model(MODEL, NAME, "auto")
    assert (engine.info.adapter, engine.info.adapter_revision) == (f"{NAME}@{commit}", commit)
    assert problem is not None and f"cached revision {commit[:12]}" in problem and words in problem
    assert problem in caplog.text


def test_where_the_model_has_no_bundled_adapter_the_base_serves(published: HubServer, engines: None) -> None:
    published.stop()
    engine, problem = load_model("tinyllama-1.1b", NAME, "auto")
    assert engine.info.adapter is None and problem is not None and "Cannot reach" in problem


def test_all_is_well_and_nothing_is_said(published: HubServer, engines: None) -> None:
    engine, problem = load_model(MODEL, NAME, "auto")
    commit = published.repositories["models", NAME].find("main")
    assert engine.info.adapter_revision == commit and problem is None
    assert load_model(MODEL, f"{NAME}@{commit}", "auto")[1] is None


def test_a_hub_without_end_is_waited_for_in_vain_only_so_long(
    published: HubServer, engines: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with slow_server() as address:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        engine, problem = load_model(MODEL, NAME, "auto", timeout_s=0.6)  # the server never ends its answer
    assert (
        problem is not None
        and "has not sent alice/adapter in 1 s" in problem
        and problem.endswith("the bundled adapter.")
    )
    assert engine.info.adapter == BUNDLED and "Waiting for the Hub" in caplog.text


def test_a_download_without_end_leaves_the_cached_revision_in_use(
    published: HubServer, engines: None, tmp_path: Path
) -> None:
    """The Hub names a newer commit, which the cache then notes as its own, and never sends its large files."""
    cached = pull_adapter(NAME).commit
    publish_newer(published, tmp_path / "newer")
    with slow_server() as address:
        published.cdn = address
        engine, problem = load_model(MODEL, NAME, "auto", timeout_s=0.6)
    assert engine.info.adapter_revision == cached
    assert problem is not None and cached[:12] in problem and "has not sent alice/adapter in 1 s" in problem


def test_a_download_that_fails_half_way_leaves_the_cached_revision_in_use(
    published: HubServer, engines: None, tmp_path: Path
) -> None:
    cached = pull_adapter(NAME).commit
    publish_newer(published, tmp_path / "newer")
    published.fail_next(503, times=5_000, path="/lfs/")
    engine, problem = load_model(MODEL, NAME, "auto")
    assert engine.info.adapter_revision == cached and problem is not None and cached[:12] in problem


@pytest.mark.parametrize("wrong", ["name", "base", "prompt", "broken as published"])
def test_a_wrong_adapter_gets_no_substitute(published: HubServer, engines: None, tmp_path: Path, wrong: str) -> None:
    files = read_folder(write_toy_adapter(tmp_path / "wrong", base_model="alice/other" if wrong == "base" else BASE))
    if wrong == "prompt":
        files["prompt.json"] = json.dumps({**json.loads(files["prompt.json"]), "system_prompt": "Be brief."}).encode()
    if wrong == "broken as published":
        files["adapter.gguf"] = files["adapter.gguf"][:-9]
    if wrong != "name":
        published.add_repository("alice/wrong", files)
    engine, problem = load_model(MODEL, "alice/wrong", "auto")
    expected = {"name": "does not exist", "base": "belongs to", "prompt": "prompt", "broken as published": "truncated"}
    assert engine.info.adapter is None and problem is not None and expected[wrong] in problem


# A corrupt cache


def truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def overwrite(path: Path) -> None:
    """Other bytes of the same length: their form is right where the file's own check looks."""
    content = path.read_bytes()
    path.write_bytes(content[:-4] + bytes(byte ^ 0xFF for byte in content[-4:]))


def empty(path: Path) -> None:
    path.write_bytes(b"")


HARM = [
    pytest.param(file, harm, id=f"{harm.__name__} {file}")
    for file in ("adapter.gguf", "adapter_model.safetensors", "prompt.json", "adapter_config.json")
    for harm in (truncate, overwrite, empty)
]


@pytest.mark.parametrize(("file", "harm"), HARM)
def test_a_broken_file_of_the_cache_is_downloaded_again(
    published: HubServer, engines: None, caplog: pytest.LogCaptureFixture, file: str, harm: Callable[[Path], None]
) -> None:
    folder, commit, _ = pull_adapter(NAME)
    harm((folder / file).resolve())
    published.requests.clear()
    engine, problem = load_model(MODEL, NAME, "auto")
    assert engine.info.adapter_revision == commit and problem is None
    assert f"{file} of {NAME} was broken in the cache" in caplog.text
    assert (folder / file).read_bytes() == published.repositories["models", NAME].files()[file]
    fetched = [request for request in published.requests if request.startswith("GET") and "/resolve/" in request]
    assert all(request.endswith(file) for request in fetched)  # and nothing else


@pytest.mark.parametrize("pinned", [False, True])
def test_a_broken_cache_without_the_hub_is_said_and_never_loaded(
    published: HubServer, engines: None, pinned: bool
) -> None:
    folder, commit, _ = pull_adapter(NAME)
    overwrite((folder / "adapter.gguf").resolve())
    published.stop()
    engine, problem = load_model(MODEL, f"{NAME}@{commit}" if pinned else NAME, "auto")
    assert engine.info.adapter == BUNDLED
    assert problem is not None and "was broken in the cache (adapter.gguf). Cannot reach" in problem


@pytest.mark.parametrize("note", [b"", b"\xff\xfe\x00", b"../../../etc", b"0" * 39])
def test_a_broken_note_of_the_commit_is_forgotten(published: HubServer, engines: None, note: bytes) -> None:
    folder, commit, _ = pull_adapter(NAME)
    reference = folder.parent.parent / "refs/main"
    reference.write_bytes(note)
    assert load_model(MODEL, NAME, "auto")[0].info.adapter_revision == commit
    assert reference.read_text() == commit
    reference.write_bytes(note)
    published.stop()
    engine, problem = load_model(MODEL, NAME, "auto")
    assert engine.info.adapter == BUNDLED and problem is not None and "Cannot reach" in problem


def test_a_line_that_garbles_what_it_carries_is_said(published: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub names the file by the hash of what it should be, and other bytes arrive."""
    content = published.repositories["models", NAME].files()["adapter.gguf"]
    garbled = content[:-1] + bytes([content[-1] ^ 1])
    send = hub_routes._download

    def send_garbled(request: hub_routes.Request, body: bytes, headers: dict[str, str]) -> hub_routes.Reply:
        return send(request, garbled if body == content else body, headers)

    monkeypatch.setattr(hub_routes, "_download", send_garbled)
    with pytest.raises(HubUnavailable, match="is not what the Hub says it is"):
        pull_adapter(NAME)
    monkeypatch.setattr(hub_routes, "_download", send)
    assert (pull_adapter(NAME)[0] / "adapter.gguf").read_bytes() == content


def test_what_is_no_repository_is_left_to_the_engine(tmp_path: Path) -> None:
    assert find_in_time(str(tmp_path), 1.0) == (str(tmp_path), None)
    assert find_in_time("./nowhere", 1.0) == ("./nowhere", None)
    with pytest.raises(UserError, match="There is no adapter folder"):
        open_adapter("./nowhere", find_preset(MODEL))


# A full disk


@pytest.fixture
def no_large_files() -> Iterator[None]:
    """From now on this process cannot make a file grow over 100 kB; Python ignores the signal (setrlimit(2))."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("cached", [False, True])
def test_a_full_disk_at_the_start_leaves_what_is_there(
    published: HubServer, engines: None, request: pytest.FixtureRequest, cached: bool
) -> None:
    commit = pull_adapter(NAME)[1] if cached else None
    repository = published.repositories["models", NAME]
    repository.commit({**repository.files(), "loss.png": os.urandom(300_000)}, "A large picture")
    request.getfixturevalue("no_large_files")
    engine, problem = load_model(MODEL, NAME, "auto")
    assert problem is not None and "The disk is full" in problem
    assert engine.info.adapter == (f"{NAME}@{commit}" if cached else BUNDLED)
