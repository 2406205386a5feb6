"""The library benchmark: its arithmetic on rows whose outcome is known."""

from __future__ import annotations

import pytest

from benchmarks.plain_bm25 import PlainBm25
from medical_assistant.library.passages import Found
from tests.library.conftest import small  # noqa: F401 - a fixture
from tests.support.paths import load_script


@pytest.fixture(scope="module")
def benchmark():
    return load_script("benchmarks/library")


ROW = {"question": "how is gout treated", "page": "gout", "section": "Treatment", "also_ok": ["malaria"]}


def test_what_counts_as_right(benchmark, small):  # noqa: F811
    times: list[float] = []
    seen = benchmark.outcome(ROW, *benchmark.timed(small, ROW, times))
    assert seen["first"] and seen["first_3"] and seen["section"] and len(times) == 1
    wrong = benchmark.outcome({**ROW, "page": "pulse-rate", "also_ok": []}, *benchmark.timed(small, ROW, times))
    assert not wrong["first"] and not wrong["first_3"] and not wrong["section"]
    nothing = benchmark.outcome(ROW, Found("x", "not", 0.0), set())
    assert not any(nothing[key] for key in ("first", "first_3", "section", "answered"))


def test_plain_bm25_is_measured_alike(benchmark, small):  # noqa: F811
    assert benchmark.plain_outcome(PlainBm25(small.pages), ROW)["first"]


def test_splits_are_apart(benchmark):
    for name in ("covered", "uncovered", "follow_ups"):
        rows = {split: {row["id"] for row in benchmark.read_rows(name, split)} for split in ("dev", "test")}
        assert rows["dev"] and rows["test"] and not rows["dev"] & rows["test"]
