from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from medical_assistant.errors import UserError
from medical_assistant.models.presets import find_preset, load_presets
from medical_assistant.training.settings import ResolvedSettings, TrainSettings, load_experiments
from tests.support.training_fixture import make_settings


def test_the_five_experiments_are_the_seeds() -> None:
    keys = ("learning_rate", "per_device_train_batch_size", "lora_r", "num_train_epochs")
    table = {name: tuple(row[key] for key in keys) for name, row in load_experiments().items()}
    assert table == {
        "baseline": (2e-4, 4, 16, 1),
        "lower-lr": (1e-4, 4, 16, 1),
        "higher-rank": (2e-4, 4, 32, 1),
        "smaller-batch": (2e-4, 2, 16, 1),
        "more-epochs": (1.5e-4, 4, 16, 2),
    }
    runs = make_settings(experiment="all")
    assert [run.experiment for run in runs] == list(table)
    assert len({run.output for run in runs}) == 5 and all(run.output.parent == Path("output") for run in runs)
    for run in runs:
        assert run.lora_alpha == 2 * run.lora_r and len(run.lora_target_modules) == 4


def test_options_have_the_names_of_trl_and_peft() -> None:
    from peft import LoraConfig
    from trl import SFTConfig

    theirs = {field.name for field in fields(SFTConfig)} | {field.name for field in fields(LoraConfig)}
    # TRL's own command line writes PEFT's r and target_modules with a prefix.
    theirs |= {"lora_r", "lora_target_modules", "chat_template", "loraplus_lr_ratio", "space_id"}
    ours = {"data", "output", "model", "experiment", "quantize", "evaluations_per_epoch"}
    ours |= {"max_train_rows", "max_validation_rows", "early_stopping_patience"}
    assert {field.name for field in fields(ResolvedSettings)} <= theirs | ours


def test_command_line_over_experiment_over_default() -> None:
    assert make_settings(experiment="higher-rank").lora_r == 32
    assert make_settings(experiment="higher-rank", lora_r=8).lora_alpha == 16
    assert make_settings(experiment="higher-rank", learning_rate=1e-3).learning_rate == 1e-3


def test_an_own_table(tmp_path: Path) -> None:
    table = tmp_path / "own.yaml"
    table.write_text(
        "dora: {learning_rate: 1e-4, per_device_train_batch_size: 2, lora_r: 4, num_train_epochs: 1, use_dora: true}\n"
    )
    (run,) = make_settings(experiment="all", experiments=table)
    assert (run.experiment, run.use_dora, run.learning_rate, run.lora_alpha) == ("dora", True, 1e-4, 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {lora_rank: 4}", "unknown 'lora_rank': did you mean lora_r"),
        ("a: {learning_rate: fast}", "must be a number"),
        ("a: {learning_rate: 1.0e-4}", "has no per_device_train_batch_size"),
        ("- a\n- b", "must hold"),
        ("a: [1", "not valid YAML"),
        ("../up: {lora_r: 4}", "name of a folder"),
        ("all: {lora_r: 4}", "name of a folder"),
        ("best: {lora_r: 4}", "name of a folder"),
        ("a: {push_to_hub: x}", "unknown 'push_to_hub'"),
    ],
)
def test_bad_tables(tmp_path: Path, text: str, message: str) -> None:
    table = tmp_path / "own.yaml"
    table.write_text(text)
    with pytest.raises(UserError, match=message):
        make_settings(experiment="all", experiments=table)
    with pytest.raises(UserError, match="cannot be read"):
        make_settings(experiments=tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"experiment": "base-line"}, "did you mean baseline"),
        ({"experiment": "xyz"}, "use one of baseline, .*all"),
        ({"num_train_epochs": 0.0}, "--num-train-epochs must be above 0"),
        ({"lora_dropout": 1.0}, "--lora-dropout"),
        ({"max_length": -1}, "--max-length"),
        ({"warmup_steps": -1.0}, "--warmup-steps"),
        ({"loraplus_lr_ratio": 0.5}, "--loraplus-lr-ratio"),
        ({"init_lora_weights": "pissa", "quantize": "nf4"}, "PiSSA"),
        ({"data": None}, "--data is missing"),
        ({"output": None}, "--output is missing"),
        ({"space_id": "user/space"}, "trackio"),
    ],
)
def test_bad_settings(values, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_settings(**values)


def test_a_mistyped_preset_gets_the_nearest_name() -> None:
    with pytest.raises(UserError, match="did you mean tinyllama-1.1b"):
        find_preset("tinylama-1.1b")


def test_the_device_decides() -> None:
    cpu, cuda = make_settings(), make_settings(cuda_memory_gib=16)
    assert (cpu.quantize, cpu.optim, cpu.padding_free) == ("none", "adamw_torch_fused", False)
    assert (cuda.quantize, cuda.optim, cuda.padding_free) == ("nf4", "paged_adamw_8bit", True)
    assert cuda.gradient_checkpointing and not cpu.gradient_checkpointing
    assert not make_settings(cuda_memory_gib=16, quantize="none").optim.startswith("paged")


def test_several_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    from medical_assistant.models.loading import load_model

    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert make_settings(cuda_memory_gib=24).optim == "adamw_torch_fused"
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UserError, match="--quantize none"):
        load_model(find_preset("smollm2-135m"), "nf4")


def test_trackio_is_the_tracker_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    from medical_assistant.training import settings as training_settings

    monkeypatch.setattr(training_settings, "find_spec", lambda name: name == "trackio")
    assert make_settings(report_to="auto", space_id="user/space").report_to == "trackio"
    assert make_settings(report_to="wandb").report_to == "wandb"
    monkeypatch.setattr(training_settings, "find_spec", lambda name: None)
    assert make_settings(report_to="auto").report_to == "none"


def test_small_devices_accumulate_so_that_a_step_has_the_experiments_rows() -> None:
    presets = load_presets()
    assert {name for name, preset in presets.items() if preset.training} >= {"qwen3-4b", "mistral-7b", "llama-3.1-8b"}
    for name, preset in presets.items():
        for size in preset.training:
            for experiment in ("baseline", "smaller-batch"):
                run = make_settings(preset, 0.93 * size, model=name, experiment=experiment)
                assert run.rows_a_step == (2 if experiment == "smaller-batch" else 4), (name, size)
                assert run.max_length == preset.training[size]["max_length"]
    small = make_settings(presets["llama-3.1-8b"], 15.6, model="llama-3.1-8b")
    assert (small.per_device_train_batch_size, small.gradient_accumulation_steps, small.max_length) == (1, 4, 512)
    chosen = make_settings(presets["llama-3.1-8b"], 15.6, model="llama-3.1-8b", max_length=256)
    assert chosen.max_length == 256


def test_no_path_of_a_machine_in_the_record(tmp_path: Path) -> None:
    record = make_settings(data=tmp_path / "data", output=tmp_path / "run").as_json()
    assert str(tmp_path) not in str(record)
    assert {field.name for field in fields(TrainSettings)} >= set(record)
