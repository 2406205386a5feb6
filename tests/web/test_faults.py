"""What goes wrong around the app, really made to go wrong: the engine, the disk, a client's connection, the clock.

Elsewhere: the Hub and its cache at the start (web/test_startup), failures of single requests to the Hub
(hub/test_errors), a dead child process (engines/test_llama_cpp), the end on SIGTERM (web/test_server, test_app), a
cancelled job and the death of the engine behind the API (test_app), a closed tab (web/test_browser), a full disk and a
kill while training (training/test_resume), a clock that jumps back for a client's limits (web/test_limits).
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import re
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from medical_assistant.chat.assistant import Assistant, Reply
from medical_assistant.chat.question import prepare
from medical_assistant.engines.base import Engine, Options
from medical_assistant.engines.llama_cpp import LlamaCppEngine
from medical_assistant.models.presets import find_preset
from medical_assistant.web import requests
from medical_assistant.web.requests import RequestTracker
from tests.support.hub_server import HubServer, read_folder
from tests.support.paths import ROOT
from tests.support.served_app import LOCAL, ServedApp, request, wait_until
from tests.support.stub_engine import endless

NAME = "alice/adapter"
MODEL = "smollm2-135m"


# An engine that hangs, is killed, or throws


@pytest.fixture(scope="module")
def engine() -> Iterator[LlamaCppEngine]:
    """The embedded model. Its process counts as hung after 2 x 1 s without a response."""
    pytest.importorskip("xllamacpp")
    path = find_preset(MODEL).embedded_gguf()
    if path is None:
        pytest.skip("the embedded model is not installed")
    engine = LlamaCppEngine(path, model=MODEL, threads=1, probe_s=1.0)
    yield engine
    engine.close()


QUESTION = "Tell me all about vitamins"
LONG = Options(max_new_tokens=1000, temperature=1.5)  # hot: it does not end early


def answer(engine: Engine, options: Options | None = None) -> Iterator[Reply]:
    return Assistant(engine).answer(prepare(QUESTION), "Base", options or Options())


def ask_until(engine: Engine, harm: Callable[[], None], after: int = 3) -> Reply:
    """Return the last reply of an answer that `harm` meets once there are `after` updates with text."""
    texts = 0
    for reply in answer(engine, LONG):
        texts += bool(reply.text)
        if texts == after:
            harm()
    return reply


@pytest.mark.parametrize(
    ("sent", "words"), [(signal.SIGSTOP, "stopped responding"), (signal.SIGKILL, "killed, perhaps out of memory")]
)
def test_an_engine_that_hangs_or_is_killed_is_said_and_answers_the_next_message(
    engine: LlamaCppEngine, sent: signal.Signals, words: str
) -> None:
    hit: list[int] = []

    def harm() -> None:
        hit.append(engine.child_pid())  # now: a busy machine may have had it restarted before
        os.kill(hit[0], sent)

    reply = ask_until(engine, harm)
    child, restarts = hit[0], engine.restarts
    assert reply.failed and reply.text and words in reply.notes[-1] and "restarting: ask again" in reply.notes[-1]
    with pytest.raises(ProcessLookupError):  # not left behind, stopped
        os.kill(child, 0)
    replies = list(answer(engine, Options(max_new_tokens=8)))
    assert replies[-1].text and not replies[-1].failed
    assert engine.restarts >= max(1, restarts) and engine.child_pid() != child


@pytest.mark.slow
def test_an_engine_that_hangs_while_nobody_asks_is_restarted_unseen(engine: LlamaCppEngine) -> None:
    list(answer(engine, Options(max_new_tokens=8)))  # it runs, whatever came before
    child = engine._child.process
    os.kill(child.pid, signal.SIGSTOP)
    child.wait(20)
    replies = list(answer(engine, Options(max_new_tokens=8)))
    assert replies[-1].text and not replies[-1].failed


def test_a_stopped_engine_does_not_hold_up_the_end(engine: LlamaCppEngine) -> None:
    child = engine.child_pid()
    os.kill(child, signal.SIGSTOP)
    engine._child.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


@pytest.fixture
def silent_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LlamaCppEngine]:
    """One whose process gives signs of life and computes nothing after an answer's first word; it has 0.5 s."""
    monkeypatch.setattr("medical_assistant.engines.child_process.MODULE", "tests.support.silent_child")
    (tmp_path / "model.gguf").touch()
    engine = LlamaCppEngine(tmp_path / "model.gguf", silence_s=0.5)
    yield engine
    engine.close()


def test_an_engine_that_computes_nothing_any_more_is_restarted(silent_engine: LlamaCppEngine) -> None:
    child = silent_engine.child_pid()
    for _ in range(2):
        reply = list(answer(silent_engine))[-1]
        assert reply.failed and reply.text == "Half" and "stopped responding" in reply.notes[-1]
    assert silent_engine.restarts == 1 and silent_engine.child_pid() != child


def test_an_answer_that_waits_behind_others_does_not_end_them(silent_engine: LlamaCppEngine) -> None:
    others = silent_engine.stream([{"role": "user", "content": "Go on"}], Options(adapter=False))
    ended = threading.Event()

    def read() -> None:
        while not ended.is_set():
            next(others)

    reader = threading.Thread(target=read)
    reader.start()
    reply = list(answer(silent_engine))[-1]
    assert reply.failed and "busy with other answers: ask again in a minute" in reply.notes[-1]
    ended.set()
    reader.join(5)
    assert next(others).text == "Half" and silent_engine.restarts == 0
    others.close()


# A full disk: a file system of 96 KiB of the test's own, which ends with the command


def on_small_disk(place: Path, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `script` (sh) with `arguments` where `place` is a file system of 96 KiB; `$PYTHON` is this interpreter."""
    place.mkdir(exist_ok=True)
    mount = 'mount -t tmpfs -o size=96k small "$PLACE" || exit 77'
    result = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", f"{mount}\n{script}", "sh", *arguments],
        cwd=ROOT,
        env={**os.environ, "PLACE": str(place), "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )
    if result.returncode == 77:
        pytest.skip("this machine lets nobody mount a file system")
    return result


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    if shutil.which("unshare") is None or subprocess.run(["unshare", "--user", "--mount", "true"]).returncode:
        pytest.skip("this machine lets nobody mount a file system")
    return tmp_path / "small"


PULL = """
import sys
from medical_assistant.errors import run_script
from medical_assistant.hub.pull import pull_adapter
run_script(lambda argv: print(pull_adapter(argv[0])[1]))
"""


def test_an_adapter_that_does_not_fit_on_the_disk(hub_server: HubServer, toy_adapter: Path, small_disk: Path) -> None:
    repository = hub_server.add_repository(NAME, {**read_folder(toy_adapter), "loss.png": os.urandom(300_000)})
    script = """
        "$PYTHON" -W ignore -c "$1" "$2"; echo status $?
        mount -o remount,size=2m "$PLACE"
        "$PYTHON" -c "$1" "$2"; echo status $?
        find "$PLACE" -name "*.incomplete"
    """
    result = on_small_disk(small_disk, script, PULL, NAME, HF_HOME=str(small_disk / "home"))
    commit = repository.find("main")
    assert result.stdout.splitlines() == ["status 2", commit, "status 0"], result.stderr
    assert result.stderr.startswith(f"error: The disk is full, {NAME} does not fit: free space, or set HF_HOME")
    assert result.stderr.count("\n") == 1


def test_prepared_data_that_do_not_fit(small_disk: Path, tmp_path: Path) -> None:
    answers = (" ".join(f"word{i}x{j}" for j in range(60)) for i in range(120))
    rows = [{"input": f"What is disease {i} called {i * 7919}?", "output": text} for i, text in enumerate(answers)]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    script = '"$PYTHON" data_prep.py --source "$1" --validation-size 20 --output "$PLACE/data"; echo $?; ls -A "$PLACE"'
    result = on_small_disk(small_disk, script, str(source))
    assert result.stdout == "2\n" and result.stderr.startswith("error: The disk")
    assert result.stderr.count("\n") == 1 and "make room, then run the same command again." in result.stderr


RESULTS = """
import sys
from pathlib import Path
from medical_assistant.errors import run_script
from medical_assistant.evaluation.results import write_results
from medical_assistant.files import write_whole
folder, large = Path(sys.argv[1]), {"text": "x" * 200_000}
for call in (
    lambda argv: write_results(folder, large, []),
    lambda argv: write_results(folder, {"new": 1}, [large]),
    lambda argv: write_whole(folder / "report.html", large["text"]),
):
    try:
        run_script(call)
    except SystemExit as ended:
        print("status", ended.code)
"""


def test_results_that_do_not_fit_leave_the_earlier_ones(small_disk: Path) -> None:
    script = """
        for name in metrics.json predictions.jsonl report.html; do echo old > "$PLACE/$name"; done
        "$PYTHON" -c "$1" "$PLACE"
        ls -A "$PLACE"
        cat "$PLACE/predictions.jsonl" "$PLACE/report.html"
    """
    result = on_small_disk(small_disk, script, RESULTS)
    lines = ["status 2"] * 3 + ["metrics.json", "predictions.jsonl", "report.html", "old", "old"]
    assert result.stdout.splitlines() == lines, result.stderr
    assert result.stderr.count("\n") == 3 and result.stderr.count("error: ") == 3


# A client on a cut connection, and clocks that jump: behind the real page


@pytest.fixture
def endless_app(served_app: ServedApp) -> ServedApp:
    """The served app around an engine whose answers have no end."""
    served_app.engine.script, served_app.engine.delay_s = endless, 0.01
    return served_app


@functools.cache
def question_data(url: str) -> list[str]:
    """Return the values of a question for the endpoint, those that it does not name at their defaults."""
    given = {"message": QUESTION, "model": "Base"}
    parameters = request("GET", f"{url}/gradio_api/info").json()["named_endpoints"]["/chat"]["parameters"]
    return [given.get(entry["parameter_name"], entry["parameter_default"]) for entry in parameters]


def ask_by_queue(url: str) -> str:
    """Ask as the page and gradio_client do; return the path of the stream."""
    named = {entry.get("api_name"): entry["id"] for entry in request("GET", f"{url}/config").json()["dependencies"]}
    session = secrets.token_hex(8)
    question = {"data": question_data(url), "fn_index": named["chat"], "session_hash": session}
    request("POST", f"{url}/gradio_api/queue/join", json=question).raise_for_status()
    return f"/gradio_api/queue/data?session_hash={session}"


def ask_by_call(url: str) -> str:
    """Ask as curl does; return the path of the stream."""
    asked = request("POST", f"{url}/gradio_api/call/chat", json={"data": question_data(url)})
    return f"/gradio_api/call/chat/{asked.json()['event_id']}"


def listen(url: str, path: str, updates: int) -> socket.socket:
    """Return a connection that has got that many `updates` of an answer."""
    connection = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=20)
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    got = b""
    while got.count(b"word") < updates:
        piece = connection.recv(65536)
        assert piece, got
        got += piece
    return connection


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("ask", [ask_by_queue, ask_by_call])
def test_a_cut_connection_frees_the_engine(endless_app: ServedApp, ask: Callable[[str], str], reset: bool) -> None:
    engine, tracker = endless_app.engine, endless_app.tracker
    connection = listen(endless_app.url, ask(endless_app.url), updates=5)
    assert (engine.running, tracker.running) == (1, 1)
    if reset:  # as a router that has forgotten the connection: no goodbye
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    wait_until(lambda: (engine.running, tracker.running) == (0, 0))
    assert engine.closed == 1


def test_who_is_cut_off_while_waiting_is_not_answered(endless_app: ServedApp, monkeypatch: pytest.MonkeyPatch) -> None:
    assert requests.WAIT_UPDATE_S <= 1  # a client that has left is noticed at the next update
    monkeypatch.setattr(requests, "WAIT_UPDATE_S", 0.05)
    queue, url = endless_app.tracker.queue, endless_app.url
    with contextlib.ExitStack() as connections:
        for _ in range(queue.slots):
            connections.enter_context(listen(url, ask_by_call(url), updates=2))
        with listen(url, ask_by_call(url), updates=0):
            wait_until(lambda: queue.waiting == 1)
        wait_until(lambda: queue.waiting == 0)
    wait_until(lambda: endless_app.engine.running == 0)
    assert len(endless_app.engine.requests) == queue.slots


def test_clocks_that_jump_change_nothing(served_app: ServedApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the day jumps by hours to and fro, at every look at it, for Gradio and the server too."""
    engine, tracker = served_app.engine, served_app.tracker
    jumps, real = itertools.cycle([-40_000.0, 3.0, 90_000.0, -7.0]), time.time
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    engine.script = lambda messages, options: (f"word{number} " for number in range(100))
    before_s = first_text_s(tracker)
    for ask in (ask_by_queue, ask_by_call):
        with httpx.stream("GET", served_app.url + ask(served_app.url), timeout=100, **LOCAL) as stream:
            assert " ".join(f"word{number}" for number in range(100)) in "".join(stream.iter_text())
    assert request("GET", f"{served_app.url}/healthz").json() == {"status": "ready"}
    assert 0 <= first_text_s(tracker) - before_s < 1000  # no hours
    assert engine.finished == 2 and tracker.running == 0


def first_text_s(tracker: RequestTracker) -> float:
    return float(tracker.metrics.text().split("first_text_seconds_sum ")[1].split()[0])


def test_no_duration_is_measured_with_the_clock_of_the_day() -> None:
    """time.time() and datetime jump when the clock is set; time.monotonic() and perf_counter() do not."""
    files = [*ROOT.glob("*.py"), *(ROOT / "medical_assistant").rglob("*.py")]
    found = [
        f"{path.name}:{number}"
        for path in files
        if path.name not in ("login.py", "limits.py")  # a token ends at a time of day; a package keeps times of day
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(r"\btime\.time(_ns)?\(|\bdatetime\.(now|utcnow|today)\(", line)
    ]
    assert found == []
