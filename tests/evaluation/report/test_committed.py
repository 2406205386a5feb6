"""Mistake 10: the committed report is of the bundled adapter's metrics, and these are of its weights."""

from __future__ import annotations

import json
import re
from pathlib import Path

from medical_assistant.evaluation.report.write import write_report
from medical_assistant.models.adapter import weights_hash
from tests.support.paths import ROOT

ADAPTER = ROOT / "assets" / "adapters" / "smollm2-135m"
REPORT = ROOT / "assets" / "reports" / "smollm2-135m"
WITH_ROWS = ("Spread of the scores", "Answers side by side")  # made from predictions.jsonl, which is not committed


def test_the_committed_report_is_of_the_committed_metrics(tmp_path: Path) -> None:
    metrics = json.loads((ADAPTER / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["candidates"]["fine_tuned"]["adapter_revision"] == weights_hash(ADAPTER)
    losses = json.loads((ADAPTER / "training.json").read_text(encoding="utf-8"))["history"]
    report = (REPORT / "report.md").read_text(encoding="utf-8")
    answer = {"answer": "", "ended": True, "tokens": 0, "scores": dict.fromkeys(metrics["scores"]["base"], 0.0)}
    row = {"id": "1", "question": "?", "reference": "", "question_type": "other", "stratum": "clean", "similarity": 0.0}
    rows = [{**row, "nearest": None, "candidates": dict.fromkeys(metrics["candidates"], answer)}]
    write_report(tmp_path, metrics, rows, {"fine-tuned": losses})
    sections = re.split(r"^## ", (tmp_path / "report.md").read_text(encoding="utf-8"), flags=re.M)[1:]
    checked = [section for section in sections if section.split("\n")[0] not in WITH_ROWS]
    assert len(checked) > 10
    for section in checked:
        assert section in report, section[:60]
    html = (REPORT / "report.html").read_bytes()
    sentence = metrics["comparison"]["verdicts"]["fine_tuned vs base"]["sentence"]
    interval = re.search(r"95 % interval ([^,]+),", sentence)
    assert interval and len(html) < 1_000_000 and interval[1] in html.decode()
