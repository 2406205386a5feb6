from __future__ import annotations

import runpy
import subprocess
import sys

import pytest
import sacrebleu

from medical_assistant.metrics import bleu_signature, import_evaluate, score_answers
from tests.conftest import ROOT

REFERENCES = [
    "Gout is caused by crystals of uric acid in a joint.",
    "Asthma narrows the airways and makes it hard to breathe.",
]


def test_perfect_and_empty_answers_bound_the_scores() -> None:
    best = score_answers(REFERENCES, REFERENCES)
    assert best["bleu"] == pytest.approx(100) and all(
        best[k] == pytest.approx(1) for k in ("rouge1", "rouge2", "rougeL")
    )
    assert set(score_answers(["", ""], REFERENCES).values()) == {0.0}


def test_mistake_3_bleu_is_sacrebleus_corpus_bleu_and_rouge_is_known() -> None:
    answers = ["Gout is caused by uric acid.", "Asthma narrows the airways of the lung."]
    scores = score_answers(answers, REFERENCES)
    assert scores["bleu"] == pytest.approx(sacrebleu.corpus_bleu(answers, [REFERENCES]).score)
    # By hand, without stemming effects: 6 of 6 unigrams found, of 11 -> F = 12/17; 6 of 7 ("of" is absent), of 10.
    one = score_answers(answers[:1], REFERENCES[:1])
    assert one["rouge1"] == pytest.approx(2 * 6 / (6 + 11))
    assert "version:" + sacrebleu.__version__ in bleu_signature()


def test_the_package_is_found_beside_the_script_of_the_same_name() -> None:
    assert hasattr(import_evaluate(), "combine")
    code = "import sys; sys.path.insert(0, '.'); import evaluate as ours; from medical_assistant import metrics; "
    code += "assert hasattr(ours, 'EvaluateSettings'); assert hasattr(metrics.import_evaluate(), 'combine')"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_the_script_runs_by_path() -> None:
    assert "EvaluateSettings" in runpy.run_path(str(ROOT / "evaluate.py"))
