"""Security headers, closed paths, health, metrics and the end of the process."""

from __future__ import annotations

import base64
import hashlib
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("gradio")
import gradio as gr
from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse
from fastapi.testclient import TestClient
from gradio.state_holder import StateHolder

from medical_assistant.chat.assistant import Assistant
from medical_assistant.chat.question import prepare
from medical_assistant.engines.base import Options
from medical_assistant.errors import EngineError
from medical_assistant.web import middleware, server
from medical_assistant.web.limits import ClientLimits
from medical_assistant.web.requests import RequestTracker
from tests.support.paths import ROOT
from tests.support.served_app import request
from tests.support.stub_engine import StubEngine, endless

PAGE = (
    "<script>window.a = 1;</script><script type='module' src='./assets/x.js'></script><SCRIPT data-x>\nb()\n</SCRIPT >"
)


def small_app(engine=None, tracker=None, **options):
    """An app that stands for Gradio's: it adds its middleware after the constructor, as Gradio does."""
    app = FastAPI(**server.app_kwargs(engine or StubEngine(), tracker or RequestTracker(ClientLimits()), **options))
    app.state_holder = StateHolder()
    app.state_holder.set_blocks(gr.Blocks())
    app.add_middleware(CORSMiddleware, allow_origins=["*"], allow_methods=["*"])

    @app.get("/")
    def page():
        return HTMLResponse(PAGE)

    @app.get("/config")
    def fails():
        raise ZeroDivisionError

    @app.post("/gradio_api/queue/join")
    async def length(request: Request):
        return len(await request.body())

    @app.api_route("/{path:path}", methods=["GET", "POST", "HEAD"])
    def anything(path: str):
        return "not closed"

    return app


@pytest.fixture(scope="module")
def client():
    with TestClient(small_app(), raise_server_exceptions=False) as client:
        yield client


# Headers


def directives(response):
    parts = (part.split() for part in response.headers["content-security-policy"].split(";"))
    return {name: values for name, *values in parts}


def test_every_response_has_the_security_headers(client):
    preflight = {"origin": "https://outside.example", "access-control-request-method": "POST"}
    responses = {
        "page": (client.get("/"), 200),
        "head": (client.head("/assets/x.js"), 200),
        "error": (client.get("/config"), 500),
        "closed": (client.get("/gradio_api/file=app.py"), 404),
        "large": (client.post("/gradio_api/queue/join", content=b"x" * 1_100_000), 413),
        "method": (client.delete("/gradio_api/queue/join"), 405),
        "preflight": (client.options("/gradio_api/queue/join", headers=preflight), 200),
        "health": (client.get("/healthz"), 200),
    }
    for name, (response, status) in responses.items():
        assert response.status_code == status, name
        assert response.headers["x-content-type-options"] == "nosniff", name
        assert response.headers["referrer-policy"] == "no-referrer", name
        assert response.headers["cross-origin-opener-policy"] == "same-origin", name
        assert "microphone=()" in response.headers["permissions-policy"], name
        assert directives(response)["default-src"] == ["'self'"], name


def test_the_policy_lets_no_outside_host_in_and_a_space_frame_the_page(client):
    policy = directives(client.get("/"))
    assert policy.pop("frame-ancestors") == ["'self'", "https://huggingface.co", "https://*.hf.space"]
    assert policy["object-src"] == policy["frame-src"] == ["'none'"]
    assert policy["base-uri"] == policy["form-action"] == policy["connect-src"] == ["'self'"]
    for name, values in policy.items():
        assert all(re.fullmatch(r"'[\w/+=-]+'|data:|blob:", value) for value in values), name
    assert "'unsafe-inline'" not in policy["script-src"]


def test_the_pages_own_inline_scripts_may_run_and_no_others(client):
    response = client.get("/")
    assert response.text == PAGE
    expected = {
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in ("window.a = 1;", "\nb()\n")
    }
    assert {value for value in directives(response)["script-src"] if value.startswith("'sha256")} == expected
    assert "sha256" not in client.get("/static/x").headers["content-security-policy"]


def test_a_browser_hashes_with_plain_line_ends():
    unix, windows = (
        middleware.content_security_policy(page) for page in (b"<script>a\nb</script>", b"<script>a\r\nb</script>")
    )
    assert unix == windows and "sha256" in unix


# Paths

CLOSED = """
/gradio_api/upload /gradio_api/upload/ /gradio_api/upload_progress?upload_id=1 /upload
/gradio_api/file=/etc/passwd /gradio_api/file=app.py /gradio_api/file/app.py /file=app.py /file/app.py
/gradio_api/file=..%2f..%2fetc/passwd /gradio_api/file%3d/etc/passwd /gradio_api/%66ile=app.py
/static/..%2fapp.py /static/%2e%2e/%2e%2e/app.py /static/..%5c..%5capp.py /assets/..%2f..%2f..%2froutes.py
/assets/%252e%252e/app.py /static/%00app.py //gradio_api/file=app.py /gradio_api/call/..%2ffile=app.py
/gradio_api/proxy=https://outside.example /gradio_api/deep_link?session_hash=a /gradio_api/component_server
/gradio_api/stream/a/b/c/playlist.m3u8 /gradio_api/custom_component/a/client/b/c.js /gradio_api/process_recording
/gradio_api/run-history/records /gradio_api/vibe-edit /monitoring /monitoring/summary /pwa_icon/100000
/login /app.py /.env /docs /openapi.json
""".split()


@pytest.mark.parametrize("path", CLOSED)
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
def test_uploads_files_and_what_the_page_does_not_need_are_404(client, method, path):
    response = client.request(method, path)
    assert response.status_code == 404 and "not closed" not in response.text


@pytest.mark.parametrize(
    "path",
    "/ /?__theme=dark /healthz /theme.css /manifest.json /favicon.ico /robots.txt /assets/index-DphvyggB.js "
    "/static/js/iframeResizer.contentWindow.min.js /static/img/api-logo.svg /gradio_api/info?all_endpoints=true "
    "/gradio_api/startup-events /gradio_api/heartbeat/abc /gradio_api/queue/data?session_hash=a /gradio_api/app_id "
    "/gradio_api/call/chat/abc".split(),
)
def test_what_the_page_and_programs_need_is_open(client, path):
    assert client.get(path).status_code == 200


def test_a_root_path_is_not_part_of_the_path():
    with TestClient(small_app(), root_path="/app") as client:
        assert client.get("/app/healthz").status_code == client.get("/healthz").status_code == 200
        assert client.get("/app/gradio_api/file=x").status_code == client.get("/application").status_code == 404


@given(
    st.sampled_from(["/static/", "/assets/", "/gradio_api/call/"]),
    st.text(),
    st.sampled_from(["..", "\\", "%"]),
    st.text(),
)
def test_nothing_climbs_out_of_an_open_folder(folder, before, climb, after):
    assert not middleware.is_open(f"{folder}{before}{climb}{after}")


@given(st.text())
def test_paths_outside_the_list_are_closed(path):
    assert not middleware.is_open(f"/gradio_api/file={path}") and not middleware.is_open(f"/gradio_api/upload{path}")


# Bodies


@pytest.mark.parametrize(("size", "status"), [(0, 200), (1, 200), (1_000_000, 200), (1_000_001, 413), (5_000_000, 413)])
@pytest.mark.parametrize("chunked", [False, True])
def test_large_bodies_are_refused_and_others_arrive_whole(client, size, status, chunked):
    parts = (b"x" * min(10_000, size - start) for start in range(0, size, 10_000))
    response = client.post("/gradio_api/queue/join", content=parts if chunked else b"x" * size)
    assert response.status_code == status
    assert response.json() == size if status == 200 else "1000 kB" in response.text


def test_a_wrong_length_is_no_error_of_the_server(client):
    for length in ("9" * 5_000, "999999999999999999999"):
        assert client.post("/gradio_api/queue/join", headers={"content-length": length}).status_code == 413


# Health


def health(engine, tracker=None, clock=time.monotonic, times=1):
    """The (status, body) of `times` requests."""
    checks = server.Health(engine, tracker or RequestTracker(ClientLimits()), clock)
    app = FastAPI()
    app.add_route("/healthz", checks.respond)
    client = TestClient(app)
    responses = [client.get("/healthz") for _ in range(times)]
    assert all(response.headers["cache-control"] == "no-store" for response in responses)
    return [(response.status_code, response.json()) for response in responses]


class Engine(StubEngine):
    """Counts how often it is asked to count; `act` may wait or raise."""

    def __init__(self, act=lambda: None):
        super().__init__()
        self.act, self.asked = act, 0

    def count_tokens(self, messages):
        self.asked += 1
        self.act()
        return super().count_tokens(messages)


READY = (200, {"status": "ready"})


def test_ready_is_asked_once_in_five_seconds():
    engine = Engine()
    assert health(engine, times=5) == [READY] * 5 and engine.asked == 1
    now_s = iter(range(0, 1000, 2))
    engine = Engine()
    assert health(engine, clock=lambda: next(now_s), times=12) == [READY] * 12
    assert 3 <= engine.asked <= 12


@pytest.mark.parametrize(
    "error", [EngineError("The model process died."), ConnectionError("planted text"), ValueError()]
)
def test_a_failing_engine_is_503_without_its_words(error, caplog):
    def fail():
        raise error

    assert health(Engine(fail)) == [(503, {"status": "unavailable", "reason": "failed"})]
    assert "planted" not in caplog.text and type(error).__name__ in caplog.text


def test_an_engine_that_hangs_is_503_and_is_not_asked_again(monkeypatch):
    monkeypatch.setattr(server, "HEALTH_LIMIT_S", 0.2)
    monkeypatch.setattr(server, "HEALTH_KEPT_S", 0.1)
    released = threading.Event()
    engine = Engine(released.wait)
    try:
        assert health(engine, times=4) == [(503, {"status": "unavailable", "reason": "slow"})] * 4
        assert engine.asked == 1
    finally:
        released.set()


def test_at_the_end_health_is_503():
    tracker, engine = RequestTracker(ClientLimits()), Engine()
    tracker.ending = True
    assert health(engine, tracker) == [(503, {"status": "unavailable", "reason": "ending"})]
    assert engine.asked == 0


# Metrics


def test_metrics_are_served_only_where_they_are_switched_on():
    tracker = RequestTracker(ClientLimits())
    tracker.note("answered")
    engine = StubEngine()
    engine.restarts = 2
    with tracker.queue.join("a", slots=4), tracker.queue.join("b"), tracker.queue.join("c"):
        with TestClient(small_app(engine, tracker, metrics=True)) as client:
            response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    for line in ('requests_total{outcome="answered"} 1.0', "running 1.0", "waiting 2.0", "engine_restarts_total 2.0"):
        assert f"medical_assistant_{line}\n" in response.text
    assert [route.path for route in server.app_kwargs(engine, tracker)["routes"]] == ["/healthz"]


# Around Gradio itself


def test_gradios_page_may_run_its_scripts_and_load_what_it_names(served_app):
    response = request("GET", served_app.url)
    hashes = [value for value in directives(response)["script-src"] if value.startswith("'sha256")]
    assert len(hashes) == len(re.findall(r"<script(?![^>]*\ssrc=)", response.text)) > 0
    assert not re.search(r"<[^>]*\son\w+=", response.text)  # inline handlers would need a hash of their own
    names = set(re.findall(r'(?:src|href)="\.?(/[^"]+)"', response.text))
    names |= {"/static/js/iframeResizer.contentWindow.min.js", "/theme.css", "/favicon.ico", "/gradio_api/info"}
    assert len(names) >= 6
    for name in names:
        assert request("GET", served_app.url + name).status_code == 200, name


def test_gradio_serves_no_file_takes_no_upload_and_answers_programs(served_app):
    gradio_client = pytest.importorskip("gradio_client")
    for path in ("/gradio_api/file=/etc/passwd", "/gradio_api/file=app.py", "/static/..%2f..%2f..%2froutes.py"):
        assert request("GET", served_app.url + path).status_code == 404
    assert request("POST", f"{served_app.url}/gradio_api/upload", files={"files": b"x"}).status_code == 404
    assert request("GET", f"{served_app.url}/healthz").json() == {"status": "ready"}
    assert "requests_total" in request("GET", f"{served_app.url}/metrics").text
    asked = gradio_client.Client(served_app.url, verbose=False).submit("What is anaemia?", "Base", api_name="/chat")
    assert "base answer" in asked.result(timeout=20)


def test_no_visitor_and_no_call_has_a_copy_of_the_pages_settings(served_app):
    sessions = served_app.page.state_holder
    assert sessions["somebody"].config_values == {}
    assert sessions["somebody"].blocks_config.blocks.keys() == served_app.page.blocks.keys()
    sessions.session_data.pop("somebody")


def test_gradios_preflights_and_compressed_files_have_the_headers(served_app):
    preflight = {"origin": "https://outside.example", "access-control-request-method": "POST"}
    script = re.search(r'src="\.(/assets/[^"]+)"', request("GET", served_app.url).text)[1]
    compressed = request("GET", served_app.url + script, headers={"accept-encoding": "br, gzip"})
    assert compressed.headers["content-encoding"] in ("br", "gzip")
    for response in (request("OPTIONS", f"{served_app.url}/gradio_api/queue/join", headers=preflight), compressed):
        assert response.headers["x-content-type-options"] == "nosniff"


# The end


@pytest.fixture
def sigterm(monkeypatch):
    """A function that sends SIGTERM to this process while an engine answers, and returns the replies."""
    for module in ("server", "requests"):
        monkeypatch.setattr(f"medical_assistant.web.{module}.FLUSH_S", 0.01)
    handler = signal.getsignal(signal.SIGTERM)

    def send(engine, drain_s):
        tracker, replies = RequestTracker(), []
        server.end_on_sigterm(engine, tracker, drain_s, end_s=1e6)
        updates = tracker.watch(Assistant(engine).answer(prepare("What is asthma?"), "Base"), None)
        thread = threading.Thread(target=lambda: replies.extend(updates), daemon=True)
        thread.start()
        while not engine.running:
            time.sleep(0.01)
        with pytest.raises(SystemExit) as ended:
            signal.raise_signal(signal.SIGTERM)
        assert ended.value.code == 0 and signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        thread.join()
        return replies

    yield send
    signal.signal(signal.SIGTERM, handler)


class ClosingEngine(StubEngine):
    """Its streams end when it is closed."""

    is_closed = False

    def close(self):
        self.is_closed = True


def test_sigterm_lets_a_running_answer_end(sigterm, caplog):
    engine = ClosingEngine(lambda messages, options: ["word "] * 10, delay_s=0.02)
    replies = sigterm(engine, drain_s=100)
    assert replies[-1].text == "word " * 9 + "word" and engine.is_closed and "cut" not in caplog.text


def test_sigterm_cuts_an_answer_without_end(sigterm, caplog):
    engine = ClosingEngine(lambda messages, options: itertools.takewhile(lambda _: not engine.is_closed, words))
    words, engine.delay_s = endless([], Options()), 0.01
    replies = sigterm(engine, drain_s=0.1)
    assert replies[-1].text.startswith("word1 ") and engine.is_closed and "1 answers were cut" in caplog.text


HANGING = """
import itertools, threading, time
from medical_assistant.chat.assistant import Reply
from medical_assistant.web.server import end_on_sigterm
from medical_assistant.web.requests import RequestTracker
from tests.support.stub_engine import StubEngine

def words():
    for number in itertools.count():
        time.sleep(0.01)
        yield Reply(f"word{number}", "Base")

engine, tracker = StubEngine(), RequestTracker()
engine.close = lambda: (print("closed", flush=True), time.sleep(1e6))
end_on_sigterm(engine, tracker, drain_s=0.05, end_s=0.5)
threading.Thread(target=lambda: list(tracker.watch(words(), None)), daemon=False).start()
while not tracker.running:
    time.sleep(0.01)
print("running", flush=True)
time.sleep(1e6)
"""


def test_sigterm_ends_a_process_that_hangs():
    command, environment = [sys.executable, "-c", HANGING], {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "running\n"
            process.send_signal(signal.SIGTERM)
            assert process.communicate()[0] == "closed\n" and process.returncode == 0
        finally:
            process.kill()


# Errors of Gradio's event handlers


def test_an_error_is_logged_by_type_and_place_without_its_words(caplog, capfd, monkeypatch):
    from gradio import queueing

    monkeypatch.setattr(queueing, "traceback", queueing.traceback)
    server.keep_text_out_of_errors()
    try:
        raise ValueError("planted words")
    except ValueError:
        queueing.traceback.print_exc()
    written = capfd.readouterr()
    assert "ValueError" in caplog.text and "planted" not in caplog.text + written.out + written.err
