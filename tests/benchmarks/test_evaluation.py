"""The evaluation benchmark: its arithmetic. The run itself takes ten minutes (README)."""

from __future__ import annotations

import argparse

import pytest

from medical_assistant.errors import UserError
from tests.support.paths import load_script


@pytest.fixture(scope="module")
def benchmark_module():
    return load_script("benchmarks/evaluation")


def run(base: float, adapter: float, answers: list[str], mean_tokens: float = 100.0) -> dict:
    side = {"mean_tokens": mean_tokens, "seconds": 1.0, "questions": len(answers), "answers": answers}
    return {"base": {**side, "tokens_per_s": base}, "adapter": {**side, "tokens_per_s": adapter}}


def test_projection_ratio_and_identical_answers(benchmark_module):
    runs = {
        benchmark_module.REFERENCE: run(100, 50, ["a", "b"], mean_tokens=999),  # its own lengths do not count
        benchmark_module.BATCHED: run(400, 200, ["a", "x", "c", "d"]),
        benchmark_module.TRANSFORMERS: {**run(20, 20, ["a"]), "dtype": "bfloat16"},
    }
    arguments = argparse.Namespace(max_new_tokens=256, parallel=64)
    report = benchmark_module.summarise(runs, arguments)
    one, batch, generate = report["rows"]
    # 500 answers of 100 tokens: 50,000 / 100 + 50,000 / 50 s = 25 minutes; a quarter of it in batches.
    assert one["minutes"] == 25.0 and one["evaluate_is_faster_by"] == 4.0 and one["identical"] == 1.0
    assert batch["evaluate_is_faster_by"] == 1.0 and batch["identical"] == 0.5
    assert generate["evaluate_is_faster_by"] == pytest.approx(5000 / 375, abs=0.01)
    assert report["checks"][benchmark_module.REFERENCE] == {"value": 4.0, "target": 3.0, "met": True}
    assert "met" in benchmark_module.render(report)


def test_few_is_at_most_all(benchmark_module, tmp_path):
    with pytest.raises(UserError, match="--few"):
        benchmark_module.main(["--data", str(tmp_path), "--few", "9", "--questions", "8"])
