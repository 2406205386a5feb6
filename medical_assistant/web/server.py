"""The web side of the app, around Gradio's own server: health, metrics, the end, and no question in an error's log.

`app_kwargs` is for `launch(app_kwargs=...)`, which hands it to FastAPI's constructor. What Gradio 6.31 does there:
`middleware` would stand inside Gradio's CORS and compression and under Starlette's page for errors, so that
preflights and errors had no headers. `lifespan` runs before the first request with the middleware built: there
`SecurityMiddleware` is put around all of it. `routes` come before Gradio's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from medical_assistant.engines.base import Engine
from medical_assistant.errors import without_text
from medical_assistant.web.login import HubLogin, Login
from medical_assistant.web.middleware import SecurityMiddleware
from medical_assistant.web.requests import FLUSH_S, RequestTracker
from medical_assistant.web.startup import in_background

logger = logging.getLogger(__name__)

HEALTH_LIMIT_S, HEALTH_KEPT_S = 2.0, 5.0
DRAIN_S, END_S = 8.0, 9.5  # for the running answers; for the whole end, the engine's included

_NOT_KEPT = {"cache-control": "no-store"}


def app_kwargs(
    engine: Engine, tracker: RequestTracker, metrics: bool = False, login: Login | None = None
) -> dict[str, Any]:
    """Return what goes into Gradio's `launch(app_kwargs=...)`.

    `GET /healthz` is always there; `GET /metrics` with `metrics`. `login` opens the paths that it needs; whom Gradio
    answers is decided by `login.launch_options()`.
    """
    routes = [Route("/healthz", Health(engine, tracker).respond)]

    def show_metrics(request: Request) -> Response:
        text = tracker.metrics.text(tracker.queue.running, tracker.queue.waiting, getattr(engine, "restarts", 0))
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8", headers=_NOT_KEPT)

    if metrics:
        routes.append(Route("/metrics", show_metrics))

    @contextlib.asynccontextmanager
    async def before_requests(app: Any) -> AsyncIterator[None]:
        app.middleware_stack = SecurityMiddleware(app.middleware_stack, login=login)
        keep_no_settings(app.state_holder)
        yield

    kwargs: dict[str, Any] = {"routes": routes, "lifespan": before_requests}
    if isinstance(login, HubLogin):
        kwargs["exception_handlers"] = {401: login.ask_to_sign_in}
    return kwargs


class Health:
    """`GET /healthz`: 200 where the engine counts the tokens of a word in time, else 503 with the reason in a word.

    Reasons: "ending", "slow" (no answer in `HEALTH_LIMIT_S`), "failed". One check runs at a time and holds for
    `HEALTH_KEPT_S`: a load balancer that asks often costs the engine nothing.
    """

    def __init__(self, engine: Engine, tracker: RequestTracker, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._tracker = tracker
        self._clock = clock
        self._check: Future[str] | None = None
        self._started_s = 0.0

    async def respond(self, request: Request) -> Response:
        state = "ending" if self._tracker.ending else await self._state()
        if state == "ready":
            return JSONResponse({"status": "ready"}, headers=_NOT_KEPT)
        return JSONResponse({"status": "unavailable", "reason": state}, 503, headers=_NOT_KEPT)

    async def _state(self) -> str:
        """Return the state of the newest check. One that hangs is not started a second time."""
        now_s = self._clock()
        check = self._check
        if check is None or (check.done() and now_s - self._started_s >= HEALTH_KEPT_S):
            check = self._check = in_background(self._ask)
            self._started_s = now_s
        left_s = max(0.0, self._started_s + HEALTH_LIMIT_S - now_s)
        await asyncio.wait([asyncio.wrap_future(check)], timeout=left_s)
        return check.result() if check.done() else "slow"

    def _ask(self) -> str:
        try:
            self._engine.count_tokens([{"role": "user", "content": "Hello"}])
        except Exception as error:  # whatever it is, the engine does not answer; its words may be a person's
            logger.warning("health: the engine failed (%s)", type(error).__name__)
            return "failed"
        return "ready"


def end_on_sigterm(engine: Engine, tracker: RequestTracker, drain_s: float = DRAIN_S, end_s: float = END_S) -> None:
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
        logger.info("SIGTERM: waiting up to %.0f s for %d answers", drain_s, tracker.running)
        whole = tracker.end(drain_s)
        if not whole:
            logger.warning("SIGTERM: %d answers were cut", tracker.running)
        engine.close()
        if not whole:
            time.sleep(FLUSH_S)  # the engine's end gives the cut ones their note
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)


def keep_no_settings(sessions: Any) -> None:
    """Make Gradio's `StateHolder` keep no copy of the page's settings for each visitor and each API call.

    Gradio 6.31 works one out (5 ms of CPU, 0.1 MB) for links to a conversation alone, which are closed here.
    """
    # All that a new session reads of the page; a session without settings adds those that change, as it needs them.
    sessions.blocks = SimpleNamespace(default_config=sessions.blocks.default_config, blocks={})


def keep_text_out_of_errors() -> None:
    """Make Gradio log the type and the place of an error in place of printing its traceback.

    Gradio 6.31 prints the traceback of whatever a handler raises, and a call with too few arguments raises a
    ValueError that quotes the others: the question would stand in the log.
    """
    from gradio import queueing

    def log_without_text() -> None:
        error = sys.exc_info()[1]
        if error is not None:
            logger.error("%s", without_text(error))

    # There is no setting for it; this is all that Gradio's queue uses of the module `traceback`.
    queueing.traceback = SimpleNamespace(print_exc=log_without_text)  # type: ignore[assignment]
