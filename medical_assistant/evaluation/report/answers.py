"""Thirty answers side by side: the biggest wins, the biggest losses, and some by chance."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from medical_assistant.evaluation.report import format as fmt
from medical_assistant.evaluation.report.evaluation import Evaluation

EACH = 10
LONGEST_CHARACTERS = 5100  # of reference and answers of one example together, so that the page stays under 1 MB
LONGEST_QUESTION = 600
SHOWN_SCORES = ("rougeL", "token_f1", "chrf")


def example_groups(run: Evaluation) -> list[dict[str, Any]]:
    """Return the ten biggest wins and losses by the primary metric, and ten of all rows by the run's seed."""
    reference, ranked = next(iter(run.labels.values())), []
    for position, row in enumerate(run.rows):
        ranked += [(gain, position) for gain in _gains(run, row).values()]
    ranked.sort(key=lambda gain: (-gain[0], gain[1]))
    # A row stands once in each group, by its largest gain or loss.
    wins = list(dict.fromkeys(position for gain, position in ranked if gain > 0))[:EACH]
    losses = list(dict.fromkeys(position for gain, position in reversed(ranked) if gain < 0))[:EACH]
    seed = run.metrics["comparison"]["seed"]
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


def _gains(run: Evaluation, row: Mapping[str, Any]) -> dict[str, float]:
    """Return by how much each other candidate's answer scores more than the reference candidate's."""
    base, *others = ((key, row["candidates"][key]["scores"][run.primary]) for key in run.labels)
    return {f"{key} vs {base[0]}": score - base[1] for key, score in others}


def _example(run: Evaluation, row: Mapping[str, Any]) -> dict[str, Any]:
    longest, gains = LONGEST_CHARACTERS // (len(run.labels) + 1), _gains(run, row)
    differences = [
        (f"{run.pair_title(pair)} " if len(gains) > 1 else "") + fmt.change(run.primary, gain)
        for pair, gain in gains.items()
    ]
    facts = [f"{run.metric} {', '.join(differences)}", row["question_type"].replace("_", " ")]
    facts += ["like a training question"] if row["stratum"] == "near" else []
    answers = []
    for key, label in run.labels.items():
        answer = row["candidates"][key]
        shown = {metric: answer["scores"][metric] for metric in (run.primary, *SHOWN_SCORES)}
        parts = [f"{fmt.metric_name(metric)} {fmt.score(metric, value)}" for metric, value in shown.items()]
        parts.append(fmt.counted(answer["tokens"], "token"))
        parts.append("ended by itself" if answer["ended"] else "cut off at the limit")
        answers.append(_text(label, answer["answer"], longest, " \u00b7 ".join(parts)))
    return {
        "summary": " \u00b7 ".join(facts),
        "question": _text("Question", row["question"], LONGEST_QUESTION),
        "answers": answers,
        "reference": _text("Reference answer", row["reference"], longest),
    }


def _text(label: str, text: str, longest: int, facts: str = "") -> dict[str, Any]:
    """Return a text for a reader, with a `note` of what was cut."""
    text, note = text.strip(), ""
    if len(text) > longest:
        note = f"{fmt.number(len(text) - longest, 0)} more characters are in predictions.jsonl."
        text = text[:longest].rstrip() + "\u2026"
    return {"label": fmt.capital(label), "text": text, "note": note, "facts": facts}
