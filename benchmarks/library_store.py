"""How well and how fast a stored library finds passages: MedlinePlus and MedQuAD, indexed as anybody's own pages.

    python benchmarks/library_store.py --sources DIR [--json FILE] [--million]

DIR holds medlineplus_topics.jsonl (a topic a line: title, url, also_called, text) and medquad.jsonl (question, answer,
focus, question_type, source, url), which are read as `data_prep.py library` reads them. A page is what one source says
of one focus; its headings are MedQuAD's question types; the questions themselves are not indexed.

Quality: 500 of MedQuAD's questions (fixed seed). Relevant are all passages of that focus under that question type,
also where several sources have them. nDCG@10 (Järvelin & Kekäläinen 2002, gain 1), hit@1 and hit@3, beside plain
`bm25s` over the same passages: titles, other names, heading and text, its stop words, English stems.

Speed: wall-clock time of find and quoted answer, from one thread, of the same questions ("medquad") and of 400 in
everyday words ("everyday": benchmarks/library_questions, whose words are in more pages). The larger stores hold the
pages again and again, with a name of their own each time. `memory_mb` is what asking takes, `build_memory_mb` the
largest that the process had while it built.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.plain_bm25 import Key, PlainBm25  # noqa: E402
from medical_assistant.errors import UserError, run_script  # noqa: E402
from medical_assistant.files import git_commit, package_versions, write_json  # noqa: E402
from medical_assistant.library.answer import quoted_answer  # noqa: E402
from medical_assistant.library.documents import text_hash  # noqa: E402
from medical_assistant.library.formats.rows import medquad_heading  # noqa: E402
from medical_assistant.library.importers import list_sources, read_pages  # noqa: E402
from medical_assistant.library.pages import Page  # noqa: E402
from medical_assistant.library.store import FORMAT, MANIFEST, Store, StoredLibrary  # noqa: E402

FILES = ("medlineplus_topics.jsonl", "medquad.jsonl")
EVERYDAY = ROOT / "benchmarks" / "library_questions" / "covered.jsonl"
QUESTIONS, SEED, DEPTH = 500, 14, 10
LEVELS = {"50,000": 50_000, "1,000,000": 1_000_000}
GOALS_MS = {"50,000": 30, "1,000,000": 100}
_SYLLABLES = "ba ce di fo gu ka le mi no pu ra se ti vo zu".split()

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    pages = read_corpora(arguments.sources)
    questions = sample_questions(arguments.sources / FILES[1])
    report: dict[str, Any] = {
        "git_commit": git_commit(),
        "packages": package_versions(["lancedb", "bm25s"]),
        "cpus": os.cpu_count(),
    }
    folder = Path(tempfile.mkdtemp(prefix="library-", dir=arguments.scratch))
    try:
        build(folder / "own", pages)
        report["quality"] = quality(StoredLibrary(folder / "own"), pages, questions)
        report["speed"] = {
            name: speed(folder / name, pages, size, questions)
            for name, size in LEVELS.items()
            if arguments.million or size < LEVELS["1,000,000"]
        }
    finally:
        shutil.rmtree(folder)
    print(render(report))
    if arguments.json:
        kept = json.loads(arguments.json.read_text(encoding="utf-8")) if arguments.json.exists() else {}
        report["speed"] = {**kept.get("speed", {}), **report["speed"]}
        write_json(arguments.json, report)
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=Path, required=True, help=f"folder of {' and '.join(FILES)}")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument(
        "--million", action="store_true", help="measure 1,000,000 passages as well (some minutes, 3 GB)"
    )
    parser.add_argument("--scratch", type=Path, help="folder for the stores (default: the system's)")
    return parser.parse_args(argv)


def read_rows(path: Path) -> list[Row]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is missing or broken: --sources names a folder of {' and '.join(FILES)}.") from error


def read_corpora(folder: Path) -> list[Page]:
    """Return the pages of the corpora that are in the folder, no text twice."""
    pages: dict[str, Page] = {}
    for source in list_sources(str(folder), folder / "none", 2**31).sources:
        if source.key in FILES:
            found = (page for _, page in read_pages(source, source.read(), Counter()) if page)
            pages.update((text_hash(page.id), page) for page in found)
    return list(pages.values())


def sample_questions(path: Path) -> list[Row]:
    rows = [row for row in read_rows(path) if row["answer"].strip()]
    return random.Random(SEED).sample(rows, min(QUESTIONS, len(rows)))


def build(folder: Path, pages: Iterable[Page]) -> dict[str, Any]:
    """Write the pages as a library and return what it cost."""
    start, folder_text = time.perf_counter(), str(folder)
    store = Store.open(folder)
    passages = store.add(pages)
    version = store.finish()
    write_json(folder / MANIFEST, {"format": FORMAT, "version": version})
    store.forget_old()
    seconds = time.perf_counter() - start
    disk = subprocess.run(["du", "-sm", folder_text], capture_output=True, text=True, check=True).stdout.split()[0]
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {"passages": passages, "build_s": round(seconds, 1), "disk_mb": int(disk), "build_memory_mb": peak_mb}


def quality(library: StoredLibrary, pages: Sequence[Page], rows: Sequence[Row]) -> dict[str, Any]:
    """Return the figures of each way to search, for the rows of which some passage is relevant."""
    relevant = defaultdict[Key, set[Key]](set)
    for page in pages:
        for section in page.sections:
            heading = re.split(r" \(|: ", section.heading)[0]  # of a part, or of a passage with a heading of its own
            relevant[page.title.casefold(), heading].add((page.id, section.heading))
    asked = [
        (row["question"], relevant[row["focus"].casefold(), medquad_heading(row["question_type"])]) for row in rows
    ]
    asked = [(question, wanted) for question, wanted in asked if wanted]
    plain = PlainBm25(pages)
    ways: dict[str, Callable[[str], list[Key]]] = {
        "plain_bm25s": lambda q: plain.search(q, DEPTH),
        "store": lambda q: stored(library, q),
    }
    report: dict[str, Any] = {"passages": sum(len(page.sections) for page in pages), "questions": len(asked)}
    for name, search in ways.items():
        figures = [measures(search(question), wanted) for question, wanted in asked]
        report[name] = {
            key: round(sum(figure[key] for figure in figures) / len(figures), 3)
            for key in ("ndcg_10", "hit_1", "hit_3")
        }
    report["dense"] = report["dense_and_store"] = "not measured: no sentence encoder is installed"
    report["coverage"] = dict(Counter(library.find(question).coverage for question, _ in asked))
    return report


def stored(library: StoredLibrary, question: str) -> list[Key]:
    """Return the passages of a stored library, those of its answer first."""
    decision = library.decision(question)
    shown = [passage for part in decision.find(question).parts for passage in part.passages[:1]]
    keys = [(passage.page.id, passage.section.heading) for passage in (*shown, *decision.passages(question))]
    return list(dict.fromkeys(keys))[:DEPTH]


def measures(found: Sequence[Key], relevant: set[Key]) -> dict[str, float]:
    """Return nDCG@10 with gains 0 and 1, and whether the first, and one of the first three, is relevant."""
    gains = [1.0 / math.log2(rank + 2) for rank, key in enumerate(found[:DEPTH]) if key in relevant]
    ideal = sum(1.0 / math.log2(rank + 2) for rank in range(min(DEPTH, len(relevant))))
    hits = [key in relevant for key in found]
    return {"ndcg_10": sum(gains) / ideal, "hit_1": float(any(hits[:1])), "hit_3": float(any(hits[:3]))}


def repeated(pages: Sequence[Page], size: int) -> Iterator[Page]:
    """Yield the pages, and then again with another name each, until there are `size` passages."""
    passages = 0
    for round_number in range(size):
        for number, page in enumerate(pages):
            if passages >= size:
                return
            passages += len(page.sections)
            title = page.title if round_number == 0 else f"{page.title} {made_up_word(round_number, number)}"
            yield dataclasses.replace(page, id=f"{page.id}-{round_number}", title=title)


def made_up_word(round_number: int, number: int) -> str:
    """Return a word for a page: a few dozen share one, as subtypes of diseases do."""
    at, word = round_number * 997 + number % 211, ""
    for _ in range(4):
        at, rest = divmod(at, len(_SYLLABLES))
        word += _SYLLABLES[rest]
    return word


def speed(folder: Path, pages: Sequence[Page], size: int, questions: Sequence[Row]) -> dict[str, Any]:
    """Return what a library of `size` passages costs to build and to ask."""
    report: dict[str, Any] = {"git_commit": git_commit(), **build(folder, repeated(pages, size))}
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from benchmarks.library_store import ask; ask(sys.argv[1])"
    everyday = [row["question"] for row in read_rows(EVERYDAY)]
    texts = json.dumps({"medquad": [row["question"] for row in questions], "everyday": everyday})
    ran = subprocess.run(
        [sys.executable, "-c", code, str(folder)], input=texts, capture_output=True, text=True, check=True, cwd=ROOT
    )
    shutil.rmtree(folder)
    return {**report, **json.loads(ran.stdout)}


def ask(folder: str) -> None:
    """Print how long the questions on stdin take, and the memory of a process that does nothing else."""
    before, start = memory_mb(), time.perf_counter()
    library = StoredLibrary(Path(folder))
    found: dict[str, Any] = {"open_s": round(time.perf_counter() - start, 2)}
    for name, questions in json.load(sys.stdin).items():
        times = []
        for question in [*questions[:20], *questions]:  # the first ones warm the caches of the file system
            start = time.perf_counter()
            quoted_answer(library.find(question))
            times.append((time.perf_counter() - start) * 1000)
        p50, p95 = (round(float(np.percentile(times[20:], share)), 1) for share in (50, 95))
        found[name] = {"p50_ms": p50, "p95_ms": p95}
    print(json.dumps({**found, "memory_mb": round(memory_mb() - before)}))


def memory_mb() -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def render(report: dict[str, Any]) -> str:
    quality_rows = [f"{name:>16}  {value}" for name, value in report["quality"].items()]
    speed_rows = [f"{name:>16}  {value}  (goal: p50 {GOALS_MS[name]} ms)" for name, value in report["speed"].items()]
    return "\n".join([*quality_rows, *speed_rows])


if __name__ == "__main__":
    run_script(main)
