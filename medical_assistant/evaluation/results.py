"""What an evaluation leaves behind: its files, the adapter's folder, the table in the terminal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medical_assistant.errors import UserError
from medical_assistant.evaluation.answers import RUN_FILE
from medical_assistant.evaluation.names import BASE, PREDICTIONS
from medical_assistant.evaluation.run import Run, collect_answers, prepare
from medical_assistant.evaluation.scoring.metrics import METRICS
from medical_assistant.evaluation.sections import add_sections, measure
from medical_assistant.evaluation.settings import EvaluateSettings
from medical_assistant.files import read_json, write_json, write_whole
from medical_assistant.models.adapter import CALIBRATION_FILE, REPORT_FILE

METRICS_FILE = "metrics.json"
# Of a freshly trained adapter. With the safety set about 12 minutes with the 135M model on two cores. 220 gave ROUGE-L
# an interval of +-0.025.
QUESTIONS = 200
LEFT_OUT = "(left out of this report: see the data set)"


def run_evaluation(settings: EvaluateSettings) -> tuple[Run, dict[str, Any]]:
    """Collect all answers, score them and write the files of the output folder; return the run and its metrics.

    Raises `UserError` for whatever is wrong with the settings, before a model is loaded.
    """
    run = prepare(settings)
    collect_answers(run)
    metrics, rows = measure(run)
    add_sections(run, metrics, rows)
    write_results(settings.output, metrics, rows)
    write_reports(run, metrics, rows)
    return run, metrics


def write_results(folder: Path, metrics: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `metrics.json`, then `predictions.jsonl` in its finished form, each whole or not at all."""
    try:
        write_json(folder / METRICS_FILE, metrics)
        write_whole(folder / PREDICTIONS, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): free the disk.") from error


def table(metrics: Mapping[str, Any]) -> str:
    """Return the scores of all candidates side by side as a text table, and the verdicts in words."""
    keys = list(metrics["scores"])
    labels = [metrics["candidates"][key]["label"][:14] for key in keys]
    two = len(keys) == 2
    head = f"{'n = ' + str(metrics['n']):<24}" + "".join(f"{label:>16}" for label in labels)
    lines = [head + (f"{'change':>10}" if two else "")]
    for metric in metrics["scores"][BASE]:
        name = METRICS[metric].name if metric in METRICS else metric
        values = "".join(f"{metrics['scores'][key].get(metric, float('nan')):>16.3f}" for key in keys)
        change = metrics["relative_change"][keys[1]].get(metric) if two else None
        lines.append(f"{name:<24}{values}" + (f"{change:>+10.0%}" if change is not None else ""))
    verdicts = metrics.get("comparison", {}).get("verdicts", {})
    return "\n".join([*lines, *(verdict["sentence"] for verdict in verdicts.values())])


def write_reports(run: Run, metrics: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `report.html` and `report.md`, with the loss curves of adapters that are local folders.

    Without `show_references` the reference answers stay out of them: their licence may not allow to publish them.
    """
    from medical_assistant.evaluation.report.write import write_report

    folders = {candidate.label: Path(candidate.adapter) for candidate in run.candidates if candidate.adapter}
    losses = {label: _losses(folder) for label, folder in folders.items()}
    if not run.settings.show_references:
        rows = [{**row, "reference": LEFT_OUT} for row in rows]
    write_report(run.settings.output, metrics, rows, {label: history for label, history in losses.items() if history})


def _losses(folder: Path) -> list[dict[str, Any]]:
    try:
        return list(read_json(folder / "training.json").get("history") or [])
    except UserError:  # an adapter of the Hub, or one of other software
        return []


def update_adapter(run: Run, metrics: Mapping[str, Any]) -> Path:
    """Put metrics.json, calibration.json and report.md into the adapter's folder, and return it."""
    folder, output = Path(run.settings.adapter), run.settings.output
    write_json(folder / METRICS_FILE, metrics)
    for name in (CALIBRATION_FILE, REPORT_FILE):
        (folder / name).unlink(missing_ok=True)  # an earlier one is not of this evaluation
        if (output / name).is_file():
            write_whole(folder / name, (output / name).read_text(encoding="utf-8"))
    return folder


def evaluate_adapter(
    folder: Path, data: Path, model: str, engine: str = "auto", limit: int = QUESTIONS
) -> dict[str, Any]:
    """Return the metrics of an adapter that was just trained, on the first `limit` validation questions and the safety
    set: for the gate before it is published.

    Writes metrics.json, calibration.json and report.md into `folder`. The answers are kept beside it, in
    `folder`.evaluation, until the end: called again after an interrupt, it goes on.
    """
    output = folder.parent / f"{folder.name}.evaluation"
    settings = EvaluateSettings(
        data=data,
        output=output,
        adapter=str(folder),
        model=model,
        engine=engine,
        limit=limit,
        perplexity=False,  # training.json has the validation loss
        show_references=False,  # the report is published; the data's licence may not allow to publish them
        resume=(output / RUN_FILE).is_file(),
    )
    run, metrics = run_evaluation(settings)
    update_adapter(run, metrics)
    shutil.rmtree(output)
    return metrics
