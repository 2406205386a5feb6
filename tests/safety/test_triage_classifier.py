"""The triage classifier: it raises and never lowers, leaves questions alone; its file, the vignettes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medical_assistant.errors import UserError
from medical_assistant.files import file_sha256
from medical_assistant.safety.hashed_classifier import BUCKETS
from medical_assistant.safety.text_reading import PreparedText
from medical_assistant.safety.triage_classifier import (
    CLASSIFIER_FILE,
    LEVELS,
    MAX_WORDS,
    emergency_probability,
    feature_groups,
    load_triage_classifier,
    may_be_raised,
    raised_level,
    words_of,
)
from tests.support import safety_rows
from tests.support.paths import ROOT
from tests.support.timing import cpu_s, growth

MAX_ADDED = 0.03  # part of the messages that are no emergency, as in training_data/settings.yaml


def rows(name, split):
    return [row for row in safety_rows.rows(name) if row["split"] == split]


def wrong(chosen, level_of):
    """Return (emergencies missed, other messages called an emergency, number of emergencies, number of others)."""
    emergencies = [row for row in chosen if row["level"] == ["emergency"]]
    others = [row for row in chosen if "emergency" not in row["level"]]
    missed = [row["text"] for row in emergencies if level_of(row) != "emergency"]
    false = [row["text"] for row in others if level_of(row) == "emergency"]
    return missed, false, len(emergencies), len(others)


def by_rules(row):
    return safety_rows.level_by_rules(row["text"])


def both(row):
    return safety_rows.triage(row).level


def raised(text, level="routine"):
    return raised_level(PreparedText(text), level)


def probability(text):
    return emergency_probability(PreparedText(text))


# Budgets: the figures of the last tuning. Held-back rows were written first and never tuned on.
@pytest.mark.parametrize(
    ("split", "least_rows", "missed_part", "false_part"), [("tuning", 60, 0.02, 0.03), ("held_back", 30, 0.13, 0.09)]
)
def test_vignettes(split, least_rows, missed_part, false_part):
    missed, false, emergencies, others = wrong(rows("vignettes", split), both)
    assert emergencies >= least_rows and others >= least_rows
    assert len(missed) <= missed_part * emergencies, missed
    assert len(false) <= false_part * others, false


@pytest.mark.parametrize(("name", "missed_part", "false_part"), [("blind", 0.04, 0.08), ("blind_2", 0.06, 0.09)])
def test_the_blind_sets(name, missed_part, false_part):
    """Nobody who worked on rules or training has read these 300 rows each; only their totals were seen."""
    missed, false, emergencies, others = wrong(rows(name, "blind"), both)
    assert (emergencies, others) == (150, 100)
    assert len(missed) <= missed_part * emergencies and len(false) <= false_part * others


@pytest.mark.parametrize("split", ["tuning", "held_back"])
def test_it_adds_few_false_alarms(split):
    chosen = rows("not_emergencies", split) + rows("vignettes", split)
    _, ruled, _, others = wrong(chosen, by_rules)
    _, by_both, _, _ = wrong(chosen, both)
    assert len(by_both) - len(ruled) <= MAX_ADDED * others


def test_it_finds_by_itself_much_of_what_it_never_saw():
    held_back = rows("vignettes", "held_back")
    missed, _, emergencies, _ = wrong(held_back, lambda row: raised_level(safety_rows.prepared(row["text"]), "routine"))
    assert len(missed) <= 0.5 * emergencies, missed


@given(st.text(), st.sampled_from(LEVELS))
def test_it_never_lowers_a_level(text, level):
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
    assert raised(text) == "routine"


def test_a_message_about_somebody_now_is_told_from_a_question():
    assert may_be_raised(PreparedText("my father has crushing chest pain"))
    assert not may_be_raised(PreparedText("what causes chest pain?"))
    assert not may_be_raised(PreparedText("the chest pain is gone, all good now"))


def test_it_does_not_read_case_or_digits():
    assert probability("CRUSHING CHEST PAIN FOR 20 MINUTES") == probability("crushing chest pain for 20 minutes")
    assert words_of(PreparedText("pain for 20 minutes")) == words_of(PreparedText("pain for 45 minutes"))


def test_features_fit_the_weights():
    text = PreparedText("my chest hurts and i cant breathe")
    words, found = feature_groups(words_of(text), text.readings)
    buckets = words | found
    assert words and found and all(0 <= bucket < BUCKETS for bucket in buckets)
    assert len(words_of(PreparedText("pain " * 5000))) == MAX_WORDS


def test_the_file_is_small_and_says_what_it_was_trained_on():
    assert CLASSIFIER_FILE.stat().st_size < 400_000
    for emergency_from, urgent_from in load_triage_classifier()[1].values():
        assert 0.3 <= urgent_from <= emergency_from < 1
    details = json.loads(CLASSIFIER_FILE.read_text(encoding="utf-8"))["details"]
    sources = {source["name"]: source["sha256"] for source in details["trained_on"]}
    own = [*(ROOT / "training_data" / "triage").glob("*.jsonl")]
    sets = [path for path in safety_rows.SAFETY_SETS.glob("*.jsonl") if path.name in sources]
    assert len(own) >= 16 and len(sets) >= 9
    for path in own + sets:
        assert sources[path.name] == file_sha256(path), "train again: the rows have changed"


@pytest.mark.parametrize(
    "content", ["", "{}", '{"buckets": [1], "weights": []}', "[1]", '{"buckets": [99999], "weights": [1]}']
)
def test_a_broken_file_says_what_to_do(tmp_path, content):
    path = tmp_path / "weights.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"safety\.training triage"):
        load_triage_classifier(path)
    with pytest.raises(UserError):
        load_triage_classifier(tmp_path / "missing.json")


def test_a_message_takes_less_than_50_ms():
    for text in ["crushing chest pain going down my left arm", "I went for a walk and then we had tea. " * 60]:
        assert cpu_s(lambda text=text: raised(text), runs=2) < 0.05  # measured: 0.002 and 0.01


def test_the_time_is_linear_in_the_length():
    assert growth(lambda size: raised(("chest pain " * 1_000)[:size]), 5_000) < 3.2
