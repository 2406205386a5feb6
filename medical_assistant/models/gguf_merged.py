"""Whole weights as one GGUF, on the metadata and the tokenizer of the base model's own GGUF.

llama.cpp's converter needs to recognise the tokenizer; here it is copied, and only matrices are new.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medical_assistant.errors import UserError
from medical_assistant.models.gguf_copy import copy_gguf, dequantized, tensor_shape
from medical_assistant.models.gguf_lora import gguf_names, gguf_rows

if TYPE_CHECKING:
    import gguf
    import numpy

GGUF_TYPES = ("Q8_0", "Q4_0")  # gguf-py writes them, every llama.cpp reads them
_EMBEDDINGS = ("token_embd.weight", "output.weight")


def write_merged_gguf(
    weights: Path, config: Any, base_gguf: Path, path: Path, gguf_type: str, metadata: Mapping[str, str | int]
) -> None:
    """Write the safetensors in the folder `weights` to the GGUF `path`, one tensor in memory at a time.

    `config` is the model's `PretrainedConfig`. Metadata and vectors (norms, biases) are those of `base_gguf`, with the
    type and the keys of `metadata` (strings and uint32) replaced. Matrices become `gguf_type`; embeddings and output
    layer at least Q8_0 (llama.cpp's own Q4_0 files keep 6 bits there, which gguf-py cannot write); rows that are no
    whole number of blocks, F16.

    Raises `UserError` for a GGUF of another model.
    """
    import gguf

    reader = gguf.GGUFReader(base_gguf)
    architecture, _ = gguf_names(config)
    found = reader.fields["general.architecture"].contents()
    if found != architecture:
        raise UserError(f"{base_gguf} holds a {found}, not a {architecture}: choose a GGUF of the same model.")
    wanted = gguf.GGMLQuantizationType[gguf_type]
    kinds = {tensor.name: _kind(tensor, wanted) for tensor in reader.tensors if len(tensor.shape) > 1}
    with ExitStack() as stack:
        read = _open_weights(weights, config, stack)

        def matrix(tensor: gguf.ReaderTensor) -> numpy.ndarray:
            values = read(tensor.name)
            if values is not None and values.shape == tensor_shape(tensor):
                return values
            if tensor.name not in _EMBEDDINGS:
                raise UserError(f"{base_gguf} differs from the merged model in {tensor.name}: choose its own GGUF.")
            # An output layer tied to the embeddings, or a vocabulary padded in one of the two files.
            return dequantized(tensor)

        copy_gguf(reader, path, kinds, matrix, gguf.LlamaFileType[f"MOSTLY_{gguf_type}"], metadata)


def _kind(tensor: gguf.ReaderTensor, wanted: gguf.GGMLQuantizationType) -> gguf.GGMLQuantizationType:
    import gguf

    kind = gguf.GGMLQuantizationType.Q8_0 if tensor.name in _EMBEDDINGS else wanted
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    return kind if tensor.shape[0] % block == 0 else gguf.GGMLQuantizationType.F16


def _open_weights(folder: Path, config: Any, stack: ExitStack) -> Callable[[str], numpy.ndarray | None]:
    """Return a function from a GGUF tensor name to its float32 matrix in `folder`, or None without one."""
    from safetensors import safe_open

    _, names = gguf_names(config)
    places = {}
    for file in sorted(folder.glob("*.safetensors")):
        shard = stack.enter_context(safe_open(file, framework="pt"))  # numpy has no bfloat16
        for key in shard.keys():
            places[names.get_name(key, try_suffixes=(".weight", ".bias"))] = shard, key

    def read(name: str) -> numpy.ndarray | None:
        if name not in places:
            return None
        shard, key = places[name]
        return gguf_rows(key.removesuffix(".weight"), shard.get_tensor(key).float().numpy(), config)

    return read
