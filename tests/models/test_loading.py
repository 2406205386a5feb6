"""One loader for training, serving, scoring and merging: from a folder, a GGUF and into 4 bits."""

from __future__ import annotations

from pathlib import Path

import pytest

from medical_assistant.errors import EngineError, UserError
from medical_assistant.models.loading import compute_dtype, load_config, load_model, load_tokenizer, read_tokenizer
from medical_assistant.models.presets import Preset, find_preset
from tests.support.tiny_llama import HIDDEN, byte_tokens, make_base

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    make_base(folder)
    return folder


@pytest.fixture
def gguf(folder) -> Preset:
    """A `.gguf` file that the user names."""
    return find_preset(str(folder / "base.gguf"))


def test_a_gguf_is_dequantised_and_is_the_model_that_it_was_made_from(folder, gguf):
    exact = load_model(find_preset(str(folder)), "none", torch.float32).state_dict()
    model = load_model(gguf, "none", torch.float32)
    assert load_config(gguf).hidden_size == HIDDEN
    for name, weights in model.state_dict().items():
        assert weights.dtype == torch.float32
        # Q4_1: 16 steps over the range of each block
        assert (weights - exact[name]).abs().max() <= (exact[name].max() - exact[name].min()) / 15


@pytest.mark.parametrize("source", ["folder", "gguf"])
def test_four_bits(folder, gguf, source):
    pytest.importorskip("bitsandbytes")
    model = load_model(gguf if source == "gguf" else find_preset(str(folder)), "nf4", torch.float32)
    layer = model.model.layers[0].mlp.gate_proj
    assert model.is_loaded_in_4bit and type(layer).__name__ == "Linear4bit"
    assert layer.compute_dtype == torch.float32 and layer.weight.quant_state.nested  # double quantisation
    assert layer.weight.quant_type == "nf4"


def test_the_files_of_the_model_name_its_precision(folder):
    assert load_model(find_preset(str(folder)), "none", "auto").dtype == torch.float32
    assert load_model(find_preset(str(folder)), "none", torch.bfloat16).dtype == torch.bfloat16


def test_serving_has_the_models_own_template_and_training_one_that_serves(folder):
    preset = find_preset(str(folder))
    assert read_tokenizer(preset).chat_template == "{{ 'another' }}"
    assert len(load_tokenizer(preset, "chatml")) == len(byte_tokens())


def test_a_model_that_cannot_be_had_is_one_line(tmp_path):
    for load in (read_tokenizer, load_config, lambda preset: load_model(preset, "none")):
        with pytest.raises(EngineError, match=r"cannot be loaded \(.+\): check the name, the network") as caught:
            load(Preset(name="x", repository=str(tmp_path)))
        assert "\n" not in str(caught.value)


def test_dtypes(monkeypatch):
    assert compute_dtype("bfloat16") == torch.bfloat16
    with pytest.raises(UserError, match="float31"):
        compute_dtype("float31")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for emulated, dtype in ((False, torch.bfloat16), (True, torch.float16)):  # a T4 emulates bfloat16
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda emulated=emulated, **options: not emulated)
        assert compute_dtype() == compute_dtype(decoding=True) == dtype
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert compute_dtype() == torch.float32
    monkeypatch.setenv("SPACES_ZERO_GPU", "1")
    assert compute_dtype(decoding=True) == torch.bfloat16
