"""What the trainings of the three classifiers share: rows and their files, the regression and its cross-validation."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medical_assistant.data.records import read_source
from medical_assistant.errors import UserError
from medical_assistant.files import file_sha256
from medical_assistant.safety.hashed_classifier import BUCKETS, WEIGHT_SCALE, to_json

ROOT = Path(__file__).resolve().parents[3]
TRAINING_DATA = ROOT / "training_data"
SAFETY_SETS = ROOT / "tests" / "safety_sets"
TEXT_KEYS = ("prompt", "question", "input", "text")
Settings = dict[str, Any]  # one section of training_data/settings.yaml


@dataclass(frozen=True)
class Row:
    """A text that trains. `label`: what it is, "" for an ordinary one. `path`: the file that it is from.

    Rows of one `group` say nearly the same. `own`: written for this, and stands for more wordings than a public one.
    """

    text: str
    label: str
    path: Path
    group: str
    own: bool = True


def find(name: str, data: Path) -> Path:
    """Return the file `name` of the folder `data` or of tests/safety_sets. `UserError`: neither has it."""
    path = next((folder / name for folder in (data, SAFETY_SETS) if (folder / name).is_file()), None)
    if path is None:
        raise UserError(f"{data} has no {name}: give the folder of the files that the settings name with --data.")
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSONL file. `UserError`: it cannot be read."""
    return read_source(str(path)).rows


def read_texts(path: Path) -> list[str]:
    """Return the different texts of a JSONL file (one of `TEXT_KEYS`). `UserError`: there are none."""
    texts = [next((str(row[key]) for key in TEXT_KEYS if row.get(key)), "") for row in read_rows(path)]
    found = list(dict.fromkeys(filter(None, texts)))
    if not found:
        raise UserError(f"{path} has no texts: its rows need one of {', '.join(TEXT_KEYS)}.")
    return found


def digest(text: str) -> bytes:
    """Return the SHA-256 by which texts are sampled and divided: the same ones each time."""
    return hashlib.sha256(text.encode()).digest()


def in_training_split(text: str) -> bool:
    """Return whether `text` is in the half of a file that trains; the other half measures."""
    return digest(text)[0] % 2 == 0


def sources(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Return `name`, `sha256` and the number of `rows` of each file that trained."""
    counts = Counter(row.path for row in rows)
    return [{"name": path.name, "sha256": file_sha256(path), "rows": count} for path, count in counts.items()]


def feature_matrix(features: Iterable[Sequence[set[int]]]) -> Any:
    """Return a sparse matrix of (rows, `BUCKETS`); each group of a row is scaled as in `HashedClassifier.score`."""
    from scipy.sparse import csr_matrix

    columns, values, starts = array("i"), array("d"), [0]  # of ten thousands of sentences with hundreds of buckets each
    for groups in features:
        for group in filter(None, groups):
            columns.extend(sorted(group))
            values.extend([len(group) ** -0.5] * len(group))
        starts.append(len(columns))
    return csr_matrix((values, columns, starts), shape=(len(starts) - 1, BUCKETS))


def fit(matrix: Any, rows: Sequence[Row], label: str, settings: Settings) -> tuple[dict[str, Any], Any]:
    """Return (weights and bias as a file holds them, the log odds of each row by models that were trained without it).

    Rows with `label` are to be told from all others. Over `repeats` divisions into folds the log odds are averaged.
    """
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    wanted = np.array([row.label == label for row in rows])
    weights = np.array([settings["own_row_weight"] if row.own else 1.0 for row in rows])

    def fitted(members: Any) -> Any:
        model = LogisticRegression(C=settings["C"], solver="liblinear", random_state=settings["seed"])
        return model.fit(matrix[members], wanted[members], sample_weight=weights[members])

    scores = np.zeros(len(rows))
    groups = [row.group for row in rows] if settings["grouped_folds"] else None
    divide = StratifiedKFold if groups is None else StratifiedGroupKFold
    for seed in range(settings["seed"], settings["seed"] + settings["repeats"]):
        folds = divide(settings["folds"], shuffle=True, random_state=seed)
        for members, others in folds.split(matrix, wanted, groups):
            scores[others] += fitted(members).decision_function(matrix[others]) / settings["repeats"]
    model = fitted(np.arange(len(rows)))
    units = [round(float(weight) * WEIGHT_SCALE) for weight in model.coef_[0]]
    kept = [unit if abs(unit) >= settings["min_stored_weight"] else 0 for unit in units]
    return to_json(kept, float(model.intercept_[0])), scores


def part_above(threshold: float, scores: Any, members: Any) -> float:
    """Return the part (0 to 1) of the scores of `members` (a mask) that reach `threshold`, 0 of none."""
    return round(float((scores[members] >= threshold).mean()), 5) if members.any() else 0.0
