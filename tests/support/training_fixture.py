"""What several tests of training need: a planned run, and its trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medical_assistant.models.presets import Preset, find_preset
from medical_assistant.training.settings import Run, own_settings, plan_runs


def make_settings(preset: Preset | None = None, cuda_memory_gib: float | None = None, **values: Any) -> Any:
    """The run that a user asks for with `values`, on a CPU or on a CUDA device of `cuda_memory_gib`."""
    given = {"data": Path("data"), "output": Path("output"), "report_to": "none", **values}
    asked = own_settings(given)
    runs = plan_runs(given, preset or find_preset(asked.model), cuda_memory_gib)
    return runs if asked.experiment == "all" else runs[0]


def make_run(data: Path, model: Path, output: Path, **values: Any) -> tuple[Any, Any, Any, Run]:
    """(trainer, tokenizer, data, run) of an untrained run on the tiny model."""
    from medical_assistant.models import loading
    from medical_assistant.training import data as training_data
    from medical_assistant.training import trainer as training

    preset = find_preset(str(model))
    run = make_settings(preset, data=data, output=output, model=str(model), **values)
    tokenizer = loading.load_tokenizer(preset)
    rows = training_data.load_training_data(run, tokenizer)
    trainer = training.make_trainer(loading.load_model(preset, run.settings.quantize), tokenizer, run, rows)
    return trainer, tokenizer, rows, run
