"""Loading a base model and its tokenizer with `transformers`: for training, serving, scoring and merging."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medical_assistant.errors import EngineError, UserError
from medical_assistant.models.chat_templates import (
    end_of_answer,
    find_chat_template,
    set_chat_template,
    tokenize_as_llama_cpp,
)
from medical_assistant.models.presets import Preset

if TYPE_CHECKING:
    import torch


def load_tokenizer(preset: Preset, chat_template: str | None = None) -> Any:
    """Return the tokenizer, with a pad token and the chat template that training uses.

    `chat_template` is a name in assets/chat_templates, a file, or the `chosen_template` of an adapter; without
    it the preset's counts, then the model's own. Raises `UserError` when the tokenizer cannot be loaded or the
    template does not serve (see `chat_templates.set_chat_template`).
    """
    name = chat_template or preset.chat_template
    chosen = find_chat_template(name) if name else None
    tokenizer = read_tokenizer(preset)
    set_chat_template(tokenizer, chosen, preset.name)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # the loss mask comes from the record, not from the pad token
    return tokenizer


def read_tokenizer(preset: Preset) -> Any:
    """Return the tokenizer with the chat template that the model brings, if any. Raises as `load_model`."""
    from transformers import AutoTokenizer

    source, arguments = _source(preset)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **arguments)
    except (OSError, ValueError) as error:
        raise _load_error(preset, error) from error
    tokenize_as_llama_cpp(tokenizer)
    return tokenizer


def stop_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return the ids that end an answer: the model's own, and the chat template's (Gemma's turns end with no EOS)."""
    ends = model.generation_config.eos_token_id
    ids = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id, end_of_answer(tokenizer)}
    return frozenset(ids - {None})


def load_model(preset: Preset, quantize: str, dtype: torch.dtype | str | None = None) -> Any:
    """Return the causal language model in `dtype`; `quantize` is "nf4" or "none".

    `dtype`: by default the device's best for training; "auto" is that of the model's own files. NF4 with double
    quantisation is QLoRA's (Dettmers et al. 2023, arXiv:2305.14314), through bitsandbytes on CUDA and on the CPU. A
    GGUF is dequantised, so training starts from exactly the weights that are served.

    Raises `EngineError` when the model cannot be had, `UserError` when the launcher of several GPUs cannot have NF4.
    """
    from transformers import AutoModelForCausalLM, GgufConfig

    dtype = dtype or compute_dtype()
    if quantize == "nf4" and launched_with("DEEPSPEED"):
        raise UserError("DeepSpeed ZeRO-3 cannot split 4-bit weights: add --quantize none, or use fsdp_qlora.yaml.")
    if quantize == "nf4" and launched_with("FSDP") and str(dtype) != "torch.bfloat16":
        raise UserError("FSDP with 4-bit weights needs GPUs with bfloat16: use ddp.yaml, or --quantize none.")
    nf4 = _nf4(dtype) if quantize == "nf4" else None
    source, arguments = _source(preset)

    def read(source: str | Path, quantization: Any, **arguments: Any) -> Any:
        # False, not nothing: without it transformers asks in the terminal whether to run a repository's own code.
        return AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, quantization_config=quantization, trust_remote_code=False, **arguments
        )

    try:
        if "gguf_file" not in arguments:
            return read(source, nf4, **arguments)
        model = read(source, GgufConfig(dequantize=True), **arguments)
        if nf4 is None:
            return model
        # transformers quantises only while loading, and one format at a time: GGUF -> folder -> NF4.
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            return read(folder, nf4)
    except (OSError, ValueError) as error:
        raise _load_error(preset, error) from error


def _source(preset: Preset) -> tuple[str | Path, dict[str, str]]:
    """Return what `from_pretrained` loads: (folder or Hub id, arguments that name the GGUF or the revision)."""
    gguf = preset.own_gguf or preset.embedded_gguf()
    if gguf:
        return gguf.parent, {"gguf_file": gguf.name}
    return preset.repository, {"revision": preset.revision} if preset.revision else {}


def _nf4(dtype: torch.dtype | str) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        # FSDP splits floats of one dtype only: 4-bit weights lie in bfloat16 words there, else in bytes.
        bnb_4bit_quant_storage=dtype if launched_with("FSDP") else None,
    )


def load_config(preset: Preset) -> Any:
    """Return the model's configuration: from the preset, the installed wheel or the Hub's config.json, no weights."""
    from transformers import AutoConfig

    if preset.architecture:
        fields = dict(preset.architecture)
        return AutoConfig.for_model(fields.pop("model_type"), **fields)
    source, arguments = _source(preset)
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False, **arguments)
    except (OSError, ValueError) as error:
        raise _load_error(preset, error) from error


def compute_dtype(name: str = "auto", *, decoding: bool = False) -> torch.dtype:
    """Return the torch dtype called `name`; "auto" is 16 bits where the device is faster with them, else float32.

    On a GPU: bfloat16, or float16 where it would only be emulated (a T4). On a CPU training needs bfloat16 in the
    hardware (AVX512-BF16), or float32 is faster. Decoding waits for memory, and bfloat16 halves what it reads: with
    AVX-512 alone, 21 against 15 tokens/s at 135M. Raises `UserError` for an unknown name.
    """
    import torch

    if name != "auto":
        dtype = getattr(torch, name, None)
        if not isinstance(dtype, torch.dtype):
            raise UserError(f"Unknown dtype {name!r}: use auto, float32, float16 or bfloat16.")
        return dtype
    if has_zero_gpu():  # no GPU yet while the model loads; those of ZeroGPU have bfloat16
        return torch.bfloat16
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    has_bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported if decoding else torch.cpu._is_avx512_bf16_supported
    return torch.bfloat16 if has_bfloat16() else torch.float32


def has_zero_gpu() -> bool:
    """Return whether this is a Space on ZeroGPU, where a GPU is there only while a function asks for one."""
    return bool(os.environ.get("SPACES_ZERO_GPU"))


def launched_with(engine: str) -> bool:
    """Return whether `accelerate launch` started this process with a config of "FSDP" or "DEEPSPEED"."""
    return os.environ.get(f"ACCELERATE_USE_{engine}", "false").lower() == "true"


def _load_error(preset: Preset, error: Exception) -> EngineError:
    from huggingface_hub.errors import GatedRepoError

    if isinstance(error.__cause__, GatedRepoError) or isinstance(error, GatedRepoError):
        return EngineError(
            f"{preset.repository} asks for a licence to be accepted: open https://huggingface.co/{preset.repository}, "
            "accept it, then set HF_TOKEN or run `hf auth login`."
        )
    reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
    fix = f"run `{preset.install}`" if preset.install else "check the name, the network and HF_TOKEN"
    return EngineError(f"Model {preset.name} cannot be loaded ({reason}): {fix}.")
