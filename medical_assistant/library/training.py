"""Fit what decides over the library's answers: which section is asked for, and whether the library covers a question.

    python -m medical_assistant.library.training

Reads the questions of training_data/library, whose authors saw the titles of the pages and the headings of each kind
and nothing else, and writes section_classifier.json and coverage.json into assets/library. The signals that fit the
coverage gate come from classifiers that did not see the question. Needs scikit-learn; the application does not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medical_assistant.errors import UserError, run_script
from medical_assistant.files import ROOT, write_whole
from medical_assistant.library.coverage import SIGNALS, Gate
from medical_assistant.library.index import FOLDER, EmbeddedLibrary
from medical_assistant.library.pages import SECTIONS, read_library
from medical_assistant.library.sections import NOTHING, WEIGHT_SCALE, SectionClassifier, features

QUESTIONS = ROOT / "training_data" / "library"
PENALTY, GATE_PENALTY = 10.0, 3.0  # the inverse of the L2 penalty on the weights
ALSO_WEIGHT = 0.5  # of a section that also answers
TITLE_WEIGHT = 0.05  # of a page's bare title, which asks what it is
MIN_ROWS, MIN_WEIGHT = 2, 0.25  # a feature in fewer rows, or a smaller weight, is not stored
OVERLAP_WEIGHT, SHOW_FROM = 0.2, 0.2
FOLDS = 5
# A wrong answer may be let through for this share of the questions that the library does not cover.
MAX_LET_THROUGH, SURE_LET_THROUGH = 0.05, 0.02  # "partly" or better, "covered"
NO_SECTIONS = SectionClassifier(
    (*dict.fromkeys(heading for headings in SECTIONS.values() for heading in headings), NOTHING),
    (0.0,) * (len({heading for headings in SECTIONS.values() for heading in headings}) + 1),
    {},
    OVERLAP_WEIGHT,
    SHOW_FROM,
)
NO_GATE = Gate(dict.fromkeys(SIGNALS, 0.0), 0.0, 0.0, 0.0)

Row = dict[str, Any]
Example = tuple[set[str], str, float]  # features, heading, weight


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m medical_assistant.library.training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--questions", type=Path, default=QUESTIONS, help="folder of the questions")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder for the two files")
    arguments = parser.parse_args(argv)
    pages = read_library(FOLDER)
    library = EmbeddedLibrary(pages, NO_SECTIONS, NO_GATE)
    ids = {page.id for page in pages}
    rows = [row for row in read_rows(arguments.questions, "covered") if row["page"] in ids]
    rows += read_rows(arguments.questions, "uncovered")
    write_sections(arguments.output / "section_classifier.json", fit_sections(library, rows), len(rows))
    gate = fit_gate(library, rows)
    write_whole(arguments.output / "coverage.json", json.dumps(gate, indent=1) + "\n")
    sys.stdout.write(json.dumps({**gate, "curve": "..."}, indent=1) + "\n")
    return 0


def read_rows(folder: Path, name: str) -> list[Row]:
    """Return the rows of a file of questions. Raises `UserError` when it is missing or broken."""
    path = folder / f"{name}.jsonl"
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is missing or broken: restore it.") from error


def fit_sections(library: EmbeddedLibrary, rows: Sequence[Row]) -> SectionClassifier:
    """Return a classifier fitted on these rows and on the titles of all pages."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    found = [example for row in rows for example in examples(library, row)]
    for page in library.pages:
        heading = "Normal values" if page.kind == "test" else "In short"
        found.append((features(["x"], {"x"}, page.kind), heading, TITLE_WEIGHT))
    counts = Counter(feature for names, _, _ in found for feature in names)
    number_of = {name: at for at, name in enumerate(sorted(name for name in counts if counts[name] >= MIN_ROWS))}
    model = LogisticRegression(C=PENALTY, max_iter=300)
    model.fit(
        matrix([names for names, _, _ in found], number_of),
        [heading for _, heading, _ in found],
        sample_weight=[weight for _, _, weight in found],
    )
    headings = [str(name) for name in model.classes_]
    weights = {}
    for name, number in number_of.items():
        column = model.coef_[:, number]
        kept = [(int(at), round(float(column[at]), 2)) for at in np.flatnonzero(np.abs(column) >= MIN_WEIGHT)]
        if kept:
            weights[name] = kept
    bias = dict.fromkeys(NO_SECTIONS.headings, float(min(model.intercept_)))
    bias.update(zip(headings, map(float, model.intercept_), strict=True))
    place = {name: at for at, name in enumerate(NO_SECTIONS.headings)}
    numbered = {name: [(place[headings[at]], weight) for at, weight in kept] for name, kept in weights.items()}
    return replace(NO_SECTIONS, bias=tuple(bias.values()), weights=numbered)


def examples(library: EmbeddedLibrary, row: Row) -> list[Example]:
    """Return what a row teaches: its section for its page, or that no section of the page found answers it."""
    reading = library.names.read(row["question"])
    topics = library.names.topics(reading)
    if "page" not in row:
        found = library.find(row["question"]).parts
        kind = found[0].topic.kind if found else "condition"
        words = topics[0].words if topics else frozenset[str]()
        return [(features(reading.sequence, words, kind), NOTHING, 1.0)]
    page = next(page for page in library.pages if page.id == row["page"])
    topic = next((topic for topic in topics if topic.page is page), topics[0] if topics else None)
    names = features(reading.sequence, topic.words if topic else frozenset(), page.kind)
    wanted = [(row["section"], 1.0), *((heading, ALSO_WEIGHT) for heading in row.get("section_also_ok", ()))]
    return [(names, heading, weight) for heading, weight in wanted if heading in SECTIONS[page.kind]]


def matrix(rows: Sequence[set[str]], number_of: dict[str, int]) -> Any:
    """Return the rows (n, features) as a sparse matrix, each scaled as `SectionClassifier.scores` scales it."""
    from scipy.sparse import csr_matrix

    columns: list[int] = []
    values: list[float] = []
    starts = [0]
    for names in rows:
        known = sorted(number_of[name] for name in names if name in number_of)
        columns += known
        values += [max(1, len(known)) ** -0.5] * len(known)
        starts.append(len(columns))
    return csr_matrix((values, columns, starts), shape=(len(rows), len(number_of)))


def write_sections(path: Path, classifier: SectionClassifier, rows: int) -> None:
    weights = {
        name: [value for at, weight in pairs for value in (at, round(weight * WEIGHT_SCALE))]
        for name, pairs in classifier.weights.items()
    }
    content = {
        "headings": classifier.headings,
        "bias": [round(value, 3) for value in classifier.bias],
        "overlap_weight": classifier.overlap_weight,
        "show_from": classifier.show_from,
        "rows": rows,
        "weights": weights,
    }
    write_whole(path, json.dumps(content, separators=(",", ":"), ensure_ascii=False) + "\n")


def fit_gate(library: EmbeddedLibrary, rows: Sequence[Row]) -> dict[str, Any]:
    """Return the content of coverage.json: weights, two thresholds and the risk-coverage curve that they come from.

    A question counts as covered where its page is among the parts found; where another is, the row is left out. Each
    row's signals come from a section classifier, and its probability on the curve from a gate, that did not see it.
    """
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    signals, labels, folds = [], [], []
    for fold in range(FOLDS):
        library.sections = fit_sections(library, [row for row in rows if fold_of(row) != fold])
        for row in (row for row in rows if fold_of(row) == fold):
            found = library.find(row["question"])
            if "page" in row and not pages_of(row) & {part.topic.id for part in found.parts}:
                continue
            signals.append([dict(found.signals)[name] for name in SIGNALS])
            labels.append("page" in row)
            folds.append(fold)
    x, y, fold_numbers = np.array(signals), np.array(labels), np.array(folds)
    probability = np.zeros(len(y))
    for fold in range(FOLDS):
        rest = fold_numbers != fold
        model = LogisticRegression(C=GATE_PENALTY, max_iter=2000, class_weight="balanced").fit(x[rest], y[rest])
        probability[~rest] = model.predict_proba(x[~rest])[:, 1]
    curve = risk_coverage(probability, y)
    model = LogisticRegression(C=GATE_PENALTY, max_iter=2000, class_weight="balanced").fit(x, y)
    return {
        "weights": {name: round(float(weight), 3) for name, weight in zip(SIGNALS, model.coef_[0], strict=True)},
        "bias": round(float(model.intercept_[0]), 3),
        "covered_from": first_below(curve, SURE_LET_THROUGH),
        "partly_from": first_below(curve, MAX_LET_THROUGH),
        "questions": {"covered": int(y.sum()), "not": int((~y).sum())},
        "curve": curve,
    }


def pages_of(row: Row) -> set[str]:
    return {row["page"], *row.get("also_ok", ())}


def fold_of(row: Row) -> int:
    return hashlib.sha256(row["id"].encode()).digest()[0] % FOLDS


def first_below(curve: Sequence[dict[str, float]], let_through: float) -> float:
    """Return the lowest threshold of the curve that lets at most this share of the uncovered questions through."""
    return next(point["from"] for point in curve if point["let_through"] <= let_through)


def risk_coverage(probability: Any, covered: Any) -> list[dict[str, float]]:
    """Return for thresholds from 0.02 to 0.98 the share of covered questions kept and of uncovered ones let through."""
    return [
        {
            "from": at / 100,
            "kept": round(float((probability[covered] >= at / 100).mean()), 4),
            "let_through": round(float((probability[~covered] >= at / 100).mean()), 4),
        }
        for at in range(2, 99, 2)
    ]




if __name__ == "__main__":
    run_script(main)
