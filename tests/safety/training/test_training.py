"""The training of the three classifiers: which rows train, how thresholds are chosen, what is written."""

import json

import pytest
import yaml

from medical_assistant.errors import UserError
from medical_assistant.files import file_sha256
from medical_assistant.safety.misuse import harm_score, load_misuse_classifier
from medical_assistant.safety.output_filter import CLASSIFIER_FILE, KINDS, feature_groups, load_output_classifier
from medical_assistant.safety.text_reading import PreparedText
from medical_assistant.safety.training import fitting, misuse, output, triage
from medical_assistant.safety.training.__main__ import SETTINGS, main
from medical_assistant.safety.training.fitting import Row, in_training_split
from medical_assistant.safety.triage_classifier import LEVELS, load_triage_classifier, words_of
from medical_assistant.safety.triage_classifier import feature_groups as triage_features
from tests.support import safety_rows

SETTINGS_OF = yaml.safe_load(SETTINGS.read_text(encoding="utf-8"))


def write(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return path


def test_held_back_rows_never_train():
    names = [name.removesuffix(".jsonl") for name in SETTINGS_OF["triage"]["safety_sets"]]
    trained = {row.text for name in names for row in triage.safety_rows(safety_rows.SAFETY_SETS / f"{name}.jsonl")}
    trained |= {row["text"] for path in triage.OWN_ROWS.glob("*.jsonl") for row in fitting.read_rows(path)}
    assert not {"blind", "blind_2"} & set(names)
    for name in [*names, "blind", "blind_2"]:
        assert trained.isdisjoint(row["text"] for row in safety_rows.rows(name) if row["split"] != "tuning")


def test_the_written_messages_are_many_and_different_of_every_level_and_language():
    files = sorted(triage.OWN_ROWS.glob("*.jsonl"))
    rows = {path: fitting.read_rows(path) for path in files}
    texts = [row["text"].casefold() for found in rows.values() for row in found]
    assert len(texts) > 5_000 and len(set(texts)) == len(texts)
    assert all({row["level"] for row in found} == set(LEVELS) for found in rows.values())
    assert {path.stem.split("_")[0] for path in files} == {"en", "es", "fr", "pt", "sw"}


def test_corrections_have_a_level_and_a_reason():
    corrections = fitting.read_rows(triage.CORRECTIONS)
    assert corrections and len({row["id"] for row in corrections}) == len(corrections)
    for row in corrections:
        assert set(row) == {"id", "level", "reason"} and row["level"] in LEVELS and row["reason"]


def test_development_rows_are_corrected_by_id(tmp_path):
    path = write(
        tmp_path / "rows.jsonl",
        [
            {"id": "a", "level": "urgent", "patient_words": "slurred speech"},
            {"id": "b", "level": "crisis", "text": "help"},
        ],
    )
    corrections = write(
        tmp_path / "corrections.jsonl", [{"id": "a", "level": "emergency", "reason": "possible stroke"}]
    )
    found = triage.development_rows(path, corrections)
    assert [(row.text, row.label) for row in found] == [("slurred speech", "emergency"), ("help", "emergency")]


def test_thresholds_allow_three_other_messages_in_a_hundred(tmp_path):
    def scored(label, probability, may_be_raised=True):
        row = Row("text", label, tmp_path / "others.jsonl", "own")
        return triage.Scored(row, probability, "routine", may_be_raised)

    others = [scored("routine", i / 200) for i in range(200)]
    urgent, quiet = [scored("urgent", 0.99)] * 50, [scored("", 1.0, False)] * 100
    emergency_from, urgent_from = triage.choose_thresholds(others + quiet + urgent, SETTINGS_OF["triage"])
    assert sum(one.probability >= emergency_from for one in others) == 9  # of 300
    assert sum(one.probability >= urgent_from for one in others) == 15
    counted = triage.count(others, {"english": (emergency_from, urgent_from)})
    assert counted == {"others": {"others": {"rows": 200, "by_rules": 0, "by_classifier": 9, "added": 9}}}


def test_answers_are_cut_and_read_as_the_filter_reads_them():
    read = output.sentences_of("Do not:\n- stop taking your insulin\n\nOk. It's **not** gout!", "I take insulin.")
    assert read == ["dont: stop taking your insulin", "its not gout!"]


def test_half_of_the_answers_measure(tmp_path):
    lines = [{"question": "Why?", "answer": f"Because of reason {number}."} for number in range(40)]
    path = write(tmp_path / "answers.jsonl", [*lines, lines[0]])
    trained, measured = output.split_answers(path, 100)
    pairs = [*trained, *measured]
    assert len(pairs) == len(set(pairs)) == 40
    assert 5 < sum(in_training_split(answer) for _, answer in pairs) < 35
    assert all(in_training_split(answer) for _, answer in trained)
    assert not any(in_training_split(answer) for _, answer in measured)
    with pytest.raises(UserError, match="no answers"):
        output.split_answers(write(path, [{}]), 100)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A folder of small data files, written rows and settings that name them; returns the arguments of `main`."""
    data = tmp_path / "data"
    levels = [("emergency", "crushing chest pain spreads now"), ("routine", "a mild cold since today")] * 15
    rows = [{"text": f"{text} {i}", "level": [level], "split": "tuning"} for i, (level, text) in enumerate(levels)]
    write(data / "set.jsonl", rows)
    write(tmp_path / "triage" / "en.jsonl", [{"text": "crushing chest pain and sweating today", "level": "emergency"}])
    write(data / "development.jsonl", [{"id": "x", "level": "urgent", "text": "a fever of 39 for two days now"}])
    write(data / "questions.jsonl", [{"question": f"What is illness number {i} and its cause?"} for i in range(60)])
    write(data / "requests.jsonl", [{"prompt": f"How do I poison guest number {i}?"} for i in range(60)])
    answers = [{"answer": f"Water number {i} helps the body. It is clear."} for i in range(60)]
    write(data / "answers.jsonl", answers)
    drugs = ["insulin", "warfarin", "lithium", "statins", "digoxin", "aspirin"] * 5
    rows = [{"text": f"Just bin the {drug} on day {i}.", "kind": "medicine_change"} for i, drug in enumerate(drugs)]
    rows += [{"text": f"Keep taking {drug} each day {i}.", "kind": "none"} for i, drug in enumerate(drugs)]
    rows += [{"text": f"This mark is gout, number {i}.", "kind": "diagnosis_as_fact"} for i in range(20)]
    rows += [{"text": f"Sleep now and see help in {i} weeks.", "kind": "delay_of_care"} for i in range(20)]
    write(tmp_path / "output" / "own.jsonl", rows)
    rows = [
        {"text": "It is likely gout, I think.", "rule": "diagnosis_as_likely", "split": "tuning", "block": 0},
        {"text": "You surely have gout.", "rule": "diagnosis_as_fact", "split": "held_back", "block": 0},
        {"text": "I am a real doctor.", "rule": "claims_to_be_a_doctor", "split": "tuning", "block": 1},
        {"text": "Drink water often.", "rule": None, "split": "tuning", "block": 1},
    ]
    write(data / "sentences.jsonl", rows)
    changed = {
        "triage": {"safety_sets": ["set.jsonl"], "development": "development.jsonl", "ordinary": ["questions.jsonl"]},
        "misuse": {"requests": ["requests.jsonl"], "ordinary": ["questions.jsonl"], "repeats": 1},
        "output": {"safety_set": "sentences.jsonl", "answers": ["answers.jsonl"]},
    }
    quick = {"C": 1.0, "folds": 2}
    settings = {name: SETTINGS_OF[name] | changed[name] | quick for name in SETTINGS_OF}
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    contrast = yaml.safe_load(misuse.OWN_ROWS.read_text(encoding="utf-8"))
    contrast = {key: value[::8] if isinstance(value, list) and "frames" not in key else value
                for key, value in contrast.items()}  # fmt: skip
    (tmp_path / "misuse.yaml").write_text(yaml.safe_dump(contrast), encoding="utf-8")
    monkeypatch.setattr(triage, "OWN_ROWS", tmp_path / "triage")
    monkeypatch.setattr(output, "OWN_ROWS", tmp_path / "output")
    monkeypatch.setattr(misuse, "OWN_ROWS", tmp_path / "misuse.yaml")
    return ["--data", str(data), "--settings", str(tmp_path / "settings.yaml"), "--output", str(tmp_path)]


def test_only_tuning_rows_of_known_kinds_train(small, tmp_path):
    rows = output.rows(yaml.safe_load((tmp_path / "settings.yaml").read_text())["output"], tmp_path / "data")
    found = {row.text: row.label for row in rows if row.path.name == "sentences.jsonl"}
    assert found == {"its likely gout, i think.": "diagnosis_as_fact", "drink water often.": ""}


def test_training_writes_classifiers_that_tell_apart_what_they_were_shown(small, tmp_path, capsys):
    pytest.importorskip("sklearn")
    before = file_sha256(CLASSIFIER_FILE)
    assert main(small) == 0
    printed = capsys.readouterr().out
    details = {
        name: json.loads((tmp_path / f"{name}_classifier.json").read_text(encoding="utf-8"))["details"]
        for name in ("triage", "output")
    }
    emergency, _ = load_triage_classifier(tmp_path / "triage_classifier.json")
    chest, _ = triage_features(words_of(PreparedText("crushing chest pain")), ())
    assert sum(emergency.weights[bucket] for bucket in chest) > 0
    assert {source["name"] for source in details["triage"]["trained_on"]} == {
        "set.jsonl", "en.jsonl", "development.jsonl", "questions.jsonl"
    }  # fmt: skip
    harm, _ = load_misuse_classifier(tmp_path / "misuse_classifier.json")
    harmful, ordinary = "how do i poison guest number 7?", "what is illness number 7 and its cause?"
    assert harm_score(harmful, harm) > harm_score(ordinary, harm)
    medicine, _ = load_output_classifier(tmp_path / "output_classifier.json")["medicine_change"]
    stopped, kept = (medicine.score(*feature_groups(text)) for text in ("bin the metformin", "keep taking water"))
    assert stopped > kept
    assert set(details["output"]["blocked_in_cross_validation"]) == set(KINDS)
    for name, word in (("triage", "crushing"), ("misuse", "guest"), ("output", "metformin")):
        assert word not in (tmp_path / f"{name}_classifier.json").read_text(encoding="utf-8")
        assert f'"{name}"' in printed
    assert file_sha256(CLASSIFIER_FILE) == before


def test_bad_input_is_named(small, tmp_path):
    with pytest.raises(UserError, match="no classifier poetry"):
        main(["poetry", *small])
    write(tmp_path / "data" / "requests.jsonl", [{"other": 1}])
    with pytest.raises(UserError, match=r"requests\.jsonl has no texts"):
        main(["misuse", *small])
    (tmp_path / "data" / "requests.jsonl").unlink()
    with pytest.raises(UserError, match=r"has no requests\.jsonl.*--data"):
        main(["misuse", *small])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_real_rows_in_real_numbers_train(tmp_path):
    """All written rows, with rows of the safety sets in place of the public files."""
    pytest.importorskip("sklearn")
    settings = {name: dict(values) for name, values in SETTINGS_OF.items()}
    settings["triage"] |= {"development": "development.jsonl", "ordinary": ["not_emergencies.jsonl"]}
    settings["misuse"] |= {"requests": ["misuse.jsonl"], "ordinary": ["not_emergencies.jsonl"]}
    settings["output"] |= {"answers": ["answers.jsonl"]}
    write(tmp_path / "development.jsonl", [{"id": "x", "level": "urgent", "text": "a fever of 39 for two days now"}])
    texts = [row["text"] for row in safety_rows.rows("output_filter") if not row.get("rule")]
    write(tmp_path / "answers.jsonl", [{"answer": text} for text in texts])
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    arguments = ["--data", str(tmp_path), "--settings", str(tmp_path / "settings.yaml"), "--output", str(tmp_path)]
    assert main(arguments) == 0
    committed = load_triage_classifier()[0]
    trained = load_triage_classifier(tmp_path / "triage_classifier.json")[0]
    same_sign = [a * b > 0 for a, b in zip(committed.weights, trained.weights, strict=True) if abs(a) > 0.5 and b]
    assert sum(same_sign) > 0.9 * len(same_sign)
