"""Loading a base model and its tokenizer with `transformers`, for training."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from medical_assistant.errors import UserError
from medical_assistant.presets import Preset


def load_tokenizer(preset: Preset) -> Any:
    """Return the tokenizer, with a pad token. Raises `UserError` when it cannot be loaded or has no chat template."""
    from transformers import AutoTokenizer

    gguf = preset.embedded_gguf()
    try:
        if gguf:
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        else:
            tokenizer = AutoTokenizer.from_pretrained(preset.repository, revision=preset.revision)
    except (OSError, ValueError) as error:
        raise _load_error(preset, error) from error
    if tokenizer.chat_template is None:
        raise UserError(f"{preset.name} has no chat template: choose an instruction-tuned (chat) model.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # the loss mask comes from the record, not from the pad token
    return tokenizer


def load_model(preset: Preset, quantize: str) -> Any:
    """Return the causal language model in the best dtype of the device; `quantize` is "nf4" or "none".

    NF4 with double quantisation is QLoRA's (Dettmers et al. 2023, arXiv:2305.14314), through
    bitsandbytes on CUDA and on the CPU. A GGUF is dequantised, so training starts from exactly the
    weights that are served. Raises `UserError` when the model cannot be had.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GgufConfig

    dtype = compute_dtype()
    gguf = preset.embedded_gguf()
    try:
        if gguf:
            model = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, dtype=dtype, quantization_config=GgufConfig(dequantize=True)
            )
        if quantize == "none":
            if not gguf:
                model = AutoModelForCausalLM.from_pretrained(preset.repository, revision=preset.revision, dtype=dtype)
            return model
        nf4 = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        if not gguf:
            return AutoModelForCausalLM.from_pretrained(
                preset.repository, revision=preset.revision, dtype=dtype, quantization_config=nf4
            )
        # transformers quantises only while loading, and one format at a time: GGUF -> folder -> NF4.
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, quantization_config=nf4)
    except (OSError, ValueError) as error:
        raise _load_error(preset, error) from error


def compute_dtype() -> Any:
    """Return the torch dtype to compute in: bfloat16 where the device has it, float16 on older GPUs."""
    import torch

    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    # bfloat16 without hardware support is slower than float32 on a CPU.
    return torch.bfloat16 if _cpu_has_bf16() else torch.float32


def _cpu_has_bf16() -> bool:
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False  # not Linux


def _load_error(preset: Preset, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()[0]
    fix = f"run `{preset.install}`" if preset.install else "check the name, the network and HF_TOKEN"
    return UserError(f"Model {preset.name} cannot be loaded ({reason}): {fix}.")
