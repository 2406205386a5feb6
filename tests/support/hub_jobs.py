"""Hugging Face Jobs for the Hub of `tests/hub_server.py`: submitting, the status, the log as server-sent events.

    pytest_plugins = ("tests.support.hub_server", "tests.support.hub_jobs")

    def test_something(job_server):
        job_server.reads = [Read(["step 1"], broken=True), Read(["step 2"])]

A job runs for as long as `reads` lasts: each request for the log takes one from it, sends every line so far, and ends.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.support.hub_routes import Reply, Request, failure
from tests.support.hub_server import HubServer

STARTED = "===== Job started at 2026-05-01 10:00:00 ====="  # the Hub's first line; the client leaves it out


@dataclass
class Read:
    """New lines of the log; a `broken` one loses the connection after them."""

    lines: list[str]
    broken: bool = False


@dataclass
class JobServer:
    """`jobs` holds what was submitted: the body of each request, with `secrets` taken out into `secrets`."""

    reads: list[Read] = field(default_factory=lambda: [Read(["done"])])
    final: tuple[str, str | None] = ("COMPLETED", None)  # stage and message when `reads` is empty
    jobs: list[dict[str, Any]] = field(default_factory=list)
    secrets: list[dict[str, str]] = field(default_factory=list)
    log: list[str] = field(default_factory=lambda: [STARTED])

    def whoami(self, request: Request) -> dict[str, Any]:
        user, _ = request.user()
        if user is None:
            raise failure(401, "Invalid username or password.")
        return {"type": "user", "name": user}

    def submit(self, request: Request, owner: str) -> dict[str, Any]:
        user, may_write = request.user()
        if user != owner or not may_write:
            raise failure(403, "Missing permissions: job.write")
        if not request.hub.paid_plan:
            raise failure(402, "Pre-paid credit balance is insufficient")
        specification = json.loads(request.body)
        self.secrets.append(specification.pop("secrets", {}))
        self.jobs.append(specification)
        return self._job(request, owner, "SCHEDULING", None)

    def inspect(self, request: Request, owner: str, job: str) -> dict[str, Any]:
        return self._job(request, owner, *(("RUNNING", None) if self.reads else self.final))

    def logs(self, request: Request, owner: str, job: str) -> Reply:
        read = self.reads.pop(0) if self.reads else Read([])
        self.log += read.lines
        events = [{"data": line, "timestamp": f"2026-05-01T10:00:{i:02}.000Z"} for i, line in enumerate(self.log)]
        content = "".join(f"data: {json.dumps(event)}\n\n" for event in events).encode() + b": keep-alive\n\n"
        headers = {"Content-Type": "text/event-stream"}
        if read.broken:
            headers |= {"Content-Length": str(len(content) + 100), "Connection": "close"}
        return Reply(content, 200, headers)

    def _job(self, request: Request, owner: str, stage: str, message: str | None) -> dict[str, Any]:
        return {
            "id": "68780d00bbe36d38803f645f",
            "createdAt": "2026-05-01T10:00:00.000Z",
            "owner": {"id": "5e9e", "name": owner, "type": "user"},
            "status": {"stage": stage, "message": message},
            "secrets": ["HF_TOKEN"],
        }


@pytest.fixture
def job_server(hub_server: HubServer, monkeypatch: pytest.MonkeyPatch) -> JobServer:
    """Jobs on `hub_server`; the client's waits before it reads a log again are skipped."""
    from types import SimpleNamespace

    from huggingface_hub import hf_api

    server, job = JobServer(), r"/api/jobs/([^/]+)"
    hub_server.more_routes += [
        ("GET", r"/api/whoami-v2", server.whoami),
        ("POST", job, server.submit),
        ("GET", job + r"/([^/]+)", server.inspect),
        ("GET", job + r"/([^/]+)/logs", server.logs),
    ]
    monkeypatch.setattr(hf_api, "time", SimpleNamespace(sleep=lambda seconds: None))
    return server
