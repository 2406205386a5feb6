from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from medical_assistant.evaluation.scoring.bootstrap import Resampler, paired_difference
from medical_assistant.evaluation.strata import (
    NEAR,
    Nearest,
    nearest_training,
    question_type,
    strata_section,
)
from medical_assistant.files import ASSETS
from tests.support.timing import cpu_s

TRAINING = [
    "What are the symptoms of asthma?",
    "What are the symptoms of pulmonary valve stenosis?",
    "What causes chronic kidney disease?",
    "When to seek urgent medical care when I have Hepatitis E?",
    "Who is at highest risk for Crohn's disease?",
    "What are the treatments for type 2 diabetes?",
    "What to expect if I have a broken wrist?",
]


def nearest(question: str) -> Nearest:
    return nearest_training([question], TRAINING)[0]


@pytest.mark.parametrize(
    ("question", "index"),
    [
        ("What are the symptoms of asthma?", 0),
        ("How is asthma treated?", 0),  # the same thing, asked for something else
        ("What causes pulmonary valve stenosis?", 1),
        ("Why do people get chronic kidney diseases?", 2),
        ("What are the causes of Crohn disease?", 4),
        ("When should I see a doctor for my broken wrist?", 6),
    ],
)
def test_questions_on_the_same_thing_are_near(question: str, index: int) -> None:
    found = nearest(question)
    assert (found.text, found.stratum) == (TRAINING[index], "near")
    assert NEAR <= found.similarity <= 1


@pytest.mark.parametrize(
    "question",
    [
        "What are the symptoms of gout?",  # the form alone
        "What are the symptoms of mitral valve prolapse?",
        "What causes Hepatitis B?",
        "What causes acute kidney failure?",
        "What is type 1 albinism?",
    ],
)
def test_questions_of_the_same_form_are_not(question: str) -> None:
    found = nearest(question)
    assert found.stratum == "clean" and found.similarity < NEAR


def test_similarity_by_hand() -> None:
    # Of the same words: 1, by the exact Jaccard similarity.
    assert nearest("asthma") == Nearest(1.0, TRAINING[0])
    # Only "what are the symptoms of" is shared, which decides whom to show and counts next to nothing.
    gout = nearest("What are the symptoms of gout?")
    assert gout.text in TRAINING[:2] and 0 < gout.similarity < 0.05
    assert nearest("zzz") == Nearest(0.0, None)
    assert nearest("") == Nearest(0.0, None)
    # Jaccard 3/4 of {chronic, kidney, failure, fatigue} with three of them.
    training = ["chronic kidney failure", "gout"]
    found = nearest_training(["chronic kidney failure fatigue"], training)[0]
    assert found.similarity >= 0.75 and found.text == training[0]


def test_questions_of_generic_words_only_match_each_other() -> None:
    found = nearest_training(["What are the risks?"], ["What are the risks of asthma?", "What are the risks?"])[0]
    assert found == (pytest.approx(1), "What are the risks?")


def test_the_threshold_is_near() -> None:
    assert Nearest(NEAR, "x").stratum == "near"
    assert Nearest(NEAR - 0.01, "x").stratum == "clean"


def test_nothing_to_compare() -> None:
    assert nearest_training([], TRAINING) == []


@given(st.lists(st.text(max_size=40), min_size=1, max_size=6), st.lists(st.text(max_size=40), min_size=1, max_size=6))
def test_any_text_has_a_nearest_in_range(questions: list[str], training: list[str]) -> None:
    found = nearest_training(questions, training)
    assert len(found) == len(questions)
    for one in found:
        assert 0 <= one.similarity <= 1
        assert one.text in training if one.similarity > 0 else one.text is None
    assert found == nearest_training(questions, training)
    repeated = nearest_training(training, training)
    for text, one in zip(training, repeated, strict=True):
        assert one.similarity == pytest.approx(1) or not any(character.isalnum() for character in text)


def test_twice_the_questions_take_no_more_than_three_times_as_long() -> None:
    generator = numpy.random.default_rng(0)
    syllables = ["car", "di", "o", "my", "path", "neu", "ro", "itis", "osis", "hep", "at", "der", "ma", "gas", "tr"]
    names = ["".join(generator.choice(syllables, 4)) for _ in range(2_000)]
    forms = ["What are the symptoms of {}?", "What causes {} {}?", "Who is at risk for {}?", "How to know you have {}?"]
    training = [forms[i % 4].format(*generator.choice(names, 2)) for i in range(800)]

    def search(n: int) -> list[Nearest]:
        return nearest_training(training[:n], training[:n])

    assert [one.similarity for one in search(200)] == pytest.approx([1.0] * 200)
    assert cpu_s(lambda: search(800), 2) < 3 * cpu_s(lambda: search(400), 2)


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("What are the symptoms of gout?", "symptoms"),
        ("When to seek urgent medical care when I have gout?", "when to seek care"),
        ("Should I see a doctor for my cough?", "when to seek care"),
        ("What to expect if I have gout (Outlook/Prognosis)?", "outlook"),
        ("What are the risks of hysterectomy?", "outlook"),
        ("Who is at highest risk for gout?", "risk factors"),
        ("What are the risk factors for stroke?", "risk factors"),
        ("What causes gout?", "causes"),
        ("How does swine flu spread?", "causes"),
        ("How to know you have gout?", "diagnosis"),
        ("How do I know if I have gout and what are the symptoms of gout?", "symptoms"),
        ("What are the treatments for gout?", "treatment"),
        ("How can I prevent gout?", "prevention"),
        ("Where to find Medical Care for gout?", "where to find care"),
        ("What are the possible side effects of Vytorin?", "medicines"),
        ("How to prepare for Colposcopic biopsy?", "procedure"),
        ("Is gout inherited ?", "genetics"),
        ("How many people are affected by gout ?", "frequency"),
        ("What is (are) gout ?", "definition"),
        ("WHAT IS GOUT?", "definition"),
        ("Gout?", "other"),
        ("", "other"),
    ],
)
def test_question_types(question: str, kind: str) -> None:
    assert question_type(question) == kind


def test_each_type_stands_once_in_the_rules() -> None:
    rules = yaml.safe_load((ASSETS / "evaluation" / "question_types.yaml").read_text(encoding="utf-8"))
    types = [rule["type"] for rule in rules]
    assert len(set(types)) == len(types) and "other" not in types
    # An unquoted ": " makes a mapping of a pattern.
    assert all(isinstance(pattern, str) for rule in rules for pattern in rule["patterns"])


def make_rows(clean: int, near: int, unknown: int = 0) -> list[dict[str, Any]]:
    """Rows in which fine-tuning gains 0.02 on clean questions and 0.20 on near ones, give or take 0.01."""
    generator = numpy.random.default_rng(0)
    rows = []
    for stratum in ["clean"] * clean + ["near"] * near + [None] * unknown:
        base = float(generator.normal(0.2, 0.05))
        gain = (0.2 if stratum == "near" else 0.02) + float(generator.normal(0, 0.01))
        rows.append(
            {
                "question": "What is gout?",
                "reference": "gout",
                "stratum": stratum,
                "similarity": {"clean": 0.25, "near": 0.75}.get(str(stratum)),
                "candidates": {
                    "base": {"answer": "a", "scores": {"rougeL": base}},
                    "fine_tuned": {"answer": "b", "scores": {"rougeL": base + gain}},
                },
            }
        )
    return rows


def mean_scores(rows: Sequence[Mapping[str, Any]], candidate: str) -> dict[str, float]:
    return {"rougeL": sum(row["candidates"][candidate]["scores"]["rougeL"] for row in rows) / len(rows)}


def section_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return strata_section(rows, ["base", "fine_tuned"], mean_scores, Resampler(1_000))


def test_strata_are_scored_and_compared_apart() -> None:
    rows = make_rows(75, 25, 2)
    section = section_of(rows)
    assert section["status"] == "done" and section["threshold"] == NEAR
    assert section["counts"] == {"clean": 75, "near": 25}
    assert section["nearest"] == {"q50": 0.25, "q90": 0.75, "q95": 0.75, "q99": 0.75, "max": 0.75}
    scores = section["scores"]["fine_tuned"]
    assert scores["all"] == mean_scores(rows, "fine_tuned")
    assert scores["clean"] == mean_scores(rows[:75], "fine_tuned")
    assert scores["near"] == mean_scores(rows[75:100], "fine_tuned")
    clean, near = (section["comparison"][name]["fine_tuned vs base"] for name in ("clean", "near"))
    assert (clean["n"], clean["verdict"], near["n"], near["verdict"]) == (75, "better", 25, "better")
    assert clean["difference"] == pytest.approx(0.02, abs=0.004)
    assert near["difference"] == pytest.approx(0.20, abs=0.008)
    assert clean["high"] < 0.03 < 0.18 < near["low"]
    assert json.loads(json.dumps(section, allow_nan=False)) == section


def test_a_small_or_empty_stratum_claims_nothing() -> None:
    section = section_of(make_rows(30, 5))
    near = section["comparison"]["near"]["fine_tuned vs base"]
    assert (near["n"], near["low"], near["verdict"]) == (5, None, "too few questions")
    section = section_of(make_rows(30, 0))
    assert section["counts"]["near"] == 0
    assert section["comparison"]["near"] == {"fine_tuned vs base": None}
    assert section["scores"]["base"]["near"] == {}
    rows = make_rows(30, 0)
    expected = paired_difference(
        *[[row["candidates"][name]["scores"]["rougeL"] for row in rows] for name in ("base", "fine_tuned")]
    )
    assert section["comparison"]["clean"]["fine_tuned vs base"]["difference"] == expected["difference"]


def test_without_training_questions_there_are_no_strata() -> None:
    section = section_of(make_rows(0, 0, 5))
    assert section["status"] == "not run" and "training questions" in section["reason"]
