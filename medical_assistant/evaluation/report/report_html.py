"""A report's sections as one HTML page that loads nothing: style sheet and charts stand in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medical_assistant.evaluation.report.report_parts import Section, capital, counted, label_of
from medical_assistant.models.presets import ASSETS

FOLDER = ASSETS / "evaluation"


def render_html(metrics: Mapping[str, Any], sections: Sequence[Section]) -> str:
    """Return the page. Answers are text of models: the template escapes every value, and the page's policy
    (Content-Security-Policy) forbids scripts and everything that would have to be loaded."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["drawing"] = Markup  # our own SVG, whose labels matplotlib has escaped
    css = (FOLDER / "report.css").read_text(encoding="utf-8")
    page = environment.get_template("report.html.jinja").render(
        title=report_title(metrics), subtitle=report_subtitle(metrics), sections=sections, css=Markup(css)
    )
    return page.lstrip()


def report_title(metrics: Mapping[str, Any]) -> str:
    candidates = metrics["candidates"]
    reference, *others = (label_of(candidates, key) for key in candidates)
    if not others:
        return f"{capital(reference)} alone"
    return f"{capital(', '.join(others))} against {reference}"


def report_subtitle(metrics: Mapping[str, Any]) -> str:
    """The models, the questions and the data in a sentence or two."""
    candidates = metrics["candidates"]
    names = [label_of(candidates, key) + _model(candidates[key]) for key in candidates]
    told = f"{capital(counted(metrics['n'], 'held-back question'))}, the same for every candidate, answered greedily. "
    return told + "Candidates: " + "; ".join(names) + "."


def _model(candidate: Mapping[str, Any]) -> str:
    model, adapter = candidate.get("model"), candidate.get("adapter")
    if not model:
        return ""
    return f" ({model} with {adapter})" if adapter else f" ({model})"
