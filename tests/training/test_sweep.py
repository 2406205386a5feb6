from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import train
from medical_assistant.errors import UserError
from medical_assistant.training.settings import load_experiments
from medical_assistant.training.sweep import best_experiment, gain, write_sweep

OPTIONS = ["--experiment", "all", "--logging-steps", "1", "--max-validation-rows", "4", "--report-to", "none"]


def run(data: Path, model: Path, output: Path, *more: str) -> Path:
    train.main(["--data", str(data), "--model", str(model), "--output", str(output), *OPTIONS, *more])
    return output


@pytest.fixture(scope="module")
def swept(prepared_data: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(prepared_data, tiny_model, tmp_path_factory.mktemp("runs") / "sweep")


def records(folder: Path) -> dict[str, dict]:
    return {name: json.loads((folder / name / "training.json").read_text()) for name in load_experiments()}


def test_five_runs_in_folders_of_their_own(swept: Path) -> None:
    found = records(swept)
    assert [found[name]["steps"] for name in found] == [6, 6, 6, 12, 12]
    assert found["higher-rank"]["trainable_parameters"] == 2 * found["baseline"]["trainable_parameters"]
    weights = {(swept / name / "adapter_model.safetensors").read_bytes() for name in found}
    assert len(weights) == 5


def test_the_table_comes_from_the_runs(swept: Path) -> None:
    content = json.loads((swept / "sweep.json").read_text())
    found = records(swept)
    for row in content["experiments"]:
        record = found[row["experiment"]]
        for key in ("validation_loss", "final_train_loss", "minutes", "peak_memory_gib", "trainable_parameters"):
            assert row[key] == record[key]
        assert (row["lora_r"], row["learning_rate"]) == (
            record["settings"]["lora_r"],
            record["settings"]["learning_rate"],
        )
    report = (swept / "report.md").read_text()
    assert f"{found['smaller-batch']['validation_loss']:.4f}" in report and "(loss.png)" in report
    assert f"{content['gain_validation_loss']:.1%}" in report
    assert (swept / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert content["history"]["baseline"] == found["baseline"]["history"]


def test_best_is_the_lowest_validation_loss(swept: Path) -> None:
    found = records(swept)
    best = min(found, key=lambda name: found[name]["validation_loss"])
    assert json.loads((swept / "best/training.json").read_text())["experiment"] == best
    weights = "adapter_model.safetensors"
    assert (swept / "best" / weights).read_bytes() == (swept / best / weights).read_bytes()


def test_the_best_is_not_chosen_by_training_loss() -> None:
    rows = [
        {"experiment": "baseline", "validation_loss": 2.0, "final_train_loss": 1.0},
        {"experiment": "b", "validation_loss": 1.8, "final_train_loss": 1.5},
        {"experiment": "c", "validation_loss": 2.5, "final_train_loss": 0.1},
    ]
    assert best_experiment(rows)["experiment"] == "b"
    assert gain(rows, "validation_loss") == pytest.approx(0.1)
    assert gain(rows[1:], "validation_loss") is None


@pytest.mark.slow
def test_again_skips_what_is_finished_and_trains_what_is_missing(
    swept: Path, prepared_data: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(swept, tmp_path / "sweep")
    shutil.rmtree(folder / "lower-lr")
    (folder / "best/training.json").unlink()
    kept = (folder / "baseline/training.json").stat().st_mtime_ns
    run(prepared_data, tiny_model, folder)
    assert capsys.readouterr().out.count("already finished") == 4
    assert (folder / "baseline/training.json").stat().st_mtime_ns == kept
    # The same seed and data give the same run.
    assert records(folder)["lower-lr"]["validation_loss"] == pytest.approx(
        records(swept)["lower-lr"]["validation_loss"]
    )
    assert (folder / "best/training.json").is_file()


@pytest.mark.slow
def test_an_interrupted_experiment_is_resumed(
    prepared_data: Path, tiny_model: Path, tmp_path: Path, swept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl import SFTTrainer

    step, calls = SFTTrainer.training_step, []

    def stop(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return step(self, *arguments, **options)

    with monkeypatch.context() as interrupted:
        interrupted.setattr(SFTTrainer, "training_step", stop)
        with pytest.raises(KeyboardInterrupt):
            run(prepared_data, tiny_model, tmp_path / "sweep")
    assert (tmp_path / "sweep/lower-lr/checkpoints/checkpoint-3").is_dir()
    run(prepared_data, tiny_model, tmp_path / "sweep")
    assert records(tmp_path / "sweep")["lower-lr"]["history"][-1]["eval_loss"] == pytest.approx(
        records(swept)["lower-lr"]["history"][-1]["eval_loss"], rel=1e-3
    )


def test_what_was_added_to_the_best_stays(swept: Path, prepared_data: Path, tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(swept, tmp_path / "sweep")
    (folder / "best/metrics.json").write_text("{}")
    run(prepared_data, tiny_model, folder)
    assert (folder / "best/metrics.json").is_file()


def test_other_settings_are_not_mixed_into_a_sweep(swept: Path, prepared_data: Path, tiny_model: Path) -> None:
    before = (swept / "baseline/training.json").read_bytes()
    with pytest.raises(UserError, match=r"holds another run .seed differ"):
        run(prepared_data, tiny_model, swept, "--seed", "7")
    assert (swept / "baseline/training.json").read_bytes() == before


def test_a_run_without_validation_has_no_best(swept: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(swept / "baseline", tmp_path / "baseline")
    record = json.loads((folder / "training.json").read_text())
    (folder / "training.json").write_text(json.dumps({**record, "validation_loss": None}))
    with pytest.raises(UserError, match="no validation loss"):
        write_sweep(tmp_path, {"baseline": folder})
