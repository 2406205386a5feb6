"""The engine for CPUs: llama.cpp's own server (xllamacpp) in a supervised child process.

Base and adapter are resident once; each request says whether the adapter is on. A crash, or the
kernel's out-of-memory killer, takes the child and not the page: it starts again with the next request.
A child that hangs is killed (`child_process`).
"""

from __future__ import annotations

import mmap
import os
import subprocess
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from pathlib import Path
from typing import Any

from medical_assistant.engines.base import Answer, EngineInfo, Options, Token
from medical_assistant.engines.child_process import PROBE_S, ChildProcess
from medical_assistant.engines.openai_client import READ_TIMEOUT_S, ConnectionLost, NoAnswer
from medical_assistant.errors import EngineError
from medical_assistant.models.adapter import Adapter
from medical_assistant.models.chat_templates import TEMPLATE_ARGUMENTS
from medical_assistant.prompts import Message

MAX_RESTARTS, RESTART_WINDOW_S = 3, 60.0
ADAPTER_ID = 0  # the one adapter a child loads
# Alternatives for the entropy; 0 would send no probabilities at all. In batches 10 took 11 % of the speed, one 5 %; a
# calibration.json holds for the number that its entropies were computed with.
TOP_LOGPROBS = 10


class LlamaCppEngine:
    """One GGUF model, with or without one LoRA adapter; an `Engine` of `engines.base`.

    `parallel` requests are computed together, each with `context_tokens` of prompt and answer; more
    wait for a slot. With the same seed a request alone gives the same answer; beside others, llama.cpp
    sums in another order, and a near tie may fall the other way.

    `merged` says that `gguf` holds the adapter's weights already (`engines.eight_bit`): it is always on. `cache_type`
    is that of keys and values, "Q8_0" or "F16". `probe_s` and `silence_s` as in `ChildProcess`.

    The chat template is the one that was chosen for the adapter's training; without an adapter
    `chat_template`; else the GGUF's own.

    Raises `EngineError` when the model cannot be loaded, `AdapterError` when the adapter was trained
    on another prompt than the one that the GGUF carries.
    """

    weights = "as served"

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
        merged: bool = False,
        cache_type: str = "Q8_0",
        start_timeout_s: float = 300.0,
        probe_s: float = PROBE_S,
        silence_s: float = READ_TIMEOUT_S,
    ) -> None:
        self.info = EngineInfo.of("llama_cpp", model or str(gguf), adapter)
        self.context_tokens = context_tokens
        self.threads = threads or choose_threads(gguf)
        self.restarts = 0
        self._parallel = parallel
        self._config = {
            "gguf": str(gguf),
            "adapter_gguf": str(adapter.gguf) if adapter and not merged else None,
            "chat_template": adapter.chosen_template if adapter else chat_template,
            "parallel": parallel,
            "context_tokens": context_tokens,
            "threads": self.threads,
            "cache_type": cache_type,
        }
        if adapter and not adapter.chosen_template and gguf.is_file() and not _has_chat_template(gguf):
            self._config["chat_template"] = adapter.prompt["chat_template"]  # llama.cpp would assume ChatML
        self._limits_s = (start_timeout_s, probe_s, silence_s)
        self._restart_times: list[float] = []
        self._closed = False
        self._lock = threading.Lock()
        self._child = ChildProcess(self._config, *self._limits_s)
        if adapter:
            try:
                self._check_prompt(adapter)
            except BaseException:
                self.close()
                raise

    def stream(self, messages: Sequence[Message], options: Options) -> Generator[Token, None, str]:
        return self._stream({**self._payload(messages, options), "return_progress": True})

    def answer_all(self, conversations: Sequence[Sequence[Message]], options: Options) -> Iterator[tuple[int, Answer]]:
        """As `Engine.answer_all`: `parallel` requests at a time, in llama.cpp's continuous batches."""
        payloads = [self._payload(messages, options) for messages in conversations]
        pool = ThreadPoolExecutor(self._parallel)
        try:
            jobs = {pool.submit(self._chat, payload): index for index, payload in enumerate(payloads)}
            for job in as_completed(jobs):
                yield jobs[job], job.result()
        finally:
            # What has begun is not waited for: it ends with the engine's process.
            pool.shutdown(wait=False, cancel_futures=True)

    def _payload(self, messages: Sequence[Message], options: Options) -> dict[str, Any]:
        self.info.check_adapter(options)
        # llama.cpp's own defaults also cut by top-k and min-p; the order, temperature then nucleus, is transformers'.
        sampling: dict[str, Any] = {"samplers": ["top_k"], "top_k": 1}
        if options.temperature > 0:
            sampling = {"samplers": ["temperature", "top_p"], "top_p": options.top_p}
        payload: dict[str, Any] = {
            "messages": list(messages),
            "max_tokens": options.max_new_tokens,
            "seed": options.seed % (2**32 - 1),  # 2**32 - 1 means random to llama.cpp
            "logprobs": True,
            "top_logprobs": TOP_LOGPROBS,
            "chat_template_kwargs": TEMPLATE_ARGUMENTS,
            "temperature": max(options.temperature, 0.0),
            **sampling,
        }
        if self._config["adapter_gguf"]:  # left out, the adapter's state would be the server's choice
            payload["lora"] = [{"id": ADAPTER_ID, "scale": 1.0 if options.adapter else 0.0}]
        return payload

    def _chat(self, payload: Mapping[str, Any]) -> Answer:
        child = self._running_child()
        try:
            # All slots together make at least a token a second: a large model on two cores makes a few.
            answer = child.client.chat(payload, max(READ_TIMEOUT_S, float(self._parallel * payload["max_tokens"])))
            child.last_output_s = time.monotonic()
            return answer
        except ConnectionLost as error:
            raise self._explain(child, error) from error

    def _stream(self, payload: Mapping[str, Any]) -> Generator[Token, None, str]:
        child = self._running_child()
        try:
            with closing(child.client.stream_chat(payload)) as tokens:
                while True:
                    try:
                        token = next(tokens)
                    except StopIteration as end:
                        return str(end.value)
                    child.last_output_s = time.monotonic()
                    yield token
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

    def _running_child(self) -> ChildProcess:
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
                self._child = ChildProcess(self._config, *self._limits_s)
                self.restarts += 1
            return self._child

    def _explain(self, child: ChildProcess, error: ConnectionLost) -> EngineError:
        if self._closed:
            return EngineError("The engine was closed while it answered.")
        if isinstance(error, NoAnswer):
            child.kill_if_silent()
        try:
            status = child.process.wait(timeout=1.0)  # the socket closes a moment before the process ends
        except subprocess.TimeoutExpired:
            if isinstance(error, NoAnswer):
                return EngineError("The model is busy with other answers: ask again in a minute.")
            return error
        if child.hung:
            return EngineError("The model process stopped responding and is restarting: ask again.")
        cause = "killed, perhaps out of memory" if status == -9 else f"exit status {status}"
        return EngineError(f"The model process died ({cause}) and is restarting: ask again.")

    def _check_prompt(self, adapter: Adapter) -> None:
        properties = self._child.client.request("GET", "/props")
        tokens: dict[str, Any] = {name: properties.get(name) for name in ("bos_token", "eos_token")}
        if not (adapter.prompt.get("special_tokens") or {}).get("bos_token"):
            # Qwen's tokenizer has no BOS; its GGUF names one all the same and never adds it.
            tokens["bos_token"] = adapter.prompt["special_tokens"]["bos_token"]
        adapter.check_prompt(properties.get("chat_template", ""), tokens)


def _has_chat_template(gguf: Path) -> bool:
    """Search the metadata, which opens the file: parsing it with `GGUFReader` takes 4 s for 49,000 tokens."""
    with gguf.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(b"tokenizer.chat_template", 0, 64 * 2**20) >= 0  # Llama 3's metadata has 8 MB


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
