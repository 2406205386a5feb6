"""Fit what decides over the library's answers: which page, which section, and whether they answer the question.

    python -m medical_assistant.library.training

Reads the questions of training_data/library, whose authors saw the titles of the pages and the headings of each kind
and nothing else, and writes section_classifier.json, scope_classifier.json, ranking.json, coverage.json and
ordinary_words.txt into assets/library. Each fit is on signals from earlier fits that did not see the question. Needs
scikit-learn and pyspellchecker (its English word counts, MIT licence); the application does not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from medical_assistant.errors import UserError, run_script
from medical_assistant.files import ROOT, write_whole
from medical_assistant.library import coverage, ranking
from medical_assistant.library.classifier import NOTHING, WEIGHT_SCALE, TextClassifier, features
from medical_assistant.library.coverage import Gate, Line
from medical_assistant.library.index import EmbeddedLibrary
from medical_assistant.library.pages import SECTIONS, Page, read_library
from medical_assistant.library.ranking import PRIOR, PRIOR_ROWS, AskedFor, Ranking, name_key
from medical_assistant.library.trained import FOLDER, Trained
from medical_assistant.library.understand import MIN_CORRECTED_LETTERS

QUESTIONS = ROOT / "training_data" / "library"
PENALTY, SCOPE_PENALTY, GATE_PENALTY = 5.0, 1.0, 3.0  # the inverse of the L2 penalty on the weights
ALSO_WEIGHT = 0.5  # of a section that also answers
TITLE_WEIGHT = 0.05  # of a page's bare title, which asks what it is
MIN_ROWS, MIN_WEIGHT = 3, 0.2  # a feature in fewer rows, or a smaller weight, is not stored
FOLDS = 5
# A wrong answer may be let through for this share of the questions that the library does not cover.
MAX_LET_THROUGH, SURE_LET_THROUGH = 0.07, 0.04  # "partly" or better, "covered"
HEADINGS = (*dict.fromkeys(heading for headings in SECTIONS.values() for heading in headings), NOTHING)
COVERED = "covered"
# Why a question is not covered, where its words are those of one that is: they teach the gate, not the classifiers.
ONLY_BY_NAME = ("rare", "unknown medicine", "invented")
NOT_FITTED = TextClassifier(HEADINGS, np.zeros(len(HEADINGS)), {}, np.zeros(1, int), np.zeros(0, int), np.zeros(0))
NO_LINE = Line(dict.fromkeys(coverage.SIGNALS, 0.0), 0.0)
NO_GATE = Gate(NO_LINE, NO_LINE, 0.0, 0.0)
NO_RANKING = Ranking(dict.fromkeys(ranking.SIGNALS, 1.0), {}, AskedFor({}))
RANKING_PENALTY = 1.0
RARER_SHARE = 0.3  # of a question that counts less
MIN_SHARE = 2e-7  # of a word among all words of English, for an ordinary word that is never corrected

Row = dict[str, Any]
Example = tuple[set[str], str, float]  # features, heading, weight


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m medical_assistant.library.training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--questions", type=Path, default=QUESTIONS, help="folder of the questions")
    parser.add_argument("--library", type=Path, default=FOLDER, help="folder of the pages")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder for what is learned")
    arguments = parser.parse_args(argv)
    if not arguments.output.is_dir():
        raise UserError(f"{arguments.output} is no folder: make it first.")
    words = ordinary_words()
    pages = read_library(arguments.library)
    library = EmbeddedLibrary(pages, Trained(NOT_FITTED, NOT_FITTED, NO_RANKING, NO_GATE, frozenset(words)))
    ids = {page.id for page in pages}
    rows = [row for row in read_rows(arguments.questions, "covered") if row["page"] in ids]
    rows += [*read_rows(arguments.questions, "uncovered"), *plain_questions(pages)]
    library, gate = cross_fit(library, rows)
    write_whole(arguments.output / "ordinary_words.txt", "\n".join(words) + "\n")
    write_classifier(arguments.output / "section_classifier.json", library.trained.sections, len(rows))
    write_classifier(arguments.output / "scope_classifier.json", library.trained.scope, len(rows))
    write_ranking(arguments.output / "ranking.json", library.trained.ranking)
    write_whole(arguments.output / "coverage.json", json.dumps(gate, indent=1) + "\n")
    sys.stdout.write(json.dumps({**gate, "curve": "..."}, indent=1) + "\n")
    return 0


# Ways to ask for a section in few words, {} for a page's name.
PLAIN = {
    "In short": ("what is {}", "tell me about {}", "{}"),
    "Signs": ("what are the signs of {}", "symptoms of {}", "how do i know if i have {}"),
    "Causes": ("what causes {}", "why do people get {}", "cause of {}"),
    "Treatment": ("how is {} treated", "treatment for {}", "what helps {}"),
    "Prevention": ("how do i prevent {}", "how to avoid {}"),
    "What you can do": ("what can i do about {}", "what helps with {} at home"),
    "How long it lasts": ("how long does {} last",),
    "How it is found": ("how do they test for {}", "how is {} diagnosed"),
    "Used for": ("what is {} for", "what is {} used for"),
    "Side effects": ("side effects of {}", "does {} have side effects"),
    "How to take it": ("how do i take {}",),
    "Do not mix with": ("what does {} not mix with", "can i drink alcohol with {}"),
    "Missed dose": ("i missed a dose of {}",),
    "Pregnancy and breastfeeding": ("can i take {} when pregnant",),
    "What it measures": ("what does {} show", "what is {}"),
    "Normal values": ("what is a normal {}", "normal range for {}"),
    "Getting ready": ("how do i get ready for {}",),
    "Who should have it": ("who should have {}",),
    "What to do": ("what to do for {}", "first aid for {}"),
}
PLAIN_OF_A_PAGE = 2


def plain_questions(pages: Sequence[Page]) -> list[Row]:
    """Return questions in few words on each page ("what is gout"): those that people wrote are seldom so short.

    Without them the gate learns that a short question is not covered.
    """
    rows = []
    for page in pages:
        ways = [(section.heading, way) for section in page.sections for way in PLAIN.get(section.heading, ())]
        ways.sort(key=lambda way: hashlib.sha256(f"{page.id} {way}".encode()).digest())
        for n, (heading, way) in enumerate(ways[:PLAIN_OF_A_PAGE]):
            question = way.format(page.title.lower())
            row = {"id": f"plain-{page.id}-{n}", "question": question, "page": page.id, "section": heading}
            rows.append({**row, "generated": True})
    return rows


def ordinary_words() -> list[str]:
    """Return English words that are too common to be a misspelling of a name, sorted."""
    from spellchecker import SpellChecker

    counts = SpellChecker(language="en").word_frequency
    words = {  # people leave the apostrophe of "doesn't" out
        word.replace("'", "") for word, count in counts.dictionary.items() if count >= MIN_SHARE * counts.total_words
    }
    return sorted(word for word in words if len(word) >= MIN_CORRECTED_LETTERS and word.isalpha())


def read_rows(folder: Path, name: str) -> list[Row]:
    """Return the rows of a file of questions. Raises `UserError` when it is missing or broken."""
    path = folder / f"{name}.jsonl"
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is missing or broken: restore it.") from error


def fit_sections(library: EmbeddedLibrary, rows: Sequence[Row]) -> TextClassifier:
    """Return a classifier fitted on these rows and on the titles of all pages."""
    found = [example for row in rows for example in examples(library, row)]
    for page in library.pages:
        heading = "Normal values" if page.kind == "test" else "In short"
        found.append((features(["x"], {"x"}, page.kind), heading, TITLE_WEIGHT))
    return fit_classifier(found, HEADINGS, PENALTY)


def fit_scope(library: EmbeddedLibrary, rows: Sequence[Row]) -> TextClassifier:
    """Return a classifier of questions that are for a health library, and of those that are not (`NOTHING`)."""
    share = sum("page" in row for row in rows) / len(rows)
    found = [
        (features(library.names.read(row["question"]).sequence, frozenset(), ""), label, weight)
        for row in rows
        for label, weight in [(COVERED, 1 - share) if "page" in row else (NOTHING, share)]
    ]
    return fit_classifier(found, (COVERED, NOTHING), SCOPE_PENALTY)


def fit_classifier(found: Sequence[Example], labels: Sequence[str], penalty: float) -> TextClassifier:
    from scipy.sparse import csc_matrix
    from sklearn.linear_model import LogisticRegression

    counts = Counter(feature for names, _, _ in found for feature in names)
    number_of = {name: at for at, name in enumerate(sorted(name for name in counts if counts[name] >= MIN_ROWS))}
    model = LogisticRegression(C=penalty, max_iter=200, tol=1e-3)
    model.fit(
        matrix([names for names, _, _ in found], number_of),
        [label for _, label, _ in found],
        sample_weight=[weight for _, _, weight in found],
    )
    coefficients, intercepts = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # scikit-learn has one row for two classes
        coefficients, intercepts = np.vstack([-coefficients, coefficients]), np.array([-intercepts[0], intercepts[0]])
    bias = np.full(len(labels), intercepts.min())  # of a label that no row has
    weights = np.zeros((len(labels), len(number_of)))
    for label, own_bias, own in zip(model.classes_, intercepts, coefficients, strict=True):
        at = list(labels).index(label)
        bias[at], weights[at] = own_bias, np.where(np.abs(own) >= MIN_WEIGHT, own, 0.0)
    stored = csc_matrix(weights)
    return TextClassifier(tuple(labels), bias, number_of, stored.indptr, stored.indices, stored.data)


def examples(library: EmbeddedLibrary, row: Row) -> list[Example]:
    """Return what a row teaches: its section for its page, or that no section of the page found answers it."""
    reading = library.names.read(row["question"])
    topics = library.names.topics(reading)
    if "page" not in row:
        found = library.find(row["question"]).parts
        kind = found[0].topic.kind if found else "condition"
        words = topics[0].subject if topics else frozenset[str]()
        return [(features(reading.sequence, words, kind), NOTHING, 1.0)]
    page = next(page for page in library.pages if page.id == row["page"])
    topic = next((topic for topic in topics if topic.page is page), topics[0] if topics else None)
    names = features(reading.sequence, topic.subject if topic else frozenset(), page.kind)
    wanted = [(row["section"], 1.0), *((heading, ALSO_WEIGHT) for heading in row.get("section_also_ok", ()))]
    return [(names, heading, weight) for heading, weight in wanted if heading in SECTIONS[page.kind]]


def matrix(rows: Sequence[set[str]], number_of: dict[str, int]) -> Any:
    """Return the rows (n, features) as a sparse matrix, each scaled as `TextClassifier.scores` scales it."""
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


def write_classifier(path: Path, classifier: TextClassifier, rows: int) -> None:
    lengths = np.diff(classifier.starts)
    names = [name for name, number in classifier.number_of.items() if lengths[number]]  # in the order of the numbers
    content = {
        "labels": classifier.labels,
        "bias": [round(value, 3) for value in classifier.bias.tolist()],
        "rows": rows,
        "features": names,
        "lengths": lengths[lengths > 0].tolist(),
        "columns": classifier.columns.tolist(),
        "values": np.round(classifier.values * WEIGHT_SCALE).astype(int).tolist(),
    }
    write_whole(path, json.dumps(content, separators=(",", ":"), ensure_ascii=False) + "\n")


def cross_fit(library: EmbeddedLibrary, rows: Sequence[Row]) -> tuple[EmbeddedLibrary, dict[str, Any]]:
    """Return the library with what was learned, but for the gate, and coverage.json's content.

    The signals of the questions of a fold come from a section classifier, and from words in which pages were asked for,
    that did not see them; the order of pages that the gate sees from a ranking that did not either.
    """
    data, parts = [], []
    for fold in range(FOLDS):
        learned = learn(library, [row for row in rows if fold_of(row) != fold])
        parts.append((learned, [row for row in rows if fold_of(row) == fold]))
        data += [(fold, row, ranked_pages(learned, row)) for row in parts[-1][1] if "page" in row]
    gate_rows = []
    for fold, (learned, own) in enumerate(parts):
        set_weights(learned, fit_ranking([(row, found) for other, row, found in data if other != fold]))
        for row in own:
            found = learned.find(row["question"])
            first = found.parts[0].topic.id if found.parts else ""
            if "page" not in row or first in pages_of(row):
                gate_rows.append((fold, dict(found.signals), row))
    learned = learn(library, rows)
    set_weights(learned, fit_ranking([(row, found) for _, row, found in data]))
    return learned, fit_gate(gate_rows)


def set_weights(library: EmbeddedLibrary, weights: dict[str, float]) -> None:
    library.trained = replace(library.trained, ranking=replace(library.trained.ranking, weights=weights))


def learn(library: EmbeddedLibrary, rows: Sequence[Row]) -> EmbeddedLibrary:
    """Return a library with the two classifiers, the names' reliability and the words in which pages are asked for."""
    telling = [row for row in rows if row.get("why") not in ONLY_BY_NAME]
    sections, scope = fit_sections(library, telling), fit_scope(library, telling)
    meant: defaultdict[str, list[bool]] = defaultdict(list)
    asked_for: defaultdict[str, list[str]] = defaultdict(list)
    for row in (row for row in rows if "page" in row):
        reading = library.names.read(row["question"])
        asked_for[row["page"]] += reading.stems
        for topic in library.names.topics(reading):
            meant[name_key(topic.page, topic.words)].append(topic.page.id in pages_of(row))
    reliability = {
        name: round((sum(found) + PRIOR * PRIOR_ROWS) / (len(found) + PRIOR_ROWS), 3) for name, found in meant.items()
    }
    learned = Ranking(library.trained.ranking.weights, reliability, AskedFor(asked_for))
    return EmbeddedLibrary(library.pages, replace(library.trained, sections=sections, scope=scope, ranking=learned))


def ranked_pages(library: EmbeddedLibrary, row: Row) -> dict[str, dict[str, float]]:
    """Return the signals of each page that comes into question, by its id."""
    reading = library.names.read(row["question"])
    found = library.page_signals(reading, library.names.topics(reading), library.ranked(reading))
    return {topic.page.id: signals for topic, signals in found}


def fit_ranking(data: Sequence[tuple[Row, dict[str, dict[str, float]]]]) -> dict[str, float]:
    """Return the weights by which the page of a row goes before the others that came into question."""
    from sklearn.linear_model import LogisticRegression

    differences, shares = [], []
    for row, found in data:
        right = [found[name] for name in (row["page"], *row.get("also_ok", ())) if name in found][:1]
        for name, signals in found.items():
            if right and name not in pages_of(row):
                differences.append([right[0][key] - signals[key] for key in ranking.SIGNALS])
                shares.append(share_of(row))
    x = np.array(differences)
    model = LogisticRegression(C=RANKING_PENALTY, fit_intercept=False, max_iter=500)
    model.fit(np.vstack([x, -x]), np.repeat([1, 0], len(x)), sample_weight=[*shares, *shares])
    return {name: round(float(weight), 3) for name, weight in zip(ranking.SIGNALS, model.coef_[0], strict=True)}


def write_ranking(path: Path, learned: Ranking) -> None:
    content = {
        "weights": learned.weights,
        "reliability": dict(sorted(learned.reliability.items())),
        "asked_for": {name: " ".join(words) for name, words in learned.asked_for.words.items()},
    }
    write_whole(path, json.dumps(content, indent=0) + "\n")


def share_of(row: Row) -> float:
    """Return how much a question counts: one that was written to name nothing is rarer than its rows."""
    return RARER_SHARE if row.get("described") or row.get("generated") else 1.0


def fit_gate(rows: Sequence[tuple[int, dict[str, float], Row]]) -> dict[str, Any]:
    """Return the content of coverage.json: weights, two thresholds and the risk-coverage curve that they come from.

    `rows`: fold, signals, and the question's row. A question whose page did not come first is left out. Questions that
    name a topic have a gate of their own. Each probability on the curve is from a gate that did not see the question;
    the curve is over what people wrote.
    """
    probability = np.zeros(len(rows))
    folds = np.array([fold for fold, *_ in rows])
    for fold in range(FOLDS):
        lines = fit_lines([row for row in rows if row[0] != fold])
        gate = coverage.gate_of({**lines, "covered_from": 1.0, "partly_from": 1.0})
        probability[folds == fold] = [gate.probability(signals) for at, signals, _ in rows if at == fold]
    covered = np.array(["page" in row for *_, row in rows])
    shares = np.array([0.0 if row.get("generated") else share_of(row) for *_, row in rows])
    curve = risk_coverage(probability, covered, shares)
    return {
        **fit_lines(rows),
        "covered_from": first_below(curve, SURE_LET_THROUGH),
        "partly_from": first_below(curve, MAX_LET_THROUGH),
        "questions": {"covered": int((covered & (shares > 0)).sum()), "not": int((~covered).sum())},
        "curve": curve,
    }


def fit_lines(rows: Sequence[tuple[int, dict[str, float], Row]]) -> dict[str, Any]:
    """Return the weights and the bias for questions that name a topic, and for those that do not."""
    from sklearn.linear_model import LogisticRegression

    lines = {}
    # Both are as ready to let a question through as one over all of them: each class has its whole weight.
    total = {kind: sum(share_of(row) for *_, row in rows if ("page" in row) == kind) for kind in (True, False)}
    for name, named in coverage.LINES.items():
        own = [(signals, row) for _, signals, row in rows if bool(signals["has_name"]) == named]
        if len({"page" in row for _, row in own}) < 2:  # too few to tell them apart
            own = [(signals, row) for _, signals, row in rows]
        x = np.array([[signals[key] for key in coverage.SIGNALS] for signals, _ in own])
        shares = np.array([share_of(row) / total["page" in row] for _, row in own]) * len(rows) / 2
        model = LogisticRegression(C=GATE_PENALTY, max_iter=3000)
        model.fit(x, ["page" in row for _, row in own], sample_weight=shares)
        weights = zip(coverage.SIGNALS, model.coef_[0], strict=True)
        lines[name] = {
            "weights": {key: round(float(weight), 3) for key, weight in weights},
            "bias": round(float(model.intercept_[0]), 3),
        }
    return lines


def pages_of(row: Row) -> set[str]:
    return {row["page"], *row.get("also_ok", ())}


def fold_of(row: Row) -> int:
    return hashlib.sha256(row["id"].encode()).digest()[0] % FOLDS


def first_below(curve: Sequence[dict[str, float]], let_through: float) -> float:
    """Return the lowest threshold of the curve that lets at most this share of the uncovered questions through."""
    return next(point["from"] for point in curve if point["let_through"] <= let_through)


def risk_coverage(probability: Any, covered: Any, shares: Any) -> list[dict[str, float]]:
    """Return for thresholds from 0.02 to 0.98 the share of covered questions kept and of uncovered ones let through."""
    return [
        {
            "from": at / 100,
            "kept": round(float(np.average(probability[covered] >= at / 100, weights=shares[covered])), 4),
            "let_through": round(float((probability[~covered] >= at / 100).mean()), 4),
        }
        for at in range(2, 99, 2)
    ]


if __name__ == "__main__":
    run_script(main)
