"""The 8-bit copy of a 4-bit GGUF."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy
import pytest

from medical_assistant.engines.eight_bit import slow_in_batches, write_eight_bit
from tests.tiny_llama import make_base


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
    with pytest.raises(ValueError):
        slow_in_batches(broken)


@pytest.mark.slow
def test_the_engine_answers_nearly_as_with_the_served_weights(tmp_path):
    """The first token's probabilities move by less than the 4-bit rounding itself has moved them."""
    from medical_assistant.engines import Options, load_engine
    from medical_assistant.prompts import build_messages

    logprobs = []
    for eight_bit in (False, True):
        engine = load_engine("smollm2-135m", engine="llama_cpp", threads=1, eight_bit=eight_bit)
        assert engine.weights == ("8-bit copy" if eight_bit else "as served")
        answers = dict(engine.answer_all([build_messages("What is gout?")], Options(False, 4)))
        engine.close()
        logprobs.append(answers[0].logprobs)
    assert logprobs[1] == pytest.approx(logprobs[0], abs=0.1) and logprobs[0] != logprobs[1]
