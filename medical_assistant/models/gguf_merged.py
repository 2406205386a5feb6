"""Whole weights as one GGUF, on the metadata and the tokenizer of the base model's own GGUF.

llama.cpp's converter needs to recognise the tokenizer; here it is copied, and only matrices are new.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medical_assistant.errors import UserError
from medical_assistant.models.gguf_lora import gguf_names, gguf_rows

if TYPE_CHECKING:
    import gguf
    import numpy

GGUF_TYPES = ("Q8_0", "Q4_0")  # gguf-py writes them, every llama.cpp reads them
_EMBEDDINGS = ("token_embd.weight", "output.weight")


@dataclass(frozen=True)
class Merged:
    """What a folder of merged safetensors does not say in a word."""

    config: Any  # the model's `PretrainedConfig`
    chat_template: str
    end_of_turn: int | None  # id of the token that ends an answer, where it is not the tokenizer's EOS


def write_merged_gguf(weights: Path, merged: Merged, base_gguf: Path, path: Path, gguf_type: str, *, name: str) -> None:
    """Write the safetensors in the folder `weights` to the GGUF `path`, one tensor in memory at a time.

    Metadata and vectors (norms, biases) are those of `base_gguf`, with `name`, type, chat template and end
    of turn replaced. Matrices become `gguf_type`; embeddings and output layer at least Q8_0 (llama.cpp's own
    Q4_0 files keep 6 bits there, which gguf-py cannot write); rows that are no whole number of blocks, F16.

    Raises `UserError` for a GGUF of another model.
    """
    import gguf
    import numpy

    reader = gguf.GGUFReader(base_gguf)
    architecture, _ = gguf_names(merged.config)
    found = reader.fields["general.architecture"].contents()
    if found != architecture:
        raise UserError(f"{base_gguf} holds a {found}, not a {architecture}: choose a GGUF of the same model.")
    wanted = gguf.GGMLQuantizationType[gguf_type]
    writer = gguf.GGUFWriter(path, architecture)
    _copy_metadata(reader, writer, new_end=merged.end_of_turn is not None)
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{gguf_type}"])
    writer.add_chat_template(merged.chat_template)
    if merged.end_of_turn is not None:
        writer.add_eot_token_id(merged.end_of_turn)
    kinds = [_kind(tensor, wanted) for tensor in reader.tensors]
    for tensor, kind in zip(reader.tensors, kinds, strict=True):
        shape = _shape(tensor)
        size = math.prod(gguf.quant_shape_to_byte_shape(shape, kind))
        writer.add_tensor_info(tensor.name, shape, numpy.dtype(numpy.float32), size, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    with ExitStack() as stack:
        read = _open_weights(weights, merged.config, stack)
        for tensor, kind in zip(reader.tensors, kinds, strict=True):
            if len(tensor.shape) == 1:
                writer.write_tensor_data(tensor.data)
                continue
            matrix = read(tensor.name)
            if matrix is None or matrix.shape != tuple(_shape(tensor)):
                if tensor.name not in _EMBEDDINGS:
                    raise UserError(f"{base_gguf} differs from the merged model in {tensor.name}: choose its own GGUF.")
                # An output layer tied to the embeddings, or a vocabulary padded in one of the two files.
                matrix = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            writer.write_tensor_data(gguf.quants.quantize(numpy.ascontiguousarray(matrix), kind))
    writer.close()


def _copy_metadata(reader: gguf.GGUFReader, writer: gguf.GGUFWriter, new_end: bool) -> None:
    import gguf

    # "GGUF." fields are the reader's own; the others are written anew, or belong to the file that is read.
    own = {"general.architecture", "general.name", "general.file_type", "general.alignment"}
    own |= {"tokenizer.chat_template", *(["tokenizer.ggml.eot_token_id"] if new_end else [])}
    for field in reader.fields.values():
        if field.name in own or field.name.startswith(("GGUF.", "split.", "quantize.")):
            continue
        kind = field.types[0]
        items = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=items)


def _shape(tensor: gguf.ReaderTensor) -> list[int]:
    """numpy's order: GGUF names the length of a row first."""
    return [int(length) for length in reversed(tensor.shape)]


def _kind(tensor: gguf.ReaderTensor, wanted: gguf.GGMLQuantizationType) -> gguf.GGMLQuantizationType:
    import gguf

    if len(tensor.shape) == 1:
        return tensor.tensor_type
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
