"""Where the difference comes from: losses, spread, types of question, likeness to the training data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medical_assistant.evaluation.report import charts
from medical_assistant.evaluation.report.report_parts import (
    DASH,
    PERCENT,
    Cell,
    Chart,
    Paragraph,
    Section,
    Table,
    capital,
    change,
    change_interval,
    counted,
    is_number,
    label_of,
    metric_name,
    number,
    pair_label,
    pair_of,
    part_interval,
    percent,
    record,
    score,
    start_section,
    verdict_cell,
)
from medical_assistant.evaluation.report.report_scores import primary_metric
from medical_assistant.evaluation.scoring.metrics import METRICS

LENGTHS = ("short", "medium", "long")
QUANTILES = {"q50": "half", "q90": "90 in 100", "q95": "95 in 100", "q99": "99 in 100", "max": "all"}
SIDES = {1: "right of the line is better", -1: "left of the line is better", 0: "neither side is better"}
DIFFERENCE_COLUMNS = ("Questions", "Difference", "95 % interval", "Wins / ties / losses", "Verdict")


def losses_section(metrics: Mapping[str, Any], losses: Mapping[str, Any] | None) -> Section:
    """The loss curves of `losses` (run -> `history` of its training.json), each in the colour of its candidate."""
    section = Section("losses", "Training and validation loss")
    section.add(Paragraph("The loss on the answers alone, in nats per token. Lower is better."))
    histories = {label: list(history or ()) for label, history in (losses or {}).items()}
    rows = []
    for label, history in histories.items():
        (_, training), (steps, validation) = charts.points(history, "loss"), charts.points(history, "eval_loss")
        if not training and not validation:
            continue
        best = min(validation, default=None)
        ends = (training[0], training[-1]) if training else (None, None)
        first = validation[0] if validation else None
        at = f"{steps[validation.index(best)]:,}" if best is not None else DASH
        rows.append([capital(label), *(number(value) for value in (*ends, first, best)), at])
    if not rows:
        section.not_run = "No loss history was found beside the adapter."
        return section
    told = [f"{row[0]}: the validation loss went from {row[3]} to {row[4]} (step {row[5]})." for row in rows]
    sentence = " ".join(text for text, row in zip(told, rows, strict=True) if row[4] != DASH)
    sentence = sentence or "Only training losses were logged."
    columns = ("Run", "First training", "Last training", "First validation", "Best validation")
    table = Table("Losses by run", (*columns, "At step"), rows)
    labels = [label_of(metrics["candidates"], key) for key in metrics["candidates"]]
    series = {label: labels.index(label) for label in histories if label in labels}
    svg = charts.loss_curves("losses", "Loss by optimiser step", sentence, histories, series)
    section.add(Chart("Loss by optimiser step", sentence, svg, table))
    return section


def distribution_section(metrics: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Section:
    """How the primary metric is spread over the questions."""
    candidates, primary = metrics["candidates"], primary_metric(metrics)
    name = metric_name(primary)
    section = Section("distribution", "Spread of the scores")
    section.add(Paragraph("A mean can hide many small losses behind a few large wins. Dotted lines are the means."))
    values: dict[str, list[float]] = {}
    figures = []
    for key in candidates:
        answers = [(row.get("candidates") or {}).get(key) or {} for row in rows]
        found = [(answer.get("scores") or {}).get(primary) for answer in answers]
        scores = sorted(float(value) for value in found if value is not None and is_number(value))
        label = capital(label_of(candidates, key))
        values[label if label not in values else f"{label} ({key})"] = scores
        if scores:
            spread = [scores[round(part * (len(scores) - 1))] for part in (0, 0.25, 0.5, 0.75, 1)]
            mean = sum(scores) / len(scores)
            figures.append([label, f"{len(scores):,}", *(score(primary, value) for value in (mean, *spread))])
    if not figures:
        section.not_run = f"No answer has a {name} of its own."
        return section
    sentence = " ".join(f"{row[0]}: mean {row[2]}, the middle half from {row[4]} to {row[6]}." for row in figures)
    title = f"{name} by answer"
    svg = charts.histogram("spread", title, sentence, values, name)
    columns = ("Candidate", "Answers", "Mean", "Least", "Lower quarter", "Median", "Upper quarter", "Most")
    section.add(Chart(title, sentence, svg, Table(title, columns, figures)))
    return section


def effect_section(metrics: Mapping[str, Any]) -> Section:
    """The difference by type of question and by its length: a forest plot for each pair."""
    candidates, primary = metrics["candidates"], primary_metric(metrics)
    section, comparison = start_section(
        "effect",
        "Effect by type and length of question",
        metrics.get("comparison"),
        "The same difference for each type of question, and for short, medium and long questions. A bar is the 95 % "
        "interval; where it does not touch the line the difference is measurable, and the mark is filled. Small groups "
        "have wide bars. These intervals are not corrected for their number.",
        "No comparison was computed.",
    )
    bounds = comparison.get("length_bounds") or {}
    for position, (pair, differences) in enumerate((comparison.get("pairs") or {}).items(), 1):
        types = (comparison.get("by_type") or {}).get(pair) or {}
        lengths = (comparison.get("by_length") or {}).get(pair) or {}
        groups = {
            "": {"all questions": differences.get(primary)},
            "By type": {group.replace("_", " "): difference for group, difference in types.items()},
            "By length": {
                _length(group, bounds.get(group)): lengths[group] for group in (*LENGTHS, *lengths) if group in lengths
            },
        }
        title = f"{pair_label(candidates, pair)}: difference in {metric_name(primary)}"
        section.add(difference_chart(f"effect-{position}", title, primary, groups, _series(candidates, pair)))
    if comparison and len(section.blocks) == 1:
        section.not_run = "The comparison holds no difference."
    return section


def strata_section(metrics: Mapping[str, Any]) -> Section:
    """Questions that are like a training question against those that are not."""
    candidates, primary = metrics["candidates"], primary_metric(metrics)
    section, strata = start_section(
        "strata",
        "Questions like the training data, and others",
        metrics.get("strata"),
        "A question that is nearly one of the training questions can be answered from memory. Here the questions are "
        "split by how like their nearest training question they are: a true gain also shows on the clean ones.",
    )
    if section.not_run:
        return section
    counts = strata.get("counts") or {}
    section.add(
        Paragraph(
            f"{counted(counts.get('clean'))} are clean, {counted(counts.get('near'))} near: at a "
            f"likeness of {number(strata.get('threshold'), 2)} or more. {strata.get('method') or ''}".strip()
        )
    )
    scores = strata.get("scores") or {}
    keys = [key for key in candidates if key in scores]
    groups = [group for group in ("all", "clean", "near") if any(scores[key].get(group) for key in keys)]
    rows = [
        [capital(group), *(score(primary, (scores[key].get(group) or {}).get(primary)) for key in keys)]
        for group in groups
    ]
    if rows:
        columns = ("Questions", *(capital(label_of(candidates, key)) for key in keys))
        section.add(Table(f"{metric_name(primary)} by likeness to the training data", columns, rows))
    by_pair: dict[str, dict[str, Any]] = {}
    for group, pairs in (strata.get("comparison") or {}).items():
        for pair, difference in (pairs or {}).items():
            by_pair.setdefault(pair, {})[group] = _of_primary(difference, primary)
    for position, (pair, found) in enumerate(by_pair.items(), 1):
        title = f"{pair_label(candidates, pair)}: difference in {metric_name(primary)}"
        section.add(difference_chart(f"strata-{position}", title, primary, {"": found}, _series(candidates, pair)))
        absent = [group for group, difference in found.items() if not difference]
        if absent:
            section.add(Paragraph(f"Too few {' and '.join(absent)} questions to compare.", quiet=True))
    nearest = {key: value for key, value in (strata.get("nearest") or {}).items() if is_number(value)}
    if nearest:
        told = ", ".join(f"{QUANTILES.get(key, key)} up to {number(value, 2)}" for key, value in nearest.items())
        section.add(Paragraph(f"Likeness to the nearest training question: {told}.", quiet=True))
    return section


def difference_chart(
    name: str, title: str, metric: str, groups: Mapping[str, Mapping[str, Any]], series: int
) -> Chart | None:
    """Return a forest plot of `groups` (heading -> {label: Difference or None}) with its table; None without any."""
    rows: list[charts.Row] = []
    figures: list[list[str | Cell]] = []
    for heading, differences in groups.items():
        for label, difference in differences.items():
            if not difference or not is_number(difference.get("difference")):
                continue
            value, low, high = (difference.get(key) for key in ("difference", "low", "high"))
            claimed = low is not None and high is not None
            words = [change(metric, value), change_interval(metric, low, high)]
            text = f"{words[0]} ({words[1]})" if claimed else words[0]
            clear = claimed and not low <= 0 <= high
            shown = f"{label} \u00b7 {difference['n']}"
            rows.append(charts.Row(shown, value, low, high, text, series, clear, heading=heading))
            heading = ""  # only over the first of its group
            figures.append([label, f"{difference['n']:,}", *words, record(difference), verdict_cell(difference)])
    if not rows:
        return None
    side = SIDES[METRICS[metric].better if metric in METRICS else 0]
    measurable = sum(row.filled for row in rows)
    unclaimed = sum(row.low is None for row in rows)
    sentence = f"{measurable} of {counted(len(rows), 'difference')} {'is' if measurable == 1 else 'are'} measurable; "
    sentence += f"{side}."
    if unclaimed:
        sentence += f" {unclaimed} {'has' if unclaimed == 1 else 'have'} too few questions for an interval."
    axis = f"Difference in {metric_name(metric)} ({side})"
    svg = charts.intervals(name, title, sentence, rows, axis, line=0.0, percent=metric in PERCENT)
    return Chart(title, sentence, svg, Table(title, ("Group", *DIFFERENCE_COLUMNS), figures, words=(0, 5)))


def part_chart(
    name: str,
    title: str,
    candidates: Mapping[str, Any],
    measures: Mapping[str, Mapping[str, Any]],
    axis: str,
    figures: Table,
) -> Chart | None:
    """Return a chart of parts (0-1): measure -> {candidate: (value, low, high)} with an optional "chance" mark."""
    rows: list[charts.Row] = []
    told = []
    for heading, values in measures.items():
        found = [(position, key) for position, key in enumerate(candidates) if is_number(values.get(key, [None])[0])]
        parts = ", ".join(f"{label_of(candidates, key)} {percent(values[key][0])}" for _, key in found)
        told.append(f"{heading}: {parts}.")
        for position, key in found:
            value, low, high = values[key]
            text = f"{percent(value)} ({part_interval(low, high)})" if is_number(low) else percent(value)
            label, chance = capital(label_of(candidates, key)), values.get("chance")
            rows.append(charts.Row(label, value, low, high, text, position, True, chance, heading))
            heading = ""
    if not rows:
        return None
    sentence = " ".join(told)
    return Chart(title, sentence, charts.intervals(name, title, sentence, rows, axis, percent=True), figures)


def _of_primary(difference: Any, primary: str) -> Any:
    """A Difference, also where it stands under its metric's name."""
    return difference.get(primary, difference) if isinstance(difference, Mapping) else None


def _series(candidates: Mapping[str, Any], pair: str) -> int:
    b, _ = pair_of(pair)
    return list(candidates).index(b) if b in candidates else 1


def _length(group: str, bounds: Sequence[int] | None) -> str:
    if not bounds:
        return group
    return f"{group} ({bounds[0]} to {bounds[1]} words)" if bounds[0] < bounds[1] else f"{group} ({bounds[0]} words)"
