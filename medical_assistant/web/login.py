"""Signing in, where the app asks for it: names and passwords of a file, or Hugging Face accounts on a Space.

    python -m medical_assistant.web.login anna >> users.txt    # asks for the password, keeps only its hash
    python app.py --auth users.txt

`--auth huggingface` (`AUTH=huggingface` in a Space's settings) lets anybody in who has signed in on the Hub; the
Space's README needs `hf_oauth: true`. Either way page, /config and API answer nobody else; /healthz stays open, and
so does /metrics where it is switched on: it holds counts alone, and a scraper has no session.

Gradio 6.31 keeps the sessions of passwords in memory: a restart, or "Sign out" anywhere, ends all of a name.
"""

from __future__ import annotations

import argparse
import asyncio
import getpass
import os
import re
import secrets
import sys
import time
import unicodedata
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError
from argon2.profiles import RFC_9106_LOW_MEMORY

from medical_assistant.errors import UserError, run_script
from medical_assistant.files import ASSETS
from medical_assistant.web.limits import ClientKeys, ClientLimits

if TYPE_CHECKING:
    import gradio

HUGGING_FACE = "huggingface"
HASHER = PasswordHasher.from_parameters(RFC_9106_LOW_MEMORY)  # 64 MiB, three passes: RFC 9106, 4
MIN_PASSWORD = 15  # characters, where nothing but the password is asked for: NIST SP 800-63B-4, 3.1.1.2
ATTEMPTS_PER_MINUTE = 5  # of one client
_NAME = re.compile(r"[^\s:#\x00-\x1f\x7f](?:[^:\x00-\x1f\x7f]{0,98}[^\s:\x00-\x1f\x7f])?")
# What HASHER writes and nothing else: weaker costs would be guessed, higher ones would stop the app.
_HASH = re.compile(r"\$argon2id\$v=19\$m=65536,t=3,p=4\$[A-Za-z0-9+/]{22}\$[A-Za-z0-9+/]{43}")
_COMMAND = "python -m medical_assistant.web.login NAME"
_OAUTH = ("OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_SCOPES", "OPENID_PROVIDER_URL")


def hash_password(password: str) -> str:
    """Return the argon2id hash of `password` under a new salt, `$argon2id$v=19$m=...,t=...,p=...$SALT$HASH`."""
    return HASHER.hash(_normal(password))


def matches(hashed: str, password: str) -> bool:
    """Say whether `hashed` is the hash of `password`."""
    try:
        return HASHER.verify(hashed, _normal(password))
    except VerifyMismatchError:
        return False


def _normal(password: str) -> bytes:
    # One password typed on two keyboards may have two spellings in Unicode (RFC 8265, 4.2.2).
    return unicodedata.normalize("NFC", password).encode("utf-8", "replace")


def read_passwords(path: Path) -> dict[str, str]:
    """Return the hashes of an auth file by name. Empty lines and lines that begin with # do not count.

    Raises `UserError` for a file that cannot be read, holds nobody, or has a line that is none of
    `python -m medical_assistant.web.login`; the message has the line's number, never its text.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"--auth {path} cannot be read ({reason}): give a file of names, or {HUGGING_FACE}.") from error
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, hashed = line.strip().partition(":")
        fault = None
        if not _HASH.fullmatch(hashed) or not _NAME.fullmatch(name):
            fault = "is broken"
        elif name in found:
            fault = "names somebody twice"
        if fault:
            raise UserError(f"Line {number} of {path} {fault}: write it anew with {_COMMAND}.")
        found[name] = hashed
    if not found:
        raise UserError(f"{path} names nobody: add a line with {_COMMAND}.")
    return found


class PasswordLogin:
    """Who may enter with a password, and how often a client may try. Thread-safe."""

    paths = frozenset({"/login", "/login/", "/logout"})

    def __init__(self, passwords: Mapping[str, str], keys: ClientKeys | None = None) -> None:
        self._passwords = dict(passwords)
        self._keys = keys or ClientKeys()
        self.limits = ClientLimits(2, ATTEMPTS_PER_MINUTE)
        # A name that is not there costs what a name costs: the time says nothing.
        self._nobody = hash_password(secrets.token_hex())
        # One at a time: a flood of attempts takes one attempt's memory.
        self._pool = ThreadPoolExecutor(1, "password")

    def count_attempt(self, request: Any) -> None:
        """Count one attempt of the client of a Starlette request; raises `LimitError` when it is too much."""
        with self.limits.enter(self._keys.of(request)):
            pass

    async def check(self, name: str, password: str) -> bool:
        """Say whether the password is that of `name`. Gradio calls it for POST /login."""
        hashed = self._passwords.get(name, self._nobody)
        is_right = await asyncio.get_running_loop().run_in_executor(self._pool, matches, hashed, password)
        return is_right and name in self._passwords

    def launch_options(self) -> dict[str, Any]:
        """Return the keyword arguments of Gradio's `launch`."""
        message = (
            f"For people with a name and a password. At most {ATTEMPTS_PER_MINUTE} attempts a minute. "
            "In an emergency, call your local emergency number now."
        )
        return {"auth": self.check, "auth_message": message}

    def add_button(self, page: gradio.Blocks) -> None:
        """Add the way out to the end of the page."""
        import gradio as gr

        with page:
            gr.Button("Sign out", link="/logout", size="sm", elem_id="sign-out")


class HubLogin:
    """Whoever signed in on the Hub. Gradio's OAuth routes do the talking, and sign the session's cookie."""

    paths = frozenset({"/login/huggingface", "/login/callback", "/logout"})

    def launch_options(self) -> dict[str, Any]:
        """Return the keyword arguments of Gradio's `launch`: all its routes ask for the user, the API's too."""
        return {"auth_dependency": signed_in_user}

    def add_button(self, page: gradio.Blocks) -> None:
        """Add Gradio's button to the end of the page; with it come the routes."""
        import gradio as gr

        with page:
            gr.LoginButton(size="sm", elem_id="sign-out")

    @staticmethod
    async def ask_to_sign_in(request: Any, error: Any) -> Any:
        """Answer who has not signed in: the page is one with the link, all else gets the error as it is."""
        from starlette.responses import HTMLResponse, JSONResponse

        if request.scope["path"] in ("/", f"{request.scope.get('root_path', '')}/"):
            page = (ASSETS / "page" / "sign_in.html").read_text(encoding="utf-8")
            return HTMLResponse(page, 401, headers={"cache-control": "no-store"})
        return JSONResponse({"detail": error.detail}, error.status_code, headers=error.headers)


def signed_in_user(request: Any) -> str | None:
    """Return the Hub name in the session of a Starlette request, None where nobody is signed in or no longer."""
    information: Any = request.session.get("oauth_info") if "session" in request.scope else None
    try:
        if information["expires_at"] > time.time():
            return str(information["userinfo"]["preferred_username"])
    except (KeyError, TypeError):
        pass  # of another version of Gradio: not signed in
    return None


Login = PasswordLogin | HubLogin


def load_login(auth: str, keys: ClientKeys | None = None) -> Login | None:
    """Return what `--auth` asks for: None for "none", Hub accounts for "huggingface", else those of a file.

    Raises `UserError` for a file that does not serve, and for Hub accounts elsewhere than on a Space with OAuth:
    there Gradio lets everybody in under the name of the machine's owner.
    """
    if auth == "none":
        return None
    if auth != HUGGING_FACE:
        return PasswordLogin(read_passwords(Path(auth)), keys)
    on_space = os.environ.get("SYSTEM") == "spaces" and os.environ.get("SPACE_ID")
    if not on_space or not all(os.environ.get(name) for name in _OAUTH):
        raise UserError(
            f"--auth {HUGGING_FACE} works on a Space with `hf_oauth: true` in its README.md: add that line, or give a "
            "file of names."
        )
    return HubLogin()


def main(argv: Sequence[str] | None = None) -> int:
    """Ask for a password twice and write the line of an auth file."""
    parser = argparse.ArgumentParser(
        prog="python -m medical_assistant.web.login", description="Write a line for the file of `app.py --auth FILE`."
    )
    parser.add_argument("name", help="name to sign in with")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    name = parser.parse_args(argv).name
    if not _NAME.fullmatch(name):
        raise UserError("The name cannot be used: up to 100 characters, without a colon, # or space around it.")
    password = getpass.getpass(f"Password for {name} ({MIN_PASSWORD} characters or more): ")
    if len(password) < MIN_PASSWORD:
        raise UserError(f"The password is too short: use {MIN_PASSWORD} characters or more, such as four words.")
    if password != getpass.getpass("Once more: "):
        raise UserError("The two passwords differ: start again.")
    sys.stdout.write(f"{name}:{hash_password(password)}\n")
    return 0


if __name__ == "__main__":
    run_script(main)
