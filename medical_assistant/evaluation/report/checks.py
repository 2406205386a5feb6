"""The report's sections beside likeness: knowledge, safety, statements, confidence, gate.

Each takes the evaluation and its section of metrics.json, and returns the parts of the view's section.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medical_assistant.evaluation.report import charts
from medical_assistant.evaluation.report import format as fmt
from medical_assistant.evaluation.report.parts import (
    Evaluation,
    Part,
    chart,
    difference_table,
    measures_chart,
    table,
)

Found = Mapping[str, Any]
SAFETY = {
    "refusal_rate": "Refuses harmful requests (higher is better)",
    "over_refusal_rate": "Refuses ordinary questions (lower is better)",
    "urges_care_rate": "Urges care in emergencies (higher is better)",
    "delays_care_rate": "Delays care in emergencies (lower is better)",
}
STATEMENTS = (  # name, key of the value, what stands before "low" and "high" in the keys of its bounds
    ("Statements made (higher is better)", "recall", ""),
    ("Contradicted (lower is better)", "contradictions", "contradictions_"),
)
CONFIDENCE = {
    "ece": "Expected calibration error",
    "ece_of_perfect": "The same if perfectly calibrated, by chance alone",
    "ece_uncalibrated": "The same before calibration",
    "auroc": "AUROC: a good answer ranks above a bad one",
    "aurc": "Area under risk and coverage",
    "aurc_base_rate": "The same in random order",
    "brier": "Brier score",
    "brier_base_rate": "The same of one constant confidence",
}


def knowledge(run: Evaluation, found: Found) -> Part:
    """Multiple-choice accuracy by set, with intervals and what guessing gives."""
    measures, differences, subjects = [], [], []
    for entry in found.get("sets") or ():
        name, chance = entry["name"], entry.get("chance")
        for key in run.labels:
            by_length = fmt.dig(entry, "normalised_accuracy", key, "accuracy")
            accuracy = _bounds(fmt.dig(entry, "accuracy", key), "accuracy", "")
            shown = f"{name} \u00b7 {fmt.counted(entry.get('n'))}"
            measures.append((shown, key, accuracy, chance, fmt.percent(by_length), fmt.percent(chance)))
        differences += [(f"{name}: {run.pair_title(pair)}", d) for pair, d in fmt.dig(entry, "comparison").items()]
        rows = [
            [subject.replace("_", " "), str(by.get("n", fmt.DASH)), *(fmt.percent(by.get(key)) for key in run.labels)]
            for subject, by in fmt.dig(entry, "by_subject").items()
        ]
        if len(rows) > 1:
            columns = ("Subject", "Questions", *map(fmt.capital, run.labels.values()))
            subjects.append(table(f"Right choices by subject, {name}", columns, rows))
    title, more = "Right choices by set", ("By option length", "Guessing")
    return {
        "not_run": "" if measures else "No set of multiple-choice questions was given.",
        "charts": measures_chart(run, "knowledge", title, "Right choices", measures, *more),
        "tables": difference_table("Difference in right choices", "Set and pair", differences) + subjects,
    }


def safety(run: Evaluation, found: Found) -> Part:
    """Did fine-tuning cost safety: refusals of harmful and ordinary messages, urging and delaying care."""
    counts = [f"{fmt.capital(kind)}: {fmt.counted(n, 'message')}." for kind, n in fmt.dig(found, "counts").items()]
    measures = [
        (name, key, _bounds(fmt.dig(found, "candidates", key), measure, f"{measure}_"), None)
        for measure, name in SAFETY.items()
        for key in run.labels
    ]
    differences = [
        (f"{SAFETY.get(measure, measure).partition(' (')[0]}: {run.pair_title(pair)}", difference)
        for pair, by_measure in fmt.dig(found, "comparison").items()
        for measure, difference in (by_measure or {}).items()
    ]
    examples, reference = fmt.counted(len(found.get("examples") or ()), "example"), next(iter(run.labels.values()))
    note = f"{examples} of messages that a candidate handled worse than {reference} are in metrics.json."
    return {
        "told": [" ".join(counts)],
        "charts": measures_chart(run, "safety", "Safety by measure", "Part of the messages", measures),
        "tables": difference_table("Difference in safety", "Measure and pair", differences),
        "notes": [note] if found.get("examples") else [],
    }


def statements(run: Evaluation, found: Found) -> Part:
    """What a good answer must state, and how much of it the answers state or contradict."""
    n, judge = fmt.counted(found.get("n")), fmt.dig(found, "judge", "name") or "unnamed"
    candidates = {key: fmt.dig(found, "candidates", key) for key in run.labels}
    measures = [
        (name, key, _bounds(by, measure, prefix), None, str(by.get("missing", fmt.DASH)))
        for name, measure, prefix in STATEMENTS
        for key, by in candidates.items()
    ]
    differences = [
        (f"{name}: {run.pair_title(pair)}", difference)
        for name, key in (("Made", "comparison"), ("Contradicted", "contradictions_comparison"))
        for pair, difference in fmt.dig(found, key).items()
    ]
    title, axis = "Statements made and contradicted", "Part of the statements"
    return {
        "told": [f"{n}. The judge is a language model, {judge}. Its agreement with people was not measured."],
        "charts": measures_chart(run, "statements", title, axis, measures, "No verdict"),
        "tables": difference_table("Difference in statements", "Measure and pair", differences),
    }


def confidence(run: Evaluation, found: Found) -> Part:
    """Is the confidence that the application shows worth its name: calibration and ranking on unseen questions."""
    candidate, good = str(found.get("candidate")), str(found.get("label") or "not recorded").rstrip(".")
    told = (
        f"{fmt.counted(found.get('n_fit'))} fitted it and {fmt.counted(found.get('n_test'))} tested it, answered by "
        f"{run.labels.get(candidate, candidate)}. A good answer is: {good}. {fmt.percent(found.get('base_rate'))} of "
        "the answers are good."
    )
    rows = []
    for key, name in CONFIDENCE.items():
        if key in found:
            bounds = fmt.interval("", found.get(f"{key}_low"), found.get(f"{key}_high"), sign=False)
            better = "higher" if key == "auroc" else "lower"
            rows.append([name, better, fmt.number(found[key]), bounds if f"{key}_low" in found else fmt.DASH])
    signals = ", ".join(str(signal).replace("_", " ") for signal in found.get("signals") or ())
    columns = ("Measure", "Better", "Value", "95 % interval")
    return {
        "told": [told],
        "charts": _reliability(found) + _risk(found),
        "tables": [table("Measures of confidence", columns, rows, words=(0, 1))],
        "notes": [f"Method: {found.get('method', 'not recorded')}. Signals: {signals or 'none'}."],
    }


def _reliability(found: Found) -> list[Part]:
    """Observed part of good answers against stated confidence, by bin of confidence."""
    bins = [entry for entry in found.get("reliability") or () if entry.get("n")]
    title = "Stated confidence against good answers"
    sentence = (
        f"Over {fmt.counted(len(bins), 'bin')} the stated confidence and the observed part differ by "
        f"{fmt.percent(found.get('ece'))} on average. Points below the dashed line are too sure; larger ones hold more "
        "answers."
    )
    dots, sizes = [(entry["mean_confidence"], entry["observed"]) for entry in bins], [entry["n"] for entry in bins]
    labels = ("Stated confidence", "Part of good answers", "measured")
    rows = []
    for entry, parts in zip(bins, dots, strict=True):
        bounds = " to ".join(fmt.percent(entry.get(key), 0) for key in ("low", "high"))
        rows.append([bounds, str(entry["n"]), *map(fmt.percent, parts)])
    svg = charts.part_curve("reliability", labels, dots, ("perfectly calibrated", 0, 1), sizes)
    figures = table(title, ("Confidence", "Answers", "Mean confidence", "Good answers"), rows)
    return [chart("reliability", title, sentence, svg, figures, "Reliability")] if bins else []


def _risk(found: Found) -> list[Part]:
    """Part of bad answers (risk) among the most confident part of the questions (coverage)."""
    curve = [(point["coverage"], point["risk"]) for point in found.get("risk_coverage") or ()]
    if not curve:
        return []
    title, (coverage, risk) = "Bad answers among the most confident", min(curve, key=lambda point: abs(point[0] - 0.5))
    base = 1 - found["base_rate"] if fmt.is_number(found.get("base_rate")) else None
    most, all_bad = f"Of the most confident {fmt.percent(coverage, 0)}, {fmt.percent(risk)} are bad", fmt.percent(base)
    labels = ("Part of questions answered", "Part of bad answers", "most confident answers first")
    svg = charts.part_curve("risk", labels, curve, None if base is None else ("all answers", base, base))
    step = max(1, len(curve) // 10)
    rows = [[fmt.percent(coverage, 0), fmt.percent(risk)] for coverage, risk in curve[step - 1 :: step]]
    figures = table(title, ("Answered", "Bad among those"), rows)
    return [chart("risk", title, f"{most}; of all, {all_bad}.", svg, figures, "Risk and coverage")]


def gate(run: Evaluation, found: Found) -> Part:
    """The thresholds that a release must pass."""
    rows = []
    for check in found.get("checks") or ():
        figures = [fmt.number(check.get(key), 4) for key in ("value", "bound")]
        outcome = "passed" if check.get("passed") else "failed"
        rows.append([str(check.get("name", "")), *figures, str(check.get("reason") or ""), outcome])
    word = "The gate is passed" if found.get("passed") else "The gate is not passed"
    told = f"{word}: {sum(row[-1] == 'passed' for row in rows)} of {fmt.counted(len(rows), 'check')} passed."
    columns = ("Check", "Value", "Bound", "Reason", "Outcome")
    return {"told": [told], "tables": [table("Checks of the gate", columns, rows, words=(0, 3), verdict=True)]}


def _bounds(found: Found, value: str, prefix: str) -> tuple[Any, Any, Any]:
    """Return a value with its 95 % interval."""
    return found.get(value), found.get(f"{prefix}low"), found.get(f"{prefix}high")
