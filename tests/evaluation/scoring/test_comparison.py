from __future__ import annotations

import json
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medical_assistant.evaluation.scoring.bootstrap import Resampler
from medical_assistant.evaluation.scoring.comparison import LENGTHS, compare, length_groups
from medical_assistant.evaluation.scoring.metrics import METRICS
from tests.support.timing import cpu_s

TYPES = ("symptoms", "causes")


def make_rows(n: int, effects: dict[str, float], seed: int = 0, noise: float = 0.04) -> list[dict[str, Any]]:
    """Rows in which each candidate's ROUGE-L is the question's level, its own noise and its effect."""
    generator = numpy.random.default_rng(seed)
    rows = []
    for number in range(n):
        level = generator.normal(0.3, 0.08)
        candidates = {
            name: {
                "answer": f"rest and drink water {number}",
                "tokens": 10,
                "seconds": 0.5,
                "scores": {
                    "ended": 1.0,
                    "rougeL": float(level + effect + generator.normal(0, noise)),
                    "repetition": float(generator.random()),
                    "length_ratio": 1.0,
                },
            }
            for name, effect in effects.items()
        }
        rows.append(
            {
                "id": str(number),
                "question": "word " * (3 + number % 9),
                "reference": f"rest and drink much water {number}",
                "question_type": TYPES[number % 4 == 0],
                "candidates": candidates,
            }
        )
    return rows


def test_two_candidates_by_hand() -> None:
    rows = make_rows(40, {"base": 0.0, "fine_tuned": 0.0})
    for number, row in enumerate(rows):
        row["candidates"]["base"]["scores"]["rougeL"] = 0.2
        row["candidates"]["fine_tuned"]["scores"]["rougeL"] = 0.3 if number % 4 else 0.2
    section = compare(rows, ["base", "fine_tuned"], Resampler(2_000))
    assert section["status"] == "done" and section["primary"] == "rougeL" and section["resamples"] == 2_000
    found = section["pairs"]["fine_tuned vs base"]["rougeL"]
    assert (found["n"], found["wins"], found["ties"], found["losses"]) == (40, 30, 10, 0)
    assert found["difference"] == pytest.approx(0.075)
    # One pair: nothing to correct.
    assert section["holm"] == {"fine_tuned vs base": found["p_value"]}
    verdict = section["verdicts"]["fine_tuned vs base"]
    assert verdict["verdict"] == "better"
    # Spread of the changes 0.0433, standard error 0.00685, Student's t 2.02: 0.061 to 0.089, and skewed to one side.
    low, high = found["low"], found["high"]
    assert (low, high) == pytest.approx((0.061, 0.089), abs=0.003)
    assert verdict["sentence"] == (
        "fine_tuned is better than base: ROUGE-L +0.075 "
        f"(95 % interval {low:+.3f} to {high:+.3f}, p < 0.001, 40 questions)."
    )
    # Every fourth question asks for causes, and there nothing changed.
    by_type = section["by_type"]["fine_tuned vs base"]
    assert list(by_type) == ["symptoms", "causes"]
    assert (by_type["symptoms"]["n"], by_type["symptoms"]["difference"]) == (30, pytest.approx(0.1))
    assert (by_type["causes"]["n"], by_type["causes"]["verdict"]) == (10, "too few questions")
    assert json.loads(json.dumps(section, allow_nan=False)) == section


def test_metrics_beside_the_scores_and_corpus_metrics() -> None:
    rows = make_rows(25, {"base": 0.0, "fine_tuned": 0.0})
    for row in rows:
        row["candidates"]["fine_tuned"].update(answer=row["reference"], tokens=12)
        row["candidates"]["fine_tuned"]["scores"]["ended"] = 0.0
    found = compare(rows, ["base", "fine_tuned"], Resampler(500))["pairs"]["fine_tuned vs base"]
    present = {"bleu", "chrf", "rougeL", "length_ratio", "repetition", "ended", "mean_tokens", "mean_seconds"}
    assert list(found) == [metric for metric in METRICS if metric in present]  # no row has the others
    assert found["bleu"]["mean_b"] == pytest.approx(100)
    assert found["bleu"]["verdict"] == found["chrf"]["verdict"] == "better"
    assert (found["ended"]["difference"], found["ended"]["verdict"]) == (-1, "worse")
    assert (found["mean_tokens"]["difference"], found["mean_tokens"]["verdict"]) == (2, None)
    assert found["mean_seconds"]["verdict"] == "no measurable difference"


def test_three_candidates_are_compared_in_all_pairs_with_holm() -> None:
    rows = make_rows(100, {"base": 0.0, "a": 0.06, "b": 0.06})
    section = compare(rows, ["base", "a", "b"], Resampler(2_000))
    assert list(section["pairs"]) == ["a vs base", "b vs base", "b vs a"]
    raw = {pair: found["rougeL"]["p_value"] for pair, found in section["pairs"].items()}
    assert raw["a vs base"] == raw["b vs base"] == 1 / 2001
    # Of the two smallest, equal here, the first is multiplied by 3, the next (by 2) is raised to it.
    assert section["holm"]["a vs base"] == section["holm"]["b vs base"] == pytest.approx(3 / 2001)
    assert section["holm"]["b vs a"] == raw["b vs a"]
    assert [section["verdicts"][pair]["verdict"] for pair in raw] == ["better", "better", "no measurable difference"]
    assert section["verdicts"]["b vs a"]["sentence"].startswith("No measurable difference between b and a: ROUGE-L ")
    assert "Holm-adjusted p = 0.001" in section["verdicts"]["a vs base"]["sentence"]


def test_an_effect_that_holm_takes_away_is_no_verdict() -> None:
    # The changes of `a` have mean 0.010 and spread 0.040: t 2.24, p 0.028, times 3.
    changes = numpy.tile([0.04, -0.04], 40) + 0.01
    rows = make_rows(80, {"base": 0.0, "a": 0.0, "b": 0.0})
    for row, change in zip(rows, changes, strict=True):
        for name, value in {"base": 0.2, "a": 0.2 + change, "b": 0.2 + change}.items():
            row["candidates"][name]["scores"]["rougeL"] = value
    section = compare(rows, ["base", "a", "b"], Resampler(4_000))
    assert section["pairs"]["a vs base"]["rougeL"]["verdict"] == "better"
    assert section["pairs"]["a vs base"]["rougeL"]["p_value"] < 0.05 < section["holm"]["a vs base"]
    assert section["verdicts"]["a vs base"]["verdict"] == "no measurable difference"


def test_worse_and_lower_is_better() -> None:
    rows = make_rows(60, {"base": 0.0, "fine_tuned": -0.1})
    section = compare(rows, ["base", "fine_tuned"], Resampler(1_000))
    assert section["verdicts"]["fine_tuned vs base"]["sentence"].startswith(
        "fine_tuned is worse than base: ROUGE-L -0."
    )
    for row in rows:
        row["candidates"]["fine_tuned"]["scores"]["repetition"] = 0.0
    section = compare(rows, ["base", "fine_tuned"], Resampler(1_000))
    assert section["pairs"]["fine_tuned vs base"]["repetition"]["verdict"] == "better"
    assert section["by_length"]["fine_tuned vs base"]["short"]["difference"] < 0


@pytest.mark.parametrize("n", [1, 19])
def test_few_questions_claim_nothing_anywhere(n: int) -> None:
    rows = make_rows(n, {"base": 0.0, "fine_tuned": 0.5})
    section = compare(rows, ["base", "fine_tuned"], Resampler(100))
    assert section["holm"] == {}
    assert section["verdicts"]["fine_tuned vs base"] == {
        "verdict": "too few questions",
        "sentence": f"Too few questions to compare fine_tuned with base: {n} of the 20 that are needed.",
    }
    for found in section["pairs"]["fine_tuned vs base"].values():
        assert found["low"] is found["high"] is found["p_value"] is None


def test_identical_answers_show_no_difference() -> None:
    rows = make_rows(50, {"base": 0.0})
    for row in rows:
        row["candidates"]["fine_tuned"] = row["candidates"]["base"]
    section = compare(rows, ["base", "fine_tuned"], Resampler(200))
    for metric, found in section["pairs"]["fine_tuned vs base"].items():
        assert (found["difference"], found["p_value"], found["ties"]) == (0, 1, 50)
        assert found["verdict"] == ("no measurable difference" if METRICS[metric].better else None)
    assert section["verdicts"]["fine_tuned vs base"]["sentence"] == (
        "No measurable difference between fine_tuned and base: ROUGE-L +0.000 "
        "(95 % interval +0.000 to +0.000, p = 1.00, 50 questions)."
    )


def test_base_against_base_is_quiet_and_a_real_effect_is_found() -> None:
    quiet = 0
    for seed in range(30):
        rows = make_rows(100, {"base": 0.0, "again": 0.0}, seed)
        section = compare(rows, ["base", "again"], Resampler(300, seed))
        quiet += section["verdicts"]["again vs base"]["verdict"] == "no measurable difference"
    assert quiet >= 27
    rows = make_rows(500, {"base": 0.0, "better": 0.05 * 0.3})
    assert compare(rows, ["base", "better"], Resampler())["verdicts"]["better vs base"]["verdict"] == "better"


def test_one_candidate_is_not_compared() -> None:
    section = compare(make_rows(3, {"base": 0.0}), ["base"], Resampler())
    assert section["status"] == "not run" and section["reason"]


def test_lengths_are_thirds_by_words() -> None:
    assert length_groups([1, 2, 3, 4, 5, 6]) == {"short": [0, 1], "medium": [2, 3], "long": [4, 5]}
    assert length_groups([2, 2]) == {"short": [0, 1]}
    section = compare(make_rows(60, {"base": 0.0, "b": 0.0}), ["base", "b"], Resampler(100))
    assert section["length_bounds"] == {"short": [3, 5], "medium": [6, 8], "long": [9, 11]}
    assert sum(found["n"] for found in section["by_length"]["b vs base"].values()) == 60


@given(st.lists(st.integers(0, 40), min_size=1, max_size=40))
def test_each_question_has_one_length(words: list[int]) -> None:
    groups = length_groups(words)
    assert sorted(index for members in groups.values() for index in members) == list(range(len(words)))
    assert list(groups) == [length for length in LENGTHS if length in groups]
    longest = 0
    for members in groups.values():
        counts = [words[index] for index in members]
        assert min(counts) >= longest
        longest = max(counts)


def test_twice_the_questions_take_no_more_than_three_times_as_long() -> None:
    generator = numpy.random.default_rng(0)
    words = [f"word{number}" for number in range(300)]
    keys = ["rouge1", "rouge2", "rougeLsum", "exact_match", "token_f1", "distinct_1", "distinct_2", "ended"]
    rows = make_rows(200, {"base": 0.0, "fine_tuned": 0.05})
    for row in rows:
        row["reference"] = " ".join(generator.choice(words, 70))
        for one in row["candidates"].values():
            one["answer"] = " ".join(generator.choice(words, 70))
            one["scores"].update(zip(keys, generator.random(len(keys)).tolist(), strict=True))

    def section(n: int) -> dict[str, Any]:
        return compare(rows[:n], ["base", "fine_tuned"], Resampler(200))

    assert len(section(200)["pairs"]["fine_tuned vs base"]) == len(keys) + 7
    assert cpu_s(lambda: section(200), 2) < 3 * cpu_s(lambda: section(100), 2)
