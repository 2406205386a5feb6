"""The report of an evaluation: one page for a browser (report.html), one for the model card (report.md).

`build_view` turns metrics.json and the rows of predictions.jsonl into one plain dict of text; two templates of
assets/evaluation write it down.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from medical_assistant.evaluation.report import charts, checks, comparison
from medical_assistant.evaluation.report import format as fmt
from medical_assistant.evaluation.report.answers import answers
from medical_assistant.evaluation.report.parts import Evaluation
from medical_assistant.evaluation.report.reproduce import reproduce
from medical_assistant.files import write_whole
from medical_assistant.models.presets import ASSETS

FOLDER = ASSETS / "evaluation"
FILES = ("report.html", "report.md")
PARTS = {
    "verdict": comparison.verdict, "figures": comparison.key_figures, "scores": comparison.scores,
    "losses": comparison.training_losses, "distribution": comparison.distribution, "effect": comparison.effect,
    "strata": comparison.strata, "knowledge": checks.knowledge, "safety": checks.safety,
    "statements": checks.statements, "confidence": checks.confidence, "gate": checks.gate, "answers": answers,
    "settings": reproduce,
}  # fmt: skip
NOTHING = dict.fromkeys(("verdicts", "figures", "charts", "tables", "notes", "groups"), ()) | {
    "command": "",
    "list": None,
}
# What means something in Markdown wherever it stands, and what only where a line starts. "&" and "<" become entities.
SPECIAL = re.compile(r"([\\`*_\[\]|~$])")
LINE_START = re.compile(r"[-+=:#>]|\d+(?=[.)])")
LINK_START = re.compile(r"\b(?:https?|ftp):|\bwww\.", re.IGNORECASE)


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
    view = build_view(metrics, rows, losses)
    for name in FILES:
        write_whole(folder / name, render(name, view))
    return folder / FILES[0]


def build_view(
    metrics: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    losses: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> dict[str, Any]:
    """Return what the templates write: `title`, `subtitle`, and `sections` with their `id` and `title`.

    A section may have: not_run (the reason why it has no figures), told (paragraphs), command, verdicts, figures,
    charts, tables, notes, list, groups (of examples). Everything in them is text for a reader, or SVG.
    """
    run = Evaluation(metrics, rows, losses or {})
    known = {"n": fmt.counted(metrics["n"], "held-back question"), "metric": run.metric}
    sections = []
    for id, texts in yaml.safe_load((FOLDER / "report.yaml").read_text(encoding="utf-8")).items():
        found = metrics.get(texts["of"]) or {} if "of" in texts else {}
        missing = ""
        if "of" in texts and not found:
            missing = texts.get("missing", "This evaluation was not asked for it.")
        elif found.get("status", "done") != "done":
            missing = str(found.get("reason") or "No reason was given.")
        parts = PARTS[id](run, found) if not missing or id == "verdict" else {}
        told = [texts["intro"].format(**known)] if "intro" in texts else []
        told += [text for text in parts.pop("told", ()) if text]
        sections.append({"id": id, "title": texts["title"], **NOTHING, "not_run": missing, "told": told, **parts})
    reference, *others = run.labels.values()
    title = f"{fmt.capital(', '.join(others))} against {reference}" if others else f"{fmt.capital(reference)} alone"
    names = []
    for key, label in run.labels.items():
        model, adapter = (metrics["candidates"][key].get(name) for name in ("model", "adapter"))
        names.append(label + (f" ({model}{f' with {adapter}' if adapter else ''})" if model else ""))
    subtitle = f"{fmt.capital(known['n'])}, the same for every candidate, answered greedily. "
    return {"title": title, "subtitle": f"{subtitle}Candidates: {'; '.join(names)}.", "sections": sections}


def render(name: str, view: Mapping[str, Any]) -> str:
    """Return report.html or report.md, the `name`. Answers are text of models: whatever a template does not say itself
    is escaped, and the page's policy forbids scripts and everything that would have to be loaded."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=escape if name.endswith(".md") else None,
    )
    environment.filters |= FILTERS
    css = Markup((FOLDER / "report.css").read_text(encoding="utf-8"))
    text = environment.get_template(f"{name}.jinja").render(view, css=css)
    # Answers may hold control characters, or half of a surrogate pair, which UTF-8 cannot write.
    text = charts.printable(text).lstrip()
    return re.sub(r"\n{3,}", "\n\n", text) if name.endswith(".md") else text


def escape(text: Any) -> Markup:
    """Return `text` on one line as Markdown that shows just that, within a line or a table cell."""
    if isinstance(text, Markup):
        return text
    line = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;")
    return Markup(LINK_START.sub(lambda found: f"{found[0][:-1]}\\{found[0][-1]}", SPECIAL.sub(r"\\\1", line)))


def escape_line(text: str) -> Markup:
    """Return `text` as `escape` does, and so that it begins no list, heading or quotation."""
    line = str(escape(text))
    start = LINE_START.match(line)
    if not start:
        return Markup(line)
    # A number makes a list by the mark behind it; everything else by itself.
    return Markup(f"{start[0]}\\{line[start.end() :]}" if start[0].isdigit() else f"\\{line}")


def _quotation(text: str) -> Markup:
    return Markup("\n>\n".join(f"> {escape_line(line)}" for line in text.splitlines() if line.strip()))


def _fenced(text: str) -> Markup:
    """Return a block of code between fences longer than any in it."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return Markup(f"{fence}bash\n{text}\n{fence}")


def _summary(text: str) -> Markup:
    """Return the summary of a folded part, which GitHub reads as HTML, and another reader perhaps as Markdown."""
    return Markup(html.escape(" ".join(text.split())).replace("[", "&#91;").replace("`", "&#96;"))


FILTERS = {"markdown": escape, "line": escape_line, "quotation": _quotation, "fenced": _fenced, "summary": _summary}
