"""The real page behind the real Gradio server, around a stub engine: one for all tests of a session that can share."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial

import httpx
import pytest

from medical_assistant.web.limits import ClientLimits
from medical_assistant.web.requests import RequestTracker
from tests.support.stub_engine import StubEngine, default_script

# All is on this machine, and reading the certificates of others takes 30 ms of CPU for each request.
LOCAL = {"verify": False, "trust_env": False}
request = partial(httpx.request, **LOCAL)


@dataclass
class ServedApp:
    engine: StubEngine
    tracker: RequestTracker
    url: str


@contextmanager
def serve(login=None) -> Iterator[ServedApp]:
    """Yield the app, with `login` where given, on a free port of this machine."""
    from medical_assistant.chat.assistant import Assistant, load_examples
    from medical_assistant.web import page, server

    engine, tracker = StubEngine(), RequestTracker(ClientLimits(concurrent=10, per_minute=1000))
    blocks = page.build_page(Assistant(engine), load_examples(), tracker)
    if login:
        login.add_button(blocks)
    port = free_port()
    blocks.launch(
        server_name="127.0.0.1",
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        app_kwargs=server.app_kwargs(engine, tracker, metrics=True, login=login),
        **page.launch_options(),
        **(login.launch_options() if login else {}),
    )
    try:
        yield ServedApp(engine, tracker, f"http://127.0.0.1:{port}")
    finally:
        blocks.close()


def free_port() -> int:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="session")
def one_served_app() -> Iterator[ServedApp]:
    pytest.importorskip("gradio")
    with serve() as app:
        yield app


@pytest.fixture
def served(one_served_app: ServedApp) -> ServedApp:
    """The session's app, its engine as new: `served.engine.script` and `delay_s` are the test's to set."""
    engine = one_served_app.engine
    engine.script, engine.delay_s = default_script, 0.0
    engine.reset()
    return one_served_app
