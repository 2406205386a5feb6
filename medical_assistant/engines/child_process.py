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
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from medical_assistant.engines.openai_client import OpenAIClient
from medical_assistant.errors import EngineError

_SOURCE_ROOT = Path(__file__).resolve().parents[2]
_LOG_PREFIX = re.compile(r"^[\d.]+ E\s+(?:\w+\s+)?[\w~]+: (?:error loading model: )?")


class ChildProcess:
    """A running child process and the client that talks to it."""

    def __init__(self, config: Mapping[str, Any], start_timeout_s: float) -> None:
        if importlib.util.find_spec("xllamacpp") is None:
            raise EngineError("xllamacpp is not installed: pip install -r requirements-cpu.txt")
        for file in (config["gguf"], config["adapter_gguf"]):
            if file and not Path(file).is_file():
                raise EngineError(f"There is no file {file}: download the model or adapter again.")
        self._log: IO[bytes] = tempfile.TemporaryFile()  # llama.cpp's errors; never grows by requests
        search_path = os.pathsep.join(filter(None, [str(_SOURCE_ROOT), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "medical_assistant.engines.llama_cpp_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, "PYTHONPATH": search_path},
            start_new_session=True,  # Ctrl-C in a terminal is for the app, which then closes this
        )
        try:
            key = secrets.token_hex(16)  # on standard input: a command line is public on the machine
            address = self._start({**config, "api_key": key}, start_timeout_s)
        except BaseException:
            self.stop()
            raise
        self.client = OpenAIClient(address, key, use_proxy=False)

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

    def stop(self) -> None:
        """End the process and free its pipes. Idempotent."""
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self.process.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self._log.close()
