"""The report of an evaluation: one page for a browser (report.html), one for the model card (report.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medical_assistant.evaluation.report.report_answers import answers_section
from medical_assistant.evaluation.report.report_checks import knowledge_section, safety_section, statements_section
from medical_assistant.evaluation.report.report_claims import claims_section, seed_claims
from medical_assistant.evaluation.report.report_confidence import confidence_section, gate_section
from medical_assistant.evaluation.report.report_effects import (
    distribution_section,
    effect_section,
    losses_section,
    strata_section,
)
from medical_assistant.evaluation.report.report_html import render_html
from medical_assistant.evaluation.report.report_markdown import render_markdown
from medical_assistant.evaluation.report.report_parts import Section
from medical_assistant.evaluation.report.report_scores import key_figures_section, scores_section, verdict_section
from medical_assistant.evaluation.report.report_settings import settings_section
from medical_assistant.evaluation.report.report_svg import printable
from medical_assistant.files import write_whole

HTML, MARKDOWN = "report.html", "report.md"


def write_report(
    folder: Path,
    metrics: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    losses: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> Path:
    """Return the path of report.html; write it and report.md into `folder`.

    `metrics` is the content of metrics.json, `rows` are those of predictions.jsonl. `losses` maps a run's name to the
    `history` of its training.json; None leaves out the loss curves. A section that did not run stands in both files
    with its reason. report.html loads nothing from anywhere and runs no script. Equal arguments make equal files.
    """
    sections = build_sections(metrics, rows, losses)
    for name, text in ((HTML, render_html(metrics, sections)), (MARKDOWN, render_markdown(metrics, sections))):
        # Answers may hold control characters, or half of a surrogate pair, which UTF-8 cannot write.
        write_whole(folder / name, printable(text))
    return folder / HTML


def build_sections(
    metrics: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    losses: Mapping[str, Sequence[Mapping[str, Any]]] | None,
) -> list[Section]:
    """Return the report's sections in the order in which they are read."""
    claims = metrics["seed_claims"] if "seed_claims" in metrics else seed_claims()
    return [
        verdict_section(metrics),
        key_figures_section(metrics),
        scores_section(metrics),
        losses_section(metrics, losses),
        distribution_section(metrics, rows),
        effect_section(metrics),
        strata_section(metrics),
        knowledge_section(metrics),
        claims_section(claims),
        safety_section(metrics),
        statements_section(metrics),
        confidence_section(metrics),
        gate_section(metrics),
        answers_section(metrics, rows),
        settings_section(metrics),
    ]
