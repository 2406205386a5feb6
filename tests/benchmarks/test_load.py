"""The load benchmark's arithmetic. The run itself takes minutes."""

from __future__ import annotations

import pytest

from medical_assistant.errors import UserError
from tests.support.paths import load_script


def load(name: str):
    return load_script(f"benchmarks/{name}")


def test_percentiles_are_values_that_were_measured() -> None:
    benchmark = load("load")
    assert benchmark.percentiles([float(i) for i in range(1, 101)]) == {"p50": 50.0, "p95": 95.0, "p99": 99.0}
    assert benchmark.percentiles([3.0]) == {"p50": 3.0, "p95": 3.0, "p99": 3.0}
    assert benchmark.percentiles([]) == {}


def test_a_lost_question_is_shown() -> None:
    benchmark = load("load")
    waits = {"p50": 1.0, "p95": 2.0, "p99": 3.0}
    row = {"endpoint": "/chat", "users": 50, "lost": 2, "tokens_per_s": 80.0, "tokens_per_s_and_user": 1.6}
    row["app_cpu_ms"] = 16.0
    report = {
        "rows": [
            {**row, "first_text_s": waits, "whole_answer_s": waits},
            {**row, "first_text_s": {}, "whole_answer_s": {}},
        ],
        "throughput_ratio": 0.9,
        "healthy_after": False,
    }
    text = benchmark.render(report)
    assert "     2" in text and "0.90 times" in text and "NOT healthy" in text and "nan" in text


def test_one_user_is_no_load() -> None:
    with pytest.raises(UserError, match="--users"):
        load("load").main(["--who", "library", "--users", "1"])


def test_each_user_asks_something_else() -> None:
    benchmark = load("load")
    for who in benchmark.MODELS:
        assert len(set(benchmark.questions(who, 50))) == 50


def test_the_safety_benchmark_leaves_out_rows_that_accept_both() -> None:
    benchmark = load("safety")
    data = [
        {"text": "crushing chest pain going down my left arm", "level": ["emergency"], "split": "tuning"},
        {"text": "what is a healthy breakfast?", "level": ["routine"], "split": "tuning"},
        {"text": "a swollen calf since the flight", "level": ["urgent", "emergency"], "split": "tuning"},
    ]
    emergencies, others = benchmark.triage_rows("own", data)
    assert (emergencies["n"], emergencies["found"], emergencies["baseline"]) == (1, 1, 1)
    assert (others["n"], others["found"], others["baseline"]) == (1, 0, 0)
