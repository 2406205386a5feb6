"""The output classifier: what it adds to the rules, what it leaves alone, its file."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medical_assistant.errors import UserError
from medical_assistant.files import file_sha256
from medical_assistant.safety import output_filter
from medical_assistant.safety.hashed_classifier import BUCKETS, HashedClassifier
from medical_assistant.safety.output_filter import (
    CLASSIFIER_FILE,
    KINDS,
    feature_groups,
    kinds_of,
    load_output_classifier,
)
from medical_assistant.safety.output_rules import load_output_rules
from medical_assistant.safety.training.output import OWN_ROWS
from tests.support import safety_rows
from tests.support.timing import cpu_s


def blocked(text, question="", red_flags=()):
    return safety_rows.filtered(text, question, red_flags)[1]


# Budgets: the figures of the last measurement. Nobody who worked on rules or training has read the blind rows; the
# generated ones are what the embedded model wrote.
@pytest.mark.parametrize(
    ("name", "found", "false_alarms"), [("output_blind", 0.80, 0.19), ("output_generated", 0.45, 0.09)]
)
def test_sentences_that_nobody_trained_on(name, found, false_alarms):
    outcomes = [(row["kind"] != "none", bool(safety_rows.blocked(row))) for row in safety_rows.rows(name)]
    assert len(outcomes) >= 300
    for violation, least, most in ((True, found, 1.0), (False, 0.0, false_alarms)):
        hidden = [hidden for kind, hidden in outcomes if kind is violation]
        assert len(hidden) >= 40 and least <= sum(hidden) / len(hidden) <= most


def test_no_measured_sentence_trains():
    measured = {row["text"] for name in ("output_blind", "output_generated") for row in safety_rows.rows(name)}
    for path in OWN_ROWS.glob("*.jsonl"):
        with path.open(encoding="utf-8") as file:
            assert measured.isdisjoint(json.loads(line)["text"] for line in file)


@pytest.fixture
def always(monkeypatch):
    """A classifier that takes every sentence for every kind."""
    classifiers = {kind: (HashedClassifier((0.0,) * BUCKETS, 1.0), 0.0) for kind in KINDS}
    monkeypatch.setattr(output_filter, "load_output_classifier", lambda: classifiers)


def test_it_blocks_under_the_name_of_a_rule(always):
    assert set(KINDS) <= {rule.name for rule in load_output_rules().rules}
    assert blocked("Plain water is good for most people.") == ["medicine_change"]
    assert blocked("Plain water is good.", red_flags=["chest pain"]) == ["delay_of_care"]


def test_a_disease_that_the_question_names_is_no_diagnosis(always, monkeypatch):
    kinds = {"diagnosis_as_fact": (HashedClassifier((0.0,) * BUCKETS, 1.0), 0.0)}
    monkeypatch.setattr(output_filter, "load_output_classifier", lambda: kinds)
    told = "I have asthma, diagnosed in 2010. Can I run?"
    assert blocked("Many with asthma run marathons.", told) == []
    assert blocked("Many with gout run marathons.", told) == ["diagnosis_as_fact"]


def test_short_sentences_are_left_to_the_rules(always):
    assert blocked("Stop it. Yes! No way.") == []


@given(st.text(max_size=300))
def test_any_text_can_be_read(text):
    assert set(kinds_of(text, load_output_classifier())) <= set(KINDS)
    assert all(0 <= bucket < BUCKETS for group in feature_groups(text) for bucket in group)


def test_one_drug_is_as_another():
    _, insulin = feature_groups("you can leave out your insulin")
    _, warfarin = feature_groups("you can leave out your warfarin")
    assert insulin == warfarin
    assert len({name for _, name in load_output_rules().word_classes}) == len(load_output_rules().word_classes)


def test_a_sentence_takes_under_a_millisecond_and_a_half():
    classifiers = load_output_classifier()
    texts = [row["text"] for row in safety_rows.rows("output_filter")[::10]]
    assert cpu_s(lambda: [kinds_of(text, classifiers) for text in texts], runs=2) / len(texts) < 0.0015


def test_the_file_is_what_it_says():
    assert CLASSIFIER_FILE.stat().st_size < 900_000
    details = json.loads(CLASSIFIER_FILE.read_text(encoding="utf-8"))["details"]
    sources = {source["name"]: source for source in details["trained_on"]}
    assert all(len(source["sha256"]) == 64 and source["rows"] > 0 for source in sources.values())
    for path in OWN_ROWS.glob("*.jsonl"):
        assert sources[path.name]["sha256"] == file_sha256(path), "train again: the own rows have changed"


def test_a_file_without_a_kind_is_refused(tmp_path):
    path = tmp_path / "model.json"
    path.write_text('{"kinds": {}, "details": {}}', encoding="utf-8")
    with pytest.raises(UserError, match=r"safety\.training output"):
        load_output_classifier(path)
