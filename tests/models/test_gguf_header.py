"""GGUF headers: sound ones pass, and whatever is done to one is found, at once. In this process: no child is needed."""

from __future__ import annotations

import re
import struct
import tracemalloc
from pathlib import Path

import gguf
import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medical_assistant.models.gguf_header import HeaderReader, find_fault
from medical_assistant.models.presets import find_preset
from tests.support.paths import ROOT
from tests.support.timing import cpu_s
from tests.support.tiny_llama import save_gguf

BUNDLED = ROOT / "assets" / "adapters" / "smollm2-135m" / "adapter.gguf"
F32 = 0


def write_gguf(path: Path, tensors: dict[str, numpy.ndarray], kind: str | None = None, adapter: str | None = None):
    writer = gguf.GGUFWriter(path, "llama")
    if kind:
        writer.add_type(kind)
    if adapter:
        writer.add_string("adapter.type", adapter)
    writer.add_token_list([f"token{i}" for i in range(4)])
    writer.add_token_scores([0.5] * 4)
    writer.add_bool("general.flag", True)
    writer.add_array("general.tags", ["a", "b"])
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    save_gguf(writer)
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
    assert find_fault("model", path) is None
    assert len(HeaderReader(path).infos) == 272


def test_the_bundled_adapter_passes_and_is_read_as_the_gguf_package_does():
    assert find_fault("lora", BUNDLED) is None
    found = {tensor.name: (tensor.shape, tensor.kind) for tensor in HeaderReader(BUNDLED).infos}
    assert found == {
        tensor.name: (tuple(tensor.shape.tolist()), tensor.tensor_type) for tensor in gguf.GGUFReader(BUNDLED).tensors
    }


def test_an_adapter_of_embeddings_is_turned_round(tmp_path):
    assert find_fault("lora", lora(tmp_path / "a.gguf", (8, 2), (6, 2), name="token_embd.weight")) is None


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
    assert fault in find_fault("lora", lora(tmp_path / "a.gguf", **options))


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
    assert fault in find_fault("lora", write_gguf(tmp_path / "a.gguf", tensors, "adapter", "lora"))


def test_an_adapter_is_no_model(tmp_path):
    assert find_fault("model", lora(tmp_path / "a.gguf")) == "it holds no model"


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
    "empty": (b"", "empty file"),
    "magic": (build(magic=b"GGML"), "magic"),
    "version 1": (build(version=1), "version 1"),
    "big endian": (build(version=0x03000000), "another machine|ends within"),
    "tensors": (build(counts=(2**63, 0)), "it ends within a value"),
    "keys": (build(counts=(0, 2**64 - 1)), "it ends within a value|Duplicate"),
    "more keys than there are": (build(counts=(0, 900)), "it ends within a value|Duplicate"),
    "huge key": (build([struct.pack("<Q", 2**64 - 1)]), "it ends within a value"),
    "key twice": (build([key(b"k", 0, b"\0")] * 2), "Duplicate k already in list"),
    "key of no text": (build([key(b"\xff", 0, b"\0")]), "can't decode"),
    "value type": (build([key(b"k", 13, b"")]), "13 is not a valid GGUFValueType"),
    "huge string": (build([key(b"k", 8, struct.pack("<Q", 2**64 - 1))]), "it ends within a value"),
    "huge array": (build([key(b"k", 9, strings(2**61, 12))]), "it ends within a value"),
    "huge strings": (build([key(b"k", 9, strings(2**60))]), "claims 1152921504606846976 strings"),
    "strings": (build([key(b"k", 9, strings(1_900_000))]), "it ends within a string"),
    "array in array": (build([key(b"k", 9, strings(1, 9))]), "an array lies in an array"),
    "items": (build([key(b"k", 9, strings(1, 99))]), "99 is not a valid GGUFValueType"),
    "alignment": (build([key(b"general.alignment", 4, struct.pack("<I", 24))]), "Invalid alignment"),
    "no alignment": (build([key(b"general.alignment", 4, b"\0" * 4)]), "Invalid alignment"),
    "alignment as text": (build([key(b"general.alignment", 8, text(b"32"))]), "Bad type for general.alignment"),
    "alignment as array": (build([key(b"general.alignment", 9, strings(0))]), "Bad type for general.alignment"),
    "long name": (build(tensors=[tensor(b"x" * 64)]), "name has 64 bytes"),
    "rank 0": (build(tensors=[tensor(shape=())]), "has 0 dimensions"),
    "rank 5": (build(tensors=[tensor(shape=(1,) * 5)]), "has 5 dimensions"),
    "empty dimension": (build(tensors=[tensor(shape=(4, 0))]), "has the shape"),
    "overflow": (build(tensors=[tensor(shape=(2**32, 2**32, 4))]), "has the shape"),
    "overflow to a small number": (build(tensors=[tensor(shape=(2**63 + 2, 2**63 + 2))]), "has the shape"),
    "beyond the file": (build(tensors=[tensor(shape=(17,))]), "'x' is not whole"),
    "tensor type": (build(tensors=[tensor(kind=4)]), "4 is not a valid GGMLQuantizationType"),
    "type of no file": (build(tensors=[tensor(shape=(32,), kind=9)]), "of type Q8_1, which no file has"),
    "small alignment": (build([key(b"general.alignment", 4, struct.pack("<I", 2))]), "alignment is 2"),
    "half a block": (build(tensors=[tensor(shape=(31,), kind=2)]), "has the shape"),
    "unaligned": (build(tensors=[tensor(offset=4)]), "is not aligned"),
    "offset": (build(tensors=[tensor(offset=2**63)]), "is not whole"),
    "offset that wraps": (build(tensors=[tensor(offset=2**64 - 32)]), "is not whole"),
    "in another": (build(tensors=[tensor(shape=(16,)), tensor(b"y", offset=32)]), "'y' lies in another one"),
    "tensor twice": (build(tensors=[tensor(), tensor(offset=32)]), "two tensors have one name"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_says_what_is_wrong(scratch, name):
    content, fault = HOSTILE[name]
    scratch.write_bytes(content)
    found = find_fault("model", scratch)
    assert found and re.search(fault, found) and "\n" not in found


def test_what_these_headers_are_made_of_is_sound(scratch):
    keys = [key(b"general.alignment", 4, struct.pack("<I", 32)), key(b"k", 9, strings(2) + text(b"a") + text(b""))]
    scratch.write_bytes(build(keys, [tensor(), tensor(b"y", offset=32)]))
    assert find_fault("model", scratch) is None
    assert [found.name for found in HeaderReader(scratch).infos] == ["x", "y"]


def test_strings_cost_no_memory_and_linear_time(scratch):
    def read(many: int) -> float:
        scratch.write_bytes(build([key(b"k", 9, strings(many) + b"\0" * (8 * many))], [tensor(shape=())]))
        return cpu_s(lambda: find_fault("model", scratch), 3)

    assert read(400_000) < 8 * read(100_000)
    assert "0 dimensions" in find_fault("model", scratch)
    tracemalloc.start()  # makes it twenty times slower
    try:
        find_fault("model", scratch)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


# Mutants

NUMBERS = st.sampled_from([0, 1, 2**16, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mutant_passes_or_is_found_at_no_cost(sound, scratch, data):
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
    try:
        fault = find_fault("lora", scratch)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert fault is None or "\n" not in fault
    assert peak < 1_000_000


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300), begin=st.sampled_from([b"", b"GGUF\3\0\0\0", b"GGUF\2\0\0\0\1" + b"\0" * 7]))
def test_bytes_are_no_lora(scratch, content, begin):
    scratch.write_bytes(begin + content)
    find_fault("model", scratch)
    assert find_fault("lora", scratch)


def test_every_truncation_is_noticed(sound, scratch):
    for length in range(len(sound) - 16):  # the last matrix has 48 bytes, then 16 of padding
        scratch.write_bytes(sound[:length])
        assert find_fault("lora", scratch)
