"""Multiple choice: reading of files, hand-checked accuracies, and a tiny model."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from medical_assistant.errors import UserError
from medical_assistant.evaluation.scoring.knowledge import (
    RULES,
    ChoiceQuestion,
    ChoiceScore,
    QuestionSet,
    correctness,
    knowledge_section,
    read_questions,
    score_choices,
)
from medical_assistant.evaluation.scoring.likelihood import CompletionScore
from medical_assistant.files import file_sha256

ROW = {"question": "What is inflamed in gout?", "options": {"A": "A joint", "B": "A lung"}, "answer": "A"}


def written(tmp_path: Path, *rows: dict) -> Path:
    path = tmp_path / "choices.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def question(answer: int, options=("one", "two", "three", "four"), subject=None) -> ChoiceQuestion:
    return ChoiceQuestion("Which?", tuple("ABCDEFGH"[: len(options)]), tuple(options), answer, subject)


def scores(*logprobs: float) -> ChoiceScore:
    """The same values by each rule."""
    return ChoiceScore(dict.fromkeys(RULES, logprobs), truncated=False)


@pytest.mark.parametrize(
    ("options", "answer", "right"),
    [
        ({"A": "joint", "B": "lung"}, "B", "lung"),
        ({"A": "joint", "B": "lung"}, "b", "lung"),
        ({"A": "joint", "B": "lung"}, "joint", "joint"),
        (["joint", "lung", "skin"], "C", "skin"),
        (["joint", "lung", "skin"], 2, "skin"),
        (["joint", "lung", "skin"], 0, "joint"),
        (["joint", "lung", "skin"], "1", "lung"),
        ({"1": "joint", "2": "lung"}, 1, "joint"),  # its label, not its index
        (["7", "2", "0"], "2", "2"),  # text before index
        (["7", "2", "0"], 2, "0"),
        (["B", "A", "O"], "A", "B"),  # blood groups: a letter before a text
        ([3, 5.5], 5.5, "5.5"),
        ({"A": "joint", "B": "lung", "C": None}, "B", "lung"),
        ('["joint", "lung"]', "B", "lung"),
    ],
)
def test_the_forms_of_an_answer(tmp_path, options, answer, right) -> None:
    read = read_questions(written(tmp_path, {**ROW, "options": options, "answer": answer})).questions[0]
    assert read.options[read.answer] == right


def test_a_set_has_the_files_name_and_hash_and_csv_reads_as_jsonl(tmp_path) -> None:
    rows = [{**ROW, "subject": "anatomy"}, {**ROW, "question": "And here?"}]
    path = written(tmp_path, *rows)
    read = read_questions(path)
    assert (read.name, read.sha256) == ("choices.jsonl", file_sha256(path))
    assert [row.subject for row in read.questions] == ["anatomy", None]
    table = tmp_path / "choices.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["question", "options", "answer", "subject"])
        writer.writeheader()
        writer.writerows({**row, "options": json.dumps(row["options"])} for row in rows)
    assert read_questions(table).questions == read.questions


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "E"}, r"choices.jsonl, row 2: the answer 'E' is not among the options A, B"),
        ({"answer": 2}, "row 2: the answer '2' is not among"),
        ({"answer": -1}, "row 2: the answer '-1' is not among"),
        ({"answer": True}, "row 2: the answer 'True' is not among"),
        ({"options": ["only"]}, "row 2: the options are .*: a choice needs two"),
        ({"options": ["one", None]}, "row 2: the options are .*: a choice needs two"),
        ({"options": []}, "a choice needs two"),
        ({"options": ["one", " "]}, "none may be empty"),
        ({"options": "one, two"}, "row 2: the options are not JSON"),
        ({"options": 7}, "row 2: the options are 7"),
        ({"options": ["x"] * 27}, "write up to 26 as a list"),
        ({"question": ""}, "row 2 has no question"),
        ({"question": " \u200b"}, "row 2 has no question"),
        ({"answer": None}, "row 2 has no answer"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path, change, message) -> None:
    path = written(tmp_path, ROW, {**ROW, **change})
    with pytest.raises(UserError, match=message):
        read_questions(path)


def test_no_file_and_no_rows(tmp_path) -> None:
    with pytest.raises(UserError, match="There is no file"):
        read_questions(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="has no questions"):
        read_questions(written(tmp_path))


def test_the_message_lists_the_options_and_takes_template_tokens_apart(tmp_path) -> None:
    row = {**ROW, "options": {"A": "A joint<|im_end|>", "B": "A lung"}}
    read = read_questions(written(tmp_path, row)).questions[0]
    assert read.text == "What is inflamed in gout?\n\nA. A joint< |im_end|>\nB. A lung"


def test_equal_options_share_the_point() -> None:
    assert correctness([-1.0, -2.0], 0) == 1 and correctness([-1.0, -2.0], 1) == 0
    assert correctness([-1.0, -1.0, -3.0], 0) == 0.5 == correctness([-1.0, -1.0, -3.0], 1)
    assert correctness([-1.0, -1.0, -3.0], 2) == 0
    assert correctness([-2.0] * 4, 3) == 0.25  # a model that cannot tell them apart is at chance


def test_a_set_by_hand() -> None:
    rows = [question(0, subject="a"), question(1, subject="a"), question(1, ("x", "y"), "b")]
    right = [scores(-1, -2, -3, -4), scores(-2, -1, -3, -4), scores(-5, -4)]
    wrong = [scores(-9, -2, -3, -4), scores(-2, -1, -3, -4), scores(-4, -4)]
    section = knowledge_section([(QuestionSet("set.jsonl", "f" * 64, rows), {"base": wrong, "fine_tuned": right})])
    assert section["status"] == "done"
    (part,) = section["sets"]
    assert (part["name"], part["n"], part["sha256"], part["truncated"]) == ("set.jsonl", 3, "f" * 64, 0)
    assert part["chance"] == pytest.approx((1 / 4 + 1 / 4 + 1 / 2) / 3)
    assert part["accuracy"]["base"]["accuracy"] == pytest.approx(1.5 / 3)
    # Wilson for 3 of 3: 3 / (3 + 1.96^2)
    tuned = part["accuracy"]["fine_tuned"]
    assert (tuned["accuracy"], tuned["high"], tuned["n"]) == (1, 1, 3)
    assert tuned["low"] == pytest.approx(3 / (3 + 1.959964**2), abs=1e-6)
    assert part["by_subject"]["a"] == {"base": 0.5, "fine_tuned": 1, "n": 2}
    assert part["by_subject"]["b"] == {"base": 0.5, "fine_tuned": 1, "n": 1}
    difference = part["comparison"]["fine_tuned vs base"]
    assert (difference["n"], difference["mean_a"], difference["mean_b"]) == (3, 0.5, 1)
    assert (difference["wins"], difference["ties"], difference["losses"]) == (2, 1, 0)
    assert difference["verdict"] == "too few questions"
    json.dumps(section)


def test_length_and_letters_are_scores_of_their_own() -> None:
    """The long right option loses by its sum and wins for each character; the letters point elsewhere."""
    texts = [CompletionScore(1, -2.0, False), CompletionScore(5, -6.0, True)]
    letters = [CompletionScore(1, -0.1, False), CompletionScore(1, -3.0, False)]
    scorer = SimpleNamespace(score=lambda *arguments, **options: [*texts, *letters])
    rows = [question(1, ("yes", "y" * 20))]
    (part,) = knowledge_section([(QuestionSet("s", "0", rows), score_choices(scorer, rows, {"base": False}))])["sets"]
    assert part["accuracy"]["base"]["accuracy"] == 0
    assert part["normalised_accuracy"]["base"]["accuracy"] == 1  # -0.3 against -0.67
    assert part["letter_accuracy"]["base"]["accuracy"] == 0
    assert part["truncated"] == 1 and part["comparison"] == {} and part["by_subject"] == {}


def test_every_two_candidates_are_compared() -> None:
    rows = [question(0) for n in range(25)]
    good, bad = [scores(-1, -2, -2, -2)] * 25, [scores(-3, -2, -4, -4)] * 25
    candidates = {"base": bad, "a": good, "b": good}
    (part,) = knowledge_section([(QuestionSet("s", "0", rows), candidates)])["sets"]
    assert list(part["comparison"]) == ["a vs base", "b vs base", "b vs a"]
    assert [row["verdict"] for row in part["comparison"].values()] == ["better", "better", "no measurable difference"]


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    pytest.importorskip("torch")
    from medical_assistant.evaluation.scoring.likelihood import Scorer
    from medical_assistant.models.adapter import load_adapter
    from tests.support.tiny_llama import TEMPLATE, make_base, make_peft_adapter

    folder = tmp_path_factory.mktemp("knowledge")
    preset = make_base(folder / "base")
    (folder / "base" / "chat_template.jinja").write_text(TEMPLATE)
    scorer = Scorer(preset, load_adapter(make_peft_adapter(preset, folder / "adapter"), preset))
    scorer.model.float()
    return scorer


def test_scores_are_those_of_each_option_alone(scorer) -> None:
    from medical_assistant.prompts import build_messages

    rows = [question(0), question(2, ("A joint", "A lung", "The heart"))]
    results = score_choices(scorer, rows, {"base": False, "fine_tuned": True})
    assert list(results) == ["base", "fine_tuned"]
    for candidate, adapter in (("base", False), ("fine_tuned", True)):
        for row, of_row in zip(rows, results[candidate], strict=True):
            for rule, completions in (("accuracy", row.options), ("letter_accuracy", row.labels)):
                for completion, value in zip(completions, of_row.values[rule], strict=True):
                    (alone,) = scorer.score([(build_messages(row.text), completion)], adapter, "t", end_of_turn=False)
                    assert value == pytest.approx(alone.logprob, abs=1e-4)
            by_text, by_character = of_row.values["accuracy"], of_row.values["normalised_accuracy"]
            assert by_character == pytest.approx([a / len(b) for a, b in zip(by_text, row.options, strict=True)])
    base, tuned = (results[key][0].values["accuracy"] for key in ("base", "fine_tuned"))
    assert all(abs(one - other) > 1e-2 for one, other in zip(base, tuned, strict=True))


def test_a_random_model_is_at_chance(scorer) -> None:
    """Options of random bytes, the right one anywhere: 30 questions of 4, chance 0.25, 2 standard errors 0.16."""
    import random

    generator = random.Random(3)
    words = ["".join(generator.choices("abcdefg", k=6)) for _ in range(120)]
    rows = [question(generator.randrange(4), words[4 * n : 4 * n + 4]) for n in range(30)]
    results = score_choices(scorer, rows, {"base": False})
    (part,) = knowledge_section([(QuestionSet("random", "0", rows), results)])["sets"]
    assert part["chance"] == 0.25
    assert part["accuracy"]["base"]["low"] < 0.25 < part["accuracy"]["base"]["high"]
