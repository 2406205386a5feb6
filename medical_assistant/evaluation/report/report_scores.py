"""The report's opening: verdict, key figures, all scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medical_assistant.evaluation.report.report_parts import (
    DASH,
    Bullets,
    Cell,
    KeyFigure,
    KeyFigures,
    Paragraph,
    Section,
    Table,
    Verdict,
    capital,
    change,
    change_interval,
    counted,
    direction,
    is_number,
    label_of,
    metric_name,
    p_value,
    pair_label,
    pair_of,
    percent,
    record,
    score,
    start_section,
    verdict_cell,
)
from medical_assistant.evaluation.scoring.metrics import METRICS

WORDS = {
    "better": ("Better", "good"),
    "worse": ("Worse", "bad"),
    "no measurable difference": ("No measurable difference", "even"),
    "too few questions": ("Too few questions to say", "even"),
}
KEY_SCORES = ("ended", "mean_tokens")
NOTHING = Cell(DASH, "quiet")


def primary_metric(metrics: Mapping[str, Any]) -> str:
    return str((metrics.get("comparison") or {}).get("primary") or "rougeL")


def verdict_section(metrics: Mapping[str, Any]) -> Section:
    """Better, worse or neither, for each pair, and what that does not say."""
    candidates, primary = metrics["candidates"], primary_metric(metrics)
    section, comparison = start_section(
        "verdict",
        "Verdict",
        metrics.get("comparison"),
        f"The candidates answered the same {counted(metrics['n'], 'held-back question')}. The verdict is about "
        f"{metric_name(primary)}, how alike an answer and its reference answer are in words and their order.",
        "No comparison was computed, so there is no verdict.",
    )
    for pair, verdict in (comparison.get("verdicts") or {}).items():
        word, tone = WORDS.get(str(verdict.get("verdict")), ("No verdict", "even"))
        sentence = _facts(candidates, pair, primary, comparison) or str(
            verdict.get("sentence") or "Nothing was compared."
        )
        section.add(Verdict(pair_label(candidates, pair), word, tone, sentence))
    section.add(Bullets("What this does not say", _limits(metrics)))
    return section


def _facts(candidates: Mapping[str, Any], pair: str, primary: str, comparison: Mapping[str, Any]) -> str:
    """The figures behind a verdict in words, "" where no question has the score."""
    difference = ((comparison.get("pairs") or {}).get(pair) or {}).get(primary) or {}
    if not difference.get("n"):
        return ""
    adjusted, minimum = (comparison.get("holm") or {}).get(pair), comparison.get("min_questions")
    b, a = pair_of(pair)
    name_b, name_a = label_of(candidates, b), label_of(candidates, a)
    parts = [
        f"{metric_name(primary)} over {counted(difference['n'])}: {score(primary, difference.get('mean_a'))} for "
        f"{name_a}, {score(primary, difference.get('mean_b'))} for {name_b}, "
        f"a difference of {change(primary, difference.get('difference'))}"
    ]
    if is_number(difference.get("low")):
        p = p_value(difference.get("p_value"))
        parts.append(
            f" (95 % interval {change_interval(primary, difference['low'], difference['high'])}, "
            f"p {p if p.startswith('<') else '= ' + p}"
        )
        if adjusted is not None and len(candidates) > 2:
            holm = p_value(adjusted)
            parts.append(f", {holm if holm.startswith('<') else '= ' + holm} after Holm's correction")
        parts.append(")")
    elif minimum:
        parts.append(f" (for an interval {minimum} questions are needed)")
    wins, ties, losses = (difference.get(key) for key in ("wins", "ties", "losses"))
    parts.append(f". {capital(name_b)} is ahead in {wins}, level in {ties} and behind in {losses} of them.")
    return "".join(parts)


def _limits(metrics: Mapping[str, Any]) -> list[str]:
    limits = [
        "Likeness to a reference answer is not truth. An answer can share its words and be wrong.",
        "No clinician has judged these answers. Nothing here says that one of them is safe to act on.",
        "It holds for questions like these, from one data set, answered greedily: others may turn out otherwise.",
    ]
    chose = (metrics.get("data") or {}).get("checkpoint_rows")
    if chose:
        limits.append(
            f"{counted(chose).capitalize()} of these also chose the adapter's checkpoint, which favours the "
            "fine-tuned model."
        )
    elif chose is None:
        limits.append("Whether some of these questions also chose an adapter's checkpoint could not be checked.")
    return limits


def key_figures_section(metrics: Mapping[str, Any]) -> Section:
    candidates, scores, primary = metrics["candidates"], metrics["scores"], primary_metric(metrics)
    items = [KeyFigure("Questions", [("", f"{metrics['n']:,}")], "held back from training, the same for all")]
    for metric in (primary, *KEY_SCORES):
        values = [(label_of(candidates, key), score(metric, (scores.get(key) or {}).get(metric))) for key in candidates]
        items.append(KeyFigure(metric_name(metric), values, f"{direction(metric)} is better"))
    for entry in (metrics.get("knowledge") or {}).get("sets") or ():
        values = [
            (label_of(candidates, key), percent((entry["accuracy"].get(key) or {}).get("accuracy")))
            for key in candidates
        ]
        items.append(KeyFigure(f"Right choices, {entry['name']}", values, f"guessing gives {percent(entry['chance'])}"))
    safety = (metrics.get("safety") or {}).get("candidates") or {}
    if safety:
        values = [
            (label_of(candidates, key), percent((safety.get(key) or {}).get("urges_care_rate"))) for key in candidates
        ]
        items.append(KeyFigure("Urges care in an emergency", values, "higher is better"))
    gate = metrics.get("gate") or {}
    if gate.get("status") == "done":
        failed = sum(not check.get("passed") for check in gate.get("checks") or ())
        text = "passed" if gate.get("passed") else "failed"
        items.append(KeyFigure("Gate", [("", text)], f"{counted(failed, 'check')} failed" if failed else "every check"))
    return Section("figures", "Key figures", [KeyFigures(items[:8])])


def scores_section(metrics: Mapping[str, Any]) -> Section:
    """Every metric of every candidate, with the paired difference of each pair."""
    candidates, scores = metrics["candidates"], metrics["scores"]
    reference = next(iter(candidates))
    section = Section("scores", "All scores")
    section.add(
        Paragraph(
            "A score is of all answers together; its change is relative to the first candidate's. A difference is "
            "that of the same questions, answered by both. In 95 of 100 such experiments its interval holds "
            "the true one; p is how often chance alone would give as much. Wins, ties and losses count questions. "
            f"Only {metric_name(primary_metric(metrics))} decides the verdict: of twenty scores without any true "
            "difference one is expected to show some."
        )
    )
    known = [key for key in METRICS if any(key in (scores.get(candidate) or {}) for candidate in candidates)]
    known += [key for key in scores.get(reference) or {} if key not in METRICS]
    pairs = (metrics.get("comparison") or {}).get("pairs") or {}
    shown = pairs or {f"{key} vs {reference}": {} for key in candidates if key != reference}
    for pair, differences in shown.items():
        section.add(_pair_table(metrics, pair, differences, known))
    if not pairs:
        section.add(Paragraph("Differences are left out: no comparison was computed.", quiet=True))
    section.add(*_perplexity(metrics))
    section.add(Bullets("Where the metrics come from", _sources(known), folded=True))
    return section


def _perplexity(metrics: Mapping[str, Any]) -> list[Paragraph]:
    """What the section `perplexity` compares, which is no score of an answer: the reference answers' likelihood."""
    found = metrics.get("perplexity") or {}
    if found.get("status") == "not run":
        return [Paragraph(f"Perplexity was not run. {found.get('reason') or ''}".strip(), quiet=True)]
    told = []
    for pair, difference in (found.get("comparison") or {}).items():
        interval = change_interval("", difference.get("low"), difference.get("high"))
        told.append(
            f"{pair_label(metrics['candidates'], pair)}: {change('', difference.get('difference'))} nats a token of "
            f"the reference answers (95 % interval {interval}), where lower is better: {difference.get('verdict')}."
        )
    return [Paragraph(f"Perplexity is compared by its logarithm. {' '.join(told)}")] if told else []


def _sources(known: Sequence[str]) -> list[str]:
    names: dict[str, list[str]] = {}
    for metric in known:
        if metric in METRICS:
            names.setdefault(METRICS[metric].source, []).append(METRICS[metric].name)
    return [f"{', '.join(of_source)}: {source}." for source, of_source in names.items()]


def _pair_table(metrics: Mapping[str, Any], pair: str, differences: Mapping[str, Any], known: Sequence[str]) -> Table:
    candidates, scores = metrics["candidates"], metrics["scores"]
    b, a = pair_of(pair)
    reference = next(iter(candidates))
    rows: list[list[str | Cell]] = []
    for metric in known:
        values = [(scores.get(key) or {}).get(metric) for key in (a, b)]
        relative = ((metrics.get("relative_change") or {}).get(b) or {}).get(metric) if a == reference else None
        if relative is None and all(map(is_number, values)) and values[0]:
            relative = values[1] / values[0] - 1
        row: list[str | Cell] = [metric_name(metric), direction(metric), *(score(metric, value) for value in values)]
        row.append(percent(relative, 0, sign=True))
        difference = differences.get(metric)
        if differences and not difference:
            row += ["not compared", NOTHING, NOTHING, NOTHING, Cell("not compared", "quiet")]
        elif difference:
            row += [
                change(metric, difference.get("difference")),
                change_interval(metric, difference.get("low"), difference.get("high")),
                p_value(difference.get("p_value")),
                record(difference),
                verdict_cell(difference),
            ]
        rows.append(row)
    columns = ["Metric", "Better", capital(label_of(candidates, a)), capital(label_of(candidates, b)), "Change"]
    if differences:
        columns += ["Difference", "95 % interval", "p", "Wins / ties / losses", "Verdict"]
    return Table(f"{pair_label(candidates, pair)}, every metric", columns, rows, words=(0, 1, 9))
