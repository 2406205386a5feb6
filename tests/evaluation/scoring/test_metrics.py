from __future__ import annotations

import json
import math
import random
import runpy
import socket
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st

from medical_assistant.evaluation.scoring import text_statistics
from medical_assistant.evaluation.scoring.metrics import (
    METRICS,
    import_evaluate,
    score_all,
    signatures,
)
from tests.support.paths import ROOT
from tests.support.timing import cpu_s

REFERENCES = [
    "Gout is caused by crystals of uric acid in a joint.",
    "Asthma narrows the airways and makes it hard to breathe. An inhaler opens them again.",
]
ANSWERS = ["Gout is caused by uric acid.", "Asthma narrows the airways of the lung. It is hard to breathe."]
QUESTIONS = ["What causes gout?", "What does asthma do to the lungs?"]


def corpus_scores(answers: list[str], references: list[str]) -> dict[str, float]:
    return score_all(answers, references)[0]


def item_scores(answers: list[str], references: list[str]) -> list[dict[str, float]]:
    return score_all(answers, references)[1]


COMPUTED = tuple(METRICS)[:13]
MEAN_OF_ITEMS = ("rouge1", "rouge2", "rougeL", "rougeLsum", "exact_match", "token_f1", "repetition")


def test_metrics_describes_every_computed_key_in_order() -> None:
    corpus, items = score_all(ANSWERS, REFERENCES)
    assert tuple(corpus) == tuple(items[0]) == tuple(items[1]) == COMPUTED
    assert COMPUTED[0] == "bleu" and COMPUTED[-1] == "readability_grade"
    assert {"ended", "mean_tokens", "mean_seconds", "tokens_per_second", "perplexity"} < set(METRICS)
    assert METRICS["rougeL"].name == "ROUGE-L" and METRICS["rougeL"].better == 1
    assert METRICS["repetition"].better == METRICS["mean_seconds"].better == METRICS["perplexity"].better == -1
    assert METRICS["length_ratio"].better == METRICS["readability_grade"].better == 0
    assert all(m.better in (-1, 0, 1) and m.name and m.unit and m.source for m in METRICS.values())
    with pytest.raises(FrozenInstanceError):
        METRICS["bleu"].better = -1  # type: ignore[misc]


def test_copied_references_are_perfect_and_empty_answers_worthless() -> None:
    best, worst = corpus_scores(REFERENCES, REFERENCES), corpus_scores(["", " \n"], REFERENCES)
    assert best["bleu"] == pytest.approx(100) and best["chrf"] == pytest.approx(100)
    assert [best[key] for key in COMPUTED[2:9]] == pytest.approx([1.0] * 7)
    assert set(worst.values()) == {0.0}


def test_scores_by_hand() -> None:
    scores = item_scores(ANSWERS[:1], REFERENCES[:1])[0]
    # 6 of the reference's 11 words, in order; the bigrams but "by uric", 4 of the answer's 5 and of 10.
    assert scores["rouge1"] == scores["rougeL"] == scores["rougeLsum"] == pytest.approx(2 * 6 / (6 + 11))
    assert scores["rouge2"] == pytest.approx(2 * 4 / (5 + 10))
    assert scores["token_f1"] == pytest.approx(2 * 6 / (6 + 10))  # SQuAD drops "a"
    assert scores["length_ratio"] == pytest.approx(6 / 11)
    assert (scores["exact_match"], scores["repetition"], scores["distinct_1"]) == (0.0, 0.0, 1.0)


def test_bleu_and_chrf_by_hand() -> None:
    corpus, items = score_all(["the cat sat on the mat"], ["the cat sat on the red mat"])
    # 6/6 words, 4/5 bigrams, 3/4 trigrams, 2/3 4-grams; brevity penalty e^(1 - 7/6).
    assert corpus["bleu"] == items[0]["bleu"] == pytest.approx(100 * math.exp(-1 / 6) * 0.4**0.25)
    # No 4-gram in the answer: effective order takes the other three, all right; e^(1 - 4/3).
    assert item_scores(["the cat sat"], ["the cat sat down"])[0]["bleu"] == pytest.approx(100 * math.exp(-1 / 3))
    # Characters and pairs: precision 1, recall (2/3 + 1/2) / 2 = 7/12; F2 = 5PR / (4P + R) = 7/11.
    assert corpus_scores(["ab"], ["abc"])["chrf"] == pytest.approx(100 * 7 / 11)


def test_rouge_lsum_forgives_the_order_of_sentences_and_rouge_l_does_not() -> None:
    scores = corpus_scores(["Drink more water. Rest your leg."], ["Rest your leg. Drink more water."])
    assert scores["rougeL"] == pytest.approx(0.5) and scores["rougeLsum"] == pytest.approx(1.0)
    assert text_statistics.split_sentences("Rest. Is it 2.5 mg? Yes!\n- water\n\n- salt ") == [
        "Rest.",
        "Is it 2.5 mg?",
        "Yes!",
        "- water",
        "- salt",
    ]


@pytest.mark.parametrize(
    ("answer", "reference", "match", "f1"),
    [
        ("The liver!", "liver", 1.0, 1.0),
        ("an  ANEMIA", "Anemia.", 1.0, 1.0),
        ("theory", "ory", 0.0, 0.0),  # an article is a whole word
        ("pain pain", "pain", 0.0, 2 / 3),  # each word counts as often as it stands there
        ("liver of pig", "pig liver", 0.0, 4 / 5),
        ("the", "", 1.0, 1.0),
        ("", "liver", 0.0, 0.0),
    ],
)
def test_squad_rules(answer: str, reference: str, match: float, f1: float) -> None:
    assert text_statistics.exact_match(answer, reference) == match
    assert text_statistics.token_f1(answer, reference) == pytest.approx(f1)


def test_repetition_and_diversity_by_hand() -> None:
    text = "rest and drink water Rest and drink water"
    assert text_statistics.repetition(text) == pytest.approx(1 / 5)
    assert text_statistics.repetition("no no no") == 0.0  # no 4-gram at all
    assert text_statistics.repetition("no " * 8) == pytest.approx(4 / 5)
    assert text_statistics.distinct([text], 1) == pytest.approx(4 / 8)
    assert text_statistics.distinct([text], 2) == pytest.approx(4 / 7)
    corpus, items = score_all(["take rest", "take rest"], ["take rest", "take rest"])
    assert corpus["distinct_1"] == corpus["distinct_2"] == 0.5  # the second answer repeats the first
    assert [item["distinct_2"] for item in items] == [1.0, 1.0]


def test_readability_by_hand() -> None:
    grade = text_statistics.readability_grade
    assert grade("The cat sat on the mat.") == pytest.approx(0.39 * 6 + 11.8 * 6 / 6 - 15.59)
    assert grade("Asthma narrows the airways.") == pytest.approx(0.39 * 4 + 11.8 * 7 / 4 - 15.59)
    # Two items of a list, of 3 and 4 words with 4 + 4 syllables, are two sentences.
    assert grade("Drink more water\nRest in your bed") == pytest.approx(0.39 * 3.5 + 11.8 * 8 / 7 - 15.59)
    hard = "Idiopathic thrombocytopenic purpura necessitates immunosuppressive corticosteroid administration."
    assert grade(hard) > 20 > grade(REFERENCES[1])


def test_an_answer_without_words_has_no_part_in_the_mean_grade() -> None:
    corpus, items = score_all(["The cat sat on the mat.", "", "..."], ["cat"] * 3)
    assert [item["readability_grade"] for item in items] == pytest.approx([-1.45, 0.0, 0.0])
    assert corpus["readability_grade"] == pytest.approx(-1.45)


def test_a_set_of_answers_follows_from_its_items() -> None:
    corpus, items = score_all(ANSWERS, REFERENCES)
    for key in MEAN_OF_ITEMS:
        assert corpus[key] == pytest.approx(sum(item[key] for item in items) / 2)
    assert corpus["length_ratio"] == pytest.approx((6 + 12) / (11 + 15))  # not the mean of the two ratios
    assert corpus["bleu"] == pytest.approx(sacrebleu.corpus_bleu(ANSWERS, [REFERENCES]).score)
    assert items[1]["bleu"] == pytest.approx(sacrebleu.sentence_bleu(ANSWERS[1], REFERENCES[1:]).score)
    assert (corpus, items) == (corpus_scores(ANSWERS, REFERENCES), item_scores(ANSWERS, REFERENCES))


def test_no_answers_or_too_few_references_are_refused() -> None:
    for answers, references in ([], []), (["a"], ["a", "b"]):
        with pytest.raises(ValueError, match="one reference an answer"):
            score_all(answers, references)


def test_shuffled_words_cost_what_looks_at_order() -> None:
    generator = random.Random(0)
    shuffled = [" ".join(generator.sample(answer.split(), len(answer.split()))) for answer in ANSWERS]
    before, after = corpus_scores(ANSWERS, REFERENCES), corpus_scores(shuffled, REFERENCES)
    for key in ("bleu", "chrf", "rouge2", "rougeL"):
        assert after[key] < before[key]
    for key in ("rouge1", "token_f1", "exact_match", "length_ratio", "distinct_1"):
        assert after[key] == pytest.approx(before[key])


def test_an_answer_that_repeats_the_question_scores_lower() -> None:
    echoed = [f"{question} {answer}" for question, answer in zip(QUESTIONS, REFERENCES, strict=True)]
    before, after = corpus_scores(REFERENCES, REFERENCES), corpus_scores(echoed, REFERENCES)
    for key in COMPUTED[:8]:
        assert after[key] < before[key]
    assert after["length_ratio"] == pytest.approx((11 + 15 + 3 + 7) / (11 + 15))


def test_a_looping_answer_shows_in_repetition_length_and_diversity() -> None:
    looped = [" ".join([answer] * 4) for answer in ANSWERS]
    before, after = corpus_scores(ANSWERS, REFERENCES), corpus_scores(looped, REFERENCES)
    assert before["repetition"] == 0.0 and after["repetition"] > 0.6
    assert after["length_ratio"] == pytest.approx(4 * before["length_ratio"])
    assert after["distinct_2"] < before["distinct_2"] and after["bleu"] < before["bleu"]


def test_bleu_and_chrf_are_those_of_sacrebleus_command_line(tmp_path: Path) -> None:
    (tmp_path / "answers.txt").write_text("\n".join(ANSWERS) + "\n")
    (tmp_path / "references.txt").write_text("\n".join(REFERENCES) + "\n")
    command = "-m sacrebleu references.txt -i answers.txt -m bleu chrf -w 9 --format json".split()
    run = subprocess.run([sys.executable, *command], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    bleu, chrf = json.loads(run.stdout)
    scores = corpus_scores(ANSWERS, REFERENCES)
    assert (
        scores["bleu"] == pytest.approx(bleu["score"], abs=1e-8) and bleu["signature"] == signatures()["bleu_signature"]
    )
    assert (
        scores["chrf"] == pytest.approx(chrf["score"], abs=1e-8) and chrf["signature"] == signatures()["chrf_signature"]
    )
    assert "version:" + sacrebleu.__version__ in signatures()["bleu_signature"]


def test_rouge_is_that_of_rouge_scores_command_line(tmp_path: Path) -> None:
    for name, texts in ("answers", ANSWERS), ("references", REFERENCES):
        lines = ("\n".join(text_statistics.split_sentences(text)) for text in texts)
        (tmp_path / f"{name}.txt").write_text("|".join(lines))
    command = "-m rouge_score.rouge --target_filepattern=references.txt --prediction_filepattern=answers.txt".split()
    command += "--output_filename=out.csv --use_stemmer --noaggregate --delimiter=|".split()
    command += ["--rouge_types=rouge1,rouge2,rougeL,rougeLsum"]
    subprocess.run([sys.executable, *command], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    header, *rows = [line.split(",") for line in (tmp_path / "out.csv").read_text().splitlines()]
    assert len(rows) == 2
    for row, item in zip(rows, item_scores(ANSWERS, REFERENCES), strict=True):
        for key in ("rouge1", "rouge2", "rougeL", "rougeLsum"):
            assert item[key] == pytest.approx(float(row[header.index(f"{key}-F")]), abs=1e-6)


TEXT = st.one_of(
    st.text(max_size=40),
    st.text(alphabet=" \n\t.!?aé", max_size=12),
    st.text(alphabet=st.characters(categories=["Cs", "Mn", "So"]), max_size=4),  # halves of pairs, accents, emoji
    st.sampled_from(["", " ", "word", "...", "\0", "ﷺ", "日本語。", "- ", "|\n|-|", "﷐\ud83d"]),
)


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4))
def test_any_text_has_finite_scores_in_range(pairs: list[tuple[str, str]]) -> None:
    corpus, items = score_all([answer for answer, _ in pairs], [reference for _, reference in pairs])
    assert len(items) == len(pairs)
    for scores in (corpus, *items):
        json.dumps(scores, allow_nan=False)
        assert all(type(value) is float for value in scores.values())
        for key, value in scores.items():
            unit = METRICS[key].unit
            high = {"0 to 100": 100.0, "0 to 1": 1.0}.get(unit, math.inf)
            assert (0 <= value <= high + 1e-9) or key == "readability_grade"


def test_nothing_is_fetched_and_no_answer_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nltk
    from textstat.backend.counts import count_syllables
    from textstat.backend.utils import get_cmudict

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the network was asked")

    get_cmudict.cache_clear()  # type: ignore[attr-defined]
    count_syllables.cache_clear()  # type: ignore[attr-defined]
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(nltk, "download", refuse)
    monkeypatch.setattr(import_evaluate().config, "HF_METRICS_CACHE", tmp_path)
    assert score_all(ANSWERS, REFERENCES)[0]["readability_grade"] != 0
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_the_package_is_found_beside_the_script_of_the_same_name() -> None:
    assert hasattr(import_evaluate(), "combine")
    code = "import sys; sys.path.insert(0, '.'); import evaluate as ours; assert hasattr(ours, 'EvaluateSettings'); "
    code += (
        "from medical_assistant.evaluation.scoring import metrics; assert hasattr(metrics.import_evaluate(), 'combine')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_the_script_runs_by_path() -> None:
    assert "EvaluateSettings" in runpy.run_path(str(ROOT / "evaluate.py"))


@pytest.mark.slow
def test_twice_the_answers_take_no_more_than_three_times_as_long() -> None:
    generator = random.Random(0)
    vocabulary = [
        f"{a}{b}{c}" for a in "bdgklmnprst" for b in ("anti", "esto", "ino", "ura") for c in ("tion", "ly", "s")
    ]
    sentences = [" ".join(generator.choices(vocabulary, k=15)) + "." for _ in range(1_000)]
    texts = [" ".join(sentences[start : start + 10]) for start in range(0, 1_000, 10)]

    def score(n: int) -> None:
        score_all(texts[:n], texts[50 : 50 + n])

    assert cpu_s(lambda: score(50), 2) < 3 * cpu_s(lambda: score(25), 2)
