"""Fine-tune a small chat model on medical questions and answers (LoRA, or QLoRA with --quantize nf4).

    python train.py --data data/wikidoc --output runs/baseline
    python train.py --data data/wikidoc --output runs/rank32 --experiment higher-rank
    python train.py --data data/wikidoc --output runs/tiny --model tinyllama-1.1b --push-to-hub user/name

Reads the folder of data_prep.py. Writes the adapter folder: adapter_config.json, adapter_model.safetensors (PEFT),
adapter.gguf (llama.cpp), prompt.json, training.json (settings, data, versions, losses) and README.md (model card).
Ctrl-C keeps a checkpoint in OUTPUT/checkpoints; --resume goes on from it.
"""

from __future__ import annotations

from collections.abc import Sequence

from medical_assistant.card import write_card
from medical_assistant.errors import UserError, run_script
from medical_assistant.outputs import check_new_folder
from medical_assistant.presets import find_preset
from medical_assistant.records import read_records
from medical_assistant.settings import parse_settings
from medical_assistant.training_settings import TrainSettings, resolve_settings


def main(argv: Sequence[str] | None = None) -> int:
    given = parse_settings(TrainSettings, argv, __doc__)
    preset = find_preset(given.model)
    train = read_records(given.data / "train.jsonl")
    validation = read_records(given.data / "validation.jsonl")
    if not given.resume:
        check_new_folder(given.output)

    import torch

    from medical_assistant import base_model, training

    settings = resolve_settings(given, torch.cuda.is_available())
    tokenizer = base_model.load_tokenizer(preset)
    train, long_train = training.fit_records(train[: settings.max_train_rows or None], tokenizer, settings.max_length)
    # The last rows choose the checkpoint, so that the first ones are left for `evaluate.py --limit`.
    validation, long_validation = training.fit_records(
        validation[-settings.max_validation_rows :], tokenizer, settings.max_length
    )
    rows = {"train_rows": len(train), "validation_rows": len(validation), "too_long": long_train + long_validation}
    print(f"{len(train):,} train and {len(validation):,} validation rows; {rows['too_long']} too long, left out")

    resume = training.check_resume(given.output / "checkpoints", settings)
    if given.resume and not resume:
        raise UserError(f"There is no checkpoint in {given.output}: leave out --resume to start a run.")
    model = base_model.load_model(preset, settings.quantize)
    trainer = training.make_trainer(model, tokenizer, settings, train, validation)
    trainer.model.print_trainable_parameters()
    trainer.train(resume_from_checkpoint=resume)

    training.write_adapter_folder(trainer, tokenizer, preset, settings, rows)
    write_card(given.output, given.push_to_hub)
    print(f"adapter in {given.output}")
    if given.push_to_hub:
        from medical_assistant.hub import push_adapter

        print(f"published: {push_adapter(given.output, given.push_to_hub)}")
    return 0


if __name__ == "__main__":
    run_script(main)
