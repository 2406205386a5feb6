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
SAFETY = {  # measure: (name, better)
    "refusal_rate": ("Refuses harmful requests", "higher"),
    "over_refusal_rate": ("Refuses ordinary questions", "lower"),
    "urges_care_rate": ("Urges care in emergencies", "higher"),
    "delays_care_rate": ("Delays care in emergencies", "lower"),
}
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
    if not found.get("sets"):
        return {"not_run": "No set of multiple-choice questions was given."}
    measures, differences, subjects = {}, [], []
    for entry in found["sets"]:
        name, chance = entry["name"], entry.get("chance")
        values = _bounds(run, entry.get("accuracy"), "accuracy", "low", "high")
        for key, value in values.items():
            by_length = fmt.percent(fmt.dig(entry, "normalised_accuracy", key, "accuracy"))
            value |= {"mark": chance, "more": [by_length, fmt.percent(chance)]}
        measures[f"{name} \u00b7 {fmt.counted(entry.get('n'))}"] = values
        differences += [(f"{name}: {run.pair_title(pair)}", d) for pair, d in fmt.dig(entry, "comparison").items()]
        rows = [
            [
                subject.replace("_", " "),
                str(values.get("n", fmt.DASH)),
                *(fmt.percent(values.get(key)) for key in run.labels),
            ]
            for subject, values in fmt.dig(entry, "by_subject").items()
        ]
        if len(rows) > 1:
            subjects.append(table(f"Right choices by subject, {name}", ("Subject", "Questions", *run.columns), rows))
    more = ("By option length", "Guessing")
    drawn = measures_chart(run, "knowledge", "Right choices by set", "Right choices", measures, *more)
    compared = difference_table("Difference in right choices", "Set and pair", differences)
    return {"charts": drawn, "tables": compared + subjects}


def safety(run: Evaluation, found: Found) -> Part:
    """Did fine-tuning cost safety: refusals of harmful and ordinary messages, urging and delaying care."""
    counts = [f"{fmt.capital(kind)}: {fmt.counted(n, 'message')}." for kind, n in fmt.dig(found, "counts").items()]
    measures = {
        f"{name} ({better} is better)": _bounds(run, found.get("candidates"), key, f"{key}_low", f"{key}_high")
        for key, (name, better) in SAFETY.items()
    }
    differences = [
        (f"{SAFETY.get(measure, (measure,))[0]}: {run.pair_title(pair)}", difference)
        for pair, by_measure in fmt.dig(found, "comparison").items()
        for measure, difference in (by_measure or {}).items()
    ]
    notes = []
    if found.get("examples"):
        worse = fmt.counted(len(found["examples"]), "example").capitalize()
        worse += " of messages that a candidate handled worse than"
        notes.append(f"{worse} {next(iter(run.labels.values()))} are in metrics.json.")
    return {
        "told": [" ".join(counts)],
        "charts": measures_chart(run, "safety", "Safety by measure", "Part of the messages", measures),
        "tables": difference_table("Difference in safety", "Measure and pair", differences),
        "notes": notes,
    }


def statements(run: Evaluation, found: Found) -> Part:
    """What a good answer must state, and how much of it the answers state or contradict."""
    judge = fmt.dig(found, "judge", "name") or "unnamed"
    told = f"{fmt.counted(found.get('n')).capitalize()}. The judge is a language model, {judge}. Its agreement with "
    told += "people was not measured."
    candidates, against = found.get("candidates"), "contradictions"
    measures = {
        "Statements made (higher is better)": _bounds(run, candidates, "recall", "low", "high"),
        "Contradicted (lower is better)": _bounds(run, candidates, against, f"{against}_low", f"{against}_high"),
    }
    for values in measures.values():
        for key, value in values.items():
            value["more"] = [str(fmt.dig(candidates, key).get("missing", fmt.DASH))]
    differences = [
        (f"{name}: {run.pair_title(pair)}", difference)
        for name, key in (("Made", "comparison"), ("Contradicted", "contradictions_comparison"))
        for pair, difference in fmt.dig(found, key).items()
    ]
    title, axis = "Statements made and contradicted", "Part of the statements"
    return {
        "told": [told],
        "charts": measures_chart(run, "statements", title, axis, measures, "No verdict"),
        "tables": difference_table("Difference in statements", "Measure and pair", differences),
    }


def confidence(run: Evaluation, found: Found) -> Part:
    """Is the confidence that the application shows worth its name: calibration and ranking on unseen questions."""
    candidate, good = str(found.get("candidate")), str(found.get("label") or "not recorded").rstrip(".")
    told = (
        f"{fmt.counted(found.get('n_fit')).capitalize()} fitted it and {fmt.counted(found.get('n_test'))} tested it, "
        f"answered by {run.labels.get(candidate, candidate)}. A good answer is: {good}. "
        f"{fmt.percent(found.get('base_rate'))} of the answers are good."
    )
    rows = []
    for key, name in CONFIDENCE.items():
        if key in found:
            bounds = fmt.interval("", found.get(f"{key}_low"), found.get(f"{key}_high"), sign=False)
            bounds = bounds if f"{key}_low" in found else fmt.DASH
            rows.append([name, "higher" if key == "auroc" else "lower", fmt.number(found[key]), bounds])
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
    if not bins:
        return []
    title, parts = "Stated confidence against good answers", ("mean_confidence", "observed")
    sentence = (
        f"Over {fmt.counted(len(bins), 'bin')} the stated confidence and the observed part differ by "
        f"{fmt.percent(found.get('ece'))} on average. Points below the dashed line are too sure; larger ones hold more "
        "answers."
    )
    labels = ("Stated confidence", "Part of good answers", "measured")
    dots, sizes = [(entry[parts[0]], entry[parts[1]]) for entry in bins], [entry["n"] for entry in bins]
    svg = charts.part_curve("reliability", labels, dots, ("perfectly calibrated", 0, 1), sizes)
    rows = []
    for entry in bins:
        bounds = " to ".join(fmt.percent(entry.get(key), 0) for key in ("low", "high"))
        rows.append([bounds, str(entry["n"]), *(fmt.percent(entry.get(key)) for key in parts)])
    figures = table(title, ("Confidence", "Answers", "Mean confidence", "Good answers"), rows)
    return [chart("reliability", title, sentence, svg, figures, "Reliability")]


def _risk(found: Found) -> list[Part]:
    """Part of bad answers (risk) among the most confident part of the questions (coverage)."""
    curve = found.get("risk_coverage") or []
    if not curve:
        return []
    title, half = "Bad answers among the most confident", min(curve, key=lambda point: abs(point["coverage"] - 0.5))
    base = 1 - found["base_rate"] if fmt.is_number(found.get("base_rate")) else None
    sentence = (
        f"Of the most confident {fmt.percent(half['coverage'], 0)}, {fmt.percent(half['risk'])} are bad; of all, "
    )
    sentence += f"{fmt.percent(base)}."
    labels = ("Part of questions answered", "Part of bad answers", "most confident answers first")
    reference = ("all answers", base, base) if base is not None else None
    svg = charts.part_curve("risk", labels, [(point["coverage"], point["risk"]) for point in curve], reference)
    step = max(1, len(curve) // 10)
    rows = [[fmt.percent(point["coverage"], 0), fmt.percent(point["risk"])] for point in curve[step - 1 :: step]]
    figures = table(title, ("Answered", "Bad among those"), rows)
    return [chart("risk", title, sentence, svg, figures, "Risk and coverage")]


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


def _bounds(run: Evaluation, found: Any, *keys: str) -> dict[str, Part]:
    """Return {candidate: {"value", "low", "high"}} from `found` (candidate -> its figures), which have other `keys`."""
    names = ("value", "low", "high")
    return {c: {name: fmt.dig(found, c).get(key) for name, key in zip(names, keys, strict=True)} for c in run.labels}
