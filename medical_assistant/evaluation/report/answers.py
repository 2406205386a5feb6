"""Thirty answers side by side: the biggest wins, the biggest losses, and some by chance."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from medical_assistant.evaluation.report import format as fmt
from medical_assistant.evaluation.report.evaluation import Evaluation

EACH = 10
LONGEST_CHARACTERS = 5100  # of reference and answers of one example together, so that the page stays under 1 MB
LONGEST_QUESTION = 600
SHOWN_SCORES = ("rougeL", "token_f1", "chrf")


def gains(rows: Sequence[Mapping[str, Any]], candidates: Sequence[str], metric: str) -> list[tuple[float, int]]:
    """Return (gain, row number) of every answer over that of the reference candidate, the first of `candidates`.

    A gain is the difference of `metric`, with its sign turned where lower is better. An answer without the score, or
    whose reference candidate has none, is left out. Largest first, then by the order of the rows.
    """
    sign = -1 if fmt.direction(metric) == "lower" else 1
    found = []
    for position, row in enumerate(rows):
        base, *values = (fmt.dig(row, "candidates", key, "scores", metric) for key in candidates)
        known = [value for value in values if fmt.is_number(value) and fmt.is_number(base)]
        found += [(sign * (value - base), position) for value in known]
    return sorted(found, key=lambda gain: (-gain[0], gain[1]))


def example_groups(run: Evaluation) -> list[dict[str, Any]]:
    """Return the ten biggest wins and losses by the primary metric, and ten of all rows by the run's seed."""
    if not run.rows:
        return []
    ranked, reference = gains(run.rows, list(run.labels), run.primary), next(iter(run.labels.values()))
    # A row stands once in each group, by its largest gain or loss.
    wins = list(dict.fromkeys(position for gain, position in ranked if gain > 0))[:EACH]
    losses = list(dict.fromkeys(position for gain, position in reversed(ranked) if gain < 0))[:EACH]
    seed = int(fmt.dig(run.metrics, "decoding", "seed") or fmt.dig(run.metrics, "settings", "seed") or 0)
    drawn = sorted(random.Random(seed).sample(range(len(run.rows)), min(EACH, len(run.rows))))
    groups = []
    for title, chosen, told in (
        ("The biggest wins", wins, f"on which {run.metric} rises most against {reference}."),
        ("The biggest losses", losses, f"on which {run.metric} falls most against {reference}."),
        ("Drawn at random", drawn, f"drawn from all {len(run.rows):,} with seed {seed}; one may also stand above."),
    ):
        sentence = f"{fmt.counted(len(chosen))} {told}" if chosen else "There are none."
        groups.append({"title": title, "told": sentence, "examples": [_example(run, run.rows[i]) for i in chosen]})
    return groups


def _example(run: Evaluation, row: Mapping[str, Any]) -> dict[str, Any]:
    reference, *others = run.labels
    longest = LONGEST_CHARACTERS // (len(run.labels) + 1)
    base, differences = fmt.dig(row, "candidates", reference, "scores", run.primary), []
    for key in others:
        value = fmt.dig(row, "candidates", key, "scores", run.primary)
        if fmt.is_number(value) and fmt.is_number(base):
            name = f"{run.pair_title(f'{key} vs {reference}')} " if len(others) > 1 else ""
            differences.append(name + fmt.change(run.primary, value - base))
    facts = [f"{run.metric} {', '.join(differences)}" if differences else "no score"]
    facts += [str(row["question_type"]).replace("_", " ")] if row.get("question_type") else []
    facts += ["like a training question"] if row.get("stratum") == "near" else []
    answers = []
    for key, label in run.labels.items():
        answer = fmt.dig(row, "candidates", key)
        scores = fmt.dig(answer, "scores")
        shown = [metric for metric in dict.fromkeys((run.primary, *SHOWN_SCORES)) if metric in scores]
        parts = [f"{fmt.metric_name(metric)} {fmt.score(metric, scores[metric])}" for metric in shown]
        if answer:
            end = "ended by itself" if answer["ended"] else "cut off at the limit"
            parts += [fmt.counted(answer["tokens"], "token"), end]
        answers.append(_text(label, answer.get("answer"), longest, " \u00b7 ".join(parts)))
    return {
        "summary": " \u00b7 ".join(facts),
        "question": _text("Question", row.get("question"), LONGEST_QUESTION),
        "answers": answers,
        "reference": _text("Reference answer", row.get("reference"), longest),
    }


def _text(label: str, text: Any, longest: int, facts: str = "") -> dict[str, Any]:
    """Return a text for a reader, with a `note` of what was cut."""
    text, note = str(text or "").strip(), ""
    if len(text) > longest:
        note = f"{fmt.number(len(text) - longest, 0)} more characters are in predictions.jsonl."
        text = text[:longest].rstrip() + "\u2026"
    return {"label": fmt.capital(label), "text": text, "note": note, "facts": facts}
