"""A PEFT LoRA as a GGUF adapter, the form that llama.cpp loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medical_assistant.errors import UserError

if TYPE_CHECKING:
    import numpy

# GGUF architecture by `model_type` of the Hugging Face config. Mistral is a Llama there.
_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma2": "gemma2"}
_PREFIX = "base_model.model."


def write_lora_gguf(folder: Path, model_config: Any) -> Path:
    """Return the path of `folder/adapter.gguf`, written from the PEFT files in `folder`.

    `model_config` is the base model's `PretrainedConfig`. Tensors are stored in half precision under
    the names of llama.cpp's `convert_lora_to_gguf.py` (MIT): `blk.N.attn_q.weight.lora_a` (rank, in)
    and `.lora_b` (out, rank). For the Llama architecture the rows of `lora_b` of the q and k
    projections are permuted as llama.cpp permutes those weights (rotary pairs interleaved).

    Raises `UserError` for an architecture or a kind of adapter that llama.cpp cannot load.
    """
    import gguf
    import numpy
    from safetensors.numpy import load_file

    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    if config.get("use_dora") or config.get("modules_to_save"):
        raise UserError("llama.cpp cannot load DoRA or fully trained modules: train a plain LoRA for a GGUF.")
    architecture, names = gguf_names(model_config)
    rank, alpha = config["r"], config["lora_alpha"]
    # llama.cpp scales by alpha / rank; rsLoRA (arXiv:2312.03732) means alpha / sqrt(rank).
    scaled_alpha = alpha * rank**0.5 if config.get("use_rslora") else alpha

    path = folder / "adapter.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(scaled_alpha))
    for key, tensor in sorted(load_file(folder / "adapter_model.safetensors").items()):
        module, _, side = key.removeprefix(_PREFIX).rpartition(".lora_")
        name = names.get_name(module)
        if name is None or side not in ("A.weight", "B.weight"):
            raise UserError(f"llama.cpp has no place for the adapter tensor {key}: train attention or linear layers.")
        if side == "B.weight":
            tensor = gguf_rows(module, tensor, model_config)
        writer.add_tensor(f"{name}.weight.lora_{side[0].lower()}", numpy.ascontiguousarray(tensor, dtype=numpy.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_names(model_config: Any) -> tuple[str, Any]:
    """Return (architecture, gguf-py's map from Hugging Face tensor names) of a base model's `PretrainedConfig`.

    Raises `UserError` for an architecture that this module cannot write.
    """
    import gguf

    if model_config.model_type not in _ARCHITECTURES:
        raise UserError(f"No GGUF for architecture {model_config.model_type}: use one of {list(_ARCHITECTURES)}.")
    architecture = _ARCHITECTURES[model_config.model_type]
    arch_id = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    return architecture, gguf.get_tensor_name_map(arch_id, model_config.num_hidden_layers)


def gguf_rows(module: str, tensor: numpy.ndarray, model_config: Any) -> numpy.ndarray:
    """Return the matrix of `module` (out, any) with its rows in llama.cpp's order.

    In the Llama architecture those of q and k go from split halves to interleaved rotary pairs, head by head.
    """
    if _ARCHITECTURES[model_config.model_type] != "llama" or not module.endswith(("q_proj", "k_proj")):
        return tensor
    heads = int(model_config.num_attention_heads)
    if module.endswith("k_proj"):
        heads = int(getattr(model_config, "num_key_value_heads", None) or heads)
    shape = (heads, 2, tensor.shape[0] // heads // 2, tensor.shape[1])
    return tensor.reshape(shape).swapaxes(1, 2).reshape(tensor.shape)
