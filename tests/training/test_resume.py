"""Real kills: a run that is resumed has the losses and the weights of one that was never interrupted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import train
from medical_assistant.errors import UserError
from tests.support.paths import ROOT

OPTIONS = ["--evaluations-per-epoch", "3", "--logging-steps", "1", "--report-to", "none", "--max-validation-rows", "4"]
OPTIONS += ["--learning-rate", "1e-2", "--lora-dropout", "0.1"]  # dropout: the random numbers must go on as well

# Runs train.py in a process that harms itself at a chosen place. 24 rows are 6 steps, a checkpoint every second one.
HARMED = """
import os, resource, signal, sys
import train
from transformers import Trainer
from trl import SFTTrainer
from medical_assistant.errors import run_script

harm = sys.argv.pop(1)
step, save_rng = SFTTrainer.training_step, Trainer._save_rng_state
calls, saves = [], []

def training_step(self, *arguments, **options):
    calls.append(1)
    if len(calls) == 4 and harm in ("SIGKILL", "SIGTERM", "SIGINT"):
        os.kill(os.getpid(), getattr(signal, harm))
    if len(calls) == 4 and harm == "disk full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    return step(self, *arguments, **options)

def _save_rng_state(self, folder):
    saves.append(1)
    if len(saves) == 2 and harm == "in a checkpoint":
        os.kill(os.getpid(), signal.SIGKILL)
    return save_rng(self, folder)

SFTTrainer.training_step, Trainer._save_rng_state = training_step, _save_rng_state
run_script(train.main)
"""


def command(data: Path, model: Path, output: Path, *more: str) -> list[str]:
    return ["--data", str(data), "--model", str(model), "--output", str(output), *OPTIONS, *more]


@pytest.fixture(scope="module")
def whole(prepared_data: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without interruption."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    train.main(command(prepared_data, tiny_model, output))
    return output


def losses(folder: Path) -> dict[tuple[str, int], float]:
    history = json.loads((folder / "training.json").read_text())["history"]
    return {(key, entry["step"]): entry[key] for entry in history for key in ("loss", "eval_loss") if key in entry}


@pytest.mark.parametrize(
    ("harm", "status", "kept"),
    [
        ("SIGKILL", -9, "checkpoint-2"),
        pytest.param("SIGTERM", 130, "checkpoint-4", marks=pytest.mark.slow),
        pytest.param("SIGINT", 130, "checkpoint-4", marks=pytest.mark.slow),
        pytest.param("in a checkpoint", -9, "checkpoint-2", marks=pytest.mark.slow),
        pytest.param("disk full", 2, "checkpoint-2", marks=pytest.mark.slow),
    ],
)
def test_mistake_8_a_killed_run_goes_on_as_if_nothing_had_happened(
    harm: str, status: int, kept: str, whole: Path, prepared_data: Path, tiny_model: Path, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file

    run = tmp_path / "run"
    process = subprocess.run(
        [sys.executable, "-c", HARMED, harm, *command(prepared_data, tiny_model, run)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert process.returncode == status, process.stderr[-2000:]
    assert "Traceback" not in process.stderr
    found = sorted(path.parent.name for path in (run / "checkpoints").glob("checkpoint-*/whole"))
    assert found[-1] == kept
    if harm == "disk full":
        assert "error: The disk of" in process.stderr and "--resume" in process.stderr
    if harm in ("in a checkpoint", "disk full"):
        assert (run / "checkpoints/checkpoint-4").is_dir() and (run / "checkpoints/checkpoint-2/whole").is_file()

    train.main(command(prepared_data, tiny_model, run, "--resume"))
    assert losses(run).keys() == losses(whole).keys()
    assert list(losses(run).values()) == pytest.approx(list(losses(whole).values()), rel=1e-3)
    resumed, uninterrupted = (load_file(folder / "adapter_model.safetensors") for folder in (run, whole))
    for name, weights in uninterrupted.items():
        assert resumed[name] == pytest.approx(weights, abs=2e-3), name
    assert not (run / "checkpoints").exists()
    record = json.loads((run / "training.json").read_text())
    assert record["resumed_at_step"] == int(kept.rpartition("-")[2])


def test_a_checkpoint_counts_only_when_it_is_whole_and_the_one_before_stays_until_then(
    prepared_data: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Trainer

    seen = []
    save = Trainer._save_rng_state

    def look(self, folder: str) -> None:
        save(self, folder)
        checkpoints = (tmp_path / "run/checkpoints").glob("checkpoint-*")
        seen.append({path.name: (path / "whole").is_file() for path in checkpoints})

    monkeypatch.setattr(Trainer, "_save_rng_state", look)
    train.main(command(prepared_data, tiny_model, tmp_path / "run", "--max-steps", "4"))
    assert seen == [{"checkpoint-2": False}, {"checkpoint-2": True, "checkpoint-4": False}]


def test_other_settings_or_other_data_are_not_resumed(
    prepared_data: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from medical_assistant.training import trainer as training

    data = shutil.copytree(prepared_data, tmp_path / "data")
    with monkeypatch.context() as broken:
        broken.setattr(training, "make_trainer", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train.main(command(data, tiny_model, tmp_path / "run"))
    with pytest.raises(UserError, match="already holds a run"):
        train.main(command(data, tiny_model, tmp_path / "run"))
    with pytest.raises(UserError, match="other settings .learning_rate"):
        train.main(command(data, tiny_model, tmp_path / "run", "--resume", "--learning-rate", "9e-3"))
    with pytest.raises(UserError, match="no checkpoint"):
        train.main(command(data, tiny_model, tmp_path / "run", "--resume"))
    (data / "manifest.json").write_text((data / "manifest.json").read_text() + "\n")
    with pytest.raises(UserError, match="not those that .* was trained on"):
        train.main(command(data, tiny_model, tmp_path / "run", "--resume"))


def test_a_loss_that_is_not_a_number_stops_the_run_before_the_weights(
    prepared_data: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path
) -> None:
    from medical_assistant.training.trainer import CpuSFTTrainer

    real, calls = CpuSFTTrainer.compute_loss, []

    def poisoned(self, model, inputs, *arguments, **options):
        calls.append(1)
        loss = real(self, model, inputs, *arguments, **options)
        return loss * float("nan") if self.state.global_step == 3 and model.training else loss

    with monkeypatch.context() as broken:
        broken.setattr(CpuSFTTrainer, "compute_loss", poisoned)
        with pytest.raises(UserError, match=r"loss is nan at step 4, in the batch .*condition .*learning-rate"):
            train.main(command(prepared_data, tiny_model, tmp_path / "run"))
    assert [path.name for path in (tmp_path / "run/checkpoints").glob("checkpoint-*")] == ["checkpoint-2"]
    train.main(command(prepared_data, tiny_model, tmp_path / "run", "--resume"))
    assert losses(tmp_path / "run") == pytest.approx(losses(whole), rel=1e-3)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device"), "disk of .* is full"),
        (RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/3"), "disk of .* is full"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: not enough memory"), "memory is full"),
        (RuntimeError("a bug"), None),
    ],
)
def test_explained_failures(error: Exception, message: str | None) -> None:
    import torch

    from medical_assistant.training.trainer import explained_failures
    from tests.support.training_fixture import make_settings

    with pytest.raises(UserError if message else type(error), match=message), explained_failures(make_settings()):
        raise error
    with (
        pytest.raises(UserError, match="--per-device-train-batch-size 2 --gradient-accumulation-steps 2"),
        explained_failures(make_settings()),
    ):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")
