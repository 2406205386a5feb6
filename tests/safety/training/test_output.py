"""Training of the output watch's learned part: what it reads, which rows it takes, what it writes."""

import json

import pytest

from medical_assistant.errors import UserError
from medical_assistant.files import file_sha256
from medical_assistant.safety.output_classifier import KINDS, MODEL_FILE, feature_groups, load_output_model
from medical_assistant.safety.training import output as training
from medical_assistant.safety.training.hashed import trains


def test_answers_are_cut_and_read_as_the_watch_reads_them():
    read = training.as_read("Do not:\n- stop taking your insulin\n\nOk. It's **not** gout!", "I take insulin.")
    assert read == ["dont: stop taking your insulin", "its not gout!"]


def test_only_tuning_rows_of_known_kinds_train(tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    rows = [{"text": "You have gout now.", "kind": "diagnosis_as_fact"}, {"text": "Gout hurts a lot.", "kind": "none"}]
    (own / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    safety = tmp_path / "watch.jsonl"
    rows = [
        {"text": "It is likely gout, I think.", "rule": "diagnosis_as_likely", "split": "tuning"},
        {"text": "You surely have gout.", "rule": "diagnosis_as_fact", "split": "held_back"},
        {"text": "I am a real doctor.", "rule": "claims_to_be_a_doctor", "split": "tuning"},
    ]
    safety.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = {row.text: row.kind for row in training.own_rows(own, safety)}
    assert found == {
        "you have gout now.": "diagnosis_as_fact",
        "gout hurts a lot.": "",
        "its likely gout, i think.": "diagnosis_as_fact",
    }


def test_half_of_the_answers_measure(tmp_path):
    path = tmp_path / "answers.jsonl"
    lines = [json.dumps({"question": "Why?", "answer": f"Because of reason {number}."}) for number in range(40)]
    path.write_text("\n".join([*lines, lines[0]]), encoding="utf-8")
    trained, measured = training.answers(path)
    pairs = [*trained, *measured]
    assert len(pairs) == len(set(pairs)) == 40
    assert 5 < sum(trains(answer) for _, answer in pairs) < 35
    assert all(trains(answer) for _, answer in trained) and not any(trains(answer) for _, answer in measured)
    path.write_text("{}\n", encoding="utf-8")
    with pytest.raises(UserError, match="no answers"):
        training.answers(path)


def test_training_writes_a_model_that_tells_violations(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    own, safety, public = tmp_path / "own", tmp_path / "watch.jsonl", tmp_path / "public.jsonl"
    own.mkdir()
    drugs = ["insulin", "warfarin", "lithium", "statins", "digoxin", "aspirin"] * 5
    rows = [{"text": f"Just bin the {drug} on day {i}.", "kind": "medicine_change"} for i, drug in enumerate(drugs)]
    rows += [{"text": f"Keep taking {drug} each day {i}.", "kind": "none"} for i, drug in enumerate(drugs)]
    rows += [{"text": f"This mark is gout, number {i}.", "kind": "diagnosis_as_fact"} for i in range(20)]
    rows += [{"text": f"Sleep now and see help in {i} weeks.", "kind": "delay_of_care"} for i in range(20)]
    (own / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    safety.write_text(json.dumps({"text": "Drink water often.", "rule": None, "split": "tuning"}), encoding="utf-8")
    lines = [json.dumps({"answer": f"Water number {i} helps the body. It is clear."}) for i in range(60)]
    public.write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setattr(training, "OWN", own)
    monkeypatch.setattr(training, "SAFETY", safety)
    monkeypatch.setattr(training, "own_rows", lambda read=training.own_rows: read(own, safety))
    before = file_sha256(MODEL_FILE)
    output = tmp_path / "model.json"
    assert training.main(["--answers", str(public), "--output", str(output)]) == 0
    model = load_output_model(output)
    regression, _ = model.kinds["medicine_change"]
    assert regression.score(*feature_groups("bin the metformin")) > regression.score(
        *feature_groups("keep taking water")
    )
    assert set(model.details["withheld_in_cross_validation"]) == set(KINDS)
    assert "metformin" not in output.read_text(encoding="utf-8")
    assert "withheld_in_cross_validation" in capsys.readouterr().out and file_sha256(MODEL_FILE) == before
