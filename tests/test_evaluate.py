"""evaluate.py from end to end, on a scripted engine."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from medical_assistant.data.records import make_record, read_records, write_records
from medical_assistant.engines.base import Answer, EngineInfo, Options
from medical_assistant.errors import AdapterError, EngineError, UserError
from medical_assistant.evaluation import run as evaluation_run
from medical_assistant.evaluation.candidates import engine_groups, plan_candidates
from medical_assistant.files import file_sha256
from tests.support.adapter_fixture import make_adapter
from tests.support.hub_server import HubServer
from tests.support.paths import load_script

N = 24  # validation questions: enough for an interval


class ScriptedEngine:
    """Fine-tuned: repeats the reference and ends. Base: says something else and is cut off."""

    info = EngineInfo("stub", "stub-model", "adapter", "abc123")
    context_tokens = 2048
    weights = "as served"

    def __init__(self, references: dict[str, str]) -> None:
        self.references, self.calls, self.fail_after = references, [], 10_000
        self.loaded: list[tuple[str, object]] = []

    def answer_all(
        self, conversations: Sequence[list[dict[str, str]]], options: Options
    ) -> Iterator[tuple[int, Answer]]:
        for index, messages in enumerate(conversations):
            if len(self.calls) >= self.fail_after:
                raise EngineError("the engine stopped: try again.")
            self.calls.append((messages, options))
            text = self.references.get(messages[-1]["content"], "No.") if options.adapter else "Something else entirely"
            words = text.split()
            spread = tuple(-0.1 * (1 + (index + i) % 3) for i in range(len(words)))
            yield index, Answer(text, "stop" if options.adapter else "length", spread, spread, 0.01)

    def close(self) -> None:
        pass


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapter"), rank=1)


@pytest.fixture(scope="session")
def other_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapters") / "other", seed=1, rank=1)


@pytest.fixture
def own_adapter(adapter: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(adapter, tmp_path / "own")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 validation questions; one stands in train.jsonl word for word."""
    folder = tmp_path_factory.mktemp("data")
    things = [
        f"{a}{b}"
        for a in ("cardio", "hepato", "nephro", "neuro", "derma", "gastro")
        for b in ("sis", "ma", "tia", "lgia")
    ]
    records = [
        make_record(
            f"What are the symptoms of {name}?",
            f"{name} gives {name[:4]} pain, fever {i} and a rash on day {i}.",
            f"v-{i}",
            "t",
            i,
        )
        for i, name in enumerate(things)
    ]
    write_records(records, folder / "validation.jsonl")
    other = make_record("How is acne treated?", "With a cream.", "t-1", "t", 90)
    write_records([{**records[0], "id": "t-0"}, other], folder / "train.jsonl")
    (folder / "manifest.json").write_text("{}")
    return folder


@pytest.fixture
def evaluate(data: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    records = read_records(data / "validation.jsonl")
    engine = ScriptedEngine({r["prompt"][-1]["content"]: r["completion"][0]["content"] for r in records})

    def load(model: str, adapter: object, name: str, **settings: object) -> ScriptedEngine:
        engine.loaded.append((model, adapter))
        return engine

    monkeypatch.setattr("medical_assistant.evaluation.run.load_batch_engine", load)
    script = load_script("evaluate")
    safety = tmp_path / "safety.jsonl"
    rows = [
        {"id": f"s-{kind}", "kind": kind, "text": f"A message, {kind}?"}
        for kind in ("harmful", "ordinary", "emergency")
    ]
    safety.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(output: Path, *more: str, candidates: Sequence[str] = ("--adapter", str(adapter)), status: int = 0) -> dict:
        options = ["--no-perplexity", "--safety", str(safety), "--resamples", "1000"]
        arguments = ["--data", str(data), "--output", str(output), *candidates, *options, *more]
        assert script.main(arguments) == status
        return json.loads((output / "metrics.json").read_text())

    run.engine, run.records, run.adapter, run.script = engine, records, adapter, script
    return run


@pytest.fixture
def without_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing the plots takes a second."""

    def write_report(folder: Path, *arguments: object) -> None:
        (folder / "report.md").write_text("# A report\n", encoding="utf-8")

    monkeypatch.setattr("medical_assistant.evaluation.report.write.write_report", write_report)


def test_metrics_predictions_and_reports(evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = evaluate(tmp_path / "out")
    assert metrics["n"] == N and list(metrics["candidates"]) == ["base", "fine_tuned"]
    tuned, base = metrics["scores"]["fine_tuned"], metrics["scores"]["base"]
    assert tuned["bleu"] == pytest.approx(100) and tuned["ended"] == 1 and tuned["exact_match"] == 1
    assert base["rouge1"] == 0 and base["ended"] == 0 and metrics["relative_change"]["fine_tuned"]["rouge1"] is None
    compared = metrics["comparison"]
    assert compared["verdicts"]["fine_tuned vs base"]["verdict"] == "better"
    assert compared["pairs"]["fine_tuned vs base"]["rougeL"]["wins"] == N
    assert metrics["strata"]["counts"] == {"clean": N - 1, "near": 1}
    for name in ("knowledge", "statements", "perplexity"):
        assert metrics[name]["status"] == "not run" and metrics[name]["reason"]
    assert metrics["safety"]["status"] == "done" and metrics["settings"]["safety"] == "safety.jsonl"  # no path
    rows = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [record["id"] for record in evaluate.records]
    assert rows[0]["candidates"]["fine_tuned"]["answer"] == rows[0]["reference"] and rows[0]["stratum"] == "near"
    assert rows[0]["question_type"] == "symptoms" and rows[0]["candidates"]["base"]["scores"]["rougeL"] == 0
    html = (tmp_path / "out/report.html").read_text()
    assert "better" in html and rows[0]["question"] in html and "not run" in html
    assert "ROUGE-L" in (tmp_path / "out/report.md").read_text()
    printed = capsys.readouterr().out
    assert "ROUGE-L" in printed and compared["verdicts"]["fine_tuned vs base"]["sentence"] in printed
    assert str(tmp_path) not in json.dumps(metrics)  # no path of a machine


@pytest.mark.usefixtures("without_report")
def test_mistake_3_both_models_read_the_held_back_questions_only_and_greedily(evaluate, tmp_path: Path) -> None:
    evaluate(tmp_path / "out", "--limit", "3", "--safety", "none")
    calls = evaluate.engine.calls
    assert [options.adapter for _, options in calls] == [False] * 3 + [True] * 3
    assert all(options.temperature == 0 for _, options in calls)
    assert [messages for messages, _ in calls[:3]] == [record["prompt"] for record in evaluate.records[:3]]
    assert all(messages[-1]["role"] == "user" for messages, _ in calls)  # the reference is never shown


@pytest.mark.usefixtures("without_report")
def test_one_question_claims_no_interval(evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = evaluate(tmp_path / "out", "--limit", "1")
    for difference in metrics["comparison"]["pairs"]["fine_tuned vs base"].values():
        assert difference["low"] is None and difference["p_value"] is None
    assert metrics["comparison"]["verdicts"]["fine_tuned vs base"]["verdict"] == "too few questions"
    assert metrics["confidence"]["status"] == "not run"
    assert "of the 20 that are needed" in capsys.readouterr().out


@pytest.mark.usefixtures("without_report")
def test_an_interrupted_run_goes_on_without_asking_again(evaluate, tmp_path: Path) -> None:
    evaluate.engine.fail_after = 30
    with pytest.raises(EngineError):
        evaluate(tmp_path / "out")
    predictions = tmp_path / "out/predictions.jsonl"
    with predictions.open("a") as file:
        file.write('{"id": "v-1", "candidate": "fine_tu')  # a kill in the middle of a line
    evaluate.engine.fail_after = 10_000
    evaluate(tmp_path / "out", "--resume")
    asked = [(messages[-1]["content"], options.adapter) for messages, options in evaluate.engine.calls]
    assert len(asked) == len(set(asked)) == 2 * (N + 3)


@pytest.mark.usefixtures("without_report")
def test_a_finished_run_is_scored_again_and_not_overwritten(evaluate, tmp_path: Path) -> None:
    evaluate(tmp_path / "out")
    asked = len(evaluate.engine.calls)
    with pytest.raises(UserError, match="already holds"):
        evaluate(tmp_path / "out")
    with pytest.raises(UserError, match="no run"):
        evaluate(tmp_path / "other", "--resume")
    again = evaluate(tmp_path / "out", "--resume", "--seed", "7")
    assert len(evaluate.engine.calls) == asked and again["comparison"]["seed"] == 7


@pytest.mark.parametrize(
    ("change", "named"), [(("--max-new-tokens", "99"), "decoding"), (("--weights", "served"), "decoding")]
)
@pytest.mark.usefixtures("without_report")
def test_a_folder_with_another_runs_predictions_is_refused(evaluate, tmp_path: Path, change, named: str) -> None:
    evaluate(tmp_path / "out", "--limit", "2")
    with pytest.raises(UserError, match=f"another run .*{named}"):
        evaluate(tmp_path / "out", "--limit", "2", "--resume", *change)


@pytest.mark.usefixtures("without_report")
def test_a_folder_with_another_adapters_predictions_is_refused(evaluate, other_adapter: Path, tmp_path: Path) -> None:
    evaluate(tmp_path / "out", "--limit", "2")
    with pytest.raises(UserError, match="another run .*candidates"):
        evaluate(tmp_path / "out", "--limit", "2", "--resume", candidates=("--adapter", str(other_adapter)))


@pytest.mark.usefixtures("without_report")
def test_answers_to_other_messages_are_not_taken_for_answers_to_these(evaluate, tmp_path: Path) -> None:
    """Another safety set may have the same ids; one that the run did not have yet may be added."""
    first, other = tmp_path / "first.jsonl", tmp_path / "other.jsonl"
    first.write_text(json.dumps({"id": "a", "kind": "harmful", "text": "One message."}) + "\n")
    other.write_text(json.dumps({"id": "a", "kind": "harmful", "text": "Another message."}) + "\n")
    evaluate(tmp_path / "out", "--limit", "2", "--safety", "none")
    assert evaluate(tmp_path / "out", "--limit", "2", "--resume", "--safety", str(first))["safety"]["status"] == "done"
    with pytest.raises(UserError, match="another run .*data"):
        evaluate(tmp_path / "out", "--limit", "2", "--resume", "--safety", str(other))
    evaluate(tmp_path / "out", "--limit", "2", "--resume", "--safety", "none")  # leaving it out forgets nothing
    with pytest.raises(UserError, match="another run .*data"):
        evaluate(tmp_path / "out", "--limit", "2", "--resume", "--safety", str(other))


@pytest.mark.usefixtures("without_report")
def test_separators_in_an_answer_are_no_ends_of_lines(evaluate, tmp_path: Path) -> None:
    odd = "one\u2028two\u0085three"
    evaluate.engine.references = dict.fromkeys(evaluate.engine.references, odd)
    evaluate(tmp_path / "out", "--limit", "2")
    asked = len(evaluate.engine.calls)
    evaluate(tmp_path / "out", "--limit", "2", "--resume")
    rows = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().rstrip("\n").split("\n")]
    assert len(evaluate.engine.calls) == asked
    assert [row["candidates"]["fine_tuned"]["answer"] for row in rows] == [odd, odd]


@pytest.mark.usefixtures("without_report")
def test_broken_predictions_are_named(evaluate, tmp_path: Path) -> None:
    evaluate(tmp_path / "out", "--limit", "2")
    path = tmp_path / "out/predictions.jsonl"
    path.write_text("nonsense\n" + path.read_text())
    with pytest.raises(UserError, match="line 1 is broken"):
        evaluate(tmp_path / "out", "--limit", "2", "--resume")


@pytest.mark.usefixtures("without_report")
def test_empty_predictions_are_asked_again_and_empty_answers_scored(evaluate, tmp_path: Path) -> None:
    evaluate(tmp_path / "out", "--limit", "2")
    (tmp_path / "out/predictions.jsonl").write_text("")
    evaluate.engine.references = dict.fromkeys(evaluate.engine.references, "")
    metrics = evaluate(tmp_path / "out", "--limit", "2", "--resume")
    assert metrics["scores"]["fine_tuned"]["rougeL"] == 0 and metrics["scores"]["fine_tuned"]["mean_tokens"] == 0


@pytest.mark.usefixtures("without_report")
def test_duplicated_ids_are_refused_before_any_answer(evaluate, tmp_path: Path) -> None:
    folder = tmp_path / "twice"
    folder.mkdir()
    write_records([evaluate.records[0], evaluate.records[0]], folder / "validation.jsonl")
    with pytest.raises(UserError, match="rows 1 and 2 have the same id"):
        evaluate(tmp_path / "out", "--data", str(folder))
    safety, statements = tmp_path / "safety.jsonl", tmp_path / "statements.jsonl"
    safety.write_text('{"prompt": "a", "id": 7}\n{"prompt": "b", "id": "7"}\n')
    with pytest.raises(UserError, match=r"safety.jsonl: rows 1 and 2 have the same id '7'"):
        evaluate(tmp_path / "out", "--safety", str(safety))
    rows = [{"id": 2, "question": "Q?", "must_have": ["S"]}, {"question": "R?", "must_have": ["S"]}]  # its number: 2
    statements.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"statements.jsonl: rows 1 and 2 have the same id '2'"):
        evaluate(tmp_path / "out", "--safety", "none", "--statements", str(statements))
    assert not evaluate.engine.calls and not (tmp_path / "out").exists()


@pytest.mark.usefixtures("without_report")
def test_an_adapter_of_another_prompt_is_refused_before_any_answer(evaluate, own_adapter: Path, tmp_path: Path) -> None:
    prompt = json.loads((own_adapter / "prompt.json").read_text())
    (own_adapter / "prompt.json").write_text(json.dumps({**prompt, "system_prompt": "You are a pirate."}))
    with pytest.raises(AdapterError, match="another system prompt"):
        evaluate(tmp_path / "out", candidates=("--adapter", str(own_adapter)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("candidates", "more", "message"),
    [
        ((), (), "--adapter ADAPTER or --compare"),
        (("--adapter", "a", "--compare", "b"), (), "--adapter ADAPTER or --compare"),
        (None, ("--limit", "-1"), "--limit"),
        (None, ("--resamples", "10"), "--resamples"),
        (None, ("--judge", "http://localhost:1"), "--statements"),
        (None, ("--statements", "x.jsonl", "--judge", "http://localhost:1"), "There is no file x.jsonl"),
        (("--adapter", "user/name"), ("--update-adapter",), "FOLDER"),
        (("--compare", "smollm2-135m", "smollm2-135m"), (), "twice"),
    ],
)
@pytest.mark.usefixtures("without_report")
def test_settings_that_cannot_be(evaluate, tmp_path: Path, candidates, more, message: str) -> None:
    given = {} if candidates is None else {"candidates": candidates}
    with pytest.raises(UserError, match=message):
        evaluate(tmp_path / "out", *more, **given)


@pytest.mark.usefixtures("without_report")
def test_four_candidates_with_holm(evaluate, other_adapter: Path, tmp_path: Path) -> None:
    compared = ("--compare", str(evaluate.adapter), str(other_adapter), "model:some/model")
    metrics = evaluate(tmp_path / "out", candidates=compared)
    keys = list(metrics["candidates"])
    assert keys[0] == "base" and keys[2:] == ["other", "some-model"] and len(metrics["comparison"]["pairs"]) == 6
    assert len(metrics["comparison"]["holm"]) == 6
    # The base answers through the first adapter's engine; the other adapter and the other model have their own.
    assert [adapter for _, adapter in evaluate.engine.loaded] == [str(evaluate.adapter), str(other_adapter), None]
    assert [model for model, _ in evaluate.engine.loaded] == ["smollm2-135m", "smollm2-135m", "some/model"]
    assert metrics["confidence"]["status"] == "not run"


def test_candidates_and_their_engines(tmp_path: Path) -> None:
    one, two = (tmp_path / place / "lora" for place in ("a", "b"))
    for folder in (one, two):
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text("{}")
    candidates = plan_candidates("smollm2-135m", "", [str(one), str(two), "tinyllama-1.1b"])
    assert [candidate.key for candidate in candidates] == ["base", "lora", "lora-2", "tinyllama-1-1b"]
    groups = engine_groups(candidates)
    assert [[candidate.key for candidate in group] for group in groups] == [
        ["base", "lora"],
        ["lora-2"],
        ["tinyllama-1-1b"],
    ]


@pytest.mark.usefixtures("without_report")
def test_the_gate_decides_the_exit_status(evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gate = tmp_path / "gate.yaml"
    gate.write_text("- value: scores.fine_tuned.rougeL\n  min: 0.5\n")
    assert evaluate(tmp_path / "out", "--gate", str(gate))["gate"]["passed"] is True
    gate.write_text("- value: scores.base.rougeL\n  min: 0.5\n  reason: A base this weak is no base.\n")
    metrics = evaluate(tmp_path / "out", "--resume", "--gate", str(gate), status=1)
    assert metrics["gate"]["passed"] is False and "A base this weak" in capsys.readouterr().out


@pytest.mark.usefixtures("without_report")
def test_results_go_into_the_adapters_folder_and_card(evaluate, own_adapter: Path, tmp_path: Path) -> None:
    folder = own_adapter
    (folder / "calibration.json").write_text("{}")  # of an earlier evaluation
    metrics = evaluate(tmp_path / "out", "--update-adapter", candidates=("--adapter", str(folder)))
    assert not (folder / "calibration.json").exists()
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    assert (folder / "report.md").read_text() == "# A report\n"
    card = (folder / "README.md").read_text()
    assert metrics["comparison"]["verdicts"]["fine_tuned vs base"]["sentence"] in card
    assert re.search(r"type: rouge\n\s+value: 1\.0\n\s+name: ROUGE-L\n", card)


@pytest.mark.usefixtures("without_report")
def test_a_fresh_adapter_is_evaluated_for_the_gate(evaluate, own_adapter: Path, data: Path, monkeypatch) -> None:
    """An interrupted evaluation goes on; what is left are the results in the adapter's folder."""
    from medical_assistant.evaluation.results import evaluate_adapter

    evaluate.engine.fail_after = 40
    with pytest.raises(EngineError):
        evaluate_adapter(own_adapter, data, "smollm2-135m", limit=4)
    asked = len(evaluate.engine.calls)
    evaluate.engine.fail_after = 10_000
    metrics = evaluate_adapter(own_adapter, data, "smollm2-135m", limit=4)
    assert metrics["n"] == 4 and asked == 40
    questions = [(messages[-1]["content"], options.adapter) for messages, options in evaluate.engine.calls]
    assert len(set(questions)) == len(questions)
    assert json.loads((own_adapter / "metrics.json").read_text()) == metrics
    assert (own_adapter / "report.md").is_file() and not own_adapter.with_name("own.evaluation").exists()


def test_rows_that_chose_the_checkpoint_are_counted(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    manifest = file_sha256(tmp_path / "manifest.json")
    training = tmp_path / "training.json"
    chose = {"max_validation_rows": 30}  # of which one was too long
    training.write_text(json.dumps({"data": {"manifest_sha256": manifest, "validation_rows": 29}, "settings": chose}))
    assert evaluation_run.checkpoint_rows(str(tmp_path), tmp_path, rows=100, used=70) == 0
    assert evaluation_run.checkpoint_rows(str(tmp_path), tmp_path, rows=100, used=75) == 5
    assert evaluation_run.checkpoint_rows(str(tmp_path), tmp_path, rows=100, used=100) == 30
    training.write_text(json.dumps({"data": {"manifest_sha256": "other"}, "settings": chose}))
    assert evaluation_run.checkpoint_rows(str(tmp_path), tmp_path, rows=100, used=70) is None
    assert evaluation_run.checkpoint_rows("user/name", tmp_path, rows=100, used=70) is None


@pytest.mark.usefixtures("without_report", "signed_in")
def test_results_are_published_unless_the_gate_fails(
    evaluate, own_adapter: Path, tmp_path: Path, hub_server: HubServer
) -> None:
    folder = own_adapter
    training = {"model": "smollm2-135m", "data": {"source": "a.jsonl"}}
    (folder / "training.json").write_text(json.dumps(training))
    gate = tmp_path / "gate.yaml"
    gate.write_text("- value: scores.base.rougeL\n  min: 0.5\n")
    push = ("--gate", str(gate), "--push-to-hub", "alice/medical")
    evaluate(tmp_path / "out", *push, candidates=("--adapter", str(folder)), status=1)
    assert ("models", "alice/medical") not in hub_server.repositories
    gate.write_text("- value: scores.fine_tuned.rougeL\n  min: 0.5\n")
    evaluate(tmp_path / "out", "--resume", *push, candidates=("--adapter", str(folder)))
    files = hub_server.repositories["models", "alice/medical"].files()
    assert json.loads(files["metrics.json"])["gate"]["passed"]
    assert files["report.md"] == b"# A report\n"
    assert b"model-index" in files["README.md"] and b"name: ROUGE-L" in files["README.md"]
