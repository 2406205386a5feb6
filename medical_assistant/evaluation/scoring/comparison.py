"""The comparison section of `metrics.json`: by how much candidates differ, how sure that is, and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy

from medical_assistant.errors import UserError
from medical_assistant.evaluation.names import pair_name
from medical_assistant.evaluation.scoring.bootstrap import (
    CORPUS_METRICS,
    MIN_QUESTIONS,
    RESAMPLES,
    SEED,
    Difference,
    Resampler,
    corpus_statistics,
    holm,
    paired_corpus,
    paired_difference,
    verdict,
)
from medical_assistant.evaluation.scoring.metrics import METRICS

PRIMARY = "rougeL"
LENGTHS = ("short", "medium", "long")
METHOD = (
    "Paired bootstrap over questions. The primary metric was fixed before any answer was seen; its p-values are "
    "Holm's over all pairs. Other metrics, question types and lengths are not corrected for their number: of 20 "
    "of them without any difference, one is expected to show some."
)

# What a row says of a candidate beside its scores.
_BESIDE_SCORES = {"ended": "ended", "mean_tokens": "tokens", "mean_seconds": "seconds"}

Row = Mapping[str, Any]


def compare(
    rows: Sequence[Row],
    candidates: Sequence[str],
    metrics_better: Mapping[str, int],
    primary: str = PRIMARY,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> dict[str, Any]:
    """Return the comparison of each candidate with the first, and of each pair of the others.

    `rows` are those of `predictions.jsonl`; `candidates` may be the mapping of `metrics.json`; `metrics_better`
    says which side is better (+1 higher, -1 lower, 0 neither), and a metric that no row has is passed over.

    - `status`, `method`, `resamples`, `seed`, `primary`, `min_questions` (fewer, and no interval is claimed)
    - `pairs`: {"b vs a": {metric: `Difference`}}, a being the earlier candidate; BLEU and chrF are those of the
      corpus, every other metric is the mean over the questions
    - `holm`: {pair: p-value of the primary metric, adjusted for the number of pairs}; empty without p-values
    - `verdicts`: {pair: {"verdict", "sentence"}}, on the primary metric, by its interval and adjusted p-value
    - `by_type`, `by_length`: {pair: {group: `Difference` of the primary metric}}, largest group of types first
    - `length_bounds`: {"short"|"medium"|"long": [fewest, most] words of a question}; see `length_groups`

    With one candidate: {"status": "not run", "reason"}. Raises `UserError` where the primary metric has no better
    side or no row has it.
    """
    names = list(candidates)
    if len(names) < 2:
        return {"status": "not run", "reason": "There is one candidate, and a comparison needs two."}
    table = ScoreTable(rows, metrics_better, Resampler(resamples, seed))
    table.check_primary(primary, names)
    pairs = list(combinations(names, 2))
    found = {
        pair_name(a, b): {metric: table.difference(a, b, metric) for metric in table.metrics_of(a, b)} for a, b in pairs
    }
    of_primary = {pair: of_pair[primary] for pair, of_pair in found.items() if primary in of_pair}
    adjusted = holm({pair: one["p_value"] for pair, one in of_primary.items() if one["p_value"] is not None})
    lengths = length_groups([row["question"] for row in rows])
    types = _groups([row.get("question_type") or "other" for row in rows])

    def within(groups: Mapping[str, Sequence[int]]) -> dict[str, dict[str, Difference]]:
        return {
            pair_name(a, b): {group: table.difference(a, b, primary, members) for group, members in groups.items()}
            for a, b in pairs
        }

    return {
        "status": "done",
        "method": METHOD,
        "resamples": resamples,
        "seed": seed,
        "primary": primary,
        "min_questions": MIN_QUESTIONS,
        "pairs": found,
        "holm": adjusted,
        "verdicts": {
            pair_name(a, b): _verdict(a, b, of_primary.get(pair_name(a, b)), adjusted, primary, metrics_better[primary])
            for a, b in pairs
        },
        "by_type": within(types),
        "by_length": within(lengths),
        "length_bounds": {group: _word_range([rows[i] for i in members]) for group, members in lengths.items()},
    }


class ScoreTable:
    """The scores of all answers by candidate and metric, read from rows once and compared in any group of questions.

    `rows`, `metrics_better`: as in `compare`.
    """

    def __init__(self, rows: Sequence[Row], metrics_better: Mapping[str, int], resampler: Resampler) -> None:
        self._rows = rows
        self._better = metrics_better
        self._resampler = resampler
        self._columns: dict[tuple[str, str], Any] = {}

    def difference(self, a: str, b: str, metric: str, members: Sequence[int] | None = None) -> Difference:
        """Return the `Difference` of candidates b and a in one metric, over all rows or the rows `members`."""
        left, right = self._column(a, metric), self._column(b, metric)
        if members is not None:
            left, right = left[list(members)], right[list(members)]
        if metric in CORPUS_METRICS:
            return paired_corpus(metric, left, right, self._resampler)
        return paired_difference(left, right, self._better[metric], self._resampler)

    def metrics_of(self, a: str, b: str) -> list[str]:
        """Return the metrics that both candidates have values for, in the order of `metrics_better`."""
        return [metric for metric in self._better if self._has(a, metric) and self._has(b, metric)]

    def check_primary(self, primary: str, candidates: Sequence[str]) -> None:
        """Raise `UserError` where `primary` cannot decide: it has no better side, or no answer has a value."""
        if not self._better.get(primary):
            usable = ", ".join(metric for metric, better in self._better.items() if better)
            raise UserError(f"The metric {primary} cannot decide a comparison: choose one of {usable}.")
        if self._rows and not any(self._has(candidate, primary) for candidate in candidates):
            raise UserError(f"No answer has a value for the metric {primary}: choose one that was computed.")

    def _has(self, candidate: str, metric: str) -> bool:
        return bool(numpy.isfinite(self._column(candidate, metric)).any())

    def _column(self, candidate: str, metric: str) -> Any:
        if (candidate, metric) not in self._columns:
            of_candidate = [row["candidates"].get(candidate, {}) for row in self._rows]
            if metric in CORPUS_METRICS and of_candidate:
                answers = [one.get("answer") for one in of_candidate]
                column = corpus_statistics(metric, answers, [row["reference"] for row in self._rows])
            else:
                column = numpy.array([_value(one, metric) for one in of_candidate], dtype=float)  # None becomes NaN
            self._columns[candidate, metric] = column
        return self._columns[candidate, metric]


def _value(of_candidate: Mapping[str, Any], metric: str) -> float | None:
    scores = of_candidate.get("scores", {})
    value: float | None = scores[metric] if metric in scores else of_candidate.get(_BESIDE_SCORES.get(metric, metric))
    return value


def _word_range(rows: Sequence[Row]) -> list[int]:
    words = [len(row["question"].split()) for row in rows]
    return [min(words), max(words)]


def length_groups(questions: Sequence[str]) -> dict[str, list[int]]:
    """Return {"short"|"medium"|"long": indices of questions}, thirds by the number of words.

    The bounds are the tertiles of these questions, so each group has questions enough in any data set; equal
    lengths stay together, so groups may differ in size, and one that would be empty is left out.
    """
    words = [len(question.split()) for question in questions]
    if not words:
        return {}
    tertiles: Any = numpy.quantile(words, [1 / 3, 2 / 3], method="lower")
    found = _groups([LENGTHS[int((count > tertiles).sum())] for count in words])
    return {length: found[length] for length in LENGTHS if length in found}


def _groups(names: Sequence[str]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        groups.setdefault(name, []).append(index)
    return dict(sorted(groups.items(), key=lambda item: -len(item[1])))


def _verdict(
    a: str, b: str, found: Difference | None, adjusted: Mapping[str, float], primary: str, better: int
) -> dict[str, str]:
    name = METRICS[primary].name if primary in METRICS else primary
    p_value = adjusted.get(pair_name(a, b))
    if found is None or p_value is None or found["low"] is None or found["high"] is None:
        answered = found["n"] if found else 0
        sentence = f"Too few questions to compare {b} with {a}: {answered} of the {MIN_QUESTIONS} that are needed."
        return {"verdict": "too few questions", "sentence": sentence}
    outcome = str(verdict(found["low"], found["high"], p_value, better))
    opening = {
        "better": f"{b} is better than {a}",
        "worse": f"{b} is worse than {a}",
        "no measurable difference": f"No measurable difference between {b} and {a}",
    }[outcome]
    change, low, high = (_signed(value, primary) for value in (found["difference"], found["low"], found["high"]))
    corrected = "Holm-adjusted " if len(adjusted) > 1 else ""
    figures = f"95 % interval {low} to {high}, {corrected}{_p_text(p_value)}, {found['n']:,} questions"
    return {"verdict": outcome, "sentence": f"{opening}: {name} {change} ({figures})."}


def _signed(value: float | None, metric: str) -> str:
    digits = 2 if metric in CORPUS_METRICS else 3
    return f"{value or 0.0:+.{digits}f}".replace("-0." + "0" * digits, "+0." + "0" * digits)


def _p_text(p_value: float) -> str:
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}" if p_value < 0.1 else f"p = {p_value:.2f}"
