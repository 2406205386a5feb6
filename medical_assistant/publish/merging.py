"""An adapter merged into its base: whole weights, for programs that load no LoRA.

    python -m medical_assistant.publish.merging FOLDER [--gguf-type Q4_0]

Writes FOLDER/merged: Hugging Face safetensors with tokenizer and chat template, and the same weights as
one GGUF for llama.cpp and Ollama.

An adapter that was trained over NF4 (QLoRA) learnt beside the rounded weights, and is merged into the
exact ones here. Rounding the sum to 4 bits again would lose it: in the bundled adapter's v, o and up
projections the error of NF4 is 5.9 times what the adapter adds (root mean squares). The merged model is thus
not, to the last digit, the one whose loss was measured in QLoRA training, but the one that a server runs
which loads the adapter on an unquantised base. Evaluate on such a base what will be served merged.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medical_assistant.errors import AdapterError, EngineError, UserError, run_script
from medical_assistant.files import new_folder, read_json
from medical_assistant.models.adapter import WEIGHTS_FILE, Adapter, load_adapter
from medical_assistant.models.chat_templates import CHOSEN, end_of_answer
from medical_assistant.models.gguf_merged import GGUF_TYPES, write_merged_gguf
from medical_assistant.models.presets import Preset, find_preset


def merge_adapter(folder: Path, preset: Preset, gguf_type: str = "Q8_0") -> Path:
    """Return `folder/merged`, the adapter in `folder` merged into the weights of `preset`.

    The base is loaded in the precision of its own files, never in 4 bits; one that comes as a GGUF (the
    embedded model) is dequantised to float16. Every adapter that PEFT can merge will do, DoRA too. The
    folder appears when it is whole, and an earlier one is never overwritten.

    Raises `UserError` as `check_merge`, or when `folder/merged` exists, or when the base's GGUF is of
    another model; `AdapterError` for a broken adapter.
    """
    target = folder / "merged"
    if target.exists():
        raise UserError(f"{target} is there already: remove it to merge again.")
    base_gguf = check_merge(preset, gguf_type)
    adapter = load_adapter(folder, preset)
    with new_folder(target) as output:
        config, metadata = _write_weights(adapter, preset, output)
        metadata["general.name"] = f"{preset.name} {folder.resolve().name}"
        write_merged_gguf(output, config, base_gguf, output / f"merged-{gguf_type}.gguf", gguf_type, metadata)
    return target


def merged_ggufs(folder: Path) -> list[Path]:
    """Return the merged GGUF files of an adapter folder."""
    return sorted((folder / "merged").glob("merged-*.gguf"))


def check_merge(preset: Preset, gguf_type: str) -> Path:
    """Return the path of the base's own GGUF, downloaded where needed: ask before hours of training.

    Raises `UserError` for an unknown type, a base without a GGUF, or a Hub that fails.
    """
    from medical_assistant.engines.load import find_gguf

    if gguf_type not in GGUF_TYPES:
        raise UserError(f"Unknown GGUF type {gguf_type!r}: use one of {', '.join(GGUF_TYPES)}.")
    try:
        return find_gguf(preset)
    except EngineError as error:
        if preset.install:
            raise
        raise UserError(
            f"{preset.name} cannot be merged, there is no GGUF of it to take the tokenizer from: "
            "name one in assets/models.yaml, or leave out --merge."
        ) from error


def _write_weights(adapter: Adapter, preset: Preset, output: Path) -> tuple[Any, dict[str, str | int]]:
    """Return (the merged model's config, its GGUF's metadata) of the model written to `output` with its tokenizer."""
    import torch
    from peft import PeftModel
    from safetensors import safe_open

    from medical_assistant.models.loading import load_model, load_tokenizer, stop_tokens

    # Four bits and a float16 scale fit into float16; a Hub model says its own precision.
    model = load_model(preset, "none", torch.float16 if preset.embedded_gguf() else "auto")
    modules = {name for name, _ in model.named_modules()}
    with safe_open(adapter.folder / WEIGHTS_FILE, framework="numpy") as tensors:  # of one too many PEFT only warns
        trained = {key.removeprefix("base_model.model.").partition(".lora_")[0] for key in tensors.keys()}
    if lost := sorted(trained - modules):
        raise AdapterError(
            f"The base has no layer {lost[0]}: the adapter in {adapter.folder} belongs to another model."
        )
    try:
        merged = PeftModel.from_pretrained(model, str(adapter.folder)).merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError, KeyError) as error:  # of other shapes, or with values that are no numbers
        reason = " ".join(str(error).split())[:160]
        raise AdapterError(f"{adapter.name} cannot be merged ({reason}): train or download it again.") from error
    tokenizer = load_tokenizer(preset, adapter.chosen_template)
    # A template that was chosen for training is this model's own.
    tokenizer.chat_template = str(adapter.prompt["chat_template"]).removeprefix(CHOSEN)
    merged.generation_config.eos_token_id = sorted(stop_tokens(merged, tokenizer))
    merged.save_pretrained(output)
    tokenizer.save_pretrained(output)
    metadata: dict[str, str | int] = {"tokenizer.chat_template": tokenizer.chat_template}
    end = end_of_answer(tokenizer)
    if end is not None and end != tokenizer.eos_token_id:
        metadata["tokenizer.ggml.eot_token_id"] = end
    return merged.config, metadata


def main(argv: Sequence[str] | None = None) -> int:
    """Merge the adapter folder named on the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m medical_assistant.publish.merging",
        description="Write FOLDER/merged: merged weights and one GGUF.",
    )
    parser.add_argument("folder", type=Path, help="adapter folder, as train.py writes it")
    parser.add_argument("--model", help="base model (default: the one that the adapter names)")
    parser.add_argument("--gguf-type", default="Q8_0", choices=GGUF_TYPES)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args(argv)
    config = read_json(arguments.folder / "adapter_config.json")
    preset = find_preset(arguments.model or str(config.get("base_model_name_or_path")))
    sys.stdout.write(f"{merge_adapter(arguments.folder, preset, arguments.gguf_type)}\n")
    return 0


if __name__ == "__main__":
    run_script(main)
