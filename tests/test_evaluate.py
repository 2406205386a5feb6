from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from medical_assistant import evaluation
from medical_assistant.engines.base import EngineInfo, Options, Token
from medical_assistant.errors import EngineError, UserError
from medical_assistant.records import read_records
from tests.conftest import ROOT


class ScriptedEngine:
    """Fine-tuned: repeats the reference and ends. Base: says something else and is cut off."""

    info = EngineInfo("stub", "stub-model", "adapter", "abc123")
    context_tokens = 2048

    def __init__(self, references: dict[str, str], fail_after: int = 10_000) -> None:
        self.references, self.calls, self.fail_after = references, [], fail_after

    def stream(self, messages: Sequence[dict[str, str]], options: Options) -> Iterator[Token]:
        if len(self.calls) >= self.fail_after:
            raise EngineError("the engine stopped: try again.")
        self.calls.append((messages, options))
        text = self.references[messages[-1]["content"]] if options.adapter else "Something else entirely"
        for word in text.split(" "):
            yield Token(word + " ", -0.5)
        return "stop" if options.adapter else "length"

    def count_tokens(self, messages: Sequence[dict[str, str]]) -> int:
        return 1

    def close(self) -> None:
        pass


@pytest.fixture
def evaluate(prepared_data: Path, monkeypatch: pytest.MonkeyPatch):
    records = read_records(prepared_data / "validation.jsonl")
    engine = ScriptedEngine({r["prompt"][-1]["content"]: r["completion"][0]["content"] for r in records})
    monkeypatch.setattr("medical_assistant.engines.load_engine", lambda *arguments: engine)
    # Under another name: "evaluate" is Hugging Face's package, which the metrics need.
    spec = importlib.util.spec_from_file_location("evaluate_script", ROOT / "evaluate.py")
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "evaluate_script", script)
    spec.loader.exec_module(script)

    def run(output: Path, *more: str) -> dict:
        script.main(
            ["--data", str(prepared_data), "--adapter", "x/y", "--output", str(output), "--parallel", "1", *more]
        )
        return json.loads((output / "metrics.json").read_text())

    run.engine, run.records = engine, records
    return run


def test_metrics_and_predictions(evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = evaluate(tmp_path / "out")
    assert metrics["n"] == 4
    assert metrics["fine_tuned"]["bleu"] == pytest.approx(100) and metrics["fine_tuned"]["ended"] == 1
    assert metrics["base"]["rouge1"] == 0 and metrics["base"]["ended"] == 0
    rows = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [record["id"] for record in evaluate.records]
    assert rows[0]["fine_tuned"]["answer"] == rows[0]["reference"] and rows[0]["base"]["answer"] != rows[0]["reference"]
    assert "rougeL" in capsys.readouterr().out


def test_mistake_3_both_models_read_the_held_back_questions_only_and_greedily(evaluate, tmp_path: Path) -> None:
    evaluate(tmp_path / "out", "--limit", "3")
    calls = evaluate.engine.calls
    assert [options.adapter for _, options in calls] == [False] * 3 + [True] * 3
    assert all(options.temperature == 0 for _, options in calls)
    assert [messages for messages, _ in calls[:3]] == [record["prompt"] for record in evaluate.records[:3]]
    assert all(messages[-1]["role"] == "user" for messages, _ in calls)  # the reference is never shown


def test_an_interrupted_run_goes_on_without_asking_again(evaluate, tmp_path: Path) -> None:
    evaluate.engine.fail_after = 5
    with pytest.raises(EngineError):
        evaluate(tmp_path / "out")
    evaluate.engine.fail_after = 10_000
    evaluate(tmp_path / "out", "--resume")
    assert len(evaluate.engine.calls) == 8


def test_a_finished_run_is_not_overwritten(evaluate, tmp_path: Path) -> None:
    evaluate(tmp_path / "out")
    with pytest.raises(UserError, match="already holds"):
        evaluate(tmp_path / "out")
    with pytest.raises(UserError, match="no interrupted run"):
        evaluate(tmp_path / "out", "--resume")


def test_table_shows_the_change() -> None:
    scores = {"bleu": 1.0, "rouge1": 0.1}
    metrics = {"n": 2, "base": scores, "fine_tuned": {"bleu": 2.0, "rouge1": 0.1}, "relative_change": {"bleu": 1.0}}
    assert "+100%" in evaluation.table(metrics)


def test_rows_that_chose_the_checkpoint_are_counted(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    manifest = evaluation.file_sha256(tmp_path / "manifest.json")
    training = tmp_path / "training.json"
    chose = {"max_validation_rows": 30}  # of which one was too long
    training.write_text(json.dumps({"data": {"manifest_sha256": manifest, "validation_rows": 29}, "settings": chose}))
    assert evaluation.checkpoint_rows(str(tmp_path), tmp_path, rows=100, used=70) == 0
    assert evaluation.checkpoint_rows(str(tmp_path), tmp_path, rows=100, used=75) == 5
    assert evaluation.checkpoint_rows(str(tmp_path), tmp_path, rows=100, used=100) == 30
    training.write_text(json.dumps({"data": {"manifest_sha256": "other"}, "settings": chose}))
    assert evaluation.checkpoint_rows(str(tmp_path), tmp_path, rows=100, used=70) is None
    assert evaluation.checkpoint_rows("user/name", tmp_path, rows=100, used=70) is None
