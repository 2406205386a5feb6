"""How sure can a reader be of an answer: a calibration fitted on one half of the questions, tested on the other.

The signals of an answer (`medical_assistant.chat.confidence.SIGNALS`) go into a logistic regression, and its
probability into an isotonic regression where that helps. The result is JSON, which the app reads without scikit-learn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import expit
from scipy.stats import rankdata
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.preprocessing import StandardScaler

from medical_assistant.chat.confidence import SCHEMA_VERSION, SIGNALS, STANDARDISED_LIMIT, Calibration

# An answer counts as good from this token F1 on (Rajpurkar et al. 2016, arXiv:1606.05250): the harmonic mean of the
# share of the answer's words that the reference has and the reverse, so neither a long nor a short answer gets it for
# nothing. Two references to different questions (500 of the WikiDoc validation set, 20,000 random pairs) have a median
# of 0.09, and 98 of 100 stay below 0.28: from 0.3 an answer is about its question.
GOOD_FROM = 0.3
LABEL = (
    f"a good answer has a token F1 of at least {GOOD_FROM:g} with the reference answer; "
    "that is likeness to one reference, not truth"
)
FEWEST_ANSWERS = 40  # in both halves together: fewer than 20 fit no logistic regression worth the name
FEWEST_OF_A_KIND = 5  # good, and bad, answers in each half: one a fold
FOLDS = 5
KNOWN_SHARE = 0.9  # a signal that more answers lack is not used; an answer that lacks a used signal is left out
BINS = 10
CURVE_POINTS = 20
PERFECT_DRAWS = 200
NORMAL_95 = 1.959964  # 97.5 % quantile of the normal distribution

Answers = Sequence[Mapping[str, Any]]


def fit_confidence(
    rows: Answers, candidate: str, seed: int, measured: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return (the `confidence` section of metrics.json, the content of calibration.json or None).

    `rows` are those of `predictions.jsonl`; `candidate` names the one that is judged. Half of the questions, chosen by
    `seed` and their text, fit the calibration; the other half gives every figure of the section. `measured` says what
    was measured, and the app shows confidence for nothing else: `adapter_revision`, `engine`, `decoding`.

    Section: `status`, `candidate`, `label`, `method`, `signals`, `n_fit`, `n_test`, `n_left_out` (answers without a
    signal), and of the test half `figures` and `ece_uncalibrated` (of exp(mean log-probability), None where
    that is not known). Where nothing can be fitted: `status` "not run" with its `reason`, and None.
    """
    answers = [row["candidates"][candidate] for row in rows]
    known = np.array([[answer.get(name) for name in SIGNALS] for answer in answers], dtype=float)  # None becomes NaN
    used = np.isfinite(known).mean(axis=0) >= KNOWN_SHARE
    kept = np.isfinite(known[:, used]).all(axis=1)
    good = np.array([answer["scores"]["token_f1"] >= GOOD_FROM for answer in answers])[kept]
    fits = _fitting_half([row["question"] for row, keep in zip(rows, kept, strict=True) if keep], seed)
    reason = _why_not(good, fits)
    if not reason:
        used &= np.nan_to_num(known[kept][fits]).std(axis=0) > 0
        if not used.any():
            reason = "No signal of the answers differs between them: the engine may send no probabilities."
    if reason:
        return {"status": "not run", "reason": reason}, None
    signals = [name for name, use in zip(SIGNALS, used, strict=True) if use]
    fitted = fit_calibrator(known[kept][:, used][fits], good[fits], seed)
    tested = good[~fits]
    calibration = {
        "schema_version": SCHEMA_VERSION,
        "signals": signals,
        **fitted,
        "label": LABEL,
        "base_rate": float(tested.mean()),
        "n": len(tested),
        "ece": 0.0,  # measured below, by what the app runs
        **measured,
    }
    runtime = Calibration.from_json(calibration)
    judged = known[kept][~fits]
    confidences = np.array([runtime.confidence(dict(zip(SIGNALS, values, strict=True))) for values in judged.tolist()])
    probabilities = np.exp(judged[:, SIGNALS.index("mean_logprob")]).clip(0, 1)
    has_probabilities = np.isfinite(probabilities).all()
    section = {
        "status": "done",
        "candidate": candidate,
        "label": LABEL,
        "method": "logistic + isotonic" if fitted["isotonic"] else "logistic",
        "signals": signals,
        "n_fit": int(fits.sum()),
        "n_test": len(tested),
        "n_left_out": int((~kept).sum()),
        **figures(confidences, tested, float(good[fits].mean()), seed),
        "ece_uncalibrated": expected_calibration_error(probabilities, tested) if has_probabilities else None,
    }
    return section, {**calibration, "ece": section["ece"]}


def _fitting_half(questions: Sequence[str], seed: int) -> np.ndarray:
    """Return which rows fit: half of the different questions, in the order of a seeded hash of their text."""
    keys = [hashlib.sha256(f"{seed}:{question}".encode()).hexdigest() for question in questions]
    chosen = sorted(set(keys))[: (len(set(keys)) + 1) // 2]
    return np.isin(keys, chosen)


def _why_not(good: np.ndarray, fits: np.ndarray) -> str | None:
    """Return why no calibration can be fitted, None where one can."""
    n = len(good)
    if n < FEWEST_ANSWERS:
        return f"{n} answers with their signals are too few: {FEWEST_ANSWERS} are needed."
    if good.all() or not good.any():
        return f"All {n} answers are {'good' if good.all() else 'bad'}: there is nothing to tell apart."
    if min(good[fits].sum(), (~good[fits]).sum(), good[~fits].sum(), (~good[~fits]).sum()) < FEWEST_OF_A_KIND:
        return f"{int(good.sum())} of {n} answers are good: each half needs {FEWEST_OF_A_KIND} good and bad ones."
    return None


def fit_calibrator(x: np.ndarray, good: np.ndarray, seed: int) -> dict[str, Any]:
    """Return `fit` with isotonic steps where they lower the log loss in cross-validation, else without."""
    losses = []
    for isotonic in (False, True):
        predicted = np.empty(len(good))
        for inside, outside in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(x, good):
            predicted[outside] = predict(fit(x[inside], good[inside], seed, isotonic), x[outside])
        losses.append(log_loss(good, predicted))
    return fit(x, good, seed, isotonic=losses[1] < losses[0])


def fit(x: np.ndarray, good: np.ndarray, seed: int, isotonic: bool) -> dict[str, Any]:
    """Return the fit's part of calibration.json: `means`, `scales`, `coefficients`, `intercept`, `isotonic`.

    `x` are signals, one row an answer, and `good` says which of the answers are good.
    """
    scaler = StandardScaler().fit(x)
    standardised = np.clip(scaler.transform(x), -STANDARDISED_LIMIT, STANDARDISED_LIMIT)
    logistic = LogisticRegression(max_iter=1000).fit(standardised, good)
    knots = None
    if isotonic:
        # On probabilities of answers that the regression has not seen: those it has seen look better than they are.
        folds = StratifiedKFold(min(FOLDS, int(good.sum()), int((~good).sum())), shuffle=True, random_state=seed)
        unseen = cross_val_predict(logistic, standardised, good, cv=folds, method="predict_proba")[:, 1]
        # No finite number of answers shows that one is certain: Laplace's rule of succession bounds the steps.
        margin = 1 / (len(good) + 2)
        steps = IsotonicRegression(y_min=margin, y_max=1 - margin, out_of_bounds="clip").fit(unseen, good)
        knots = {"x": steps.X_thresholds_.tolist(), "y": steps.y_thresholds_.tolist()}
    return {
        "means": scaler.mean_.tolist(),
        "scales": scaler.scale_.tolist(),
        "coefficients": logistic.coef_[0].tolist(),
        "intercept": float(logistic.intercept_[0]),
        "isotonic": knots,
    }


def predict(fitted: Mapping[str, Any], x: np.ndarray) -> np.ndarray:
    """Return the confidence (0-1) of each row of signals under a `fit`, as `Calibration.confidence` does of one."""
    standardised = (x - fitted["means"]) / fitted["scales"]
    scores = standardised.clip(-STANDARDISED_LIMIT, STANDARDISED_LIMIT) @ fitted["coefficients"] + fitted["intercept"]
    knots, probabilities = fitted["isotonic"], expit(scores)
    return np.interp(probabilities, knots["x"], knots["y"]) if knots else np.asarray(probabilities)


def figures(confidences: np.ndarray, good: np.ndarray, base_rate: float, seed: int) -> dict[str, Any]:
    """Return the figures of a test half, all 0-1; `base_rate`, of the fitting half, is the confidence to beat.

    - `base_rate`; `ece`; `ece_of_perfect`, what chance alone gives so few answers
    - `brier`, the mean squared distance of confidence and outcome (Brier 1950), `brier_base_rate`
    - `auroc` with its 95 % interval `auroc_low`, `auroc_high`; `aurc`, `aurc_base_rate`, `risk_coverage`
    - `reliability`
    """
    area, low, high = auroc(confidences, good)
    curve, aurc = risk_coverage(confidences, good)
    return {
        "base_rate": float(good.mean()),
        "ece": expected_calibration_error(confidences, good),
        "ece_of_perfect": ece_of_perfect(confidences, seed),
        "brier": float(np.mean((confidences - good) ** 2)),
        "brier_base_rate": float(np.mean((base_rate - good) ** 2)),
        "auroc": area,
        "auroc_low": low,
        "auroc_high": high,
        "aurc": aurc,
        "aurc_base_rate": float(1 - good.mean()),  # in any order that knows nothing
        "reliability": reliability(confidences, good),
        "risk_coverage": curve,
    }


def reliability(confidences: np.ndarray, good: np.ndarray) -> list[dict[str, Any]]:
    """Return the reliability diagram: ten bins of equal width (0-0.1, ..., 0.9-1); those without answers are left out.

    Keys: `low` and `high` (a bin holds its lower bound), `n` answers, their `mean_confidence`, and `observed`, the part
    of them that was good.
    """
    places = np.minimum((confidences * BINS).astype(int), BINS - 1)
    return [
        {
            "low": place / BINS,
            "high": (place + 1) / BINS,
            "n": int((places == place).sum()),
            "mean_confidence": float(confidences[places == place].mean()),
            "observed": float(good[places == place].mean()),
        }
        for place in np.unique(places).tolist()
    ]


def expected_calibration_error(confidences: np.ndarray, good: np.ndarray) -> float:
    """Return the ECE (0-1): the distance of confidence and observed part, weighted by the answers in each bin.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599, equation 3, over ten bins of equal
    width. Few answers raise it: see `ece_of_perfect`.
    """
    bins = reliability(confidences, good)
    return sum(entry["n"] * abs(entry["mean_confidence"] - entry["observed"]) for entry in bins) / len(confidences)


def ece_of_perfect(confidences: np.ndarray, seed: int) -> float:
    """Return the mean ECE of the same confidences if every one were exactly right: what chance alone gives.

    Consistency resampling: Broecker & Smith 2007, "Increasing the Reliability of Reliability Diagrams".
    """
    draws = np.random.default_rng(seed).random((PERFECT_DRAWS, len(confidences))) < confidences
    return float(np.mean([expected_calibration_error(confidences, draw) for draw in draws]))


def auroc(confidences: np.ndarray, good: np.ndarray) -> tuple[float, float | None, float | None]:
    """Return (AUROC, lower, upper bound of its 95 % interval), 0-1; no interval for one good or one bad answer.

    The chance that a good answer has a higher confidence than a bad one, ties a half. Interval: DeLong et al. 1988,
    "Comparing the Areas under Two or More Correlated ROC Curves", by ranks (Sun & Xu 2014), cut to 0-1.
    """
    above, below = confidences[good], confidences[~good]
    m, n = len(above), len(below)
    ranks = rankdata(np.concatenate([above, below]))
    wins = (ranks[:m] - rankdata(above)) / n  # of each good answer: the part of the bad ones below it
    losses = 1 - (ranks[m:] - rankdata(below)) / m  # of each bad answer: the part of the good ones above it
    area = float(wins.mean())
    if min(m, n) < 2:
        return area, None, None
    half_width = NORMAL_95 * float(np.sqrt(wins.var(ddof=1) / m + losses.var(ddof=1) / n))
    return area, max(0.0, area - half_width), min(1.0, area + half_width)


def risk_coverage(confidences: np.ndarray, good: np.ndarray) -> tuple[list[dict[str, float]], float]:
    """Return (points of the risk-coverage curve, the area under it).

    A point: `coverage`, the part of the answers that is shown, the most confident first, and `risk`, the part of those
    that is bad; of answers with the same confidence each counts with the mean of all, so that their order does not
    matter. The area (AURC, 0-1, lower is better) is the mean risk over all coverages. Geifman & El-Yaniv 2017,
    "Selective Classification for Deep Neural Networks", arXiv:1705.08500; AURC as in their arXiv:1805.08206.
    """
    n = len(confidences)
    _, group = np.unique(-confidences, return_inverse=True)
    bad = np.bincount(group, weights=~good) / np.bincount(group)
    risks = np.cumsum(bad[np.sort(group)]) / np.arange(1, n + 1)
    shown = sorted({-(-point * n // CURVE_POINTS) for point in range(1, CURVE_POINTS + 1)})
    return [{"coverage": count / n, "risk": float(risks[count - 1])} for count in shown], float(risks.mean())
