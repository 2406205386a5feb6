"""The web side of the app, around Gradio's own server: security headers, closed paths, health, metrics, the end.

`app_kwargs` is for `launch(app_kwargs=...)`, which hands it to FastAPI's constructor. What Gradio 6.31 does there:
`middleware` would stand inside Gradio's CORS and compression and under Starlette's page for errors, so that
preflights and errors had no headers. `lifespan` runs before the first request with the middleware built: there
`Gate` is put around all of it. `routes` come before Gradio's own.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import Future
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medical_assistant.engines.base import Engine
from medical_assistant.server_answers import Answers

LOG = logging.getLogger(__name__)

MAX_BODY_BYTES = 1_000_000  # the rules must see an emergency after 200 answers of 1,000 tokens too
HEALTH_LIMIT_S, HEALTH_KEPT_S = 2.0, 5.0
DRAIN_S, END_S = 8.0, 9.5  # for the running answers; for the whole end, the engine's included

# All that Gradio 6.31's page and client libraries ask for. Closed with the rest: uploads, files, the proxy, streams,
# component_server, and deep_link, which writes a conversation to disk for whoever knows its session.
OPEN_PATHS = frozenset(
    "/ /config /config/ /theme.css /manifest.json /favicon.ico /robots.txt /healthz /metrics".split()
) | {
    f"/gradio_api/{name}"
    for name in (
        "info info/ openapi.json app_id startup-events login_check user theme.css "
        "queue/join queue/data queue/status cancel reset reset/"
    ).split()
}
OPEN_FOLDERS = (
    "/assets/", "/static/",  # Gradio's own
    "/gradio_api/heartbeat/", "/gradio_api/call/", "/gradio_api/run/", "/gradio_api/api/",
)  # fmt: skip
# Servers decode a path once; what could still climb out of a folder after that has no business here.
_CLIMBS = re.compile(r"\.\.|[\\%\x00-\x1f]")

# Directives of https://www.w3.org/TR/CSP3/. 'unsafe-eval': Gradio makes the templates of gr.HTML with `Function`.
# Inline scripts run by their hash alone. 'self' covers a WebSocket to the same host; a bare `ws:` would be any host.
# A page in an old Safari that disagrees loses nothing: Gradio 6.31 opens no WebSocket.
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; "
    "script-src 'self' 'unsafe-eval'{script_hashes}; "
    "style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; "
    "font-src 'self' data:; "
    "connect-src 'self'; "
    "frame-src 'none'; "
    "frame-ancestors 'self' https://huggingface.co https://*.hf.space; "
    "object-src 'none'; "
    "base-uri 'self'; "
    "form-action 'self'"
)
SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), display-capture=(), payment=(), usb=()",
    "cross-origin-opener-policy": "same-origin",
}
_INLINE_SCRIPT = re.compile(rb"<script\b(?![^>]*\bsrc\s*=)[^>]*>(.*?)</script\s*>", re.DOTALL | re.IGNORECASE)


def app_kwargs(
    engine: Engine, answers: Answers, metrics: bool = False, waiting: Callable[[], int] = lambda: 0
) -> dict[str, Any]:
    """Return what goes into Gradio's `launch(app_kwargs=...)`.

    `GET /healthz` is always there; `GET /metrics` with `metrics`. `waiting` returns the number of questions in
    Gradio's queue.
    """
    routes = [Route("/healthz", Health(engine, answers).respond)]

    def show_metrics(request: Request) -> Response:
        text = answers.metrics.text(answers.running, waiting(), getattr(engine, "restarts", 0))
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8", headers=_NOT_KEPT)

    if metrics:
        routes.append(Route("/metrics", show_metrics))
    return {"routes": routes, "lifespan": _gate_around}


@contextlib.asynccontextmanager
async def _gate_around(app: Any) -> AsyncIterator[None]:
    app.middleware_stack = Gate(app.middleware_stack)
    yield


class Gate:
    """ASGI middleware: closed paths are 404, large bodies 413, and every response has the security headers."""

    def __init__(self, app: ASGIApp, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self.app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        send = _with_headers(send)
        if not is_open(scope["path"], scope.get("root_path", "")):
            await PlainTextResponse("Not Found", 404)(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if "content-length" in headers or "transfer-encoding" in headers:  # else there is no body (RFC 9112, 6.3)
            try:
                receive = await self._read_body(headers, receive)
            except _TooLarge:
                text = f"The request is over {self._max_body_bytes // 1000} kB."
                # What follows of the body is not read: the connection cannot be used again.
                await PlainTextResponse(text, 413, {"connection": "close"})(scope, receive, send)
                return
        await self.app(scope, receive, send)

    async def _read_body(self, headers: Headers, receive: Receive) -> Receive:
        """Return a `receive` that gives the body again, in one piece."""
        declared = headers.get("content-length", "")
        if declared.isdecimal() and (len(declared) > 12 or int(declared) > self._max_body_bytes):
            raise _TooLarge
        body = bytearray()
        message: Message = {"type": "http.request", "more_body": True}
        while message["type"] == "http.request" and message.get("more_body", False):
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self._max_body_bytes:
                raise _TooLarge
        if message["type"] == "http.request":
            message = {"type": "http.request", "body": bytes(body), "more_body": False}
        first = [message]  # the body, or that the client has gone

        async def again() -> Message:
            return first.pop() if first else await receive()

        return again


class _TooLarge(Exception):
    pass


def is_open(path: str, root_path: str = "") -> bool:
    """Say whether `path`, as the server decoded it, is one that the page or a client library needs."""
    if path.startswith(f"{root_path}/"):
        path = path[len(root_path) :]
    return not _CLIMBS.search(path) and (path in OPEN_PATHS or path.startswith(OPEN_FOLDERS))


def _with_headers(send: Send) -> Send:
    """Return a `send` that adds the security headers. A page is held until its scripts have been read."""
    held: list[Message] = []
    page = bytearray()

    async def send_on(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.update(SECURITY_HEADERS)
            if headers.get("content-type", "").startswith("text/html") and "content-encoding" not in headers:
                held.append(message)
                return
            headers["content-security-policy"] = content_security_policy()
        elif held and message["type"] == "http.response.body":
            page.extend(message.get("body", b""))
            if message.get("more_body", False):
                return
            start = held.pop()
            MutableHeaders(scope=start)["content-security-policy"] = content_security_policy(bytes(page))
            await send(start)
            message = {"type": "http.response.body", "body": bytes(page), "more_body": False}
        await send(message)

    return send_on


def content_security_policy(page: bytes = b"") -> str:
    """Return the policy's text for `page`: of inline scripts only those that the server itself wrote there may run."""
    return CONTENT_SECURITY_POLICY.format(script_hashes="".join(f" '{name}'" for name in _script_hashes(page)))


def _script_hashes(page: bytes) -> Iterable[str]:
    # A browser reads \r\n as \n before it hashes (HTML standard, 13.2.3.5).
    scripts = _INLINE_SCRIPT.findall(page.replace(b"\r\n", b"\n").replace(b"\r", b"\n"))
    for script in dict.fromkeys(scripts):
        yield "sha256-" + base64.b64encode(hashlib.sha256(script).digest()).decode()


_NOT_KEPT = {"cache-control": "no-store"}


class Health:
    """`GET /healthz`: 200 where the engine counts the tokens of a word in time, else 503 with the reason in a word.

    Reasons: "ending", "slow" (no answer in `HEALTH_LIMIT_S`), "failed". One check runs at a time, in a thread of
    its own, and holds for `HEALTH_KEPT_S`: a load balancer that asks often costs the engine nothing.
    """

    def __init__(self, engine: Engine, answers: Answers, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._answers = answers
        self._clock = clock
        self._lock = threading.Lock()
        self._check: Future[str] | None = None
        self._started_s = 0.0

    async def respond(self, request: Request) -> Response:
        state = "ending" if self._answers.ending else await self._state()
        if state == "ready":
            return JSONResponse({"status": "ready"}, headers=_NOT_KEPT)
        return JSONResponse({"status": "unavailable", "reason": state}, 503, headers=_NOT_KEPT)

    async def _state(self) -> str:
        check, left_s = self._current_check()
        if check.done():
            return check.result()
        try:
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(check)), left_s)
        except asyncio.TimeoutError:  # noqa: UP041  # not the builtin before Python 3.11
            return "slow"

    def _current_check(self) -> tuple[Future[str], float]:
        """Return the check to wait for, and for how many seconds. One that hangs is not started a second time."""
        with self._lock:
            now_s = self._clock()
            check = self._check
            if check is None or (check.done() and not 0 <= now_s - self._started_s < HEALTH_KEPT_S):
                check, self._started_s = Future(), now_s
                self._check = check
                # A daemon: a hanging engine must not keep the process from its end.
                threading.Thread(target=self._ask, args=(check,), name="health", daemon=True).start()
            return check, min(HEALTH_LIMIT_S, max(0.0, self._started_s + HEALTH_LIMIT_S - now_s))

    def _ask(self, check: Future[str]) -> None:
        try:
            self._engine.count_tokens([{"role": "user", "content": "Hello"}])
        except Exception as error:  # whatever it is, the engine does not answer
            LOG.warning("health: the engine failed (%s)", type(error).__name__)
            check.set_result("failed")
        else:
            late = self._clock() - self._started_s > HEALTH_LIMIT_S
            check.set_result("slow" if late else "ready")


def end_on_sigterm(engine: Engine, answers: Answers, drain_s: float = DRAIN_S, end_s: float = END_S) -> None:
    """Make SIGTERM end the process with status 0: running answers get `drain_s` seconds, new ones a polite refusal.

    The safety rules, the page and /healthz (503) answer meanwhile. The whole end takes `end_s` seconds at most.
    Call it in the main thread, before `launch`, which blocks there.
    """

    def end(signal_number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would come in the middle of the first
        # The engine's process ends with this one, whatever hangs here.
        deadline = threading.Timer(end_s, os._exit, [0])
        deadline.daemon = True
        deadline.start()
        LOG.info("SIGTERM: waiting up to %.0f s for %d answers", drain_s, answers.running)
        if not answers.end(drain_s):
            LOG.warning("SIGTERM: %d answers were cut", answers.running)
        engine.close()
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)
