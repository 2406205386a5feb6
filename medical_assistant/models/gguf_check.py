"""GGUF headers read before llama.cpp's C++ reads them: every count, length, type and place is checked against the file.

The format is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little endian. Where
ggml's own reader takes less (no arrays in arrays, names of 63 bytes, four dimensions), so does this one. Nothing is
believed before it fits into the file, and almost nothing is kept: a hostile header costs neither memory nor time.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medical_assistant.errors import AdapterError, EngineError

# The largest models have some thousand tensors and some sixty keys; Gemma 3's tokenizer has 780,000 strings.
MAX_TENSORS, MAX_KEYS, MAX_STRINGS = 65_536, 4_096, 2_000_000
MAX_KEY_BYTES, MAX_NAME_BYTES, MAX_DIMENSIONS = 1_024, 63, 4
MAX_ALIGNMENT = 65_536
KEPT = ("general.type", "general.architecture", "general.alignment", "adapter.type")
MAX_KEPT_BYTES = 256

# Bytes of a value by its type; strings (8) and arrays (9) have a length of their own.
_STRING, _ARRAY, _UINT32, _BOOL = 8, 9, 4, 7
_VALUE_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
# (elements, bytes) of a block by tensor type: ggml.h and ggml-common.h. Types that no file holds are left out.
TENSOR_BLOCKS = {
    0: (1, 4), 1: (1, 2), 30: (1, 2), 28: (1, 8), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8),  # floats, integers
    2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),  # Q4_0 to Q8_0
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210),  # Q2_K to Q6_K
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82),
    23: (256, 136), 29: (256, 56),  # IQ1_S to IQ4_XS
    34: (256, 54), 35: (256, 66), 39: (32, 17), 40: (64, 36), 41: (128, 18),  # TQ1_0, TQ2_0, MXFP4, NVFP4, Q1_0
}  # fmt: skip
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


class GgufFault(ValueError):
    """What is wrong with a header, in a few words."""


@dataclass(frozen=True)
class TensorInfo:
    name: str
    shape: tuple[int, ...]  # ggml's order: the length of a row first
    type: int
    offset: int  # bytes from the start of the data
    size: int  # bytes


@dataclass(frozen=True)
class GgufHeader:
    """A checked header: the values of `KEPT` that are text or numbers, and all tensors."""

    metadata: Mapping[str, str | int]
    tensors: Sequence[TensorInfo]


def check_gguf(path: Path) -> None:
    """Raise `EngineError` when `path` is no sound GGUF of a model: before llama.cpp or anything else loads it."""
    try:
        header = read_header(path)
        if header.metadata.get("general.type", "model") != "model":
            raise GgufFault("it holds no model")
    except (GgufFault, OSError) as error:
        raise EngineError(f"{path} is no sound GGUF ({_reason(error)}): download it again.") from error


def check_lora_gguf(path: Path) -> None:
    """Raise `AdapterError` when `path` is no sound GGUF of a LoRA: pairs of matrices of one rank."""
    try:
        header = read_header(path)
        kind, adapter = header.metadata.get("general.type"), header.metadata.get("adapter.type")
        if (kind, adapter) != ("adapter", "lora"):
            raise GgufFault(f"it holds a {adapter or kind or 'model'}, not a LoRA adapter")
        _check_pairs(header.tensors)
    except (GgufFault, OSError) as error:
        text = f"{path} is truncated or broken ({_reason(error)}): train or download the adapter again."
        raise AdapterError(text) from error


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _check_pairs(tensors: Sequence[TensorInfo]) -> None:
    sides: dict[str, dict[str, TensorInfo]] = {"lora_a": {}, "lora_b": {}}
    for tensor in tensors:
        module, _, side = tensor.name.rpartition(".")
        if side not in sides or not module:
            raise GgufFault(f"tensor {tensor.name!r} is no part of a LoRA")
        if len(tensor.shape) != 2:
            raise GgufFault(f"tensor {tensor.name!r} is no matrix")
        sides[side][module] = tensor
    if not tensors or sides["lora_a"].keys() != sides["lora_b"].keys():
        raise GgufFault("not every lora_a has its lora_b")
    for module, a in sides["lora_a"].items():
        # llama.cpp looks embeddings up in a matrix that is turned round.
        rank = a.shape[0] if module.startswith("token_embd.") else a.shape[1]
        if rank != sides["lora_b"][module].shape[0]:
            raise GgufFault(f"the ranks of {module!r} differ")


def read_header(path: Path) -> GgufHeader:
    """Return the checked header of a GGUF file. Raises `GgufFault`, or `OSError` where the file cannot be read."""
    with path.open("rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise GgufFault("it is empty") from error
        with data:
            return _Reader(data).header()


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._size = len(data)
        self._position = 0
        self._strings = 0

    def header(self) -> GgufHeader:
        if self._bytes(4, "magic") != b"GGUF":
            raise GgufFault("it does not begin with GGUF")
        version = self._u32()
        if version not in (2, 3):
            raise GgufFault(f"its version is {version}, not 2 or 3")
        tensor_count, key_count = self._u64(), self._u64()
        if tensor_count > MAX_TENSORS or key_count > MAX_KEYS:
            raise GgufFault(f"it claims {tensor_count} tensors and {key_count} keys")
        metadata = self._metadata(key_count)
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 8 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            raise GgufFault(f"its alignment is {alignment}")
        tensors: dict[str, TensorInfo] = {}
        for _ in range(tensor_count):
            tensor = self._tensor(alignment)
            if tensor.name in tensors:
                raise GgufFault(f"tensor {tensor.name!r} is there twice")
            tensors[tensor.name] = tensor
        self._check_places(list(tensors.values()), -(-self._position // alignment) * alignment)
        return GgufHeader(metadata, list(tensors.values()))

    def _metadata(self, count: int) -> dict[str, str | int]:
        kept: dict[str, str | int] = {}
        seen = set()
        for _ in range(count):
            key = self._name(MAX_KEY_BYTES)
            if key in seen:
                raise GgufFault(f"key {key!r} is there twice")
            seen.add(key)
            kind = self._u32()
            if key not in KEPT:
                self._skip_value(kind)
            elif kind == _STRING:
                kept[key] = self._name(MAX_KEPT_BYTES)
            elif kind == _UINT32:
                kept[key] = self._u32()
            else:
                raise GgufFault(f"key {key!r} has a value of type {kind}")
        return kept

    def _skip_value(self, kind: int) -> None:
        if kind == _STRING:
            self._skip_strings(1)
        elif kind == _ARRAY:
            items, count = self._u32(), self._u64()
            if items == _STRING:
                self._skip_strings(count)
            else:
                self._skip_numbers(items, count)
        else:
            self._skip_numbers(kind, 1)

    def _skip_numbers(self, kind: int, count: int) -> None:
        if kind not in _VALUE_BYTES:
            raise GgufFault("an array lies in an array" if kind == _ARRAY else f"it has a value of type {kind}")
        self._forward(count * _VALUE_BYTES[kind], "value")

    def _skip_strings(self, count: int) -> None:
        self._strings += count
        if self._strings > MAX_STRINGS:
            raise GgufFault(f"it claims {self._strings} strings")
        data, position, last = self._data, self._position, self._size - 8
        length = _U64.unpack_from
        for _ in range(count):  # 0.1 µs each: a tokenizer has hundreds of thousands
            if position > last:
                raise GgufFault("it ends within a string")
            position += 8 + length(data, position)[0]
        self._position = position
        self._forward(0, "string")

    def _tensor(self, alignment: int) -> TensorInfo:
        name = self._name(MAX_NAME_BYTES)
        dimensions = self._u32()
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise GgufFault(f"tensor {name!r} has {dimensions} dimensions")
        shape = tuple(self._u64() for _ in range(dimensions))
        kind, offset = self._u32(), self._u64()
        if kind not in TENSOR_BLOCKS:
            raise GgufFault(f"tensor {name!r} is of type {kind}, which is unknown")
        elements, size = TENSOR_BLOCKS[kind]
        if 0 in shape or math.prod(shape) >= 2**63 or shape[0] % elements:
            raise GgufFault(f"tensor {name!r} has the shape {shape}")
        if offset % alignment:
            raise GgufFault(f"tensor {name!r} is not aligned")
        return TensorInfo(name, shape, kind, offset, math.prod(shape) // elements * size)

    def _check_places(self, tensors: list[TensorInfo], start: int) -> None:
        """Every tensor lies in the file, and none in another."""
        end = 0
        for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
            if tensor.offset < end:
                raise GgufFault(f"tensor {tensor.name!r} lies in another one")
            end = tensor.offset + tensor.size
            if start + end > self._size:
                raise GgufFault(f"tensor {tensor.name!r} is not whole")

    def _name(self, limit: int) -> str:
        length = self._u64()
        if length > limit:
            raise GgufFault(f"a name has {length} bytes")
        try:
            return self._bytes(length, "name").decode()
        except UnicodeDecodeError as error:
            raise GgufFault("a name is not UTF-8") from error

    def _u32(self) -> int:
        return int(_U32.unpack(self._bytes(4, "number"))[0])

    def _u64(self) -> int:
        return int(_U64.unpack(self._bytes(8, "number"))[0])

    def _bytes(self, length: int, what: str) -> bytes:
        start = self._position
        self._forward(length, what)
        return self._data[start : self._position]

    def _forward(self, length: int, what: str) -> None:
        if self._position + length > self._size:
            raise GgufFault(f"it ends within a {what}")
        self._position += length
