"""Signing in: the file of passwords, the limits, and who is answered on the real Gradio server."""

from __future__ import annotations

import asyncio
import io
import json
import runpy
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from argon2 import PasswordHasher, extract_parameters
from argon2.profiles import RFC_9106_LOW_MEMORY
from hypothesis import given
from hypothesis import strategies as st

from medical_assistant.errors import UserError
from medical_assistant.web import login
from medical_assistant.web.login import PasswordLogin, hash_password, load_login, main, matches, read_passwords
from tests.support.paths import ROOT
from tests.support.served_app import LOCAL, ServedApp, free_port, request, serve
from tests.support.stub_engine import StubEngine

PASSWORD = "correct horse battery"


@pytest.fixture(scope="module")
def line():
    """A line at the cost that a file must have."""
    return f"anna:{hash_password(PASSWORD)}"


@pytest.fixture(scope="session")
def cheap_hash():
    """A function that hashes at next to no cost, for tests that ask often: what is verified costs what was hashed."""
    hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)

    def hash_cheaply(password):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(login, "HASHER", hasher)
            return hash_password(password)

    return hash_cheaply


def cheap_login(cheap_hash):
    """The passwords of anna alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(login, "hash_password", cheap_hash)
        return PasswordLogin({"anna": cheap_hash(PASSWORD)})


# The file


def test_a_password_is_known_by_its_hash_alone(tmp_path, line):
    path = tmp_path / "users.txt"
    path.write_text(f"# who may ask\n\n{line}\n")
    found = read_passwords(path)
    assert list(found) == ["anna"] and matches(found["anna"], PASSWORD) and not matches(found["anna"], PASSWORD + " ")
    assert PASSWORD not in line and extract_parameters(found["anna"]) == RFC_9106_LOW_MEMORY
    assert hash_password(PASSWORD) not in line  # another salt


def test_two_spellings_of_one_password_are_the_same(cheap_hash):
    composed, decomposed = "é" * 15, "e\u0301" * 15
    assert composed != decomposed and matches(cheap_hash(composed), decomposed)


@given(password=st.text() | st.just("\ud83d"))
def test_any_text_can_be_a_password(cheap_hash, password):
    assert matches(cheap_hash(password), password)


COSTS, SALT, HASH = "$argon2id$v=19$m=65536,t=3,p=4$", "A" * 22, "A" * 43


@pytest.mark.parametrize(
    "broken",
    [
        "anna", "anna:", "anna:hunter2", f":{COSTS}{SALT}${HASH}", f"a b\x07:{COSTS}{SALT}${HASH}",
        f"anna:{COSTS}{SALT}", f"anna:{COSTS}{SALT}${HASH}$x", f"anna:{COSTS}AAAA${HASH}", f"anna:{COSTS}{SALT}$AAAA",
        f"anna:{COSTS}{'!' * 22}${HASH}", f"anna:$argon2i$v=19$m=65536,t=3,p=4${SALT}${HASH}",
        f"anna:$argon2id$v=19$m=1024,t=3,p=4${SALT}${HASH}", f"anna:$argon2id$v=19$m=65536,t=1,p=4${SALT}${HASH}",
        f"anna:$argon2id$v=19$m=9999999,t=3,p=4${SALT}${HASH}", f"anna:$argon2id$v=16$m=65536,t=3,p=4${SALT}${HASH}",
    ],
)  # fmt: skip
def test_a_broken_line_is_named_by_its_number_alone(tmp_path, broken):
    path = tmp_path / "users.txt"
    path.write_text(f"# first\n{broken}\n")
    with pytest.raises(UserError, match="Line 2 of .* is broken") as caught:
        read_passwords(path)
    assert "hunter2" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_does_not_serve_starts_no_open_app(tmp_path, line):
    path = tmp_path / "users.txt"
    for content, words in ((b"", "names nobody"), (b"#\n", "names nobody"), (b"\xff\xfe", "not UTF-8")):
        path.write_bytes(content)
        with pytest.raises(UserError, match=words):
            load_login(str(path))
    path.write_text(f"{line}\n{line}\n")
    with pytest.raises(UserError, match="Line 2 .* names somebody twice"):
        load_login(str(path))
    for name in (str(tmp_path / "absent"), str(tmp_path), "", "hugging_face"):
        with pytest.raises(UserError, match="cannot be read"):
            load_login(name)
    path.write_text(line)
    assert isinstance(load_login(str(path)), PasswordLogin) and load_login("none") is None


@pytest.mark.parametrize("variable", ["AUTH", "AUTH_FILE"])
def test_the_app_reads_the_choice_from_a_spaces_variable(variable, tmp_path, monkeypatch):
    monkeypatch.setenv(variable, str(tmp_path / "absent.txt"))
    with pytest.raises(UserError, match=r"^--auth .*absent\.txt cannot be read"):
        runpy.run_path(str(ROOT / "app.py"))["main"](["--port", str(free_port())])


# The command


def run_command(monkeypatch, name, *typed):
    answers = iter(typed)
    monkeypatch.setattr("getpass.getpass", lambda prompt: next(answers))
    output = io.StringIO()
    monkeypatch.setattr("sys.stdout", output)
    assert main([name]) == 0
    return output.getvalue()


def test_the_command_writes_a_line_that_the_app_reads(monkeypatch, tmp_path):
    path = tmp_path / "users.txt"
    path.write_text(run_command(monkeypatch, "Anna Lund", PASSWORD, PASSWORD))
    assert matches(read_passwords(path)["Anna Lund"], PASSWORD)


@pytest.mark.parametrize(
    ("name", "typed", "words"),
    [
        ("anna", ["planted"], "too short: use 15"),
        ("anna", [PASSWORD, PASSWORD + "!"], "differ"),
        ("a:b", [], "cannot be used"),
        ("", [], "cannot be used"),
        ("#anna", [], "cannot be used"),
        ("anna\nbob", [], "cannot be used"),
    ],
)
def test_the_command_refuses(monkeypatch, name, typed, words):
    with pytest.raises(UserError, match=words) as caught:
        run_command(monkeypatch, name, *typed)
    assert not any(word in str(caught.value) for word in typed)


# Who may enter


def test_a_name_that_is_not_there_costs_what_a_name_costs(cheap_hash, monkeypatch):
    verified = []
    monkeypatch.setattr(login, "matches", lambda hashed, password: verified.append(hashed) or matches(hashed, password))
    passwords = cheap_login(cheap_hash)
    for name, password, expected in (
        ("anna", PASSWORD, True), ("anna", "wrong", False), ("bob", PASSWORD, False), ("", "", False),
    ):  # fmt: skip
        assert asyncio.run(passwords.check(name, password)) is expected
    costs = [extract_parameters(hashed) for hashed in verified]
    assert len(costs) == 4 and all(cost == costs[0] for cost in costs)


def test_the_hash_of_nobody_lets_nobody_in(cheap_hash, monkeypatch):
    passwords = cheap_login(cheap_hash)
    monkeypatch.setattr(login, "matches", lambda hashed, password: True)  # as if the password were that of nobody
    assert asyncio.run(passwords.check("bob", "x")) is False


# Hub accounts


@pytest.mark.parametrize("missing", ["SYSTEM", "SPACE_ID", "OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET"])
def test_hub_accounts_are_for_a_space_alone(monkeypatch, missing):
    """Elsewhere Gradio's sign-in is a mock that lets everybody in."""
    for name in ("SPACE_ID", *login._OAUTH):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("SYSTEM", "spaces")
    monkeypatch.setenv(missing, "")
    with pytest.raises(UserError, match="works on a Space with `hf_oauth: true`"):
        load_login("huggingface")


def request_with(session):
    from starlette.requests import Request

    return Request({"type": "http", "headers": [], **({} if session is None else {"session": session})})


@pytest.mark.parametrize(
    ("session", "user"),
    [
        ({"oauth_info": {"expires_at": time.time() + 3_600, "userinfo": {"preferred_username": "anna"}}}, "anna"),
        ({"oauth_info": {"expires_at": time.time() - 1, "userinfo": {"preferred_username": "anna"}}}, None),
        ({"oauth_info": {"userinfo": {"preferred_username": "anna"}}}, None),
        ({"oauth_info": {"expires_at": "soon", "userinfo": {"preferred_username": "anna"}}}, None),
        ({"oauth_info": {"expires_at": time.time() + 3_600}}, None),
        ({"oauth_info": None}, None),
        ({}, None),
        (None, None),
    ],
)
def test_who_is_signed_in(session, user):
    pytest.importorskip("starlette")
    assert login.signed_in_user(request_with(session)) == user


# Around Gradio itself

pytest.importorskip("gradio")


@pytest.fixture(scope="module")
def guarded(cheap_hash):
    """The real page, which asks for a password."""
    passwords = cheap_login(cheap_hash)
    with serve(StubEngine(), login=passwords) as app:
        yield app.url, passwords


@pytest.fixture
def url(guarded):
    url, passwords = guarded
    passwords.limits._storage.reset()
    return url


def sign_in(url, password=PASSWORD, name="anna", **options):
    return request("POST", f"{url}/login", data={"username": name, "password": password}, **options)


# What a stranger may see: nothing of these answers a question or names what is loaded.
PUBLIC = {
    "GET": "/ /healthz /metrics /theme.css /manifest.json /robots.txt /gradio_api/app_id "
    "/gradio_api/startup-events /gradio_api/user /gradio_api/theme.css /favicon.ico".split(),
    "POST": ["/gradio_api/cancel", "/gradio_api/reset", "/gradio_api/reset/"],
}


def test_a_stranger_is_answered_nothing(url):
    from medical_assistant.web.middleware import OPEN_FOLDERS, OPEN_PATHS

    paths = {*OPEN_PATHS, *(f"{folder}chat" for folder in OPEN_FOLDERS), "/gradio_api/call/v2/chat"}
    paths |= {"/gradio_api/call/chat/abc", "/gradio_api/queue/data?session_hash=a"}
    paths = {path for path in paths if "heartbeat" not in path}  # a stream without end, of nothing
    for path in sorted(paths):
        for method in ("GET", "POST"):
            response = request(method, url + path, json={"data": ["x", "Base", ""]} if method == "POST" else None)
            assert "stub-model" not in response.text and 'components":[{' not in response.text.replace(" ", "")
            if path not in PUBLIC[method]:
                assert response.status_code in (401, 404, 405), (method, path, response.status_code)
    page = request("GET", url)
    assert page.status_code == 200 and '"auth_required":true' in page.text
    assert "anaemia" not in page.text and request("GET", f"{url}/healthz").json() == {"status": "ready"}


def test_a_password_opens_page_and_api(url):
    gradio_client = pytest.importorskip("gradio_client")
    response = sign_in(url)
    assert response.status_code == 200 and response.json() == {"success": True}
    assert all("HttpOnly" in cookie for cookie in response.headers.get_list("set-cookie"))
    with httpx.Client(**LOCAL, cookies=response.cookies) as inside:
        assert inside.get(f"{url}/config").status_code == 200 and "stub-model" in inside.get(url).text
        asking = gradio_client.Client(url, auth=("anna", PASSWORD), verbose=False)
        assert "base answer" in asking.predict("What is anaemia?", "Base", api_name="/chat")
        asking.close()
        assert inside.get(f"{url}/gradio_api/token").status_code == 404  # a script has no business with the cookie
        assert inside.get(f"{url}/logout").status_code == 302
        assert inside.get(f"{url}/config").status_code == 401
    with pytest.raises(Exception, match="ould not login"):
        gradio_client.Client(url, auth=("anna", "wrong"), verbose=False)


def test_wrong_passwords_get_in_nowhere_and_are_counted(url, caplog, capfd):
    for name, password in (("anna", "wrong-planted"), ("bob", PASSWORD), ("anna", ""), ("", "")):
        assert sign_in(url, password, name).status_code in (400, 422)
    assert sign_in(url).status_code == 200
    refused = sign_in(url)
    assert refused.status_code == 429 and refused.headers["retry-after"] == "60"
    assert "wait a minute" in refused.json()["detail"] and "default-src" in refused.headers["content-security-policy"]
    assert request("POST", f"{url}/login/", data={"username": "anna", "password": PASSWORD}).status_code == 429
    written = capfd.readouterr()
    assert not any("planted" in text or PASSWORD in text for text in (caplog.text, written.out, written.err))


def test_half_a_form_says_nothing_of_the_password(url):
    response = request("POST", f"{url}/login", data={"password": PASSWORD})
    assert response.status_code == 422 and PASSWORD not in response.text


def test_another_site_cannot_use_the_session(url):
    cookies = sign_in(url).cookies
    host = url.partition("://")[2]
    with httpx.Client(**LOCAL, cookies=cookies) as inside:
        for origin in ("https://outside.example", "null", f"{url}.outside.example", "http://127.0.0.1:1"):
            for method in ("GET", "POST", "OPTIONS"):
                headers = {"origin": origin, "access-control-request-method": "POST"}
                assert inside.request(method, f"{url}/config", headers=headers).status_code == 403, (origin, method)
        assert inside.get(f"{url}/config", headers={"origin": url}).status_code == 200
        # A proxy in front may rename the host; a foreign page cannot claim that, the preflight is refused.
        behind = {"origin": "https://doctor.example", "x-forwarded-host": "doctor.example"}
        assert inside.get(f"{url}/config", headers=behind).status_code == 200
    assert host and sign_in(url, headers={"origin": "https://outside.example"}).status_code == 403


@pytest.mark.skipif(not shutil.which("chromium"), reason="Chromium is not installed")
def test_the_page_lets_in_and_out(url):
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(30_000)
        page.goto(url)

        def enter(password):
            page.get_by_label("username").fill("anna")
            page.get_by_label("password").fill(password)
            page.get_by_role("button", name="Login").click()

        assert "call your local emergency number" in page.get_by_text("attempts a minute").inner_text()
        enter("wrong")
        page.get_by_text("Incorrect Credentials").wait_for()
        enter(PASSWORD)
        page.fill("#question textarea", "What is anaemia?")
        page.press("#question textarea", "Enter")
        page.get_by_text("answer to: What is anaemia?").wait_for()
        page.click("#sign-out")
        page.get_by_label("password").wait_for()
        assert request("GET", f"{url}/config", cookies={c["name"]: c["value"] for c in page.context.cookies()}).is_error
        browser.close()


def test_without_a_login_its_paths_are_closed():
    from medical_assistant.web import middleware

    for path in PasswordLogin.paths | login.HubLogin.paths:
        assert not middleware.is_open(path)


# On a Space


class Provider(BaseHTTPRequestHandler):
    """An OpenID provider at which everybody is anna."""

    def do_GET(self):
        self.rfile.read(int(self.headers.get("content-length") or 0))
        base = f"http://127.0.0.1:{self.server.server_port}"
        answer = {
            "issuer": base, "authorization_endpoint": f"{base}/authorize", "token_endpoint": f"{base}/token",
            "access_token": "hf_oauth_planted", "token_type": "bearer", "expires_in": 3600,
            "userinfo": {"preferred_username": "anna", "name": "A", "profile": "p", "picture": "q"},
        }  # fmt: skip
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, *arguments):
        pass


@pytest.fixture
def space(monkeypatch):
    """The page on something that looks like a Space, with OAuth."""
    for package in ("authlib", "itsdangerous"):
        pytest.importorskip(package, reason="pip install 'gradio[oauth]'")
    from gradio import oauth

    provider = ThreadingHTTPServer(("127.0.0.1", 0), Provider)
    threading.Thread(target=provider.serve_forever, daemon=True).start()
    for name, value in {
        "SYSTEM": "spaces", "SPACE_ID": "alice/space", "OAUTH_CLIENT_ID": "client", "OAUTH_SCOPES": "openid profile",
        "OAUTH_CLIENT_SECRET": "oauth-secret-planted", "NO_PROXY": "127.0.0.1",
        "OPENID_PROVIDER_URL": f"http://127.0.0.1:{provider.server_port}",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
        if hasattr(oauth, name):  # Gradio reads the variables when it is imported
            monkeypatch.setattr(oauth, name, value)
    # On a Space it changes the modules of the process where a file changes: not of this one.
    monkeypatch.setattr("gradio.http_server.watchfn_spaces", lambda reloader: None)
    with serve(StubEngine(), login=load_login("huggingface")) as app:
        yield app
    provider.shutdown()
    provider.server_close()


def test_on_a_space_only_who_signed_in_is_answered(space: ServedApp, capfd, caplog):
    url = space.url
    ask = {"json": {"message": "What is anaemia?", "model": "Base"}}
    page = request("GET", url)
    assert page.status_code == 401 and 'href="./login/huggingface"' in page.text and "stub-model" not in page.text
    for path in ("/config", "/gradio_api/info", "/gradio_api/openapi.json"):
        assert request("GET", url + path).status_code == 401, path
    for path in (
        "/gradio_api/call/v2/chat",
        "/gradio_api/call/chat",
        "/gradio_api/queue/join",
        "/gradio_api/run/chat",
        "/gradio_api/api/chat",
    ):
        assert request("POST", url + path, **ask).status_code == 401, path
    assert request("POST", f"{url}/login", data={"username": "a", "password": "b"}).status_code == 404
    assert request("GET", f"{url}/healthz").status_code == 200
    forged = {"cookie": "session=eyJvYXV0aF9pbmZvIjp7fX0=.x.y"}
    assert request("GET", f"{url}/config", headers=forged).status_code == 401

    begun = request("GET", f"{url}/login/huggingface")
    state = httpx.URL(begun.headers["location"]).params["state"]
    cookie = {"cookie": begun.headers["set-cookie"].split(";")[0]}  # Secure: httpx would not send it over http
    assert request("GET", f"{url}/config", headers=cookie).status_code == 401
    done = request("GET", f"{url}/login/callback?code=x&state={state}", headers=cookie)
    assert "secure" in done.headers["set-cookie"].lower() and "httponly" in done.headers["set-cookie"].lower()
    with httpx.Client(**LOCAL, headers={"cookie": done.headers["set-cookie"].split(";")[0]}) as inside:
        seen = inside.get(url).text + inside.get(f"{url}/config").text + inside.get(f"{url}/gradio_api/info").text
        assert '"username":"anna"' in seen.replace(" ", "")
        event = inside.post(f"{url}/gradio_api/call/v2/chat", **ask).json()["event_id"]
        assert "base answer" in inside.get(f"{url}/gradio_api/call/v2/chat/{event}").text
        assert inside.get(f"{url}/config", headers={"origin": "https://outside.example"}).status_code == 403
    written = capfd.readouterr()
    assert not any("planted" in text for text in (seen, page.text, written.out, written.err, caplog.text))
