"""The parts of README.md and docs/*.md that come from code and committed results: `make docs` writes them anew.

Cog (https://cog.readthedocs.io) runs the calls that stand in the Markdown between `[[[cog` and `]]]` and puts what they
return up to `[[[end]]]`. `make lint` and tests/test_docs.py fail where the text is not what the call returns, so no
figure, help text or file name in the documentation can be edited by hand.
"""

from __future__ import annotations

import ast
import importlib.util
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import tomllib

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BUNDLED = ROOT / "assets" / "adapters" / "smollm2-135m"
PACKAGE = ROOT / "medical_assistant"


def read(name: str) -> Any:
    """Return the content of a file of benchmarks/results."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def purpose(path: Path) -> str:
    """Return the first sentence of a module's or package's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).rstrip(".")


def tree() -> str:
    """Return every script, package and module with what it is for, as a fenced block."""
    scripts = [(path.name, path) for path in sorted(ROOT.glob("*.py"))]
    lines = [f"{name:<30} {purpose(path)}" for name, path in scripts]
    lines.append(f"{'medical_assistant/':<30} {purpose(PACKAGE / '__init__.py')}")
    lines += [f"  {path.name:<28} {purpose(path)}" for path in sorted(PACKAGE.glob("*.py")) if path.stem != "__init__"]
    for folder in sorted(path.parent for path in PACKAGE.rglob("*/__init__.py")):
        depth = len(folder.relative_to(PACKAGE).parts)
        lines.append(f"{'  ' * depth + folder.name + '/':<30} {purpose(folder / '__init__.py')}")
        for path in sorted(folder.glob("*.py")):
            if path.stem != "__init__":
                lines.append(f"{'  ' * (depth + 1) + path.name:<30} {purpose(path)}")
    return "```\n" + "\n".join(line.rstrip() for line in lines) + "\n```"


def help_text(script: str) -> str:
    """Return what `python script --help` prints, without the docstring above the options, as a fenced block."""
    os.environ["COLUMNS"] = "110"
    printed = io.StringIO()
    name = f"script_{Path(script).stem}"  # not its own: a top-level "evaluate" is Hugging Face's package too
    spec = importlib.util.spec_from_file_location(name, ROOT / script)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(script)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        with redirect_stdout(printed):
            module.main(["--help"])
    except SystemExit:
        pass
    options = printed.getvalue().split("\noptions:\n", 1)[1].rstrip()
    return f"```\n{options}\n```"


def badge() -> str:
    """Return the Colab badge; nothing while pyproject.toml does not know the repository's address."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    address = project.get("urls", {}).get("Repository", "").rstrip("/")
    if not address.startswith("https://github.com/"):
        return ""
    notebook = f"{address.removeprefix('https://github.com/')}/blob/main/assets/medical_assistant_colab.ipynb"
    image = "https://colab.research.google.com/assets/colab-badge.svg"
    return f"[![Open in Colab]({image})](https://colab.research.google.com/github/{notebook})"


def decode_table() -> str:
    rows = read("decode")["rows"]
    cells = [(row["name"], row["clients"], row["tokens_per_s"], f"{row['ratio']:.2f}") for row in rows]
    return table(("who decodes", "clients", "tokens/s", "of bare"), cells)


def training_table() -> str:
    results = read("training")["results"]
    first = results[0]["useful_tokens_per_second"]
    cells = [
        (
            row["variant"],
            f"{row['useful_tokens_per_second']:.0f}",
            f"{row['useful_tokens_per_second'] / first:.2f}",
            f"{row['peak_memory_gib']:.2f}",
            f"{row['loss_after']:.3f}",
        )
        for row in results
    ]
    return table(("who trains", "useful tokens/s", "of notebook", "peak memory (GiB)", "loss after"), cells)


def evaluation_table() -> str:
    cells = [
        (
            row["way"],
            f"{row['base_tokens_per_s']:.1f}",
            f"{row['adapter_tokens_per_s']:.1f}",
            f"{row['minutes']:.1f}",
            f"{row['evaluate_is_faster_by']:.2f}",
            f"{row['identical']:.0%}",
        )
        for row in read("evaluation")["rows"]
    ]
    head = ("who answers", "base tokens/s", "adapter tokens/s", "minutes", "of evaluate.py", "identical")
    return table(head, cells)


def load_table() -> str:
    cells = [
        (
            row["users"],
            row["lost"],
            row["tokens_per_s"],
            row["tokens_per_s_and_user"],
            *row["first_text_s"].values(),
            row["whole_answer_s"]["p95"],
        )
        for row in read("load")["rows"]
    ]
    head = ("users at once", "lost", "tokens/s", "tokens/s a user", "first text p50 (s)", "p95", "p99")
    return table((*head, "whole answer p95 (s)"), cells)


def memory_sentence() -> str:
    found = read("memory")
    page, model = ((found["mb_after_warm_up"][name], found["mb_at_the_end"][name]) for name in ("page", "model"))
    return (
        f"After {found['warm_up']} conversations of warm-up, {found['conversations']:,} more took the page's memory\n"
        f"from {page[0]} to {page[1]} MB and the model's from {model[0]} to {model[1]} MB (`benchmarks/memory.py`)."
    )


def safety_table() -> str:
    cells = [
        (row["set"], row["split"], row["outcome"], row["n"], row["found"], row.get("baseline", "-"))
        for row in read("safety")["rows"]
    ]
    return table(("set", "split", "outcome", "messages", "found", "baseline"), cells)


def blind_totals() -> dict[str, int]:
    """Return how many blind messages there are, and how many got the outcome "emergency", by kind."""
    rows = [row for row in read("safety")["rows"] if row["split"] == "blind" and row["outcome"] == "emergency"]
    totals = {}
    for kind in ("emergencies", "others"):
        chosen = [row for row in rows if row["set"].endswith(kind)]
        totals[kind] = sum(row["n"] for row in chosen)
        totals[f"{kind}_found"] = sum(row["found"] for row in chosen)
    return totals


def numbers_that_matter() -> str:
    """Return the lines of README's table: the library, safety, the adapter, speed."""
    blind = blind_totals()
    recall = blind["emergencies_found"] / blind["emergencies"]
    false_positive_rate = blind["others_found"] / blind["others"]
    metrics = json.loads((BUNDLED / "metrics.json").read_text(encoding="utf-8"))
    rouge = {name: scores["rougeL"] for name, scores in metrics["scores"].items()}
    urges = {name: rates["urges_care_rate"] for name, rates in metrics["safety"]["candidates"].items()}
    decode = {(row["name"], row["clients"]): row for row in read("decode")["rows"]}
    page = decode["page, base", 1]
    library, pages = read("library")["test"], read("library_check")["pages"]
    rows = [
        (
            f"right one of {pages} library pages among the first three, right section shown, on questions whose author "
            "saw no page",
            f"{library['covered']['first_3']:.1%}; {library['covered']['section']:.1%}",
            "[library](docs/library.md)",
        ),
        (
            "emergencies recognised before any model, on messages whose author never saw the rules",
            f"{recall:.1%} of {blind['emergencies']}; {false_positive_rate:.1%} false alarms of {blind['others']}",
            "[safety](docs/safety.md)",
        ),
        (
            "ROUGE-L of the bundled 135M adapter against its base; it urges care in an emergency less often, "
            "fails its gate, and most of its answers are wrong",
            f"{rouge['base']:.3f} → {rouge['fine_tuned']:.3f}; {urges['base']:.0%} → {urges['fine_tuned']:.0%}",
            "[evaluation](docs/evaluation.md)",
        ),
        (
            "tokens/s in the page, two CPU cores, no GPU",
            f"{page['tokens_per_s']:.0f}, {page['ratio']:.2f} of llama.cpp's own server",
            "[benchmarks](docs/benchmarks.md)",
        ),
    ]
    return table(("what", "measured", "how"), rows)


def experiments_table() -> str:
    from medical_assistant.training.sweep import table as sweep_table

    return sweep_table(json.loads((ROOT / "assets/experiments/sweep.json").read_text(encoding="utf-8"))["experiments"])


def bundled_results() -> str:
    """Return the section of results of the bundled adapter's card."""
    card = (BUNDLED / "README.md").read_text(encoding="utf-8")
    return card.split("## Results\n", 1)[1].split("\n## ", 1)[0].strip()


def library_table() -> str:
    """Return what the search of the library finds, for the questions of both splits, beside plain BM25."""
    found = read("library")
    splits = [name for name in ("dev", "test") if name in found]

    def cells(part: str, key: str) -> list[str]:
        return [f"{found[name][part][key]:.1%}" for name in splits]

    rows = [
        ("right page first", *cells("covered", "first"), *cells("plain_bm25", "first")),
        ("right page in the first 3", *cells("covered", "first_3"), *cells("plain_bm25", "first_3")),
        ("right section shown", *cells("covered", "section"), *cells("plain_bm25", "section")),
        ("follow-ups: right section shown", *cells("follow_ups", "section"), *["-"] * len(splits)),
        (
            "covered, but abstained",
            *[f"{1 - found[n]['covered']['answered']:.1%}" for n in splits],
            *["-"] * len(splits),
        ),
        ("not covered, but let through", *cells("uncovered", "let_through"), *["-"] * len(splits)),
    ]
    return table(("questions", *splits, *(f"plain BM25, {name}" for name in splits)), rows)


def library_sentence() -> str:
    """Return over what the figures of the library were measured, and what it costs."""
    found = read("library")
    last = found["test" if "test" in found else "dev"]
    keys = ("covered", "follow_ups", "uncovered")
    counts = ", ".join(
        " + ".join(str(part[key]["rows"] - part[key].get("page_missing", 0)) for key in keys) + f" questions of {name}"
        for name, part in found.items()
    )
    urgent = last["get_help_now"]
    return (
        f"Measured over {last['pages']} pages: {counts} (covered, follow-ups, not covered;\n"
        f"questions whose page was not written yet are left out). Search and answer take "
        f"{last['speed_ms']['p50']:.1f} ms of CPU (p50) and\n{last['speed_ms']['p95']:.1f} (p95); opening the library "
        f"{last['start']['cpu_s']:.2f} s and {last['start']['memory_mb']:.0f} MB. Of {urgent['items']} items under\n"
        f'"Get help now", said as "I have ...", the triage takes {urgent["emergency"]:.0%} for an emergency and '
        f"{urgent['at_least_urgent']:.0%} for at least urgent."
    )


def rows_of(path: str) -> list[dict[str, Any]]:
    """Return the rows of a JSONL file of the repository."""
    return [json.loads(line) for line in (ROOT / path).read_text(encoding="utf-8").splitlines()]


def library_pages_sentence() -> str:
    """Return how many pages and statements the library has, and what was found of them."""
    found = read("library_check")
    kinds = ", ".join(f"{number} {PLURALS[kind]}" for kind, number in by_number(found["kinds"]))
    statements, support = found["statements"], found["support"]
    return (
        f"{found['pages']} pages: {kinds}.\n{sum(statements.values()):,} statements, of which "
        f"{statements['with every source at hand']:,} cite only sources whose text was at hand. Of "
        f"{sum(support.values()):,} numbers and\nnames of medicines, {support['supported']:,} stand in such a text, "
        f"{support.get('unsupported', 0):,} do not, and for {support['no text']:,} no text was at hand."
    )


PLURALS = {
    "condition": "conditions",
    "medicine": "medicines",
    "symptom": "symptoms",
    "test": "tests",
    "topic": "topics of living well",
    "vaccine": "vaccines",
    "first-aid": "of first aid",
}


def by_number(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))


def review_table() -> str:
    """Return with what the second reader compared the pages."""
    rows = rows_of("assets/library/review.jsonl")
    counts = Counter(basis for row in rows for basis in row["basis"])
    changed, changes = sum(bool(row["changes"]) for row in rows), sum(len(row["changes"]) for row in rows)
    cells = [(basis, number) for basis, number in by_number(counts)]
    cells.append(("knowledge alone", sum(row["basis"] == ["knowledge"] for row in rows)))
    text = f"Of {len(rows)} pages that were read a second time, {changed} were changed, in {changes:,} places."
    return f"{text}\n\n{table(('compared with', 'pages'), cells)}"


def judged_table() -> str:
    """Return what two readers thought of answers whose questions and rules had different authors."""
    rows = rows_of("benchmarks/results/library_judged.jsonl")
    verdicts = ("right", "incomplete", "off_topic", "wrong", "abstained_wrong", "abstained_right", "let_through")
    counts = {
        (number, reader): Counter(row["verdicts"][reader] for row in rows if row["round"] == number)
        for number in (1, 2, 3)
        for reader in (0, 1)
    }
    cells = [(name.replace("_", " "), *(counts[key][name] for key in counts)) for name in verdicts]
    heads = (f"{number} 100, reader {reader}" for number in ("first", "second", "third") for reader in "AB")
    return table(("verdict", *heads), cells)


def library_questions_table() -> str:
    """Return how many questions there are to train and to measure the library."""
    cells = []
    for name, what in (("covered", "a page answers"), ("follow_ups", "follow-ups"), ("uncovered", "no page answers")):
        measured = Counter(row["split"] for row in rows_of(f"benchmarks/library_questions/{name}.jsonl"))
        trained = len(rows_of(f"training_data/library/{name}.jsonl"))
        cells.append((what, f"{trained:,}", measured["dev"], measured["test"]))
    return table(("questions", "to train", "dev", "test"), cells)


def library_store_table() -> str:
    """Return how well and how fast a stored library finds passages."""
    found = read("library_store")
    quality = found["quality"]
    cells = [
        (what, f"{quality[key]['ndcg_10']:.3f}", f"{quality[key]['hit_1']:.1%}", f"{quality[key]['hit_3']:.1%}")
        for what, key in (("plain bm25s", "plain_bm25s"), ("stored library", "store"))
    ]
    head = (f"{quality['questions']} questions, {quality['passages']:,} passages", "nDCG@10", "hit@1", "hit@3")
    speeds = [
        (
            f"{row['passages']:,}",
            *(row[name][key] for name in ("medquad", "everyday") for key in ("p50_ms", "p95_ms")),
            row["memory_mb"],
            row["build_s"],
            row["disk_mb"],
        )
        for row in found["speed"].values()
    ]
    asked = (
        "passages",
        "MedQuAD's p50 (ms)",
        "p95",
        "everyday p50 (ms)",
        "p95",
        "memory (MB)",
        "build (s)",
        "disk (MB)",
    )
    return f"{table(head, cells)}\n\n{table(asked, speeds)}"


def coverage_sentence() -> str:
    """Return what the gate's two thresholds keep and let through."""
    gate = json.loads((ROOT / "assets" / "library" / "coverage.json").read_text(encoding="utf-8"))
    at = {point["from"]: point for point in gate["curve"]}
    covered, partly = at[gate["covered_from"]], at[gate["partly_from"]]
    return (
        f"On {gate['questions']['covered']:,} questions whose page came first and {gate['questions']['not']:,} that no "
        f"page answers, each judged by a fit that did not see it:\n"
        f'"covered" from {covered["from"]:.2f} keeps {covered["kept"]:.1%} of the first and lets '
        f"{covered['let_through']:.1%} of the second through;\n"
        f'"partly" from {partly["from"]:.2f} keeps {partly["kept"]:.1%} and lets {partly["let_through"]:.1%} through.'
    )
