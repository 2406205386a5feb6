"""Recall of must-have statements and contradictions: by hand, with judges that follow a script."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from medical_assistant.errors import UserError
from medical_assistant.evaluation.judges.server import LABELS, Claim, JudgeDown, Verdict
from medical_assistant.evaluation.judges.statements import (
    StatementRow,
    read_statements,
    statement_records,
    statements_section,
)
from medical_assistant.evaluation.scoring.bootstrap import Resampler, proportion_interval
from medical_assistant.prompts import build_messages

E, C, N = LABELS


class ScriptedJudge:
    """Reads the verdict off the answer: `name=label` for each statement; "?" is a missing one."""

    name, prompt_sha256 = "scripted", "a" * 64

    def __init__(self, down_after: int | None = None) -> None:
        self.asked: list[Claim] = []
        self.down_after = down_after

    def verdicts(self, claims: Sequence[Claim]):
        for claim in claims:
            if self.down_after is not None and len(self.asked) >= self.down_after:
                raise JudgeDown("No connection to the judge: check that it runs.")
            self.asked.append(claim)
            said = dict(part.split("=") for part in claim.answer.split())
            label = said.get(claim.statement, N)
            yield Verdict(None, "HTTP 500") if label == "?" else Verdict(label)


ROWS = [
    StatementRow("q1", "What helps?", ("m1", "m2"), ("n1", "n2")),
    StatementRow("q2", "How long?", ("m1", "m2", "m3")),
]


def section(answers, judge=None, rows=ROWS, verdicts=None, resampler=None):
    """The section, with a file of verdicts of its own unless `verdicts` names one."""
    with tempfile.TemporaryDirectory() as folder:
        path = verdicts or Path(folder) / "verdicts.jsonl"
        return statements_section(rows, answers, judge or ScriptedJudge(), path, resampler or Resampler())


# measures


def test_measures_by_hand():
    result = section({"base": [f"m1={E} m2={C} n1={C}", f"m1={E} m2={E} n1={E}"]})
    base = result["candidates"]["base"]
    assert base["recall"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert base["contradictions"] == pytest.approx((2 / 4 + 0 / 3) / 2)
    assert base["contradictions_per_question"] == 1.0  # K-QA's hallucination rate: 2 statements, 2 questions
    assert (base["n"], base["missing"]) == (2, 0)
    assert (base["low"], base["high"]) == proportion_interval(1 / 2 + 2 / 3, 2)  # two questions: Wilson's
    assert (result["status"], result["n"], result["must_have"], result["nice_to_have"]) == ("done", 2, 5, 2)
    assert result["comparison"] == {} and result["missing_reasons"] == {}
    assert result["judge"] == {"kind": "server", "name": "scripted", "prompt_sha256": "a" * 64}
    assert result["examples"] == [
        {"candidate": "base", "id": "q1", "question": "What helps?", "statement": "m2"},
        {"candidate": "base", "id": "q1", "question": "What helps?", "statement": "n1"},
    ]
    json.dumps(result)


def test_nice_to_have_counts_for_contradictions_only():
    base = section({"base": [f"n1={E} n2={E}", ""]})["candidates"]["base"]
    assert base["recall"] == 0.0
    assert section({"base": [f"n1={C}", ""]})["candidates"]["base"]["contradictions"] == pytest.approx(1 / 4 / 2)


def test_missing_verdicts_are_left_out_and_counted():
    result = section({"base": [f"m1={E} m2=? n1=?", "m1=? m2=? m3=?"]})
    base = result["candidates"]["base"]
    assert base["recall"] == 1.0  # one of the one judged; the second question does not count
    assert base["contradictions"] == 0.0
    assert (base["n"], base["missing"]) == (1, 5)
    assert result["missing_reasons"] == {"HTTP 500": 5}


def test_nothing_judged_is_not_run():
    result = section({"base": ["m1=? m2=? n1=? n2=?", "m1=? m2=? m3=?"]})
    assert result["status"] == "not run" and "HTTP 500" in result["reason"]


def test_no_judge_is_not_run(tmp_path: Path):
    result = statements_section(ROWS, {"base": ["a", "b"]}, None, tmp_path / "none.jsonl", Resampler())
    assert result["status"] == "not run" and set(result) == {"status", "reason"}


def test_empty_answer_needs_no_judge():
    judge = ScriptedJudge()
    base = section({"base": [" \n", ""]}, judge)["candidates"]["base"]
    assert (base["recall"], base["contradictions"], base["missing"]) == (0.0, 0.0, 0)
    assert judge.asked == []


def test_statement_in_both_lists_counts_once():
    rows = [StatementRow("q", "Q?", ("m",), ("m", "n"))]
    base = section({"base": [f"m={C}"]}, rows=rows)["candidates"]["base"]
    assert base["contradictions"] == 0.5


def many(n: int) -> list[StatementRow]:
    return [StatementRow(f"q{i}", f"Question {i}?", ("m1", "m2")) for i in range(n)]


def test_comparison_of_candidates():
    n = 30
    better = [f"m1={E} m2={E}" if i % 3 else f"m1={E}" for i in range(n)]
    worse = [f"m1={E}" if i % 3 else f"m1={C}" for i in range(n)]
    result = section({"base": worse, "tuned": better, "same": worse}, rows=many(n))
    assert list(result["comparison"]) == list(result["contradictions_comparison"]) == ["tuned vs base", "same vs base"]
    recall = result["comparison"]["tuned vs base"]
    assert recall["mean_a"] == pytest.approx(20 * 0.5 / 30) and recall["mean_b"] == pytest.approx((20 + 5) / 30)
    assert (recall["n"], recall["wins"], recall["losses"], recall["verdict"]) == (n, n, 0, "better")
    contradictions = result["contradictions_comparison"]["tuned vs base"]
    assert contradictions["difference"] == pytest.approx(-10 * 0.5 / 30)
    assert (contradictions["wins"], contradictions["verdict"]) == (10, "better")  # fewer are better
    assert result["comparison"]["same vs base"]["verdict"] == "no measurable difference"
    tuned = result["candidates"]["tuned"]
    assert tuned["recall"] == pytest.approx(25 / 30) and tuned["low"] < 25 / 30 < tuned["high"]


def test_candidates_are_compared_on_what_both_have_a_verdict_on():
    result = section({"base": [f"m1={E} m2=?", ""], "tuned": [f"m1={E}", ""]})
    assert result["candidates"]["tuned"]["recall"] == 0.25
    difference = result["comparison"]["tuned vs base"]
    assert (difference["mean_a"], difference["mean_b"], difference["ties"]) == (0.5, 0.5, 2)


def test_interval_of_a_rate_that_never_varies_is_not_a_point():
    base = section({"base": ["x=entailed"] * 40}, rows=many(40))["candidates"]["base"]
    assert (base["contradictions"], base["contradictions_low"]) == pytest.approx((0.0, 0.0))
    assert base["contradictions_high"] == pytest.approx(proportion_interval(0, 40)[1]) and base["high"] > 0.05


def test_same_seed_same_interval():
    answers = {"base": [f"m1={E}" if i % 2 else "" for i in range(40)]}
    first, again, other = (
        section(answers, rows=many(40), resampler=Resampler(1000, seed))["candidates"]["base"] for seed in (1, 1, 2)
    )
    assert first == again
    assert first["low"] == pytest.approx(other["low"], abs=0.02)
    # 0.25 ± 1.96 · 0.25 / √40
    assert (first["low"], first["high"]) == pytest.approx((0.1725, 0.3275), abs=0.02)


def test_wrong_number_of_answers():
    with pytest.raises(ValueError):
        section({"base": ["a"]})


# resuming


def test_judge_that_goes_away_loses_nothing(tmp_path: Path):
    path = tmp_path / "verdicts.jsonl"
    answers = {"base": [f"m1={E} m2={C}", f"m1={E}"], "tuned": [f"m1={E} m2={E}", f"m2={C}"]}
    with pytest.raises(UserError, match="9 verdicts are kept: go on with --resume"):
        section(answers, ScriptedJudge(down_after=9), verdicts=path)
    assert len(path.read_text().splitlines()) == 9
    judge = ScriptedJudge()
    result = section(answers, judge, verdicts=path)
    assert len(judge.asked) == 14 - 9
    assert result == section(answers)
    judge = ScriptedJudge()
    assert section(answers, judge, verdicts=path) == result and judge.asked == []


def test_missing_verdicts_are_asked_again(tmp_path: Path):
    path = tmp_path / "verdicts.jsonl"
    section({"base": [f"m1={E} m2=?", ""]}, verdicts=path)
    judge = ScriptedJudge()
    section({"base": [f"m1={E} m2=?", ""]}, judge, verdicts=path)
    assert [claim.statement for claim in judge.asked] == ["m2"]


def test_line_cut_off_by_a_kill(tmp_path: Path):
    path = tmp_path / "verdicts.jsonl"
    answers = {"base": [f"m1={E} m2={C}", f"m1={E}"]}
    expected = section(answers, verdicts=path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        assert section(answers, verdicts=path) == expected
        assert len(path.read_text().splitlines()) == 7


def test_foreign_rows_are_ignored_and_broken_lines_named(tmp_path: Path):
    path = tmp_path / "verdicts.jsonl"
    path.write_text('{"key": "x", "label": "yes"}\n{"label": "neither"}\n')
    assert section({"base": ["", f"m1={E}"]}, verdicts=path)["status"] == "done"
    path.write_bytes(b'{"key": "x", "label": "yes"}\n\xff\xfe\n')
    with pytest.raises(UserError, match="line 2 is broken"):
        section({"base": ["", f"m1={E}"]}, verdicts=path)


@pytest.mark.parametrize("change", [{"name": "other"}, {"prompt_sha256": "b" * 64}])
def test_verdicts_of_another_judge_are_not_taken(tmp_path: Path, change):
    path = tmp_path / "verdicts.jsonl"
    section({"base": [f"m1={E}", "x=y"]}, verdicts=path)
    judge = ScriptedJudge()
    for key, value in change.items():
        setattr(judge, key, value)
    section({"base": [f"m1={E}", "x=y"]}, judge, verdicts=path)
    assert len(judge.asked) == 7


def test_same_answer_of_two_candidates_is_judged_once():
    judge = ScriptedJudge()
    result = section({"base": [f"m1={E}", "a=b"], "tuned": [f"m1={E}", "a=b"]}, judge)
    assert len(judge.asked) == 7 and result["candidates"]["base"] == result["candidates"]["tuned"]


# reading


def write(path: Path, *rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_reading(tmp_path: Path):
    path = write(
        tmp_path / "set.jsonl",
        {"id": 7, "question": " What is flu? ", "must_have": [" It is a virus. "], "nice_to_have": ["Rest helps."]},
        {"Question": "What is a cold?", "Must_have": ["A", "B"], "Nice_to_have": [], "Free_form_answer": "x"},  # K-QA
        {"question": "And?", "must_have": ["C"], "nice_to_have": None, "id": ""},
    )
    assert read_statements(path) == [
        StatementRow("7", "What is flu?", ("It is a virus.",), ("Rest helps.",)),
        StatementRow("2", "What is a cold?", ("A", "B")),
        StatementRow("3", "And?", ("C",)),
    ]


GOOD = {"id": "a", "question": "Q?", "must_have": ["S"]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "b", "question": "Q?"}, "row 2 has no must_have"),
        ({"id": "b", "question": "Q?", "must_have": []}, "row 2 has no must_have"),
        ({"id": "b", "question": "Q?", "must_have": "S"}, "row 2: must_have must be a list"),
        ({"id": "b", "question": "Q?", "must_have": ["S", " "]}, "row 2: must_have must be a list"),
        ({"id": "b", "question": "Q?", "must_have": ["S", 4]}, "row 2: must_have must be a list"),
        ({"id": "b", "question": "Q?", "must_have": ["S"], "nice_to_have": {}}, "row 2: nice_to_have must be a list"),
        ({"id": "b", "question": " ", "must_have": ["S"]}, "row 2 has no question"),
        ({"id": "b", "must_have": ["S"]}, "row 2 has no question"),
    ],
)
def test_broken_rows_are_named(tmp_path: Path, row, message):
    with pytest.raises(UserError, match=message):
        read_statements(write(tmp_path / "set.jsonl", GOOD, row))


def test_broken_files(tmp_path: Path):
    with pytest.raises(UserError, match="no file"):
        read_statements(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="empty"):
        read_statements(write(tmp_path / "set.jsonl"))
    (tmp_path / "broken.jsonl").write_text('{"question": \n')
    with pytest.raises(UserError, match="line 1"):
        read_statements(tmp_path / "broken.jsonl")
    with (tmp_path / "set.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["question", "must_have"], ["Q?", "S"]])
    with pytest.raises(UserError, match="row 1: must_have must be a list"):
        read_statements(tmp_path / "set.csv")


def test_records():
    first, second = statement_records(ROWS)
    assert first["prompt"] == build_messages("What helps?")
    assert first["completion"] == [{"role": "assistant", "content": "m1 m2"}]
    assert (first["id"], first["source"], first["cluster"], second["cluster"]) == ("q1", "statements", 0, 1)


def test_full_disk_is_one_line(tmp_path: Path):
    with pytest.raises(UserError, match="cannot be written"):
        section({"base": [f"m1={E}", ""]}, verdicts=tmp_path / "no folder" / "verdicts.jsonl")
