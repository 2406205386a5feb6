"""The app with a scripted engine, served once for all tests of the page, the server and the API."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
import pytest

from tests.support.stub_engine import StubEngine, default_script

# All is on this machine, and reading the certificates of others takes 30 ms of CPU for each request.
LOCAL: dict[str, Any] = {"verify": False, "trust_env": False}
request = partial(httpx.request, **LOCAL)


@dataclass
class ServedApp:
    """`page`: the gr.Blocks. A test may change `engine` and `assistant`: `served_app` sets both back."""

    engine: StubEngine
    assistant: Any
    tracker: Any
    page: Any

    @property
    def url(self) -> str:
        """The address, without a slash at the end."""
        return self.page.local_url.rstrip("/")

    def reset(self) -> None:
        """Wait for what still runs and set everything back."""
        wait_until(lambda: self.engine.running == 0)
        self.engine.reset()
        self.engine.script, self.engine.delay_s, self.engine.context_tokens = default_script, 0.0, 2048
        self.engine.info = StubEngine().info
        self.assistant.problem = self.assistant.calibration = None


@contextmanager
def serve(
    engine: StubEngine, problem: str | None = None, queue: Any = None, login: Any = None, library: Any = None
) -> Iterator[ServedApp]:
    """Serve the page with `engine`, and `login` and `library` where given, for as long as the block runs."""
    pytest.importorskip("gradio")
    from medical_assistant.chat.assistant import Assistant
    from medical_assistant.web import server
    from medical_assistant.web.page import build_page, launch_options
    from medical_assistant.web.requests import RequestTracker

    server.keep_text_out_of_errors()
    tracker, assistant = RequestTracker(queue=queue), Assistant(engine, problem, library=library)
    page = build_page(assistant, tracker)
    if login:
        login.add_button(page)
    page.launch(
        server_name="127.0.0.1",
        server_port=free_port(),
        prevent_thread_lock=True,
        quiet=True,
        app_kwargs=server.app_kwargs(engine, tracker, metrics=True, login=login),
        **launch_options(),
        **(login.launch_options() if login else {}),
    )
    try:
        yield ServedApp(engine, assistant, tracker, page)
    finally:
        page.close()


@pytest.fixture(scope="session")
def shared_app() -> Iterator[ServedApp]:
    with serve(StubEngine()) as app:
        yield app


@pytest.fixture
def served_app(shared_app: ServedApp) -> ServedApp:
    """The app that all tests of a process share, as it is after its start."""
    shared_app.reset()
    return shared_app


def free_port() -> int:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_until(condition: Any, timeout_s: float = 60.0) -> None:
    """Wait for what happens in this process; the page has its own waiting."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "it did not happen in time"
        time.sleep(0.02)
