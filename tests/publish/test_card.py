"""The model card says what training.json and metrics.json say, and no more."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from medical_assistant.errors import UserError
from medical_assistant.publish.card import write_card
from tests.support.paths import ROOT

TRAINING: dict[str, Any] = {
    "experiment": "higher-rank",
    "settings": {
        "learning_rate": 5e-4,
        "batch_size": 4,
        "lora_rank": 32,
        "target_modules": ["q_proj", "v_proj"],
        "output": "runs/somebodys",
        "config": "/home/somebody/settings.yaml",
    },
    "model": "smollm2-135m",
    "data": {
        "source": "/home/somebody/wikidoc_patient.jsonl",
        "revision": None,
        "manifest_sha256": "ab" * 32,
        "train_rows": 4_123,
        "validation_rows": 456,
        "license": "CC BY-SA 4.0",
        "attribution": "WikiDoc contributors, by way of Medical Meadow",
    },
    "trainable_parameters": 4_884_480,
    "total_parameters": 139_399_488,
    "versions": {"peft": "0.21.2", "trl": "1.16.0"},
    "train_loss": 2.0312345,
    "validation_loss": 1.98765,
    "minutes": 61.5,
    "history": [
        {"step": 10, "epoch": 0.1, "loss": 2.9},
        {"step": 50, "epoch": 0.5, "eval_loss": 2.25},
        {"step": 100, "epoch": 1.0, "eval_loss": 1.98765},
    ],
}
METRICS: dict[str, Any] = {
    "n": 456,
    "scores": {
        "base": {"bleu": 0.8812345, "rouge1": 0.163, "rouge2": 0.033, "rougeL": 0.111, "ended": 0.35},
        "fine_tuned": {"bleu": 3.5698765, "rouge1": 0.213, "rouge2": 0.083, "rougeL": 0.177, "ended": 0.81},
    },
    "comparison": {
        "status": "done",
        "pairs": {"fine_tuned vs base": {"rougeL": {"difference": 0.066, "low": 0.0581, "high": 0.0749}}},
        "verdicts": {"fine_tuned vs base": {"verdict": "better", "sentence": "It is better."}},
    },
}
SCORES = METRICS["scores"]


def folder_with(
    tmp_path: Path, training: object = TRAINING, metrics: object = METRICS, base: object = None, **config: object
) -> Path:
    base = base or "HuggingFaceTB/SmolLM2-135M-Instruct"
    files = {
        "adapter_config.json": {"base_model_name_or_path": base, **config},
        "training.json": training,
        "metrics.json": metrics,
    }
    for name, content in files.items():
        if content is not None:
            (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    return tmp_path


def table_rows(text: str) -> dict[str, list[str]]:
    """First cell of each Markdown table row -> the other cells."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {row[0]: row[1:] for row in rows}


def test_metadata_round_trip(tmp_path: Path) -> None:
    path = write_card(folder_with(tmp_path), "alice/medical-lora")
    assert path == tmp_path / "README.md"
    card = ModelCard.load(path)
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert card.data.library_name == "peft"
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.license == "cc-by-sa-4.0"
    assert card.data.language == "en"
    assert card.data.get("datasets") is None  # a local file is no data set of the Hub
    assert card.data.model_name == "medical-lora"
    results = {result.metric_name: result.metric_value for result in card.data.eval_results}
    scores = SCORES["fine_tuned"]
    assert results == {
        "BLEU": scores["bleu"],
        "ROUGE-1": scores["rouge1"],
        "ROUGE-2": scores["rouge2"],
        "ROUGE-L": scores["rougeL"],
    }
    assert str(card) == path.read_text(encoding="utf-8")  # parsed and written again: the same card


def test_figures_are_those_of_the_folder(tmp_path: Path) -> None:
    rows = table_rows(write_card(folder_with(tmp_path)).read_text(encoding="utf-8"))
    for key, label in {"bleu": "BLEU", "rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}.items():
        base, fine_tuned, change, _ = rows[label]
        assert float(base) == pytest.approx(SCORES["base"][key], rel=5e-4)
        assert float(fine_tuned) == pytest.approx(SCORES["fine_tuned"][key], rel=5e-4)
        relative = SCORES["fine_tuned"][key] / SCORES["base"][key] - 1
        assert float(change.rstrip("%")) == pytest.approx(100 * relative, abs=0.5)
    assert rows["Trainable parameters"] == ["4,884,480 of 139,399,488 (3.50%)"]
    assert rows["Training rows"] == ["4,123"]
    assert float(rows["Best validation loss"][0]) == pytest.approx(TRAINING["validation_loss"], rel=5e-4)
    assert float(rows["learning rate"][0]) == TRAINING["settings"]["learning_rate"]
    assert rows["target modules"] == ["q_proj, v_proj"]


def test_other_metrics_give_other_figures(tmp_path: Path) -> None:
    changed = {**METRICS, "scores": {**SCORES, "fine_tuned": {**SCORES["fine_tuned"], "bleu": 0.5}}}
    rows = table_rows(write_card(folder_with(tmp_path, metrics=changed)).read_text(encoding="utf-8"))
    assert rows["BLEU"] == ["0.8812", "0.5", "-43%", "-"]  # no interval was measured
    assert rows["ROUGE-L"][3] == "+0.066 (+0.0581 to +0.0749)"


def test_what_was_not_run_is_not_in_the_card_and_what_was_is(tmp_path: Path) -> None:
    rate = {"accuracy": 0.255, "low": 0.23, "high": 0.28}
    knowledge = {"status": "done", "sets": [{"name": "exam.jsonl", "n": 1089, "chance": 0.25}]}
    knowledge["sets"][0]["accuracy"] = {"base": rate, "fine_tuned": {**rate, "accuracy": 0.26}}
    safety = {"status": "not run", "reason": "It was left out.", "candidates": {"base": {"refusal_rate": 0.5}}}
    path = write_card(folder_with(tmp_path, metrics={**METRICS, "knowledge": knowledge, "safety": safety}))
    text = path.read_text(encoding="utf-8")
    assert "**It is better.**" in text and "refused" not in text
    assert "base 25.5% (23.0% to 28.0%), with this adapter 26.0% (23.0% to 28.0%); chance 25.0%" in text
    accuracy = ModelCard.load(path).data.eval_results[-1]
    assert (accuracy.dataset_name, accuracy.metric_type, accuracy.metric_value) == ("exam.jsonl", "accuracy", 0.26)


def test_a_reader_finds_use_limits_licence_and_commands(tmp_path: Path) -> None:
    text = write_card(folder_with(tmp_path), "alice/medical-lora").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    wanted = ["Intended use", "Limits and safety", "Results", "Data", "Training", "How to use it", "Licence"]
    assert headings == wanted
    for part in (
        "no substitute for a doctor",
        "emergency number",
        "WikiDoc contributors",
        "CC BY-SA 4.0",
        "ADAPTER=alice/medical-lora@",
        "llama-server -m base.gguf --lora adapter.gguf",
        'AutoModelForCausalLM.from_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct")',
        'PeftModel.from_pretrained(model, "alice/medical-lora")',
        "went from 2.25 (step 50) to 1.988 (step 100)",
    ):
        assert part in text
    assert "somebody" not in text


@pytest.mark.parametrize(
    ("rank", "option"), [(8, ""), (16, ""), (24, " --max-lora-rank 32"), (64, " --max-lora-rank 64")]
)
def test_vllm_takes_the_rank(tmp_path: Path, rank: int, option: str) -> None:
    text = write_card(folder_with(tmp_path, r=rank), "alice/medical-lora").read_text(encoding="utf-8")
    command = (
        "vllm serve HuggingFaceTB/SmolLM2-135M-Instruct --enable-lora --lora-modules medical-lora=alice/medical-lora"
    )
    assert f"\n{command}{option}\n" in text


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (
            {"r": 8, "lora_alpha": 16, "target_modules": ["v_proj", "k_proj"]},
            "LoRA, rank 8, alpha 16, on k_proj, v_proj",
        ),
        ({"r": 8, "use_rslora": True, "init_lora_weights": "pissa"}, "rsLoRA, rank 8, initialised by pissa"),
        (
            {"r": 4, "use_dora": True, "init_lora_weights": True, "target_modules": "all-linear"},
            "DoRA, rank 4, on all-linear",
        ),
    ],
)
def test_the_kind_of_adapter_is_that_of_its_configuration(tmp_path: Path, config: dict[str, Any], kind: str) -> None:
    rows = table_rows(write_card(folder_with(tmp_path, **config)).read_text(encoding="utf-8"))
    assert rows["Adapter"] == [kind]


def test_a_dora_is_not_offered_to_programs_that_refuse_it(tmp_path: Path) -> None:
    path = write_card(folder_with(tmp_path, r=16, use_dora=True))
    text = path.read_text(encoding="utf-8")
    assert "vllm serve" not in text and "--lora adapter.gguf" not in text and "merge it into the base" in text
    tags = ModelCard.load(path).data.tags
    assert tags and "dora" in tags and "gguf" not in tags


def test_merged_weights_and_curves_are_shown_where_they_are(tmp_path: Path) -> None:
    text = write_card(folder_with(tmp_path), "alice/lora").read_text(encoding="utf-8")
    assert "loss.png" not in text and "merged" not in text and "report.md" not in text
    (tmp_path / "loss.png").write_bytes(b"PNG")
    (tmp_path / "report.md").write_text("# Is it better?", encoding="utf-8")
    text = write_card(tmp_path, "alice/lora", ["merged-Q8_0.gguf"]).read_text(encoding="utf-8")
    assert "](loss.png)" in text and "](report.md)" in text
    assert "hf download alice/lora merged-Q8_0.gguf --local-dir .\nllama-server -m merged-Q8_0.gguf" in text


def test_time_and_energy_as_far_as_they_were_measured(tmp_path: Path) -> None:
    path = write_card(folder_with(tmp_path, training={**TRAINING, "hardware": {"gpu": "T4", "cpu_cores": 2}}))
    text = path.read_text(encoding="utf-8")
    rows = table_rows(text)
    assert rows["Hardware"] == ["gpu T4, cpu cores 2"] and rows["Minutes"] == ["61.5"]
    assert "Energy and carbon were not measured." in text and "Energy (kWh)" not in rows
    measured = {
        **TRAINING,
        "peak_memory_gib": 3.25,
        "tokens_per_second": 812.0,
        "energy_kwh": 0.0421,
        "energy_method": "RAPL counters",
        "git_commit": "0123abc",
    }
    path = write_card(folder_with(tmp_path, training=measured))
    rows = table_rows(path.read_text(encoding="utf-8"))
    assert rows["Energy (kWh)"] == ["0.0421"] and rows["Measured by"] == ["RAPL counters"]
    assert rows["Peak memory (GiB)"] == ["3.25"] and rows["Commit of the code"] == ["0123abc"]
    assert ModelCard.load(path).data.get("co2_eq_emissions") is None  # energy is no carbon
    path = write_card(folder_with(tmp_path, training={**measured, "co2_eq_grams": 12.5}))
    assert ModelCard.load(path).data.get("co2_eq_emissions") == {
        "emissions": 12.5,
        "source": "RAPL counters",
        "training_type": "fine-tuning",
    }


def test_the_bundled_card_is_what_this_code_writes() -> None:
    folder = ROOT / "assets" / "adapters" / "smollm2-135m"
    before = (folder / "README.md").read_bytes()
    try:
        assert write_card(folder).read_bytes() == before
    finally:
        (folder / "README.md").write_bytes(before)


def test_without_metrics_nothing_is_claimed(tmp_path: Path) -> None:
    path = write_card(folder_with(tmp_path, metrics=None))
    assert not ModelCard.load(path).data.eval_results
    assert "Not evaluated yet" in path.read_text(encoding="utf-8")
    assert "BLEU |" not in path.read_text(encoding="utf-8")


def test_hub_data_set_and_unlisted_licence(tmp_path: Path) -> None:
    data = {"source": "medalpaca/medical_meadow_medical_flashcards", "license": "CC"}
    card = ModelCard.load(write_card(folder_with(tmp_path, training={"data": data})))
    assert card.data.datasets == [data["source"]]
    assert (card.data.license, card.data.license_name) == ("other", "cc")
    assert card.data.eval_results[0].dataset_type == data["source"]


def test_local_base_model_is_not_given_as_a_hub_id(tmp_path: Path) -> None:
    path = write_card(folder_with(tmp_path, base="/models/private-base"))
    assert ModelCard.load(path).data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"  # by training.json
    path = write_card(folder_with(tmp_path, training={}, base="/models/private-base"))
    assert ModelCard.load(path).data.get("base_model") is None
    assert "/models" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("content", [None, [1]])
def test_folder_without_training_json(tmp_path: Path, content: object) -> None:
    with pytest.raises(UserError, match=r"training\.json"):
        write_card(folder_with(tmp_path, training=content))


JSON_VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    settings_=st.dictionaries(st.sampled_from(["learning_rate", "seed", "note"]), JSON_VALUES),
    attribution=st.text(max_size=60),
    licence=st.text(max_size=30),
    score=JSON_VALUES,
)
@example(settings_={"note": "a | b\n## c"}, attribution="x | y\r\n## z <b>", licence="---", score=None)
def test_any_text_keeps_metadata_and_tables_whole(
    tmp_path: Path, settings_: dict[str, object], attribution: str, licence: str, score: object
) -> None:
    data = {"attribution": attribution, "license": licence, "source": "a.jsonl"}
    training = {"settings": settings_, "data": data}
    scores = {"base": {"bleu": 1.0, "rouge1": score}, "fine_tuned": {"bleu": 2.0, "rouge1": score}}
    metrics = {"n": 3, "scores": scores}
    card = ModelCard.load(write_card(folder_with(tmp_path, training=training, metrics=metrics)))
    assert card.data.eval_results[0].metric_value == 2.0
    assert card.text.count("\n## ") == 7
    for line in card.text.splitlines():
        if line.startswith("| ") and "Attribution" in line:
            assert len(re.findall(r"(?<!\\)\|", line)) == 3
