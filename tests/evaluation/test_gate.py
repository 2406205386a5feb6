"""Thresholds: what a gate file may say, what passes it, and what `train.py` lets out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medical_assistant.errors import AdapterError, UserError
from medical_assistant.evaluation.gate import (
    DEFAULT_GATE,
    GateError,
    check_gate,
    find_gate,
    gate_table,
    read_gate,
    require_gate,
    split_path,
)
from medical_assistant.files import file_sha256
from medical_assistant.models.adapter import weights_hash

METRICS: dict[str, Any] = {
    "n": 200,
    "candidates": {"base": {"adapter_revision": None}, "fine_tuned": {"adapter_revision": "abc"}},
    "scores": {"base": {"bleu": 1.0, "ended": 0.75}, "fine_tuned": {"bleu": 3.5, "ended": 0.7}},
    "comparison": {"pairs": {"fine_tuned vs base": {"rougeL": {"low": 0.01, "high": 0.04, "verdict": "better"}}}},
    "safety": {
        "status": "done",
        "candidates": {
            "base": {"refusal_rate": 0.4, "over_refusal_rate": 0.1, "delays_care_rate": 0.2},
            "fine_tuned": {"refusal_rate": 0.3, "over_refusal_rate": 0.1, "delays_care_rate": 0.25},
        },
        "comparison": {
            "fine_tuned vs base": {
                "refusal_rate": {"low": -0.2, "high": 0.01},
                "over_refusal_rate": {"low": 0.0, "high": 0.0},
                "urges_care_rate": {"low": -0.1, "high": 0.1},
                "delays_care_rate": {"low": -0.02, "high": 0.15},
            }
        },
    },
    "knowledge": {"v1.5": {"accuracy": 0.5}},
    "odd": {
        "text": "1",
        "yes": True,
        "none": None,
        "nan": float("nan"),
        "list": [1],
        "sets": [{"name": "a"}, {"name": "b.jsonl", "accuracy": 0.5}],
    },
}


def write(path: Path, *checks: dict[str, Any]) -> Path:
    path.write_text(json.dumps(checks))  # JSON is YAML
    return path


@pytest.mark.parametrize(
    ("check", "value", "passed"),
    [
        ({"value": "scores.fine_tuned.bleu", "min": 3.5}, 3.5, True),  # a bound is allowed
        ({"value": "scores.fine_tuned.bleu", "min": 3.51}, 3.5, False),
        ({"value": "scores.fine_tuned.bleu", "max": 3.5}, 3.5, True),
        ({"value": "scores.fine_tuned.bleu", "max": 3.49}, 3.5, False),
        ({"value": "scores.{candidate}.bleu", "min_change": 2.5}, 2.5, True),
        ({"value": "scores.{candidate}.bleu", "min_change": 2.6}, 2.5, False),
        ({"value": "scores.{candidate}.bleu", "max_change": 2.5}, 2.5, True),
        ({"value": "scores.{candidate}.bleu", "max_change": 0}, 2.5, False),
        ({"value": "n", "min": 200}, 200, True),
        ({"value": "comparison.pairs.fine_tuned vs base.rougeL.low", "min": 0}, 0.01, True),
        ({"value": 'comparison.pairs."fine_tuned vs base".rougeL.high', "max": 0.03}, 0.04, False),
        ({"value": 'knowledge."v1.5".accuracy', "min": 0.25}, 0.5, True),
        # What is not there, or is no number, fails: an evaluation that was not run is no pass.
        ({"value": "scores.fine_tuned.chrf", "min": 0}, None, False),
        ({"value": "scores.fine_tuned.chrf", "max": 0}, None, False),
        ({"value": "scores.{candidate}.chrf", "max_change": 1}, None, False),
        ({"value": "statements.candidates.fine_tuned.recall", "min": 0}, None, False),
        ({"value": "scores.fine_tuned", "min": 0}, None, False),
        ({"value": "n.deeper", "min": 0}, None, False),
        ({"value": "odd.text", "min": 0}, None, False),
        ({"value": "odd.yes", "min": 0}, None, False),
        ({"value": "odd.none", "min": 0}, None, False),
        ({"value": "odd.nan", "min": 0}, None, False),
        ({"value": "odd.list.1", "min": 0}, None, False),
        ({"value": "odd.list.first", "min": 0}, None, False),
        ({"value": "odd.list.0", "min": 0}, 1, True),
        ({"value": "odd.sets.1.accuracy", "min": 0.5}, 0.5, True),
        ({"value": 'odd.sets."b.jsonl".accuracy', "min": 0.5}, 0.5, True),
    ],
)
def test_bounds(tmp_path: Path, check: dict[str, Any], value: float | None, passed: bool) -> None:
    section = check_gate(METRICS, write(tmp_path / "gate.yaml", check))
    (result,) = section["checks"]
    assert section["passed"] is result["passed"] is passed
    assert result["value"] == (value if value is None else pytest.approx(value))
    bound = next(name for name in check if name != "value")
    assert (result["name"], result["bound"]) == (f"{check['value']} {bound}", check[bound])


def test_a_check_with_two_bounds_and_one_failure_among_several(tmp_path: Path) -> None:
    path = write(
        tmp_path / "mine.yaml",
        {"value": "n", "min": 100, "max": 150, "reason": "It must be of a size."},
        {"value": "scores.{candidate}.ended", "min_change": -0.1, "max_change": 0.1},
    )
    section = check_gate(METRICS, path)
    assert [check["passed"] for check in section["checks"]] == [True, False, True, True]
    assert section["passed"] is False and section["status"] == "done"
    assert (section["file"], section["sha256"]) == ("mine.yaml", file_sha256(path))
    json.dumps(section, allow_nan=False)


def test_the_table(tmp_path: Path) -> None:
    checks = [
        {"value": "n", "min": 300, "reason": "Fewer say little."},
        {"value": "scores.fine_tuned.bleu", "min": 3, "reason": "Not shown: it passes."},
        {"value": "scores.fine_tuned.chrf", "max": 0.5},
    ]
    assert gate_table(check_gate(METRICS, write(tmp_path / "mine.yaml", *checks))) == (
        "gate mine.yaml: FAILED\n"
        "  FAIL n min 300: 200\n"
        "       Fewer say little.\n"
        "  ok   scores.fine_tuned.bleu min 3: 3.5\n"
        "  FAIL scores.fine_tuned.chrf max 0.5: not measured"
    )
    passed = check_gate(METRICS, write(tmp_path / "mine.yaml", checks[1]))
    assert gate_table(passed).splitlines()[0] == "gate mine.yaml: passed"


CHANGE = "min_change and max_change, and only these, need {candidate}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold a list of checks"),
        ("[]", "must hold a list of checks"),
        ("value: n", "must hold a list of checks"),
        ("[", "is not valid YAML"),
        ("- {value: n, min: 5, min: 0}", "is not valid YAML: min is given twice"),
        ("- n", "check 1 has no `value`"),
        ("- {min: 1}", "check 1 has no `value`"),
        ("- {value: 1, min: 1}", "check 1 has no `value`"),
        ("- {value: n, min: 1}\n- {value: n}", "check 2 has no bound: add min or max or min_change or max_change"),
        ("- {value: n, minimum: 1}", "check 1: unknown minimum; use value, reason, min, max"),
        ("- {value: n, min: '1'}", "check 1: min must be a number, not '1'"),
        ("- {value: n, min: true}", "min must be a number, not True"),
        ("- {value: n, max: .nan}", "max must be a number, not nan"),
        ("- {value: n, max: .inf}", "max must be a number, not inf"),
        ("- {value: n, max: null}", "max must be a number, not None"),
        ("- {value: scores.bleu, min_change: 1}", CHANGE),
        ("- {value: 'scores.{candidate}.bleu', min: 1}", CHANGE),
        ("- {value: 'scores.{candidate}.bleu', min_change: 0, max: 1}", CHANGE),
        ("- {value: 'a..b', min: 1}", "'a..b' is not a path of keys joined by dots"),
        ("- {value: '', min: 1}", "is not a path"),
    ],
)
def test_a_gate_that_cannot_be_checked_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "gate.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as raised:
        read_gate(path)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_gate_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--gate .*none\.yaml cannot be read: No such file"):
        read_gate(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_gate(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"- {value: \xff, min: 1}")
    with pytest.raises(UserError, match="is not valid YAML"):
        read_gate(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("path", "keys"),
    [
        ("n", ["n"]),
        ("scores.base.bleu", ["scores", "base", "bleu"]),
        ("pairs.fine_tuned vs base.low", ["pairs", "fine_tuned vs base", "low"]),
        ('pairs."a.b vs base".low', ["pairs", "a.b vs base", "low"]),
        ('"say ""no""".x', ['say "no"', "x"]),
        ('"back\\slash"', ["back\\slash"]),
    ],
)
def test_paths(path: str, keys: list[str]) -> None:
    assert split_path(path) == keys


@pytest.mark.parametrize("path", ["", ".", "a.", ".a", "a..b", '"a', '"a"b', 'a."b', '""'])
def test_broken_paths(path: str) -> None:
    with pytest.raises(UserError, match="is not a path of keys"):
        split_path(path)


@given(st.lists(st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=8), min_size=1, max_size=5))
def test_any_keys_can_be_quoted(keys: list[str]) -> None:
    quoted = ['"' + key.replace('"', '""') + '"' for key in keys]
    assert split_path(".".join(quoted)) == keys


@given(st.text(alphabet='ab."\\ {}', max_size=12))
def test_any_text_is_a_path_or_is_refused(text: str) -> None:
    try:
        assert all(isinstance(key, str) for key in split_path(text))
    except UserError:
        pass


def test_the_default_gate_asks_for_what_an_evaluation_measures() -> None:
    section = check_gate(METRICS, DEFAULT_GATE)
    assert len(section["checks"]) >= len(read_gate(DEFAULT_GATE)) >= 5
    assert None not in [check["value"] for check in section["checks"]]
    assert section["passed"] and all(check["reason"] for check in section["checks"])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("comparison", "pairs", "fine_tuned vs base", "rougeL", "low"), -0.001),
        (("scores", "fine_tuned", "ended"), 0.69),  # of 0.75
        (("safety", "comparison", "fine_tuned vs base", "refusal_rate", "high"), -0.01),  # measurably fewer refusals
        (("safety", "comparison", "fine_tuned vs base", "over_refusal_rate", "low"), 0.01),
        (("safety", "comparison", "fine_tuned vs base", "urges_care_rate", "high"), -0.01),
        (("safety", "comparison", "fine_tuned vs base", "delays_care_rate", "low"), 0.01),
    ],
)
def test_the_default_gate_stops_each_regression(path: tuple[str, ...], value: float) -> None:
    metrics = json.loads(json.dumps(METRICS))
    place = metrics
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    section = check_gate(metrics, DEFAULT_GATE)
    failed = [check["name"] for check in section["checks"] if not check["passed"]]
    assert len(failed) == 1 and path[-1] in failed[0]


def test_what_train_py_may_be_told(tmp_path: Path) -> None:
    assert find_gate("none") is None and find_gate("default") == DEFAULT_GATE
    mine = write(tmp_path / "mine.yaml", {"value": "n", "min": 1})
    assert find_gate(str(mine)) == mine
    with pytest.raises(UserError, match="cannot be read"):
        find_gate(str(tmp_path / "other.yaml"))
    with pytest.raises(UserError, match="must hold a list"):
        find_gate(str(write(tmp_path / "empty.yaml")))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter folder, as far as the gate looks, with results that are its own."""
    path = tmp_path / "my adapter"
    path.mkdir()
    (path / "adapter_model.safetensors").write_bytes(b"weights")
    metrics = {**METRICS, "candidates": {"base": {}, "fine_tuned": {"adapter_revision": weights_hash(path)}}, "odd": {}}
    (path / "metrics.json").write_text(json.dumps(metrics))
    return path


def refusal(folder: Path, gate: Path = DEFAULT_GATE) -> str:
    """The one line that says why the adapter may not be published, and how to do it all the same."""
    with pytest.raises(GateError) as raised:
        require_gate(folder, gate)
    text = str(raised.value)
    assert "\n" not in text and text.endswith(f"`train.py --publish '{folder}' --gate none`.")
    return text


def test_an_adapter_that_meets_its_thresholds_may_go(folder: Path) -> None:
    require_gate(folder, DEFAULT_GATE)


def test_an_adapter_that_fails_says_at_which_checks(folder: Path, tmp_path: Path) -> None:
    gate = write(
        tmp_path / "strict.yaml",
        {"value": "scores.fine_tuned.bleu", "min": 3},
        {"value": "scores.{candidate}.bleu", "min_change": 5},
        {"value": "statements.recall", "min": 0},
    )
    text = refusal(folder, gate)
    assert "strict.yaml (scores.{candidate}.bleu min_change 5: 2.5, statements.recall min 0: not measured)" in text


def test_an_adapter_without_results_of_its_own_may_not_go(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(b"trained anew")
    assert "is of other weights" in refusal(folder)
    for content in (
        "",
        "[]",
        "{}",
        '{"n": 1, "base": {"bleu": 1}}',
        '{"candidates": []}',
        '{"candidates": {"base": {}}}',
    ):
        (folder / "metrics.json").write_text(content)
        assert "is broken" in refusal(folder)
    (folder / "metrics.json").unlink()
    assert f"is not evaluated: run `evaluate.py --adapter '{folder}' --update-adapter`" in refusal(folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterError, match=r"has no adapter_model\.safetensors"):
        require_gate(folder, DEFAULT_GATE)


def test_a_broken_gate_is_no_pass(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must hold a list"):
        require_gate(folder, write(tmp_path / "empty.yaml"))
