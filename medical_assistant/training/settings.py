"""Settings of `train.py`: TRL's `SFTConfig` and PEFT's `LoraConfig` under their own names, ours for what they lack.

`read_options` gives what the user gave, `plan_runs` the runs: defaults < experiment < `--config` < command line, also
where the command line gives the value of a default. A `Run` makes the two configurations, once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from medical_assistant.errors import UserError
from medical_assistant.files import ASSETS
from medical_assistant.models.loading import compute_dtype, launched_with
from medical_assistant.models.presets import Preset
from medical_assistant.settings import Option, convert_values, did_you_mean, flag, options_of, read_yaml, setting

ALL_EXPERIMENTS = "all"
BEST = "best"  # folder of the best experiment's copy, beside those of the experiments
CHECKPOINTS, INITIAL_ADAPTER = "checkpoints", "initial-adapter"  # folders in a run's output, until it is finished
WHOLE = "whole"  # file in a checkpoint that was written to its end
EXPERIMENT_KEYS = ("learning_rate", "per_device_train_batch_size", "lora_r", "num_train_epochs")
# All attention projections of the Llama family; "all-linear" is PEFT's name for every linear layer.
ATTENTION_PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj"]


@dataclass(frozen=True)
class TrainSettings:
    """What neither `SFTConfig` nor `LoraConfig` has."""

    data: Path | None = setting(None, "folder made by data_prep.py")
    output: Path | None = setting(None, "new folder for the adapter; with --experiment all, for one folder a run")
    model: str = setting("smollm2-135m", "preset of assets/models.yaml, Hub id or folder")
    chat_template: str | None = setting(None, "template of assets/chat_templates or a file, for a model without one")
    experiment: str = setting("baseline", "row of the experiments, or all; the options below change it")
    experiments: Path = setting(ASSETS / "experiments.yaml", "YAML file with a table of experiments of your own")
    quantize: str = setting("auto", "4-bit base: auto is nf4 on CUDA, none on a CPU", ["auto", "nf4", "none"])
    loraplus_lr_ratio: float = setting(1.0, "learning rate of B over that of A; LoRA+ (arXiv:2402.12354) is 16")
    max_length: int | None = setting(None, "tokens a record; longer ones are left out, never cut (default: 512)")
    max_train_rows: int = setting(0, "train on the first N rows; 0 is all")
    max_validation_rows: int = setting(200, "last validation rows, whose loss chooses the checkpoint; 0 is all")
    evaluations_per_epoch: int = setting(2, "validation losses and checkpoints an epoch")
    early_stopping_patience: int = setting(0, "stop after N validation losses that were not the best; 0 is off")
    space_id: str | None = setting(None, "Space (user/name) that shows trackio's curves")
    resume: bool = setting(False, "go on from the last checkpoint in --output")
    dry_run: bool = setting(False, "check data, prompt, memory and time, then stop: no weights are loaded")
    memory_gib: float | None = setting(None, "plan for a CUDA device of this size (with --dry-run)")
    push_to_hub: str | None = setting(None, "publish the adapter as this Hub repository (user/name)")
    merge: str = setting("none", "also write merged weights and a merged GGUF of this type", ["none", "q8_0", "q4_0"])
    publish: Path | None = setting(None, "publish this finished folder, or finish a failed upload; trains nothing")
    gate: str = setting(
        "default", "thresholds an adapter must meet before --push-to-hub and --publish: YAML file; none: push without"
    )


# What says where a run goes, not what it is.
COMMANDS = ("experiments", "resume", "dry_run", "memory_gib", "push_to_hub", "merge", "publish", "gate")

# Fields of SFTConfig with this project's defaults. None: the experiment's, or as the device has it.
TRAINER = {
    "learning_rate": Option(float, None, "peak learning rate (default: the experiment's)"),
    "per_device_train_batch_size": Option(int, None, "rows a batch and device (default: the experiment's)"),
    "gradient_accumulation_steps": Option(int, None, "batches a step (default: what keeps the rows a step)"),
    "num_train_epochs": Option(float, None, "passes over the data (default: the experiment's)"),
    "max_steps": Option(int, -1, "stop after this many steps; -1 trains all epochs"),
    "optim": Option(str, "auto", "optimizer by transformers' name; auto is paged_adamw_8bit for nf4 on CUDA"),
    "lr_scheduler_type": Option(
        str, "cosine", "schedule of the learning rate", ["cosine", "linear", "constant", "constant_with_warmup"]
    ),
    "warmup_steps": Option(float, 0.03, "steps with a rising learning rate; below 1, a part of all steps"),
    "weight_decay": Option(float, 0.0, "weight decay of AdamW"),
    "neftune_noise_alpha": Option(float, 0.0, "noise on embeddings (NEFTune, arXiv:2310.05914); 5 is usual, 0 is off"),
    "packing": Option(bool, False, "fill each row of a batch to max_length with whole records (more rows a step)"),
    "padding_free": Option(bool, None, "batches without padding (default: on CUDA; a CPU groups by length)"),
    "gradient_checkpointing": Option(bool, True, "save GPU memory for time (never used on a CPU)"),
    "use_liger_kernel": Option(bool, None, "Liger's kernels (default: on CUDA when installed)"),
    "torch_compile": Option(bool, False, "compile the model first: minutes, worth it for long runs on CUDA"),
    "logging_steps": Option(int, 10, "steps between two logged losses"),
    "report_to": Option(
        str, "auto", "tracker; auto is trackio where installed", ["auto", "trackio", "tensorboard", "wandb", "none"]
    ),
    "seed": Option(int, 42, "seed of the weights and of the order of rows"),
}
# More of them, with TRL's own defaults. The rest of SFTConfig is decided here (checkpoints, evaluation, dtype, dataset
# columns) or would have no effect on a model that is loaded beforehand.
MORE_TRAINER = {
    name: Option(kind, None)
    for kind, names in {
        float: "adam_beta1 adam_beta2 adam_epsilon max_grad_norm",
        int: "dataloader_num_workers dataloader_prefetch_factor ddp_bucket_cap_mb ddp_timeout torch_empty_cache_steps",
        bool: "activation_offloading disable_tqdm full_determinism logging_first_step tf32",
        str: "gradient_checkpointing_kwargs optim_args packing_strategy project run_name torch_compile_backend "
        "torch_compile_mode",
    }.items()
    for name in names.split()
}
# Fields of LoraConfig, with TRL's prefix where PEFT's name is short (its command line does the same). Others, such as
# bias or modules_to_save, train weights that no adapter.gguf can hold.
LORA = {
    "lora_r": Option(int, None, "rank of the LoRA (default: the experiment's)"),
    "lora_alpha": Option(int, None, "scale of the LoRA (default: 2 x rank)"),
    "lora_dropout": Option(float, 0.0, "dropout of the LoRA, 0 to 1; it took 24 % of a step on two CPU cores"),
    "lora_target_modules": Option(str, "attention", "layers with a LoRA", ["attention", "all-linear"]),
    "init_lora_weights": Option(
        str,
        "default",
        "PEFT's start of the LoRA; pissa is arXiv:2404.02948",
        ["default", "gaussian", "pissa", "pissa_niter_16"],
    ),
    "use_rslora": Option(bool, False, "scale by alpha / sqrt(rank) (arXiv:2312.03732)"),
    "use_dora": Option(bool, False, "decompose into size and direction (arXiv:2402.09353); llama.cpp needs --merge"),
}
PEFT_NAMES = {"lora_r": "r", "lora_target_modules": "target_modules"}
OPTIONS: dict[str, Option] = {**options_of(TrainSettings), **TRAINER, **LORA, **MORE_TRAINER}


@dataclass(frozen=True)
class Run:
    """One training. `values` has every option of it, filled in for the experiment, the preset and the device."""

    values: Mapping[str, Any]

    @cached_property
    def settings(self) -> TrainSettings:
        """What is neither TRL's nor PEFT's."""
        return own_settings(self.values)

    @cached_property
    def lora(self) -> Any:
        """PEFT's `LoraConfig` (LoRA: Hu et al. 2021, arXiv:2106.09685)."""
        from peft import LoraConfig

        fields = {PEFT_NAMES.get(name, name): self.values[name] for name in LORA}
        if fields["init_lora_weights"] == "default":
            fields["init_lora_weights"] = True
        return LoraConfig(**fields, task_type="CAUSAL_LM")

    @cached_property
    def trainer(self) -> Any:
        """TRL's `SFTConfig`, without the steps between evaluations, which follow from the data.

        Raises `UserError` for values that TRL refuses.
        """
        import torch
        from trl import SFTConfig

        cuda, dtype = torch.cuda.is_available(), compute_dtype()
        given = {name: self.values.get(name) for name in (*TRAINER, *MORE_TRAINER)}
        fields = {name: value for name, value in given.items() if value is not None}
        packed = fields["padding_free"] or fields["packing"]
        ours = {
            "output_dir": str(self.output / CHECKPOINTS),
            "per_device_eval_batch_size": fields["per_device_train_batch_size"],
            "neftune_noise_alpha": fields["neftune_noise_alpha"] or None,
            # The rows are tokenised and none is too long; only packing still needs to know the length.
            "max_length": self.settings.max_length if fields["packing"] else None,
            "completion_only_loss": True,
            # Batches of similar length: WikiDoc rows are 60-330 tokens, and padding costs as much as text.
            "train_sampling_strategy": "random" if packed else "group_by_length",
            "use_cpu": not cuda,
            "bf16": dtype == torch.bfloat16,
            "fp16": dtype == torch.float16,
            "data_seed": fields["seed"],
            "eval_strategy": "steps",
            "eval_steps": 1,
            "save_strategy": "steps",
            "save_steps": 1,
            "save_total_limit": 2,
            "load_best_model_at_end": True,
            "metric_for_best_model": "eval_loss",
            "trackio_space_id": self.settings.space_id,
            "dataloader_pin_memory": cuda,
            "ddp_find_unused_parameters": False,  # every step uses every LoRA weight: no need to search
        }
        names = {"run_name": f"{self.output.name}-{self.settings.experiment}", "project": "medical-assistant"}
        try:
            return SFTConfig(**{**names, **fields, **ours})
        except (TypeError, ValueError) as error:
            raise UserError(f"TRL refuses these settings: {' '.join(str(error).split())}") from error

    @property
    def data(self) -> Path:
        return Path(self.values["data"])

    @property
    def output(self) -> Path:
        return Path(self.values["output"])

    @property
    def rows_a_step(self) -> int:
        """Rows that a device trains on in a step."""
        return int(self.values["per_device_train_batch_size"] * self.values["gradient_accumulation_steps"])

    def changed(self, **values: Any) -> Run:
        """Return this run with other values."""
        return Run({**self.values, **values})

    def as_json(self) -> dict[str, Any]:
        """Return what the run is as JSON values; of paths only the last part, no machine's folders."""
        kept = {key: value for key, value in self.values.items() if key not in COMMANDS}
        return {key: value.name if isinstance(value, Path) else value for key, value in kept.items()}


def own_settings(values: Mapping[str, Any]) -> TrainSettings:
    """Return those of `values` that are neither TRL's nor PEFT's, over the defaults."""
    return TrainSettings(**{name: values[name] for name in options_of(TrainSettings) if name in values})


def load_experiments(path: Path = ASSETS / "experiments.yaml") -> dict[str, dict[str, Any]]:
    """Return the experiments by name: values of `OPTIONS` by their names.

    Raises `UserError` for a file that cannot be read, is no table, or holds an unknown key or a value of a wrong kind.
    """
    allowed = {key: option for key, option in OPTIONS.items() if key not in (*COMMANDS, "data", "output", "experiment")}
    experiments = {}
    for name, row in read_yaml(path, "--experiments").items():
        where = f"--experiments {path}, {name}"
        if not isinstance(row, dict):
            raise UserError(f"{where}: must hold `name: {{learning_rate: 2.0e-4, …}}` lines.")
        if name in (ALL_EXPERIMENTS, BEST) or not re.fullmatch(r"[\w.-]*\w[\w.-]*", str(name)):
            raise UserError(f"{where}: cannot be the name of a folder: use letters and dashes.")
        experiments[str(name)] = convert_values(where, row, allowed)
    return experiments


def check_folders(settings: TrainSettings) -> Path:
    """Return the output folder. Raises `UserError` when it or the data folder was not given."""
    if settings.data is None or settings.output is None:
        raise UserError(f"--{'data' if settings.data is None else 'output'} is missing: give the folder.")
    return settings.output


def plan_runs(given: Mapping[str, Any], preset: Preset, cuda_memory_gib: float | None) -> list[Run]:
    """Return the runs that `given` (of `read_options`) asks for: one, or with `experiment="all"` one an experiment.

    Each value is the user's, else the experiment's, else the preset's for the device's memory, else the default.
    `cuda_memory_gib` is None on a CPU. Rows a step stay the experiment's: a device that holds fewer accumulates.
    Raises `UserError` for an unknown experiment, a missing folder or a value out of range.
    """
    settings = own_settings(given)
    output = check_folders(settings)
    experiments = load_experiments(settings.experiments)
    if settings.experiment == ALL_EXPERIMENTS:
        return [
            _plan_run({**given, "experiment": name, "output": output / name}, row, preset, cuda_memory_gib)
            for name, row in experiments.items()
        ]
    if settings.experiment not in experiments:
        nearest = did_you_mean(settings.experiment, [*experiments, ALL_EXPERIMENTS])
        raise UserError(f"Unknown experiment {settings.experiment!r}: {nearest}")
    return [_plan_run(given, experiments[settings.experiment], preset, cuda_memory_gib)]


def _plan_run(
    given: Mapping[str, Any], experiment: Mapping[str, Any], preset: Preset, cuda_memory_gib: float | None
) -> Run:
    defaults = {name: option.default for name, option in OPTIONS.items() if name not in MORE_TRAINER}
    values = {**defaults, **experiment, **given}
    for key in EXPERIMENT_KEYS:
        if values[key] is None:
            raise UserError(f"Experiment {values['experiment']} has no {key}: add it, or give {flag(key)}.")
    cuda = cuda_memory_gib is not None
    limits = preset.training_limits(cuda_memory_gib) if cuda_memory_gib is not None else {}
    rows_a_step = values["per_device_train_batch_size"]
    if given.get("per_device_train_batch_size") is None:
        values["per_device_train_batch_size"] = min(rows_a_step, limits.get("per_device_train_batch_size", rows_a_step))
    on_this_device = {
        "gradient_accumulation_steps": max(1, rows_a_step // max(1, values["per_device_train_batch_size"])),
        "max_length": limits.get("max_length", 512),
        "lora_alpha": 2 * values["lora_r"],
        "padding_free": cuda,
        "use_liger_kernel": cuda and find_spec("liger_kernel") is not None,
    }
    values.update({key: value for key, value in on_this_device.items() if values[key] is None})
    if values["quantize"] == "auto":
        values["quantize"] = "nf4" if cuda else "none"
    if values["optim"] == "auto":
        # Paged 8-bit AdamW is QLoRA's; it cannot work on the flat parameters of FSDP.
        paged = cuda and values["quantize"] == "nf4" and not launched_with("FSDP")
        values["optim"] = "paged_adamw_8bit" if paged else "adamw_torch_fused"
    if values["lora_target_modules"] == "attention":
        values["lora_target_modules"] = ATTENTION_PROJECTIONS
    if values["report_to"] == "auto":
        values["report_to"] = "trackio" if find_spec("trackio") else "none"
    values["gradient_checkpointing"] = values["gradient_checkpointing"] and cuda
    _check(values)
    return Run(values)


def _check(values: Mapping[str, Any]) -> None:
    above_0 = ("max_length", "logging_steps", "evaluations_per_epoch", "lora_alpha", "gradient_accumulation_steps")
    for key in (*EXPERIMENT_KEYS, *above_0, "memory_gib"):
        if values[key] is not None and not 0 < values[key] < math.inf:
            raise UserError(f"{flag(key)} must be above 0, not {values[key]}.")
    not_below_0 = ("warmup_steps", "weight_decay", "neftune_noise_alpha", "early_stopping_patience", "seed")
    for key in (*not_below_0, "max_train_rows", "max_validation_rows"):
        if not 0 <= values[key] < math.inf:
            raise UserError(f"{flag(key)} must be 0 or more, not {values[key]}.")
    if values["max_steps"] < 1 and values["max_steps"] != -1:
        raise UserError(f"--max-steps must be above 0, or -1 for all epochs, not {values['max_steps']}.")
    if not 0 <= values["lora_dropout"] < 1:
        raise UserError(f"--lora-dropout must be from 0 to below 1, not {values['lora_dropout']}.")
    if not 1 <= values["loraplus_lr_ratio"] < math.inf:
        raise UserError(f"--loraplus-lr-ratio must be 1 or more, not {values['loraplus_lr_ratio']}.")
    if values["init_lora_weights"].startswith("pissa") and values["quantize"] == "nf4":
        raise UserError("PiSSA starts from unquantized weights: add --quantize none, or leave out --init-lora-weights.")
    if values["space_id"] and values["report_to"] != "trackio":
        raise UserError("--space-id is trackio's: install trackio and use --report-to trackio.")
