"""The evaluation of an adapter that was just trained, for the gate before it is published."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from medical_assistant.evaluation.results import update_adapter, write_reports, write_results
from medical_assistant.evaluation.run import collect_answers, measure, prepare
from medical_assistant.evaluation.sections import add_sections
from medical_assistant.evaluation.settings import EvaluateSettings

# With the safety set about 12 minutes with the 135M model on two cores. 220 gave ROUGE-L an interval of +-0.025.
QUESTIONS = 200


def evaluate_adapter(
    folder: Path, data: Path, model: str, engine: str = "auto", limit: int = QUESTIONS
) -> dict[str, Any]:
    """Return the metrics of the adapter in `folder`, on the first `limit` validation questions and the safety set.

    Writes metrics.json, calibration.json, report.md and the card into `folder`. The answers are kept beside it, in
    `folder`.evaluation, until the end: called again after an interrupt, it goes on. `evaluate.py` says more.
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
        resume=(output / "run.json").is_file(),
    )
    run = prepare(settings)
    collect_answers(run)
    metrics, rows = measure(run)
    add_sections(run, metrics, rows)
    write_results(output, metrics, rows)
    write_reports(run, metrics, rows)
    update_adapter(run, metrics)
    shutil.rmtree(output)
    return metrics
