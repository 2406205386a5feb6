"""How good confidences are: calibration error, discrimination, and what abstaining would gain."""

from __future__ import annotations

from typing import Any

import numpy as np

BINS = 10
CURVE_POINTS = 20
PERFECT_DRAWS = 200
NORMAL_95 = 1.959964  # 97.5 % quantile of the normal distribution


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
        for place in range(BINS)
        if (places == place).any()
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


def brier_score(confidences: np.ndarray, good: np.ndarray) -> float:
    """Return the mean squared distance (0-1) of confidence and outcome. Brier 1950."""
    return float(np.mean((confidences - good) ** 2))


def auroc(confidences: np.ndarray, good: np.ndarray) -> tuple[float, float | None, float | None]:
    """Return (AUROC, lower, upper bound of its 95 % interval), 0-1; no interval for one good or one bad answer.

    The chance that a good answer has a higher confidence than a bad one, ties a half. Interval: DeLong et al. 1988,
    "Comparing the Areas under Two or More Correlated ROC Curves", by ranks (Sun & Xu 2014), cut to 0-1.
    """
    from scipy.stats import rankdata

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


def selective_risk(confidences: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Return the part of bad answers among the 1, 2, ..., n most confident ones.

    Of answers with the same confidence each counts with the mean of all, so that their order does not matter.
    """
    different, group = np.unique(-confidences, return_inverse=True)
    bad = np.bincount(group, weights=~good) / np.bincount(group)
    return np.cumsum(bad[np.sort(group)]) / np.arange(1, len(confidences) + 1)


def risk_coverage(confidences: np.ndarray, good: np.ndarray) -> tuple[list[dict[str, float]], float]:
    """Return (points of the risk-coverage curve, the area under it).

    A point: `coverage`, the part of the answers that is shown, the most confident first, and `risk`, the part of those
    that is bad. The area (AURC, 0-1, lower is better) is the mean risk over all coverages. Geifman & El-Yaniv 2017,
    "Selective Classification for Deep Neural Networks", arXiv:1705.08500; AURC as in their arXiv:1805.08206.
    """
    risks = selective_risk(confidences, good)
    n = len(risks)
    shown = sorted({-(-point * n // CURVE_POINTS) for point in range(1, CURVE_POINTS + 1)})
    return [{"coverage": count / n, "risk": float(risks[count - 1])} for count in shown], float(risks.mean())


def figures(confidences: np.ndarray, good: np.ndarray, base_rate: float, seed: int) -> dict[str, Any]:
    """Return the figures of a test half; `base_rate`, of the fitting half, is the confidence to do better than."""
    area, low, high = auroc(confidences, good)
    curve, aurc = risk_coverage(confidences, good)
    return {
        "base_rate": float(good.mean()),
        "ece": expected_calibration_error(confidences, good),
        "ece_of_perfect": ece_of_perfect(confidences, seed),
        "brier": brier_score(confidences, good),
        "brier_base_rate": brier_score(np.full(len(good), base_rate), good),
        "auroc": area,
        "auroc_low": low,
        "auroc_high": high,
        "aurc": aurc,
        "aurc_base_rate": float(1 - good.mean()),  # in any order that knows nothing
        "reliability": reliability(confidences, good),
        "risk_coverage": curve,
    }
