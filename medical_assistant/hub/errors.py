"""Failures of the Hugging Face Hub: which of them pass by themselves, and what to tell the user."""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Callable
from typing import TypeVar

import httpx2  # huggingface_hub's HTTP client: its exceptions pass through
from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
    XetDownloadError,
)
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    wait_exception,
    wait_exponential_jitter,
)

from medical_assistant.errors import NO_SPACE, UserError

logger = logging.getLogger(__name__)

ATTEMPTS = 4  # with waits of about 1, 2 and 4 s between them
# What huggingface_hub lets out: HTTP and transport errors, the disk's, its own checks of answers
# (ValueError) and of uploads (RuntimeError).
FAILURES = (httpx2.HTTPError, OSError, ValueError, RuntimeError, EntryNotFoundError, XetDownloadError)
TOKEN_PAGE = "https://huggingface.co/settings/tokens"

_ROOT_CAUSES = (HfHubHTTPError, httpx2.TransportError, OfflineModeIsEnabled, json.JSONDecodeError)

Result = TypeVar("Result")


class HubUnavailable(UserError):
    """The Hub, the network or the disk fails. What was asked for may well be there: another day it can be had.

    A wrong name, a missing permission and a broken adapter are not this.
    """


def retry(call: Callable[[], Result]) -> Result:
    """Return `call()`, repeated up to `ATTEMPTS` times while the Hub fails for a moment.

    That is: 408, 429, 5xx, a timeout, a broken or refused connection. The wait doubles, with jitter
    so that clients that failed together do not return together (M. Brooker, "Exponential Backoff
    And Jitter", AWS Architecture Blog, 2015); a `Retry-After` header of up to a minute is obeyed.
    """
    policy = Retrying(
        retry=retry_if_exception(lambda error: isinstance(error, FAILURES) and is_transient(root_cause(error))),
        wait=wait_exponential_jitter(initial=1, jitter=0.5) + wait_exception(_retry_after_s),
        stop=stop_after_attempt(ATTEMPTS),
        before_sleep=_log_retry,
        reraise=True,
    )
    return policy(call)


def _retry_after_s(error: BaseException) -> float:
    cause = root_cause(error)
    asked = cause.response.headers.get("Retry-After", "") if isinstance(cause, HfHubHTTPError) else ""
    return min(float(asked), 60.0) if asked.isdecimal() else 0.0


def _log_retry(state: RetryCallState) -> None:
    if state.outcome and (error := state.outcome.exception()):
        text = one_line(root_cause(error))  # tenacity's own would log the token
        logger.warning(
            "The Hub failed (%s): attempt %d in %.1f s", text, state.attempt_number + 1, state.upcoming_sleep
        )


def root_cause(error: BaseException) -> BaseException:
    """Return the HTTP, transport or disk error below `error`: huggingface_hub wraps them once or twice."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, _ROOT_CAUSES) or (isinstance(cause, OSError) and cause.errno is not None):
            return cause
        cause = cause.__cause__
    return error


def is_transient(cause: BaseException) -> bool:
    """Return whether the same request may well succeed in a moment."""
    if isinstance(cause, HfHubHTTPError):
        return cause.response.status_code in (408, 429) or cause.response.status_code >= 500
    # A gateway's HTML page where JSON was due is a JSONDecodeError.
    return isinstance(cause, (httpx2.TransportError, json.JSONDecodeError))


def one_line(error: BaseException) -> str:
    """Return the type or HTTP status of `error` with the first line of its text, without the token.

    A server, or a proxy before it, may repeat what it was sent.
    """
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, HfHubHTTPError):
        text = f"{error.response.status_code} {error.server_message or ''}"
    token = get_token()
    return (text.replace(token, "(the token)") if token else text).split("\n")[0].strip()[:160]


def explain(
    error: BaseException, name: str, revision: str | None = None, *, kind: str = "", write: bool = False
) -> UserError:
    """Return the `UserError` for a failure of huggingface_hub on repository `name`.

    `kind` is the URL prefix of the repository's type ("" for a model, "spaces/"); `write` tells a
    push from a pull. It is a `HubUnavailable` where name and permission are not the reason.
    """
    cause = root_cause(error)
    text = _sentence(cause, name, revision, f"{constants.ENDPOINT}/{kind}{name}", write)
    refused = isinstance(cause, HfHubHTTPError) and not is_transient(cause)
    return UserError(text) if refused else HubUnavailable(text)


def _sentence(cause: BaseException, name: str, revision: str | None, page: str, write: bool) -> str:
    if isinstance(cause, GatedRepoError):
        return f"{name} is gated: accept its licence at {page}, then set HF_TOKEN to a token of that account."
    if isinstance(cause, RevisionNotFoundError):
        return f"{name} has no revision {revision}: choose one listed at {page}/commits/main."
    if isinstance(cause, HfHubHTTPError):
        return _explain_status(cause, name, page, write)
    if isinstance(cause, OfflineModeIsEnabled):
        return f"{name} is not in the cache and HF_HUB_OFFLINE is set: unset it, or download {name} first."
    if isinstance(cause, httpx2.TransportError):
        return f"Cannot reach {constants.ENDPOINT}: check the network connection, then try again."
    if isinstance(cause, OSError) and cause.errno in NO_SPACE:
        return f"The disk is full, {name} does not fit: free space, or set HF_HOME to another disk."
    if isinstance(cause, OSError) and cause.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return f"Cannot write to {constants.HF_HUB_CACHE}: set HF_HOME to a folder that you may write to."
    return f"The transfer of {name} failed ({one_line(cause)}): try again, or look at {page}."


def _explain_status(error: HfHubHTTPError, name: str, page: str, write: bool) -> str:
    status = error.response.status_code
    # For a private repository the Hub says 401 to a stranger and 404 to another account, as for none at all.
    refused = "Invalid credentials" in error.response.headers.get("X-Error-Message", "")
    if status == 401 and (write or refused):
        return f"The Hub refuses the token: create another one at {TOKEN_PAGE} and set HF_TOKEN."
    if status == 402:
        return f"{name} needs a paid plan ({one_line(error)}): choose other hardware, such as zero-a10g."
    if status == 403 and write:
        owner = name.partition("/")[0]
        return f"The token may not write to {name}: use one with write permission for {owner} ({TOKEN_PAGE})."
    if status in (401, 403, 404):
        return (
            f"{name} does not exist, or it is private and not open to this token: "
            "check the name, or set HF_TOKEN to a token that may read it."
        )
    if status == 429:
        return "The Hub limits the number of requests: wait some minutes, or set HF_TOKEN for a higher limit."
    if status >= 500:
        return f"The Hub keeps answering {status} for {name}: try again later (https://status.huggingface.co)."
    return f"The Hub refuses the request for {name} ({one_line(error)}): look at {page}."
