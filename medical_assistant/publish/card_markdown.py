"""Figures, cells and tables of a model card."""

from __future__ import annotations

from typing import Any


def figure(value: Any) -> str:
    """Return a number with four significant digits; other values as they are."""
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return f"{value:.4g}"


def table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """Return a Markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell(value) for value in line) + " |" for line in lines)


def cell(value: Any) -> str:
    """Return one line of Markdown in which `value` cannot end the cell or open a tag."""
    if isinstance(value, (list, tuple)):
        value = ", ".join(str(item) for item in value)
    return " ".join(figure(value).split()).replace("|", "\\|").replace("<", "&lt;")
