"""Fine-tune a small chat model on medical questions and answers (LoRA, or QLoRA with --quantize nf4).

    python train.py --data data/wikidoc --output runs/baseline
    python train.py --data data/wikidoc --output runs/sweep --experiment all
    python train.py --data data/wikidoc --output runs/tiny --model tinyllama-1.1b --push-to-hub user/name
    python train.py --data data/wikidoc --output runs/big --model llama-3.1-8b --dry-run --memory-gib 24
    python train.py --publish runs/tiny --gate none

Reads the folder of data_prep.py. Writes the adapter folder: adapter_config.json, adapter_model.safetensors (PEFT),
adapter.gguf (llama.cpp), prompt.json, training.json (settings, data, versions, losses), loss.png and README.md (model
card). With --experiment all: one such folder for each experiment, report.md, and the best one again as OUTPUT/best.
Options are fields of TRL's SFTConfig and PEFT's LoraConfig under their names, and ours for what they lack. What the
command line gives wins over --config FILE, that over the experiment, that over the defaults; options without a text
have TRL's own default. Ctrl-C, SIGTERM and a crash leave a checkpoint; the same command with --resume goes on from it.
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
from medical_assistant.settings import read_options
from medical_assistant.training.settings import (
    ALL_EXPERIMENTS,
    CHECKPOINTS,
    OPTIONS,
    Run,
    TrainSettings,
    check_folders,
    own_settings,
    plan_runs,
)


def main(argv: Sequence[str] | None = None) -> int:
    given = read_options(OPTIONS, argv, __doc__)
    asked = own_settings(given)
    if asked.publish:
        from medical_assistant.evaluation.gate import find_gate
        from medical_assistant.publish.adapter import finish_publishing

        print(f"published: {finish_publishing(asked.publish, asked.push_to_hub, find_gate(asked.gate))}")
        return 0
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of a kernel that a CPU does not need
    preset = find_preset(asked.model)
    check_folders(asked)  # before what takes seconds to import

    import torch
    from accelerate import PartialState

    from medical_assistant.training.estimate import cuda_memory

    # Before any model is loaded: it chooses this process's GPU where `accelerate launch` started several.
    state = PartialState(cpu=not torch.cuda.is_available())
    runs = plan_runs(given, preset, asked.memory_gib or cuda_memory())
    if not asked.dry_run:
        check_goals(asked, preset)
    sweep = asked.experiment == ALL_EXPERIMENTS
    for number, run in enumerate(runs, 1):
        if sweep and state.is_main_process:
            print(f"\n== experiment {number} of {len(runs)}: {run.settings.experiment}")
        train(run, preset, asked, sweep)
    if state.is_main_process and not asked.dry_run:
        finish(runs, preset, asked, sweep)
    state.destroy_process_group()
    return 0


def finish(runs: Sequence[Run], preset: Preset, asked: TrainSettings, sweep: bool) -> None:
    """Compare the runs of a sweep, merge and publish the best adapter, as `asked` says."""
    folder = runs[0].output
    if sweep:
        from medical_assistant.training.sweep import write_sweep

        folder, text = write_sweep(runs[0].output.parent, {run.settings.experiment: run.output for run in runs})
        print(f"\n{text}")
    if asked.merge != "none":
        from medical_assistant.publish.merging import merge_adapter

        print(f"merged: {merge_adapter(folder, preset, asked.merge.upper())}")
    if asked.push_to_hub:
        from medical_assistant.evaluation.gate import find_gate
        from medical_assistant.publish.adapter import publish_adapter

        url = publish_adapter(
            folder,
            asked.push_to_hub,
            merged=asked.merge != "none",
            gate=find_gate(asked.gate),
            evaluate=lambda: evaluate(folder, runs[0]),
        )
        print(f"published: {url}")


def evaluate(folder: Path, run: Run) -> None:
    """Compare the adapter in `folder` with its base, into its metrics.json, calibration.json and card."""
    from medical_assistant.evaluation.results import evaluate_adapter
    from medical_assistant.training.record import reset_peak_memory

    reset_peak_memory()  # also frees what the training leaves on a GPU
    print(f"evaluating {folder} for the gate (--gate none publishes without)", flush=True)
    engine = "auto" if (folder / GGUF_FILE).is_file() else "transformers"  # llama.cpp cannot load a DoRA
    evaluate_adapter(folder, run.data, run.settings.model, engine)
    write_card(folder)


def check_goals(asked: TrainSettings, preset: Preset) -> None:
    """Raise `UserError` now for what would fail after hours: a wrong repository, no token, a gate that cannot be
    checked, no base GGUF to merge."""
    if asked.push_to_hub:
        from medical_assistant.evaluation.gate import find_gate
        from medical_assistant.hub.push import require_token, split_revision

        find_gate(asked.gate)
        split_revision(asked.push_to_hub)
        require_token()
    if asked.merge != "none":
        from medical_assistant.publish.merging import check_merge

        check_merge(preset, asked.merge.upper())


def train(run: Run, preset: Preset, asked: TrainSettings, sweep: bool) -> None:
    """Train one adapter into `run.output`. In a sweep, skip a finished one and go on with an interrupted one."""
    from accelerate import PartialState

    from medical_assistant.models import loading
    from medical_assistant.training import data as training_data
    from medical_assistant.training import preflight, record

    state = PartialState()
    sha256 = training_data.data_hash(run.data)
    if sweep and record.is_finished(run, sha256):
        if state.is_main_process:
            print(f"already finished: {run.output}")
        return
    # The other processes may already find what the main one has written.
    if state.is_main_process and not asked.resume and not (sweep and (run.output / CHECKPOINTS).is_dir()):
        check_new_folder(run.output)
    tokenizer = loading.load_tokenizer(preset, run.settings.chat_template)
    with state.main_process_first():  # the others find its rows in the cache
        data = training_data.load_training_data(run, tokenizer)
    if state.is_main_process:
        print(preflight.check_run(run, preset, tokenizer, data, asked.memory_gib, sys.stdout.isatty()))
    if asked.dry_run:
        return

    from medical_assistant.training import trainer as training

    with state.main_process_first():
        resume = record.check_resume(run, sha256)
    if asked.resume and not resume and not sweep:
        raise UserError(f"There is no checkpoint in {run.output}: leave out --resume to start a run.")
    record.reset_peak_memory()
    with training.explained_failures(run):
        _ = run.trainer  # before the model: with DeepSpeed it decides how that is loaded
        model = loading.load_model(preset, run.settings.quantize)
        trainer = training.make_trainer(model, tokenizer, run, data)
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        record.write_adapter_folder(trainer, tokenizer, preset, run, data, resume)
    if state.is_main_process:
        write_card(run.output, asked.push_to_hub)
        print(f"adapter in {run.output}")
    state.wait_for_everyone()


if __name__ == "__main__":
    run_script(main)
