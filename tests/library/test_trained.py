"""The files that were learned: all are there, agree with the code, and one that is missing or broken is one line."""

from __future__ import annotations

import json
import shutil

import pytest

from medical_assistant.errors import UserError
from medical_assistant.library import coverage, ranking
from medical_assistant.library.classifier import NOTHING
from medical_assistant.library.pages import SECTIONS
from medical_assistant.library.trained import FOLDER, load_trained

FILES = ("ranking.json", "ordinary_words.txt", "section_classifier.json", "scope_classifier.json", "coverage.json")


@pytest.fixture
def copy(tmp_path):
    for name in FILES:
        shutil.copy(FOLDER / name, tmp_path)
    return tmp_path


def test_what_ships_fits_the_code(shipped):
    trained = load_trained()
    assert set(trained.ranking.weights) == set(ranking.SIGNALS) and set(trained.gate.named.weights) == set(
        coverage.SIGNALS
    )
    headings = {heading for headings in SECTIONS.values() for heading in headings}
    assert set(trained.sections.labels) == {*headings, NOTHING}
    assert all(0 <= share <= 1 for share in trained.ranking.reliability.values())
    assert {"happy", "later"} <= set(trained.uncorrected) and "maleria" not in trained.uncorrected


def test_pages_that_were_asked_for_are_in_the_library(shipped):
    asked_for = set(load_trained().ranking.asked_for.stems)
    assert asked_for <= {page.id for page in shipped.pages} and len(asked_for) > 0.9 * len(shipped.pages)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_one_line(copy, name):
    (copy / name).unlink()
    with pytest.raises(UserError, match=f"{name}.*is missing or broken") as error:
        load_trained(copy)
    assert "\n" not in str(error.value) and "medical_assistant.library.training" in str(error.value)


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".json")])
@pytest.mark.parametrize("content", ["", "{", "[]", '{"weights": {}}', '{"weights": {"name": "x"}}'])
def test_a_broken_file_is_one_line(copy, name, content):
    (copy / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as error:
        load_trained(copy)
    assert name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("content", [{"asked_for": {"gout": 3}}, {"reliability": []}, {"weights": None}])
def test_fields_of_another_kind_are_one_line(copy, content):
    whole = json.loads((copy / "ranking.json").read_text(encoding="utf-8"))
    (copy / "ranking.json").write_text(json.dumps({**whole, **content}), encoding="utf-8")
    with pytest.raises(UserError, match="ranking.json.*is missing or broken"):
        load_trained(copy)
