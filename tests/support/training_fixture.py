"""What several tests of training need: settings of a small run, and its trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medical_assistant.models.presets import Preset, find_preset
from medical_assistant.training.settings import ResolvedSettings, TrainSettings, resolve_settings


def make_settings(preset: Preset | None = None, cuda_memory_gib: float | None = None, **values: Any) -> Any:
    """The resolved settings of one run on a CPU, or on a CUDA device of `cuda_memory_gib`."""
    given = TrainSettings(**{"data": Path("data"), "output": Path("output"), "report_to": "none", **values})
    runs = resolve_settings(given, preset or find_preset(given.model), cuda_memory_gib)
    return runs if given.experiment == "all" else runs[0]


def make_run(data: Path, model: Path, output: Path, **values: Any) -> tuple[Any, Any, Any, ResolvedSettings]:
    """(trainer, tokenizer, data, settings) of an untrained run on the tiny model."""
    from medical_assistant.models import loading
    from medical_assistant.training import arguments as training
    from medical_assistant.training import data as training_data

    preset = find_preset(str(model))
    settings = make_settings(preset, data=data, output=output, model=str(model), **values)
    tokenizer = loading.load_tokenizer(preset)
    rows = training_data.load_training_data(settings, tokenizer)
    trainer = training.make_trainer(loading.load_model(preset, settings.quantize), tokenizer, settings, rows)
    return trainer, tokenizer, rows, settings
