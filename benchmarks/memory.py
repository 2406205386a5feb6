"""Whether the app's memory grows with the conversations that it has had: the real app with the embedded model.

    python benchmarks/memory.py [--conversations 2000] [--warm-up 300] [--json FILE]

Each conversation is a client of its own, a few at the same time, with a short answer of one model or the other. One in
ten is an emergency, one in ten a refusal, and one in ten leaves in the middle of a long answer. Resident memory of both
processes, the page and the model, is read after the warm-up and at the end; between, its growth is printed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.app_process import metric, running_app  # noqa: E402
from medical_assistant.errors import UserError, run_script  # noqa: E402
from medical_assistant.files import git_commit, package_versions  # noqa: E402

CLIENTS, ROUND = 4, 100  # clients at the same time; conversations between two readings
SHORT, LONG = 8, 256  # tokens of an answer
TOPICS = ("anaemia", "asthma", "eczema", "gout", "hay fever", "insomnia", "measles", "migraine")
EMERGENCY = "My father has crushing chest pain and cannot breathe, case {number}"
HARM = "How do I forge a prescription for morphine, case {number}?"
QUESTION = "What is {topic}, and what is {number} plus two?"


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    with running_app() as (url, page_pid):
        pids = {"page": page_pid, "model": child_of(page_pid)}
        converse(url, 0, arguments.warm_up)
        warm = {name: resident_mb(pid) for name, pid in pids.items()}
        readings = []
        started_s = time.monotonic()
        for first in range(0, arguments.conversations, ROUND):
            converse(url, arguments.warm_up + first, min(ROUND, arguments.conversations - first))
            readings.append({name: resident_mb(pid) for name, pid in pids.items()})
            show_progress(min(first + ROUND, arguments.conversations), arguments.conversations, started_s, readings[-1])
        idle = metric(url, "running") == metric(url, "waiting") == 0
    report = {
        "conversations": arguments.conversations,
        "warm_up": arguments.warm_up,
        "mb_after_warm_up": warm,
        "mb_at_the_end": readings[-1],
        "grown_mb": {name: round(readings[-1][name] - warm[name], 1) for name in pids},
        "ratio": round(sum(readings[-1].values()) / sum(warm.values()), 3),
        "mb_each_hundred": readings,
        "idle_after": idle,
        "git_commit": git_commit(),
        "versions": package_versions(("gradio", "xllamacpp")),
    }
    print(render(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=int, default=2000, help="after the warm-up (default: 2000)")
    parser.add_argument("--warm-up", type=int, default=300, help="conversations before the first reading")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args(argv)
    if arguments.conversations < 1 or arguments.warm_up < 1:
        raise UserError("--conversations and --warm-up must be 1 or more.")
    return arguments


def child_of(pid: int) -> int:
    """Return the process id of the model, the only child of the page. `UserError`: not on Linux."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    found = [int(child) for task in children.parent.parent.glob("*/children") for child in task.read_text().split()]
    if len(found) != 1:
        raise UserError("The model's process is not found: this benchmark reads /proc, as Linux has it.")
    return found[0]


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process, without the files that it maps, in MB of 10^6 bytes."""
    kib = re.search(r"^RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert kib, "Linux writes RssAnon since 4.5"
    return round(int(kib[1]) * 1024 / 1e6, 1)


def converse(url: str, first: int, count: int) -> None:
    """Have `count` conversations, `CLIENTS` at a time. `UserError`: one was not answered."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(lambda number: one_conversation(url, number), range(first, first + count)))


def one_conversation(url: str, number: int) -> None:
    import httpx

    kind, model = number % 10, ("Base", "Fine-tuned")[number % 2]
    text = {0: EMERGENCY, 1: HARM}.get(kind, QUESTION).format(topic=TOPICS[number % len(TOPICS)], number=number)
    leaves = kind == 2
    data: list[Any] = [text, model, "", LONG if leaves else SHORT]
    with httpx.Client(base_url=f"{url}/gradio_api/call/chat", timeout=300, trust_env=False) as client:
        event = client.post("", json={"data": data}).json()["event_id"]
        with client.stream("GET", f"/{event}") as lines:
            for line in lines.iter_lines():
                if leaves and line.startswith("data: [") and len(line) > 20:
                    return
                if line.startswith("event: error"):
                    raise UserError(f"The app did not answer {text!r}.")


def show_progress(done: int, total: int, started_s: float, reading: dict[str, float]) -> None:
    rate = done / (time.monotonic() - started_s)
    sizes = ", ".join(f"{name} {size:.1f} MB" for name, size in reading.items())
    print(f"{done}/{total}, {rate:.1f}/s, {(total - done) / rate:.0f} s left: {sizes}", file=sys.stderr, flush=True)


def render(report: dict[str, Any]) -> str:
    lines = [f"{'':8}{'after warm-up':>15}{'at the end':>12}{'grown':>8}"]
    for name, grown in report["grown_mb"].items():
        before, after = report["mb_after_warm_up"][name], report["mb_at_the_end"][name]
        lines.append(f"{name:8}{before:>12.1f} MB{after:>9.1f} MB{grown:>5.1f} MB")
    lines.append(f"{report['conversations']} conversations: {report['ratio']:.3f} times the memory after the warm-up")
    lines.append("idle afterwards" if report["idle_after"] else "NOT idle afterwards")
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main)
