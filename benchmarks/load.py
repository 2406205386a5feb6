"""What many users at once feel: they ask the real app over HTTP, beside one user alone.

    python benchmarks/load.py --who library|base|fine-tuned [--users 50] [--rounds N] [--max-wait-s 600] [--json FILE]

The app runs as a process of its own with its default slots; its limits for each client are raised, since all clients
come from this machine. First one user asks, then all at the same moment, each once a round; models answer greedily. The
library is asked at both endpoints, /chat and /library. "lost" counts questions without an answer; the waits are those
that a user sees, Gradio's queue and this app's included. After it the app must be idle and healthy.

The clients are as light as `curl` (Gradio's HTTP API: POST /gradio_api/call/NAME, then the events of its answer): 50 of
Gradio's own Python clients take four times the CPU that the app takes to answer them from the library, and on two cores
would be what is measured.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.app_process import cpu_seconds, fetch, metric, running_app  # noqa: E402
from medical_assistant.engines.base import Options  # noqa: E402
from medical_assistant.errors import UserError, run_script  # noqa: E402
from medical_assistant.files import git_commit, package_versions, write_json  # noqa: E402

TOPICS = (
    "anaemia", "asthma", "eczema", "gout", "hay fever", "high cholesterol", "insomnia", "iron tablets", "measles",
    "migraine",
)  # fmt: skip
LIBRARY_QUESTIONS = ROOT / "benchmarks" / "library_questions" / "covered.jsonl"
MODELS = {"library": "Library", "base": "Base", "fine-tuned": "Fine-tuned"}  # as /chat calls them
WAITS = ("first_text_s", "whole_answer_s")
LIBRARY_ROUNDS = 5  # an answer takes milliseconds

Call = tuple[str, list[Any]]  # endpoint, its inputs


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    who, users = arguments.who, arguments.users
    library = who == "library"
    rounds = arguments.rounds or (LIBRARY_ROUNDS if library else 1)
    asked = questions(who, rounds * users)
    rows = []
    with running_app() as (url, pid):
        for endpoint in ("/chat", "/library") if library else ("/chat",):
            settings = [MODELS[who], "", Options().max_new_tokens] if endpoint == "/chat" else [""]
            calls = [(endpoint, [text, *settings]) for text in asked]
            ask_rounds(url, pid, calls[:1], 1, arguments.max_wait_s)  # what is loaded late
            rows.append(ask_rounds(url, pid, calls[:rounds], 1, arguments.max_wait_s))
            rows.append(ask_rounds(url, pid, calls, users, arguments.max_wait_s))
        healthy = fetch(url, "/healthz")[0] == 200 and metric(url, "running") == 0
    report = {
        "who": who,
        "rows": rows,
        "throughput_ratio": round(rows[1]["tokens_per_s"] / rows[0]["tokens_per_s"], 2) if not library else None,
        "healthy_after": healthy,
        "git_commit": git_commit(),
        "versions": package_versions(("gradio", "bm25s") if library else ("gradio", "xllamacpp")),
    }
    print(render(report))
    if arguments.json:
        write_json(arguments.json, report)
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--who", choices=MODELS, required=True, help="who answers")
    parser.add_argument("--users", type=int, default=50, help="users at the same moment (default: 50)")
    parser.add_argument(
        "--rounds", type=int, help=f"questions of each user (default: {LIBRARY_ROUNDS} of the library, 1 of a model)"
    )
    parser.add_argument("--max-wait-s", type=float, default=600.0, help="after this a question counts as lost")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args(argv)
    if arguments.users < 2:
        raise UserError("--users must be 2 or more: one user alone is measured anyway.")
    return arguments


def questions(who: str, number: int) -> list[str]:
    """Return as many questions: people's everyday ones for the library, for a model such as nobody else asks."""
    if who != "library":
        topics = (TOPICS[at % len(TOPICS)] for at in range(number))
        return [f"What should I know about {topic}, and what is {at + 1} times two?" for at, topic in enumerate(topics)]
    rows = [json.loads(line) for line in LIBRARY_QUESTIONS.read_text(encoding="utf-8").splitlines()]
    return [rows[at % len(rows)]["question"] for at in range(number)]


def ask_rounds(url: str, pid: int, calls: Sequence[Call], users: int, max_wait_s: float) -> dict[str, Any]:
    """Ask all `calls`, as many at the same moment as there are `users`.

    Return the waits, the CPU that an answer took in the app's own process, tokens/s and what was lost.
    """
    waits: list[dict[str, float] | None] = []
    tokens_before, cpu_before_s, seconds = metric(url, "tokens_total"), cpu_seconds(pid), 0.0
    for first in range(0, len(calls), users):
        started_s = time.monotonic()
        waits += ask_together(url, calls[first : first + users], max_wait_s)
        seconds += time.monotonic() - started_s
    cpu_s, tokens = cpu_seconds(pid) - cpu_before_s, metric(url, "tokens_total") - tokens_before
    answered = [wait for wait in waits if wait]
    return {
        "endpoint": calls[0][0],
        "users": users,
        "questions": len(calls),
        "lost": len(calls) - len(answered),
        "seconds": round(seconds, 1),
        "tokens": tokens,
        "tokens_per_s": round(tokens / seconds, 1),
        "tokens_per_s_and_user": round(tokens / seconds / users, 2),
        "app_cpu_ms": round(1000 * cpu_s / len(calls), 1),
        "first_text_s": percentiles([wait["first_text_s"] for wait in answered]),
        "whole_answer_s": percentiles([wait["whole_answer_s"] for wait in answered]),
    }


def ask_together(url: str, calls: Sequence[Call], max_wait_s: float) -> list[dict[str, float] | None]:
    waits: list[dict[str, float] | None] = [None] * len(calls)
    together = threading.Barrier(len(calls))

    def ask(number: int) -> None:
        together.wait()
        waits[number] = wait_for_answer(url, *calls[number], max_wait_s)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return waits


def wait_for_answer(url: str, endpoint: str, inputs: list[Any], max_wait_s: float) -> dict[str, float] | None:
    """Return the seconds to the first text and to the end, None where no answer came."""
    started_s = time.monotonic()
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=max_wait_s)
    first_s, event = None, ""
    try:
        path, body = f"/gradio_api/call{endpoint}", json.dumps({"data": inputs})
        connection.request("POST", path, body, {"content-type": "application/json"})
        event_id = json.loads(connection.getresponse().read())["event_id"]
        connection.request("GET", f"{path}/{event_id}")
        for line in connection.getresponse():
            after_s = time.monotonic() - started_s
            if after_s > max_wait_s:
                return None
            name, _, value = line.decode().strip().partition(": ")
            if name == "event":
                event = value
            elif name == "data" and event in ("generating", "complete") and any(json.loads(value) or ()):
                first_s = first_s or after_s
                if event == "complete":
                    return {"first_text_s": first_s, "whole_answer_s": after_s}
    except (OSError, http.client.HTTPException, KeyError, ValueError):
        pass  # the server is full, failed or hung up: the question is lost
    finally:
        connection.close()
    return None


def percentiles(values: list[float]) -> dict[str, float]:
    """Return {"p50", "p95", "p99"}: the smallest value that this part of all is not above; empty without values."""
    ordered = sorted(values)
    ranks = {f"p{part}": -(-part * len(ordered) // 100) - 1 for part in (50, 95, 99)}
    return {name: round(ordered[rank], 3) for name, rank in ranks.items()} if ordered else {}


def render(report: dict[str, Any]) -> str:
    lines = [
        f"{'':10}{'users':>6}{'lost':>6}{'tokens/s':>10}{'a user':>8}{'CPU ms':>8}"
        + "".join(f"{f'{what} {p}':>11}" for what in ("first", "whole") for p in ("p50", "p95", "p99"))
    ]
    for row in report["rows"]:
        waits = (row[what].get(p, float("nan")) for what in WAITS for p in ("p50", "p95", "p99"))
        lines.append(
            f"{row['endpoint']:10}{row['users']:>6}{row['lost']:>6}{row['tokens_per_s']:>10.1f}"
            f"{row['tokens_per_s_and_user']:>8.2f}{row['app_cpu_ms']:>8.1f}"
            + "".join(f"{wait:>11.3f}" for wait in waits)
        )
    if report["throughput_ratio"]:
        lines.append(f"all users together make {report['throughput_ratio']:.2f} times the tokens/s of one alone")
    lines.append("healthy and idle afterwards" if report["healthy_after"] else "NOT healthy or not idle afterwards")
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main)
