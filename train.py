"""Fine-tune a small chat model on medical questions and answers (LoRA, or QLoRA with --quantize nf4).

    python train.py --data data/wikidoc --output runs/baseline
    python train.py --data data/wikidoc --output runs/sweep --experiment all
    python train.py --data data/wikidoc --output runs/tiny --model tinyllama-1.1b --push-to-hub user/name
    python train.py --data data/wikidoc --output runs/big --model llama-3.1-8b --dry-run --memory-gib 24
    python train.py --publish runs/tiny --gate none

Reads the folder of data_prep.py. Writes the adapter folder: adapter_config.json, adapter_model.safetensors (PEFT),
adapter.gguf (llama.cpp), prompt.json, training.json (settings, data, versions, losses), loss.png and README.md (model
card). With --experiment all: one such folder for each experiment, report.md, and the best one again as OUTPUT/best.
Ctrl-C, SIGTERM and a crash leave a checkpoint; the same command with --resume goes on from it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from medical_assistant.errors import UserError, run_script
from medical_assistant.files import check_new_folder
from medical_assistant.models.adapter import GGUF_FILE
from medical_assistant.models.presets import Preset, find_preset
from medical_assistant.publish.card import write_card
from medical_assistant.settings import parse_settings
from medical_assistant.training.settings import (
    ALL_EXPERIMENTS,
    ResolvedSettings,
    TrainSettings,
    resolve_settings,
)


def main(argv: Sequence[str] | None = None) -> int:
    given = parse_settings(TrainSettings, argv, __doc__)
    if given.publish:
        from medical_assistant.evaluation.gate import find_gate
        from medical_assistant.publish.adapter import finish_publishing

        print(f"published: {finish_publishing(given.publish, given.push_to_hub, find_gate(given.gate))}")
        return 0
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of a kernel that a CPU does not need
    preset = find_preset(given.model)
    if given.job and not given.dry_run:
        from medical_assistant.training.jobs import run_training_job

        return run_training_job(given, given.job)

    import torch
    from accelerate import PartialState

    from medical_assistant.training.preflight import cuda_memory

    # Before any model is loaded: it chooses this process's GPU where `accelerate launch` started several.
    state = PartialState(cpu=not torch.cuda.is_available())
    runs = resolve_settings(given, preset, given.memory_gib or cuda_memory())
    if not given.dry_run:
        check_goals(given, preset)
    sweep = given.experiment == ALL_EXPERIMENTS
    for number, settings in enumerate(runs, 1):
        if sweep and state.is_main_process:
            print(f"\n== experiment {number} of {len(runs)}: {settings.experiment}")
        train(settings, preset, given, sweep)
    if state.is_main_process and not given.dry_run:
        finish(runs, preset, given, sweep)
    state.destroy_process_group()
    return 0


def finish(runs: Sequence[ResolvedSettings], preset: Preset, given: TrainSettings, sweep: bool) -> None:
    """Compare the runs of a sweep, merge and publish the best adapter, as `given` asks for."""
    folder = runs[0].output
    if sweep:
        from medical_assistant.training.sweep import write_sweep

        folder, text = write_sweep(runs[0].output.parent, {run.experiment: run.output for run in runs})
        print(f"\n{text}")
    if given.merge != "none":
        from medical_assistant.publish.merging import merge_adapter

        print(f"merged: {merge_adapter(folder, preset, given.merge.upper())}")
    if given.push_to_hub:
        from medical_assistant.evaluation.gate import find_gate
        from medical_assistant.publish.adapter import publish_adapter

        url = publish_adapter(
            folder,
            given.push_to_hub,
            merged=given.merge != "none",
            gate=find_gate(given.gate),
            evaluate=lambda: evaluate(folder, runs[0]),
        )
        print(f"published: {url}")


def evaluate(folder: Path, settings: ResolvedSettings) -> None:
    """Compare the adapter in `folder` with its base, into its metrics.json, calibration.json and card."""
    from medical_assistant.evaluation.results import evaluate_adapter
    from medical_assistant.training.record import reset_peak_memory

    reset_peak_memory()  # also frees what the training leaves on a GPU
    print(f"evaluating {folder} for the gate (--gate none publishes without)", flush=True)
    engine = "auto" if (folder / GGUF_FILE).is_file() else "transformers"  # llama.cpp cannot load a DoRA
    evaluate_adapter(folder, settings.data, settings.model, engine)
    write_card(folder)


def check_goals(given: TrainSettings, preset: Preset) -> None:
    """Raise `UserError` now for what would fail after hours: a wrong repository, no token, a gate that cannot be
    checked, no base GGUF to merge."""
    if given.push_to_hub:
        from medical_assistant.evaluation.gate import find_gate
        from medical_assistant.hub.push import require_token, split_revision

        find_gate(given.gate)
        split_revision(given.push_to_hub)
        require_token()
    if given.merge != "none":
        from medical_assistant.publish.merging import check_merge

        check_merge(preset, given.merge.upper())


def train(settings: ResolvedSettings, preset: Preset, given: TrainSettings, sweep: bool) -> None:
    """Train one adapter into `settings.output`. In a sweep, skip a finished one and go on with an interrupted one."""
    from accelerate import PartialState

    from medical_assistant.models import loading
    from medical_assistant.training import arguments as training
    from medical_assistant.training import data as training_data
    from medical_assistant.training import preflight, record

    state = PartialState()
    sha256 = training_data.data_hash(settings.data)
    if sweep and record.is_finished(settings, sha256):
        if state.is_main_process:
            print(f"already finished: {settings.output}")
        return
    # The other processes may already find what the main one has written.
    if state.is_main_process and not given.resume and not (sweep and (settings.output / training.CHECKPOINTS).is_dir()):
        check_new_folder(settings.output)
    tokenizer = loading.load_tokenizer(preset, settings.chat_template)
    with state.main_process_first():  # the others find its rows in the cache
        data = training_data.load_training_data(settings, tokenizer)
    if state.is_main_process:
        print(preflight.check_run(settings, preset, tokenizer, data, given.memory_gib, sys.stdout.isatty()))
    if given.dry_run:
        return

    with state.main_process_first():
        resume = record.check_resume(settings, sha256)
    if given.resume and not resume and not sweep:
        raise UserError(f"There is no checkpoint in {settings.output}: leave out --resume to start a run.")
    record.reset_peak_memory()
    with training.explained_failures(settings):
        # Before the model: with DeepSpeed they decide how it is loaded.
        arguments = training.training_arguments(settings, len(data.train), loading.compute_dtype())
        model = loading.load_model(preset, settings.quantize)
        trainer = training.make_trainer(model, tokenizer, settings, data, arguments)
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        record.write_adapter_folder(trainer, tokenizer, preset, settings, data, resume)
    if state.is_main_process:
        write_card(settings.output, given.push_to_hub)
        print(f"adapter in {settings.output}")
    state.wait_for_everyone()


if __name__ == "__main__":
    run_script(main)
