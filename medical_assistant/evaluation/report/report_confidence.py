"""The report's sections on confidence and on the gate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medical_assistant.evaluation.report import charts
from medical_assistant.evaluation.report.report_parts import (
    DASH,
    Cell,
    Chart,
    Heading,
    Paragraph,
    Section,
    Table,
    capital,
    counted,
    is_number,
    label_of,
    number,
    percent,
    start_section,
)


def confidence_section(metrics: Mapping[str, Any]) -> Section:
    """Is the confidence that the application shows worth its name: calibration and ranking on unseen questions."""
    section, found = start_section(
        "confidence",
        "Confidence",
        metrics.get("confidence"),
        "The application shows how often answers like this one were good. Half of the questions fitted that figure; "
        "everything here is measured on the other half.",
    )
    if section.not_run:
        return section
    good, candidate = (
        str(found.get("label") or "not recorded"),
        label_of(metrics["candidates"], str(found.get("candidate"))),
    )
    section.add(
        Paragraph(
            f"{capital(counted(found.get('n_fit')))} fitted it and {counted(found.get('n_test'))} tested it, "
            f"answered by {candidate}. A good answer is: {good.rstrip('.')}. "
            f"{percent(found.get('base_rate'))} of the answers are good."
        )
    )
    for heading, chart in (("Reliability", _reliability(found)), ("Risk and coverage", _risk(found))):
        section.add(*((Heading(heading), chart) if chart else ()))
    names = {
        "ece": "Expected calibration error",
        "ece_of_perfect": "The same if perfectly calibrated, by chance alone",
        "ece_uncalibrated": "The same before calibration",
        "auroc": "AUROC: a good answer ranks above a bad one",
        "aurc": "Area under risk and coverage",
        "aurc_base_rate": "The same in random order",
        "brier": "Brier score",
        "brier_base_rate": "The same of one constant confidence",
    }
    rows: list[list[str | Cell]] = []
    for key, name in names.items():
        if key in found:
            bounds = (found.get(f"{key}_low"), found.get(f"{key}_high"))
            interval = " to ".join(number(bound) for bound in bounds) if all(map(is_number, bounds)) else DASH
            better = "higher" if key == "auroc" else "lower"
            rows.append([name, better, number(found[key]), interval])
    section.add(Table("Measures of confidence", ("Measure", "Better", "Value", "95 % interval"), rows, words=(0, 1)))
    how = ", ".join(str(signal).replace("_", " ") for signal in found.get("signals") or ())
    section.add(Paragraph(f"Method: {found.get('method', 'not recorded')}. Signals: {how or 'none'}.", quiet=True))
    return section


def _reliability(found: Mapping[str, Any]) -> Chart | None:
    bins = [entry for entry in found.get("reliability") or () if entry.get("n")]
    if not bins:
        return None
    sentence = (
        f"Over {counted(len(bins), 'bin')} the stated confidence and the observed part differ by "
        f"{percent(found.get('ece'))} on average. Points below the dashed line are too sure; larger ones hold more "
        "answers."
    )
    rows = [
        [f"{percent(entry.get('low'), 0)} to {percent(entry.get('high'), 0)}", str(entry["n"])]
        + [percent(entry.get(key)) for key in ("mean_confidence", "observed")]
        for entry in bins
    ]
    title = "Stated confidence against good answers"
    table = Table(title, ("Confidence", "Answers", "Mean confidence", "Good answers"), rows)
    return Chart(title, sentence, charts.reliability("reliability", title, sentence, bins), table)


def _risk(found: Mapping[str, Any]) -> Chart | None:
    curve = found.get("risk_coverage") or []
    if not curve:
        return None
    half = min(curve, key=lambda point: abs(point["coverage"] - 0.5))
    base = 1 - found["base_rate"] if is_number(found.get("base_rate")) else None
    sentence = (
        f"Of the most confident {percent(half['coverage'], 0)}, {percent(half['risk'])} are bad; "
        f"of all, {percent(base)}."
    )
    step = max(1, len(curve) // 10)
    rows = [[percent(point["coverage"], 0), percent(point["risk"])] for point in curve[step - 1 :: step]]
    title = "Bad answers among the most confident"
    table = Table(title, ("Answered", "Bad among those"), rows)
    return Chart(title, sentence, charts.risk_coverage("risk", title, sentence, curve, base), table)


def gate_section(metrics: Mapping[str, Any]) -> Section:
    """The thresholds that a release must pass."""
    section, gate = start_section(
        "gate",
        "Gate",
        metrics.get("gate"),
        "A gate is a file of thresholds that were written down before the figures were known.",
        "No gate was given (--gate FILE).",
    )
    if section.not_run:
        return section
    checks = gate.get("checks") or []
    failed = sum(not check.get("passed") for check in checks)
    word = "The gate is passed" if gate.get("passed") else "The gate is not passed"
    section.add(Paragraph(f"{word}: {len(checks) - failed} of {counted(len(checks), 'check')} passed."))
    rows: list[list[str | Cell]] = [
        [
            str(check.get("name", "")),
            number(check.get("value"), 4),
            number(check.get("bound"), 4),
            Cell("passed", "good") if check.get("passed") else Cell("failed", "bad"),
            str(check.get("reason") or ""),
        ]
        for check in checks
    ]
    section.add(Table("Checks of the gate", ("Check", "Value", "Bound", "Outcome", "Reason"), rows, words=(0, 3, 4)))
    return section
