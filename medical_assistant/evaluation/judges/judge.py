"""Who decides whether an answer contains a statement: the form of a judge, and a judge behind a server.

A judge takes claims (question, answer, statement) and says of each "entailed", "contradicted" or "neither".
`ServerJudge` asks a language model behind any OpenAI-compatible server (vLLM, llama-server, a hosted one), one
statement a request, at temperature 0. `entailment.NliJudge` is a local model of natural language inference.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import string
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx

from medical_assistant.engines.openai_client import ConnectionLost, OpenAIClient
from medical_assistant.errors import EngineError, UserError
from medical_assistant.models.presets import ASSETS
from medical_assistant.prompts import clean_text

PROMPT_FILE = ASSETS / "evaluation" / "judge_prompt.txt"
LABELS = ("entailed", "contradicted", "neither")
KEY_VARIABLE = "JUDGE_API_KEY"
ATTEMPTS = 4  # with waits of about 1, 2 and 4 s between them, where the server failed
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 60.0
READ_TIMEOUT_S = 120.0
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


class Judge(Protocol):
    """Anything that gives verdicts. `kind` is "nli" or "server"; `name` is a model's, never a path or an address."""

    kind: str
    name: str
    revision: str | None  # commit of a model of the Hub
    prompt_sha256: str | None  # hash of the prompt template; None for a model that takes no prompt

    def verdicts(self, claims: Sequence[Claim]) -> Generator[tuple[int, Verdict], None, None]:
        """Yield (index of the claim, verdict) as they come, in any order, one for each claim."""
        ...


def load_judge(server: str | None, server_model: str | None, nli_model: str | None) -> Judge | None:
    """Return the judge that the command line names, or None when it names none.

    `server` is the address of an OpenAI-compatible server and `server_model` the model it serves; its key is the
    environment variable JUDGE_API_KEY. `nli_model` is a folder, `user/name` or `user/name@revision` of the Hub. A
    server is asked one question here, so that a wrong address, key or model is found before hours of work.

    Raises `UserError` when both are given, a server without a model, or when the judge cannot be had.
    """
    if server and nli_model:
        raise UserError("Give either --judge or --nli: statements have one judge.")
    if server:
        if not server_model:
            raise UserError("--judge needs the name of the model it serves: add --judge-model NAME.")
        judge = ServerJudge(server, server_model, os.environ.get(KEY_VARIABLE))
        judge.check()
        return judge
    if nli_model:
        from medical_assistant.evaluation.judges.entailment import NliJudge

        name, _, revision = (nli_model, "", "") if Path(nli_model).exists() else nli_model.partition("@")
        return NliJudge(name, revision=revision or None)
    return None


class ServerJudge:
    """A language model behind an OpenAI-compatible server."""

    kind = "server"
    revision: str | None = None

    def __init__(
        self,
        url: str,
        model: str,
        api_key: str | None = None,
        *,
        prompt_file: Path = PROMPT_FILE,
        parallel: int = 4,
        read_timeout_s: float = READ_TIMEOUT_S,
        sleep: Callable[[float], None] = time.sleep,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Raises `UserError` for an address that is not http(s), one with a password in it, a key that no header can
        carry, or a broken template."""
        if api_key and not (api_key.isascii() and api_key.isprintable()):
            raise UserError(f"{KEY_VARIABLE} has a character that no key has, perhaps the end of a line: set it again.")
        self.name = model
        self._key = api_key or None
        self._template = read_template(prompt_file)
        self.prompt_sha256: str | None = hashlib.sha256(self._template.template.encode()).hexdigest()
        root = _server_root(url)
        self._client = _JudgeClient(root, self._key, read_timeout_s=read_timeout_s, transport=transport)
        self._parallel = parallel
        self._sleep = sleep

    def close(self) -> None:
        self._client.close()

    def check(self) -> None:
        """Ask one question. Raises `UserError` when no answer comes; a reply in the wrong form passes here."""
        verdict, outcome = self._ask(Claim("Is ice cold?", "Ice is cold.", "Ice is cold."), threading.Event())
        if verdict.label is None and outcome != "nonsense":
            raise JudgeDown(verdict.reason)

    def verdicts(self, claims: Sequence[Claim]) -> Generator[tuple[int, Verdict], None, None]:
        """Yield (index of the claim, verdict) as they come, one for each claim.

        A claim is asked up to `ATTEMPTS` times while the server fails or the reply is not the JSON asked for; then
        its verdict is None with the reason. Raises `JudgeDown`, after all verdicts at hand are yielded, when
        `GIVE_UP_AFTER` claims in a row got no reply or the server refuses the key or the model.
        """
        watch = _Watch()
        with ThreadPoolExecutor(self._parallel) as pool:
            jobs = {pool.submit(self._judge, claim, watch): index for index, claim in enumerate(claims)}
            try:
                for job in as_completed(jobs):
                    verdict, outcome = job.result()
                    if outcome != "skipped":
                        yield jobs[job], verdict
            finally:
                watch.stop.set()
                pool.shutdown(cancel_futures=True)
        if watch.reason:
            raise JudgeDown(watch.reason)

    def _judge(self, claim: Claim, watch: _Watch) -> tuple[Verdict, str]:
        verdict, outcome = self._ask(claim, watch.stop)
        watch.note(verdict, outcome)
        return verdict, outcome

    def _ask(self, claim: Claim, stop: threading.Event) -> tuple[Verdict, str]:
        """Return the verdict and its outcome: "verdict", "nonsense", "failed", "lost", "refused" or "skipped"."""
        payload = {
            "model": self.name,
            "messages": [{"role": "user", "content": build_prompt(self._template, claim)}],
            "temperature": 0,
            "max_tokens": MAX_REPLY_TOKENS,
        }
        verdict, outcome, wait_s = Verdict(None), "skipped", 0.0
        for attempt in range(ATTEMPTS):
            if wait_s:
                self._sleep(wait_s)
            if stop.is_set():
                return verdict, "skipped"
            wait_s = 0.0
            try:
                label = read_reply(self._client.request("POST", "/v1/chat/completions", payload))
                if label:
                    return Verdict(label), "verdict"
                verdict, outcome = Verdict(None, NONSENSE), "nonsense"
            except JudgeDown as error:
                return Verdict(None, str(error)), "refused"
            except (ConnectionLost, _Busy) as error:
                verdict, outcome = Verdict(None, str(error)), "lost"
                wait_s = FIRST_WAIT_S * 2**attempt * random.uniform(0.75, 1.25)  # clients must not return together
                wait_s = max(wait_s, min(getattr(error, "retry_after_s", 0.0), LONGEST_WAIT_S))
            except UserError as error:  # the server's own words: the claim is too long, an option is unknown
                verdict, outcome = Verdict(None, self._without_key(str(error))), "failed"
        return verdict, outcome

    def _without_key(self, text: str) -> str:
        """Some servers repeat the key that they refuse; what is returned goes into metrics.json and the report."""
        return text.replace(self._key, "(the key)") if self._key else text


def read_template(path: Path) -> string.Template:
    """Return the prompt template. Raises `UserError` when it lacks `$question`, `$answer` or `$statement`, or has more.

    A literal dollar sign is written `$$`.
    """
    try:
        template = string.Template(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The judge's prompt {path} cannot be read ({error}): check the file.") from error
    matches = list(template.pattern.finditer(template.template))
    found = {match["named"] or match["braced"] for match in matches if match["escaped"] is None}
    if found != {"question", "answer", "statement"}:  # a stray dollar sign is found as None
        raise UserError(f"{path} must hold $question, $answer and $statement and no other $: mend the template.")
    return template


def build_prompt(template: string.Template, claim: Claim) -> str:
    """Return the prompt: the claim's texts as data that cannot end the tags around them.

    Each text passes through `clean_text` (no control tokens of chat templates, no invisible characters); then
    &, < and > become entities. All three are put in at once, so `$statement` inside an answer stays text.
    """
    return template.substitute({name: escape(getattr(claim, name)) for name in ("question", "answer", "statement")})


def escape(text: str) -> str:
    """Return `text` without the characters < and >, in any width, and with & as &amp;."""
    return clean_text(text).translate(_ESCAPES)


def read_reply(reply: dict[str, Any]) -> str | None:
    """Return the label in a chat completion, or None when it is not exactly `{"verdict": one of LABELS}`.

    White space and one Markdown code fence around the object are let pass: many models add it unasked.
    """
    try:
        content = reply["choices"][0]["message"]["content"].strip()
        if content.startswith("```") and content.endswith("```"):
            content = content.removeprefix("```").removesuffix("```").removeprefix("json")
        verdict = json.loads(content, object_pairs_hook=tuple)  # pairs, not a dict: two verdicts are none
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, RecursionError):
        return None
    return next((label for label in LABELS if verdict == (("verdict", label),)), None)


class _Watch:
    """Notices, over all threads of one call, that the judge is gone."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.reason = ""
        self._lock = threading.Lock()
        self._lost_in_a_row = 0

    def note(self, verdict: Verdict, outcome: str) -> None:
        with self._lock:
            self._lost_in_a_row = self._lost_in_a_row + 1 if outcome == "lost" else 0
            if outcome == "refused" or self._lost_in_a_row >= GIVE_UP_AFTER:
                self.reason = self.reason or verdict.reason
                self.stop.set()


class _Busy(EngineError):
    """A failure of the server that may pass by itself."""

    def __init__(self, status: int, retry_after_s: float) -> None:
        super().__init__(f"The judge answered HTTP {status}: try again later.")
        self.retry_after_s = retry_after_s


class _JudgeClient(OpenAIClient):
    """The chat client, which here must tell a passing failure from a lasting one and obey `Retry-After`."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._http.event_hooks = {"response": [_check_status]}


def _check_status(response: httpx.Response) -> None:
    status = response.status_code
    if status in (401, 403):
        raise JudgeDown(f"The judge refused the API key (HTTP {status}): set {KEY_VARIABLE} to the right key.")
    if status == 404:
        raise JudgeDown("The judge does not know the address or the model: check --judge and --judge-model.")
    if status in (408, 409, 425, 429) or status >= 500:
        asked = response.headers.get("Retry-After", "")
        raise _Busy(status, float(asked) if asked.isdecimal() else 0.0)


def _server_root(url: str) -> str:
    """Return the address without the `/v1` that many documents give with it."""
    try:
        parsed = httpx.URL(url.strip())
    except (httpx.InvalidURL, TypeError) as error:
        raise UserError(f"--judge is not an address ({error}): give http://HOST:PORT.") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UserError("--judge must begin with http:// or https:// and name a host: give http://HOST:PORT.")
    if parsed.userinfo or parsed.query:
        raise UserError(f"--judge must hold no password and no query: put the key into {KEY_VARIABLE}.")
    return str(parsed).rstrip("/").removesuffix("/chat/completions").removesuffix("/v1")
