"""What the trainings of hashed regressions share: which half trains, scikit-learn's matrix, the weights to store."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from medical_assistant.safety.hashed_classifier import SCALE
from medical_assistant.safety.hashed_features import BUCKETS


def trains(text: str) -> bool:
    """Return whether `text` is in the half of a file that trains; the other half measures."""
    return hashlib.sha256(text.encode()).digest()[0] % 2 == 0


def feature_matrix(rows: Sequence[Sequence[set[int]]]) -> Any:
    """Return a sparse matrix of (rows, `BUCKETS`); each group of a row is scaled as in `Regression.score`."""
    from scipy.sparse import csr_matrix

    columns, values, starts = list[int](), list[float](), [0]
    for groups in rows:
        for group in filter(None, groups):
            columns += sorted(group)
            values += [len(group) ** -0.5] * len(group)
        starts.append(len(columns))
    return csr_matrix((values, columns, starts), shape=(len(rows), BUCKETS))


def stored_weights(coefficients: Any, smallest: int) -> list[int]:
    """Return the weights in units of 1 / `SCALE`, 0 for those below `smallest` units."""
    rounded = [round(float(weight) * SCALE) for weight in coefficients]
    return [weight if abs(weight) >= smallest else 0 for weight in rounded]
