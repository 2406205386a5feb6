"""How often answers like this one were good: read from `calibration.json`, computed without numpy.

`evaluate.py` fits the calibration on held-back questions (`medical_assistant.evaluation.confidence`) and puts the file
into the adapter folder. Here it is read, and applied to the signals of one answer.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from medical_assistant.engines.base import EngineInfo, Options, Token
from medical_assistant.errors import AdapterError
from medical_assistant.models.adapter import CALIBRATION_FILE, WEIGHTS_FILE, weights_hash

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
SIGNALS = ("mean_logprob", "min_logprob", "mean_entropy", "tokens", "ended")  # what a calibration may use
# Standard deviations. A signal further out than this is taken as this far out, in the fit and here: nothing was
# measured there, and no number is too large for the logistic function.
STANDARDISED_LIMIT = 8.0
LARGEST_COEFFICIENT = 1e6  # a fit's are below 10; what is far beyond it is no fit
MEDIUM_FROM, HIGH_FROM = 0.35, 0.65  # confidence from which the word is "medium" and "high"
LINE = "Confidence: "  # how the line under an answer begins
WORDS = "**low** is up to 3 in 10, **medium** 4 to 6, **high** 7 or more"


@dataclass
class Signals:
    """What the tokens of one answer say about it. Fed token by token, as they stream."""

    logprobs: list[float] = field(default_factory=list)  # natural logarithms of the tokens' probabilities
    entropies: list[float] = field(default_factory=list)  # nats
    ended: bool | None = None  # True: the model ended by itself; None: it came to no end, or was cut short

    def add(self, token: Token) -> None:
        """Count `token`. A keep-alive (no text, probability 1) is not a token."""
        if token.text or token.logprob != 0.0:
            self.logprobs.append(token.logprob)
            self.entropies.append(token.entropy)

    def values(self) -> dict[str, float | None]:
        """Return the signals by their names in `SIGNALS`; None is one that is not known.

        One token without a probability, as a server sends that gives none, leaves no mean and no minimum.
        """
        mean = _mean(self.logprobs)
        return {
            "mean_logprob": mean,
            "min_logprob": None if mean is None else min(self.logprobs),
            "mean_entropy": _mean(self.entropies),
            "tokens": float(len(self.logprobs)),
            "ended": None if self.ended is None else float(self.ended),
        }


@dataclass(frozen=True)
class Calibration:
    """What an answer needs of `calibration.json`: a logistic regression, then isotonic steps."""

    signals: tuple[tuple[str, float, float, float], ...]  # name, mean, standard deviation, coefficient
    intercept: float
    isotonic: tuple[tuple[float, float], ...]  # knots: probability in, probability out, both rising; may be empty
    label: str  # what a good answer is, in words
    n: int  # test questions
    adapter_revision: str | None  # first 12 hex digits of the weights' SHA-256, or a commit hash
    engine: str | None  # None: any
    temperature: float
    max_new_tokens: int

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Calibration:
        """Return the calibration in the content of `calibration.json`.

        Raises `ValueError`, in a few words, when a part is missing, of another schema version, or out of its range.
        """
        try:
            if content.get("schema_version") != SCHEMA_VERSION:
                raise ValueError(f"schema version {str(content.get('schema_version'))[:20]}, not {SCHEMA_VERSION}")
            knots, decoding = content.get("isotonic") or {"x": [], "y": []}, content["decoding"]
            numbers = [map(float, content[key]) for key in ("means", "scales", "coefficients")]
            found = cls(
                signals=tuple(zip(map(str, content["signals"]), *numbers, strict=True)),
                intercept=float(content["intercept"]),
                isotonic=tuple(zip(map(float, knots["x"]), map(float, knots["y"]), strict=True)),
                label=str(content["label"]),
                n=int(content["n"]),
                adapter_revision=content["adapter_revision"],
                engine=content.get("engine"),
                temperature=float(decoding["temperature"]),
                max_new_tokens=int(decoding["max_new_tokens"]),
            )
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ValueError(f"a value is missing or of the wrong form: {error}") from error
        xs, ys = [x for x, _ in found.isotonic], [y for _, y in found.isotonic]
        weights = [found.intercept, *(weight for *_, weight in found.signals)]
        in_range = (
            all(name in SIGNALS for name, *_ in found.signals)
            and all(math.isfinite(mean) and 0 < scale < math.inf for _, mean, scale, _ in found.signals)
            and all(abs(weight) <= LARGEST_COEFFICIENT for weight in weights)
            and all(0 <= value <= 1 for value in (*xs, *ys))
            and (xs, ys) == (sorted(set(xs)), sorted(ys))
        )
        if not in_range:
            raise ValueError("a signal, scale, coefficient or isotonic step is unknown or out of range")
        return found

    def confidence(self, signals: Mapping[str, float | None]) -> float | None:
        """Return how often answers with these signals were good (0-1), None when a signal is not known.

        Logistic regression, then linear interpolation between the isotonic knots (Zadrozny & Elkan 2002, "Transforming
        classifier scores into accurate multiclass probability estimates"), flat beyond the first and the last.
        """
        score = self.intercept
        for name, mean, scale, weight in self.signals:
            value = signals.get(name)
            if value is None or not math.isfinite(value):
                return None
            score += weight * max(-STANDARDISED_LIMIT, min(STANDARDISED_LIMIT, (value - mean) / scale))
        probability = 0.5 + 0.5 * math.tanh(score / 2)  # the logistic function, in a form that never overflows
        for (x, y), (next_x, next_y) in pairwise(self.isotonic):
            if probability < next_x:
                part = max(0.0, (probability - x) / (next_x - x))
                return min(y + part * (next_y - y), next_y)
        return self.isotonic[-1][1] if self.isotonic else probability

    def covers(self, options: Options, signals: Mapping[str, float | None]) -> bool:
        """Return whether an answer made with `options` is one that the measured settings could have given.

        Evaluations are greedy: neither seed nor top-p matters. A longest answer of another length makes no difference
        to an answer that ended by itself before both limits.
        """
        ended_in_time = bool(signals.get("ended")) and (signals.get("tokens") or 0) <= self.max_new_tokens
        same_length = options.max_new_tokens == self.max_new_tokens or ended_in_time
        return max(options.temperature, 0.0) == self.temperature and same_length


def find_calibration(info: EngineInfo) -> Calibration | None:
    """Return the calibration of the adapter that an engine has loaded; None without one, or one of other weights or of
    another engine: its probabilities are of other numbers (quantised weights, entropies of ten alternatives).

    An adapter of the Hub is looked up in the local cache only. The file names the weights it was fitted for by their
    hash: a commit hash of the Hub, which changes when the file itself is added, is accepted too. Raises `AdapterError`
    when the file is broken.
    """
    if info.adapter is None or info.adapter_revision is None:
        return None
    path = Path(info.adapter) / CALIBRATION_FILE
    if not path.parent.is_dir():
        from huggingface_hub import try_to_load_from_cache

        name = info.adapter.partition("@")[0]
        # A path only where the file is in the cache; "" is a folder.
        path = Path(str(try_to_load_from_cache(name, CALIBRATION_FILE, revision=info.adapter_revision) or ""))
    if not path.is_file():
        return None
    try:
        calibration = Calibration.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, OSError, RecursionError) as error:
        reason = " ".join(str(error).split())[:160]
        raise AdapterError(f"{path} is broken ({reason}): run evaluate.py again or delete it.") from error
    known = [info.adapter_revision]
    if (path.parent / WEIGHTS_FILE).is_file():
        known.append(weights_hash(path.parent))
    if calibration.adapter_revision not in known:
        logger.warning("%s was fitted for other weights: run evaluate.py again to show confidence.", path)
    elif calibration.engine not in (None, info.engine):
        logger.warning("Confidence is not shown: it was measured with %s, not %s.", calibration.engine, info.engine)
    else:
        return calibration
    return None


def describe(confidence: float | None) -> str:
    """Return the line under an answer, empty for None.

    In tenths, which people read better than percent: Gigerenzer & Hoffrage 1995, "How to improve Bayesian reasoning
    without instruction: frequency formats".
    """
    if confidence is None:
        return ""
    word = "low" if confidence < MEDIUM_FROM else "medium" if confidence < HIGH_FROM else "high"
    tenths = math.floor(10 * confidence + 0.5)
    share = {0: "fewer than 1", 10: "more than 9"}.get(tenths, f"about {tenths}")
    return f"{LINE}{word}, in tests {share} in 10 such answers were close to the reference answer"


def _mean(values: Sequence[float]) -> float | None:
    mean = sum(values) / len(values) if values else math.nan
    return mean if math.isfinite(mean) else None
