"""Thirty answers side by side: the biggest wins, the biggest losses, and some by chance."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from medical_assistant.evaluation.report.report_parts import (
    Example,
    Heading,
    Paragraph,
    Section,
    Text,
    capital,
    change,
    counted,
    is_number,
    label_of,
    metric_name,
    number,
    pair_label,
    score,
)
from medical_assistant.evaluation.report.report_scores import primary_metric
from medical_assistant.evaluation.scoring.metrics import METRICS

EACH = 10
SHOWN_CHARACTERS = 700  # of a long text, before it is folded
LONGEST_CHARACTERS = 5100  # of reference and answers of one example together, so that the page stays under 1 MB
LONGEST_QUESTION = 600
SHOWN_SCORES = ("rougeL", "token_f1", "chrf")

Row = Mapping[str, Any]
Gain = tuple[float, str, int]  # difference of the primary metric to the reference candidate, candidate, row number


def gains(rows: Sequence[Row], candidates: Sequence[str], metric: str) -> list[Gain]:
    """Return the gain of every answer over the reference candidate's, the first of `candidates`.

    A gain is the difference of `metric`, with its sign turned where lower is better. An answer without the score, or
    whose reference candidate has none, is left out. Largest first, then by the order of the rows.
    """
    reference, *others = candidates
    sign = -1 if metric in METRICS and METRICS[metric].better < 0 else 1
    found = []
    for position, row in enumerate(rows):
        base = _score(row, reference, metric)
        for candidate in others:
            value = _score(row, candidate, metric)
            if value is not None and base is not None:
                found.append((sign * (value - base), candidate, position))
    return sorted(found, key=lambda gain: (-gain[0], gain[2]))


def answers_section(metrics: Mapping[str, Any], rows: Sequence[Row]) -> Section:
    """The ten biggest wins and losses by the primary metric, and ten of all rows by the run's seed."""
    candidates, primary = metrics["candidates"], primary_metric(metrics)
    name = metric_name(primary)
    section = Section("answers", "Answers side by side")
    section.add(
        Paragraph(
            f"A large difference in {name} is no proof that one answer is better. These are words of language models, "
            "not advice: do not act on them."
        )
    )
    if not rows:
        section.not_run = "There are no answers."
        return section
    ranked = gains(rows, list(candidates), primary)
    wins = _distinct([gain for gain in ranked if gain[0] > 0])
    losses = _distinct([gain for gain in reversed(ranked) if gain[0] < 0])
    seed = int((metrics.get("decoding") or {}).get("seed") or (metrics.get("settings") or {}).get("seed") or 0)
    drawn = sorted(random.Random(seed).sample(range(len(rows)), min(EACH, len(rows))))
    reference = label_of(candidates, next(iter(candidates)))
    for title, sentence, chosen in (
        (
            "The biggest wins",
            f"{capital(counted(len(wins)))} on which {name} rises most against {reference}.",
            wins,
        ),
        (
            "The biggest losses",
            f"{capital(counted(len(losses)))} on which {name} falls most against {reference}.",
            losses,
        ),
        (
            "Drawn at random",
            f"{capital(counted(len(drawn)))} drawn from all {len(rows):,} with seed {seed}; one may also stand above.",
            [(None, "", position) for position in drawn],
        ),
    ):
        section.add(Heading(title), Paragraph(sentence if chosen else "There are none."))
        for place, (gain, candidate, position) in enumerate(chosen, 1):
            section.add(_example(metrics, rows[position], place, gain, candidate))
    return section


def _distinct(ranked: Sequence[Gain]) -> list[Gain]:
    """The first `EACH`, one a question."""
    seen: dict[int, Gain] = {}
    for gain in ranked:
        seen.setdefault(gain[2], gain)
    return list(seen.values())[:EACH]


def _example(metrics: Mapping[str, Any], row: Row, place: int, gain: float | None, candidate: str) -> Example:
    candidates, primary = metrics["candidates"], primary_metric(metrics)
    longest = LONGEST_CHARACTERS // (len(candidates) + 1)
    reference = next(iter(candidates))
    differences = []
    base = _score(row, reference, primary)
    for key in candidates:
        value = _score(row, key, primary)
        if key != reference and value is not None and base is not None:
            pair = f"{key} vs {reference}"
            told = change(primary, value - base)
            differences.append(told if len(candidates) == 2 else f"{pair_label(candidates, pair)} {told}")
    summary = f"{metric_name(primary)} {', '.join(differences)}" if differences else "no score"
    if row.get("question_type"):
        summary += f" \u00b7 {str(row['question_type']).replace('_', ' ')}"
    if row.get("stratum") == "near":
        summary += " \u00b7 like a training question"
    answers = []
    for position, key in enumerate(candidates):
        answer = (row.get("candidates") or {}).get(key) or {}
        answers.append(
            _text(label_of(candidates, key), answer.get("answer"), longest, _facts(answer, primary), position)
        )
    return Example(
        place,
        _text("Question", row.get("question"), LONGEST_QUESTION),
        _text("Reference answer", row.get("reference"), longest),
        answers,
        summary,
    )


def _facts(answer: Mapping[str, Any], primary: str) -> str:
    scores = answer.get("scores") or {}
    metrics = dict.fromkeys((primary, *SHOWN_SCORES))
    parts = [f"{metric_name(metric)} {score(metric, scores[metric])}" for metric in metrics if metric in scores]
    if is_number(answer.get("tokens")):
        parts.append(counted(answer["tokens"], "token"))
    if "ended" in answer:
        parts.append("ended by itself" if answer["ended"] else "cut off at the limit")
    return " \u00b7 ".join(parts)


def _text(label: str, text: Any, longest: int, facts: str = "", series: int | None = None) -> Text:
    """A text whose end is folded when it is long, and cut when it is very long."""
    text = str(text or "").strip()
    note = ""
    if len(text) > longest:
        note = f"{number(len(text) - longest, 0)} more characters are in predictions.jsonl."
        text = text[:longest].rstrip() + "\u2026"
    shown, folded = text, ""
    if len(text) > SHOWN_CHARACTERS * 1.2:
        at = text.rfind(" ", SHOWN_CHARACTERS // 2, SHOWN_CHARACTERS)
        at = at if at > 0 else SHOWN_CHARACTERS
        shown, folded = text[:at], text[at:].lstrip()
    return Text(capital(label), shown, folded, note, facts, series)


def _score(row: Row, candidate: str, metric: str) -> float | None:
    answer = (row.get("candidates") or {}).get(candidate) or {}
    value = (answer.get("scores") or {}).get(metric)
    return value if is_number(value) else None
