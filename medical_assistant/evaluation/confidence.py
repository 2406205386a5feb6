"""How sure can a reader be of an answer: a calibration fitted on one half of the questions, tested on the other.

The signals of an answer (`medical_assistant.chat.confidence.SIGNALS`) go into a logistic regression, and its
probability into an isotonic regression where that helps. The result is JSON, which the app reads without scikit-learn.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medical_assistant.chat.confidence import SCHEMA_VERSION, SIGNALS, STANDARDISED_LIMIT, Calibration
from medical_assistant.evaluation.scoring.calibration_scores import expected_calibration_error, figures

METHODS = ("auto", "logistic", "isotonic")
FEWEST_ANSWERS = 40  # in both halves together: fewer than 20 fit no logistic regression worth the name
FEWEST_OF_A_KIND = 5  # good, and bad, answers in each half: one a fold
FOLDS = 5
KNOWN_SHARE = 0.9  # a signal that more answers lack is not used; an answer that lacks a used signal is left out

Row = Mapping[str, Any]


@dataclass(frozen=True)
class GoodAnswer:
    """What counts as a good answer: a score against the reference answer, at or above a threshold.

    Token F1 (Rajpurkar et al. 2016, arXiv:1606.05250) is the harmonic mean of the share of the answer's words that
    the reference has and the share of the reference's words that the answer has: neither a long nor a short answer
    gets it for nothing. Two references to different questions (500 of the WikiDoc validation set, 20,000 random
    pairs) have a median of 0.09, and 98 of 100 stay below 0.28: from 0.3 an answer is about its question.
    It is likeness, not truth: "take it" and "do not take it" are nearly alike.
    """

    metric: str = "token_f1"
    threshold: float = 0.3

    def __call__(self, answer: Row) -> bool | None:
        """Return whether one candidate's answer of a row is good, None when it has no such score."""
        score = (answer.get("scores") or {}).get(self.metric)
        return None if score is None or not math.isfinite(score) else score >= self.threshold

    @property
    def label(self) -> str:
        name = self.metric.replace("_f1", " F1").replace("_", " ")
        return (
            f"a good answer has a {name} of at least {self.threshold:g} with the reference answer; "
            "that is likeness to one reference, not truth"
        )


def fit_confidence(
    rows: Sequence[Row],
    candidate: str,
    good: GoodAnswer,
    seed: int,
    method: str = "auto",
    *,
    adapter_revision: str | None,
    engine: str | None,
    decoding: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return (the `confidence` section of metrics.json, the content of calibration.json or None).

    `rows` are those of `predictions.jsonl`; `candidate` names the one that is judged. Half of the questions, chosen by
    `seed` and their text, fit the calibration; the other half gives every figure of the section. `method`: "logistic",
    "isotonic" (logistic, then isotonic) or "auto", the one with the lower log loss in cross-validation within the
    fitting half. `adapter_revision`, `engine` and `decoding` (`temperature`, `max_new_tokens`, ...) say what was
    measured; the app shows confidence for nothing else.

    Section: `status`, `candidate`, `label`, `method`, `signals`, `n_fit`, `n_test`, `n_left_out` (answers without a
    score or a signal), and of the test half `base_rate`, `ece`, `ece_uncalibrated` (of exp(mean log-probability), None
    where that is not known), `ece_of_perfect` (what chance alone gives so few answers), `brier`, `brier_base_rate`,
    `auroc` with `auroc_low` and `auroc_high`, `aurc`, `aurc_base_rate`, `reliability`, `risk_coverage`. All are 0-1.
    Where it cannot be fitted: `status` "not run" with its `reason`, and None.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: use one of {', '.join(METHODS)}")
    answers = [row["candidates"][candidate] for row in rows]
    labels = [good(answer) for answer in answers]
    signals = _known_signals(answers)
    kept = [
        number
        for number, (answer, label) in enumerate(zip(answers, labels, strict=True))
        if label is not None and all(_is_known(answer.get(name)) for name in signals)
    ]
    if len(kept) < FEWEST_ANSWERS:
        return _not_run(f"{len(kept)} answers with their signals are too few: {FEWEST_ANSWERS} are needed."), None
    y = np.array([labels[number] for number in kept], dtype=bool)
    if y.all() or not y.any():
        kind = "good" if y.all() else "bad"
        return _not_run(f"All {len(kept)} answers are {kind}: there is nothing to tell apart."), None
    fit = _fitting_half([rows[number]["question"] for number in kept], seed)
    if min(y[fit].sum(), (~y[fit]).sum(), y[~fit].sum(), (~y[~fit]).sum()) < FEWEST_OF_A_KIND:
        reason = (
            f"{int(y.sum())} of {len(kept)} answers are good: each half needs {FEWEST_OF_A_KIND} good and bad ones."
        )
        return _not_run(reason), None
    x = np.array([[float(answers[number][name]) for name in signals] for number in kept])
    varied = x[fit].std(axis=0) > 0
    signals = [name for name, used in zip(signals, varied, strict=True) if used]
    if not signals:
        return _not_run("No signal of the answers differs between them: the engine may send no probabilities."), None
    fitted = fit_calibrator(x[fit][:, varied], y[fit], seed, method)
    calibration = {
        "schema_version": SCHEMA_VERSION,
        "signals": signals,
        **fitted.to_json(),
        "label": good.label,
        "base_rate": float(y[~fit].mean()),
        "n": int((~fit).sum()),
        "ece": 0.0,  # measured below, by what the app runs
        "adapter_revision": adapter_revision,
        "engine": engine,
        "decoding": dict(decoding),
    }
    runtime = Calibration.from_json(calibration)
    tested = [answers[number] for number, fits in zip(kept, fit, strict=True) if not fits]
    confidences = np.array([runtime.confidence(answer) for answer in tested], dtype=float)
    section = {
        "status": "done",
        "candidate": candidate,
        "label": good.label,
        "method": "logistic + isotonic" if fitted.isotonic is not None else "logistic",
        "signals": signals,
        "n_fit": int(fit.sum()),
        "n_test": int((~fit).sum()),
        "n_left_out": len(rows) - len(kept),
        **figures(confidences, y[~fit], float(y[fit].mean()), seed),
        "ece_uncalibrated": _uncalibrated(tested, y[~fit]),
    }
    calibration["ece"] = section["ece"]
    return section, calibration


def write_calibration(path: Path, calibration: Mapping[str, Any]) -> None:
    """Write `calibration.json`. A float keeps all its digits (the shortest that read back as the same number)."""
    path.write_text(json.dumps(calibration, indent=2, allow_nan=False) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Fitted:
    """scikit-learn's objects of one fit; `isotonic` is None where it does not help."""

    scaler: Any
    logistic: Any
    isotonic: Any | None

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return the confidence (0-1) of each row of signals."""
        probabilities = self.logistic.predict_proba(_standardise(self.scaler, x))[:, 1]
        return probabilities if self.isotonic is None else self.isotonic.predict(probabilities)

    def to_json(self) -> dict[str, Any]:
        """Return the fit's part of calibration.json."""
        knots = self.isotonic
        return {
            "means": self.scaler.mean_.tolist(),
            "scales": self.scaler.scale_.tolist(),
            "coefficients": self.logistic.coef_[0].tolist(),
            "intercept": float(self.logistic.intercept_[0]),
            "isotonic": None
            if knots is None
            else {"x": knots.X_thresholds_.tolist(), "y": knots.y_thresholds_.tolist()},
        }


def fit_calibrator(x: np.ndarray, y: np.ndarray, seed: int, method: str = "auto") -> Fitted:
    """Return the calibration of labels `y` on signals `x` (one row an answer), as `fit_confidence`."""
    from sklearn.metrics import log_loss
    from sklearn.model_selection import StratifiedKFold

    if method != "auto":
        return _fit(x, y, seed, isotonic=method == "isotonic")
    losses = {}
    for isotonic in (False, True):
        predicted = np.empty(len(y))
        for inside, outside in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(x, y):
            predicted[outside] = _fit(x[inside], y[inside], seed, isotonic).predict(x[outside])
        losses[isotonic] = log_loss(y, predicted)
    return _fit(x, y, seed, isotonic=losses[True] < losses[False])


def _fit(x: np.ndarray, y: np.ndarray, seed: int, isotonic: bool) -> Fitted:
    from sklearn.isotonic import IsotonicRegression
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(x)
    standardised = _standardise(scaler, x)
    logistic = LogisticRegression(max_iter=1000).fit(standardised, y)
    if not isotonic:
        return Fitted(scaler, logistic, None)
    # On probabilities of answers that the regression has not seen: those it has seen look better than they are.
    folds = StratifiedKFold(min(FOLDS, int(y.sum()), int((~y).sum())), shuffle=True, random_state=seed)
    unseen = cross_val_predict(LogisticRegression(max_iter=1000), standardised, y, cv=folds, method="predict_proba")
    # No finite number of answers shows that one is certain: Laplace's rule of succession bounds the steps.
    margin = 1 / (len(y) + 2)
    steps = IsotonicRegression(y_min=margin, y_max=1 - margin, out_of_bounds="clip").fit(unseen[:, 1], y)
    return Fitted(scaler, logistic, steps)


def _standardise(scaler: Any, x: np.ndarray) -> np.ndarray:
    return np.clip(scaler.transform(x), -STANDARDISED_LIMIT, STANDARDISED_LIMIT)


def _fitting_half(questions: Sequence[str], seed: int) -> np.ndarray:
    """Return which rows fit: half of the different questions, in the order of a seeded hash of their text."""
    keys = [hashlib.sha256(f"{seed}:{question}".encode()).hexdigest() for question in questions]
    chosen = sorted(set(keys))[: (len(set(keys)) + 1) // 2]
    return np.isin(keys, chosen)


def _known_signals(answers: Sequence[Row]) -> list[str]:
    least = KNOWN_SHARE * len(answers)
    return [name for name in SIGNALS if sum(_is_known(answer.get(name)) for answer in answers) >= max(least, 1)]


def _uncalibrated(answers: Sequence[Row], good: np.ndarray) -> float | None:
    """Return the ECE of exp(mean log-probability), the geometric mean of the tokens' probabilities."""
    if not all(_is_known(answer.get("mean_logprob")) for answer in answers):
        return None
    probabilities = np.exp([float(answer["mean_logprob"]) for answer in answers])
    return expected_calibration_error(np.clip(probabilities, 0, 1), good)


def _is_known(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _not_run(reason: str) -> dict[str, Any]:
    return {"status": "not run", "reason": reason}
