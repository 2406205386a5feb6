"""What many users at once feel: real Gradio clients ask the real app with the embedded model, beside one user alone.

    python benchmarks/load.py [--users 50] [--max-wait-s 600] [--json FILE]

The app runs as a process of its own with its default slots; its limits for each client are raised, since all clients
come from this machine. First one user asks, then all at the same moment, each once, base model, greedy. "lost" counts
questions without an answer; the waits are those that a user sees, the queue included. After it the app must be idle and
healthy.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.app_process import fetch, metric, running_app  # noqa: E402
from medical_assistant.errors import UserError, run_script  # noqa: E402
from medical_assistant.files import git_commit, package_versions  # noqa: E402

TOPICS = (
    "anaemia", "asthma", "eczema", "gout", "hay fever", "high cholesterol", "insomnia", "iron tablets", "measles",
    "migraine",
)  # fmt: skip
POLL_S = 0.02


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    with running_app() as (url, _):
        clients = connect(url, arguments.users)
        ask_all(clients[:1], url, arguments.max_wait_s)  # what is loaded late
        one = ask_all(clients[:1], url, arguments.max_wait_s)
        many = ask_all(clients, url, arguments.max_wait_s)
        healthy = fetch(url, "/healthz")[0] == 200 and metric(url, "running") == 0
    report = {
        "rows": [one, many],
        "throughput_ratio": round(many["tokens_per_s"] / one["tokens_per_s"], 2),
        "healthy_after": healthy,
        "git_commit": git_commit(),
        "versions": package_versions(("gradio", "gradio-client", "xllamacpp")),
    }
    print(render(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=50, help="users at the same moment (default: 50)")
    parser.add_argument("--max-wait-s", type=float, default=600.0, help="after this a question counts as lost")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args(argv)
    if arguments.users < 2:
        raise UserError("--users must be 2 or more: one user alone is measured anyway.")
    return arguments


def connect(url: str, users: int) -> list[Any]:
    import gradio_client

    return [gradio_client.Client(url, verbose=False) for _ in range(users)]


def ask_all(clients: list[Any], url: str, max_wait_s: float) -> dict[str, Any]:
    """Ask through all clients at the same moment; return the waits, tokens/s and what was lost."""
    waits: list[dict[str, float] | None] = [None] * len(clients)
    together = threading.Barrier(len(clients))

    def ask(number: int) -> None:
        question = f"What should I know about {TOPICS[number % len(TOPICS)]}, and what is {number + 1} times two?"
        together.wait()
        waits[number] = wait_for_answer(clients[number], question, max_wait_s)

    before, started_s = metric(url, "tokens_total"), time.monotonic()
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(clients))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - started_s
    answered = [wait for wait in waits if wait]
    tokens = metric(url, "tokens_total") - before
    return {
        "users": len(clients),
        "lost": len(clients) - len(answered),
        "seconds": round(seconds, 1),
        "tokens": tokens,
        "tokens_per_s": round(tokens / seconds, 1),
        "tokens_per_s_and_user": round(tokens / seconds / len(clients), 2),
        "first_text_s": percentiles([wait["first_text_s"] for wait in answered]),
        "whole_answer_s": percentiles([wait["whole_answer_s"] for wait in answered]),
    }


def wait_for_answer(client: Any, question: str, max_wait_s: float) -> dict[str, float] | None:
    """Return the seconds to the first text and to the end, None where no answer came."""
    started_s = time.monotonic()
    job = client.submit(question, "Base", api_name="/chat")
    first_s = None
    # Not `for update in job`: that hangs where the queue is full.
    while not job.done() and time.monotonic() - started_s < max_wait_s:
        if first_s is None and any(job.outputs()):
            first_s = time.monotonic() - started_s
        time.sleep(POLL_S)
    if not job.done() or job.exception() or not job.result():
        return None
    whole_s = time.monotonic() - started_s
    return {"first_text_s": first_s or whole_s, "whole_answer_s": whole_s}


def percentiles(values: list[float]) -> dict[str, float]:
    """Return {"p50", "p95", "p99"}: the smallest value that this part of all is not above; empty without values."""
    ordered = sorted(values)
    ranks = {f"p{part}": -(-part * len(ordered) // 100) - 1 for part in (50, 95, 99)}
    return {name: round(ordered[rank], 2) for name, rank in ranks.items()} if ordered else {}


def render(report: dict[str, Any]) -> str:
    head = f"{'users':>6}{'lost':>6}{'tokens/s':>10}{'a user':>8}"
    lines = [head + "".join(f"{f'first {p}':>11}" for p in ("p50", "p95", "p99")) + f"{'whole p95':>11}"]
    for row in report["rows"]:
        first = "".join(f"{row['first_text_s'].get(p, float('nan')):>11.2f}" for p in ("p50", "p95", "p99"))
        whole = row["whole_answer_s"].get("p95", float("nan"))
        lines.append(
            f"{row['users']:>6}{row['lost']:>6}{row['tokens_per_s']:>10.1f}{row['tokens_per_s_and_user']:>8.2f}"
            f"{first}{whole:>11.2f}"
        )
    lines.append(f"all users together make {report['throughput_ratio']:.2f} times the tokens/s of one alone")
    lines.append("healthy and idle afterwards" if report["healthy_after"] else "NOT healthy or not idle afterwards")
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main)
