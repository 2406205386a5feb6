"""How much the safety rules catch and how often they are wrong, on the sets of tests/safety_sets and files of yours.

    python benchmarks/safety.py [--triage FILE] [--requests FILE] [--ordinary FILE ...] [--answers FILE ...]
                                [--json FILE]

--triage: rows with `text`, `levels_accepted` and, where a person's own words are known, `patient_words`. --requests:
rows with a harmful request in `prompt`, `request` or `text`. --ordinary: rows with a question in `input` or `question`.
--answers: rows with an answer in `answer` or `output`, of which the half that did not train the output classifier is
read. The column "baseline" has what something simpler finds: of emergencies a list of keywords (any message that holds
one of `KEYWORDS`), of sentences to block the rules alone, without the classifier.
"held_back" rows were not looked at while the rules were written; "blind" ones were written by somebody who knew neither
the rules nor the other sets, and nobody who worked on the rules has read them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from medical_assistant.errors import UserError, run_script  # noqa: E402
from medical_assistant.files import git_commit  # noqa: E402
from medical_assistant.safety.misuse import assess_misuse  # noqa: E402
from medical_assistant.safety.output_filter import OutputFilter  # noqa: E402
from medical_assistant.safety.screening import screen  # noqa: E402
from medical_assistant.safety.training.output import split_answers  # noqa: E402
from medical_assistant.safety.triage import assess  # noqa: E402

SAFETY = ROOT / "tests" / "safety_sets"
TRIAGE_SETS = (
    "emergencies", "not_emergencies", "other_levels", "vignettes", "language_es", "language_fr", "language_pt",
    "language_sw", "blind", "blind_2",
)  # fmt: skip
OUTPUT_SETS = ("output_filter", "output_blind", "output_generated")
ANSWERS_PER_FILE = 1_500
KEYWORDS = (
    "chest pain", "stroke", "heart attack", "cannot breathe", "can't breathe", "suicide", "kill myself", "overdose",
    "unconscious", "bleeding", "seizure", "poison", "anaphylaxis", "emergency",
)  # fmt: skip

Row = dict[str, Any]
Rule = Callable[[str], bool]


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    rows = [row for name in TRIAGE_SETS for row in triage_rows(name, read(SAFETY / f"{name}.jsonl"))]
    rows += misuse_rows(read(SAFETY / "misuse.jsonl"))
    if arguments.triage:
        rows += triage_file(read(arguments.triage))
    if arguments.requests:
        texts = [
            next(row[key] for key in ("prompt", "request", "text") if key in row) for row in read(arguments.requests)
        ]
        rows.append(figures(arguments.requests.stem, "all", "refused or emergency", texts, answered_by_rules, None))
    rows += [row for name in OUTPUT_SETS for row in output_rows(name, read(SAFETY / f"{name}.jsonl"))]
    for file in arguments.answers:
        rows.append(answer_rows(file))
    for file in arguments.ordinary:
        texts = [str(row.get("input") or row.get("question")) for row in read(file)]
        rows.append(figures(file.stem, "all", "emergency", texts, is_emergency, has_keyword))
        rows.append(figures(file.stem, "all", "refused", texts, is_refused, None))
    report = {"git_commit": git_commit(), "seconds_a_message": seconds_a_message(), "rows": rows}
    print(render(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triage", type=Path, help="messages with accepted levels")
    parser.add_argument("--requests", type=Path, help="harmful requests")
    parser.add_argument("--ordinary", type=Path, nargs="*", default=[], help="ordinary questions")
    parser.add_argument("--answers", type=Path, nargs="*", default=[], help="answers that may be given")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    return parser.parse_args(argv)


def read(file: Path) -> list[Row]:
    try:
        with file.open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as JSON lines ({error}): give another file.") from error


def is_emergency(text: str) -> bool:
    return assess(text).level == "emergency"


def is_refused(text: str) -> bool:
    return bool(assess_misuse(text).category)


def answered_by_rules(text: str) -> bool:
    return bool(screen(text).answer)


def has_keyword(text: str) -> bool:
    return any(word in text.lower() for word in KEYWORDS)


def triage_rows(name: str, data: list[Row]) -> Iterable[Row]:
    """Yield a row for each split of a set, and for emergencies and others apart."""
    for split in sorted({row["split"] for row in data}):
        part = [row for row in data if row["split"] == split]
        for label, wanted in (("emergencies", True), ("others", False)):
            # Rows that accept both levels say nothing of either.
            texts = [row["text"] for row in part if (row["level"] == ["emergency"]) is wanted and sure(row["level"])]
            if texts:
                yield figures(f"{name}, {label}", split, "emergency", texts, is_emergency, has_keyword)


def sure(levels: Sequence[str]) -> bool:
    return "emergency" not in levels or len(levels) == 1


def triage_file(data: list[Row]) -> Iterable[Row]:
    for row in data:  # thoughts of suicide are answered as an emergency
        row["levels_accepted"] = ["emergency" if level == "crisis" else level for level in row["levels_accepted"]]
    for label, wanted in (("emergencies", True), ("others", False)):
        part = [
            row for row in data if (row["levels_accepted"] == ["emergency"]) is wanted and sure(row["levels_accepted"])
        ]
        for field in ("text", "patient_words"):
            texts = [row[field] for row in part if row.get(field)]
            if texts:
                yield figures(f"triage file, {label}, {field}", "all", "emergency", texts, is_emergency, has_keyword)


def misuse_rows(data: list[Row]) -> Iterable[Row]:
    for split in sorted({row["split"] for row in data}):
        for label, wanted in (("harmful", True), ("ordinary", False)):
            texts = [row["text"] for row in data if row["split"] == split and row["refuse"] is wanted]
            yield figures(f"misuse, {label}", split, "refused", texts, is_refused, None)


def output_rows(name: str, data: list[Row]) -> Iterable[Row]:
    """Yield a row for each split of a set of sentences, and for violations and others apart."""
    for split in sorted({split_of(row) for row in data}):
        for label, wanted in (("violations", True), ("others", False)):
            part = [row for row in data if split_of(row) == split and is_violation(row) is wanted]
            found = [sum(bool(blocked(row, use_classifier)) for row in part) for use_classifier in (True, False)]
            yield counted(f"{name}, {label}", split, "blocked", len(part), *found)


def split_of(row: Row) -> str:
    return "after rules" if row.get("after_rules") else row["split"]


def is_violation(row: Row) -> bool:
    return bool(row.get("rule")) or row.get("kind", "none") != "none"


def blocked(row: Row, use_classifier: bool) -> list[str]:
    red_flags = ["red flag"] if row.get("red_flag") else []
    output_filter = OutputFilter(row.get("question") or "", red_flags, use_classifier)
    output_filter.feed(row["text"])
    output_filter.finish()
    return output_filter.blocked


def answer_rows(file: Path) -> Row:
    """Return the row of public answers: how many lose a sentence, read with their question, without a red flag."""
    _, left_out = split_answers(file, ANSWERS_PER_FILE)
    part = [{"text": answer, "question": asked} for asked, answer in left_out]
    found = [sum(bool(blocked(row, use_classifier)) for row in part) for use_classifier in (True, False)]
    return counted(f"{file.stem}, answers", "all", "blocked in", len(part), *found)


def counted(name: str, split: str, outcome: str, n: int, found: int, baseline: int | None) -> Row:
    row: Row = {"set": name, "split": split, "outcome": outcome, "n": n, "found": found}
    return row if baseline is None else {**row, "baseline": baseline}


def figures(name: str, split: str, outcome: str, texts: list[str], rule: Rule, baseline: Rule | None) -> Row:
    simpler = sum(baseline(text) for text in texts) if baseline else None
    return counted(name, split, outcome, len(texts), sum(rule(text) for text in texts), simpler)


def seconds_a_message() -> float:
    """Return the mean CPU seconds of the rules for one message of tests/safety_sets/emergencies.jsonl."""
    texts = [row["text"] for row in read(SAFETY / "emergencies.jsonl")]
    started_s = time.process_time()
    for text in texts:
        screen(text)
    return round((time.process_time() - started_s) / len(texts), 5)


def render(report: Row) -> str:
    lines = [f"{'set':44}{'split':>10}{'outcome':>22}{'n':>7}{'found':>7}{'%':>7}{'baseline %':>12}"]
    for row in report["rows"]:
        baseline = f"{row['baseline'] / row['n']:>12.1%}" if "baseline" in row else f"{'-':>12}"
        lines.append(
            f"{row['set']:44}{row['split']:>10}{row['outcome']:>22}{row['n']:>7}{row['found']:>7}"
            f"{row['found'] / row['n']:>7.1%}{baseline}"
        )
    return "\n".join([*lines, f"{report['seconds_a_message'] * 1000:.1f} ms a message"])


if __name__ == "__main__":
    run_script(main)
