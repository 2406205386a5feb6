"""BLEU and ROUGE as local metrics of Hugging Face's `evaluate`, over kept libraries.

`evaluate.load("bleu")` downloads code from the Hub at run time; these classes are that code, here.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

PROJECT_ROOT = Path(__file__).resolve().parent.parent
ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")


def import_evaluate() -> ModuleType:
    """Return Hugging Face's `evaluate` package, registered in `sys.modules`.

    A script run from the project root finds the project's own `evaluate.py` under that name, so the
    package is looked up with the root left out of the path.
    """
    module = sys.modules.get("evaluate")
    if module is not None and hasattr(module, "Metric"):
        return module
    path = [entry for entry in sys.path if Path(entry or ".").resolve() != PROJECT_ROOT]
    spec = PathFinder.find_spec("evaluate", path)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError("the package `evaluate` is not installed: pip install -r requirements.txt")
    module = importlib.util.module_from_spec(spec)
    sys.modules["evaluate"] = module
    spec.loader.exec_module(module)
    return module


def score_answers(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return `bleu` (0 to 100) and `rouge1`, `rouge2`, `rougeL` (0 to 1) of answers against references.

    BLEU is sacreBLEU's corpus BLEU with its default 13a tokeniser (Post 2018, arXiv:1804.08771);
    ROUGE is the mean F-measure of `rouge_score` with stemming (Lin 2004, aclanthology W04-1013).
    """
    scores: dict[str, float] = _combined().compute(predictions=list(predictions), references=list(references))
    return scores


def bleu_signature() -> str:
    """Return sacreBLEU's signature: the settings that make two BLEU figures comparable."""
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU()
    metric.corpus_score(["a"], [["a"]])  # the signature knows the number of references only after a score
    return str(metric.get_signature())


def _combined() -> Any:
    evaluate = import_evaluate()
    from datasets import Features, Value
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.bleu import BLEU

    features = Features({"predictions": Value("string"), "references": Value("string")})

    class Bleu(evaluate.Metric):  # type: ignore[name-defined,misc]
        def _info(self) -> Any:
            return evaluate.MetricInfo(description="sacreBLEU", citation="arXiv:1804.08771", features=features)

        def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
            return {"bleu": BLEU().corpus_score(predictions, [references]).score}

    class Rouge(evaluate.Metric):  # type: ignore[name-defined,misc]
        def _info(self) -> Any:
            return evaluate.MetricInfo(description="ROUGE", citation="aclanthology:W04-1013", features=features)

        def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
            scorer = RougeScorer(ROUGE_TYPES, use_stemmer=True)
            scores = [
                scorer.score(reference, answer) for reference, answer in zip(references, predictions, strict=True)
            ]
            return {kind: sum(score[kind].fmeasure for score in scores) / len(scores) for kind in ROUGE_TYPES}

    return evaluate.combine([Bleu(), Rouge()])
