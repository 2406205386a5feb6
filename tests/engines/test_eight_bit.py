"""The 8-bit copies of a 4-bit GGUF, and the engine on them."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import gguf
import numpy
import pytest

from medical_assistant.engines.base import Options
from medical_assistant.engines.eight_bit import EightBitBatches, slow_in_batches, write_eight_bit
from medical_assistant.engines.load import load_engine
from medical_assistant.errors import AdapterError
from medical_assistant.prompts import build_messages
from tests.support.paths import ROOT
from tests.support.tiny_llama import make_base, save_gguf

ADAPTER = ROOT / "assets" / "adapters" / "smollm2-135m"


@pytest.fixture(scope="module")
def four_bit(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    make_base(folder)
    return folder / "base.gguf"


def test_weights_are_those_of_the_source_to_a_255th_of_each_block(four_bit, tmp_path):
    copy = gguf.GGUFReader(write_eight_bit(four_bit, tmp_path / "copy.gguf"))
    source = gguf.GGUFReader(four_bit)
    assert [t.name for t in copy.tensors] == [t.name for t in source.tensors]
    changed = 0
    for old, new in zip(source.tensors, copy.tensors, strict=True):
        before = gguf.quants.dequantize(old.data, old.tensor_type)
        after = gguf.quants.dequantize(new.data, new.tensor_type)
        if old.tensor_type.name != "Q4_1":
            assert new.tensor_type == old.tensor_type and numpy.array_equal(before, after)
            continue
        changed += 1
        assert new.tensor_type.name == "Q8_0"
        blocks, copied = before.reshape(-1, 32), after.reshape(-1, 32)
        largest = numpy.abs(blocks).max(1, keepdims=True)
        # Half a step of largest / 127, and what float16 rounds off the scale.
        assert (numpy.abs(blocks - copied) <= largest * (0.5 / 127 + 1e-3)).all()
    assert changed > 10


def test_metadata_and_tokenizer_are_copied(four_bit, tmp_path):
    copy, source = gguf.GGUFReader(write_eight_bit(four_bit, tmp_path / "copy.gguf")), gguf.GGUFReader(four_bit)
    kept = [name for name in source.fields if not name.startswith("GGUF.") and name != "general.file_type"]
    for name in kept:
        assert copy.fields[name].contents() == source.fields[name].contents(), name
    assert len(kept) > 10 and copy.fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_Q8_0


def test_only_slow_types_are_copied(four_bit, tmp_path):
    assert slow_in_batches(four_bit)
    assert not slow_in_batches(write_eight_bit(four_bit, tmp_path / "copy.gguf"))
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"no model")
    assert not slow_in_batches(broken)  # llama.cpp says what is wrong


def test_a_merged_copy_holds_the_sum(four_bit, tmp_path):
    source = gguf.GGUFReader(four_bit)
    target = next(tensor for tensor in source.tensors if len(tensor.shape) == 2 and "attn_q" in tensor.name)
    columns, rows = (int(length) for length in target.shape)
    generator = numpy.random.default_rng(0)
    a = generator.normal(0, 0.1, (2, columns)).astype(numpy.float16)
    b = generator.normal(0, 0.1, (rows, 2)).astype(numpy.float16)
    copy = gguf.GGUFReader(write_eight_bit(four_bit, tmp_path / "m.gguf", lora_file(tmp_path, target.name, a, b, 6.0)))
    merged = next(tensor for tensor in copy.tensors if tensor.name == target.name)
    expected = gguf.quants.dequantize(target.data, target.tensor_type) + 3.0 * b.astype(numpy.float32) @ a.astype(
        numpy.float32
    )
    found = gguf.quants.dequantize(merged.data, merged.tensor_type)
    assert (
        numpy.abs(found - expected).max() <= numpy.abs(expected).max() / 127 / 1.9
    )  # half a step of the largest value
    assert numpy.abs(found - gguf.quants.dequantize(target.data, target.tensor_type)).max() > 0.01
    for tensor, before in zip(copy.tensors, source.tensors, strict=True):
        if tensor.name != target.name and len(tensor.shape) == 1:
            assert numpy.array_equal(tensor.data, before.data)


def test_an_adapter_of_another_model_is_refused(four_bit, tmp_path):
    a, b = numpy.zeros((2, 32), numpy.float16), numpy.zeros((32, 2), numpy.float16)
    with pytest.raises(AdapterError, match="another model"):
        write_eight_bit(four_bit, tmp_path / "m.gguf", lora_file(tmp_path, "blk.99.attn_q.weight", a, b, 2.0))


def lora_file(folder, name, a, b, alpha):
    path = folder / "lora.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    writer.add_tensor(f"{name}.lora_a", a)
    writer.add_tensor(f"{name}.lora_b", b)
    save_gguf(writer)
    return path


@pytest.mark.slow  # a minute: two copies of the embedded model, each read three times
def test_base_and_adapter_answer_from_their_own_copies():
    """The merged copy says what the LoRA beside the weights says, nearly; the base says something else."""
    first = {}
    for eight_bit in (False, True):
        with closing(
            load_engine(
                "smollm2-135m", ADAPTER, "llama_cpp", eight_bit=eight_bit, threads=1, parallel=1, context_tokens=256
            )
        ) as engine:
            assert engine.weights == ("8-bit copies" if eight_bit else "as served")
            assert engine.info.adapter is not None
            for adapter in (False, True):
                answers = dict(engine.answer_all([build_messages("What is gout?")], Options(adapter, 4)))
                first[eight_bit, adapter] = answers[0].logprobs[0]
    for adapter in (False, True):
        assert first[True, adapter] == pytest.approx(first[False, adapter], abs=0.15)
    assert abs(first[True, True] - first[True, False]) > 0.15


def test_without_an_adapter_only_the_base_answers(four_bit):
    settings = {"threads": 1, "parallel": 1, "context_tokens": 256}
    with closing(EightBitBatches(four_bit, model="tiny", **settings)) as engine:
        assert engine.info.adapter is None and engine.context_tokens == 256
        with pytest.raises(AdapterError, match="No adapter"):
            engine.answer_all([build_messages("What is gout?")], Options(True, 4))


def test_copies_are_removed_at_the_end(four_bit):
    engine = EightBitBatches(four_bit, model="tiny", threads=1, parallel=1, context_tokens=256)
    folder = Path(engine._folder.name)
    assert [path.name for path in folder.iterdir()] == ["base.gguf"]
    engine.close()
    assert not folder.exists()
