"""The comparison section of `metrics.json`: by how much candidates differ, how sure that is, and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy

from medical_assistant.evaluation.names import pair_name
from medical_assistant.evaluation.scoring.bootstrap import (
    MIN_QUESTIONS,
    Difference,
    Floats,
    Resampler,
    corpus_statistics,
    holm,
    paired_corpus,
    paired_difference,
    verdict,
)
from medical_assistant.evaluation.scoring.metrics import CORPUS_METRICS, METRICS

PRIMARY = "rougeL"
LENGTHS = ("short", "medium", "long")
METHOD = (
    "Paired bootstrap over questions. The primary metric was fixed before any answer was seen; its p-values are "
    "Holm's over all pairs. Other metrics, question types and lengths are not corrected for their number: of 20 "
    "of them without any difference, one is expected to show some."
)

Row = Mapping[str, Any]
Members = Sequence[int]  # numbers of rows


def compare(rows: Sequence[Row], candidates: Sequence[str], resampler: Resampler) -> dict[str, Any]:
    """Return the comparison of each candidate with the first, and of each pair of the others.

    `rows` are those of `predictions.jsonl`, at least one; a metric of `METRICS` that no row has is passed over.

    - `status`, `method`, `resamples`, `seed`, `primary`, `min_questions` (fewer, and no interval is claimed)
    - `pairs`: {"b vs a": {metric: `Difference`}}, a being the earlier candidate; BLEU and chrF are those of the
      corpus, every other metric is the mean over the questions
    - `holm`: {pair: p-value of the primary metric, adjusted for the number of pairs}; empty without p-values
    - `verdicts`: {pair: {"verdict", "sentence"}}, on the primary metric, by its interval and adjusted p-value
    - `by_type`, `by_length`: {pair: {group: `Difference` of the primary metric}}, largest group of types first
    - `length_bounds`: {"short"|"medium"|"long": [fewest, most] words of a question}; see `length_groups`

    With one candidate: {"status": "not run", "reason"}.
    """
    if len(candidates) < 2:
        return {"status": "not run", "reason": "There is one candidate, and a comparison needs two."}
    columns = {name: _columns(rows, name) for name in candidates}
    metrics = [metric for metric in METRICS if all(metric in found for found in columns.values())]
    pairs = {pair_name(a, b): (a, b) for a, b in combinations(candidates, 2)}
    words = [len(row["question"].split()) for row in rows]
    lengths = length_groups(words)
    types = _groups([row["question_type"] for row in rows])

    def difference(pair: str, metric: str, members: Members | slice = slice(None)) -> Difference:
        left, right = (columns[name][metric][members] for name in pairs[pair])
        if metric in CORPUS_METRICS:
            return paired_corpus(metric, left, right, resampler)
        return paired_difference(left, right, METRICS[metric].better, resampler)

    def within(groups: Mapping[str, Members]) -> dict[str, dict[str, Difference]]:
        return {
            pair: {group: difference(pair, PRIMARY, members) for group, members in groups.items()} for pair in pairs
        }

    found = {pair: {metric: difference(pair, metric) for metric in metrics} for pair in pairs}
    p_values = {pair: of_pair[PRIMARY]["p_value"] for pair, of_pair in found.items()}
    adjusted = holm({pair: p_value for pair, p_value in p_values.items() if p_value is not None})
    return {
        "status": "done",
        "method": METHOD,
        "resamples": resampler.resamples,
        "seed": resampler.seed,
        "primary": PRIMARY,
        "min_questions": MIN_QUESTIONS,
        "pairs": found,
        "holm": adjusted,
        "verdicts": {pair: _verdict(*both, found[pair][PRIMARY], adjusted) for pair, both in pairs.items()},
        "by_type": within(types),
        "by_length": within(lengths),
        "length_bounds": {
            group: [min(words[i] for i in members), max(words[i] for i in members)]
            for group, members in lengths.items()
        },
    }


def _columns(rows: Sequence[Row], candidate: str) -> dict[str, Floats]:
    """Return a candidate's values by metric, one a row; of BLEU and chrF the rows of `corpus_statistics`."""
    answers = [row["candidates"][candidate] for row in rows]
    values = [
        {**answer["scores"], "mean_tokens": answer["tokens"], "mean_seconds": answer["seconds"]} for answer in answers
    ]
    columns = {metric: numpy.array([one.get(metric) for one in values], dtype=float) for metric in METRICS}
    texts, references = [answer["answer"] for answer in answers], [row["reference"] for row in rows]
    return {
        **{metric: column for metric, column in columns.items() if numpy.isfinite(column).any()},
        **{metric: corpus_statistics(metric, texts, references) for metric in CORPUS_METRICS},
    }


def length_groups(words: Sequence[int]) -> dict[str, list[int]]:
    """Return {"short"|"medium"|"long": indices of questions}, thirds by their number of `words`.

    The bounds are the tertiles of these questions, so each group has questions enough in any data set; equal
    lengths stay together, so groups may differ in size, and one that would be empty is left out.
    """
    tertiles: Any = numpy.quantile(words, [1 / 3, 2 / 3], method="lower")
    places: Any = numpy.searchsorted(tertiles, words)
    found = _groups([LENGTHS[place] for place in places])
    return {length: found[length] for length in LENGTHS if length in found}


def _groups(names: Sequence[str]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        groups.setdefault(name, []).append(index)
    return dict(sorted(groups.items(), key=lambda item: -len(item[1])))


def _verdict(a: str, b: str, found: Difference, adjusted: Mapping[str, float]) -> dict[str, str]:
    p_value, low, high, n = adjusted.get(pair_name(a, b)), found["low"], found["high"], found["n"]
    outcome = str(verdict(low, high, p_value, METRICS[PRIMARY].better))
    if p_value is None:
        sentence = f"Too few questions to compare {b} with {a}: {n} of the {MIN_QUESTIONS} that are needed."
        return {"verdict": outcome, "sentence": sentence}
    opening = {
        "better": f"{b} is better than {a}",
        "worse": f"{b} is worse than {a}",
        "no measurable difference": f"No measurable difference between {b} and {a}",
    }[outcome]
    change = f"{METRICS[PRIMARY].name} {found['difference']:+z.3f}"
    corrected = "Holm-adjusted " if len(adjusted) > 1 else ""
    p_text = "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}" if p_value < 0.1 else f"p = {p_value:.2f}"
    figures = f"95 % interval {low:+z.3f} to {high:+z.3f}, {corrected}{p_text}, {n:,} questions"
    return {"verdict": outcome, "sentence": f"{opening}: {change} ({figures})."}
