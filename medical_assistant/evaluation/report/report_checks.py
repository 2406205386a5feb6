"""The report's sections beside likeness: knowledge, safety, statements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medical_assistant.evaluation.report.report_effects import part_chart
from medical_assistant.evaluation.report.report_parts import (
    DASH,
    Cell,
    Paragraph,
    Section,
    Table,
    capital,
    change_interval,
    counted,
    is_number,
    label_of,
    number,
    p_value,
    pair_label,
    part_interval,
    percent,
    points,
    record,
    start_section,
    verdict_cell,
)

COLUMNS = ("Difference", "95 % interval", "p", "Wins / ties / losses", "Verdict")
SAFETY = {  # measure: (name, better)
    "refusal_rate": ("Refuses harmful requests", "higher"),
    "over_refusal_rate": ("Refuses ordinary questions", "lower"),
    "urges_care_rate": ("Urges care in emergencies", "higher"),
    "delays_care_rate": ("Delays care in emergencies", "lower"),
}


def knowledge_section(metrics: Mapping[str, Any]) -> Section:
    """Multiple-choice accuracy by set, with intervals and what guessing gives."""
    candidates = metrics["candidates"]
    section, knowledge = start_section(
        "knowledge",
        "Knowledge",
        metrics.get("knowledge"),
        "Multiple-choice questions with one right option. The answer is the option that the model finds likeliest; it "
        "need not write it. The dashed mark is what guessing gives: an interval that holds it shows no knowledge.",
    )
    sets = knowledge.get("sets") or []
    if section.not_run:
        return section
    if not sets:
        section.not_run = "No set of multiple-choice questions was given."
        return section
    measures: dict[str, dict[str, Any]] = {}
    rows: list[list[str | Cell]] = []
    differences: list[list[str | Cell]] = []
    for entry in sets:
        accuracy, normalised = entry.get("accuracy") or {}, entry.get("normalised_accuracy") or {}
        heading = f"{entry['name']} \u00b7 {counted(entry.get('n'))}"
        measures[heading] = {key: _bounds(accuracy.get(key), "accuracy") for key in candidates if accuracy.get(key)}
        measures[heading]["chance"] = entry.get("chance")
        for key in candidates:
            value, low, high = _bounds(accuracy.get(key), "accuracy")
            by_length = percent((normalised.get(key) or {}).get("accuracy"))
            cells = [percent(value), part_interval(low, high), by_length, percent(entry.get("chance"))]
            rows.append([heading, capital(label_of(candidates, key)), *cells])
        for pair, difference in (entry.get("comparison") or {}).items():
            differences.append([f"{entry['name']}: {pair_label(candidates, pair)}", *_difference(difference)])
    columns = ("Set", "Candidate", "Right", "95 % interval", "By option length", "Guessing")
    figures = Table("Right choices by set and candidate", columns, rows, words=(0, 1))
    section.add(part_chart("knowledge", "Right choices by set", candidates, measures, "Right choices", figures))
    if differences:
        section.add(Table("Difference in right choices", ("Set and pair", *COLUMNS), differences, words=(0, 5)))
    for entry in sets:
        section.add(_subjects(candidates, entry))
    return section


def _subjects(candidates: Mapping[str, Any], entry: Mapping[str, Any]) -> Table | None:
    subjects = entry.get("by_subject") or {}
    if len(subjects) < 2:
        return None
    rows = [
        [subject.replace("_", " "), str(found.get("n", DASH)), *(percent(found.get(key)) for key in candidates)]
        for subject, found in subjects.items()
    ]
    columns = ("Subject", "Questions", *(capital(label_of(candidates, key)) for key in candidates))
    return Table(f"Right choices by subject, {entry['name']}", columns, rows)


def safety_section(metrics: Mapping[str, Any]) -> Section:
    """Did fine-tuning cost safety: refusals of harmful and ordinary messages, urging and delaying care."""
    candidates = metrics["candidates"]
    section, safety = start_section(
        "safety",
        "Safety regression",
        metrics.get("safety"),
        "Fine-tuning can make a model forget to refuse. Here the models answer alone, without the application's safety "
        "layer. Fixed phrases in an answer decide what counts: they miss some answers and no clinician has read them.",
    )
    if section.not_run:
        return section
    counts = safety.get("counts") or {}
    told = [f"{capital(kind)}: {counted(n, 'message')}." for kind, n in counts.items()]
    section.add(Paragraph(" ".join(told)) if told else None)
    by_system = safety.get("candidates") or {}
    measures: dict[str, dict[str, Any]] = {}
    rows: list[list[str | Cell]] = []
    for measure, (name, better) in SAFETY.items():
        values = {key: _bounds(by_system.get(key), measure) for key in candidates}
        values = {key: found for key, found in values.items() if is_number(found[0])}
        if values:
            measures[f"{name} ({better} is better)"] = values
            cells = [f"{percent(values[key][0])}" if key in values else DASH for key in candidates]
            rows.append([name, better, *cells])
    columns = ("Measure", "Better", *(capital(label_of(candidates, key)) for key in candidates))
    figures = Table("Safety by measure", columns, rows, words=(0, 1))
    section.add(part_chart("safety", "Safety by measure", candidates, measures, "Part of the messages", figures))
    differences: list[list[str | Cell]] = [
        [f"{SAFETY.get(measure, (measure,))[0]}: {pair_label(candidates, pair)}", *_difference(difference)]
        for pair, found in (safety.get("comparison") or {}).items()
        for measure, difference in (found or {}).items()
        if difference
    ]
    if differences:
        section.add(Table("Difference in safety", ("Measure and pair", *COLUMNS), differences, words=(0, 5)))
    if safety.get("examples"):
        worse = f"{capital(counted(len(safety['examples']), 'example'))} of messages that a candidate handled worse"
        section.add(
            Paragraph(f"{worse} than {label_of(candidates, next(iter(candidates)))} are in metrics.json.", quiet=True)
        )
    return section


def statements_section(metrics: Mapping[str, Any]) -> Section:
    """What a good answer must state, and how much of it the answers state or contradict."""
    candidates = metrics["candidates"]
    section, statements = start_section(
        "statements",
        "Statements that an answer must make",
        metrics.get("statements"),
        "Each of these questions has statements that a good answer must make. A judge, itself a model, says which of "
        "them an answer makes, and which it contradicts. A judge can be wrong.",
    )
    if section.not_run:
        return section
    judge = statements.get("judge") or {}
    kind = {"nli": "a model of textual entailment", "server": "a language model"}.get(str(judge.get("kind")), "a model")
    agreement = judge.get("agreement") or {}
    told = f"{capital(counted(statements.get('n')))}. The judge is {kind}, {judge.get('name', 'unnamed')}."
    if is_number(agreement.get("agreement")):
        kappa = f" (Cohen's kappa {number(agreement.get('cohen_kappa'), 2)})"
        told += (
            f" It agrees with human labels on {percent(agreement['agreement'])} of {agreement.get('n')} items{kappa}."
        )
    else:
        told += " Its agreement with people was not measured."
    section.add(Paragraph(told))
    by_system = statements.get("candidates") or {}
    measures: dict[str, dict[str, Any]] = {
        "Statements made (higher is better)": {},
        "Contradicted (lower is better)": {},
    }
    rows: list[list[str | Cell]] = []
    for key in candidates:
        found = by_system.get(key)
        if not found:
            continue
        made = (found.get("recall"), found.get("low"), found.get("high"))
        against = _bounds(found, "contradictions")
        for values, bounds in zip(measures.values(), (made, against), strict=True):
            values[key] = bounds
        cells = [percent(made[0]), part_interval(*made[1:]), percent(against[0]), str(found.get("missing", DASH))]
        rows.append([capital(label_of(candidates, key)), *cells])
    columns = ("Candidate", "Made", "95 % interval", "Contradicted", "No verdict")
    figures = Table("Statements made and contradicted", columns, rows)
    section.add(part_chart("statements", figures.caption, candidates, measures, "Part of the statements", figures))
    differences: list[list[str | Cell]] = []
    for name, key in (("Made", "comparison"), ("Contradicted", "contradictions_comparison")):
        for pair, difference in (statements.get(key) or {}).items():
            if difference:
                differences.append([f"{name}: {pair_label(candidates, pair)}", *_difference(difference)])
    if differences:
        section.add(Table("Difference in statements", ("Measure and pair", *COLUMNS), differences, words=(0, 5)))
    return section


def _bounds(values: Mapping[str, Any] | None, measure: str) -> tuple[Any, Any, Any]:
    values = values or {}
    prefix = "" if measure == "accuracy" else f"{measure}_"
    return values.get(measure), values.get(f"{prefix}low"), values.get(f"{prefix}high")


def _difference(difference: Mapping[str, Any]) -> list[str | Cell]:
    """The cells of `COLUMNS` for a difference of two parts."""
    return [
        points(difference.get("difference")),
        change_interval("ended", difference.get("low"), difference.get("high")),
        p_value(difference.get("p_value")),
        record(difference),
        verdict_cell(difference),
    ]
