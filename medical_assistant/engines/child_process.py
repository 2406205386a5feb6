"""The parent's side of llama.cpp's child process: starting it, the reason when it does not start, ending it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import secrets
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from medical_assistant.engines.openai_client import READ_TIMEOUT_S, NoAnswer, OpenAIClient
from medical_assistant.errors import EngineError

MODULE = "medical_assistant.engines.llama_cpp_child"
PROBE_S = 10.0
END_S = 0.5  # it has nothing to save, and the app has ten seconds for its own end
_SOURCE_ROOT = Path(__file__).resolve().parents[2]
_SECRET = re.compile("TOKEN|SECRET|PASSWORD|KEY|AUTH", re.IGNORECASE)  # names of variables
_LOG_PREFIX = re.compile(r"^[\d.]+ E\s+(?:\w+\s+)?[\w~]+: (?:error loading model: )?")


class ChildProcess:
    """A running child process and the client that talks to it.

    A process that hangs is killed, and is `hung` from then on: one that leaves two health checks unanswered for
    `probe_s` each (stopped, or lost in swap), and one that computes nothing while a request waits (`kill_if_silent`).
    llama.cpp answers a health check in a thread of its own, also while it computes.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        start_timeout_s: float,
        probe_s: float = PROBE_S,
        silence_s: float = READ_TIMEOUT_S,
    ) -> None:
        if importlib.util.find_spec("xllamacpp") is None:
            raise EngineError("xllamacpp is not installed: pip install -r requirements-cpu.txt")
        for file in (config["gguf"], config["adapter_gguf"]):
            if file and not Path(file).is_file():
                raise EngineError(f"There is no file {file}: download the model or adapter again.")
        self.hung = False
        self.last_output_s = time.monotonic()  # when the last piece of any answer came
        self._silence_s = silence_s
        self._stopped = threading.Event()
        self._log: IO[bytes] = tempfile.TemporaryFile()  # llama.cpp's errors; never grows by requests
        search_path = os.pathsep.join(filter(None, [str(_SOURCE_ROOT), os.environ.get("PYTHONPATH")]))
        # llama.cpp asks nobody for anything.
        public = {name: value for name, value in os.environ.items() if not _SECRET.search(name)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**public, "PYTHONPATH": search_path},
            start_new_session=True,  # Ctrl-C in a terminal is for the app, which then closes this
        )
        try:
            key = secrets.token_hex(16)  # on standard input: a command line is public on the machine
            address = self._start({**config, "api_key": key}, start_timeout_s)
        except BaseException:
            self.stop()
            raise
        self.client = OpenAIClient(address, key, read_timeout_s=silence_s)
        threading.Thread(target=self._watch, args=(probe_s,), name="watch", daemon=True).start()

    def _start(self, config: Mapping[str, Any], timeout_s: float) -> str:
        """Return the child's address. Raises `EngineError` with the first error that llama.cpp logged."""
        assert self.process.stdin and self.process.stdout
        line = b""
        try:
            self.process.stdin.write(json.dumps(config).encode() + b"\n")
            self.process.stdin.flush()
            if not select.select([self.process.stdout], [], [], timeout_s)[0]:
                raise EngineError(
                    f"{config['gguf']} did not load within {timeout_s:.0f} s: choose a smaller model or a faster disk."
                )
            line = self.process.stdout.readline()
        except BrokenPipeError:  # it died before it read its configuration
            pass
        if line:
            return str(json.loads(line)["address"])
        status = self.process.wait(timeout=10.0)
        self._log.seek(0)
        errors = [line for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        if status == -9:
            raise EngineError(f"{config['gguf']} does not fit into memory: choose a smaller model.")
        if any("lora" in line for line in errors) and config["adapter_gguf"]:
            raise EngineError(f"{config['adapter_gguf']} cannot be loaded: train or download the adapter again.")
        reason = _LOG_PREFIX.sub("", errors[0])[:160] if errors else f"exit status {status}"
        raise EngineError(f"{config['gguf']} cannot be loaded ({reason}): download it again or choose another model.")

    def _watch(self, probe_s: float) -> None:
        """Check the health every `probe_s` seconds, until the process ends or hangs."""
        missed = 0
        while not self._stopped.wait(0 if missed else probe_s) and self.process.poll() is None:
            try:
                self.client.request("GET", "/health", timeout_s=probe_s)
                missed = 0
            except NoAnswer:
                missed += 1
                if missed == 2:
                    self._kill()
            except EngineError:  # it has just died, or answers an error: it runs
                missed = 0

    def kill_if_silent(self) -> None:
        """Kill a process that has sent nothing to any request for `silence_s`: one of them has waited that long."""
        if time.monotonic() - self.last_output_s >= self._silence_s:
            self._kill()

    def _kill(self) -> None:
        self.hung = True
        self.process.kill()

    def stop(self) -> None:
        """End the process and free its pipes. Idempotent."""
        assert self.process.stdin and self.process.stdout
        self._stopped.set()
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self.process.wait(timeout=0.0 if self.hung else END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self._log.close()
