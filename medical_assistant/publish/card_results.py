"""The results of an evaluation in a model card: the section, and the Hub's `model-index`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from medical_assistant.evaluation.names import BASE, FINE_TUNED
from medical_assistant.evaluation.scoring.metrics import METRICS
from medical_assistant.publish.card_markdown import figure, table

PAIR = f"{FINE_TUNED} vs {BASE}"
# Scores that the Hub's index gets, with the metric's name on https://huggingface.co/metrics.
INDEXED = {
    "bleu": "bleu", "chrf": "chrf", "rouge1": "rouge", "rouge2": "rouge", "rougeL": "rouge", "rougeLsum": "rouge",
    "token_f1": "f1", "exact_match": "exact_match", "bertscore_f1": "bertscore", "perplexity": "perplexity",
}  # fmt: skip


def results(metrics: Mapping[str, Any]) -> str:
    """Return the section: the verdict in words, base against adapter with intervals, and what else was measured."""
    rows = []
    compared = _section(metrics, "comparison")
    pairs = (compared.get("pairs") or {}).get(PAIR) or {}
    for key, base, fine_tuned in scores(metrics):
        change = f"{(fine_tuned - base) / base:+.0%}" if base > 0 else "-"
        name = METRICS[key].name if key in METRICS else key
        rows.append((name, figure(base), figure(fine_tuned), change, _interval(pairs.get(key) or {})))
    if not rows:
        return "Not evaluated yet: `evaluate.py` writes metrics.json, from which this section is made."
    sentence = ((compared.get("verdicts") or {}).get(PAIR) or {}).get("sentence")
    head = ("Score", "Base model", "With this adapter", "Change", "Difference (95 % interval)")
    parts = [f"**{sentence}**" if sentence else "", table(head, rows), _note(metrics), *_more(metrics)]
    return "\n\n".join(part for part in parts if part)


def _note(metrics: Mapping[str, Any]) -> str:
    note = (
        f"{metrics.get('n', 'An unknown number of')} held-out questions, greedy decoding, both models through the same "
        "engine and prompt. BLEU and chrF are sacreBLEU's (0 to 100), ROUGE the F-measure with stemming, all against "
        "the reference answer alone; intervals are paired bootstraps over the questions."
    )
    chose = (metrics.get("data") or {}).get("checkpoint_rows")
    if chose is not None:
        note += f" {chose or 'None'} of the questions also chose the checkpoint."
    return note


def _more(metrics: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each section that was run, with its figures."""
    counts = _section(metrics, "strata").get("counts") or {}
    if counts:
        yield f"{counts.get('clean', 0)} questions are clean, {counts.get('near', 0)} are near a training question."
    for found in _section(metrics, "knowledge").get("sets") or ():
        rates = [f"{label} {_rate(found['accuracy'].get(key))}" for key, label in _LABELS.items()]
        name, chance = f"{found['name']} ({found['n']} questions)", f"chance {found['chance']:.1%}"
        yield f"Multiple choice, {name}: {', '.join(rates)}; {chance}."
    candidates = _section(metrics, "safety").get("candidates") or {}
    for measure, label in _SAFETY.items():
        rates = [f"{name} {_percent(candidates.get(key, {}).get(measure))}" for key, name in _LABELS.items()]
        if candidates:
            yield f"{label}: {', '.join(rates)}."
    confidence = _section(metrics, "confidence")
    if confidence.get("ece") is not None:
        yield (
            f"Confidence of its answers: calibration error {confidence['ece']:.3f}, AUROC {confidence['auroc']:.2f} on "
            f"{confidence['n_test']} answers ({confidence['label']})."
        )


_LABELS = {BASE: "base", FINE_TUNED: "with this adapter"}
_SAFETY = {
    "refusal_rate": "Harmful requests refused, without the application's safety layer",
    "over_refusal_rate": "Ordinary health questions refused",
    "urges_care_rate": "Emergencies in which the answer urges care now",
    "delays_care_rate": "Emergencies in which the answer delays care",
}


def scores(metrics: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """Return (metric, base, fine-tuned) for each score that both models have, in the order of the base's."""
    both = metrics.get("scores") or {}
    base, fine_tuned = both.get(BASE) or {}, both.get(FINE_TUNED) or {}
    shared = [key for key in base if is_score(base[key]) and is_score(fine_tuned.get(key))]
    return [(key, base[key], fine_tuned[key]) for key in shared]


def indexed(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str, str, float]]:
    """Yield (data set, metric of the Hub, metric's name, the adapter's value) for the card's `model-index`.

    The data set is "" for the held-out questions, else the name of a multiple-choice set.
    """
    for key, _, fine_tuned in scores(metrics):
        if key in INDEXED:
            yield "", INDEXED[key], METRICS[key].name, fine_tuned
    for found in _section(metrics, "knowledge").get("sets") or ():
        rate = (found.get("accuracy") or {}).get(FINE_TUNED) or {}
        if is_score(rate.get("accuracy")):
            yield found["name"], "accuracy", "Accuracy", rate["accuracy"]


def is_score(value: Any) -> bool:
    """Return whether `value` is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _section(metrics: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = metrics.get(name)
    return found if isinstance(found, Mapping) and found.get("status") == "done" else {}


def _interval(difference: Mapping[str, Any]) -> str:
    low, high, middle = (difference.get(key) for key in ("low", "high", "difference"))
    if not (is_score(low) and is_score(high) and is_score(middle)):
        return "-"
    return f"{_signed(middle)} ({_signed(low)} to {_signed(high)})"


def _signed(value: Any) -> str:
    return f"{value:+.3g}"


def _rate(rate: Mapping[str, Any] | None) -> str:
    if not rate or not is_score(rate.get("accuracy")):
        return "unknown"
    return f"{rate['accuracy']:.1%} ({rate['low']:.1%} to {rate['high']:.1%})"


def _percent(value: Any) -> str:
    return f"{value:.0%}" if is_score(value) else "unknown"
