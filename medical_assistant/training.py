"""Building blocks of `train.py`: data sets, trainer, and the adapter folder that it leaves behind."""

from __future__ import annotations

import json
import platform
import shutil
import signal
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medical_assistant.errors import UserError
from medical_assistant.lora_gguf import write_lora_gguf
from medical_assistant.presets import Preset
from medical_assistant.prompts import prompt_contract
from medical_assistant.records import Record, file_sha256

if TYPE_CHECKING:
    from medical_assistant.training_settings import ResolvedSettings

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "gguf")


def fit_records(records: list[Record], tokenizer: Any, max_length: int) -> tuple[list[Record], int]:
    """Return (records of at most `max_length` tokens, number left out).

    A row that is cut loses its end-of-sequence token, and a model that never sees it never stops.
    """
    kept = []
    for record in records:
        ids = tokenizer.apply_chat_template(record["prompt"] + record["completion"], return_dict=True)["input_ids"]
        if len(ids) <= max_length:
            kept.append(record)
    if not kept:
        raise UserError(f"Every record is longer than --max-length {max_length} tokens: raise it.")
    return kept, len(records) - len(kept)


def make_trainer(
    model: Any, tokenizer: Any, settings: ResolvedSettings, train: list[Record], validation: list[Record]
) -> Any:
    """Return TRL's `SFTTrainer` with a PEFT LoRA on `model`; the loss is over the completions only."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from medical_assistant.cpu_trainer import CpuSFTTrainer

    steps_an_epoch = -(-len(train) // (settings.batch_size * settings.gradient_accumulation_steps))
    total_steps = settings.max_steps if settings.max_steps > 0 else round(steps_an_epoch * settings.epochs)
    every = max(1, round(steps_an_epoch / settings.evaluations_per_epoch))
    cuda = torch.cuda.is_available()
    arguments = SFTConfig(
        output_dir=str(settings.output / "checkpoints"),
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.lr_scheduler_type,
        warmup_steps=round(settings.warmup_ratio * total_steps),
        weight_decay=settings.weight_decay,
        max_length=settings.max_length,
        completion_only_loss=True,
        # Batches of similar length: WikiDoc rows are 60-330 tokens, and padding costs as much as text.
        train_sampling_strategy="group_by_length",
        gradient_checkpointing=cuda and settings.gradient_checkpointing,
        use_cpu=not cuda,
        optim="paged_adamw_8bit" if cuda and settings.quantize == "nf4" else "adamw_torch_fused",
        bf16=model.dtype == torch.bfloat16,
        fp16=model.dtype == torch.float16,
        seed=settings.seed,
        data_seed=settings.seed,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        logging_steps=settings.logging_steps,
        report_to=settings.report_to,
        dataloader_pin_memory=cuda,
    )
    lora = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=settings.target_modules,
        task_type="CAUSAL_LM",
    )
    columns = ("prompt", "completion")
    trainer_class = SFTTrainer if cuda else CpuSFTTrainer
    return trainer_class(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list([{c: record[c] for c in columns} for record in train]),
        eval_dataset=Dataset.from_list([{c: record[c] for c in columns} for record in validation]),
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=[_stop_callback()],
    )


def _stop_callback() -> Any:
    """Return a callback that turns Ctrl-C into: finish the step, save a checkpoint, stop."""
    from transformers import TrainerCallback

    class StopCallback(TrainerCallback):
        interrupted = False

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            signal.signal(signal.SIGINT, self._interrupt)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if self.interrupted:
                control.should_save = control.should_training_stop = True

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if self.interrupted:
                raise KeyboardInterrupt

        def _interrupt(self, signum: int, frame: object) -> None:
            if self.interrupted:  # a second Ctrl-C does not wait for the step
                raise KeyboardInterrupt
            self.interrupted = True

    return StopCallback()


def check_resume(checkpoints: Path, settings: ResolvedSettings) -> bool:
    """Return whether there is a checkpoint to resume from; remember the settings of a new run.

    Raises `UserError` when the checkpoints were made with other settings.
    """
    record = checkpoints / "settings.json"
    wanted = settings.as_json()
    if record.is_file():
        found = json.loads(record.read_text(encoding="utf-8"))
        changed = sorted(key for key in wanted if found.get(key) != wanted[key])
        if changed:
            raise UserError(
                f"--resume with other settings ({', '.join(changed)}): use the run's own, or a new --output."
            )
        return any(checkpoints.glob("checkpoint-*/trainer_state.json"))
    checkpoints.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
    return False


def write_adapter_folder(
    trainer: Any, tokenizer: Any, preset: Preset, settings: ResolvedSettings, rows: Mapping[str, int]
) -> None:
    """Write the adapter folder of the design into `settings.output` and remove the checkpoints."""
    import torch

    folder = settings.output
    model = trainer.model
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(torch.float16)
    model.peft_config["default"].base_model_name_or_path = preset.repository
    model.peft_config["default"].revision = preset.revision
    model.save_pretrained(folder, save_embedding_layers=False)
    write_lora_gguf(folder, model.config)
    special_tokens = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token}
    _write_json(folder / "prompt.json", prompt_contract(tokenizer.chat_template, special_tokens))
    _write_json(folder / "training.json", training_record(trainer, preset, settings, rows))
    shutil.rmtree(folder / "checkpoints")


def training_record(
    trainer: Any, preset: Preset, settings: ResolvedSettings, rows: Mapping[str, int]
) -> dict[str, Any]:
    """Return the content of `training.json`: what was trained, on what, with what result."""
    manifest_path = settings.data / "manifest.json"
    manifest = json.loads(manifest_path.read_text(encoding="utf-8")) if manifest_path.is_file() else {}
    history = trainer.state.log_history
    evaluations = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    summary: dict[str, Any] = next((entry for entry in reversed(history) if "train_runtime" in entry), {})
    parameters = list(trainer.model.parameters())
    keys = ("step", "epoch", "loss", "eval_loss", "learning_rate")
    return {
        "experiment": settings.experiment,
        "model": preset.repository,
        "settings": settings.as_json(),
        "data": {
            "source": manifest.get("source", {}).get("name", settings.data.name),
            "revision": manifest.get("source", {}).get("revision"),
            "license": manifest.get("license", "unknown"),
            "attribution": manifest.get("attribution", ""),
            "manifest_sha256": file_sha256(manifest_path) if manifest else None,
            **rows,
        },
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        # 4-bit weights hold two values a byte; get_nb_trainable_parameters of PEFT knows.
        "total_parameters": trainer.model.get_nb_trainable_parameters()[1],
        "steps": trainer.state.global_step,
        "train_loss": summary.get("train_loss"),
        "validation_loss": min(evaluations, default=None),
        "minutes": round(summary.get("train_runtime", 0.0) / 60, 2),
        "hardware": platform.processor() or platform.machine(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "history": [{k: entry[k] for k in keys if k in entry} for entry in history if "train_runtime" not in entry],
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
