"""The engine for CPUs: llama.cpp's own server (xllamacpp) in a supervised child process.

Base and adapter are resident once; each request says whether the adapter is on. A crash, or the
kernel's out-of-memory killer, takes the child and not the page: it starts again with the next request.
"""

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
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from medical_assistant.adapter import Adapter
from medical_assistant.engines.base import EngineInfo, Options, Token
from medical_assistant.engines.openai_client import ConnectionLost, OpenAIClient
from medical_assistant.errors import AdapterError, EngineError
from medical_assistant.prompts import Message

MAX_RESTARTS, RESTART_WINDOW_S = 3, 60.0
ADAPTER_ID = 0  # the one adapter a child loads
TEMPLATE_ARGUMENTS = {"enable_thinking": False}  # Qwen3 and its like; other templates ignore it

_SOURCE_ROOT = Path(__file__).resolve().parents[2]
_LOG_PREFIX = re.compile(r"^[\d.]+ E\s+(?:\w+\s+)?[\w~]+: (?:error loading model: )?")


class LlamaCppEngine:
    """One GGUF model, with or without one LoRA adapter; an `Engine` of `engines.base`.

    `parallel` requests are computed together, each with `context_tokens` of prompt and answer; more
    wait for a slot. With the same seed a request alone gives the same answer; beside others, llama.cpp
    sums in another order, and a near tie may fall the other way.

    The chat template is the one that was chosen for the adapter's training; without an adapter
    `chat_template`; else the GGUF's own.

    Raises `EngineError` when the model cannot be loaded, `AdapterError` when the adapter was trained
    on another prompt than the one that the GGUF carries.
    """

    def __init__(
        self,
        gguf: Path,
        adapter: Adapter | None = None,
        *,
        model: str | None = None,
        chat_template: str | None = None,
        parallel: int = 4,
        context_tokens: int = 2048,
        threads: int | None = None,
        start_timeout_s: float = 300.0,
    ) -> None:
        self.info = EngineInfo(
            engine="llama_cpp",
            model=model or str(gguf),
            adapter=adapter.name if adapter else None,
            adapter_revision=adapter.revision if adapter else None,
        )
        self.context_tokens = context_tokens
        self.threads = threads or choose_threads(gguf)
        self.restarts = 0
        self._config = {
            "gguf": str(gguf),
            "adapter_gguf": str(adapter.gguf) if adapter else None,
            "chat_template": adapter.chosen_template if adapter else chat_template,
            "parallel": parallel,
            "context_tokens": context_tokens,
            "threads": self.threads,
        }
        self._start_timeout_s = start_timeout_s
        self._restart_times: list[float] = []
        self._closed = False
        self._lock = threading.Lock()
        self._child = _Child(self._config, start_timeout_s)
        if adapter:
            try:
                self._serve_as_trained(adapter)
            except BaseException:
                self.close()
                raise

    def stream(self, messages: Sequence[Message], options: Options) -> Generator[Token, None, str]:
        if options.adapter and self.info.adapter is None:
            raise AdapterError("No adapter is loaded: choose the base model, or load an adapter.")
        payload: dict[str, Any] = {
            "messages": list(messages),
            "max_tokens": options.max_new_tokens,
            "seed": options.seed % (2**32 - 1),  # 2**32 - 1 means random to llama.cpp
            "logprobs": True,
            "top_logprobs": 1,  # 0 would send none
            "return_progress": True,
            "chat_template_kwargs": TEMPLATE_ARGUMENTS,
            **_sampling(options),
        }
        if self.info.adapter is not None:  # left out, the adapter's state would be the server's choice
            payload["lora"] = [{"id": ADAPTER_ID, "scale": 1.0 if options.adapter else 0.0}]
        return self._stream(payload)

    def _stream(self, payload: Mapping[str, Any]) -> Generator[Token, None, str]:
        child = self._running_child()
        try:
            return (yield from child.client.stream_chat(payload))
        except ConnectionLost as error:
            raise self._explain(child, error) from error

    def count_tokens(self, messages: Sequence[Message]) -> int:
        child = self._running_child()
        try:
            chat = {"messages": list(messages), "chat_template_kwargs": TEMPLATE_ARGUMENTS}
            prompt = child.client.request("POST", "/apply-template", chat)["prompt"]
            text = {"content": prompt, "add_special": True, "parse_special": True}
            return len(child.client.request("POST", "/tokenize", text)["tokens"])
        except ConnectionLost as error:
            raise self._explain(child, error) from error

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._child.stop()

    def child_pid(self) -> int:
        """Return the process id of the child that runs now, for measurements."""
        return self._child.process.pid

    def _running_child(self) -> _Child:
        """Return the child, started again when it died."""
        with self._lock:
            if self._closed:
                raise EngineError("The engine is closed: load the model again.")
            if self._child.process.poll() is not None:
                now = time.monotonic()
                self._restart_times = [t for t in self._restart_times if now - t < RESTART_WINDOW_S]
                if len(self._restart_times) >= MAX_RESTARTS:
                    raise EngineError(
                        f"The model process died {MAX_RESTARTS + 1} times in {RESTART_WINDOW_S:.0f} s: "
                        "free memory or choose a smaller model, then try again in a minute."
                    )
                self._restart_times.append(now)
                self._child.stop()
                self._child = _Child(self._config, self._start_timeout_s)
                self.restarts += 1
            return self._child

    def _explain(self, child: _Child, error: ConnectionLost) -> EngineError:
        if self._closed:
            return EngineError("The engine was closed while it answered.")
        try:
            status = child.process.wait(timeout=1.0)  # the socket closes a moment before the process ends
        except subprocess.TimeoutExpired:
            return error
        cause = "killed, perhaps out of memory" if status == -9 else f"exit status {status}"
        return EngineError(f"The model process died ({cause}) and is restarting: ask again.")

    def _serve_as_trained(self, adapter: Adapter) -> None:
        """Check the prompt; a GGUF without a chat template, where llama.cpp assumes ChatML, gets the adapter's."""
        try:
            self._check_prompt(adapter)
        except AdapterError:
            if self._config["chat_template"] or _has_chat_template(Path(str(self._config["gguf"]))):
                raise
            self._config["chat_template"] = adapter.prompt["chat_template"]
            self._child.stop()
            self._child = _Child(self._config, self._start_timeout_s)
            self._check_prompt(adapter)

    def _check_prompt(self, adapter: Adapter) -> None:
        properties = self._child.client.request("GET", "/props")
        tokens: dict[str, Any] = {name: properties.get(name) for name in ("bos_token", "eos_token")}
        if not (adapter.prompt.get("special_tokens") or {}).get("bos_token"):
            # Qwen's tokenizer has no BOS; its GGUF names one all the same and never adds it.
            tokens["bos_token"] = adapter.prompt["special_tokens"]["bos_token"]
        adapter.check_prompt(properties.get("chat_template", ""), tokens)


class _Child:
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


def _has_chat_template(gguf: Path) -> bool:
    """Search the metadata, which opens the file: parsing it with `GGUFReader` takes 4 s for 49,000 tokens."""
    with gguf.open("rb") as file:
        return b"tokenizer.chat_template" in file.read(64 * 2**20)  # Llama 3's metadata has 8 MB


def _sampling(options: Options) -> dict[str, Any]:
    """Return llama.cpp's sampler chain: temperature, then nucleus (Holtzman et al. 2020), nothing else.

    The order is that of `transformers`; llama.cpp's own defaults also cut by top-k and min-p.
    """
    if options.temperature <= 0:
        return {"temperature": 0.0, "samplers": ["top_k"], "top_k": 1}
    return {
        "temperature": options.temperature,
        "top_p": options.top_p,
        "samplers": ["temperature", "top_p"],
    }


def choose_threads(gguf: Path) -> int:
    """Return the threads for a model: the usable cores, less one for the page when the model is small.

    llama.cpp's threads meet several hundred times a token; one that waits for its core holds up all.
    The 135M model on two cores, with 1 and with 2 threads: 138 and 165 tokens/s on a quiet machine,
    145 and 53 beside one busy process, 90 and 10 beside two. Large models gain more from the core.
    """
    small = gguf.is_file() and gguf.stat().st_size < 500_000_000  # bytes
    return max(1, usable_cores() - small)


def usable_cores() -> int:
    """Return the cores this process may use: `CPU_CORES` (set by Spaces), the container's quota, or affinity."""
    if os.environ.get("CPU_CORES", "").isdigit():
        return max(1, int(os.environ["CPU_CORES"]))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        # cgroup v2, kernel documentation admin-guide/cgroup-v2: "$MAX $PERIOD" in microseconds
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        cores = min(cores, round(int(quota) / int(period)))
    except (OSError, ValueError):  # not Linux, or "max": no limit
        pass
    return max(1, cores)
