"""A report's sections as GitHub Markdown, for the model card: tables and words, no charts, no HTML from answers."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from medical_assistant.evaluation.report.report_html import report_subtitle, report_title
from medical_assistant.evaluation.report.report_parts import (
    Block,
    Bullets,
    Cell,
    Chart,
    Command,
    Example,
    Heading,
    KeyFigures,
    Paragraph,
    Section,
    Table,
    Text,
    Verdict,
)

LONGEST_CHARACTERS = 700  # of a text in an example
# What means something in Markdown wherever it stands, and what only where a line starts. "&" and "<" become entities.
SPECIAL = re.compile(r"([\\`*_\[\]|~$])")
LINE_START = re.compile(r"[-+=:#>]|\d+(?=[.)])")
LINK_START = re.compile(r"\b(?:https?|ftp):|\bwww\.", re.IGNORECASE)


def render_markdown(metrics: Mapping[str, Any], sections: Sequence[Section]) -> str:
    """Return the report, the verdict first."""
    parts = [f"# Evaluation report: {escape(report_title(metrics))}", escape(report_subtitle(metrics))]
    for section in sections:
        parts.append(f"## {escape(section.title)}")
        if section.not_run:
            parts.append(f"**Not run.** {escape(section.not_run)}")
        parts += [text for text in map(_block, section.blocks) if text]
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Return `text` on one line as Markdown that shows just that, within a line or a table cell."""
    text = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;")
    return LINK_START.sub(lambda found: f"{found[0][:-1]}\\{found[0][-1]}", SPECIAL.sub(r"\\\1", text))


def escape_line(text: str) -> str:
    """Return `text` as `escape` does, and so that it begins no list, heading or quotation."""
    text = escape(text)
    start = LINE_START.match(text)
    if not start:
        return text
    # A number makes a list by the mark behind it; everything else by itself.
    return f"{start[0]}\\{text[start.end() :]}" if start[0].isdigit() else f"\\{text}"


def _block(block: Block) -> str:
    if isinstance(block, Paragraph):
        return escape_line(block.text)
    if isinstance(block, Heading):
        return f"### {escape(block.text)}"
    if isinstance(block, Bullets):
        return f"### {escape(block.title)}\n\n" + "\n".join(f"- {escape(item)}" for item in block.items)
    if isinstance(block, Verdict):
        return f"**{escape(block.name)}: {escape(block.word)}.** {escape(block.sentence)}"
    if isinstance(block, KeyFigures):
        return _key_figures(block)
    if isinstance(block, Command):
        longest = max((len(run) for run in re.findall("`+", block.text)), default=0)
        fence = "`" * max(3, longest + 1)
        return f"{fence}bash\n{block.text}\n{fence}"
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Chart):
        return f"**{escape(block.title)}.** {escape(block.sentence)}" + (
            f"\n\n{_table(block.figures, caption=False)}" if block.figures else ""
        )
    return _example(block)


def _key_figures(block: KeyFigures) -> str:
    rows = []
    for item in block.items:
        values = "; ".join(f"{candidate}: {value}" if candidate else value for candidate, value in item.values)
        rows.append([item.label, values, item.note])
    return _table(Table("", ("Figure", "Value", "Note"), rows, words=(0, 1, 2)), caption=False)


def _table(table: Table, caption: bool = True) -> str:
    rules = ["---" if column in table.words else "---:" for column in range(len(table.columns))]
    lines = [[escape(column) for column in table.columns], rules]
    lines += [[escape(cell.text if isinstance(cell, Cell) else cell) for cell in row] for row in table.rows]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"**{escape(table.caption)}**\n\n{text}" if caption and table.caption else text


def _example(example: Example) -> str:
    """A folded example. GitHub reads the summary as HTML and, after an empty line, the rest as Markdown."""
    question = " ".join((example.question.shown + " " + example.question.folded).split())
    question = question if len(question) <= 200 else question[:199].rstrip() + "\u2026"
    summary = html.escape(f"{example.number}. {question} ({example.summary})")
    summary = summary.replace("[", "&#91;").replace("`", "&#96;")  # should a reader take it for Markdown after all
    texts = [*example.answers, example.reference]
    body = "\n\n".join(_text(text) for text in texts)
    return f"<details>\n<summary>{summary}</summary>\n\n{body}\n\n</details>"


def _text(text: Text) -> str:
    whole = text.shown + (f" {text.folded}" if text.folded else "")
    note = text.note
    if len(whole) > LONGEST_CHARACTERS:
        whole, note = whole[: LONGEST_CHARACTERS - 1].rstrip() + "\u2026", "The rest is in predictions.jsonl."
    lines = [escape_line(line) for line in whole.splitlines() if line.strip()] or ["Nothing was written."]
    facts = " ".join([f"{text.facts}."] * bool(text.facts) + [f"Cut here: {note}"] * bool(note))
    return f"**{escape(text.label)}.** {escape(facts)}".rstrip() + "\n\n" + "\n>\n".join(f"> {line}" for line in lines)
