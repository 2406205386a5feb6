"""Scores of answers against references, as local metrics of Hugging Face's `evaluate` over kept libraries.

`evaluate.load("bleu")` downloads code from the Hub at run time; the metrics here are that code, local.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from medical_assistant.evaluation.scoring import text_statistics
from medical_assistant.evaluation.scoring.text_statistics import Score, mean_score

PROJECT_ROOT = Path(__file__).resolve().parents[3]
ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
CORPUS_METRICS = ("bleu", "chrf")  # scored from counts of all answers

# Answers and references in, a score under each metric's key out.
Compute = Callable[[list[str], list[str]], dict[str, Score]]


@dataclass(frozen=True)
class MetricDescription:
    """What a reader needs to know of a metric: its name, its range or unit, which way is better, its source.

    `better` is +1 where higher is better, -1 where lower is, 0 where neither is (both extremes are bad, or
    the value depends mostly on length).
    """

    name: str
    unit: str
    better: int
    source: str


_SQUAD = "Rajpurkar et al. 2016, arXiv:1606.05250"
_ROUGE = "Lin 2004, aclanthology W04-1013; rouge_score, F-measure with stemming"
_LI = "Li et al. 2016, arXiv:1510.03055; per n-gram"

METRICS: dict[str, MetricDescription] = {
    "bleu": MetricDescription(
        "BLEU", "0 to 100", 1, "Papineni et al. 2002, aclanthology P02-1040; sacreBLEU, Post 2018, arXiv:1804.08771"
    ),
    "chrf": MetricDescription("chrF", "0 to 100", 1, "Popović 2015, aclanthology W15-3049; sacreBLEU"),
    "rouge1": MetricDescription("ROUGE-1", "0 to 1", 1, _ROUGE),
    "rouge2": MetricDescription("ROUGE-2", "0 to 1", 1, _ROUGE),
    "rougeL": MetricDescription("ROUGE-L", "0 to 1", 1, _ROUGE),
    "rougeLsum": MetricDescription("ROUGE-Lsum", "0 to 1", 1, _ROUGE),
    "exact_match": MetricDescription("Exact match", "0 to 1", 1, _SQUAD),
    "token_f1": MetricDescription("Token F1", "0 to 1", 1, _SQUAD),
    "length_ratio": MetricDescription("Length ratio", "words of answers per word of references", 0, "counted"),
    "repetition": MetricDescription("Repetition", "0 to 1", -1, "seq-rep-4, Welleck et al. 2020, arXiv:1908.04319"),
    # Short answers repeat less by chance: a higher share of distinct words is no better answer by itself.
    "distinct_1": MetricDescription("Distinct-1", "0 to 1", 0, _LI),
    "distinct_2": MetricDescription("Distinct-2", "0 to 1", 0, _LI),
    "readability_grade": MetricDescription(
        "Flesch-Kincaid grade", "years of US schooling", 0, "Kincaid et al. 1975, Research Branch Report 8-75; textstat"
    ),
    "ended": MetricDescription("Ended by itself", "0 to 1", 1, "counted"),
    "mean_tokens": MetricDescription("Tokens an answer", "tokens", 0, "counted"),
    "mean_seconds": MetricDescription("Seconds an answer", "s", -1, "measured"),
    "tokens_per_second": MetricDescription("Tokens a second", "tokens/s", 1, "measured"),
    "perplexity": MetricDescription("Perplexity", "1 and above", -1, "Jelinek et al. 1977, doi:10.1121/1.2016299"),
}


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


def score_all(predictions: Sequence[str], references: Sequence[str]) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Return the scores of all answers together, and a list with the same keys for each answer.

    The keys are those of `METRICS` from `bleu` to `readability_grade`. The whole follows from the answers so:

    - `bleu`, `chrf`: sacreBLEU's corpus scores, from counts of all answers. An answer alone has sentence
      BLEU with effective order (n-gram orders longer than the answer are left out) and sentence chrF.
    - `length_ratio`: words of all answers over words of all references.
    - `distinct_1`, `distinct_2`: over the n-grams of all answers, so repeats between answers count.
    - `readability_grade`: the mean over answers that have a word; an answer without one has 0.0 itself.
    - the others: the mean of the answers.

    Raises `ValueError` where there is no answer, or not one reference for each.
    """
    if not predictions or len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} answers and {len(references)} references: one reference an answer")
    functions = [_sacrebleu, _rouge, text_statistics.squad_scores, text_statistics.statistics_scores]
    metrics = {function.__name__: _local_metric(function) for function in functions}
    # Arrow takes no half of a surrogate pair, which JSON can carry.
    answers, expected = (
        [text.encode("utf-8", "replace").decode() for text in texts] for texts in (predictions, references)
    )
    computed = import_evaluate().combine(metrics).compute(predictions=answers, references=expected)
    keys = [key for key in METRICS if key in computed]
    items = [{key: computed[key][1][i] for key in keys} for i in range(len(predictions))]
    return {key: computed[key][0] for key in keys}, items


def signatures() -> dict[str, str]:
    """Return sacreBLEU's signatures of BLEU and chrF: the settings that make two figures comparable."""
    scorers = {metric: corpus_scorer(metric) for metric in CORPUS_METRICS}
    for scorer in scorers.values():
        scorer.corpus_score(["a"], [["a"]])  # the signature knows the number of references only after a score
    return {f"{metric}_signature": str(scorer.get_signature()) for metric, scorer in scorers.items()}


def corpus_scorer(metric: str, one_answer: bool = False) -> Any:
    """Return sacreBLEU's scorer of "bleu" or "chrf"; that of `one_answer` leaves out n-grams longer than the answer."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    return BLEU(effective_order=one_answer) if metric == "bleu" else CHRF()


def _local_metric(compute: Compute) -> Any:
    evaluate = import_evaluate()
    from datasets import Features, Value

    features = Features({"predictions": Value("string"), "references": Value("string")})

    class LocalMetric(evaluate.Metric):  # type: ignore[name-defined,misc]
        def _info(self) -> Any:
            return evaluate.MetricInfo(description=compute.__name__, citation="", features=features)

        def _compute(self, predictions: list[str], references: list[str]) -> dict[str, Score]:
            return compute(predictions, references)

    return LocalMetric(keep_in_memory=True)  # answers of real people may be scored: nothing is written to a cache


def _sacrebleu(answers: list[str], references: list[str]) -> dict[str, Score]:
    def score(metric: str) -> Score:
        one = corpus_scorer(metric, one_answer=True)
        items = [one.sentence_score(*pair).score for pair in zip(answers, [[text] for text in references], strict=True)]
        return corpus_scorer(metric).corpus_score(answers, [references]).score, items

    return {metric: score(metric) for metric in CORPUS_METRICS}


def _rouge(answers: list[str], references: list[str]) -> dict[str, Score]:
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    tokenizer = DefaultTokenizer(use_stemmer=True)
    tokenizer._stemmer.stem = functools.cache(tokenizer._stemmer.stem)  # most of the time went into words seen before
    scorer = RougeScorer(ROUGE_TYPES, tokenizer=tokenizer)

    def lines(text: str) -> str:
        return "\n".join(text_statistics.split_sentences(text))  # what ROUGE-Lsum takes for sentences

    pairs = zip(map(lines, references), map(lines, answers), strict=True)
    scores = [scorer.score(reference, answer) for reference, answer in pairs]
    return {kind: mean_score([float(score[kind].fmeasure) for score in scores]) for kind in ROUGE_TYPES}
