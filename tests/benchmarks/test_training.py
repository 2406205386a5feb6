from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.paths import ROOT, load_script


@pytest.fixture(scope="module")
def benchmark():
    return load_script("benchmarks/training")


@pytest.mark.slow
def test_the_answer_loss_is_the_trainers_evaluation_loss(
    benchmark, prepared_data: Path, tiny_model: Path, tmp_path: Path
) -> None:
    from tests.support.training_fixture import make_run

    trainer, _, data, _ = make_run(prepared_data, tiny_model, tmp_path)
    assert benchmark.answer_loss(trainer.model, data.validation) == pytest.approx(
        trainer.evaluate()["eval_loss"], rel=2e-3
    )


@pytest.mark.slow
def test_notebook_rows_are_padded_and_learn_the_prompt(
    benchmark, prepared_data: Path, tiny_model: Path, tmp_path: Path
) -> None:
    from medical_assistant.data.records import read_records
    from medical_assistant.models.loading import load_model, load_tokenizer
    from medical_assistant.models.presets import find_preset
    from tests.support.training_fixture import make_settings

    preset = find_preset(str(tiny_model))
    records = read_records(prepared_data / "train.jsonl")[:4]
    settings = make_settings(preset, output=tmp_path)
    trainer = benchmark.notebook_trainer(load_model(preset, "none"), load_tokenizer(preset), records, settings)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    assert batch["input_ids"].shape == (4, benchmark.NOTEBOOK_LENGTH)
    assert (batch["labels"][:, 1] != -100).all()  # a token of the prompt


def test_the_committed_run_has_its_table_and_every_variant(benchmark) -> None:
    report = json.loads((ROOT / "benchmarks/results/training.json").read_text(encoding="utf-8"))
    results = report["results"]
    assert [row["variant"] for row in results] == list(benchmark.VARIANTS)
    assert len({row["useful_tokens"] for row in results}) == 1  # the same rows
    assert len({row["loss_before"] for row in results}) == 1  # the same model
    for row in results:
        assert row["useful_tokens_per_second"] == pytest.approx(row["useful_tokens"] / row["seconds"], rel=0.01)
    assert benchmark.speed(results, "ours") > benchmark.speed(results, "notebook")
