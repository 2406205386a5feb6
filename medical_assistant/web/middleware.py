"""Security middleware around Gradio's own server: closed paths, bodies, other sites, security headers."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medical_assistant.web.limits import LimitError
from medical_assistant.web.login import ATTEMPTS_PER_MINUTE, Login, PasswordLogin

MAX_BODY_BYTES = 1_000_000  # the rules must see an emergency after 200 answers of 1,000 tokens too

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
# Servers decode a path once; what could still lead out of a folder after that is closed.
_TRAVERSAL = re.compile(r"\.\.|[\\%\x00-\x1f]")

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


class SecurityMiddleware:
    """ASGI middleware: closed paths are 404, large bodies 413, and every response has the security headers.

    With `login`, requests that another site's page makes are 403, since Gradio's CORS would let it use and read the
    session of whoever looks at it; and too many attempts to sign in are 429.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int = MAX_BODY_BYTES, login: Login | None = None) -> None:
        self.app = app
        self._max_body_bytes = max_body_bytes
        self._login = login

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer: ASGIApp | None = self._refusal(scope)
        if answer is None:
            answer, receive = await self._read_body(Headers(scope=scope), receive)
        await answer(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope) -> Response | None:
        """Return the answer to what Gradio shall not see, else None; attempts to sign in are counted."""
        login, path, root = self._login, scope["path"], scope.get("root_path", "")
        path = path[len(root) :] if path.startswith(f"{root}/") else path
        if not is_open(path) and (login is None or path not in login.paths):
            return PlainTextResponse("Not Found", 404)
        if login is not None and is_cross_origin(Headers(scope=scope)):
            return PlainTextResponse("Another site may not ask here.", 403)
        if isinstance(login, PasswordLogin) and scope["method"] == "POST" and path.rstrip("/") == "/login":
            try:
                login.count_attempt(Request(scope))
            except LimitError:
                text = f"At most {ATTEMPTS_PER_MINUTE} attempts a minute: wait a minute, then try again."
                return JSONResponse({"detail": text}, 429, {"retry-after": "60"})
        return None

    async def _read_body(self, headers: Headers, receive: Receive) -> tuple[ASGIApp, Receive]:
        """Return (the app, a `receive` that gives the body again, in one piece), or a refusal in place of the app."""
        if "content-length" not in headers and "transfer-encoding" not in headers:
            return self.app, receive  # there is no body (RFC 9112, 6.3)
        # What follows of a large body is not read: the connection cannot be used again.
        text = f"The request is over {self._max_body_bytes // 1000} kB."
        too_large = PlainTextResponse(text, 413, {"connection": "close"})
        declared = headers.get("content-length", "")
        if declared.isdecimal() and (len(declared) > 12 or int(declared) > self._max_body_bytes):
            return too_large, receive
        body = bytearray()
        message: Message = {"type": "http.request", "more_body": True}
        while message["type"] == "http.request" and message.get("more_body", False):
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self._max_body_bytes:
                return too_large, receive
        if message["type"] == "http.request":
            if "json" in headers.get("content-type", "") and not is_strict_json(body):
                return PlainTextResponse("The body is not valid JSON, or has an empty session_hash.", 400), receive
            message = {"type": "http.request", "body": bytes(body), "more_body": False}
        first = [message]  # the body, or that the client has gone

        async def again() -> Message:
            return first.pop() if first else await receive()

        return self.app, again


def is_strict_json(body: bytes | bytearray) -> bool:
    """Return False for what RFC 8259 does not allow but Python reads: NaN, Infinity, 1e999, a depth without end.

    Quoting such a number in an error is a 500 of FastAPI 0.165, and an empty `session_hash` one of Gradio 6.31.
    """

    try:
        content = json.loads(body)
        json.dumps(content, allow_nan=False)
    except (ValueError, RecursionError):
        return False
    return not isinstance(content, dict) or content.get("session_hash") != ""


def is_open(path: str) -> bool:
    """Say whether `path`, as the server decoded it, is one that the page or a client library needs."""
    return not _TRAVERSAL.search(path) and (path in OPEN_PATHS or path.startswith(OPEN_FOLDERS))


def is_cross_origin(headers: Mapping[str, str]) -> bool:
    """Say whether a page of another host made the request (RFC 6454, 7). Programs and plain links name no origin."""
    origin = headers.get("origin")
    if origin is None:
        return False
    # A page elsewhere cannot set the second one without a preflight, which is refused for want of it.
    hosts = {headers.get("host"), headers.get("x-forwarded-host", "").split(",")[0].strip()}
    return origin.partition("://")[2] not in hosts - {None, ""}


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
    # A browser reads \r\n as \n before it hashes (HTML standard, 13.2.3.5).
    scripts = _INLINE_SCRIPT.findall(page.replace(b"\r\n", b"\n").replace(b"\r", b"\n"))
    hashes = (base64.b64encode(hashlib.sha256(script).digest()).decode() for script in dict.fromkeys(scripts))
    return CONTENT_SECURITY_POLICY.format(script_hashes="".join(f" 'sha256-{name}'" for name in hashes))
