"""The road through lm-evaluation-harness, with a `lm_eval` that answers as the test says."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from medical_assistant.errors import UserError
from medical_assistant.evaluation.scoring.harness import run_harness
from medical_assistant.prompts import SYSTEM_PROMPT


class StubScorer:
    """Says whether the LoRA is on."""

    model, tokenizer, context_tokens, on = object(), object(), 512, None

    @contextmanager
    def switched(self, adapter: bool) -> Iterator[object]:
        self.on = adapter
        yield self.model
        self.on = None


@pytest.fixture
def scorer() -> StubScorer:
    return StubScorer()


class Manager:
    pass


class Wrapped:
    def __init__(self, **arguments) -> None:
        self.arguments = arguments


def fake_harness(monkeypatch, evaluate) -> None:
    """A `lm_eval` whose `simple_evaluate` is `evaluate`."""
    package, models, tasks = (types.ModuleType(name) for name in ("lm_eval", "lm_eval.models", "lm_eval.tasks"))
    huggingface = types.ModuleType("lm_eval.models.huggingface")
    package.simple_evaluate, huggingface.HFLM, tasks.TaskManager = evaluate, Wrapped, Manager
    for module in (package, models, tasks, huggingface):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def sample(number: int, acc: float, filter_name: str = "none", **more) -> dict:
    return {"doc_id": number, "doc_hash": f"h{number}", "filter": filter_name, "arguments": [()] * 4, "acc": acc} | more


def test_the_harness_scores_the_resident_model_off_and_on(scorer, monkeypatch) -> None:
    calls = []

    def evaluate(model, tasks, limit, **options):
        calls.append((scorer.on, limit, model.arguments, options))
        tuned = len(calls) == 2
        rows = [sample(1, 1.0, acc_norm=1.0), sample(0, float(tuned), acc_norm=0.0), sample(0, 0.0, "other")]
        return {"samples": {tasks[0]: rows}, "n-shot": {tasks[0]: 0}, "versions": {tasks[0]: 1.0}}

    fake_harness(monkeypatch, evaluate)
    (part,) = run_harness(scorer, {"base": False, "fine_tuned": True}, ["mmlu_anatomy"], limit=2)
    (off, limit, arguments, options), (on, _, _, _) = calls
    assert (off, on, limit) == (False, True, 2)
    assert arguments["pretrained"] is scorer.model and arguments["tokenizer"] is scorer.tokenizer
    assert options["apply_chat_template"] is True and options["system_instruction"] == SYSTEM_PROMPT
    assert part["name"] == "mmlu_anatomy" and part["n"] == 2 and part["chance"] == 0.25
    assert "0-shot" in part["method"] and len(part["sha256"]) == 64
    assert {candidate: rate["accuracy"] for candidate, rate in part["accuracy"].items()} == {
        "base": 0.5,
        "fine_tuned": 1.0,
    }
    assert part["normalised_accuracy"]["fine_tuned"]["accuracy"] == 0.5
    assert part["comparison"]["fine_tuned vs base"]["wins"] == 1
    json.dumps(part)


@pytest.mark.parametrize(
    ("results", "message"),
    [
        (KeyError("Unknown tasks: nothing"), "task nothing cannot be run .*Unknown tasks"),
        (ConnectionError("the Hub"), "task nothing cannot be run .the Hub.*network"),
        ({"samples": {"gen": [{"doc_id": 0, "filter": "x", "exact_match": 1.0}]}}, "gen has no accuracy"),
        ({"samples": {"empty": []}}, "empty has no accuracy"),
    ],
)
def test_a_task_that_cannot_serve_is_one_line(scorer, monkeypatch, results, message) -> None:
    def evaluate(**options):
        if isinstance(results, Exception):
            raise results
        return {"n-shot": dict.fromkeys(results["samples"], 0), **results}

    fake_harness(monkeypatch, evaluate)
    with pytest.raises(UserError, match=message):
        run_harness(scorer, {"base": False}, ["nothing"])


def test_other_questions_for_one_system_are_refused(scorer, monkeypatch) -> None:
    calls = []

    def evaluate(**options):
        calls.append(options)
        return {"samples": {"t": [sample(len(calls), 1.0)]}, "n-shot": {"t": 0}}

    fake_harness(monkeypatch, evaluate)
    with pytest.raises(UserError, match="asked the candidates other questions"):
        run_harness(scorer, {"base": False, "fine_tuned": True}, ["t"])


def test_without_the_harness_its_install_command_is_named(scorer, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match="pip install lm-eval"):
        run_harness(scorer, {"base": False}, ["medqa_4options"])
