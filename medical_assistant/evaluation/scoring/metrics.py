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

from medical_assistant.errors import UserError
from medical_assistant.evaluation.scoring import text_statistics
from medical_assistant.evaluation.scoring.encoder import load_encoder
from medical_assistant.evaluation.scoring.text_statistics import Score, mean_score

PROJECT_ROOT = Path(__file__).resolve().parents[3]
ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")

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
    "bertscore_f1": MetricDescription("BERTScore F1", "0 to 1", 1, "Zhang et al. 2020, arXiv:1904.09675"),
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
    functions = [_sacrebleu, _rouge, text_statistics.squad_scores, text_statistics.statistics_scores]
    computed = _compute(predictions, references, functions)
    keys = [key for key in METRICS if key in computed]
    items = [{key: computed[key][1][i] for key in keys} for i in range(len(predictions))]
    return {key: computed[key][0] for key in keys}, items


def corpus_scores(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return the scores of all answers together: the first half of `score_all`."""
    return score_all(predictions, references)[0]


def signatures() -> dict[str, str]:
    """Return sacreBLEU's signatures of BLEU and chrF: the settings that make two figures comparable."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    found = {}
    for name, metric in (("bleu_signature", BLEU()), ("chrf_signature", CHRF())):
        metric.corpus_score(["a"], [["a"]])  # the signature knows the number of references only after a score
        found[name] = str(metric.get_signature())
    return found


def bert_scores(
    predictions: Sequence[str], references: Sequence[str], model: str, layer: int = -1, batch_size: int = 32
) -> list[float]:
    """Return the BERTScore F1 of each answer: how well the meanings of its tokens match the reference's.

    Each token is matched with the most similar token of the other text, by the cosine of their vectors;
    precision is the mean over the answer, recall over the reference (Zhang et al. 2020, arXiv:1904.09675).
    No idf weights, no rescaling; special tokens can be matched but are not averaged, as in the authors'
    code. 1.0 for equal texts; 0.0 where a text is empty. Figures compare only with the same `model`, a
    folder or a name on the Hub, and `layer` of its hidden states (-1 the last; 17 is the authors' choice
    for roberta-large). Text beyond the model's length is cut.

    Raises `UserError` where the model cannot be loaded or has no such layer.
    """

    def bert_score(answers: list[str], expected: list[str]) -> dict[str, Score]:
        return {"bertscore_f1": mean_score(_match_tokens(answers, expected, model, layer, batch_size))}

    return _compute(predictions, references, [bert_score])["bertscore_f1"][1]


def _compute(predictions: Sequence[str], references: Sequence[str], functions: Sequence[Compute]) -> dict[str, Score]:
    if not predictions or len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} answers and {len(references)} references: one reference an answer")
    # Arrow takes no half of a surrogate pair, which JSON can carry.
    answers = [text.encode("utf-8", "replace").decode() for text in predictions]
    expected = [text.encode("utf-8", "replace").decode() for text in references]
    metrics = {function.__name__: _local_metric(function) for function in functions}
    computed: dict[str, Score] = import_evaluate().combine(metrics).compute(predictions=answers, references=expected)
    return computed


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
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    bleu, sentence_bleu, chrf = BLEU(), BLEU(effective_order=True), CHRF()
    pairs = list(zip(answers, references, strict=True))
    return {
        "bleu": (
            bleu.corpus_score(answers, [references]).score,
            [sentence_bleu.sentence_score(answer, [reference]).score for answer, reference in pairs],
        ),
        "chrf": (
            chrf.corpus_score(answers, [references]).score,
            [chrf.sentence_score(answer, [reference]).score for answer, reference in pairs],
        ),
    }


def _rouge(answers: list[str], references: list[str]) -> dict[str, Score]:
    from nltk.stem.porter import PorterStemmer
    from rouge_score import tokenize, tokenizers
    from rouge_score.rouge_scorer import RougeScorer

    class Tokenizer(tokenizers.Tokenizer):  # type: ignore[misc]
        """rouge_score's own tokens, with each word stemmed only once."""

        stem = staticmethod(functools.cache(PorterStemmer().stem))

        def tokenize(self, text: str) -> list[str]:
            return list(tokenize.tokenize(text, self))

    kinds = (*ROUGE_TYPES, "rougeLsum")
    scorer = RougeScorer(kinds, tokenizer=Tokenizer())

    def lines(text: str) -> str:
        return "\n".join(text_statistics.split_sentences(text))  # what ROUGE-Lsum takes for sentences

    scores = [
        scorer.score(lines(reference), lines(answer)) for answer, reference in zip(answers, references, strict=True)
    ]
    return {kind: mean_score([float(score[kind].fmeasure) for score in scores]) for kind in kinds}


def _match_tokens(answers: list[str], references: list[str], model: str, layer: int, batch_size: int) -> list[float]:
    import torch

    network, tokenizer = load_encoder(model, "BERTScore", "roberta-large")
    if not -network.config.num_hidden_layers - 1 <= layer <= network.config.num_hidden_layers:
        raise UserError(
            f"The BERTScore model {model} has no layer {layer}: choose 0 to {network.config.num_hidden_layers}, or -1."
        )
    scores = []
    for start in range(0, len(answers), batch_size):
        pairs = (answers[start : start + batch_size], references[start : start + batch_size])
        with torch.inference_mode():
            encoded = [_token_vectors(network, tokenizer, texts, layer) for texts in pairs]
            scores += [_greedy_f1(answer, reference) for answer, reference in zip(*encoded, strict=True)]
    return scores


def _token_vectors(network: Any, tokenizer: Any, texts: list[str], layer: int) -> list[tuple[Any, Any]]:
    """Return for each text its tokens' unit vectors and which of them are no special tokens."""
    import torch

    # RoBERTa's positions begin after the padding's: two fewer than its configuration says.
    longest = min(tokenizer.model_max_length, getattr(network.config, "max_position_embeddings", 514) - 2)
    batch = tokenizer(
        texts, padding=True, truncation=True, max_length=longest, return_special_tokens_mask=True, return_tensors="pt"
    ).to(network.device)
    special = batch.pop("special_tokens_mask").bool()
    vectors = torch.nn.functional.normalize(network(**batch, output_hidden_states=True).hidden_states[layer], dim=-1)
    kept = batch["attention_mask"].bool()
    return [(vectors[i][kept[i]], ~special[i][kept[i]]) for i in range(len(texts))]


def _greedy_f1(answer: tuple[Any, Any], reference: tuple[Any, Any]) -> float:
    (answer_vectors, answer_words), (reference_vectors, reference_words) = answer, reference
    if not answer_words.any() or not reference_words.any():
        return 0.0
    cosines = answer_vectors @ reference_vectors.T
    precision = cosines.max(dim=1).values[answer_words].mean().item()
    recall = cosines.max(dim=0).values[reference_words].mean().item()
    if min(precision, recall) <= 0:
        return 0.0
    return float(min(1.0, 2 * precision * recall / (precision + recall)))  # rounding may pass 1
