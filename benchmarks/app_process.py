"""The app as a process of its own, for the benchmarks that ask it from outside."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medical_assistant.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def running_app() -> Iterator[tuple[str, int]]:
    """Yield the address and the process id of `app.py`, started on a free port of this machine, ended with SIGTERM.

    Its limits for each client are raised: all clients come from this machine.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "app.py", "--port", str(port), "--metrics"]
    command += ["--answers-at-once", "1000", "--questions-per-minute", "100000"]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "GRADIO_ANALYTICS_ENABLED": "False"}, **quiet)
    url = f"http://127.0.0.1:{port}"
    try:
        while fetch(url, "/healthz")[0] != 200:
            if process.poll() is not None:
                raise UserError("The app did not start: run `python app.py` to see why.")
            time.sleep(0.5)
        yield url, process.pid
    finally:
        process.terminate()
        process.wait(30)


def fetch(url: str, path: str) -> tuple[int, str]:
    import httpx

    try:
        response = httpx.get(url + path, timeout=10, trust_env=False)
    except httpx.HTTPError:
        return 0, ""
    return response.status_code, response.text


def metric(url: str, name: str) -> float:
    found = re.search(rf"^medical_assistant_{name} (\S+)$", fetch(url, "/metrics")[1], re.M)
    if not found:
        raise UserError("The app serves no metrics: is it the version of this folder?")
    return float(found[1])


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds that the process itself has taken, its children left out (proc(5), utime and stime)."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
