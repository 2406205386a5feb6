"""Training: on a handful of questions on the small library; what it writes opens and finds what it did not see."""

from __future__ import annotations

import json

import numpy as np
import pytest

from medical_assistant.errors import UserError
from medical_assistant.library import coverage, ranking, training
from medical_assistant.library.classifier import NOTHING, classifier_of
from medical_assistant.library.index import EmbeddedLibrary
from medical_assistant.library.pages import read_library
from medical_assistant.library.trained import load_trained
from tests.library.conftest import PAGES
from tests.support.paths import ROOT

ASKED = {  # section -> ways to ask for it; {} is the page's name
    "In short": ("what is {}", "what does {} mean", "tell me about {}", "explain {} to me", "{} what is it"),
    "Treatment": ("how is {} treated", "what is the treatment for {}", "cure for {}", "how do doctors treat {}"),
    "Causes": ("what causes {}", "why do i have {}", "cause of {}", "why did {} come"),
    "Missed dose": ("i forgot my {}", "i missed my {} today", "forgot to take {} what now", "my {} is late"),
    "Side effects": ("side effects of {}", "can {} make me sick", "does {} upset you", "what harm does {} do"),
    "Normal values": ("what is a normal {}", "normal {} for my age", "is my {} of 80 ok", "my {} is 72"),
    "What you can do": ("what can i do for {}", "how do i help with {}", "what helps a {}", "{} at home"),
}
NAMES = {
    "malaria": "malaria",
    "gout": "gout",
    "sore-throat": "sore throat",
    "pulse-rate": "pulse rate",
    "ibuprofen": "ibuprofen",
    "fever-in-adults": "fever in adults",
    "fever-in-children": "child fever",
}
UNCOVERED = (
    "how do i bleed a radiator", "why does my car cough", "what is the capital of peru", "is blorptitis contagious",
    "how do i cook rice", "who won the cup", "my printer does not print", "what is stiff person syndrome",
    "how do i patch a tyre", "which paint for a fence", "when is the next train", "how long to boil an egg",
    "what does my dream of fish mean", "price of a phone", "is my neighbour right", "how do i tie a tie",
)  # fmt: skip
HELD_OUT = {"how can they treat the gout": ("gout", "Treatment"), "forgot my ibuprofen": ("ibuprofen", "Missed dose")}


def rows(pages):
    sections = {page.id: {section.heading for section in page.sections} for page in pages}
    return [
        {"id": f"{page}-{heading}-{n}", "question": asked.format(name), "page": page, "section": heading}
        for page, name in NAMES.items()
        for heading, ways in ASKED.items()
        if heading in sections[page]
        for n, asked in enumerate(ways)
        if asked.format(name) not in HELD_OUT
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of the pages, and that of what was learned."""
    pages, questions, output = (tmp_path_factory.mktemp(name) for name in ("pages", "questions", "output"))
    for name, text in PAGES.items():
        (pages / f"{name}.md").write_text(text, encoding="utf-8")
    uncovered = [{"id": f"u{n}", "question": question, "why": "x"} for n, question in enumerate(UNCOVERED)]
    elsewhere = {"id": "x", "question": "what is scurvy", "page": "scurvy", "section": "In short"}
    for name, found in (("covered", [*rows(read_library(pages)), elsewhere]), ("uncovered", uncovered)):
        (questions / f"{name}.jsonl").write_text("\n".join(map(json.dumps, found)), encoding="utf-8")
    places = ["--library", str(pages), "--questions", str(questions), "--output", str(output)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "ordinary_words", lambda: ["happy", "later"])  # the real ones are read once below
        assert training.main(places) == 0
    return pages, output


def test_what_is_written_opens_and_finds_questions_that_it_did_not_see(trained):
    pages, output = trained
    learned = load_trained(output)
    assert set(learned.ranking.weights) == set(ranking.SIGNALS) and set(learned.gate.named.weights) == set(
        coverage.SIGNALS
    )
    assert learned.uncorrected == {"happy", "later"}
    assert "scurvy" not in learned.ranking.asked_for.stems  # no page of the library
    library = EmbeddedLibrary(read_library(pages), learned)
    for question, (page, heading) in HELD_OUT.items():
        found = library.find(question)
        assert found.parts[0].topic.id == page and heading in found.parts[0].asked, question
        assert found.probability > library.find("how do i bleed a tyre").probability


def test_thresholds_come_from_the_curve(trained):
    content = json.loads((trained[1] / "coverage.json").read_text(encoding="utf-8"))
    let_through = {point["from"]: point["let_through"] for point in content["curve"]}
    assert let_through[content["partly_from"]] <= training.MAX_LET_THROUGH
    assert let_through[content["covered_from"]] <= training.SURE_LET_THROUGH
    assert content["covered_from"] >= content["partly_from"]
    assert content["questions"]["not"] == len(UNCOVERED)


def test_questions_in_few_words_ask_for_sections_that_their_pages_have(shipped):
    rows = training.plain_questions(shipped.pages)
    pages = {page.id: page for page in shipped.pages}
    assert {row["page"] for row in rows} == set(pages) and len({row["id"] for row in rows}) == len(rows)
    assert all(pages[row["page"]].section(row["section"]) for row in rows)
    assert rows == training.plain_questions(shipped.pages)


def test_risk_coverage_and_the_first_threshold_below():
    curve = training.risk_coverage(np.array([0.9, 0.7, 0.5, 0.1]), np.array([True, True, False, False]), np.ones(4))
    at = {point["from"]: point for point in curve}
    assert at[0.4] == {"from": 0.4, "kept": 1.0, "let_through": 0.5}
    assert at[0.8] == {"from": 0.8, "kept": 0.5, "let_through": 0.0}
    assert training.first_below(curve, 0.0) == 0.52


def test_a_classifier_is_the_same_after_it_was_written(tmp_path):
    examples = [({"x", "y"}, "a", 1.0), ({"y", "z"}, NOTHING, 1.0)] * 4
    fitted = training.fit_classifier(examples, ("a", "never seen", NOTHING), 5.0)
    training.write_classifier(tmp_path / "classifier.json", fitted, len(examples))
    read = classifier_of(json.loads((tmp_path / "classifier.json").read_text(encoding="utf-8")))
    assert fitted.scores({"x"}) == pytest.approx(read.scores({"x"}), abs=0.02)
    scores = read.scores({"x"})
    assert scores["a"] > scores[NOTHING] and scores["never seen"] <= scores[NOTHING] + scores["a"]


def test_the_fold_of_a_row_is_its_own():
    folds = [training.fold_of({"id": f"w1-{n}"}) for n in range(200)]
    assert folds == [training.fold_of({"id": f"w1-{n}"}) for n in range(200)]
    assert {*folds} == set(range(training.FOLDS))


def test_ordinary_words_are_common_and_long_enough_to_be_taken_for_a_name():
    words = training.ordinary_words()
    assert words == sorted(words) and {"happy", "doesnt"} <= set(words)
    assert all(len(word) >= training.MIN_CORRECTED_LETTERS and word.isalpha() for word in words)
    assert not {"maleria", "ibuprophen"} & set(words)


@pytest.mark.parametrize("content", [None, "{", "\n\n[1"])
def test_broken_questions_and_a_folder_that_is_not_there_are_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "covered.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match="covered.jsonl is missing or broken"):
        training.read_rows(tmp_path, "covered")
    with pytest.raises(UserError, match="is no folder"):
        training.main(["--output", str(tmp_path / "none")])


@pytest.mark.parametrize("name", ["covered", "uncovered", "follow_ups"])
def test_the_questions_of_training_are_not_those_of_the_benchmark(name):
    def asked(folder):
        return {(*row.get("earlier", ()), row["question"].lower()) for row in training.read_rows(folder, name)}

    measured = asked(ROOT / "benchmarks" / "library_questions")
    assert not asked(training.QUESTIONS) & measured
