"""Names that stand in metrics.json and in the files of a run."""

from __future__ import annotations

BASE, FINE_TUNED = "base", "fine_tuned"  # candidates: the model alone, and with the adapter of --adapter
PREDICTIONS = "predictions.jsonl"


def pair_name(a: str, b: str) -> str:
    """Return the key of a pair, b being compared with a."""
    return f"{b} vs {a}"
