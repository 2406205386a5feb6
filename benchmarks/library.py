"""How well the library's search finds the page and the section, and whether it knows what it does not have.

    python benchmarks/library.py [--split dev|test] [--json FILE] [--failures]

The questions (benchmarks/library_questions) were written by people who saw the titles of the pages and the headings of
each kind, and nothing else; none of them trains anything. Rows of "test" are for the last look: nothing is changed or
fitted after them. A row whose page the library does not have is skipped and counted. A section counts as shown where
the quoted answer holds all of its lines; whether the gate let it through is counted on its own. Beside it stands plain
BM25 over the same sections (`bm25s` with its stop words and English stems).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.plain_bm25 import PlainBm25  # noqa: E402
from medical_assistant.errors import UserError, run_script  # noqa: E402
from medical_assistant.files import git_commit  # noqa: E402
from medical_assistant.library.answer import quoted_answer  # noqa: E402
from medical_assistant.library.index import FOLDER, EmbeddedLibrary, open_library  # noqa: E402
from medical_assistant.library.pages import Page  # noqa: E402
from medical_assistant.library.passages import Found  # noqa: E402
from medical_assistant.safety.screening import screen  # noqa: E402

QUESTIONS = ROOT / "benchmarks" / "library_questions"
FIRST = 3
PLAIN_SECTIONS = 60  # of plain BM25, to find three pages among
START_CODE = """
import resource, sys, time
def kib(): return int(next(l for l in open("/proc/self/status") if l.startswith("VmRSS")).split()[1])
import bm25s, Stemmer, rapidfuzz.process, yaml
from medical_assistant.library.index import open_library
from pathlib import Path
before, start = kib(), time.process_time()
library = open_library(Path(sys.argv[1]))
print(time.process_time() - start, (kib() - before) / 1024)
"""

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    library = open_library(arguments.library)
    report = measure(library, arguments.library, arguments.split, arguments.failures)
    print(render(report))
    if arguments.json:
        kept = json.loads(arguments.json.read_text(encoding="utf-8")) if arguments.json.exists() else {}
        text = json.dumps({**kept, arguments.split: report}, indent=2, sort_keys=True)
        arguments.json.write_text(text + "\n", encoding="utf-8")
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", type=Path, default=FOLDER, help="folder of pages")
    parser.add_argument("--split", choices=("dev", "test"), default="dev", help="which questions (default: dev)")
    parser.add_argument("--json", type=Path, help="write the figures here, beside those of the other split")
    parser.add_argument("--failures", action="store_true", help="print the rows that went wrong")
    return parser.parse_args(argv)


def read_rows(name: str, split: str) -> list[Row]:
    """Return the rows of a file of questions that belong to `split`."""
    path = QUESTIONS / f"{name}.jsonl"
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is missing or broken: restore it.") from error
    return [row for row in rows if row["split"] == split]


def measure(library: EmbeddedLibrary, folder: Path, split: str, failures: bool = False) -> dict[str, Any]:
    """Return all figures of a split; with `failures` print each row that went wrong."""
    by_id = {page.id: page for page in library.pages}
    plain = PlainBm25(library.pages)
    report: dict[str, Any] = {"git_commit": git_commit(), "split": split, "pages": len(library.pages)}
    times: list[float] = []
    for name in ("covered", "follow_ups"):
        rows = read_rows(name, split)
        present = [row for row in rows if row["page"] in by_id]
        outcomes = [outcome(row, *timed(library, row, times)) for row in present]
        report[name] = {"rows": len(rows), "page_missing": len(rows) - len(present), **shares(outcomes)}
        report[name]["section_not_in_page"] = sum(not has_section(row, by_id) for row in present)
        if name == "covered":
            report["plain_bm25"] = shares([plain_outcome(plain, row) for row in present])
        if failures:
            for row, seen in zip(present, outcomes, strict=True):
                if not all(seen[key] for key in ("first_3", "section", "answered")):
                    print(describe(row, seen))
    rows = read_rows("uncovered", split)
    seen_rows = [timed(library, row, times)[0] for row in rows]
    through = [found.coverage != "not" for found in seen_rows]
    report["uncovered"] = {"rows": len(rows), "let_through": mean(through)}
    report["uncovered"]["covered"] = mean(found.coverage == "covered" for found in seen_rows)
    if failures:
        for row, found in zip(rows, seen_rows, strict=True):
            if found.coverage != "not":
                topics = ", ".join(f"{part.topic.id} ({part.matched})" for part in found.parts)
                print(f"LET THROUGH {found.probability:.2f} {row['question']!r}: {topics}")
    report["get_help_now"] = urgent_shares(library.pages)
    milliseconds = np.asarray(np.percentile(times, [50, 95])) * 1000
    report["speed_ms"] = {"p50": round(float(milliseconds.item(0)), 2), "p95": round(float(milliseconds.item(1)), 2)}
    report["start"] = start_cost(folder)
    return report


def timed(library: EmbeddedLibrary, row: Row, times: list[float]) -> tuple[Found, set[tuple[str, str]]]:
    """Return what was found and the (page, section)s that its answer shows whole; its CPU seconds go to `times`."""
    start = time.process_time()
    found = library.find(row["question"], row.get("earlier", ()))
    quoted_answer(found)
    times.append(time.process_time() - start)
    shown = quoted_answer(dataclasses.replace(found, coverage="covered")).lines
    lines = {(page.id, line) for page, line in shown}
    whole = {
        (part.topic.id, section.heading)
        for part in found.parts
        for section in part.topic.sections
        if all((part.topic.id, line) in lines for line in section.lines)
    }
    return found, whole


def accepted(row: Row) -> tuple[set[str], set[str]]:
    """Return the ids of the pages and the headings of the sections that answer a row."""
    return {row["page"], *row.get("also_ok", ())}, {row["section"], *row.get("section_also_ok", ())}


def has_section(row: Row, by_id: dict[str, Page]) -> bool:
    pages, headings = accepted(row)
    return any(by_id[name].section(heading) for name in pages & set(by_id) for heading in headings)


def outcome(row: Row, found: Found, whole: set[tuple[str, str]]) -> dict[str, Any]:
    """Return what went right: page `first` and in the `first_3`, `section` shown, `answered` (not abstained)."""
    pages, headings = accepted(row)
    order = list(dict.fromkeys([part.topic.id for part in found.parts] + [page.id for page in found.nearest]))
    return {
        "first": bool(order) and order[0] in pages,
        "first_3": bool(pages & set(order[:FIRST])),
        "section": any((page, heading) in whole for page in pages for heading in headings),
        "answered": found.coverage != "not",
        "order": order[:FIRST],
        "parts": [
            (part.topic.id, part.matched, part.asked, [passage.section.heading for passage in part.passages])
            for part in found.parts
        ],
        "probability": found.probability,
    }


def describe(row: Row, seen: dict[str, Any]) -> str:
    faults = [
        name for name, key in (("PAGE", "first_3"), ("SECTION", "section"), ("ABSTAINED", "answered")) if not seen[key]
    ]
    wanted = f"{row['page']} / {row['section']} {row.get('section_also_ok', '')}"
    return (
        f"{' '.join(faults)} {seen['probability']:.2f} {row.get('earlier', '')} {row['question']!r}\n"
        f"    wanted {wanted}; {seen['order']} {seen['parts']}"
    )


def shares(outcomes: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the share (0-1) of the rows for each thing that went right."""
    return {
        key: mean(seen[key] for seen in outcomes)
        for key in ("first", "first_3", "section", "answered")
        if all(key in seen for seen in outcomes)
    }


def mean(values: Iterable[bool]) -> float:
    found = list(values)
    return round(sum(found) / max(1, len(found)), 4)


def plain_outcome(plain: PlainBm25, row: Row) -> dict[str, Any]:
    """Return what went right for plain BM25, as `outcome`; its best section counts as shown."""
    pages, headings = accepted(row)
    best = plain.search(row["question"], PLAIN_SECTIONS)
    order = list(dict.fromkeys(page for page, _ in best))
    return {
        "first": order[0] in pages,
        "first_3": bool(pages & set(order[:FIRST])),
        "section": best[0][0] in pages and best[0][1] in headings,
    }


def urgent_shares(pages: Sequence[Page]) -> dict[str, Any]:
    """Return the share of the items under "Get help now" that triage takes for an emergency, or at least urgent.

    Each is said as "I have ITEM"; the sentences of that section that are no items are for the reader, not from one.
    """
    sections = (page.section("Get help now") for page in pages)
    items = sorted({line.text for section in sections if section for line in section.lines if line.item})
    levels = [screen(f"I have {item}").triage.level for item in items]
    return {
        "items": len(items),
        "emergency": mean(level == "emergency" for level in levels),
        "at_least_urgent": mean(level in ("emergency", "urgent") for level in levels),
    }


def start_cost(folder: Path) -> dict[str, float]:
    """Return the CPU seconds (the least of three starts) and the MB that opening the library costs a process."""
    runs = [
        subprocess.run(
            [sys.executable, "-c", START_CODE, str(folder)], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.split()
        for _ in range(3)
    ]
    cpu_s, memory_mb = min(float(run[0]) for run in runs), max(float(run[1]) for run in runs)
    return {"cpu_s": round(cpu_s, 2), "memory_mb": round(memory_mb, 1)}


def render(report: dict[str, Any]) -> str:
    lines = [f"{report['pages']} pages, {report['split']} questions"]
    for name in ("covered", "follow_ups", "plain_bm25", "uncovered", "get_help_now", "speed_ms", "start"):
        lines.append(f"{name:>12}  " + "  ".join(f"{key} {value}" for key, value in report[name].items()))
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main)
