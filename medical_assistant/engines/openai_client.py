"""A streaming client for the OpenAI chat protocol, as llama.cpp's server in the child process speaks it.

Protocol: OpenAI API reference, "Create chat completion" with `stream: true` (server-sent events).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Generator, Iterator, Mapping
from typing import Any

import httpx

from medical_assistant.engines.base import Answer, Token
from medical_assistant.errors import EngineError, UserError

# What reading JSON of another form than the protocol's raises.
MALFORMED = (AttributeError, LookupError, TypeError, ValueError, OverflowError)
READ_TIMEOUT_S = 600.0  # silence, not duration: a request may wait for a slot behind long answers


class ConnectionLost(EngineError):
    """The server could not be reached, or went away while it answered."""


class NoAnswer(ConnectionLost):
    """The server is silent: it hangs, or it is busy with others."""


class OpenAIClient:
    """One server. Safe for concurrent calls."""

    def __init__(
        self,
        base_url: str,
        api_key: str,
        *,
        read_timeout_s: float = READ_TIMEOUT_S,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._http = httpx.Client(
            base_url=self.base_url,
            headers={"Authorization": f"Bearer {api_key}"},
            timeout=httpx.Timeout(10.0, read=read_timeout_s, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=16),
            trust_env=False,  # HTTP_PROXY in the environment must not divert a loopback server
            transport=transport,
        )

    def request(
        self, method: str, path: str, payload: Mapping[str, Any] | None = None, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """Return the JSON object that `path` answers within `timeout_s`. Raises as `stream_chat`."""
        timeout = self._http.timeout if timeout_s is None else httpx.Timeout(10.0, read=timeout_s, pool=None)
        try:
            response = self._http.request(method, path, json=payload, timeout=timeout)
            _raise_for_status(response)
            answer = response.json()
        except httpx.RequestError as error:
            raise self._lost(error) from error
        except ValueError as error:
            raise _broken("answer") from error
        if not isinstance(answer, dict):
            raise _broken("answer")
        return answer

    def stream_chat(self, payload: Mapping[str, Any]) -> Generator[Token, None, str]:
        """Yield the new tokens of `/v1/chat/completions`; the return value is "stop" or "length".

        A piece of a character that a server holds back arrives with the piece that completes it. A
        server that sends no log-probabilities gives NaN. An empty token keeps the stream alive (llama.cpp's
        prompt progress): its log-probability is 0. Closing the generator drops the connection.

        Raises `ConnectionLost` when the server cannot be reached or goes away, its kind `NoAnswer` when it is
        silent for the read timeout, `UserError` when the prompt is too long, else `EngineError` with the server's
        message.
        """
        finish_reason = None
        try:
            with self._http.stream("POST", "/v1/chat/completions", json={**payload, "stream": True}) as response:
                if response.is_error:
                    response.read()
                    _raise_for_status(response)
                for event in _events(response.iter_bytes()):
                    if "error" in event:
                        raise _server_error(event["error"])
                    for choice in event.get("choices") or ():
                        try:
                            tokens, reason = list(_tokens(choice)), choice.get("finish_reason")
                        except MALFORMED as error:
                            raise _broken("event") from error
                        finish_reason = reason or finish_reason
                        yield from tokens
                    if "prompt_progress" in event:
                        yield Token("", 0.0)
        except httpx.RequestError as error:
            raise self._lost(error) from error
        if finish_reason is None:
            raise ConnectionLost(f"The server at {self.base_url} ended the answer in the middle: ask again.")
        return "length" if finish_reason == "length" else "stop"

    def chat(self, payload: Mapping[str, Any], timeout_s: float = READ_TIMEOUT_S) -> Answer:
        """Return the whole answer of `/v1/chat/completions`: one message for all tokens, not one for each.

        Nothing comes before the last token: `timeout_s` is for the whole answer. Raises as `stream_chat`.
        """
        started_s = time.perf_counter()
        reply = self.request("POST", "/v1/chat/completions", {**payload, "stream": False}, timeout_s)
        seconds = time.perf_counter() - started_s
        try:
            return _read_answer(reply["choices"][0], seconds)
        except MALFORMED as error:
            raise _broken("answer") from error

    def _lost(self, error: Exception) -> ConnectionLost:
        if isinstance(error, httpx.TimeoutException):
            return NoAnswer(f"The server at {self.base_url} does not answer: try again or restart it.")
        kind = type(error).__name__
        return ConnectionLost(f"No connection to the server at {self.base_url} ({kind}): check that it runs.")


def _events(chunks: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a server-sent event stream (WHATWG HTML, section 9.2.6) up to [DONE]."""
    for line in _lines(chunks):
        field, _, value = line.partition(b":")
        value = value.strip()
        if field == b"error":  # llama.cpp has sent errors in a field of their own
            value = b'{"error": ' + value + b"}"
        elif field != b"data" or not value:  # comments keep the connection alive
            continue
        if value == b"[DONE]":
            return
        try:
            event = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise _broken("event") from error
        if isinstance(event, dict):
            yield event


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Split at newlines only: httpx's `iter_lines` also splits at U+2028 and U+0085, which JSON may hold raw."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    yield rest


def _read_answer(choice: Mapping[str, Any], seconds: float) -> Answer:
    finish_reason = "length" if choice.get("finish_reason") == "length" else "stop"
    entries = (choice.get("logprobs") or {}).get("content") or []
    if finish_reason == "stop" and entries and entries[-1].get("bytes") == []:
        entries = entries[:-1]  # llama.cpp counts the end of turn here; in a stream it does not
    return Answer(
        text=(choice.get("message") or {}).get("content") or "",
        finish_reason=finish_reason,
        logprobs=tuple(entry["logprob"] for entry in entries),
        entropies=tuple(_entropy(entry) for entry in entries),
        seconds=seconds,
    )


def _broken(what: str) -> EngineError:
    return EngineError(f"The server sent a broken {what}: check that it speaks the OpenAI protocol.")


def _tokens(choice: Mapping[str, Any]) -> Iterator[Token]:
    """Yield one token per log-probability; the text comes with the last, so pieces never split a character."""
    text = (choice.get("delta") or {}).get("content") or ""
    entries = [(entry["logprob"], _entropy(entry)) for entry in (choice.get("logprobs") or {}).get("content") or ()]
    for logprob, entropy in entries[:-1]:
        yield Token("", logprob, entropy)
    if text or entries:
        yield Token(text, *(entries[-1] if entries else (math.nan,)))


def _entropy(entry: Mapping[str, Any]) -> float:
    """Return the entropy in nats of a token's alternatives, those that are not listed taken as one: a lower bound.

    NaN where no alternatives are listed.
    """
    listed = [math.exp(other["logprob"]) for other in entry.get("top_logprobs") or ()]
    if not listed:
        return math.nan
    rest = 1.0 - sum(listed)
    # Rounding makes the rest of a sure token a little less than nothing.
    return -sum(p * math.log(p) for p in (*listed, rest) if p > 0.0)


def _raise_for_status(response: httpx.Response) -> None:
    if response.is_error:
        try:
            error = response.json()["error"]
        except (ValueError, KeyError, TypeError):
            error = f"HTTP {response.status_code} {response.reason_phrase}"
        raise _server_error(error)


def _server_error(error: object) -> UserError:
    """Return the exception for an OpenAI error object; its message is the server's, cut to one line."""
    fields = error if isinstance(error, dict) else {"message": error}
    if "context_size" in str(fields.get("type")):
        return UserError("The question is too long for this model: shorten it or clear the chat.")
    message = " ".join(str(fields.get("message", "no message")).split())[:200]
    return EngineError(f"The model server failed ({message}): ask again.")
