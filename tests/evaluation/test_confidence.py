"""Fitting confidence and judging it: figures worked out by hand, and data whose probabilities are known."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medical_assistant.chat.confidence import Calibration, find_calibration
from medical_assistant.engines.base import EngineInfo
from medical_assistant.evaluation import confidence as fitting
from medical_assistant.evaluation.confidence import (
    auroc,
    ece_of_perfect,
    expected_calibration_error,
    figures,
    fit_calibrator,
    fit_confidence,
    predict,
    reliability,
    risk_coverage,
)
from medical_assistant.files import write_json

MEASURED: dict[str, Any] = {
    "adapter_revision": "0123456789ab",
    "engine": "stub",
    "decoding": {"temperature": 0.0, "max_new_tokens": 256},
}

SIX = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
SIX_GOOD = np.array([True, True, False, True, False, False])


def make_rows(count: int, seed: int = 0, slope: float = 2.0, **changes: Any) -> list[dict[str, Any]]:
    """Rows of predictions.jsonl in which an answer is good with probability 1 / (1 + exp(-slope * z)).

    z is its standardised mean log-probability. The other signals know nothing.
    """
    random = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        z = random.normal()
        good = random.random() < 1 / (1 + math.exp(-slope * z))
        answer = {
            "mean_logprob": -1.0 + 0.2 * z,
            "min_logprob": float(random.normal(-4, 1)),
            "mean_entropy": float(random.normal(1, 0.1)),
            "tokens": int(random.integers(20, 200)),
            "ended": bool(random.random() < 0.8),
            "scores": {"token_f1": 0.5 if good else 0.1},
            **changes,
        }
        rows.append({"question": f"Question {number}?", "candidates": {"fine_tuned": answer}})
    return rows


def fit(rows: list[dict[str, Any]], seed: int = 7) -> tuple[dict[str, Any], dict[str, Any] | None]:
    return fit_confidence(rows, "fine_tuned", seed, MEASURED)


def risks(confidences: np.ndarray, good: np.ndarray) -> list[float]:
    return [point["risk"] for point in risk_coverage(confidences, good)[0]]


def load(folder: Path) -> Calibration | None:
    return find_calibration(EngineInfo("stub", "m", str(folder), MEASURED["adapter_revision"]))


# Figures by hand


def test_auroc_and_its_interval_by_hand():
    # 8 of the 9 pairs of a good and a bad answer are in order: 0.6 is below 0.7.
    # DeLong: good answers win 1, 1, 2/3 and bad ones lose 2/3, 1, 1: each variance 1/27, of the area 2 * 1/27 / 3.
    area, low, high = auroc(SIX, SIX_GOOD)
    assert area == pytest.approx(8 / 9)
    assert low == pytest.approx(8 / 9 - 1.959964 * math.sqrt(2 / 81))
    assert high == 1.0  # cut


def test_auroc_counts_a_tie_as_a_half_and_one_answer_of_a_kind_has_no_interval():
    assert auroc(np.array([0.5, 0.5, 0.5, 0.5]), np.array([True, False, True, False]))[0] == 0.5
    assert auroc(np.array([0.9, 0.2, 0.1]), np.array([True, False, False])) == (1.0, None, None)


def test_risk_coverage_by_hand():
    assert risks(SIX, SIX_GOOD) == pytest.approx([0, 0, 1 / 3, 1 / 4, 2 / 5, 3 / 6])
    curve, aurc = risk_coverage(SIX, SIX_GOOD)
    assert aurc == pytest.approx((1 / 3 + 1 / 4 + 2 / 5 + 1 / 2) / 6)
    assert [point["coverage"] for point in curve] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1])
    assert curve[-1] == {"coverage": 1.0, "risk": 0.5}
    assert len(risk_coverage(np.linspace(0, 1, 500), np.arange(500) % 2 == 0)[0]) == 20


def test_the_order_of_equal_confidences_does_not_matter():
    confidences = np.array([0.9, 0.5, 0.5, 0.1])
    for good in ([True, False, True, False], [True, True, False, False]):
        assert risks(confidences, np.array(good)) == pytest.approx([0, 0.25, 1 / 3, 0.5])


def test_ece_brier_and_reliability_by_hand():
    confidences = np.array([0.05, 0.05, 0.25, 0.95, 1.0])
    good = np.array([False, True, False, True, True])
    # bins: 0-0.1 says 0.05, is 0.5; 0.2-0.3 says 0.25, is 0; 0.9-1 says 0.975, is 1
    assert expected_calibration_error(confidences, good) == pytest.approx((2 * 0.45 + 0.25 + 2 * 0.025) / 5)
    assert figures(confidences, good, 0.5, 0)["brier"] == pytest.approx((0.0025 + 0.9025 + 0.0625 + 0.0025 + 0) / 5)
    first, second, last = reliability(confidences, good)
    assert first == {"low": 0.0, "high": 0.1, "n": 2, "mean_confidence": pytest.approx(0.05), "observed": 0.5}
    assert (second["low"], second["n"], last["high"], last["n"]) == (0.2, 1, 1.0, 2)


def test_ece_of_perfect_confidences_is_near_nothing_and_chance_explains_the_rest():
    random = np.random.default_rng(1)
    many = random.random(50_000)
    assert expected_calibration_error(many, random.random(50_000) < many) < 0.01
    few = many[:100]
    draws = [expected_calibration_error(few, random.random(100) < few) for _ in range(200)]
    assert ece_of_perfect(few, seed=0) == pytest.approx(np.mean(draws), abs=0.01)
    assert ece_of_perfect(few, seed=0) > 0.05  # a hundred answers cannot show a smaller one


# What is a good answer


@pytest.mark.parametrize(("score", "good"), [(0.3, 100), (0.29, 0)])
def test_a_good_answer_is_at_or_above_the_threshold(score, good):
    section, _ = fit(make_rows(100, scores={"token_f1": score}))
    assert f"All 100 answers are {'good' if good else 'bad'}" in section["reason"]
    assert "token F1 of at least 0.3" in fitting.LABEL and "not truth" in fitting.LABEL


# The fit


def test_known_probabilities_are_found_on_the_other_half():
    section, calibration = fit(make_rows(3000))
    assert section["status"] == "done" and section["method"] == "logistic"
    assert (section["n_fit"], section["n_test"], section["n_left_out"]) == (1500, 1500, 0)
    assert section["ece"] < 0.04 and section["ece"] < section["ece_uncalibrated"]
    assert section["auroc_low"] < section["auroc"] < section["auroc_high"]
    assert section["brier"] < section["brier_base_rate"] and section["aurc"] < section["aurc_base_rate"]
    assert section["base_rate"] == pytest.approx(0.5, abs=0.05)
    assert sum(entry["n"] for entry in section["reliability"]) == 1500
    assert section["risk_coverage"][-1]["risk"] == pytest.approx(1 - section["base_rate"])
    coefficients = dict(zip(calibration["signals"], calibration["coefficients"], strict=True))
    assert coefficients["mean_logprob"] == pytest.approx(2.0, abs=0.3)
    assert all(abs(value) < 0.25 for name, value in coefficients.items() if name != "mean_logprob")
    assert calibration["ece"] == section["ece"] and calibration["n"] == 1500
    json.dumps([section, calibration], allow_nan=False)


def test_signals_that_know_nothing_give_the_base_rate():
    section, _ = fit(make_rows(2000, slope=0.0))
    assert section["auroc"] == pytest.approx(0.5, abs=0.06)  # four standard errors
    assert section["brier"] == pytest.approx(section["brier_base_rate"], abs=0.01)
    assert section["ece"] < 0.05


def steps(count: int) -> tuple[np.ndarray, np.ndarray]:
    """One answer in twenty is good below 1, nineteen in twenty from 1: no logistic curve."""
    random = np.random.default_rng(3)
    x = random.uniform(-4, 4, (count, 1))
    return x, random.random(count) < np.where(x[:, 0] < 1, 0.05, 0.95)


def test_isotonic_is_chosen_where_it_helps():
    x, y = steps(400)
    assert fit_calibrator(x, y, seed=0)["isotonic"] is not None
    random = np.random.default_rng(4)
    straight = random.normal(size=(60, 1))
    assert fit_calibrator(straight, random.random(60) < 1 / (1 + np.exp(-straight[:, 0])), seed=0)["isotonic"] is None


@pytest.mark.parametrize("isotonic", [False, True])
def test_the_runtime_gives_what_scikit_learn_gives(tmp_path, isotonic):
    random = np.random.default_rng(5)
    x = random.normal([-1.0, 80.0], [0.3, 40.0], (400, 2))
    y = random.random(400) < 1 / (1 + np.exp(-(x[:, 0] + 1) * 5))
    fitted = fitting.fit(x, y, seed=0, isotonic=isotonic)
    _, calibration = fit(make_rows(100))
    write_json(tmp_path / "calibration.json", {**calibration, "signals": ["mean_logprob", "tokens"], **fitted})
    runtime = load(tmp_path)
    new = np.vstack([x, random.normal([-1.0, 80.0], [3.0, 400.0], (600, 2)), [[1e9, -1e9], [-1e9, 1e300]]])
    found = [runtime.confidence({"mean_logprob": a, "tokens": b}) for a, b in new]
    assert np.abs(np.array(found) - predict(fitted, new)).max() < 1e-9
    assert all(0 < value < 1 for value in found)
    if not isotonic:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        theirs = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x, y)
        assert predict(fitted, x) == pytest.approx(theirs.predict_proba(x)[:, 1], abs=1e-9)


def test_the_file_says_what_was_measured(tmp_path):
    section, calibration = fit(make_rows(200))
    write_json(tmp_path / "calibration.json", calibration)
    assert json.loads((tmp_path / "calibration.json").read_text()) == calibration
    found = load(tmp_path)
    assert found == Calibration.from_json(calibration)
    assert (found.engine, found.temperature, found.max_new_tokens) == ("stub", 0.0, 256)
    assert found.label == section["label"] and calibration["base_rate"] == section["base_rate"]


def test_the_halves_depend_on_the_questions_and_the_seed_alone():
    rows = make_rows(200)
    _, calibration = fit(rows)
    assert fit(rows[::-1])[1]["means"] == pytest.approx(calibration["means"])  # the sum's order differs
    assert fit(rows, seed=8)[1]["means"] != pytest.approx(calibration["means"])


def test_a_question_asked_twice_is_in_one_half():
    rows = make_rows(200)
    once, _ = fit(rows)
    twice, _ = fit([row for row in rows for _ in range(2)])
    assert (twice["n_fit"], twice["n_test"]) == (2 * once["n_fit"], 2 * once["n_test"])


# What cannot be fitted


def test_signals_that_are_not_known_or_never_differ_are_not_used():
    rows = make_rows(200, mean_entropy=math.nan, ended=True)
    section, calibration = fit(rows)
    assert section["signals"] == calibration["signals"] == ["mean_logprob", "min_logprob", "tokens"]
    assert section["n_left_out"] == 0


def test_answers_without_a_signal_are_left_out():
    rows = make_rows(200)
    rows[3]["candidates"]["fine_tuned"]["mean_logprob"] = None  # an empty answer
    rows[4]["candidates"]["fine_tuned"]["min_logprob"] = math.nan
    section, _ = fit(rows)
    assert section["n_left_out"] == 2 and section["n_fit"] + section["n_test"] == 198


def test_without_probabilities_there_is_no_uncalibrated_figure():
    section, _ = fit(make_rows(200, mean_logprob=None, min_logprob=None, mean_entropy=None))
    assert section["signals"] == ["tokens", "ended"] and section["ece_uncalibrated"] is None


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (make_rows(39), "39 answers with their signals are too few: 40 are needed."),
        (make_rows(1), "1 answers"),
        (make_rows(60, scores={"token_f1": 0.9}), "All 60 answers are good"),
        (make_rows(60, scores={"token_f1": 0.0}), "All 60 answers are bad"),
        (make_rows(59, scores={"token_f1": 0.0}) + make_rows(1, scores={"token_f1": 1.0}), "1 of 60 answers are good"),
        (
            make_rows(200, mean_logprob=None, min_logprob=None, mean_entropy=None, tokens=1, ended=True),
            "No signal of the answers differs",
        ),
    ],
)
def test_what_cannot_be_fitted_says_why(rows, reason):
    section, calibration = fit(rows)
    assert calibration is None and section["status"] == "not run" and reason in section["reason"]
