"""Hashed classifiers: what is stored is what is scored, and a broken file names the command that writes it again."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medical_assistant.errors import UserError
from medical_assistant.safety.hashed_classifier import (
    BUCKETS,
    WEIGHT_SCALE,
    HashedClassifier,
    from_json,
    probability,
    read_classifier,
    to_json,
)

UNITS = st.dictionaries(st.integers(0, BUCKETS - 1), st.integers(-900, 900), max_size=20)


@given(UNITS, st.integers(-500, 500))
def test_what_is_stored_comes_back(units, bias):
    dense = [units.get(bucket, 0) for bucket in range(BUCKETS)]
    restored = from_json(json.loads(json.dumps(to_json(dense, bias / 100))))
    assert restored == HashedClassifier(tuple(unit / WEIGHT_SCALE for unit in dense), bias / 100)


def test_each_group_adds_its_weights_over_the_root_of_their_number():
    weights = [0.0] * BUCKETS
    weights[1], weights[2], weights[3] = 2.0, 4.0, 3.0
    model = HashedClassifier(tuple(weights), -1.0)
    assert model.score({1, 2}, {3}) == pytest.approx(-1 + 6 / math.sqrt(2) + 3)
    assert model.score() == model.score(set()) == -1


def test_probabilities_are_those_of_log_odds():
    assert probability(0.0) == 0.5
    assert probability(math.log(3)) == pytest.approx(0.75)
    assert 0 < probability(-1e9) < probability(1e9) < 1


@pytest.mark.parametrize("content", [None, "", "[1]", "{}", '{"bias": 0, "buckets": [99999999], "weights": [1]}'])
def test_a_broken_file_names_the_command(tmp_path, content):
    path = tmp_path / "model.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"model\.json cannot be read.*safety\.training misuse"):
        read_classifier(path, from_json, "misuse")
