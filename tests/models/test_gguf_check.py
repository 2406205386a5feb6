"""GGUF headers: sound ones pass, and whatever is done to one raises the error and nothing else, at once."""

from __future__ import annotations

import struct
import time
import tracemalloc
from pathlib import Path

import gguf
import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medical_assistant.engines.load import load_engine
from medical_assistant.errors import AdapterError, EngineError
from medical_assistant.models import gguf_check
from medical_assistant.models.gguf_check import GgufFault, check_gguf, check_lora_gguf, read_header
from medical_assistant.models.presets import find_preset
from tests.support.paths import ROOT
from tests.support.timing import cpu_s

BUNDLED = ROOT / "assets" / "adapters" / "smollm2-135m" / "adapter.gguf"
F32 = 0


def write_gguf(path: Path, tensors: dict[str, numpy.ndarray], kind: str | None = None, adapter: str | None = None):
    writer = gguf.GGUFWriter(path, "llama")
    if kind:
        writer.add_type(kind)
    if adapter:
        writer.add_string("adapter.type", adapter)
    writer.add_token_list([f"token{i}" for i in range(40)])
    writer.add_token_scores([0.5] * 40)
    writer.add_bool("general.flag", True)
    writer.add_array("general.tags", ["a", "b"])
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def lora(path: Path, a_shape=(2, 8), b_shape=(6, 2), name="blk.0.attn_q.weight", **options):
    """A LoRA whose matrices have these shapes, rows first."""
    tensors = {f"{name}.lora_a": numpy.ones(a_shape, "float32"), f"{name}.lora_b": numpy.ones(b_shape, "float32")}
    return write_gguf(path, tensors, **{"kind": "adapter", "adapter": "lora", **options})


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return lora(tmp_path_factory.mktemp("gguf") / "adapter.gguf").read_bytes()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch") / "mutant.gguf"


# Sound files


def test_the_embedded_model_passes_at_once():
    path = find_preset("smollm2-135m").embedded_gguf()
    if path is None:
        pytest.skip("the embedded model is not installed")
    assert cpu_s(lambda: check_gguf(path)) < 0.3
    assert len(read_header(path).tensors) == 272


def test_the_bundled_adapter_passes_and_is_read_as_the_gguf_package_does():
    check_lora_gguf(BUNDLED)
    header, reader = read_header(BUNDLED), gguf.GGUFReader(BUNDLED)
    found = {tensor.name: (tensor.shape, tensor.type, tensor.size) for tensor in header.tensors}
    assert found == {
        tensor.name: (tuple(tensor.shape.tolist()), tensor.tensor_type, tensor.n_bytes) for tensor in reader.tensors
    }
    assert header.metadata["general.architecture"] == "llama"


def test_the_sizes_of_blocks_are_those_of_the_gguf_package():
    known = {int(kind): size for kind, size in gguf.GGML_QUANT_SIZES.items()}
    for kind in (gguf.GGMLQuantizationType.Q8_1, gguf.GGMLQuantizationType.Q8_K):  # of products, never in a file
        del known[int(kind)]
    assert known == gguf_check.TENSOR_BLOCKS


def test_an_adapter_of_embeddings_is_turned_round(tmp_path):
    check_lora_gguf(lora(tmp_path / "a.gguf", (8, 2), (6, 2), name="token_embd.weight"))


# Adapters that are none


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"kind": None, "adapter": None}, "holds a model, not a LoRA"),
        ({"adapter": "control"}, "holds a control, not a LoRA"),
        ({"adapter": None}, "holds a adapter, not a LoRA"),
        ({"a_shape": (3, 8)}, "the ranks of 'blk.0.attn_q.weight' differ"),
        ({"a_shape": (16,)}, "is no matrix"),
        ({"name": "blk.0.ffn_up_exps", "a_shape": (2, 2, 8)}, "is no matrix"),
    ],
)
def test_what_is_no_lora_is_refused(tmp_path, options, fault):
    with pytest.raises(AdapterError, match=fault) as caught:
        check_lora_gguf(lora(tmp_path / "a.gguf", **options))
    assert "\n" not in str(caught.value) and "a.gguf" in str(caught.value)


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        (["x.lora_a"], "not every lora_a has its lora_b"),
        (["x.lora_b"], "not every lora_a has its lora_b"),
        (["x.lora_a", "y.lora_b"], "not every lora_a"),
        ([".lora_a", ".lora_b"], "is no part of a LoRA"),
        (["x.weight"], "is no part of a LoRA"),
        ([], "not every lora_a"),
    ],
)
def test_tensors_are_pairs(tmp_path, names, fault):
    tensors = {name: numpy.ones((2, 2), "float32") for name in names}
    with pytest.raises(AdapterError, match=fault):
        check_lora_gguf(write_gguf(tmp_path / "a.gguf", tensors, "adapter", "lora"))


def test_an_adapter_is_no_model(tmp_path):
    with pytest.raises(EngineError, match="it holds no model"):
        check_gguf(lora(tmp_path / "a.gguf"))


@pytest.mark.parametrize("engine", ["auto", "llama_cpp", "transformers"])
def test_a_broken_model_reaches_no_engine(tmp_path, monkeypatch, engine):
    def start(*arguments, **options):
        raise AssertionError("started")

    monkeypatch.setattr("medical_assistant.engines.llama_cpp.ChildProcess", start)
    monkeypatch.setattr("medical_assistant.engines.transformers.load_weights", start)
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2**63, 2**63))
    with pytest.raises(EngineError, match=r"model\.gguf is no sound GGUF \(it claims \d+ tensors"):
        load_engine(str(path), None, engine)


# Headers by hand


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def tensor(name: bytes = b"x", shape=(4,), kind=F32, offset=0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def build(keys=(), tensors=(), version=3, magic=b"GGUF", counts=None, data=b"\0" * 64) -> bytes:
    tensor_count, key_count = counts or (len(tensors), len(keys))
    header = magic + struct.pack("<IQQ", version, tensor_count, key_count) + b"".join(keys) + b"".join(tensors)
    return header + b"\0" * (-len(header) % 32) + data


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def strings(count: int, kind: int = 8) -> bytes:
    return struct.pack("<IQ", kind, count)


HOSTILE = {
    "empty": (b"", "it is empty"),
    "magic": (build(magic=b"GGML"), "does not begin with GGUF"),
    "version 1": (build(version=1), "version is 1"),
    "big endian": (build(version=0x03000000), "version is"),
    "tensors": (build(counts=(2**63, 0)), "claims 9223372036854775808 tensors"),
    "keys": (build(counts=(0, 2**64 - 1)), "keys"),
    "more keys than there are": (build(counts=(0, 900)), "it ends within a|is there twice"),
    "long key": (build([key(b"k" * 2000, 4, b"\0" * 4)]), "a name has 2000 bytes"),
    "huge key": (build([struct.pack("<Q", 2**64 - 1)]), "a name has"),
    "key twice": (build([key(b"k", 0, b"\0")] * 2), "'k' is there twice"),
    "key of no text": (build([key(b"\xff", 0, b"\0")]), "not UTF-8"),
    "value type": (build([key(b"k", 13, b"")]), "a value of type 13"),
    "huge string": (build([key(b"k", 8, struct.pack("<Q", 2**64 - 1))]), "it ends within a string"),
    "huge array": (build([key(b"k", 9, strings(2**61, 12))]), "it ends within a value"),
    "huge strings": (build([key(b"k", 9, strings(2**60))]), "claims 1152921504606846976 strings"),
    "strings": (build([key(b"k", 9, strings(1_900_000))]), "it ends within a string"),
    "array in array": (build([key(b"k", 9, strings(1, 9))]), "an array lies in an array"),
    "items": (build([key(b"k", 9, strings(1, 99))]), "a value of type 99"),
    "alignment": (build([key(b"general.alignment", 4, struct.pack("<I", 24))]), "alignment is 24"),
    "no alignment": (build([key(b"general.alignment", 4, b"\0" * 4)]), "alignment is 0"),
    "alignment as text": (build([key(b"general.alignment", 8, text(b"32"))]), "alignment is 32"),
    "alignment as array": (build([key(b"general.alignment", 9, strings(0))]), "a value of type 9"),
    "long name": (build(tensors=[tensor(b"x" * 64)]), "a name has 64 bytes"),
    "rank 0": (build(tensors=[tensor(shape=())]), "has 0 dimensions"),
    "rank 5": (build(tensors=[tensor(shape=(1,) * 5)]), "has 5 dimensions"),
    "empty dimension": (build(tensors=[tensor(shape=(4, 0))]), "has the shape"),
    "overflow": (build(tensors=[tensor(shape=(2**32, 2**32, 4))]), "has the shape"),
    "overflow to a small number": (build(tensors=[tensor(shape=(2**63 + 2, 2**63 + 2))]), "has the shape"),
    "beyond the file": (build(tensors=[tensor(shape=(17,))]), "'x' is not whole"),
    "tensor type": (build(tensors=[tensor(kind=4)]), "of type 4, which is unknown"),
    "half a block": (build(tensors=[tensor(shape=(31,), kind=2)]), "has the shape"),
    "unaligned": (build(tensors=[tensor(offset=4)]), "is not aligned"),
    "offset": (build(tensors=[tensor(offset=2**63)]), "is not whole"),
    "offset that wraps": (build(tensors=[tensor(offset=2**64 - 32)]), "is not whole"),
    "in another": (build(tensors=[tensor(shape=(16,)), tensor(b"y", offset=32)]), "'y' lies in another one"),
    "tensor twice": (build(tensors=[tensor(), tensor(offset=32)]), "'x' is there twice"),
}


def refused(path, fault):
    with pytest.raises(GgufFault, match=fault):
        read_header(path)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_says_what_is_wrong(scratch, name):
    content, fault = HOSTILE[name]
    scratch.write_bytes(content)
    assert cpu_s(lambda: refused(scratch, fault)) < 1


def test_what_these_headers_are_made_of_is_sound(scratch):
    keys = [key(b"general.alignment", 4, struct.pack("<I", 32)), key(b"k", 9, strings(2) + text(b"a") + text(b""))]
    scratch.write_bytes(build(keys, [tensor(), tensor(b"y", offset=32)]))
    assert [found.size for found in read_header(scratch).tensors] == [16, 16]


def test_a_header_of_strings_without_end_costs_neither_time_nor_memory(scratch):
    def read(many: int, runs: int) -> float:
        scratch.write_bytes(build([key(b"k", 9, strings(many) + b"\0" * (8 * many))], counts=(1, 1)))
        return cpu_s(lambda: refused(scratch, "0 dimensions"), runs)

    assert read(1_990_000, runs=3) < 1
    tracemalloc.start()  # makes it twenty times slower
    try:
        read(100_000, runs=1)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000  # the content that was written
    finally:
        tracemalloc.stop()


# Mutants

NUMBERS = st.sampled_from([0, 1, 2**16, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1])


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mutant_passes_or_raises_the_error_at_once(sound, scratch, data):
    mutant = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(mutant) - 9))
        kind = data.draw(st.sampled_from(["flip", "number", "cut", "insert"]))
        if kind == "flip":
            mutant[place] ^= data.draw(st.integers(1, 255))
        elif kind == "number":
            mutant[place : place + 8] = struct.pack("<Q", data.draw(NUMBERS))
        elif kind == "cut" and place > 20:
            del mutant[place:]
        else:
            mutant[place:place] = data.draw(st.binary(min_size=1, max_size=9))
    scratch.write_bytes(mutant)
    tracemalloc.start()
    started_s = time.thread_time()
    try:
        check_lora_gguf(scratch)
    except AdapterError as error:
        assert "\n" not in str(error)
    finally:
        seconds, (_, peak) = time.thread_time() - started_s, tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert seconds < 1 and peak < 1_000_000


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300), begin=st.sampled_from([b"", b"GGUF\3\0\0\0", b"GGUF\2\0\0\0\1" + b"\0" * 7]))
def test_bytes_raise_the_error(scratch, content, begin):
    scratch.write_bytes(begin + content)
    for check, error in ((check_gguf, EngineError), (check_lora_gguf, AdapterError)):
        try:
            check(scratch)
        except error:
            pass


def test_every_truncation_is_noticed(sound, scratch):
    for length in range(len(sound) - 16):  # the last matrix has 48 bytes, then 16 of padding
        scratch.write_bytes(sound[:length])
        with pytest.raises(AdapterError):
            check_lora_gguf(scratch)


@pytest.mark.parametrize("place", ["absent", "folder"])
def test_what_cannot_be_read_is_one_line(tmp_path, place):
    path = tmp_path if place == "folder" else tmp_path / "absent.gguf"
    with pytest.raises(AdapterError, match="No such file|Is a directory"):
        check_lora_gguf(path)
