"""Decoding speed, side by side, in one run: the bare library, our engine, the page's API, transformers.

    python benchmarks/decode.py [--json FILE] [--tokens 128] [--repeats 3] [--skip page transformers]

Every row answers the same question greedily on the same model. Tokens/s are those after the first
token; with four clients they are the four together. Repeats are interleaved, so that other work on
the machine falls on all rows alike; the table holds medians.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from medical_assistant.engines.base import Options  # noqa: E402
from medical_assistant.engines.llama_cpp import LlamaCppEngine  # noqa: E402
from medical_assistant.engines.load import find_gguf  # noqa: E402
from medical_assistant.errors import UserError, run_script  # noqa: E402
from medical_assistant.models.adapter import Adapter, load_adapter  # noqa: E402
from medical_assistant.models.presets import find_preset  # noqa: E402
from medical_assistant.prompts import build_messages  # noqa: E402

MODEL = "smollm2-135m"
PRESET = find_preset(MODEL)
ADAPTER = ROOT / "assets" / "adapters" / MODEL
QUESTION = "What causes high blood pressure and how is it treated?"
CLIENTS = 4
TARGETS = {"engine": 0.92, "page": 0.85, "transformers": 4.0}

Times = list[float]  # when each new token came, in seconds since the request
Rows = dict[tuple[str, int], Callable[[int], Times]]  # (name, clients): what one client runs for so many tokens


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    with ExitStack() as stack:
        adapter = load_adapter(ADAPTER, PRESET) if ADAPTER.is_dir() else None
        engine = LlamaCppEngine(find_gguf(PRESET), adapter, threads=arguments.threads)
        stack.enter_context(closing(engine))
        bare = open_bare(engine.threads, adapter)
        rows: Rows = {}
        models = {"base": False, "adapter": True} if adapter else {"base": False}
        for clients, (model, on) in itertools.product((1, CLIENTS), models.items()):
            rows[f"bare, {model}", clients] = partial(time_bare, bare, on)
            rows[f"engine, {model}", clients] = partial(time_engine, engine, on)
        if "page" not in arguments.skip:
            page = stack.enter_context(open_page(engine.threads))
            for model, on in models.items():
                rows[f"page, {model}", 1] = partial(time_page, page, engine, "Fine-tuned" if on else "Base")
        if "transformers" not in arguments.skip:
            for dtype in ("bfloat16", "float32"):
                rows[f"transformers, {dtype}", 1] = partial(time_generate, load_generate(dtype))
        table = summarise(measure(rows, arguments.repeats, arguments.tokens))
        report = {
            "tokens": arguments.tokens,
            "repeats": arguments.repeats,
            "threads": engine.threads,
            "rows": table,
            "stop_cpu_s": measure_stop(engine),
            "checks": check_targets(table),
        }
    print(render(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the table to this file")
    parser.add_argument("--tokens", type=int, default=128, help="new tokens of one answer (default 128)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each row (default 3)")
    parser.add_argument("--threads", type=int, help="llama.cpp's threads (default: the engine's choice)")
    parser.add_argument("--skip", nargs="+", default=(), choices=["page", "transformers"], help="rows to leave out")
    arguments = parser.parse_args(argv)
    if not 2 <= arguments.tokens <= 200 or arguments.repeats < 1:
        raise UserError("--tokens must be from 2 to 200, --repeats at least 1.")
    return arguments


def measure(rows: Rows, repeats: int, tokens: int) -> dict[tuple[str, int], list[list[Times]]]:
    """Return, by (row, clients), one list per repeat with the times of each client.

    A run of two tokens goes before each: the prompt is then in the cache for every row, which
    llama.cpp otherwise empties when a request turns the adapter on or off.
    """
    samples: dict[tuple[str, int], list[list[Times]]] = {key: [] for key in rows}
    for _ in range(repeats):
        for key, run in rows.items():
            with ThreadPoolExecutor(key[1]) as pool:
                list(pool.map(run, [2] * key[1]))
                samples[key].append(list(pool.map(run, [tokens] * key[1])))
    return samples


def summarise(samples: dict[tuple[str, int], list[list[Times]]]) -> list[dict[str, Any]]:
    """Return {"name", "clients", "tokens_per_s", "first_token_s", "ratio"} by row, medians over the repeats.

    `ratio` compares with the bare library under as many clients, with the adapter on where it is on
    here. Of the transformers rows the faster is kept.
    """
    speeds = {key: statistics.median(map(_tokens_per_s, repeats)) for key, repeats in samples.items()}
    best = max((speed for (name, _), speed in speeds.items() if name.startswith("transformers")), default=0.0)
    table = []
    for (name, clients), speed in speeds.items():
        if name.startswith("transformers") and speed < best:
            continue
        first_s = statistics.median(times[0] for repeat in samples[name, clients] for times in repeat)
        bare = speeds["bare, adapter" if name.endswith("adapter") else "bare, base", clients]
        figures = {"tokens_per_s": round(speed, 1), "first_token_s": round(first_s, 3), "ratio": round(speed / bare, 3)}
        table.append({"name": name, "clients": clients, **figures})
    return table


def _tokens_per_s(clients: list[Times]) -> float:
    """Tokens after each client's first, over the time from the first to the last of all."""
    duration_s = max(t[-1] for t in clients) - min(t[0] for t in clients)
    if duration_s < 0.001:  # all updates read at once: 3.9 million tokens/s once
        raise UserError("An answer came in one piece, so it has no rate: run again on a quieter machine.")
    return sum(len(times) - 1 for times in clients) / duration_s


def check_targets(table: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return {target: {"value", "target", "met"}} for the rows that were measured, base model and one client."""
    rows = {row["name"].partition(",")[0]: row for row in table if row["clients"] == 1 and "adapter" not in row["name"]}
    values = {name: rows[name]["ratio"] for name in ("engine", "page") if name in rows}
    if "transformers" in rows:
        values["transformers"] = rows["engine"]["tokens_per_s"] / rows["transformers"]["tokens_per_s"]
    return {
        name: {"value": round(value, 2), "target": TARGETS[name], "met": value >= TARGETS[name]}
        for name, value in values.items()
    }


def open_bare(threads: int, adapter: Adapter | None) -> Any:
    """Return the library's own server in this process, with its own defaults but for threads and slots."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(find_gguf(PRESET))
    if adapter:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter.gguf), 1.0)]
    params.n_parallel, params.n_ctx = CLIENTS, CLIENTS * 2048
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.verbosity = 0
    return xllamacpp.Server(params)


def time_bare(server: Any, adapter: bool, tokens: int) -> Times:
    start, times = time.perf_counter(), []

    def receive(chunk: Any) -> None:
        chunk = json.loads(chunk) if isinstance(chunk, str | bytes) else chunk
        if any((choice.get("delta") or {}).get("content") for choice in chunk.get("choices") or ()):
            times.append(time.perf_counter() - start)

    request = {"messages": build_messages(QUESTION), "max_tokens": tokens, "temperature": 0, "stream": True}
    server.handle_chat_completions({**request, "lora": [{"id": 0, "scale": float(adapter)}]}, receive)
    return times


def time_engine(engine: LlamaCppEngine, adapter: bool, tokens: int) -> Times:
    start = time.perf_counter()
    stream = engine.stream(build_messages(QUESTION), Options(adapter=adapter, max_new_tokens=tokens))
    return [time.perf_counter() - start for token in stream if token.text]


@contextmanager
def open_page(threads: int) -> Iterator[Any]:
    """Yield a `gradio_client` of `python app.py` on a free port."""
    from gradio_client import Client

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The engine leaves one core to the page when the model is small, as this one is.
    environment = {**os.environ, "CPU_CORES": str(threads + 1), "GRADIO_SERVER_PORT": str(port)}
    process = subprocess.Popen(
        [sys.executable, "app.py", "--model", MODEL], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
    )
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
        while True:
            if process.poll() is not None or time.monotonic() > deadline:
                raise UserError("app.py did not come up: run `python app.py` to see why.")
            with suppress(httpx.TransportError):
                httpx.get(url, trust_env=False).raise_for_status()
                break
            time.sleep(0.1)
        yield Client(url, verbose=False)
    finally:
        process.terminate()
        process.wait(10)


def time_page(client: Any, engine: LlamaCppEngine, model: str, tokens: int) -> Times:
    """Updates hold several tokens: each of them counts as come when its update came."""
    start, updates = time.perf_counter(), list[tuple[float, str]]()
    job, done = client.submit(QUESTION, model, api_name="/chat"), False
    while not done:  # iterating over the job holds the lock that its updates need
        time.sleep(0.005)
        done = job.done()
        updates += [(time.perf_counter() - start, text) for text in job.outputs()[len(updates) :]]
    job.result()
    times: Times = []
    for seconds, text in updates:
        times += [seconds] * (_count(engine, text) - len(times))
        if len(times) >= tokens:
            break
    # The first update's tokens came together: one of them stands for the first, as in the other rows.
    return times[times.count(times[0]) - 1 :]


def _count(engine: LlamaCppEngine, text: str) -> int:
    empty = engine.count_tokens([{"role": "user", "content": ""}])
    return engine.count_tokens([{"role": "user", "content": text}]) - empty


def load_generate(dtype: str) -> tuple[Any, Any]:
    """Return (tokenizer, model) of the same GGUF under transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    gguf = find_gguf(PRESET)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    dense: dict[str, Any] = {"dtype": getattr(torch, dtype), "quantization_config": GgufConfig(dequantize=True)}
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, **dense)
    return tokenizer, model.eval()


def time_generate(loaded: tuple[Any, Any], tokens: int) -> Times:
    from transformers.generation.streamers import BaseStreamer

    tokenizer, model = loaded
    start, times = time.perf_counter(), []

    class Clock(BaseStreamer):
        def put(self, value: Any) -> None:
            times.append(time.perf_counter() - start)

        def end(self) -> None:
            pass

    messages = build_messages(QUESTION)
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    model.generate(**inputs, max_new_tokens=tokens, do_sample=False, streamer=Clock())
    return times[1:]  # the first call brings the prompt


def measure_stop(engine: LlamaCppEngine) -> float | None:
    """Return the CPU seconds of the engine's process in the second after a stream is closed; None off Linux."""
    stat = Path(f"/proc/{engine.child_pid()}/stat")
    if not stat.exists():
        return None

    def cpu_s() -> float:
        fields = stat.read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    stream = engine.stream(build_messages(QUESTION), Options(adapter=False, max_new_tokens=1500, temperature=1.5))
    for _ in range(8):
        next(stream)
    stream.close()
    before = cpu_s()
    time.sleep(1.0)
    return round(cpu_s() - before, 2)


def render(report: dict[str, Any]) -> str:
    lines = [f"{'':24}{'clients':>8}{'tokens/s':>10}{'first s':>9}{'of bare':>9}"]
    for row in report["rows"]:
        lines.append("{name:24}{clients:>8}{tokens_per_s:>10.1f}{first_token_s:>9.3f}{ratio:>9.2f}".format(**row))
    for name, check in report["checks"].items():
        against = "× transformers.generate" if name == "transformers" else "of bare"
        lines.append(
            f"{name}: {check['value']} {against}, target {check['target']}: {'met' if check['met'] else 'MISSED'}"
        )
    if report["stop_cpu_s"] is not None:
        lines.append(f"stop: {report['stop_cpu_s']:.2f} s of CPU in the second after closing")
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main)
