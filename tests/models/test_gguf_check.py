"""The check of a GGUF in a process of its own: what it finds is one line, and its death too."""

from __future__ import annotations

import struct
import subprocess
import sys

import pytest

from medical_assistant.engines.load import load_engine
from medical_assistant.errors import AdapterError, EngineError
from medical_assistant.models import gguf_check
from medical_assistant.models.gguf_check import check_gguf, check_lora_gguf
from tests.support.paths import ROOT

BUNDLED = ROOT / "assets" / "adapters" / "smollm2-135m" / "adapter.gguf"


def test_a_sound_file_passes_as_what_it_is():
    check_lora_gguf(BUNDLED)
    with pytest.raises(EngineError, match=r"adapter\.gguf is no sound GGUF \(it holds no model\): download it again"):
        check_gguf(BUNDLED)


@pytest.mark.parametrize("engine", ["auto", "llama_cpp", "transformers"])
def test_a_broken_model_reaches_no_engine(tmp_path, monkeypatch, engine):
    def start(*arguments, **options):
        raise AssertionError("started")

    monkeypatch.setattr("medical_assistant.engines.llama_cpp.ChildProcess", start)
    monkeypatch.setattr("medical_assistant.engines.transformers.load_weights", start)
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2**63, 2**63))
    with pytest.raises(EngineError, match=r"model\.gguf is no sound GGUF \(it ends within a value\)"):
        load_engine(str(path), None, engine)


@pytest.mark.parametrize("place", ["absent", "folder"])
def test_what_cannot_be_read_is_one_line(tmp_path, place):
    path = tmp_path if place == "folder" else tmp_path / "absent.gguf"
    with pytest.raises(AdapterError, match="No such file|Is a directory"):
        check_lora_gguf(path)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit a process's data")
def test_the_process_has_little_memory(tmp_path):
    """A key of 2 GB, which takes no room on the disk: gguf-py would make a text of it."""
    path = tmp_path / "adapter.gguf"
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2_000_000_000))
        file.truncate(2_100_000_000)
    with pytest.raises(AdapterError, match=r"broken \(MemoryError\): train or download"):
        check_lora_gguf(path)


def test_a_process_that_dies_or_hangs_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(gguf_check, "MODULE", "no.such.module")
    with pytest.raises(EngineError, match="No module named") as caught:
        check_gguf(BUNDLED)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(gguf_check.sys, "executable", "/bin/false")
    with pytest.raises(AdapterError, match="ended with status 1"):
        check_lora_gguf(BUNDLED)
    monkeypatch.undo()
    monkeypatch.setattr(gguf_check, "TIMEOUT_S", 0.01)
    with pytest.raises(AdapterError, match=r"not read within 0\.01 s"):
        check_lora_gguf(BUNDLED)


def test_the_process_imports_little():
    code = "import sys, medical_assistant.models.gguf_header; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert not {"torch", "transformers", "gradio", "httpx", "huggingface_hub"} & set(loaded.split())
