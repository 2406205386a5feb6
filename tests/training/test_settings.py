from __future__ import annotations

import typing
from dataclasses import fields
from pathlib import Path

import pytest

import train
from medical_assistant.errors import UserError
from medical_assistant.models.presets import find_preset, load_presets
from medical_assistant.settings import options_of, read_options
from medical_assistant.training.settings import (
    COMMANDS,
    EXPERIMENT_KEYS,
    LORA,
    MORE_TRAINER,
    OPTIONS,
    PEFT_NAMES,
    TRAINER,
    TrainSettings,
    load_experiments,
    plan_runs,
)
from tests.support.training_fixture import make_settings

EXPERIMENT = (
    "dora: {learning_rate: 1e-4, per_device_train_batch_size: 2, lora_r: 4, num_train_epochs: 1, use_dora: true, "
    "lora_dropout: 0.1, max_validation_rows: 7, packing: true}\n"
)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "own.yaml"
    path.write_text(EXPERIMENT)
    return path


def plan(*argv: object):
    given = read_options(OPTIONS, ["--data", "data", "--output", "output", *map(str, argv)], None)
    return plan_runs(given, find_preset("smollm2-135m"), None)[0]


def test_the_five_experiments_are_the_seeds() -> None:
    rows = {name: tuple(row[key] for key in EXPERIMENT_KEYS) for name, row in load_experiments().items()}
    assert rows == {
        "baseline": (2e-4, 4, 16, 1),
        "lower-lr": (1e-4, 4, 16, 1),
        "higher-rank": (2e-4, 4, 32, 1),
        "smaller-batch": (2e-4, 2, 16, 1),
        "more-epochs": (1.5e-4, 4, 16, 2),
    }
    runs = make_settings(experiment="all")
    assert [run.settings.experiment for run in runs] == list(rows)
    assert len({run.output for run in runs}) == 5 and all(run.output.parent == Path("output") for run in runs)
    for run in runs:
        assert run.lora.lora_alpha == 2 * run.lora.r and len(run.lora.target_modules) == 4


def test_options_are_fields_of_trl_and_peft_and_ours_are_in_neither() -> None:
    from peft import LoraConfig
    from trl import SFTConfig

    theirs = {field.name for field in fields(SFTConfig)}
    peft = {field.name for field in fields(LoraConfig)}
    assert set(TRAINER) | set(MORE_TRAINER) <= theirs
    assert {PEFT_NAMES.get(name, name) for name in LORA} <= peft
    # max_length cuts in TRL and leaves rows out here; push_to_hub is a repository here and a flag there.
    assert set(options_of(TrainSettings)) & (theirs | peft) == {"max_length", "push_to_hub"}
    hints = typing.get_type_hints(SFTConfig)
    for name, option in MORE_TRAINER.items():
        assert option.kind in (hints[name], *typing.get_args(hints[name])), name


def test_every_value_reaches_trl_and_peft() -> None:
    run = plan(
        "--learning-rate", "3e-4", "--adam-beta2", "0.9", "--max-grad-norm", "0.5", "--run-name", "mine",
        "--gradient-checkpointing-kwargs", '{"use_reentrant": false}', "--logging-first-step",
        "--use-rslora", "--lora-r", "8",
        "--init-lora-weights", "gaussian", "--lora-target-modules", "all-linear", "--neftune-noise-alpha", "5",
    )  # fmt: skip
    arguments, lora = run.trainer, run.lora
    assert (arguments.learning_rate, arguments.adam_beta2, arguments.max_grad_norm) == (3e-4, 0.9, 0.5)
    assert arguments.run_name == "mine" and arguments.gradient_checkpointing_kwargs == {"use_reentrant": False}
    assert arguments.logging_first_step and arguments.neftune_noise_alpha == 5
    assert (lora.r, lora.lora_alpha, lora.use_rslora, lora.init_lora_weights) == (8, 16, True, "gaussian")
    assert lora.target_modules == "all-linear"
    assert run.as_json()["adam_beta2"] == 0.9 and "adam_beta1" not in run.as_json()
    assert plan().trainer.run_name == "output-baseline"
    with pytest.raises(UserError, match="TRL refuses these settings: .*adamw_of_nobody"):
        _ = plan("--optim", "adamw_of_nobody").trainer


def test_precedence_default_experiment_config_command_line(table: Path, tmp_path: Path) -> None:
    own = ("--experiments", table, "--experiment", "dora")
    config = tmp_path / "config.yaml"
    config.write_text("lora_dropout: 0.2\nlora_r: 6\n")
    assert plan().values["lora_dropout"] == 0 and not plan().lora.use_dora
    assert plan(*own).values["lora_dropout"] == 0.1 and plan(*own).lora.use_dora
    run = plan(*own, "--config", config)
    assert (run.lora.lora_dropout, run.lora.r, run.lora.lora_alpha, run.trainer.learning_rate) == (0.2, 6, 12, 1e-4)
    run = plan(*own, "--config", config, "--lora-dropout", "0.3", "--lora-alpha", "5")
    assert (run.lora.lora_dropout, run.lora.r, run.lora.lora_alpha) == (0.3, 6, 5)


def test_the_command_line_wins_also_with_the_value_of_a_default(table: Path, tmp_path: Path) -> None:
    """`--no-use-dora --lora-dropout 0` once lost to the experiment, since they are the defaults."""
    own = ("--experiments", table, "--experiment", "dora")
    run = plan(*own, "--no-use-dora", "--lora-dropout", "0", "--max-validation-rows", "200", "--no-packing")
    assert not run.lora.use_dora and run.lora.lora_dropout == 0
    assert run.settings.max_validation_rows == 200 and not run.trainer.packing
    config = tmp_path / "config.yaml"
    config.write_text("use_dora: false\nlora_dropout: 0.0\n")
    run = plan(*own, "--config", config)
    assert not run.lora.use_dora and run.lora.lora_dropout == 0 and run.trainer.packing
    run = plan("--config", config, "--use-dora")
    assert run.lora.use_dora


def test_command_line_over_experiment_over_default() -> None:
    assert plan("--experiment", "higher-rank").lora.r == 32
    assert plan("--experiment", "higher-rank", "--lora-r", "8").lora.lora_alpha == 16
    assert plan("--experiment", "higher-rank", "--learning-rate", "1e-3").trainer.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {lora_rank: 4}", "unknown 'lora_rank': did you mean lora_r"),
        ("a: {learning_rate: fast}", "learning_rate must be a number"),
        ("a: {use_dora: 1}", "use_dora must be bool"),
        ("a: {quantize: int8}", "quantize must be one of auto, nf4, none"),
        ("a: {learning_rate: 1.0e-4}", "has no per_device_train_batch_size"),
        ("- a\n- b", "must hold"),
        ("a: 1", "must hold"),
        ("a: [1", "not valid YAML"),
        ("../up: {lora_r: 4}", "name of a folder"),
        ("..: {lora_r: 4}", "name of a folder"),
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
    ("argv", "message"),
    [
        ("--experiment base-line", "did you mean baseline"),
        ("--experiment xyz", "use one of baseline, .*all"),
        ("--num-train-epochs 0", "--num-train-epochs must be above 0"),
        ("--learning-rate nan", "--learning-rate must be above 0, not nan"),
        ("--lora-alpha 0", "--lora-alpha must be above 0, not 0"),  # once 2 x rank
        ("--max-validation-rows -5", "--max-validation-rows must be 0 or more, not -5"),  # once accepted
        ("--max-train-rows -1", "--max-train-rows must be 0 or more"),
        ("--max-steps 0", "--max-steps must be above 0, or -1"),
        ("--seed -1", "--seed must be 0 or more"),
        ("--lora-dropout 1", "--lora-dropout"),
        ("--max-length 0", "--max-length"),
        ("--max-length -1", "--max-length"),
        ("--memory-gib 0", "--memory-gib"),
        ("--warmup-steps -1", "--warmup-steps"),
        ("--loraplus-lr-ratio 0.5", "--loraplus-lr-ratio"),
        ("--init-lora-weights pissa --quantize nf4", "PiSSA"),
        ("--space-id user/space --report-to none", "trackio"),
        ("--lora-rank 4", "Unknown option --lora-rank: did you mean --lora-r"),
        ("--job a10g-small", "Unknown option --job"),
        ("--output-dir x", "Unknown option --output-dir"),  # of SFTConfig, and decided here
        ("--lora-r many", "Argument --lora-r: invalid int"),
        ("--merge q9", "invalid choice"),
    ],
)
def test_bad_settings(argv: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(*argv.split())


@pytest.mark.parametrize("missing", ["data", "output"])
def test_folders_must_be_given(missing: str) -> None:
    with pytest.raises(UserError, match=f"--{missing} is missing"):
        make_settings(**{missing: None})


def test_what_is_wrong_with_the_command_line_is_said_before_trl_is_imported(tmp_path: Path) -> None:
    """TRL and its imports take seconds."""
    import subprocess
    import sys

    code = (
        "import sys, train\n"
        "from medical_assistant.errors import UserError\n"
        "for argv in (['--help'], ['--lora-rank', '4'], ['--publish', 'none'], ['--model', 'nothing'], "
        f"['--data', 'data'], ['--config', {str(tmp_path / 'none.yaml')!r}]):\n"
        "    try: train.main(argv)\n"
        "    except (UserError, SystemExit): pass\n"
        "    else: sys.exit(f'{argv} was accepted')\n"
        "assert not {'torch', 'trl', 'peft', 'transformers'} & set(sys.modules)\n"
    )
    root = Path(train.__file__).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_mistyped_preset_gets_the_nearest_name() -> None:
    with pytest.raises(UserError, match="did you mean tinyllama-1.1b"):
        find_preset("tinylama-1.1b")


def test_the_device_decides() -> None:
    cpu, cuda = make_settings().values, make_settings(cuda_memory_gib=16).values
    assert (cpu["quantize"], cpu["optim"], cpu["padding_free"]) == ("none", "adamw_torch_fused", False)
    assert (cuda["quantize"], cuda["optim"], cuda["padding_free"]) == ("nf4", "paged_adamw_8bit", True)
    assert cuda["gradient_checkpointing"] and not cpu["gradient_checkpointing"]
    assert not make_settings(cuda_memory_gib=16, quantize="none").values["optim"].startswith("paged")
    assert not make_settings(cuda_memory_gib=16, padding_free=False).values["padding_free"]


def test_arguments_of_a_cuda_run(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    seen: dict = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("medical_assistant.training.settings.compute_dtype", lambda: torch.float16)
    monkeypatch.setattr("trl.SFTConfig", lambda **options: seen.update(options))
    _ = make_settings(cuda_memory_gib=16).trainer
    assert seen["fp16"] and not seen["bf16"] and not seen["use_cpu"]
    assert seen["optim"] == "paged_adamw_8bit" and seen["gradient_checkpointing"] and seen["padding_free"]
    assert seen["train_sampling_strategy"] == "random" and seen["max_length"] is None


def test_several_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    from medical_assistant.models.loading import load_model

    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert make_settings(cuda_memory_gib=24).values["optim"] == "adamw_torch_fused"
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UserError, match="--quantize none"):
        load_model(find_preset("smollm2-135m"), "nf4")


def test_trackio_is_the_tracker_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    from medical_assistant.training import settings as training_settings

    monkeypatch.setattr(training_settings, "find_spec", lambda name: name == "trackio")
    assert make_settings(report_to="auto", space_id="user/space").values["report_to"] == "trackio"
    assert make_settings(report_to="wandb").values["report_to"] == "wandb"
    monkeypatch.setattr(training_settings, "find_spec", lambda name: None)
    assert make_settings(report_to="auto").values["report_to"] == "none"


def test_small_devices_accumulate_so_that_a_step_has_the_experiments_rows() -> None:
    presets = load_presets()
    assert {name for name, preset in presets.items() if preset.training} >= {"qwen3-4b", "mistral-7b", "llama-3.1-8b"}
    for name, preset in presets.items():
        for size in preset.training:
            for experiment in ("baseline", "smaller-batch"):
                run = make_settings(preset, 0.93 * size, model=name, experiment=experiment)
                assert run.rows_a_step == (2 if experiment == "smaller-batch" else 4), (name, size)
                assert run.settings.max_length == preset.training[size]["max_length"]
    small = make_settings(presets["llama-3.1-8b"], 15.6, model="llama-3.1-8b").values
    assert [small[key] for key in ("per_device_train_batch_size", "gradient_accumulation_steps", "max_length")] == [
        1, 4, 512,
    ]  # fmt: skip
    chosen = make_settings(presets["llama-3.1-8b"], 15.6, model="llama-3.1-8b", max_length=256)
    assert chosen.settings.max_length == 256


def test_the_record_has_every_option_that_says_what_a_run_is_and_no_path_of_a_machine(tmp_path: Path) -> None:
    record = make_settings(data=tmp_path / "data", output=tmp_path / "run").as_json()
    assert str(tmp_path) not in str(record)
    assert set(record) == set(OPTIONS) - set(COMMANDS) - set(MORE_TRAINER)
