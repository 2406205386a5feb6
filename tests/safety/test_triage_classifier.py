"""The learned second line: it raises and never lowers, leaves questions alone; its file, training, the vignettes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medical_assistant.errors import UserError
from medical_assistant.files import file_sha256
from medical_assistant.safety import triage
from medical_assistant.safety.hashed_features import BUCKETS
from medical_assistant.safety.text_reading import read_all
from medical_assistant.safety.training import triage as training
from medical_assistant.safety.triage import assess, assess_by_rules
from medical_assistant.safety.triage_classifier import (
    LEVELS,
    MAX_WORDS,
    MODEL_FILE,
    feature_groups,
    is_about_now,
    load_second_line,
    raised_level,
    second_line,
    words_of,
)
from tests.support.paths import ROOT
from tests.support.timing import cpu_s

SAFETY = ROOT / "tests" / "safety_sets"


def rows(name, split):
    lines = (SAFETY / name).read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]


def wrong(chosen, level_of):
    """Return (emergencies missed, other messages called an emergency, number of emergencies, number of others)."""
    emergencies = [row["text"] for row in chosen if row["level"] == ["emergency"]]
    others = [row["text"] for row in chosen if "emergency" not in row["level"]]
    missed = [text for text in emergencies if level_of(text) != "emergency"]
    false = [text for text in others if level_of(text) == "emergency"]
    return missed, false, len(emergencies), len(others)


def by_rules(text):
    return assess_by_rules(text).level


def both(text):
    return assess(text).level


def raised(text, level):
    return raised_level(text, level, read_all(text))


def probability(text):
    return second_line(text, read_all(text))


# Budgets: the figures of the last tuning. Held-back rows were written first and never tuned on.
@pytest.mark.parametrize(
    ("split", "least_rows", "missed_part", "false_part"), [("tuning", 60, 0.02, 0.03), ("held_back", 30, 0.13, 0.09)]
)
def test_vignettes(split, least_rows, missed_part, false_part):
    missed, false, emergencies, others = wrong(rows("vignettes.jsonl", split), both)
    assert emergencies >= least_rows and others >= least_rows
    assert len(missed) <= missed_part * emergencies, missed
    assert len(false) <= false_part * others, false


@pytest.mark.parametrize(
    ("name", "missed_part", "false_part"), [("blind.jsonl", 0.04, 0.08), ("blind_2.jsonl", 0.06, 0.09)]
)
def test_the_blind_sets(name, missed_part, false_part):
    """Nobody who worked on rules or training has read these 300 rows each; only their totals were seen."""
    missed, false, emergencies, others = wrong(rows(name, "blind"), both)
    assert (emergencies, others) == (150, 100)
    assert len(missed) <= missed_part * emergencies and len(false) <= false_part * others


@pytest.mark.parametrize("split", ["tuning", "held_back"])
def test_it_adds_few_false_alarms(split):
    chosen = rows("not_emergencies.jsonl", split) + rows("vignettes.jsonl", split)
    _, ruled, _, others = wrong(chosen, by_rules)
    _, by_both, _, _ = wrong(chosen, both)
    assert len(by_both) - len(ruled) <= training.ADDED_EMERGENCIES * others


def test_it_finds_by_itself_much_of_what_it_never_saw():
    held_back = rows("vignettes.jsonl", "held_back")
    missed, _, emergencies, _ = wrong(held_back, lambda text: raised(text, "routine"))
    assert len(missed) <= 0.5 * emergencies, missed


@given(st.text(), st.sampled_from(LEVELS))
def test_it_never_lowers_a_level(text, level):
    assert LEVELS == triage.LEVELS
    assert LEVELS.index(raised(text, level)) <= LEVELS.index(level)
    assert 0 <= probability(text) <= 1


@pytest.mark.parametrize(
    "text",
    [
        "What are the symptoms of a stroke?",
        "What should I know about crushing chest pain and heart attacks?",
        "How is septic shock with confusion and fever treated?",
        "no chest pain, no shortness of breath, no fever",
        "My grandfather died of a heart attack with crushing chest pain",
        "",
        "ok",
    ],
)
def test_questions_denials_and_history_are_left_alone(text):
    assert raised(text, "routine") == "routine"


def test_a_message_about_somebody_now_is_told_from_a_question():
    assert is_about_now(read_all("my father has crushing chest pain"))
    assert not is_about_now(read_all("what causes chest pain?"))
    assert not is_about_now(read_all("the chest pain is gone, all good now"))


def test_it_does_not_read_case_or_digits():
    assert probability("CRUSHING CHEST PAIN FOR 20 MINUTES") == probability("crushing chest pain for 20 minutes")
    assert words_of("pain for 20 minutes") == words_of("pain for 45 minutes")


def test_features_fit_the_weights():
    text = "my chest hurts and i cant breathe"
    words, found = feature_groups(words_of(text), read_all(text))
    buckets = words | found
    assert words and found and all(0 <= bucket < BUCKETS for bucket in buckets)
    assert len(words_of("pain " * 5000)) == MAX_WORDS


def test_the_file_is_small_and_says_what_it_was_trained_on():
    assert MODEL_FILE.stat().st_size < 400_000
    model = load_second_line()
    for emergency_from, urgent_from in model.thresholds.values():
        assert training.LEAST <= urgent_from <= emergency_from < 1
    for source in model.details["trained_on"]:
        assert len(source["sha256"]) == 64 and source["rows"] >= 0
    sources = {source["name"]: source["sha256"] for source in model.details["trained_on"]}
    for path in [*training.CORPUS.glob("*.jsonl"), *(SAFETY / f"{name}.jsonl" for name in training.SETS)]:
        assert sources[path.name] == file_sha256(path), "train again: the rows have changed"


@pytest.mark.parametrize(
    "content", ["", "{}", '{"index": [1], "weights": []}', "[1]", '{"index": [99999], "weights": [1]}']
)
def test_a_broken_file_says_what_to_do(tmp_path, content):
    path = tmp_path / "weights.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match="triage_second_line_training"):
        load_second_line(path)
    with pytest.raises(UserError):
        load_second_line(tmp_path / "missing.json")


def test_a_message_takes_less_than_50_ms():
    for text in ["crushing chest pain going down my left arm", "I went for a walk and then we had tea. " * 60]:
        assert cpu_s(lambda text=text: raised(text, "routine")) < 0.05


def test_100_000_characters_take_seconds():
    assert cpu_s(lambda: raised("chest pain " * 9_000, "routine")) < 3.0  # measured: 0.9


# ---- training ------------------------------------------------------------------------------------------


def test_held_back_rows_never_train():
    trained = {row.text for row in training.safety_rows() + training.corpus_rows()}
    for name in training.SETS:
        assert trained.isdisjoint(row["text"] for row in rows(f"{name}.jsonl", "held_back"))
    assert trained.isdisjoint(row["text"] for row in rows("blind.jsonl", "blind"))


def test_the_corpus_is_many_different_messages_of_every_level_and_language():
    corpus = training.corpus_rows()
    texts = [row.text.casefold() for row in corpus]
    assert len(texts) > 5_000 and len(set(texts)) == len(texts)
    for path in training.CORPUS.glob("*.jsonl"):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        assert {line["level"] for line in lines} == set(LEVELS)
    assert {path.stem.split("_")[0] for path in training.CORPUS.glob("*.jsonl")} == {"en", "es", "fr", "pt", "sw"}


def test_corrections_have_a_level_and_a_reason():
    corrections = [json.loads(line) for line in training.CORRECTIONS.read_text(encoding="utf-8").splitlines()]
    assert corrections and len({row["id"] for row in corrections}) == len(corrections)
    for row in corrections:
        assert set(row) == {"id", "level", "reason"} and row["level"] in LEVELS and row["reason"]


def test_development_rows_are_corrected_by_id(tmp_path):
    path = tmp_path / "rows.jsonl"
    corrections = tmp_path / "corrections.jsonl"
    path.write_text(
        '{"id": "a", "level": "urgent", "patient_words": "slurred speech"}\n'
        '{"id": "b", "level": "crisis", "text": "help"}\n',
        encoding="utf-8",
    )
    corrections.write_text('{"id": "a", "level": "emergency", "reason": "possible stroke"}\n', encoding="utf-8")
    found = training.development_rows(path, corrections)
    assert [(row.text, row.emergency) for row in found] == [("slurred speech", True), ("help", True)]


def test_thresholds_allow_three_other_messages_in_a_hundred():
    others = [training.Scored(training.Row(f"text {i}", False, "others"), i / 200, "routine", True) for i in range(200)]
    urgent = [training.Scored(training.Row("text", False, "others", urgent=True), 0.99, "routine", True)] * 50
    quiet = [training.Scored(training.Row("question", False, "others"), 1.0, "routine", False)] * 100
    emergency_from, urgent_from = training.thresholds(others + quiet + urgent)
    assert sum(one.probability >= emergency_from for one in others) == 9  # of 300
    assert sum(one.probability >= urgent_from for one in others) == 15
    least = {"english": (emergency_from, urgent_from)}
    counted = {"rows": 200, "by_rules": 0, "by_second_line": 9, "added": 9}
    assert training.measure(others, least)["others"]["others"] == counted


def test_training_writes_a_file_that_can_be_read(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    for name in training.SETS:
        lines = [
            {
                "text": f"{'crushing chest pain spreads now' if i % 2 else 'a mild cold since today'} {i}",
                "level": [level],
                "split": "tuning",
            }
            for i in range(30)
            for level in [("emergency" if i % 2 else "routine")]
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    monkeypatch.setattr(training, "SAFETY", tmp_path)
    (tmp_path / "corpus").mkdir()
    lines = [{"text": "crushing chest pain and sweating today", "level": "emergency"}]
    (tmp_path / "corpus" / "en.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    monkeypatch.setattr(training, "CORPUS", tmp_path / "corpus")
    monkeypatch.setattr(training, "corpus_rows", lambda read=training.corpus_rows: read(tmp_path / "corpus"))
    monkeypatch.setattr(training, "safety_rows", lambda folder=tmp_path, read=training.safety_rows: read(folder))
    ordinary = tmp_path / "questions.jsonl"
    ordinary.write_text('{"question": "What is a healthy breakfast for a child at school?"}\n' * 3, encoding="utf-8")
    output = tmp_path / "weights.json"
    assert training.main(["--ordinary", str(ordinary), "--output", str(output)]) == 0
    model = load_second_line(output)
    chest, _ = feature_groups(words_of("crushing chest pain"), ())
    assert sum(model.regression.weights[bucket] for bucket in chest) > 0
    assert model.details["trained_on"][-1]["rows"] == 1
    ordinary.write_text("{}\n", encoding="utf-8")
    with pytest.raises(UserError, match="no questions"):
        training.main(["--ordinary", str(ordinary), "--output", str(output)])
