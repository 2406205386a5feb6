"""What an evaluation leaves behind: its files, the adapter's card, the table in the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medical_assistant.data.records import write_records
from medical_assistant.errors import UserError
from medical_assistant.evaluation.answers import PREDICTIONS
from medical_assistant.evaluation.candidates import BASE
from medical_assistant.evaluation.run import Run
from medical_assistant.evaluation.scoring.metrics import METRICS
from medical_assistant.evaluation.settings import read_json
from medical_assistant.files import write_whole

LEFT_OUT = "(left out of this report: see the data set)"


def write_results(folder: Path, metrics: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `metrics.json`, then `predictions.jsonl` in its finished form, each whole or not at all."""
    for name, write in (
        ("metrics.json", lambda path: path.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")),
        (PREDICTIONS, lambda path: write_records(rows, path)),
    ):
        temporary = folder / f"{name}.tmp"
        try:
            write(temporary)
            temporary.replace(folder / name)
        except OSError as error:
            raise UserError(f"{folder / name} cannot be written ({error.strerror}): free the disk.") from error
        finally:
            temporary.unlink(missing_ok=True)


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
    losses = {label: read_json(folder / "training.json").get("history") or [] for label, folder in folders.items()}
    if not run.settings.show_references:
        rows = [{**row, "reference": LEFT_OUT} for row in rows]
    write_report(run.settings.output, metrics, rows, {label: history for label, history in losses.items() if history})


def update_adapter(run: Run, metrics: Mapping[str, Any]) -> None:
    """Put metrics.json, calibration.json and report.md into the adapter's folder, and write its card again."""
    from medical_assistant.models.adapter import REPORT_FILE
    from medical_assistant.publish.card import write_card

    folder, output = Path(run.settings.adapter), run.settings.output
    write_whole(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    calibration = output / "calibration.json"
    if calibration.is_file():
        write_whole(folder / calibration.name, calibration.read_text(encoding="utf-8"))
    else:
        (folder / calibration.name).unlink(missing_ok=True)  # an earlier one is not of this evaluation
    write_whole(folder / REPORT_FILE, (output / REPORT_FILE).read_text(encoding="utf-8"))
    write_card(folder, run.settings.push_to_hub.partition("@")[0] or None)


def publish(run: Run) -> str:
    """Return the URL of the commit that holds the adapter with its results; errors as `publishing.publish_adapter`."""
    from medical_assistant.publish.adapter import publish_adapter

    return publish_adapter(Path(run.settings.adapter), run.settings.push_to_hub)
