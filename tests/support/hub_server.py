"""A Hugging Face Hub in memory, for the real `huggingface_hub` client.

    pytest_plugins = ("tests.support.hub_server",)             # brings the fixture

    def test_something(hub_server):
        hub_server.add_repository("alice/adapter", {"README.md": b"..."})
        pull_adapter("alice/adapter")                  # here, or in a child process: HF_ENDPOINT is set

It speaks what huggingface_hub 2.4 asks for when it creates, pushes, lists and downloads models, data sets and
Spaces: create, info, tree, preupload, Git LFS batch and basic transfer, commit (NDJSON), branches,
tags, resolve with redirects to a CDN, Space variables and hardware.

Not spoken: Xet. With hf_xet installed the client uploads through Xet and asks for nothing else, so
the fixture sets HF_HUB_DISABLE_XET=1. Downloads use Xet only where a server offers it.
"""

from __future__ import annotations

import functools
import json
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.hub_routes import LARGE_FILES, Reply, Repository, Request, api, storage

DROP = 0  # a "status" of fail_next: the connection closes without an answer
LOSE_ANSWER = -1  # the request is carried out, then the connection closes
WRITE_TOKEN, READ_TOKEN, OTHER_TOKEN = "hf_alice_write", "hf_alice_read", "hf_bob_write"
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE_FILES).encode()


class HubServer:
    """`requests` lists "METHOD path" in order of arrival; `tokens` maps a token to (user, may write)."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.tokens = {WRITE_TOKEN: ("alice", True), READ_TOKEN: ("alice", False), OTHER_TOKEN: ("bob", True)}
        self.objects: dict[str, bytes] = {}  # Git LFS store: SHA-256 -> content
        self.requests: list[str] = []
        self.paid_plan = True  # False: a Gradio Space on cpu-basic gets 402, as for free accounts
        self.token_seen_by_cdn = False  # a client must not send its token to the storage host
        self.failures: list[tuple[str, int, str]] = []  # (part of the path, status, body)
        self.lock = threading.RLock()
        # The storage host is another origin, as the Hub's is.
        self.servers = [ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, serve)) for serve in (api, storage)]
        self.endpoint, self.cdn = (f"http://127.0.0.1:{server.server_port}" for server in self.servers)
        self.running = True
        for server in self.servers:
            server.daemon_threads = True
            server.block_on_close = False
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Close both ports: from now on there is no network."""
        if self.running:
            self.running = False
            for server in self.servers:
                server.shutdown()
                server.server_close()

    def add_repository(
        self, name: str, files: Mapping[str, bytes] | None = None, kind: str = "models", **fields: Any
    ) -> Repository:
        """Return a new repository: the Hub's initial commit, and one with `files` where given."""
        repository = self.repositories[kind, name] = Repository(kind, name, **fields)
        repository.commit({".gitattributes": GITATTRIBUTES}, "initial commit")
        if files:
            repository.commit({".gitattributes": GITATTRIBUTES, **files}, "Add files")
        return repository

    def fail_next(self, status: int, times: int = 1, path: str = "", body: str = "{}") -> None:
        """Answer the next `times` requests with `path` in theirs by `status`, DROP or LOSE_ANSWER."""
        self.failures += [(path, status, body)] * times

    def take_failure(self, path: str) -> tuple[int, str] | None:
        for injected in self.failures:
            if injected[0] in path:
                self.failures.remove(injected)
                return injected[1:]
        return None


def _handler(hub: HubServer, serve: Callable[[Request], Reply]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # headers and body in one packet: two wait 40 ms for each other (Nagle)

        def do_GET(self) -> None:
            request = Request(hub, self.command, urlsplit(self.path).path, self.headers, b"")  # type: ignore[arg-type]
            request.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if request.path.startswith("/api/agent-harnesses"):  # the client's user-agent, no Hub traffic
                return self.answer(Reply(b"", 404))
            if not hub.running:
                return self.drop()  # a connection that was kept alive
            with hub.lock:
                hub.requests.append(f"{request.method} {request.path}")
                status, body = hub.take_failure(request.path) or (None, "")
                if status is not None and status > 0:
                    return self.answer(Reply(body.encode(), status))
                if status == DROP:
                    return self.drop()
                try:
                    reply = serve(request)
                except Reply as error:
                    reply = error
            return self.drop() if status == LOSE_ANSWER else self.answer(reply)

        do_HEAD = do_POST = do_PUT = do_GET

        def answer(self, reply: Reply) -> None:
            content = reply.content
            if not isinstance(content, bytes):
                content = json.dumps(content).encode()
            self.send_response(reply.status)
            for key, value in {"Content-Length": str(len(content)), **reply.headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def drop(self) -> None:
            self.close_connection = True
            self.connection.close()

        def log_message(self, *arguments: object) -> None:
            pass

    return Handler


@pytest.fixture
def hub_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A running Hub that huggingface_hub talks to, in this process and in children; no token, an empty cache.

    huggingface_hub reads the environment once, at import: children get the variables, this process
    the constants. Its waits before a retry are skipped.
    """
    import tenacity.nap
    from huggingface_hub import constants, file_download
    from huggingface_hub.utils import _http

    hub, home = HubServer(), tmp_path / "hf_home"
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE", "HF_HUB_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    environment = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
    }
    for name in environment:
        monkeypatch.setenv(name, environment[name])
    for name, value in {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_OFFLINE": False,
        "AGENT_HARNESSES_PATH": str(home / "agents.json"),
    }.items():
        monkeypatch.setattr(constants, name, value)
    for module in (_http, file_download, tenacity.nap):
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=lambda seconds: None))
    _http.close_session()  # the client of an earlier test holds connections and proxies
    yield hub
    _http.close_session()
    hub.stop()


def write_toy_adapter(folder: Path, seed: int = 0, base_model: str = "alice/base") -> Path:
    """Return `folder` with a complete adapter: sound files, one 2 x 4 matrix, nothing that can be served."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in _toy_files(folder.name, seed, base_model).items():
        (folder / name).write_bytes(content)
    return folder


@functools.cache
def _toy_files(name: str, seed: int, base_model: str) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as parent:
        return read_folder(_make_toy_adapter(Path(parent) / name, seed, base_model))


def _make_toy_adapter(folder: Path, seed: int, base_model: str) -> Path:
    import gguf
    import numpy as np
    from safetensors.numpy import save_file

    from medical_assistant.models.adapter import weights_hash
    from medical_assistant.prompts import prompt_contract
    from medical_assistant.publish.card import write_card

    folder.mkdir(parents=True, exist_ok=True)
    weights = np.random.default_rng(seed).normal(size=(2, 4)).astype(np.float32)
    save_file({"base_model.model.q_proj.lora_A.weight": weights}, folder / "adapter_model.safetensors")
    writer = gguf.GGUFWriter(folder / "adapter.gguf", "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_tensor("blk.0.attn_q.weight.lora_a", weights)
    writer.add_tensor("blk.0.attn_q.weight.lora_b", np.ascontiguousarray(weights.T))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    contents = {
        "adapter_config.json": {"peft_type": "LORA", "base_model_name_or_path": base_model, "r": 2},
        "prompt.json": prompt_contract("{{ messages }}", {"bos_token": "<s>", "eos_token": "</s>"}),
        "training.json": {"experiment": "baseline", "settings": {"seed": seed, "lora_rank": 2}},
        "metrics.json": {
            "n": 200,
            "systems": {
                "base": {"label": "base", "model": base_model, "adapter": None, "adapter_revision": None},
                "fine_tuned": {
                    "label": "fine-tuned",
                    "model": base_model,
                    "adapter": folder.name,
                    "adapter_revision": weights_hash(folder),
                },
            },
            "scores": {"base": {"bleu": 0.88}, "fine_tuned": {"bleu": 3.5 + seed}},
        },
        "calibration.json": {"schema_version": 1, "adapter_revision": "of another adapter"},
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    (folder / "report.md").write_text("# Is it better?\n", encoding="utf-8")
    (folder / "loss.png").write_bytes(b"\x89PNG\r\n\x1a\n toy")
    write_card(folder)
    return folder


def read_folder(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def toy_adapter(tmp_path: Path) -> Path:
    return write_toy_adapter(tmp_path / "adapter")


@pytest.fixture
def signed_in(hub_server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """With alice's token; without this fixture, a stranger."""
    monkeypatch.setenv("HF_TOKEN", WRITE_TOKEN)
