from __future__ import annotations

import functools

import pytest

from medical_assistant.errors import UserError
from medical_assistant.models.loading import load_config
from medical_assistant.models.presets import find_preset, load_presets
from medical_assistant.training import estimate
from tests.support.training_fixture import make_settings

# Total and rank-16 attention-only trainable parameters. Totals are those of the models' cards and safetensors;
# trainable is 16 x (in + out) of q, k, v and o, by hand.
KNOWN = {
    "smollm2-135m": (134_515_008, 16 * 30 * (4 * 576 + 576 + 576 + 2 * 192)),
    "tinyllama-1.1b": (1_100_048_384, 16 * 22 * (4 * 2048 + 2048 + 2048 + 2 * 256)),
    "qwen3-4b": (4_022_468_096, 16 * 36 * (3 * 2560 + 4096 + 4096 + 2 * 1024 + 2560)),
    "mistral-7b": (7_248_023_552, 16 * 32 * (4 * 4096 + 4096 + 4096 + 2 * 1024)),
    "llama-3.1-8b": (8_030_261_248, 16 * 32 * (4 * 4096 + 4096 + 4096 + 2 * 1024)),
}


@functools.cache
def count(name: str, targets: str, rank: int, dora: bool) -> estimate.Parameters:
    run = make_settings(model=name, lora_target_modules=targets, lora_r=rank, use_dora=dora)
    return estimate.count_parameters(load_config(find_preset(name)), run.lora)


def parameters(name: str, **values):
    settings = make_settings(find_preset(name), values.pop("cuda_memory_gib", None), model=name, **values)
    lora = values.get("lora_target_modules", "attention"), settings.lora.r, settings.lora.use_dora
    return count(name, *lora), settings


@pytest.mark.parametrize("name", list(KNOWN))
def test_parameters_are_counted_without_weights(name: str) -> None:
    found, _ = parameters(name)
    total, trainable = KNOWN[name]
    assert found.linear + found.other == total and found.trainable == trainable


def test_dora_adds_a_magnitude_for_each_output() -> None:
    plain, dora = parameters("smollm2-135m")[0], parameters("smollm2-135m", use_dora=True)[0]
    assert dora.trainable - plain.trainable == 30 * (576 + 192 + 192 + 576)


@pytest.mark.parametrize("name", [name for name, preset in load_presets().items() if preset.training])
@pytest.mark.parametrize("size", [16, 24, 80])
def test_presets_fit_their_device_at_full_length(name: str, size: int) -> None:
    found, settings = parameters(name, cuda_memory_gib=0.93 * size, lora_target_modules="all-linear", lora_r=32)
    tokens = settings.trainer.per_device_train_batch_size * settings.settings.max_length
    assert estimate.estimate_memory(found, settings, tokens, cuda=True, bits=16) < 0.93 * size


def test_more_of_anything_needs_more_memory() -> None:
    found, settings = parameters("llama-3.1-8b", cuda_memory_gib=24)
    need = estimate.estimate_memory(found, settings, 512, True, 16)
    assert estimate.estimate_memory(found, settings, 1024, True, 16) > need
    other = make_settings(find_preset("llama-3.1-8b"), 24, model="llama-3.1-8b", quantize="none")
    assert estimate.estimate_memory(found, other, 512, True, 16) > need + 9
    long = make_settings(find_preset("llama-3.1-8b"), 24, model="llama-3.1-8b", gradient_checkpointing=False)
    assert estimate.estimate_memory(found, long, 512, True, 16) > need


def check(memory_gib: float, **values) -> None:
    found, settings = parameters("llama-3.1-8b", **values)
    lengths = [settings.settings.max_length] * 8
    cuda = values.get("cuda_memory_gib") is not None
    estimate.check_fit(found, settings, lengths, memory_gib, cuda, 16)


def test_too_little_memory_says_what_to_lower_and_by_how_much() -> None:
    check(24, cuda_memory_gib=24)
    wide = {"cuda_memory_gib": 80, "per_device_train_batch_size": 16, "max_length": 2048}
    with pytest.raises(
        UserError, match=r"needs about \d+\.\d GiB and 12\.0 GiB are free: use --per-device-train-batch-"
    ):
        check(12, **wide)
    with pytest.raises(UserError, match=r"--quantize nf4 \(about \d"):
        check(15, cuda_memory_gib=15, quantize="none", max_length=256)
    with pytest.raises(UserError, match="choose a smaller --model"):
        check(3, cuda_memory_gib=15)


def test_dry_run_of_a_large_model_needs_no_download(prepared_data, tiny_model, tmp_path, capsys, monkeypatch) -> None:
    """Its tokenizer comes from elsewhere here; the config comes from the preset, weights from nowhere."""
    import train
    from medical_assistant.models import loading

    tokenizer = loading.load_tokenizer(find_preset(str(tiny_model)))
    monkeypatch.setattr(loading, "load_tokenizer", lambda *_: tokenizer)
    command = ["--data", str(prepared_data), "--output", str(tmp_path / "run"), "--report-to", "none", "--dry-run"]
    assert train.main([*command, "--model", "llama-3.1-8b", "--memory-gib", "16"]) == 0
    assert "of 8,043,892,736" in capsys.readouterr().out
    with pytest.raises(UserError, match="choose a smaller --model"):
        train.main([*command, "--model", "llama-3.1-8b", "--memory-gib", "4"])


def test_minutes_follow_the_work() -> None:
    found, settings = parameters("smollm2-135m")
    one = estimate.estimate_minutes(found, settings, 100_000, 200e9)
    assert estimate.estimate_minutes(found, settings, 200_000, 200e9) == pytest.approx(2 * one)
    assert 2 < one < 30  # 399 useful tokens/s were measured on two cores of 228 GFLOP/s: 4.2 minutes


def test_the_longest_batch() -> None:
    lengths = [10, 50, 20, 40, 30]
    padded = make_settings(per_device_train_batch_size=2)
    assert estimate.longest_batch(lengths, padded) == 100
    assert estimate.longest_batch(lengths, make_settings(per_device_train_batch_size=2, padding_free=True)) == 90
    assert estimate.longest_batch(lengths, make_settings(per_device_train_batch_size=2, packing=True)) == 1024
