"""The decode benchmark: its arithmetic, and one run with a tiny budget."""

from __future__ import annotations

import json

import pytest

from medical_assistant.errors import UserError
from tests.support.paths import ROOT, load_script

PATH = ROOT / "benchmarks" / "decode.py"


@pytest.fixture(scope="module")
def decode():
    return load_script("benchmarks/decode")


def steady(first_s: float, per_s: float, tokens: int = 11) -> list[float]:
    return [first_s + i / per_s for i in range(tokens)]


def test_medians_ratios_and_targets(decode):
    samples = {
        ("bare, base", 1): [[steady(0.1, 100)], [steady(0.1, 110)], [steady(0.3, 1)]],  # one repeat was disturbed
        ("engine, base", 1): [[steady(0.2, 95)]] * 3,
        ("bare, adapter", 1): [[steady(0.1, 80)]] * 3,
        ("engine, adapter", 1): [[steady(0.1, 76)]] * 3,
        ("page, base", 1): [[steady(0.5, 50)]] * 3,
        ("transformers, bfloat16", 1): [[steady(1, 20)]] * 3,
        ("transformers, float32", 1): [[steady(1, 10)]] * 3,
        ("bare, base", 4): [[steady(0.1, 50)] * 4] * 3,
    }
    rows = {(row["name"], row["clients"]): row for row in decode.summarise(samples)}
    assert rows["bare, base", 1]["tokens_per_s"] == 100 and rows["bare, base", 1]["ratio"] == 1
    assert rows["engine, base", 1]["ratio"] == 0.95 and rows["engine, base", 1]["first_token_s"] == 0.2
    assert rows["bare, base", 4]["tokens_per_s"] == 200  # four clients at 50
    assert rows["engine, adapter", 1]["ratio"] == 0.95  # against the bare library with the adapter on
    assert ("transformers, float32", 1) not in rows  # the faster dtype is the honest one
    checks = decode.check_targets(list(rows.values()))
    assert checks["engine"] == {"value": 0.95, "target": 0.92, "met": True}
    assert checks["page"] == {"value": 0.5, "target": 0.85, "met": False}
    assert checks["transformers"]["value"] == 4.75 and checks["transformers"]["met"]


def test_page_updates_become_token_times(decode):
    class Job:
        updates = ["", "a b", "a b c", "a b c d e f", "a b c d e f g"]
        polls = 0

        def done(self):
            self.polls += 1
            return self.polls >= len(self.updates)

        def outputs(self):
            return self.updates[: self.polls]

        def result(self):
            return self.updates[-1]

    class Client:
        def submit(self, question, model, api_name):
            assert api_name == "/chat" and model == "Base"
            return Job()

    class Engine:
        def count_tokens(self, messages):
            return 10 + len(messages[0]["content"].split())

    times = decode.time_page(Client(), Engine(), "Base", 6)
    assert len(times) == 5  # the two of the first update count as one first token; the seventh is past the limit
    assert times == sorted(times) and times[2] == times[4]


@pytest.mark.parametrize("arguments", [["--tokens", "1"], ["--tokens", "500"], ["--repeats", "0"]])
def test_bad_budget(decode, arguments):
    with pytest.raises(UserError, match="--tokens"):
        decode.main(arguments)


@pytest.mark.slow
def test_small_run(decode, tmp_path, capsys):
    path = tmp_path / "table.json"
    budget = ["--tokens", "4", "--repeats", "1", "--threads", "1", "--skip", "page", "transformers"]
    assert decode.main([*budget, "--json", str(path)]) == 0
    report = json.loads(path.read_text())
    rows = {(row["name"], row["clients"]): row for row in report["rows"]}
    assert {("bare, base", 1), ("bare, base", 4), ("engine, base", 1), ("engine, base", 4)} <= set(rows)
    assert all(row["tokens_per_s"] > 0 and row["first_token_s"] > 0 for row in rows.values())
    assert report["checks"]["engine"]["value"] > 0
    assert "engine, base" in capsys.readouterr().out
