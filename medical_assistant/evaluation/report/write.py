"""The report of an evaluation: one page for a browser (report.html), one for the model card (report.md).

What it says stands once, in assets/evaluation/report.jinja. report.html.jinja and report.md.jinja include it.
"""

from __future__ import annotations

import html
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cache, partial
from pathlib import Path
from typing import Any

from jinja2 import ChainableUndefined, Environment, FileSystemLoader
from markupsafe import Markup

from medical_assistant.evaluation.report import charts
from medical_assistant.evaluation.report import format as fmt
from medical_assistant.evaluation.report.answers import example_groups
from medical_assistant.evaluation.report.evaluation import Evaluation
from medical_assistant.evaluation.settings import EvaluateSettings
from medical_assistant.files import ASSETS, write_whole

FOLDER = ASSETS / "evaluation"
FILES = ("report.html", "report.md")
VERDICTS = {  # the comparison's verdict: the word for a reader, its tone
    "better": ("Better", "good"),
    "worse": ("Worse", "bad"),
    "no measurable difference": ("No measurable difference", "even"),
    "too few questions": ("Too few questions to say", "even"),
}
# What is needed to measure again: these parts of metrics.json whole, and elsewhere these entries.
WHOLE = {"candidates", "data", "decoding", "hardware", "versions", "settings", "seconds", "judge"}
SINGLE = {"git_commit", "bleu_signature", "chrf_signature", "resamples", "seed", "primary", "file", "sha256", "method"}
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
    run = Evaluation(metrics, rows, losses or {})
    view = {
        "metrics": metrics,
        "run": run,
        "losses": run.training_losses(),
        "spread": run.spread(),
        "groups": example_groups(run),
        "command": reproduce_command(metrics["settings"]),
        "settings": list(settings_of(metrics)),
    }
    for name in FILES:
        write_whole(folder / name, render(name, view))
    return folder / FILES[0]


def render(name: str, view: Mapping[str, Any]) -> str:
    """Return report.html or report.md, the `name`.

    Answers are text of models: whatever a template does not say itself is escaped, and the page's policy forbids
    scripts and everything that would have to be loaded.
    """
    css = Markup((FOLDER / "report.css").read_text(encoding="utf-8"))
    text = _environment(name).get_template(f"{name}.jinja").render(view, css=css)
    # Answers may hold control characters, or half of a surrogate pair, which UTF-8 cannot write.
    text = charts.printable(text).strip() + "\n"
    return re.sub(r"\n{3,}", "\n\n", text) if name.endswith(".md") else text


@cache
def _environment(name: str) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=ChainableUndefined,  # a part that metrics.json lacks
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=escape if name.endswith(".md") else None,
    )
    environment.filters |= {"markdown": escape, "line": escape_line, "quotation": _quotation, "fenced": _fenced}
    environment.filters |= {"summary": _summary, "lines": _lines, "capital": fmt.capital}
    environment.globals |= {name: found for name, found in vars(fmt).items() if not name.startswith("_")}
    environment.globals |= {"charts": charts, "missing": _missing, "partial": partial, "VERDICTS": VERDICTS}
    return environment


def reproduce_command(settings: Mapping[str, Any]) -> str:
    """Return the command line that `settings` (name -> value, as `EvaluateSettings.as_json`) came from.

    Defaults and empty values are left out, and `resume`, which belongs to an interrupted run.
    """
    defaults = {option.name: option.default for option in fields(EvaluateSettings)}
    words = ["python", "evaluate.py"]
    for name, value in settings.items():
        option = name.replace("_", "-")
        if name == "resume" or value in (None, "", [], defaults.get(name)):
            continue
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(words)


def settings_of(found: Any, *path: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each setting, hash and version in metrics.json: see `WHOLE` and `SINGLE`."""
    items = found.items() if isinstance(found, Mapping) else [(entry.get("name", ""), entry) for entry in found]
    for key, value in items:
        if isinstance(value, Mapping) or (isinstance(value, list) and value and isinstance(value[0], Mapping)):
            yield from settings_of(value, *path, str(key))
        elif value is not None and (key in SINGLE or WHOLE & set(path)):
            text = {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
            text = ", ".join(map(str, value)) if isinstance(value, list) else text
            yield ": ".join((*path, str(key))), text or "none"


def _missing(found: Any, reason: str = "This evaluation was not asked for it.") -> str:
    """Return why a section of metrics.json has no figures, "" where it has."""
    if not found:
        return reason
    return "" if found.get("status", "done") == "done" else str(found.get("reason") or "No reason was given.")


def escape(text: Any) -> Markup:
    """Return `text` on one line as Markdown that shows just that, within a line or a table cell."""
    if isinstance(text, Markup):
        return text
    line = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;")
    return Markup(LINK_START.sub(lambda found: f"{found[0][:-1]}\\{found[0][-1]}", SPECIAL.sub(r"\\\1", line)))


def escape_line(text: Any) -> Markup:
    """Return `text` as `escape` does, and so that it begins no list, heading or quotation."""
    line = " ".join(str(escape(text)).split())
    start = LINE_START.match(line)
    if not start:
        return Markup(line)
    # A number makes a list by the mark behind it; everything else by itself.
    return Markup(f"{start[0]}\\{line[start.end() :]}" if start[0].isdigit() else f"\\{line}")


def _quotation(text: str) -> Markup:
    return Markup("\n>\n".join(f"> {escape_line(line)}" for line in text.splitlines() if line.strip()))


def _lines(text: str) -> Markup:
    """Return the lines of a table without the empty ones between them."""
    return Markup("\n".join(line for line in str(text).splitlines() if line.strip()))


def _fenced(text: str) -> Markup:
    """Return a block of code between fences longer than any in it."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return Markup(f"{fence}bash\n{text}\n{fence}")


def _summary(text: str) -> Markup:
    """Return the summary of a folded part, which GitHub reads as HTML, and another reader perhaps as Markdown."""
    return Markup(html.escape(" ".join(text.split())).replace("[", "&#91;").replace("`", "&#96;"))
