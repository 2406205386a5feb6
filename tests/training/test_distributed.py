"""Training on several devices: the configs of assets/accelerate, and two CPU processes against one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import train
from medical_assistant.data.records import make_record, write_records
from medical_assistant.models.adapter import ADAPTER_FILES
from tests.support.paths import ROOT

CONFIGS = ROOT / "assets" / "accelerate"
WORDS = "fever cough rash pain ache chill swelling itch nausea fatigue dizziness cramp".split()


@pytest.mark.parametrize("name", ["ddp", "ddp_cpu", "fsdp_qlora", "deepspeed_zero3"])
def test_accelerate_reads_the_configs(name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    path = str(CONFIGS / f"{name}.yaml")
    config = load_config_from_file(path)  # raises for an unknown key
    assert (config.num_machines, config.num_processes) == (1, 2)
    command = ["--config_file", path, "--num_processes", "4", "train.py", "--seed", "2"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(command))
    assert (arguments.num_processes, arguments.training_script_args) == (4, ["--seed", "2"])
    kinds = {"fsdp_qlora": "use_fsdp", "deepspeed_zero3": "use_deepspeed"}
    chosen = {kind for kind in ("multi_gpu", "use_fsdp", "use_deepspeed") if getattr(arguments, kind)}
    assert chosen == {kinds.get(name, "multi_gpu")}


def test_fsdp_config_has_what_qlora_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As accelerate's own plugin reads it; the bitsandbytes guide to FSDP-QLoRA says what is needed."""
    import torch
    from accelerate import FullyShardedDataParallelPlugin
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    command = ["--config_file", str(CONFIGS / "fsdp_qlora.yaml"), "--main_process_port", "0", "train.py"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(command))
    for key, value in prepare_multi_gpu_env(arguments).items():
        monkeypatch.setenv(key, value)
    # Where there is no GPU the plugin would refuse to be made.
    monkeypatch.setattr("accelerate.utils.dataclasses.is_cuda_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 1  # version 2 changes bits of packed 4-bit weights: bitsandbytes issue 1945
    assert plugin.use_orig_params is False
    assert plugin.cpu_ram_efficient_loading and plugin.sync_module_states
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"  # one adapter, not a shard of it
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert not plugin.activation_checkpointing  # train.py asks transformers for it; both at once raise
    # What train.py stores 4-bit weights in where this mixed precision is set.
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "bf16"


def test_zero3_config_is_stage_3() -> None:
    text = (CONFIGS / "deepspeed_zero3.yaml").read_text(encoding="utf-8")
    config = yaml.safe_load(text)["deepspeed_config"]
    assert (config["zero_stage"], config["zero3_init_flag"]) == (3, True)
    assert "--quantize none" in text


@pytest.fixture
def uneven_data(tmp_path: Path) -> Path:
    """24 rows whose answers have 1 to 7 sentences: a mean of the processes' means would not be the mean."""
    records = [
        make_record(f"What is condition {i}?", f"It is {WORDS[i % 12]}. " * (1 + i * 5 % 7), f"r-{i}", "test", i)
        for i in range(28)
    ]
    folder = tmp_path / "uneven"
    folder.mkdir()
    write_records(records[:24], folder / "train.jsonl")
    write_records(records[24:], folder / "validation.jsonl")
    (folder / "manifest.json").write_text("{}")
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch on one thread: more only wait for each other in a model this small."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("rows", [24, 26])
def test_a_step_holds_the_same_rows_on_one_process_and_on_two(rows: int) -> None:
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler

    from medical_assistant.training.trainer import SeededLengthSampler

    lengths = [10 + i * 7 % 13 for i in range(rows)]
    seen = []
    for epoch in (0, 1):
        sampler = SeededLengthSampler(4, lengths, seed=42)
        sampler.set_epoch(epoch)
        one = list(BatchSampler(sampler, 4, drop_last=False))
        ranks = [BatchSamplerShard(BatchSampler(sampler, 2, drop_last=False), 2, rank) for rank in (0, 1)]
        two = [first + second for first, second in zip(*ranks, strict=True)]
        whole = [step for step in one if len(step) == 4]
        assert two[: len(whole)] == whole
        assert {row for step in two for row in step} == set(range(rows))
        seen.append(one)
    assert seen[0] != seen[1]  # another order in the second epoch


@pytest.mark.slow
def test_two_processes_train_as_one_does(uneven_data: Path, tiny_model: Path, tmp_path: Path, one_thread: None) -> None:
    options = ["--data", str(uneven_data), "--model", str(tiny_model), "--max-validation-rows", "4"]
    # Two epochs: the processes must agree on the order of rows in the second one as well.
    options += ["--num-train-epochs", "2", "--learning-rate", "2e-3", "--lora-dropout", "0", "--logging-steps", "1"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    launch += ["--config_file", str(CONFIGS / "ddp_cpu.yaml"), str(ROOT / "train.py")]
    done = subprocess.run(
        [*launch, *options, "--output", str(tmp_path / "two"), "--per-device-train-batch-size", "2"],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("adapter in ") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"uneven", "two"}
    assert {path.name for path in (tmp_path / "two").iterdir()} == set(ADAPTER_FILES) - {
        "metrics.json",
        "calibration.json",
        "report.md",
    }

    train.main([*options, "--output", str(tmp_path / "one"), "--per-device-train-batch-size", "4"])
    two, one = (json.loads((tmp_path / name / "training.json").read_text()) for name in ("two", "one"))
    assert two["steps"] == one["steps"] == 12
    losses = [[entry["loss"] for entry in record["history"] if "loss" in entry] for record in (two, one)]
    assert len(losses[0]) == 12 and losses[0][-1] < losses[0][0]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)  # bfloat16 where the CPU has it
    assert losses[0][:2] == pytest.approx(losses[1][:2], rel=1e-4)
    assert two["validation_loss"] == pytest.approx(one["validation_loss"], rel=2e-3)
