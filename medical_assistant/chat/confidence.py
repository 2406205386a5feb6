"""How often answers like this one were good: read from `calibration.json`, computed without numpy.

`evaluate.py` fits the calibration on held-back questions (`medical_assistant.evaluation.confidence`) and
puts the file into the adapter folder. Here it is read, and applied to the signals of one answer.
"""

from __future__ import annotations

import bisect
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medical_assistant.engines.base import EngineInfo, Options, Token
from medical_assistant.errors import AdapterError
from medical_assistant.models.adapter import CALIBRATION_FILE, WEIGHTS_FILE, weights_hash

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
# The order of the signals in `calibration.json`. A calibration uses those that it found in its answers.
SIGNALS = ("mean_logprob", "min_logprob", "mean_entropy", "tokens", "ended", "retrieval_score")
# Standard deviations. A signal further out than this is taken as this far out, in the fit and here: nothing was
# measured there, and no number is too large for the logistic function.
STANDARDISED_LIMIT = 8.0
LARGEST_COEFFICIENT = 1e6  # a fit's are below 10; what is far beyond it is no fit
# Confidence from which the word is "medium" and "high", and the same in the tenths that are shown.
MEDIUM_FROM, HIGH_FROM = 0.35, 0.65
LINE = "Confidence: "  # how the line under an answer begins
WORDS = "**low** is up to 3 in 10, **medium** 4 to 6, **high** 7 or more"


class Signals:
    """What one answer's tokens say about it. Fed token by token, as they stream."""

    def __init__(self) -> None:
        self.ended: bool | None = None  # True: the model ended by itself; None: it came to no end, or was cut short
        self._logprobs: list[float] = []
        self._entropies: list[float] = []

    def add(self, token: Token) -> None:
        """Count `token`. A sign of life (no text, probability 1) is not a token."""
        if token.text or token.logprob != 0.0:
            self._logprobs.append(token.logprob)
            self._entropies.append(token.entropy)

    @property
    def count(self) -> int:
        """The number of tokens so far."""
        return len(self._logprobs)

    def values(self, retrieval_score: float | None = None) -> dict[str, float | None]:
        """Return the signals by name, as `answer_signals`."""
        return answer_signals(self._logprobs, self._entropies, self.ended, retrieval_score)


def answer_signals(
    logprobs: Sequence[float],
    entropies: Sequence[float],
    ended: bool | None,
    retrieval_score: float | None = None,
) -> dict[str, float | None]:
    """Return the signals of an answer by name; None is one that is not known.

    `mean_logprob` and `min_logprob` (natural logarithms of the tokens' probabilities), `mean_entropy` (nats),
    `tokens` (their number), `ended` (1 when the model ended by itself, else 0) and `retrieval_score`. One token
    without a probability, as a server sends that gives none, leaves no mean and no minimum.
    """
    count = len(logprobs)
    return {
        "mean_logprob": _finite(sum(logprobs) / count) if count else None,
        # min() would pass over a NaN that is not the first
        "min_logprob": min(logprobs) if count and _finite(sum(logprobs)) is not None else None,
        "mean_entropy": _finite(sum(entropies) / len(entropies)) if entropies else None,
        "tokens": float(count),
        "ended": None if ended is None else float(ended),
        "retrieval_score": retrieval_score,
    }


@dataclass(frozen=True)
class Calibration:
    """The content of `calibration.json`: a logistic regression over standardised signals, then isotonic steps."""

    signals: tuple[str, ...]  # names, in the order of the three tuples that follow
    means: tuple[float, ...]
    scales: tuple[float, ...]  # standard deviations, above 0
    coefficients: tuple[float, ...]
    intercept: float
    isotonic: tuple[tuple[float, ...], tuple[float, ...]]  # knots x (probabilities, rising) and y; both may be empty
    label: str  # what a good answer is, in words
    base_rate: float  # 0-1, part of the test answers that were good
    n: int  # test questions, on which the figures below and above were measured
    ece: float  # 0-1, expected calibration error on them
    adapter_revision: str | None  # first 12 hex digits of the weights' SHA-256, or a commit hash
    engine: str | None  # None: any
    temperature: float
    top_p: float
    max_new_tokens: int

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Calibration:
        """Return the calibration in the content of `calibration.json`.

        Raises `ValueError`, in a few words, when a part is missing, of another schema version, or out of its range.
        """
        if content.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"schema version {str(content.get('schema_version'))[:20]}, not {SCHEMA_VERSION}")
        try:
            knots, decoding = content.get("isotonic") or {"x": [], "y": []}, content["decoding"]
            calibration = cls(
                signals=tuple(str(name) for name in content["signals"]),
                means=_numbers(content["means"]),
                scales=_numbers(content["scales"]),
                coefficients=_numbers(content["coefficients"]),
                intercept=_number(content["intercept"]),
                isotonic=(_numbers(knots["x"]), _numbers(knots["y"])),
                label=str(content["label"]),
                base_rate=_number(content["base_rate"]),
                n=int(content["n"]),
                ece=_number(content["ece"]),
                adapter_revision=None if content["adapter_revision"] is None else str(content["adapter_revision"]),
                engine=None if content.get("engine") is None else str(content["engine"]),
                temperature=_number(decoding["temperature"]),
                top_p=_number(decoding.get("top_p", 1.0)),
                max_new_tokens=int(decoding["max_new_tokens"]),
            )
        except KeyError as error:
            raise ValueError(f"{error.args[0]} is missing") from error
        except (TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"a value has the wrong type: {error}") from error
        calibration._check()
        return calibration

    def _check(self) -> None:
        unknown = [name for name in self.signals if name not in SIGNALS]
        if unknown:
            raise ValueError(f"unknown signal {unknown[0][:40]!r}")
        if {len(self.means), len(self.scales), len(self.coefficients)} != {len(self.signals)}:
            raise ValueError("not one mean, scale and coefficient a signal")
        if any(scale <= 0 for scale in self.scales):
            raise ValueError("a scale is not above 0")
        if any(abs(value) > LARGEST_COEFFICIENT for value in (self.intercept, *self.coefficients)):
            raise ValueError("a coefficient is beyond reason")
        x, y = self.isotonic
        if len(x) != len(y) or list(x) != sorted(set(x)) or list(y) != sorted(y):
            raise ValueError("the isotonic knots do not rise")
        if any(not 0 <= value <= 1 for value in (self.base_rate, self.ece, *y)):
            raise ValueError("a probability is not between 0 and 1")

    def confidence(self, signals: Mapping[str, float | None]) -> float | None:
        """Return how often answers with these signals were good (0-1), None when a signal is not known.

        Logistic regression, then linear interpolation between the isotonic knots (Zadrozny & Elkan 2002, "Transforming
        classifier scores into accurate multiclass probability estimates"), flat beyond the first and the last.
        """
        score = self.intercept
        for name, mean, scale, coefficient in zip(
            self.signals, self.means, self.scales, self.coefficients, strict=True
        ):
            value = signals.get(name)
            if value is None or not math.isfinite(value):
                return None
            standardised = (value - mean) / scale
            score += coefficient * max(-STANDARDISED_LIMIT, min(STANDARDISED_LIMIT, standardised))
        probability = _logistic(score)
        x, y = self.isotonic
        return _interpolate(probability, x, y) if x else probability

    def covers(self, options: Options, signals: Mapping[str, float | None]) -> bool:
        """Return whether an answer made with `options` is one that the measured settings could have given.

        Greedy answers do not depend on seed and top-p. A longest answer of another length makes no difference to an
        answer that ended by itself before both limits.
        """
        if max(options.temperature, 0.0) != self.temperature:
            return False
        if self.temperature > 0 and options.top_p != self.top_p:
            return False
        ended_in_time = bool(signals.get("ended")) and (signals.get("tokens") or 0) <= self.max_new_tokens
        return options.max_new_tokens == self.max_new_tokens or ended_in_time


def load_calibration(folder: Path, revision: str | None) -> Calibration | None:
    """Return the calibration in an adapter folder; None when it has none, or one of other weights.

    `revision` is the adapter's. The file names the weights it was fitted for by their hash: a commit hash of the
    Hub, which changes when the file itself is added, is accepted too.

    Raises `AdapterError` when the file is broken.
    """
    path = folder / CALIBRATION_FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
        calibration = Calibration.from_json(content)
    except (ValueError, OSError, RecursionError) as error:
        reason = " ".join(str(error).split())[:160]
        raise AdapterError(f"{path} is broken ({reason}): run evaluate.py again or delete it.") from error
    fitted_for = calibration.adapter_revision
    if fitted_for is not None:
        if fitted_for == revision or (folder / WEIGHTS_FILE).is_file() and fitted_for == weights_hash(folder):
            return calibration
    logger.warning("%s was fitted for other weights: run evaluate.py again to show confidence.", path)
    return None


def find_calibration(info: EngineInfo) -> Calibration | None:
    """Return the calibration of the adapter that an engine has loaded, None without one or one of another engine.

    The probabilities of another engine are of other numbers: quantised weights, or entropies of ten alternatives.
    Raises `AdapterError` when the file is broken, `UserError` when the Hub's cache has lost the adapter.
    """
    if info.adapter is None or info.adapter_revision is None:
        return None
    folder = Path(info.adapter)
    if not folder.is_dir():
        from medical_assistant.hub.resolve import resolve_adapter

        folder = resolve_adapter(f"{info.adapter.partition('@')[0]}@{info.adapter_revision}").folder
    calibration = load_calibration(folder, info.adapter_revision)
    if calibration is not None and calibration.engine not in (None, info.engine):
        logger.warning("Confidence is not shown: it was measured with %s, not %s.", calibration.engine, info.engine)
        return None
    return calibration


def word(confidence: float) -> str:
    """Return "low" (below `MEDIUM_FROM`), "medium" (below `HIGH_FROM`) or "high"."""
    return "low" if confidence < MEDIUM_FROM else "medium" if confidence < HIGH_FROM else "high"


def describe(confidence: float | None) -> str:
    """Return the line under an answer, empty for None.

    In tenths, which people read better than percent: Gigerenzer & Hoffrage 1995, "How to improve Bayesian reasoning
    without instruction: frequency formats".
    """
    if confidence is None:
        return ""
    tenths = math.floor(10 * confidence + 0.5)
    share = {0: "fewer than 1", 10: "more than 9"}.get(tenths, f"about {tenths}")
    return f"{LINE}{word(confidence)}, in tests {share} in 10 such answers were close to the reference answer"


def _logistic(score: float) -> float:
    """1 / (1 + exp(-score)), of which exp never overflows."""
    if score >= 0:
        return 1.0 / (1.0 + math.exp(-score))
    power = math.exp(score)
    return power / (1.0 + power)


def _interpolate(value: float, x: Sequence[float], y: Sequence[float]) -> float:
    """Return y at `value` on the line through the knots."""
    right = bisect.bisect_right(x, value)
    if right == 0:
        return y[0]
    if right == len(x):
        return y[-1]
    part = (value - x[right - 1]) / (x[right] - x[right - 1])
    return min(y[right - 1] + part * (y[right] - y[right - 1]), y[right])


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(value: Any) -> float:
    if isinstance(value, (bool, str)) or not math.isfinite(value):
        raise ValueError(f"{str(value)[:40]!r} is not a finite number")
    return float(value)


def _numbers(values: Sequence[Any]) -> tuple[float, ...]:
    return tuple(_number(value) for value in values)
