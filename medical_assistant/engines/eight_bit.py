"""8-bit copies of a GGUF, for batches on a CPU: the base, and the base with an adapter merged into it.

llama.cpp multiplies Q4_1 (and Q5_0, Q5_1) matrices with many tokens one token at a time; for Q8_0 it has kernels that
load each weight once for all of them. The embedded 135M model, 16 answers together on two cores: 124 tokens/s as Q4_1,
164 as Q8_0 (benchmarks/results/evaluation.json). A value is rounded to one of 255 steps of the largest in its block: an
error of at most 0.4 % of that, where the 4-bit steps themselves are 7 % apart.

A LoRA that is computed beside the weights costs a sixth of the speed (16 answers together: 168 tokens/s without, 146
with), so a copy for the adapter holds their sum.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from medical_assistant.engines.base import Answer, Options, Token
from medical_assistant.engines.llama_cpp import LlamaCppEngine
from medical_assistant.errors import AdapterError
from medical_assistant.models.adapter import Adapter
from medical_assistant.models.gguf_copy import copy_gguf, dequantized
from medical_assistant.prompts import Message

if TYPE_CHECKING:
    import numpy

SLOW_IN_BATCHES = ("Q4_1", "Q5_0", "Q5_1")


def slow_in_batches(path: Path) -> bool:
    """Return whether most matrices of the GGUF `path` are of a type without kernels for batches.

    False for a broken file: llama.cpp, which reads it next, says what is wrong with it.
    """
    from medical_assistant.models.gguf_header import HeaderReader

    try:
        kinds = [tensor.kind.name for tensor in HeaderReader(path).infos if len(tensor.shape) > 1]
    except (OSError, ValueError):
        return False
    return 2 * sum(kind in SLOW_IN_BATCHES for kind in kinds) > len(kinds)


class EightBitBatches:
    """An `Engine` on 8-bit copies of `gguf`: one of the base, one with `adapter` merged into it.

    Each copy is written, and its process started, when it is first asked. They lie in the folder for temporary files
    until `close`. `settings` are those of `LlamaCppEngine`. Raises as that does.
    """

    weights = "8-bit copies"

    def __init__(self, gguf: Path, adapter: Adapter | None = None, **settings: Any) -> None:
        self._gguf, self._adapter, self._settings = gguf, adapter, settings
        self._folder = TemporaryDirectory(prefix="medical-assistant-")
        self._engines: dict[bool, LlamaCppEngine] = {}
        # The one that carries the adapter names it, and checks its prompt now, before any answer.
        first = self._engine(adapter is not None)
        self.info, self.context_tokens, self.count_tokens = first.info, first.context_tokens, first.count_tokens

    def stream(self, messages: Sequence[Message], options: Options) -> Generator[Token, None, str]:
        self.info.check_adapter(options)
        return self._engine(options.adapter).stream(messages, options)

    def answer_all(self, conversations: Sequence[Sequence[Message]], options: Options) -> Iterator[tuple[int, Answer]]:
        self.info.check_adapter(options)
        return self._engine(options.adapter).answer_all(conversations, options)

    def close(self) -> None:
        for engine in self._engines.values():
            engine.close()
        self._folder.cleanup()

    def _engine(self, adapter_on: bool) -> LlamaCppEngine:
        if adapter_on not in self._engines:
            adapter = self._adapter if adapter_on else None
            path = Path(self._folder.name) / ("merged.gguf" if adapter else "base.gguf")
            try:
                write_eight_bit(self._gguf, path, adapter.gguf if adapter else None)
                self._engines[adapter_on] = LlamaCppEngine(path, adapter, merged=adapter_on, **self._settings)
            except BaseException:
                self.close()
                raise
        return self._engines[adapter_on]


def write_eight_bit(source: Path, path: Path, lora: Path | None = None) -> Path:
    """Return `path`: `source` with every quantised matrix as Q8_0, one tensor in memory at a time.

    `lora`, as `models.gguf_lora` writes it, is added to the matrices that it is for: W + alpha / rank * B A (Hu et al.
    2021, arXiv:2106.09685). Metadata, tokenizer and what is not quantised are copied as they are. Q8_0: blocks of
    32 weights with one float16 scale (llama.cpp, ggml-common.h, `block_q8_0`).

    Raises `AdapterError` when the adapter has a matrix that the source lacks.
    """
    import gguf

    reader = gguf.GGUFReader(source)
    changes = _read_lora(lora) if lora else {}
    lost = changes.keys() - {tensor.name for tensor in reader.tensors}
    if lost:
        raise AdapterError(f"The base has no matrix {min(lost)}: the adapter belongs to another model.")
    changed = {tensor.name for tensor in reader.tensors if tensor.tensor_type.name in SLOW_IN_BATCHES} | changes.keys()

    def matrix(tensor: gguf.ReaderTensor) -> numpy.ndarray:
        values = dequantized(tensor)
        if tensor.name in changes:
            a, b = changes[tensor.name]
            values += b @ a
        return values

    kinds = dict.fromkeys(changed, gguf.GGMLQuantizationType.Q8_0)
    copy_gguf(reader, path, kinds, matrix, gguf.LlamaFileType.MOSTLY_Q8_0)
    return path


def _read_lora(path: Path) -> dict[str, tuple[numpy.ndarray, numpy.ndarray]]:
    """Return {matrix: (A, B)}, the factor alpha / rank in B."""
    import gguf

    reader = gguf.GGUFReader(path)
    alpha = reader.fields[gguf.Keys.Adapter.LORA_ALPHA].contents()
    parts = {tensor.name: dequantized(tensor) for tensor in reader.tensors}
    names = [name.removesuffix(".lora_a") for name in parts if name.endswith(".lora_a")]
    pairs = {name: (parts[f"{name}.lora_a"], parts[f"{name}.lora_b"]) for name in names}
    return {name: (a, b * (alpha / len(a))) for name, (a, b) in pairs.items()}
