"""An 8-bit copy of a GGUF, for batches on a CPU.

llama.cpp multiplies Q4_1 (and Q5_0, Q5_1) matrices with many tokens one token at a time; for Q8_0 it has kernels that
load each weight once for all of them. The embedded 135M model, 32 answers together on two cores: 179 tokens/s as Q4_1,
215 as Q8_0 (benchmarks/results/evaluation.json). A value is rounded to one of 255 steps of the largest in its block: an
error of at most 0.4 % of that, where the 4-bit steps themselves are 7 % apart.
"""

from __future__ import annotations

import math
from pathlib import Path

SLOW_IN_BATCHES = ("Q4_1", "Q5_0", "Q5_1")


def slow_in_batches(path: Path) -> bool:
    """Return whether most matrices of the GGUF `path` are of a type without kernels for batches.

    Raises `ValueError` or `OSError` for a file that is no GGUF.
    """
    import gguf

    kinds = [tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors if len(tensor.shape) > 1]
    return 2 * sum(kind in SLOW_IN_BATCHES for kind in kinds) > len(kinds)


def write_eight_bit(source: Path, path: Path) -> Path:
    """Return `path`: `source` with every quantised matrix as Q8_0, one tensor in memory at a time.

    Metadata, tokenizer and what is not quantised are copied as they are. Q8_0: blocks of 32 weights with one
    float16 scale (llama.cpp, ggml-common.h, `block_q8_0`).
    """
    import gguf
    import numpy

    reader = gguf.GGUFReader(source)
    eight_bit = gguf.GGMLQuantizationType.Q8_0
    writer = gguf.GGUFWriter(path, str(reader.fields["general.architecture"].contents()))
    for field in reader.fields.values():
        if field.name.startswith(("GGUF.", "split.")) or field.name in ("general.architecture", "general.file_type"):
            continue
        items = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=items)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    changed = {tensor.name for tensor in reader.tensors if tensor.tensor_type.name in SLOW_IN_BATCHES}
    for tensor in reader.tensors:
        shape = [int(length) for length in reversed(tensor.shape)]
        kind = eight_bit if tensor.name in changed else tensor.tensor_type
        size = math.prod(gguf.quant_shape_to_byte_shape(shape, kind))
        writer.add_tensor_info(tensor.name, shape, numpy.dtype(numpy.float32), size, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in reader.tensors:
        data = tensor.data
        if tensor.name in changed:
            matrix = gguf.quants.dequantize(data, tensor.tensor_type)
            data = gguf.quants.quantize(numpy.ascontiguousarray(matrix, dtype=numpy.float32), eight_bit)
        writer.write_tensor_data(data)
    writer.close()
    return path
