"""Settings of `train.py`, and the experiments of `assets/experiments.yaml` that fill what is not given."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from medical_assistant.errors import UserError
from medical_assistant.presets import ASSETS
from medical_assistant.settings import required, setting

# All attention projections of the Llama family; "all-linear" is PEFT's name for every linear layer.
ATTENTION = "attention"
ATTENTION_PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj"]


@dataclass(frozen=True)
class TrainSettings:
    data: Path = required("folder made by data_prep.py")
    output: Path = required("new folder for the adapter")
    model: str = setting("smollm2-135m", "preset of assets/models.yaml, Hub id or folder")
    experiment: str = setting("baseline", "row of assets/experiments.yaml; the options below change it")
    learning_rate: float | None = setting(None, "peak learning rate (default: the experiment's)")
    batch_size: int | None = setting(None, "rows a step and device (default: the experiment's)")
    lora_rank: int | None = setting(None, "rank of the LoRA (default: the experiment's)")
    lora_alpha: int | None = setting(None, "scale of the LoRA (default: 2 x rank)")
    epochs: float | None = setting(None, "passes over the data (default: the experiment's)")
    target_modules: str = setting(ATTENTION, "layers with a LoRA", ["attention", "all-linear"])
    quantize: str = setting("auto", "4-bit base: auto is nf4 on CUDA, none on a CPU", ["auto", "nf4", "none"])
    lora_dropout: float = setting(0.05, "dropout of the LoRA, 0 to 1")
    gradient_accumulation_steps: int = setting(1, "batches a step")
    gradient_checkpointing: bool = setting(True, "save GPU memory for time (never used on a CPU)")
    lr_scheduler_type: str = setting("cosine", "schedule of the learning rate", ["cosine", "linear", "constant"])
    warmup_ratio: float = setting(0.03, "part of the steps with a rising learning rate, 0 to 1")
    weight_decay: float = setting(0.0, "weight decay of AdamW")
    max_length: int = setting(512, "tokens a record; longer ones are left out, never cut")
    max_steps: int = setting(-1, "stop after this many steps; -1 trains all epochs")
    max_train_rows: int = setting(0, "train on the first N rows; 0 is all")
    max_validation_rows: int = setting(200, "last validation rows, whose loss chooses the checkpoint; 0 is all")
    evaluations_per_epoch: int = setting(2, "validation losses and checkpoints an epoch")
    logging_steps: int = setting(10, "steps between two logged losses")
    report_to: str = setting("none", "tracker: tensorboard, wandb, trackio or none")
    seed: int = setting(42, "seed of the weights and of the order of rows")
    resume: bool = setting(False, "go on from the last checkpoint in --output")
    push_to_hub: str | None = setting(None, "publish the adapter as this Hub repository (user/name)")


@dataclass(frozen=True)
class ResolvedSettings:
    """`TrainSettings` with the experiment filled in."""

    data: Path
    output: Path
    model: str
    experiment: str
    learning_rate: float
    batch_size: int
    lora_rank: int
    lora_alpha: int
    epochs: float
    target_modules: str | list[str]
    quantize: str
    lora_dropout: float
    gradient_accumulation_steps: int
    gradient_checkpointing: bool
    lr_scheduler_type: str
    warmup_ratio: float
    weight_decay: float
    max_length: int
    max_steps: int
    max_train_rows: int
    max_validation_rows: int
    evaluations_per_epoch: int
    logging_steps: int
    report_to: str
    seed: int

    def as_json(self) -> dict[str, Any]:
        """Return the settings as JSON values; of paths only the last part, no machine's folders."""
        return {key: value.name if isinstance(value, Path) else value for key, value in asdict(self).items()}


def load_experiments(path: Path = ASSETS / "experiments.yaml") -> dict[str, dict[str, Any]]:
    """Return the experiments by name; keys `learning_rate`, `batch_size`, `lora_rank`, `epochs`."""
    content: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def resolve_settings(settings: TrainSettings, cuda: bool) -> ResolvedSettings:
    """Return the settings with the experiment's values where none was given.

    Raises `UserError` for an unknown experiment or a value out of range.
    """
    experiments = load_experiments()
    if settings.experiment not in experiments:
        raise UserError(f"Unknown experiment {settings.experiment!r}: use one of {', '.join(experiments)}.")
    values = {k: v for k, v in vars(settings).items() if k not in ("resume", "push_to_hub")}
    for key, value in experiments[settings.experiment].items():
        if values[key] is None:
            values[key] = value
    if values["lora_alpha"] is None:
        values["lora_alpha"] = 2 * values["lora_rank"]
    if values["quantize"] == "auto":
        values["quantize"] = "nf4" if cuda else "none"
    if values["target_modules"] == ATTENTION:
        values["target_modules"] = ATTENTION_PROJECTIONS
    for key in ("learning_rate", "batch_size", "lora_rank", "lora_alpha", "epochs", "max_length", "logging_steps"):
        if values[key] <= 0:
            raise UserError(f"--{key.replace('_', '-')} must be above 0, not {values[key]}.")
    for key in ("lora_dropout", "warmup_ratio"):
        if not 0 <= values[key] < 1:
            raise UserError(f"--{key.replace('_', '-')} must be from 0 to below 1, not {values[key]}.")
    return ResolvedSettings(**values)
