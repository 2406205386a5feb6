"""Settings of `train.py`, under TRL's and PEFT's own names, and the experiments that fill what is not given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from medical_assistant.errors import UserError
from medical_assistant.models.loading import launched_with
from medical_assistant.models.presets import ASSETS, Preset
from medical_assistant.settings import setting

ALL_EXPERIMENTS = "all"
BEST = "best"  # folder of the best experiment's copy, beside those of the experiments
EXPERIMENT_KEYS = ("learning_rate", "per_device_train_batch_size", "lora_r", "num_train_epochs")
# All attention projections of the Llama family; "all-linear" is PEFT's name for every linear layer.
ATTENTION_PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj"]
TRACKERS = ["auto", "trackio", "tensorboard", "wandb", "none"]
SCHEDULES = ["cosine", "linear", "constant", "constant_with_warmup"]
INITIALISATIONS = ["default", "gaussian", "pissa", "pissa_niter_16"]
MERGES = ["none", "q8_0", "q4_0"]
# What says where a run goes, not what it is.
COMMANDS = ("resume", "dry_run", "memory_gib", "experiments", "push_to_hub", "merge", "publish", "gate", "job")


@dataclass(frozen=True)
class TrainSettings:
    data: Path | None = setting(None, "folder made by data_prep.py")
    output: Path | None = setting(None, "new folder for the adapter; with --experiment all, for one folder a run")
    model: str = setting("smollm2-135m", "preset of assets/models.yaml, Hub id or folder")
    chat_template: str | None = setting(None, "template of assets/chat_templates or a file, for a model without one")
    experiment: str = setting("baseline", "row of the experiments, or all; the options below change it")
    experiments: Path = setting(ASSETS / "experiments.yaml", "YAML file with a table of experiments of your own")
    learning_rate: float | None = setting(None, "peak learning rate (default: the experiment's)")
    per_device_train_batch_size: int | None = setting(None, "rows a batch and device (default: the experiment's)")
    gradient_accumulation_steps: int | None = setting(None, "batches a step (default: what keeps the rows a step)")
    lora_r: int | None = setting(None, "rank of the LoRA (default: the experiment's)")
    num_train_epochs: float | None = setting(None, "passes over the data (default: the experiment's)")
    lora_alpha: int | None = setting(None, "scale of the LoRA (default: 2 x rank)")
    lora_dropout: float = setting(0.0, "dropout of the LoRA, 0 to 1; it took 24 % of a step on two CPU cores")
    lora_target_modules: str = setting("attention", "layers with a LoRA", ["attention", "all-linear"])
    init_lora_weights: str = setting("default", "PEFT's start of the LoRA; pissa is arXiv:2404.02948", INITIALISATIONS)
    use_rslora: bool = setting(False, "scale by alpha / sqrt(rank) (arXiv:2312.03732)")
    use_dora: bool = setting(False, "decompose into size and direction (arXiv:2402.09353); llama.cpp needs --merge")
    loraplus_lr_ratio: float = setting(1.0, "learning rate of B over that of A; LoRA+ (arXiv:2402.12354) is 16")
    neftune_noise_alpha: float = setting(0.0, "noise on embeddings (NEFTune, arXiv:2310.05914); 5 is usual, 0 is off")
    quantize: str = setting("auto", "4-bit base: auto is nf4 on CUDA, none on a CPU", ["auto", "nf4", "none"])
    optim: str = setting("auto", "optimizer by transformers' name; auto is paged_adamw_8bit for nf4 on CUDA")
    lr_scheduler_type: str = setting("cosine", "schedule of the learning rate", SCHEDULES)
    warmup_steps: float = setting(0.03, "steps with a rising learning rate; below 1, a part of all steps")
    weight_decay: float = setting(0.0, "weight decay of AdamW")
    max_length: int | None = setting(None, "tokens a record; longer ones are left out, never cut (default: 512)")
    max_steps: int = setting(-1, "stop after this many steps; -1 trains all epochs")
    max_train_rows: int = setting(0, "train on the first N rows; 0 is all")
    max_validation_rows: int = setting(200, "last validation rows, whose loss chooses the checkpoint; 0 is all")
    packing: bool = setting(False, "fill each row of a batch to max_length with whole records (more rows a step)")
    padding_free: bool | None = setting(None, "batches without padding (default: on CUDA; a CPU groups by length)")
    gradient_checkpointing: bool = setting(True, "save GPU memory for time (never used on a CPU)")
    use_liger_kernel: bool | None = setting(None, "Liger's kernels (default: on CUDA when installed)")
    torch_compile: bool = setting(False, "compile the model first: minutes, worth it for long runs on CUDA")
    evaluations_per_epoch: int = setting(2, "validation losses and checkpoints an epoch")
    early_stopping_patience: int = setting(0, "stop after N validation losses that were not the best; 0 is off")
    logging_steps: int = setting(10, "steps between two logged losses")
    report_to: str = setting("auto", "tracker; auto is trackio where installed", TRACKERS)
    space_id: str | None = setting(None, "Space (user/name) that shows trackio's curves")
    seed: int = setting(42, "seed of the weights and of the order of rows")
    resume: bool = setting(False, "go on from the last checkpoint in --output")
    dry_run: bool = setting(False, "check data, prompt, memory and time, then stop: no weights are loaded")
    memory_gib: float | None = setting(None, "plan for a CUDA device of this size (with --dry-run)")
    push_to_hub: str | None = setting(None, "publish the adapter as this Hub repository (user/name)")
    merge: str = setting("none", "also write merged weights and a merged GGUF of this type", MERGES)
    publish: Path | None = setting(None, "publish this finished folder, or finish a failed upload; trains nothing")
    gate: str = setting(
        "default", "thresholds an adapter must meet before --push-to-hub and --publish: YAML file; none: push without"
    )
    job: str | None = setting(None, "run this command on Hugging Face Jobs on this hardware (t4-small, a10g-small)")


@dataclass(frozen=True)
class ResolvedSettings:
    """`TrainSettings` of one run with the experiment, the preset and the device filled in."""

    data: Path
    output: Path
    model: str
    chat_template: str | None
    experiment: str
    learning_rate: float
    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    lora_r: int
    num_train_epochs: float
    lora_alpha: int
    lora_dropout: float
    lora_target_modules: str | list[str]
    init_lora_weights: str
    use_rslora: bool
    use_dora: bool
    loraplus_lr_ratio: float
    neftune_noise_alpha: float
    quantize: str
    optim: str
    lr_scheduler_type: str
    warmup_steps: float
    weight_decay: float
    max_length: int
    max_steps: int
    max_train_rows: int
    max_validation_rows: int
    packing: bool
    padding_free: bool
    gradient_checkpointing: bool
    use_liger_kernel: bool
    torch_compile: bool
    evaluations_per_epoch: int
    early_stopping_patience: int
    logging_steps: int
    report_to: str
    space_id: str | None
    seed: int

    @property
    def rows_a_step(self) -> int:
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    def as_json(self) -> dict[str, Any]:
        """Return the settings as JSON values; of paths only the last part, no machine's folders."""
        return {key: value.name if isinstance(value, Path) else value for key, value in asdict(self).items()}


def load_experiments(path: Path = ASSETS / "experiments.yaml") -> dict[str, dict[str, Any]]:
    """Return the experiments by name: settings of `TrainSettings` by their names.

    Raises `UserError` for a file that cannot be read, is no table, or holds an unknown key or a value of a wrong kind.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--experiments {path} cannot be read: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise UserError(f"--experiments {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not all(isinstance(row, dict) for row in content.values()):
        raise UserError(f"--experiments {path} must hold `name: {{learning_rate: 2.0e-4, …}}` lines.")
    allowed = [field.name for field in fields(ResolvedSettings) if field.name not in ("data", "output", "experiment")]
    for name, row in content.items():
        if (
            name in (ALL_EXPERIMENTS, BEST)
            or not str(name).replace("-", "").replace("_", "").replace(".", "").isalnum()
        ):
            raise UserError(f"--experiments {path}: {name!r} cannot be the name of a folder: use letters and dashes.")
        for key in row:
            if key not in allowed:
                raise UserError(f"--experiments {path}, {name}: unknown {key!r}{_nearest(key, allowed)}.")
            if isinstance(row[key], str) and key in EXPERIMENT_KEYS:  # PyYAML reads 2e-4 as text
                try:
                    row[key] = float(row[key])
                except ValueError as error:
                    raise UserError(
                        f"--experiments {path}, {name}: {key} must be a number, not {row[key]!r}."
                    ) from error
    return {str(name): row for name, row in content.items()}


def resolve_settings(settings: TrainSettings, preset: Preset, cuda_memory_gib: float | None) -> list[ResolvedSettings]:
    """Return the runs that `settings` asks for: one, or with `experiment="all"` one for each experiment.

    Command line > experiment > preset for the device's memory > default. `cuda_memory_gib` is None on a CPU. Rows a
    step stay the experiment's: a device that holds fewer accumulates. Raises `UserError` for an unknown experiment, a
    missing folder or a value out of range.
    """
    if settings.data is None or settings.output is None:
        raise UserError(f"--{'data' if settings.data is None else 'output'} is missing: give the folder.")
    experiments = load_experiments(settings.experiments)
    if settings.experiment == ALL_EXPERIMENTS:
        return [
            _resolve(settings, name, row, settings.output / name, preset, cuda_memory_gib)
            for name, row in experiments.items()
        ]
    if settings.experiment not in experiments:
        nearest = _nearest(settings.experiment, [*experiments, ALL_EXPERIMENTS])
        raise UserError(f"Unknown experiment {settings.experiment!r}{nearest}.")
    row = experiments[settings.experiment]
    return [_resolve(settings, settings.experiment, row, settings.output, preset, cuda_memory_gib)]


def _resolve(
    settings: TrainSettings,
    experiment: str,
    row: Mapping[str, Any],
    output: Path,
    preset: Preset,
    cuda_memory_gib: float | None,
) -> ResolvedSettings:
    values = {key: value for key, value in vars(settings).items() if key not in COMMANDS}
    defaults = {field.name: field.default for field in fields(TrainSettings)}
    # An option that was given, even with its default, is not told from one that was not: the experiment then wins.
    values.update({key: value for key, value in row.items() if values[key] == defaults[key]})
    values.update(output=output, experiment=experiment)
    for key in EXPERIMENT_KEYS:
        if values[key] is None:
            raise UserError(f"Experiment {experiment} has no {key}: add it, or give --{key.replace('_', '-')}.")

    cuda = cuda_memory_gib is not None
    limits = preset.training_limits(cuda_memory_gib) if cuda_memory_gib is not None else {}
    given_batch = settings.per_device_train_batch_size is not None
    rows_a_step = int(values["per_device_train_batch_size"])
    if not given_batch:
        values["per_device_train_batch_size"] = min(rows_a_step, limits.get("per_device_train_batch_size", rows_a_step))
    if values["gradient_accumulation_steps"] is None:
        values["gradient_accumulation_steps"] = max(1, rows_a_step // max(1, values["per_device_train_batch_size"]))
    values["max_length"] = values["max_length"] or limits.get("max_length", 512)
    values["lora_alpha"] = values["lora_alpha"] or 2 * int(values["lora_r"])
    if values["quantize"] == "auto":
        values["quantize"] = "nf4" if cuda else "none"
    if values["optim"] == "auto":
        # Paged 8-bit AdamW is QLoRA's; it cannot work on the flat parameters of FSDP.
        paged = cuda and values["quantize"] == "nf4" and not launched_with("FSDP")
        values["optim"] = "paged_adamw_8bit" if paged else "adamw_torch_fused"
    if values["lora_target_modules"] == "attention":
        values["lora_target_modules"] = ATTENTION_PROJECTIONS
    if values["padding_free"] is None:
        values["padding_free"] = cuda
    if values["use_liger_kernel"] is None:
        values["use_liger_kernel"] = cuda and find_spec("liger_kernel") is not None
    if values["report_to"] == "auto":
        values["report_to"] = "trackio" if find_spec("trackio") else "none"
    values["gradient_checkpointing"] = values["gradient_checkpointing"] and cuda
    resolved = ResolvedSettings(**values)
    _check(resolved)
    return resolved


def _check(settings: ResolvedSettings) -> None:
    positive = ("max_length", "logging_steps", "evaluations_per_epoch", "lora_alpha", "gradient_accumulation_steps")
    for key in (*EXPERIMENT_KEYS, *positive):
        if getattr(settings, key) <= 0:
            raise UserError(f"--{key.replace('_', '-')} must be above 0, not {getattr(settings, key)}.")
    if not 0 <= settings.lora_dropout < 1:
        raise UserError(f"--lora-dropout must be from 0 to below 1, not {settings.lora_dropout}.")
    for key in ("warmup_steps", "weight_decay", "neftune_noise_alpha", "early_stopping_patience", "max_train_rows"):
        if getattr(settings, key) < 0:
            raise UserError(f"--{key.replace('_', '-')} must be 0 or more, not {getattr(settings, key)}.")
    if settings.loraplus_lr_ratio < 1:
        raise UserError(f"--loraplus-lr-ratio must be 1 or more, not {settings.loraplus_lr_ratio}.")
    if settings.init_lora_weights.startswith("pissa") and settings.quantize == "nf4":
        raise UserError("PiSSA starts from unquantized weights: add --quantize none, or leave out --init-lora-weights.")
    if settings.space_id and settings.report_to != "trackio":
        raise UserError("--space-id is trackio's: install trackio and use --report-to trackio.")


def _nearest(name: str, names: list[str]) -> str:
    """Return ": did you mean …?" or the list of names."""
    close = get_close_matches(str(name), names, n=1)
    return f": did you mean {close[0]}?" if close else f": use one of {', '.join(names)}"
