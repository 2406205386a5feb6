"""Check the library's pages: their form, how easy they read, and every number and medicine against the sources at hand.

    python benchmarks/library_check.py --sources DIR --json benchmarks/results/library_check.json
    python benchmarks/library_check.py --pages assets/library/condition/gout.md --sources DIR

DIR holds texts of the sources, as JSONL with an address and text: MedlinePlus topics (`url`, `text`, `text_2026`), NHS
pages (`source_url` and lists of lines), MedQuAD (`url`, `answer`). A number with its unit, or the name of a medicine,
is "supported" where a text at hand of a source that the statement cites has it (or its conversion between Celsius and
Fahrenheit, mg/dL and mmol/L), "no text" where one of its sources is not at hand, "unsupported" where all are and lack
it. A run of eight words that a source has as well is a fault: pages are in words of their own. Exit status 1 where a
page breaks a rule of form.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from medical_assistant.errors import UserError, run_script  # noqa: E402
from medical_assistant.evaluation.scoring.text_statistics import readability_grade  # noqa: E402
from medical_assistant.library.pages import SECTIONS, Line, Page, Section, read_page  # noqa: E402

MAX_WORDS = 20
MAX_GRADE = 8.0
MAX_PAGE_WORDS = 500
COPIED_WORDS = 8
WORDS = {
    word: str(number)
    for number, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen twenty".split()
    )
}
UNITS = {
    "day": "day", "days": "day", "week": "week", "weeks": "week", "month": "month", "months": "month",
    "year": "year", "years": "year", "hour": "hour", "hours": "hour", "minute": "minute", "minutes": "minute",
    "second": "second", "seconds": "second", "mg": "mg", "milligrams": "mg", "mcg": "mcg", "micrograms": "mcg",
    "g": "g", "grams": "g", "kg": "kg", "kilograms": "kg", "ml": "ml", "litre": "litre", "litres": "litre",
    "liter": "litre", "liters": "litre", "l": "litre", "cm": "cm", "centimetres": "cm", "%": "%", "percent": "%",
    "per cent": "%", "°c": "°c", "°f": "°f", "c": "°c", "f": "°f", "mg/dl": "mg/dl", "mmol/l": "mmol/l",
    "mmol/mol": "mmol/mol", "mmhg": "mmhg", "units": "unit", "unit": "unit", "times": "time", "doses": "dose",
    "dose": "dose", "in": "in", "people": "people",
}  # fmt: skip
_NUMBER = re.compile(
    r"(?<![\w.])(\d+(?:[.,]\d+)*)\s*(?:(?:to|or|and|-|\u2013)\s*(\d+(?:[.,]\d+)*)\s*)?"
    r"(%|°\s?[CF]\b|mg/dL|mmol/L|mmol/mol|per cent|[A-Za-z]+)?",
)
_PRONOUN = re.compile(r"(?:It|They|This|These|Those|He|She)\b")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=Path, nargs="+", default=[ROOT / "assets" / "library"])
    parser.add_argument("--sources", type=Path, help="folder with texts of the sources (JSONL)")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    given = parser.parse_args(argv)
    paths = [path for place in given.pages for path in (sorted(place.rglob("*.md")) if place.is_dir() else [place])]
    texts = read_texts(given.sources) if given.sources else {}
    medicines = medicine_names(ROOT / "assets" / "library" / "medicine")
    rows, pages, faults = [], list[Page](), 0
    for path in paths:
        if path.name == "README.md":
            continue
        try:
            pages.append(read_page(path))
            row = check_page(pages[-1], texts, medicines)
        except UserError as error:
            row = {"page": path.stem, "form": [str(error)], "support": {}, "unsupported": []}
        rows.append(row)
        faults += len(row["form"])
        for fault in row["form"]:
            print(f"{row['page']}: {fault}")
        for claim in row["unsupported"]:
            print(f"{row['page']}: not in its sources at hand: {claim}")
    total: Counter[str] = Counter()
    statements: Counter[str] = Counter()
    for row in rows:
        total.update(row["support"])
        statements.update(row.get("statements", {}))
    faults += print_shared_names(pages)
    kinds = Counter(row.get("kind", "unreadable") for row in rows)
    print(
        f"{len(rows)} pages ({', '.join(f'{n} {kind}' for kind, n in sorted(kinds.items()))}), {faults} faults of form"
    )
    print(
        "numbers and medicines: "
        + ", ".join(f"{total[name]} {name}" for name in ("supported", "unsupported", "no text"))
    )
    print("statements: " + ", ".join(f"{n} {name}" for name, n in sorted(statements.items())))
    if given.json:
        result = {
            "statements": dict(statements),
            "pages": len(rows),
            "kinds": dict(kinds),
            "faults": faults,
            "support": dict(total),
            "rows": rows,
        }
        given.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 1 if faults else 0


def print_shared_names(pages: Sequence[Page]) -> int:
    """Print the names that two pages claim, and return how many there are."""
    owners: defaultdict[str, set[str]] = defaultdict(set)
    for page in pages:
        for name in (page.title, *page.also_called):
            owners[name.lower()].add(page.id)
    shared = {name: ids for name, ids in owners.items() if len(ids) > 1}
    for name, ids in sorted(shared.items()):
        print(f"{name!r} is the name of {', '.join(sorted(ids))}: leave it to one")
    return len(shared)


def check_page(page: Page, texts: dict[str, str], medicines: set[str]) -> dict[str, Any]:
    """Return what was found of a page: `grade`, `form` (faults), `support` (counts), `unsupported` (claims), ..."""
    support: Counter[str] = Counter()
    statements: Counter[str] = Counter()
    unsupported, copied = [], list[str]()
    own_names = words_of(" ".join((page.title, *page.also_called)))
    for section in page.sections:
        for line in section.lines:
            addresses = [plain_address(page.sources[n].address) for n in line.sources]
            at_hand = [texts[address] for address in addresses if address in texts]
            complete = len(at_hand) == len(addresses)
            claims = (
                set[Any]() if line.leads else {*numbers_in(line.text), *(medicines & words_of(line.text) - own_names)}
            )
            found = claims_of(" ".join(at_hand))
            bare = {number for number, _ in (claim for claim in found if isinstance(claim, tuple))}
            for claim in claims:
                held = claim in found or (
                    isinstance(claim, tuple) and (claim[1] == "" and claim[0] in bare or is_converted(claim, found))
                )
                support["supported" if held else "unsupported" if complete else "no text"] += 1
                if complete and not held:
                    unsupported.append(f"{' '.join(claim) if isinstance(claim, tuple) else claim}: {line.text}")
            statements["with every source at hand" if complete else "with a source not at hand"] += not line.leads
            copied += copied_runs(line.text, at_hand)
    text = " ".join(sentence(line) for section in page.sections for line in section.lines)
    grade = round(readability_grade(text), 1)
    faults = [fault for section in page.sections for fault in section_faults(section)]
    faults += order_faults(page)
    faults += [f"as its source has it, word for word: {run}" for run in copied]
    used = {number for section in page.sections for line in section.lines for number in line.sources}
    faults += [f"source {n + 1} is used nowhere" for n in range(len(page.sources)) if n not in used]
    if len(text.split()) > MAX_PAGE_WORDS:
        faults.append(f"{len(text.split())} words, {MAX_PAGE_WORDS} at most")
    if grade > MAX_GRADE:
        faults.append(f"reads at grade {grade}: {MAX_GRADE:.0f} or lower is needed, so shorter words and sentences")
    return {
        "page": page.id,
        "kind": page.kind,
        "grade": grade,
        "form": faults,
        "words": len(text.split()),
        "statements": dict(statements),
        "support": dict(support),
        "unsupported": unsupported,
    }


@lru_cache(maxsize=64)  # the lines of a page cite the same few sources
def claims_of(text: str) -> frozenset[Any]:
    """Return the numbers with their units, and the words, of the sources of a line."""
    return frozenset((*numbers_in(text), *words_of(text)))


def is_converted(claim: tuple[str, str], found: frozenset[Any]) -> bool:
    """Return whether a source has the number in the other unit: degrees, or mmol/L of glucose or cholesterol."""
    value = float(claim[0])
    others = {
        "°f": [((value - 32) / 1.8, "°c")],
        "°c": [(value * 1.8 + 32, "°f")],
        "mmol/l": [(value * 18.016, "mg/dl"), (value * 38.67, "mg/dl")],
        "mg/dl": [(value / 18.016, "mmol/l"), (value / 38.67, "mmol/l")],
    }.get(claim[1], [])
    tolerance = {"°c": 0.3, "°f": 0.5, "mg/dl": 3.0, "mmol/l": 0.1}
    return any(
        unit == other[1] and abs(float(number) - other[0]) <= tolerance[unit]
        for other in others
        for number, unit in (pair for pair in found if isinstance(pair, tuple))
    )


def copied_runs(text: str, sources: Sequence[str]) -> Iterator[str]:
    words = re.findall(r"[\w'%]+", text.lower())
    theirs = " ".join(re.findall(r"[\w'%]+", " ".join(sources).lower()))
    for start in range(len(words) - COPIED_WORDS + 1):
        run = " ".join(words[start : start + COPIED_WORDS])
        if f" {run} " in f" {theirs} ":
            yield run
            return


def plain_address(address: str) -> str:
    return re.sub(r"^https?://(www\.)?", "", address).rstrip("/")


def sentence(line: Line) -> str:
    return line.text if line.text[-1] in ".!?:" else f"{line.text}."


def section_faults(section: Section) -> Iterator[str]:
    for line in section.lines:
        words = len(line.text.split())
        if words > MAX_WORDS:
            yield f"{section.heading}: {words} words, {MAX_WORDS} at most: {line.text}"
        if not line.item and not line.leads and line.text[-1] not in ".!?":
            yield f"{section.heading}: no full stop: {line.text}"
        if not line.item and _PRONOUN.match(line.text):
            yield f"{section.heading}: begins with a pronoun, name the subject: {line.text}"


def order_faults(page: Page) -> Iterator[str]:
    allowed = SECTIONS[page.kind]
    headings = [section.heading for section in page.sections]
    for heading in headings:
        if heading not in allowed:
            yield f"{page.kind} has no section {heading!r}: use {', '.join(allowed)}"
    known = [allowed.index(heading) for heading in headings if heading in allowed]
    if known != sorted(set(known)):
        yield f"its sections are not in the order {', '.join(allowed)}"
    if headings[:1] != [allowed[0]]:
        yield f"its first section must be {allowed[0]!r}"


def numbers_in(text: str) -> Iterator[tuple[str, str]]:
    """Yield (number, unit) of a text: digits without separators, the unit in its plain form or ""."""
    text = re.sub(r"\b(" + "|".join(WORDS) + r")\b", lambda word: WORDS[word[0].lower()], text, flags=re.IGNORECASE)
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    for match in _NUMBER.finditer(text):
        unit = UNITS.get(re.sub(r"\s", "", (match[3] or "").lower()), "")
        for number in match.group(1, 2):
            if number:
                yield number.rstrip(".,"), unit


def words_of(text: str) -> set[str]:
    return set(re.findall(r"[a-z][a-z-]+", text.lower()))


def medicine_names(folder: Path) -> set[str]:
    """Return the one-word names of the library's medicines."""
    names = (path.stem.replace("-", " ") for path in folder.glob("*.md"))
    return {name for name in names if " " not in name}


def read_texts(folder: Path) -> dict[str, str]:
    """Return {address: text} of every JSONL file of `folder` that has both."""
    texts: defaultdict[str, list[str]] = defaultdict(list)
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            address = row.get("url") or row.get("source_url")
            if address:
                texts[plain_address(address)].append(
                    " ".join(strings(value) for key, value in row.items() if "url" not in key)
                )
    return {address: "\n".join(parts) for address, parts in texts.items()}


def strings(value: Any) -> str:
    if isinstance(value, str):
        return value
    return " ".join(strings(part) for part in value) if isinstance(value, Iterable) else ""


if __name__ == "__main__":
    run_script(main)
