"""The llama.cpp server as a process of its own: `python -m medical_assistant.engines.llama_cpp_child`.

The first line of standard input is a JSON object, the fields of `llama_cpp.LlamaCppEngine` under
the names that `build_server` reads. Standard output gets one line, `{"address": "http://127.0.0.1:PORT"}`,
once the model is loaded. The process exits when standard input closes: it never outlives its parent.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def build_server(config: Mapping[str, Any]) -> Any:
    """Return a running `xllamacpp.Server` on a random loopback port.

    Keys of `config`: `gguf`, `adapter_gguf` (None for the base alone), `chat_template` (None for the GGUF's
    own), `api_key`, `parallel`, `context_tokens` (of one request), `threads`, `cache_type`
    ("Q8_0" or "F16").
    """
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = config["gguf"]
    params.model_alias = {"base"}
    if config["adapter_gguf"]:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(config["adapter_gguf"], 1.0)]
        params.lora_init_without_apply = True  # a request that names no scale gets the base
    if config["chat_template"]:
        params.chat_template = config["chat_template"]
    params.n_parallel = config["parallel"]
    params.n_ctx = config["parallel"] * config["context_tokens"]  # llama.cpp divides it among the slots
    # A stop waits for the batch in work: 9 s in a prompt of 1,391 tokens with the default 2,048.
    params.n_batch = params.n_ubatch = 256
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = config["threads"]
    # Threads that spin while they wait fell to 0.4 tokens/s beside two busy processes on two cores;
    # threads that sleep kept 8 to 13, and lose nothing on a quiet machine.
    params.cpuparams.poll = params.cpuparams_batch.poll = 0
    # 8-bit keys and values: 85 MB less for the 135M model at the same speed, with few slots. With 32 slots, 224 tokens
    # each, 16 bits gave 267 tokens/s where 8 bits gave 237.
    params.cache_type_k = params.cache_type_v = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{config['cache_type']}")
    params.cache_ram_mib = 0  # the slots keep the last prompts; a second store may grow to 8 GiB
    params.fit_params = False
    params.api_keys = [config["api_key"]]  # other users of this machine can reach the port too
    params.cors_origins = ""
    params.ui = False
    params.endpoint_slots = False  # it would show prompts
    params.force_pure_content_parser = True  # text as the model wrote it, with nothing held back
    params.n_threads_http = 64  # each open stream holds one
    params.verbosity = 1  # errors only: more would log prompts
    return xllamacpp.Server(params)


def _exit_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


def main() -> None:
    config = json.loads(sys.stdin.readline())
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    with contextlib.suppress(OSError):  # Linux: when memory runs out this process goes, not the page
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")
    try:
        server = build_server(config)
    except (RuntimeError, MemoryError) as error:  # llama.cpp has written its reason to standard error
        sys.exit(f"E {error}")
    sys.stdout.write(json.dumps({"address": server.listening_address}) + "\n")
    sys.stdout.flush()
    threading.Event().wait()


if __name__ == "__main__":
    main()
