"""How far a judge agrees with people: a small labelled set, and the measures of agreement.

`assets/evaluation/judge_check.jsonl` holds 42 short answers on common health topics, each with a statement and a label,
14 of each label: numbers, negations, hedges, near misses, an answer that tries to name its own verdict. The labels are
by the author of this project, not by clinicians. In items labelled "contradicted" the answer or the statement is wrong
on purpose: the file is no source of medical advice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medical_assistant.data.records import read_source
from medical_assistant.errors import UserError
from medical_assistant.evaluation.judges.judge import LABELS, Claim
from medical_assistant.models.presets import ASSETS

CHECK_FILE = ASSETS / "evaluation" / "judge_check.jsonl"


def read_check_set(path: Path = CHECK_FILE) -> tuple[list[Claim], list[str]]:
    """Return (claims, human labels) of a labelled set: rows with `question`, `answer`, `statement`, `label`.

    Raises `UserError` that names the row where a field is missing or the label is not one of `judge.LABELS`.
    """
    claims, labels = [], []
    for number, row in enumerate(read_source(str(path)).rows, start=1):
        fields = [row.get(key) for key in ("question", "answer", "statement", "label")]
        if not all(isinstance(value, str) and value.strip() for value in fields) or row["label"] not in LABELS:
            wanted = "question, answer, statement and a label (" + ", ".join(LABELS) + ")"
            raise UserError(f"{path.name}, row {number} needs {wanted}: mend the row.")
        claims.append(Claim(row["question"], row["answer"], row["statement"]))
        labels.append(row["label"])
    return claims, labels


def agreement(verdicts: Sequence[str | None], labels: Sequence[str]) -> dict[str, Any]:
    """Return how far a judge agrees with human labels: `n`, `missing`, `agreement` (0-1), `cohen_kappa` (-1 to 1).

    `n` counts the items with a verdict; `missing` those without. Kappa is (observed - expected) / (1 - expected)
    agreement, where expected is what two raters with the same label frequencies reach by chance (Cohen 1960, "A
    Coefficient of Agreement for Nominal Scales", Educational and Psychological Measurement 20:37-46). It is None
    where both gave one and the same label throughout; both are None without a verdict.
    """
    pairs = [(verdict, label) for verdict, label in zip(verdicts, labels, strict=True) if verdict is not None]
    n = len(pairs)
    result: dict[str, Any] = {"n": n, "missing": len(labels) - n, "agreement": None, "cohen_kappa": None}
    if not n:
        return result
    observed = sum(verdict == label for verdict, label in pairs) / n
    judged, human = Counter(verdict for verdict, _ in pairs), Counter(label for _, label in pairs)
    expected = sum(judged[label] * human[label] for label in LABELS) / n**2
    result["agreement"] = observed
    result["cohen_kappa"] = (observed - expected) / (1 - expected) if expected < 1 else None
    return result
