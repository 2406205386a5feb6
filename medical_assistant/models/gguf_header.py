"""Reading the header of a GGUF that nobody has checked yet, as a process that may die: the child of `gguf_check`.

    python -m medical_assistant.models.gguf_header (model | lora) FILE

Writes one line of JSON to standard output: {"fault": what is wrong in a few words, or null}.
"""

from __future__ import annotations

import json
import math
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy

MAX_STRINGS = 2_000_000  # Gemma 3's tokenizer has 780,000
MAX_NAME_BYTES, MAX_DIMENSIONS = 63, 4  # GGML_MAX_NAME (with its final zero) and GGML_MAX_DIMS of ggml.h
PRODUCTS_ONLY = ("Q8_1", "Q8_K")  # types of intermediate results, which ggml writes to no file
MEMORY_BYTES, CPU_S = 512 * 2**20, 60
_U64 = struct.Struct("<Q")


class TensorInfo(NamedTuple):
    name: str
    shape: tuple[int, ...]  # ggml's order: the length of a row first
    kind: gguf.GGMLQuantizationType


class HeaderReader(gguf.GGUFReader):
    """gguf-py's reader of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, but for the content.

    Raises `ValueError`, or what numpy raises, also for what gguf-py lets pass: a value that reaches beyond the end of
    the file, which numpy cuts short; big endian; tensors that are not whole, not aligned, lie in one another, or that
    ggml does not take. Arrays are stepped over, and tensors stay on the disk: gguf-py needs 2.5 s for the 49,000
    tokens of SmolLM2, this 0.02 s. How much there can be of anything is limited by the file and by `limit_resources`.
    """

    def __init__(self, path: Path) -> None:
        self.infos: list[TensorInfo] = []
        self._strings = 0
        super().__init__(path)

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> numpy.ndarray:
        if offset + int(count) * numpy.dtype(dtype).itemsize > len(self.data):
            raise ValueError("it ends within a value")
        return super()._get(offset, dtype, count, override_order)

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        """Return (bytes, no parts, no places, types) of an array; of other values as gguf-py does."""
        if raw_type != gguf.GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, int(raw_type))
        kind = gguf.GGUFValueType(int(self._get(orig_offs, numpy.uint32)[0]))
        count, start = int(self._get(orig_offs + 4, numpy.uint64)[0]), orig_offs + 12
        if kind == gguf.GGUFValueType.ARRAY:
            raise ValueError("an array lies in an array")
        if kind == gguf.GGUFValueType.STRING:
            size = self._strings_bytes(start, count)
        else:
            size = self._get(start, self.gguf_scalar_to_np[kind], count).nbytes
        return 12 + size, [], [], [gguf.GGUFValueType.ARRAY, kind]

    def _strings_bytes(self, start: int, count: int) -> int:
        self._strings += count
        if self._strings > MAX_STRINGS:
            raise ValueError(f"it claims {self._strings} strings")
        position, last, read_length = start, len(self.data) - 8, _U64.unpack_from
        data: Any = memoryview(self.data)  # type: ignore[arg-type]  # numpy's stubs for Python 3.11 know no buffers
        for _ in range(count):  # 0.1 µs each: a tokenizer has hundreds of thousands
            if position > last:
                raise ValueError("it ends within a string")
            position += 8 + read_length(data, position)[0]
        self._get(start, numpy.uint8, position - start)
        return position - start

    def _build_tensors(self, start_offs: int, fields: list[gguf.ReaderField]) -> None:
        """Check every tensor and its place, where gguf-py maps its data."""
        alignment, end = int(self.alignment), 0
        if self.byte_order != "I" or alignment % 8:
            raise ValueError(f"its bytes are in the order of another machine, or its alignment is {alignment}")
        for field in sorted(fields, key=lambda field: int(field.parts[5][0])):
            _, _, _, shape, kind, offsets = field.parts
            info = TensorInfo(field.name, tuple(shape.tolist()), gguf.GGMLQuantizationType(int(kind[0])))
            offset, size = int(offsets[0]), _checked_bytes(info)
            if offset % alignment:
                raise ValueError(f"tensor {info.name!r} is not aligned")
            if offset < end:
                raise ValueError(f"tensor {info.name!r} lies in another one")
            end = offset + size
            if int(start_offs) + end > len(self.data):
                raise ValueError(f"tensor {info.name!r} is not whole")
            self.infos.append(info)
        if len({info.name for info in self.infos}) < len(self.infos):
            raise ValueError("two tensors have one name")


def _checked_bytes(tensor: TensorInfo) -> int:
    """Return the size of a tensor. Raises `ValueError` for a name, a type or a shape that ggml does not take."""
    if len(tensor.name.encode()) > MAX_NAME_BYTES:
        raise ValueError(f"a tensor's name has {len(tensor.name.encode())} bytes")
    if not 1 <= len(tensor.shape) <= MAX_DIMENSIONS:
        raise ValueError(f"tensor {tensor.name!r} has {len(tensor.shape)} dimensions")
    if tensor.kind.name in PRODUCTS_ONLY:
        raise ValueError(f"tensor {tensor.name!r} is of type {tensor.kind.name}, which no file has")
    block_elements, block_bytes = gguf.GGML_QUANT_SIZES[tensor.kind]
    elements = math.prod(tensor.shape)
    if elements == 0 or elements >= 2**63 or tensor.shape[0] % block_elements:
        raise ValueError(f"tensor {tensor.name!r} has the shape {tensor.shape}")
    return elements // block_elements * block_bytes


def find_fault(kind: str, path: Path) -> str | None:
    """Return what is wrong with a GGUF of `kind` "model" or "lora" in a few words; None for a sound one."""
    try:
        reader = HeaderReader(path)
        found = {key: reader.fields[key].contents() for key in ("general.type", "adapter.type") if key in reader.fields}
        general, adapter = found.get("general.type"), found.get("adapter.type")
        if kind == "model":
            return None if general in (None, "model") else "it holds no model"
        if (general, adapter) != ("adapter", "lora"):
            return f"it holds a {adapter or general or 'model'}, not a LoRA adapter"[:160]
        return _find_lora_fault(reader.infos)
    except (ValueError, KeyError, TypeError, ArithmeticError, MemoryError, OSError) as error:
        # gguf-py's own, of a header that it cannot read
        text = error.args[0] if isinstance(error, KeyError) else error
        return str(text)[:160] or type(error).__name__


def _find_lora_fault(tensors: Sequence[TensorInfo]) -> str | None:
    """A LoRA is pairs of matrices of one rank."""
    sides: dict[str, dict[str, TensorInfo]] = {"lora_a": {}, "lora_b": {}}
    for tensor in tensors:
        module, _, side = tensor.name.rpartition(".")
        if side not in sides or not module:
            return f"tensor {tensor.name!r} is no part of a LoRA"
        if len(tensor.shape) != 2:
            return f"tensor {tensor.name!r} is no matrix"
        sides[side][module] = tensor
    if not tensors or sides["lora_a"].keys() != sides["lora_b"].keys():
        return "not every lora_a has its lora_b"
    for module, a in sides["lora_a"].items():
        # llama.cpp looks embeddings up in a matrix that is turned round.
        rank = a.shape[0] if module.startswith("token_embd.") else a.shape[1]
        if rank != sides["lora_b"][module].shape[0]:
            return f"the ranks of {module!r} differ"
    return None


def limit_resources() -> None:
    """Bound what a hostile header can make this process use; the file itself is mapped, and not counted."""
    try:
        import resource
    except ImportError:  # not POSIX: the parent's time limit remains
        return
    for limit, most in ((resource.RLIMIT_DATA, MEMORY_BYTES), (resource.RLIMIT_CPU, CPU_S), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(limit)
        resource.setrlimit(limit, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def main() -> None:
    limit_resources()
    sys.stdout.write(json.dumps({"fault": find_fault(sys.argv[1], Path(sys.argv[2]))}) + "\n")


if __name__ == "__main__":
    main()
