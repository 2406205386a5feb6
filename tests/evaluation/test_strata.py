from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from medical_assistant.errors import UserError
from medical_assistant.evaluation.scoring.bootstrap import paired_difference
from medical_assistant.evaluation.strata import (
    NEAR,
    NEAR_EMBEDDING,
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
    assert (found.index, found.text, found.stratum) == (index, TRAINING[index], "near")
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
    assert nearest("asthma") == Nearest(1.0, 0, TRAINING[0], "minhash")
    # Only "what are the symptoms of" is shared, which decides whom to show and counts next to nothing.
    gout = nearest("What are the symptoms of gout?")
    assert gout.text in TRAINING[:2] and 0 < gout.similarity < 0.05 and gout.method == "tfidf"
    assert nearest("zzz") == Nearest(0.0, None, None, "tfidf")
    assert nearest("") == Nearest(0.0, None, None, "tfidf")
    # Jaccard 3/4 of {chronic, kidney, failure, fatigue} with three of them.
    training = ["chronic kidney failure", "gout"]
    found = nearest_training(["chronic kidney failure fatigue"], training)[0]
    assert found.similarity >= 0.75 and found.index == 0


def test_questions_of_generic_words_only_match_each_other() -> None:
    found = nearest_training(["What are the risks?"], ["What are the risks of asthma?", "What are the risks?"])[0]
    assert (found.index, found.similarity) == (1, pytest.approx(1))


def test_threshold_of_a_method() -> None:
    assert Nearest(NEAR, 0, "x", "tfidf").stratum == "near"
    assert Nearest(NEAR - 0.01, 0, "x", "minhash").stratum == "clean"
    assert Nearest(NEAR_EMBEDDING - 0.01, 0, "x", "embedding").stratum == "clean"
    assert Nearest(NEAR_EMBEDDING, 0, "x", "embedding").stratum == "near"


def test_nothing_to_compare() -> None:
    assert nearest_training([], TRAINING) == []
    with pytest.raises(UserError, match="no training questions"):
        nearest_training(["What is gout?"], [])


@given(st.lists(st.text(max_size=40), min_size=1, max_size=6), st.lists(st.text(max_size=40), min_size=1, max_size=6))
def test_any_text_has_a_nearest_in_range(questions: list[str], training: list[str]) -> None:
    found = nearest_training(questions, training)
    assert len(found) == len(questions)
    for one in found:
        assert 0 <= one.similarity <= 1
        assert one.text == (None if one.index is None else training[one.index])
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


def test_embeddings_find_what_words_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = {"heart attack": [1.0, 0.0], "myocardial infarction": [0.95, 0.31], "gout": [0.0, 1.0], "flu": [0.6, 0.8]}
    monkeypatch.setattr(
        "medical_assistant.evaluation.strata._embed",
        lambda texts, model: numpy.array([vectors[text] / numpy.linalg.norm(vectors[text]) for text in texts]),
    )
    found = nearest_training(["heart attack", "flu", "gout"], ["myocardial infarction", "gout"], "model")
    assert (found[0].index, found[0].method, found[0].stratum) == (0, "embedding", "near")
    assert found[0].similarity == pytest.approx(0.951, abs=1e-3)
    assert (found[1].index, found[1].method, found[1].stratum) == (0, "embedding", "clean")
    # Cosine 1.0 against its threshold 0.9, Jaccard 1.0 against 0.6: the words are the surer sign.
    assert (found[2].index, found[2].method, found[2].stratum) == (1, "minhash", "near")


def test_embedding_is_the_mean_of_token_vectors(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from transformers import BertConfig, BertModel, BertTokenizerFast

    from medical_assistant.evaluation.strata import _embed

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "gout", "flu", "toe"]
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"))
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(0)
    model = BertModel(
        BertConfig(
            vocab_size=len(words), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
        )
    ).eval()
    model.save_pretrained(tmp_path)
    made = _embed(["gout", "gout flu toe"], str(tmp_path))
    with torch.inference_mode():
        alone = model(**tokenizer("gout", return_tensors="pt")).last_hidden_state[0].mean(dim=0)
    assert made[0] == pytest.approx(
        (alone / alone.norm()).numpy(), abs=1e-5
    )  # padding beside the longer text is left out
    assert numpy.linalg.norm(made, axis=1) == pytest.approx([1, 1], abs=1e-5)
    with pytest.raises(UserError, match="embedding model .* cannot be loaded"):
        nearest_training(["gout"], ["gout"], str(tmp_path / "nothing"))


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
    return strata_section(rows, ["base", "fine_tuned"], mean_scores, {"rougeL": 1}, resamples=1_000)


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
    with pytest.raises(UserError, match="rouge1 cannot decide"):
        strata_section(make_rows(3, 0), ["base", "fine_tuned"], mean_scores, {"rougeL": 1}, "rouge1")
