"""How the report writes numbers, intervals and differences: every figure of its view is text from here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from medical_assistant.evaluation.scoring.metrics import METRICS

MINUS, SPACE, DASH = "\u2212", "\u00a0", "\u2013"
PART = "part"  # in place of a metric's key: a part of questions or messages, 0 to 1, with no score behind it
PERCENT = ("exact_match", "ended", "repetition", PART)
DECIMALS = {"bleu": 2, "chrf": 2, "mean_tokens": 1, "tokens_per_second": 1, "mean_seconds": 2}
DECIMALS |= {"readability_grade": 1, "length_ratio": 2, "perplexity": 2}


def dig(found: Any, *path: str) -> Any:
    """Return what stands in nested mappings under `path`, {} where something on the way is missing or None."""
    for key in path:
        found = (found or {}).get(key)
    return {} if found is None else found


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def counted(n: int, thing: str = "question") -> str:
    return f"{n:,} {thing}{'' if n == 1 else 's'}"


def metric_name(metric: str) -> str:
    return METRICS[metric].name


def direction(metric: str) -> str:
    """Return which side of a metric is better: "higher", "lower" or "neither"."""
    return {1: "higher", -1: "lower", 0: "neither"}[METRICS[metric].better]


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any, decimals: int = 3, sign: bool = False) -> str:
    """Return `value` with a true minus sign; a dash for what is no number."""
    if not is_number(value):
        return DASH
    text = f"{abs(value):,.{decimals}f}"
    zero = float(text.replace(",", "")) == 0
    return ("" if zero else MINUS if value < 0 else "+" if sign else "") + text


def percent(value: Any, decimals: int = 1, sign: bool = False) -> str:
    return f"{number(100 * value, decimals, sign)}{SPACE}%" if is_number(value) else DASH


def score(metric: str, value: Any) -> str:
    """Return a score as a reader wants it: 0.171, or 71.4 %."""
    return percent(value) if metric in PERCENT else number(value, DECIMALS.get(metric, 3))


def change(metric: str, value: Any) -> str:
    """Return a difference of two scores with its sign; of percentages in points."""
    if metric not in PERCENT or not is_number(value):
        return number(value, DECIMALS.get(metric, 3), sign=True)
    return f"{number(100 * value, 1, sign=True)}{SPACE}points"


def interval(metric: str, low: Any, high: Any, sign: bool = True) -> str:
    """Return "low to high" of a difference, or without `sign` of a score; parts times 100."""
    if not (is_number(low) and is_number(high)):
        return "not claimed"
    scale, decimals = (100, 1) if metric in PERCENT else (1, DECIMALS.get(metric, 3))
    unit = f"{SPACE}%" if metric in PERCENT and not sign else ""
    return f"{number(scale * low, decimals, sign)} to {number(scale * high, decimals, sign)}{unit}"


def p_value(value: Any, equals: str = "") -> str:
    if not is_number(value):
        return "not claimed"
    return "< 0.001" if value < 0.001 else f"{equals}{value:.3f}"


def difference_cells(metric: str, found: Mapping[str, Any] | None) -> list[str]:
    """Return a Difference as cells: its value, 95 % interval, p, wins / ties / losses of b, and the verdict."""
    if not found:  # perplexity and tokens a second are no question's own
        return ["not compared", DASH, DASH, DASH, "not compared"]
    bounds = interval(metric, found["low"], found["high"])
    record = " / ".join(str(found[key]) for key in ("wins", "ties", "losses"))
    verdict = found["verdict"] or "no better side"
    return [change(metric, found["difference"]), bounds, p_value(found["p_value"]), record, verdict]
