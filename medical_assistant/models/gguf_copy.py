"""A GGUF written anew with other weights, on the metadata and the tokenizer of the one that is copied."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import gguf
    import numpy

# The writer's own, and what is true of the copied file only: of its quantisation, and of the file it was one part of.
_NOT_COPIED = {"general.architecture", "general.alignment", "general.file_type"}
_NOT_COPIED_PREFIXES = ("GGUF.", "split.", "quantize.")


def copy_gguf(
    source: gguf.GGUFReader,
    path: Path,
    kinds: Mapping[str, gguf.GGMLQuantizationType],
    matrix: Callable[[gguf.ReaderTensor], numpy.ndarray],
    file_type: gguf.LlamaFileType,
    metadata: Mapping[str, str | int] | None = None,
) -> None:
    """Write `source` to `path`, one tensor in memory at a time.

    `kinds`: the types, by name, of the tensors that get new values; `matrix` returns these values as float32, in
    numpy's order of dimensions. The others are copied byte for byte. `metadata` replaces keys, with values of GGUF's
    types string and uint32.
    """
    import gguf
    import numpy

    replaced = dict(metadata or {})
    writer = gguf.GGUFWriter(path, str(source.fields["general.architecture"].contents()))
    for field in source.fields.values():
        if field.name not in _NOT_COPIED | replaced.keys() and not field.name.startswith(_NOT_COPIED_PREFIXES):
            items = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=items)
    writer.add_file_type(file_type)
    for key, value in replaced.items():
        text = isinstance(value, str)
        writer.add_key_value(key, value, gguf.GGUFValueType.STRING if text else gguf.GGUFValueType.UINT32)
    for tensor in source.tensors:
        shape, kind = tensor_shape(tensor), kinds.get(tensor.name, tensor.tensor_type)
        size: int = numpy.prod(gguf.quant_shape_to_byte_shape(shape, kind)).item()
        writer.add_tensor_info(tensor.name, shape, numpy.dtype(numpy.float32), size, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in source.tensors:
        data = tensor.data
        if tensor.name in kinds:
            data = gguf.quants.quantize(numpy.ascontiguousarray(matrix(tensor)), kinds[tensor.name])
        writer.write_tensor_data(data)
    writer.close()


def tensor_shape(tensor: gguf.ReaderTensor) -> tuple[int, ...]:
    """Return the shape in numpy's order: GGUF names the length of a row first."""
    return tuple(int(length) for length in reversed(tensor.shape))


def dequantized(tensor: gguf.ReaderTensor) -> numpy.ndarray:
    """Return the values of a tensor of any type as float32."""
    import gguf
    import numpy

    values: numpy.ndarray = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    return values.astype(numpy.float32)
