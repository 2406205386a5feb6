"""What a finished run leaves behind: the adapter folder, and training.json with everything to repeat it."""

from __future__ import annotations

import gc
import os
import platform
import re
import resource
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from medical_assistant.errors import UserError
from medical_assistant.files import file_sha256, git_commit, package_versions, read_json, write_json
from medical_assistant.models.gguf_lora import write_lora_gguf
from medical_assistant.models.presets import Preset
from medical_assistant.plotting import write_loss_plot
from medical_assistant.prompts import prompt_contract
from medical_assistant.training.data import TrainingData
from medical_assistant.training.settings import CHECKPOINTS, INITIAL_ADAPTER, WHOLE, Run

PACKAGES = (
    "torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "gguf", "liger-kernel", "trackio",
)  # fmt: skip
HISTORY_KEYS = ("step", "epoch", "loss", "eval_loss", "learning_rate")
NEW_RUN = ("output", "report_to", "space_id", "logging_steps")  # may change when a run is resumed


def check_resume(run: Run, sha256: str) -> Path | None:
    """Return the newest whole checkpoint of the run, or None; note the settings and the data of a new run.

    `sha256` is that of the data. Raises `UserError` when the checkpoints were made with other settings or other data.
    """
    from transformers.trainer_utils import get_last_checkpoint

    checkpoints = run.output / CHECKPOINTS
    record = checkpoints / "settings.json"
    if not record.is_file():
        checkpoints.mkdir(parents=True, exist_ok=True)
        write_json(record, {**run.as_json(), "data_sha256": sha256})
        return None
    found = read_json(record)
    if found.pop("data_sha256") != sha256:
        raise UserError(
            f"The rows in {run.data} are not those that {run.output} was trained on: give that folder, or a new "
            "--output."
        )
    if changed := _changed(run, found):
        raise UserError(f"--resume with other settings ({', '.join(changed)}): use the run's own, or a new --output.")
    for folder in checkpoints.glob("checkpoint-*"):
        if not (folder / WHOLE).is_file():
            shutil.rmtree(folder, ignore_errors=True)
    last = get_last_checkpoint(str(checkpoints))
    return Path(last) if last else None


def is_finished(run: Run, sha256: str) -> bool:
    """Return whether `run.output` holds this very run, whole. Raises `UserError` when it holds another."""
    path = run.output / "training.json"
    if not path.is_file() or (run.output / CHECKPOINTS).is_dir():
        return False
    record = read_json(path)
    changed = _changed(run, record["settings"])
    if record["data"].get("sha256") != sha256:
        changed.append("data")
    if changed:
        raise UserError(f"{run.output} holds another run ({', '.join(changed)} differ): choose another --output.")
    return True


def _changed(run: Run, found: dict[str, Any]) -> list[str]:
    """Return the settings that are not as in the record of an earlier start, without those that may change."""
    wanted = run.as_json()
    return sorted(key for key in {*wanted, *found} - {*NEW_RUN} if found.get(key) != wanted.get(key))


def write_adapter_folder(
    trainer: Any, tokenizer: Any, preset: Preset, run: Run, data: TrainingData, resume: Path | None = None
) -> None:
    """Write the adapter folder of the design into `run.output` and remove the checkpoints.

    Every process calls it, since the weights may be split over them; the main one writes.
    """
    import torch

    folder = run.output
    # model_wrapped: the DeepSpeed engine or the FSDP module, where there is one.
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if not trainer.accelerator.is_main_process:
        return
    weights = {name: weight.to(torch.float16) for name, weight in weights.items() if "lora_" in name}
    model = trainer.accelerator.unwrap_model(trainer.model)
    model.peft_config["default"].base_model_name_or_path = preset.repository
    model.peft_config["default"].revision = preset.revision
    options: dict[str, Any] = {"state_dict": weights}
    if run.values["init_lora_weights"].startswith("pissa"):  # PEFT takes the start off the model's own weights
        options = {"path_initial_model_for_weight_conversion": str(folder / CHECKPOINTS / INITIAL_ADAPTER)}
    model.save_pretrained(folder, save_embedding_layers=False, **options)
    if not run.lora.use_dora:  # llama.cpp has no DoRA
        write_lora_gguf(folder, model.config)
    special_tokens = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token}
    write_json(folder / "prompt.json", prompt_contract(tokenizer.chat_template, special_tokens))
    trainable_parameters = sum(weight.numel() for weight in weights.values())
    record = training_record(trainer, preset, run, data, trainable_parameters, resume)
    write_loss_plot({run.settings.experiment: record["history"]}, folder / "loss.png")
    write_json(folder / "training.json", record)
    shutil.rmtree(folder / CHECKPOINTS)


def training_record(
    trainer: Any, preset: Preset, run: Run, data: TrainingData, trainable_parameters: int, resume: Path | None
) -> dict[str, Any]:
    """Return the content of `training.json`: what was trained, on what, with what, and with what result."""
    manifest_path = run.data / "manifest.json"
    manifest = read_json(manifest_path)
    history = trainer.state.log_history
    steps = [entry for entry in history if "train_runtime" not in entry]
    evaluations = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    summary: dict[str, Any] = next((entry for entry in reversed(history) if "train_runtime" in entry), {})
    minutes = summary.get("train_runtime", 0.0) / 60
    return {
        "experiment": run.settings.experiment,
        "model": preset.repository,
        "settings": run.as_json(),
        "data": {
            "source": manifest.get("source", {}).get("name", run.data.name),
            "revision": manifest.get("source", {}).get("revision"),
            "license": manifest.get("license", "unknown"),
            "attribution": manifest.get("attribution", ""),
            "manifest_sha256": file_sha256(manifest_path),
            "sha256": data.sha256,
            "train_rows": len(data.train),
            "validation_rows": len(data.validation),
            "too_long": data.too_long,
        },
        "trainable_parameters": trainable_parameters,
        # 4-bit weights hold two values a byte; get_nb_trainable_parameters of PEFT knows.
        "total_parameters": trainer.model.get_nb_trainable_parameters()[1],
        "steps": trainer.state.global_step,
        "train_loss": summary.get("train_loss"),
        # Of the last logged steps; of all where there were fewer steps than --logging-steps.
        "final_train_loss": next((e["loss"] for e in reversed(history) if "loss" in e), summary.get("train_loss")),
        "validation_loss": min(evaluations, default=None),
        "minutes": round(minutes, 3),  # since the last start
        "resumed_at_step": int(resume.name.rpartition("-")[2]) if resume else None,
        "peak_memory_gib": round(peak_memory(), 2),
        "hardware": hardware(trainer.args.world_size),
        "git_commit": git_commit(),
        "versions": package_versions(PACKAGES),
        "history": [{k: entry[k] for k in HISTORY_KEYS if k in entry} for entry in steps],
    }


def hardware(processes: int = 1) -> str:
    """Return the device's name, for instance "2 CPU cores, x86_64" or "2 x NVIDIA A100"."""
    import torch

    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        return f"{processes} x {name}" if processes > 1 else name
    return f"{os.cpu_count()} CPU cores, {platform.machine()}"


def peak_memory() -> float:
    """Return the most GiB that were in use since `reset_peak_memory`: of the CUDA device, or of this process."""
    import torch

    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated() / 2**30)
    with suppress(OSError):
        if found := re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text(encoding="utf-8")):
            return int(found[1]) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def reset_peak_memory() -> None:
    """Start the measurement of `peak_memory` anew, where the system can (CUDA, Linux)."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # proc(5): resets VmHWM
