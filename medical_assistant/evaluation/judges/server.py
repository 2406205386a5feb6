"""A judge of statements: a language model behind any OpenAI-compatible server (vLLM, llama-server, a hosted one).

It is asked at temperature 0, one statement a request.
"""

from __future__ import annotations

import hashlib
import json
import os
import string
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exception, wait_exponential_jitter

from medical_assistant.errors import EngineError, UserError
from medical_assistant.files import ASSETS
from medical_assistant.prompts import clean_text

LABELS = ("entailed", "contradicted", "neither")
TEMPLATE = string.Template((ASSETS / "evaluation" / "judge_prompt.txt").read_text(encoding="utf-8"))
KEY_VARIABLE = "JUDGE_API_KEY"
PARALLEL = 4
ATTEMPTS = 4  # with waits of 1-2, 2-3 and 4-5 s between them, and what the server asks for
LONGEST_WAIT_S = 60.0
# That many claims in a row without any reply, each after all its attempts: the server is gone, not busy.
GIVE_UP_AFTER = 5
# The verdict has 8 tokens; some models put a sentence or a code fence around it, which must not be cut off.
MAX_REPLY_TOKENS = 200
NONSENSE = "the reply was not the JSON object that the prompt asks for"

# Everything that could look like the end of a tag to a language model, the wide and small forms too.
_ESCAPES = str.maketrans(
    {"&": "&amp;", **dict.fromkeys("<\uff1c\ufe64", "&lt;"), **dict.fromkeys(">\uff1e\ufe65", "&gt;")}
)


class JudgeDown(EngineError):
    """The judge cannot be reached or refuses to work; what it said until then has been handed over."""


class _NoReply(EngineError):
    """The server could not be reached or is busy, which may pass by itself."""

    def __init__(self, reason: str, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class Claim:
    """The question whether `answer`, given to `question`, contains or contradicts `statement`."""

    question: str
    answer: str
    statement: str


@dataclass(frozen=True)
class Verdict:
    """One of `LABELS`, or None with the reason why there is no verdict."""

    label: str | None
    reason: str = ""


class ServerJudge:
    """A language model behind an OpenAI-compatible server. `name` is the model's, never a path or an address."""

    prompt_sha256 = hashlib.sha256(TEMPLATE.template.encode()).hexdigest()

    def __init__(
        self,
        url: str,
        model: str,
        api_key: str | None = None,
        *,
        sleep: Callable[[float], None] = time.sleep,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Raises `UserError` for an address that is not http(s), one with a password in it, or a key that no header
        can carry."""
        if api_key and not (api_key.isascii() and api_key.isprintable()):
            raise UserError(f"{KEY_VARIABLE} has a character that no key has, perhaps the end of a line: set it again.")
        self.name = model
        self._key = api_key
        self._http = httpx.Client(
            base_url=_server_root(url),
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(10.0, read=120.0),
            transport=transport,
        )
        self._attempts = Retrying(
            retry=retry_if_exception_type(_NoReply),
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_exponential_jitter(initial=1, jitter=1)
            + wait_exception(lambda error: getattr(error, "retry_after_s", 0.0)),
            sleep=sleep,
            reraise=True,
        )

    def check(self) -> None:
        """Ask one question. Raises `UserError` when no answer comes; a reply in the wrong form passes here."""
        verdict = self._ask(Claim("Is ice cold?", "Ice is cold.", "Ice is cold."))
        if verdict.label is None and verdict.reason != NONSENSE:
            raise UserError(verdict.reason)

    def verdicts(self, claims: Sequence[Claim]) -> Iterator[Verdict]:
        """Yield the verdict on each claim, in their order, `PARALLEL` being asked at a time.

        A claim is asked up to `ATTEMPTS` times while the server fails; then its verdict is None with the reason.
        Raises `JudgeDown`, after the verdicts before it are yielded, when `GIVE_UP_AFTER` claims in a row got no reply
        or the server refuses the key or the model.
        """
        failures = 0
        with ThreadPoolExecutor(PARALLEL) as pool:
            for start in range(0, len(claims), PARALLEL):
                for job in [pool.submit(self._ask, claim) for claim in claims[start : start + PARALLEL]]:
                    try:
                        verdict, failures = job.result(), 0
                    except _NoReply as error:
                        verdict, failures = Verdict(None, str(error)), failures + 1
                    yield verdict
                    if failures >= GIVE_UP_AFTER:
                        raise JudgeDown(verdict.reason)

    def _ask(self, claim: Claim) -> Verdict:
        """Return the verdict on a claim. Raises `JudgeDown` at once, `_NoReply` after `ATTEMPTS`."""
        response = self._attempts(
            self._post,
            {
                "model": self.name,
                "messages": [{"role": "user", "content": build_prompt(claim)}],
                "temperature": 0,
                "max_tokens": MAX_REPLY_TOKENS,
            },
        )
        if response.is_error:
            # Some servers repeat the key that they refuse; what is returned goes into metrics.json and the report.
            words = " ".join(_error_message(response).split())[:200]
            return Verdict(None, f"The judge failed ({words.replace(self._key, '(the key)') if self._key else words}).")
        label = read_reply(response.text)
        return Verdict(label, "" if label else NONSENSE)

    def _post(self, payload: dict[str, Any]) -> httpx.Response:
        try:
            response = self._http.post("/v1/chat/completions", json=payload)
        except httpx.TimeoutException as error:
            raise _NoReply("The judge does not answer: try again or restart it.") from error
        except httpx.RequestError as error:
            raise _NoReply(f"No connection to the judge ({type(error).__name__}): check that it runs.") from error
        status = response.status_code
        if status in (401, 403):
            raise JudgeDown(f"The judge refused the API key (HTTP {status}): set {KEY_VARIABLE} to the right key.")
        if status == 404:
            raise JudgeDown("The judge does not know the address or the model: check --judge and --judge-model.")
        if status in (408, 409, 425, 429) or status >= 500:
            asked = response.headers.get("Retry-After", "")
            seconds = min(float(asked), LONGEST_WAIT_S) if asked.isdecimal() else 0.0
            raise _NoReply(f"The judge answered HTTP {status}: try again later.", seconds)
        return response


def load_judge(url: str, model: str) -> ServerJudge:
    """Return the judge at an address; its key is the environment variable JUDGE_API_KEY.

    It is asked one question here, so that a wrong address, key or model is found before hours of work. Raises
    `UserError` without a model, or when the judge cannot be had.
    """
    if not model:
        raise UserError("--judge needs the name of the model it serves: add --judge-model NAME.")
    judge = ServerJudge(url, model, os.environ.get(KEY_VARIABLE))
    judge.check()
    return judge


def build_prompt(claim: Claim) -> str:
    """Return the prompt: the claim's texts as data that cannot end the tags around them.

    Each text passes through `clean_text` (no control tokens of chat templates, no invisible characters); then
    &, < and > become entities, in any width. All three are put in at once, so `$statement` inside an answer stays text.
    """
    return TEMPLATE.substitute({name: clean_text(text).translate(_ESCAPES) for name, text in vars(claim).items()})


def read_reply(text: str) -> str | None:
    """Return the label in a chat completion, or None when it is not exactly `{"verdict": one of LABELS}`.

    White space and one Markdown code fence around the object are let pass: many models add it unasked.
    """
    try:
        content = json.loads(text)["choices"][0]["message"]["content"].strip()
        if content.startswith("```") and content.endswith("```"):
            content = content.removeprefix("```").removesuffix("```").removeprefix("json")
        verdict = json.loads(content, object_pairs_hook=tuple)  # pairs, not a dict: two verdicts are none
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError):
        return None
    return next((label for label in LABELS if verdict == (("verdict", label),)), None)


def _error_message(response: httpx.Response) -> str:
    try:
        error = response.json()["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, LookupError, TypeError):
        return f"HTTP {response.status_code} {response.reason_phrase}"


def _server_root(url: str) -> str:
    """Return the address without the `/v1` that many documents give with it."""
    try:
        parsed = httpx.URL(url.strip())
    except httpx.InvalidURL as error:
        raise UserError(f"--judge is not an address ({error}): give http://HOST:PORT.") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UserError("--judge must begin with http:// or https:// and name a host: give http://HOST:PORT.")
    if parsed.userinfo or parsed.query:
        raise UserError(f"--judge must hold no password and no query: put the key into {KEY_VARIABLE}.")
    return str(parsed).rstrip("/").removesuffix("/chat/completions").removesuffix("/v1")
