"""Planted tokens, keys and passwords: they are in no log, page, configuration, card, adapter folder or error."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from medical_assistant.errors import UserError, run_script
from medical_assistant.evaluation.judges.server import LABELS, Claim, ServerJudge
from medical_assistant.hub.pull import pull_adapter
from medical_assistant.hub.push import push_adapter
from medical_assistant.publish import space as deploy
from medical_assistant.publish.adapter import main as publish
from tests.support.hub_server import HubServer, read_folder
from tests.support.paths import ROOT, load_script

NAME = "alice/adapter"
PLANTED = {
    "HF_TOKEN": "hf_PlantedEnvironment0123456789",
    "HUGGING_FACE_HUB_TOKEN": "hf_PlantedOld0123456789",
    "JUDGE_API_KEY": "sk-PlantedJudge0123456789",
    "WANDB_API_KEY": "PlantedWandb0123456789",
    "OAUTH_CLIENT_SECRET": "PlantedOauth0123456789",
}
IN_THE_FILE = "hf_PlantedFile0123456789"
PASSWORD = "Planted horse battery"


def leaks(*texts: str | bytes) -> list[str]:
    """What stands around a planted word in one of these."""
    found = []
    for text in texts:
        content = text if isinstance(text, bytes) else text.encode()
        place = content.find(b"Planted")
        if place >= 0:
            found.append(content[max(0, place - 60) : place + 40].decode(errors="replace"))
    return found


def leaks_in(folder: Path) -> list[str]:
    return [f"{path}: {text}" for path in folder.rglob("*") if path.is_file() for text in leaks(path.read_bytes())]


@pytest.fixture
def planted(hub_server: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the token. Every place that a secret may come from has one; the Hub knows alice by both tokens."""
    token_file = tmp_path_factory.mktemp("home") / "token"
    token_file.write_text(IN_THE_FILE)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(token_file))
    for name, value in {**PLANTED, "HF_TOKEN_PATH": str(token_file)}.items():
        monkeypatch.setenv(name, value)
    hub_server.tokens |= {PLANTED["HF_TOKEN"]: ("alice", True), IN_THE_FILE: ("alice", True)}
    return token_file


def test_the_search_finds_what_is_planted(planted, tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "config.json").write_text(json.dumps(dict(os.environ)))
    assert leaks_in(tmp_path) and all(leaks(value) for value in (*PLANTED.values(), IN_THE_FILE, PASSWORD))


# The app


@pytest.fixture
def app_output(planted: Path, hub_server: HubServer, tmp_path: Path) -> Iterator[tuple[str, Path, subprocess.Popen]]:
    """(address, file of all output, process) of `python app.py`, which asks for a password and cannot have its
    adapter."""
    if not all(map(importlib.util.find_spec, ("gradio", "xllamacpp"))):  # importing them here would take seconds
        pytest.skip("gradio or xllamacpp is not installed")
    from medical_assistant.models.presets import find_preset
    from medical_assistant.web.login import hash_password

    if find_preset("smollm2-135m").embedded_gguf() is None:
        pytest.skip("the embedded model is not installed")
    users, written = tmp_path / "users.txt", tmp_path / "output.txt"
    users.write_text(f"anna:{hash_password(PASSWORD)}\n")
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "app.py", "--port", str(port), "--auth", str(users), "--metrics", "--adapter", NAME]
    with written.open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
    try:
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(timeout=None) as client:
            while not reached(client, url):  # a busy machine takes its time: pytest's own timeout ends a hang
                assert process.poll() is None, written.read_text()
                time.sleep(0.1)
        yield url, written, process
    finally:
        process.kill()
        process.wait()


def reached(client: httpx.Client, url: str) -> bool:
    try:
        return client.get(f"{url}/healthz").status_code == 200
    except httpx.TransportError:
        return False


def test_the_app_shows_and_logs_none(app_output):
    url, written, process = app_output
    form = {"username": "anna", "password": PASSWORD}
    wrong = httpx.post(f"{url}/login", data={**form, "password": f"{PASSWORD}!"}, timeout=None)
    seen = [wrong.text, httpx.get(url, timeout=None).text]
    signed_in = httpx.post(f"{url}/login", data=form, timeout=None)
    with httpx.Client(cookies=signed_in.cookies, timeout=None) as inside:
        names = "/ /config /gradio_api/info?all_endpoints=true /gradio_api/openapi.json /metrics /healthz /theme.css"
        for name in names.split():
            response = inside.get(url + name)
            assert response.status_code == 200, name
            seen += [response.text, str(response.headers)]
        assert NAME in seen[2]  # why there is no adapter stands in the page
        hash_of_anna = (written.parent / "users.txt").read_text().split("$")[-1].strip()
        assert not any(hash_of_anna in text or "scrypt" in text for text in seen)
        # An emergency needs no model: a second less.
        asked = {"message": "I have crushing chest pain and I cannot breathe", "model": "Base"}
        event = inside.post(f"{url}/gradio_api/call/v2/chat", json=asked).json()["event_id"]
        seen.append(inside.get(f"{url}/gradio_api/call/v2/chat/{event}").text)
    assert "complete" in seen[-1]
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0
    log = written.read_text()
    assert ": emergency, " in log and NAME in log
    assert leaks(*seen, log) == [] and "scrypt" not in log


# The scripts


class Judge(BaseHTTPRequestHandler):
    """Answers once, then repeats the key that it was sent, as some gateways do."""

    asked = 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        type(self).asked += 1
        answer = {"choices": [{"message": {"content": json.dumps({"verdict": LABELS[0]})}}]}
        status = 200 if self.asked == 1 else 400
        if status != 200:
            answer = {"error": {"message": f"refused {self.headers['authorization']}"}}
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def judge() -> Iterator[str]:
    Judge.asked = 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_what_the_scripts_write_holds_none(
    planted, hub_server, judge, question_file, tiny_model, tmp_path, monkeypatch, capsys, caplog
):
    import data_prep
    import train
    from tests.test_evaluate import ScriptedEngine

    caplog.set_level(logging.DEBUG)
    data, run, report = (tmp_path / name for name in ("data", "run", "report"))
    data_prep.main(["--source", str(question_file), "--output", str(data), "--validation-size", "10"])
    quick = "--max-steps 1 --logging-steps 1 --max-validation-rows 2 --report-to none --gate none".split()
    train.main(["--data", str(data), "--model", str(tiny_model), "--output", str(run), *quick, "--push-to-hub", NAME])
    assert (run / "training.json").is_file()

    statements = tmp_path / "statements.jsonl"
    statements.write_text(json.dumps({"question": "What helps?", "must_have": ["Rest helps."]}))
    script = load_script("evaluate")
    monkeypatch.setattr("medical_assistant.evaluation.run.load_batch_engine", lambda *a, **k: ScriptedEngine({}))
    arguments = ["--data", str(data), "--model", str(tiny_model), "--adapter", str(run), "--output", str(report)]
    arguments += "--no-perplexity --safety none --resamples 1000 --update-adapter --push-to-hub".split() + [NAME]
    arguments += ["--statements", str(statements), "--judge", judge, "--judge-model", "m"]
    script.main(arguments)
    assert Judge.asked > 1 and "(the key)" in "".join(
        path.read_text() for path in report.rglob("*.json*") if path.is_file()
    )

    written = capsys.readouterr()
    assert leaks_in(tmp_path) == [] and leaks(written.out, written.err, caplog.text) == []
    pushed = hub_server.repositories["models", NAME]
    assert len(pushed.messages) >= 3 and leaks(*pushed.files().values(), *pushed.messages) == []


@pytest.mark.parametrize("key", ["sk-Planted\n", "sk-Plant\u00e9d", "sk-Planted\x01x"])
def test_a_key_that_no_header_can_carry_is_not_repeated(key):
    with pytest.raises(UserError, match="JUDGE_API_KEY has a character") as caught:
        ServerJudge("http://127.0.0.1:1", "m", key)
    assert leaks(str(caught.value)) == [] and "sk-" not in str(caught.value)


def test_a_judge_that_repeats_the_key_is_not_quoted(judge):
    server = ServerJudge(judge, "m", PLANTED["JUDGE_API_KEY"])
    claim = Claim("Is ice cold?", "Ice is cold.", "Ice is cold.")
    reasons = [verdict.reason for verdict in server.verdicts([claim] * 3)]
    assert (
        any("(the key)" in (reason or "") for reason in reasons) and leaks(*(reason or "" for reason in reasons)) == []
    )


# The Hub


@pytest.mark.parametrize("source", ["environment", "file"])
@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500, 0])
def test_a_hub_that_fails_is_explained_without_the_token(
    planted, hub_server, toy_adapter, monkeypatch, caplog, capsys, source, status
):
    caplog.set_level(logging.DEBUG)
    token = PLANTED["HF_TOKEN"]
    if source == "file":
        token = IN_THE_FILE
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name)
    body = json.dumps({"error": f"Bearer {token} is not welcome"})
    for call in (lambda: push_adapter(toy_adapter, NAME), lambda: pull_adapter(NAME)):
        hub_server.fail_next(status, times=20, body=body)
        with pytest.raises(UserError) as caught:
            call()
        assert leaks(str(caught.value)) == []
        hub_server.failures.clear()
    written = capsys.readouterr()
    assert leaks(caplog.text, written.out, written.err) == [] and leaks_in(toy_adapter) == []


def test_a_refused_push_shows_none_even_with_its_traceback(
    planted, hub_server, toy_adapter, monkeypatch, capsys, caplog
):
    caplog.set_level(logging.DEBUG)
    hub_server.tokens[PLANTED["HF_TOKEN"]] = ("alice", False)
    monkeypatch.setattr(sys, "argv", ["publish", str(toy_adapter), NAME, "--debug"])
    with pytest.raises(UserError, match="may not write") as caught:
        run_script(publish)
    shown = "".join(traceback.format_exception(caught.value))  # what the interpreter writes, causes included
    assert shown.count("Traceback") > 1 and "HfHubHTTPError" in shown
    assert leaks(shown, caplog.text, *capsys.readouterr()) == [] and leaks_in(toy_adapter) == []


def test_a_push_and_a_pull_carry_none_along(planted, hub_server, toy_adapter, caplog):
    caplog.set_level(logging.DEBUG)
    (toy_adapter / ".env").write_text(PLANTED["HF_TOKEN"])
    push_adapter(toy_adapter, NAME)
    folder = pull_adapter(NAME).folder
    assert leaks(*read_folder(folder).values()) == [] and leaks(caplog.text) == []
    assert leaks(*hub_server.repositories["models", NAME].files().values()) == []
    assert not hub_server.token_seen_by_cdn


def test_a_deploy_carries_none_along(planted, hub_server, tmp_path, monkeypatch, capsys, caplog):
    root = tmp_path / "clone"
    root.mkdir()
    files = ("app.py", "README.md", "requirements.txt")
    for name in files:
        (root / name).write_text("---\nsdk: gradio\n---\n" if name == "README.md" else "\n")
    (root / ".env").write_text(f"HF_TOKEN={PLANTED['HF_TOKEN']}\n")
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    subprocess.run(["git", "add", *files], cwd=root, check=True)
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(deploy, "ROOT", root)
    deploy.deploy_space("alice/space", model="smollm2-135m")
    space = hub_server.repositories["spaces", "alice/space"]
    assert set(space.files()) == {".gitattributes", *files}
    hub_server.fail_next(403, times=20, body=json.dumps({"error": PLANTED["HF_TOKEN"]}))
    with pytest.raises(UserError) as caught:
        deploy.deploy_space("alice/space")
    written = capsys.readouterr()
    assert ".env" in caplog.text
    assert leaks(*space.files().values(), str(space.variables), str(caught.value), caplog.text, *written) == []
