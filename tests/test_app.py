"""The command line and the API, through `gradio_client` as programs use it."""

from __future__ import annotations

import json
import os
import re
import resource
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager

import httpx
import pytest

from medical_assistant.chat.assistant import MODEL_WARNING
from medical_assistant.errors import AdapterError, EngineError, UserError
from medical_assistant.prompts import clean_text
from medical_assistant.safety.screening import screen
from tests.support.paths import ROOT
from tests.support.served_app import free_port, wait_until
from tests.support.stub_engine import StubEngine, endless

EMERGENCY = "I have crushing chest pain and I cannot breathe"


@pytest.fixture(scope="module")
def client(shared_app):
    return pytest.importorskip("gradio_client").Client(shared_app.url, verbose=False)


@pytest.fixture
def stub(served_app, client):
    return served_app.engine, client


def ask(client, message, model="Fine-tuned"):
    return client.submit(message, model, api_name="/chat").result(timeout=20)


def test_both_models_answer_and_differ(stub):
    engine, client = stub
    answers = {model: ask(client, "What is anaemia?", model) for model in ("Fine-tuned", "Base")}
    assert answers["Fine-tuned"] == f"{MODEL_WARNING}\n\nThis is the fine-tuned answer to: What is anaemia?"
    assert answers["Base"] == f"{MODEL_WARNING}\n\nThis is the base answer to: What is anaemia?"
    assert [options.adapter for _, options in engine.requests] == [True, False]


def test_chat_is_the_only_endpoint_and_takes_message_model_country_and_length(stub):
    api = stub[1].view_api(return_format="dict")
    assert list(api["named_endpoints"]) == ["/chat"] and api["unnamed_endpoints"] == {}
    parameters = [p["parameter_name"] for p in api["named_endpoints"]["/chat"]["parameters"]]
    assert parameters == ["message", "model", "country", "max_new_tokens"]


@pytest.mark.parametrize("length", [0, -1, 10**9])
def test_an_answer_of_impossible_length_is_a_clear_error_but_never_for_an_emergency(stub, length):
    engine, client = stub
    with pytest.raises(Exception, match="use 1 to 1024"):
        client.submit("What is anaemia?", "Base", "", length, api_name="/chat").result(timeout=20)
    emergency = client.submit(EMERGENCY, "Base", "", length, api_name="/chat").result(timeout=20)
    assert "emergency number" in emergency and engine.requests == []


def test_the_length_reaches_the_model(stub):
    engine, client = stub
    client.submit("What is anaemia?", "Base", "", 7, api_name="/chat").result(timeout=20)
    assert engine.requests[0][1].max_new_tokens == 7


def test_the_answer_streams(stub):
    engine, client = stub
    engine.script, engine.delay_s = lambda messages, options: [f"{i} " for i in range(30)], 0.02
    job = client.submit("Count", "Base", api_name="/chat")
    numbers = " ".join(str(i) for i in range(30))
    assert job.result(timeout=20) == f"{MODEL_WARNING}\n\n{numbers}"
    assert 3 <= len(job.outputs()) <= 30


@pytest.mark.parametrize("model", ["base", "Fine-Tuned", "", "GPT"])
def test_an_unknown_model_is_a_clear_error(stub, model):
    engine, client = stub
    with pytest.raises(Exception, match="use 'Library', 'Fine-tuned' or 'Base'"):
        ask(client, "What is anaemia?", model)
    assert engine.requests == []


@pytest.mark.parametrize(
    ("message", "words"), [("", "empty"), ("a" * 100_000, "100,000 characters"), ("\U0001f600", "no words")]
)
def test_bad_messages_are_clear_errors(stub, message, words):
    engine, client = stub
    with pytest.raises(Exception, match=words):
        ask(client, message)
    assert engine.requests == []


@pytest.mark.parametrize("message", [EMERGENCY, EMERGENCY + "\x00" * 50_000], ids=["plain", "too long"])
def test_an_emergency_is_answered_without_the_model(stub, message):
    engine, client = stub
    assert "emergency number" in ask(client, message)
    assert engine.requests == []


def test_a_message_is_screened_once(stub, monkeypatch):
    screened = []
    monkeypatch.setattr(
        "medical_assistant.chat.question.screen", lambda *given: screened.append(given[0]) or screen(*given)
    )
    ask(stub[1], "What is anaemia?")
    ask(stub[1], EMERGENCY)
    assert screened == ["What is anaemia?", EMERGENCY]


def test_4000_characters_of_markdown_reach_the_model_as_they_are(stub):
    engine, client = stub
    message = ("Why do *these* [things] <i>hurt? " * 200)[:4000]
    engine.context_tokens = 8192
    ask(client, message)
    assert engine.requests[0][0][-1]["content"] == clean_text(message)


def test_without_an_adapter_fine_tuned_is_an_error_and_base_answers(stub, served_app):
    engine, client = stub
    engine.info, served_app.assistant.problem = StubEngine(adapter=None).info, "Adapter x is truncated."
    with pytest.raises(Exception, match="Adapter x is truncated"):
        ask(client, "What is anaemia?")
    assert "base answer" in ask(client, "What is anaemia?", "Base")
    assert [options.adapter for _, options in engine.requests] == [False]


def test_a_dead_engine_is_an_error_after_the_text_so_far(stub):
    engine, client = stub
    died = EngineError("The model process died and is restarting: ask again.")
    engine.script = lambda messages, options: ["Half ", "an ", "answer", died]
    job = client.submit("What is anaemia?", "Base", api_name="/chat")
    with pytest.raises(Exception, match="restarting"):
        job.result(timeout=20)
    assert any("Half an answer" in output for output in job.outputs())


def test_cancelling_a_job_closes_the_engines_stream(stub):
    engine, client = stub
    engine.script, engine.delay_s = endless, 0.01
    job = client.submit("Go on", "Base", api_name="/chat")
    wait_until(lambda: job.outputs())
    job.cancel()
    wait_until(lambda: engine.running == 0)
    assert engine.closed == 1


def test_four_clients_are_answered_together(stub):
    engine, client = stub
    together = threading.Barrier(4, timeout=20)

    def script(messages, options):
        together.wait()  # breaks when they come one after the other
        yield "All four."

    engine.script = script
    jobs = [client.submit(f"Question {i}", "Base", api_name="/chat") for i in range(4)]
    assert all("All four." in job.result(timeout=30) for job in jobs)


# The command line


def run_app(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "app.py", *arguments],
        cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def test_help_names_the_settings_and_loads_no_large_library():
    command = [sys.executable, "-X", "importtime", "app.py", "--help"]
    environment = {**os.environ, "MODEL": "tinyllama-1.1b"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0
    for word in ("--model", "--adapter", "--engine", "--port", "tinyllama-1.1b", "/chat", "--library"):
        assert word in result.stdout
    shown = " ".join(result.stdout.split())
    for word in ("'shipped'", "a folder of Markdown pages", "`data_prep.py library`", "data set of the Hub", "'none'"):
        assert word in shown
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "yaml" in imported and not imported & {"torch", "transformers", "gradio", "numpy"}


def test_a_wrong_port_in_the_environment_is_one_line_and_status_2():
    result = run_app(GRADIO_SERVER_PORT="http")
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and "1 to 65535" in result.stderr


@pytest.fixture
def app(monkeypatch):
    for name in ("MODEL", "ADAPTER", "ENGINE", "LIBRARY", "GRADIO_SERVER_NAME", "GRADIO_SERVER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.delitem(sys.modules, "app", raising=False)
    import app

    return app


@pytest.mark.parametrize("port", ["http", "0", "70000", "-1", ""])
def test_a_wrong_port_is_said_before_the_model_is_loaded(app, port):
    with pytest.raises(UserError, match="1 to 65535"):
        app.main([f"--port={port}"])


def test_a_port_in_use_is_said_before_the_model_is_loaded(app):
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="give another --port"):
            app.main(["--port", str(taken.getsockname()[1])])


def test_an_unknown_model_is_said(app):
    with pytest.raises(UserError, match="Unknown model"):
        app.load_model("no-such-model", None, "auto")


def test_a_broken_adapter_falls_back_to_base_and_says_so(app, monkeypatch):
    def load(model, adapter, engine):
        if adapter:
            raise AdapterError("Adapter x is truncated: download it again.")
        return StubEngine(adapter=None)

    monkeypatch.setattr("medical_assistant.engines.load.load_engine", load)
    engine, problem = app.load_model("smollm2-135m", "x", "auto")
    assert engine.info.adapter is None and problem == "Adapter x is truncated: download it again."


def test_a_base_model_that_does_not_load_is_an_error(app, monkeypatch):
    def load(model, adapter, engine):
        raise UserError("The model is broken.")

    monkeypatch.setattr("medical_assistant.engines.load.load_engine", load)
    with pytest.raises(UserError, match="The model is broken"):
        app.load_model("smollm2-135m", "x", "auto")


def test_the_bundled_adapter_goes_with_its_own_model_only(app):
    assert app.choose_adapter(app.AppSettings()).endswith("smollm2-135m")
    assert app.choose_adapter(app.AppSettings(model="tinyllama-1.1b")) is None
    assert app.choose_adapter(app.AppSettings(adapter="none")) is None
    assert app.choose_adapter(app.AppSettings(adapter="user/name@abc")) == "user/name@abc"


def page_file(folder, name="blorptitis"):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.md").write_text(
        "---\ntitle: Blorptitis\nkind: condition\nalso_called: [blorp]\nsources:\n- publisher: P\n  title: T\n"
        "  address: https://p.example/t\nwritten: me\nchecked: you\n---\n## In short\n\nBlorptitis is rare. [1]\n",
        encoding="utf-8",
    )


def test_libraries_are_chosen_by_folder(app, tmp_path):
    assert app.AppSettings().library == "shipped" and app.load_library("none") is None
    page_file(tmp_path / "own")
    assert [page.id for page in app.load_library(str(tmp_path / "own")).pages] == ["blorptitis"]
    both = app.load_library(f"shipped,{tmp_path / 'own'}")
    assert len(both.pages) > 100 and both.find("What is blorptitis?").parts[0].topic.title == "Blorptitis"


def test_a_space_names_its_library_in_the_environment(app, monkeypatch):
    monkeypatch.setenv("LIBRARY", "shipped,org/my-library")
    monkeypatch.delitem(sys.modules, "app")
    import app as started

    assert started.AppSettings().library == "shipped,org/my-library"


def test_a_wrong_library_is_one_clear_line(app, tmp_path):
    page_file(tmp_path / "one"), page_file(tmp_path / "two"), (tmp_path / "empty").mkdir()
    page_file(tmp_path / "link"), page_file(tmp_path / "bare"), (tmp_path / "old").mkdir()
    for folder, old, new in (("link", "https://p.example/t", "ftp://p.example/t"), ("bare", "- publisher: P\n", "")):
        path = tmp_path / folder / "blorptitis.md"
        path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    (tmp_path / "old" / "library.json").write_text('{"format": 99, "version": 1}', encoding="utf-8")
    for folders, words in (
        (f"{tmp_path}/old", r"format 99, not \d+: build it again with: python data_prep.py library"),
        (f"shipped,{tmp_path}/link", "is not a web address"),
        (f"{tmp_path}/bare", "sources|front matter"),
        ("shipped,none", "none is not a folder"),
        (f"{tmp_path}/missing", "is not a folder"),
        (f"{tmp_path}/empty", "holds no pages"),
        (f"{tmp_path}/one,{tmp_path}/two", "have the same name"),
    ):
        with pytest.raises(UserError, match=words):
            app.load_library(folders)


def write_calibration(folder, revision="0123456789abcdef", **changes):
    content = {
        "schema_version": 1, "signals": ["mean_logprob"], "means": [-0.1], "scales": [0.1], "coefficients": [2.0],
        "intercept": -1.0, "label": "a good answer is like its <b>reference</b>", "base_rate": 0.3, "n": 120,
        "ece": 0.04, "adapter_revision": revision, "engine": "stub",
        "decoding": {"temperature": 0.0, "max_new_tokens": 256}, **changes,
    }  # fmt: skip
    (folder / "calibration.json").write_text(json.dumps(content), encoding="utf-8")


def test_the_calibration_of_the_loaded_adapter_is_read(app, tmp_path):
    engine = StubEngine(adapter=str(tmp_path))
    assert app.read_calibration(engine) is None
    write_calibration(tmp_path)
    assert app.read_calibration(engine).n == 120
    write_calibration(tmp_path, revision="of another adapter")
    assert app.read_calibration(engine) is None
    assert app.read_calibration(StubEngine(adapter=None)) is None


def test_a_broken_calibration_is_logged_and_the_page_starts_without(app, tmp_path, caplog):
    write_calibration(tmp_path, scales=[0])
    assert app.read_calibration(StubEngine(adapter=str(tmp_path))) is None
    assert "calibration.json is broken" in caplog.text and "Confidence is not shown." in caplog.text


def test_the_about_tab_explains_confidence(app, tmp_path):
    pytest.importorskip("gradio")
    from medical_assistant.chat.assistant import Assistant
    from medical_assistant.web.page import _about

    engine = StubEngine(adapter=str(tmp_path))
    assert "Not shown: there is no calibration" in _about(Assistant(engine))
    write_calibration(tmp_path)
    text = _about(Assistant(engine, calibration=app.read_calibration(engine)))
    assert "on 120 test questions: **low** is up to 3 in 10" in text and "temperature 0)" in text
    assert "like its < b>reference< /b>" in text and "{{" not in text  # the label is the publisher's


def test_the_api_answers_without_the_confidence(stub, served_app, app, tmp_path):
    write_calibration(tmp_path)
    served_app.assistant.calibration = app.read_calibration(StubEngine(adapter=str(tmp_path)))
    assert ask(stub[1], "What is anaemia?") == f"{MODEL_WARNING}\n\nThis is the fine-tuned answer to: What is anaemia?"


# With the real engine


@contextmanager
def running_app(*arguments, **environment):
    """Run `python app.py` on a free port; yield (client, process) when its page is there."""
    gradio_client = pytest.importorskip("gradio_client")
    pytest.importorskip("xllamacpp")
    from medical_assistant.models.presets import find_preset

    if find_preset("smollm2-135m").embedded_gguf() is None:
        pytest.skip("the embedded model is not installed")
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "app.py", *arguments, "--port", str(port)],
        cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until(lambda: process.poll() is not None or answers(port), timeout_s=100)
        assert process.poll() is None
        yield gradio_client.Client(f"http://127.0.0.1:{port}", verbose=False), process
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="module")
def real_app():
    with running_app() as app:
        yield app


def answers(port):
    try:
        return httpx.get(f"http://127.0.0.1:{port}/", timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def children(process):
    import psutil

    return psutil.Process(process.pid).children(recursive=True)


def test_the_real_engine_answers_with_both_models_and_they_differ(real_app):
    client, _ = real_app
    answers = [client.submit("What is a fever?", model, "", 24, api_name="/chat") for model in ("Fine-tuned", "Base")]
    fine_tuned, base = (job.result(timeout=100) for job in answers)
    assert fine_tuned and base and fine_tuned != base


def beginning(client, model):
    """The first 100 characters of a streamed answer; the rest is cancelled, for a busy machine takes half a minute."""
    job = client.submit("What is a fever?", model, api_name="/chat")
    wait_until(lambda: job.outputs() and len(job.outputs()[-1]) >= 100, timeout_s=60)
    text = job.outputs()[-1][:100]
    job.cancel()
    return text


def test_the_app_is_small(real_app):
    psutil = pytest.importorskip("psutil")
    _, process = real_app
    resident = sum(p.memory_info().rss for p in [psutil.Process(process.pid), *children(process)])
    assert resident < 700e6


@pytest.mark.slow
def test_the_start_computes_little_more_than_the_import_of_gradio():
    psutil = pytest.importorskip("psutil")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", "import gradio"], check=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    with running_app() as (_, process):
        start_s = psutil.Process(process.pid).cpu_times().user
    assert start_s < 3 * (after.ru_utime - before.ru_utime)


@pytest.mark.slow  # by default: tests/web/test_startup.py, without the app around it
def test_without_the_hub_the_page_names_the_cached_revision_that_serves(tmp_path):
    from tests.support.adapter_fixture import make_adapter
    from tests.support.hub_server import HubServer, read_folder

    hub = HubServer()
    hub.add_repository("alice/adapter", read_folder(make_adapter(tmp_path / "random")))
    environment = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": ""}
    environment["NO_PROXY"] = "127.0.0.1"
    pull = "from medical_assistant.hub.pull import pull_adapter; pull_adapter('alice/adapter')"
    subprocess.run([sys.executable, "-c", pull], cwd=ROOT, env={**os.environ, **environment}, check=True, timeout=60)
    hub.stop()
    with running_app("--adapter", "alice/adapter", **environment) as (client, _):
        page = httpx.get(f"{client.src}config").text
    said = re.search(r"Serving alice/adapter at its cached revision ([0-9a-f]{12}), .* \(Cannot reach http", page)
    assert said and f"adapter {said[1]} \u00b7 llama_cpp" in page


@pytest.mark.slow  # by default: tests/web/test_faults.py and tests/engines/test_llama_cpp.py, the server and the engine
def test_a_dropped_client_leaves_the_real_engine_idle_within_a_second(real_app):
    client, process = real_app
    (engine,) = children(process)
    job = client.submit("Tell me all about vitamins", "Base", api_name="/chat")
    wait_until(lambda: any(job.outputs()), timeout_s=30)
    before_s = sum(engine.cpu_times()[:2])
    job.cancel()
    time.sleep(1)
    stopped_s = sum(engine.cpu_times()[:2])
    time.sleep(1)
    assert stopped_s - before_s < 1  # a whole answer is 2 s of one core
    assert sum(engine.cpu_times()[:2]) - stopped_s < 0.05


@pytest.mark.slow  # by default: tests/web/test_faults.py, the assistant and the engine
def test_the_app_survives_the_death_of_its_engine(real_app):
    psutil = pytest.importorskip("psutil")
    client, process = real_app
    job = client.submit("Tell me all about vitamins", "Base", api_name="/chat")
    wait_until(lambda: any(job.outputs()[1:]), timeout_s=30)
    (engine,) = children(process)
    engine.kill()
    with pytest.raises(Exception, match="not complete.*restarting"):
        job.result(timeout=60)
    assert beginning(client, "Base")
    assert psutil.Process(process.pid).is_running()


def test_sigterm_lets_the_running_answer_end_and_ends_the_app_within_ten_seconds(real_app):
    """The last test of the real app."""
    client, process = real_app
    job = client.submit("Hello, who are you?", "Base", "", 48, api_name="/chat")
    wait_until(lambda: any(job.outputs()), timeout_s=30)
    process.terminate()
    assert job.result(timeout=10)
    assert process.wait(10) == 0
