"""The report's charts as SVG, just as matplotlib writes it: report.css turns its colours into those of the page."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from medical_assistant.plotting import COLOURS, points

# report.css names each of these colours. A series has a marker and a dash of its own besides.
INK, MUTED, GRID, PAPER = "#111213", "#515253", "#d1d2d3", "#fdfeff"
SERIES = tuple(colour.lower() for colour in COLOURS[:6])
MARKERS = "osD^vP"
DASHES: Sequence[Any] = ("-", (0, (5, 1.5)), (0, (1, 1)), "-.", (0, (3, 1, 1, 1)), (0, (8, 2)))
WIDTH_IN = 4.6  # 331 units: as wide as a phone's column, so that text keeps its size there
LABEL_LENGTH = 34
STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a label with dollar signs is a label
    **dict.fromkeys(("font.size", "legend.fontsize"), 10.5),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize"), 10),
    **dict.fromkeys(("axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), MUTED),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
    **{"text.color": INK, "grid.color": GRID, "grid.linewidth": 0.8},
}


@matplotlib.rc_context(STYLE)
def loss_curves(name: str, histories: Mapping[str, Sequence[Mapping[str, Any]]], series: Mapping[str, int]) -> str:
    """Return SVG: training (thin) and validation (thick, with markers) loss by optimiser step of one or more runs.

    `series` is the place in `SERIES` of a run; one that it leaves out has that of its turn.
    """
    axes = _axes(2.9, "Optimiser step", "Loss (nats per token)")
    several = len(histories) > 1
    for place, (label, history) in enumerate(histories.items()):
        number = series.get(label, place) % len(SERIES)
        training: dict[str, Any] = {"alpha": 0.25} if several else {"alpha": 0.6, "label": "training"}
        axes.plot(*points(history, "loss"), color=SERIES[number], linewidth=1, **training)
        style: dict[str, Any] = {"color": SERIES[number], "marker": MARKERS[number], "linewidth": 2, "markersize": 4.5}
        axes.plot(*points(history, "eval_loss"), label=_label(label) if several else "validation", **style)
    return _svg(axes, name)


@matplotlib.rc_context(STYLE)
def histogram(name: str, values: Sequence[tuple[str, Sequence[float]]], xlabel: str) -> str:
    """Return SVG: how many questions have which score, one outline a candidate, a dotted line at each mean."""
    axes = _axes(2.7, xlabel, "Questions")
    known = [value for _, scores in values for value in scores] or [0.0, 1.0]
    margin = 0.0 if min(known) < max(known) else 0.5
    bins: dict[str, Any] = {"bins": 24, "range": (min(known) - margin, max(known) + margin)}
    for number, (label, scores) in enumerate(values):
        colour, dash = SERIES[number % len(SERIES)], DASHES[number % len(DASHES)]
        axes.hist(scores, histtype="stepfilled", color=colour, alpha=0.18, linewidth=0, **bins)
        axes.hist(scores, histtype="step", color=colour, linewidth=1.8, linestyle=dash, **bins)
        axes.plot([], [], color=colour, linewidth=1.8, linestyle=dash, label=_label(label))
        if scores:
            axes.axvline(sum(scores) / len(scores), color=colour, linewidth=1.2, linestyle=(0, (1, 1.5)))
    axes.yaxis.get_major_locator().set_params(integer=True)
    return _svg(axes, name)


@matplotlib.rc_context(STYLE)
def intervals(
    name: str, rows: Sequence[Mapping[str, Any]], xlabel: str, line: float | None = None, percent: bool = False
) -> str:
    """Return SVG: for each estimate its words and below them its interval as a bar: a phone's width is enough.

    A row has `label`; all but a heading have `value`, `low`, `high` (None where unknown), `text` and `series`, and
    may have `hollow` and `mark`, a dashed line of its own. `line` crosses all rows: 0 for differences.
    """
    axes = _axes(0.6 + 0.4 * max(len(rows), 1), xlabel)
    axes.spines["left"].set_visible(False)
    axes.set(yticks=[], ylim=(len(rows) - 0.55, -0.6))
    # x in parts of the axes, y in rows; on paper of their own, so that no line runs through them
    words: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center", "zorder": 4}
    words["bbox"] = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.2}
    for y, row in enumerate(rows):
        if "series" not in row:
            axes.text(0, y + 0.05, _label(row["label"], 46), weight="bold", **words)
            continue
        axes.text(0, y - 0.3, _label(row["label"], 28), color=MUTED, **words)
        axes.text(1, y - 0.3, _label(row["text"]), ha="right", **words)
        colour, marker = SERIES[row["series"] % len(SERIES)], MARKERS[row["series"] % len(MARKERS)]
        style: dict[str, Any] = {"markersize": 6.5, "markeredgewidth": 1.8}
        style["markerfacecolor"] = PAPER if row.get("hollow") else colour
        if row["low"] is not None and row["high"] is not None:
            axes.plot([row["low"], row["high"]], [y + 0.08] * 2, color=colour, linewidth=2.4, solid_capstyle="round")
        if row["value"] is not None:
            axes.plot([row["value"]], [y + 0.08], marker, color=colour, **style)
        if row.get("mark") is not None:
            axes.plot([row["mark"]] * 2, [y - 0.16, y + 0.32], color=INK, linewidth=1.3, linestyle=(0, (2, 1.2)))
    if line is not None:
        axes.axvline(line, color=INK, linewidth=1)
    axes.margins(x=0.06)
    if percent:
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    return _svg(axes, name)


@matplotlib.rc_context(STYLE)
def part_curve(
    name: str, labels: Sequence[str], entries: Sequence[Mapping[str, Any]], keys: Sequence[str], dashed: Sequence[Any]
) -> str:
    """Return SVG: a curve of two parts (0-1) with a dashed reference line.

    `labels` name x, y and the curve; `keys` are those of x, of y and maybe of a weight in `entries`: it makes points
    dots of that area. `dashed` are the name of the reference and its heights at 0 and at 1.
    """
    axes = _axes(3.2, *labels[:2])
    x, y, *weights = ([entry[key] for entry in entries] for key in keys)
    axes.plot(x, y, color=SERIES[1], linewidth=2, label=labels[2])
    for sizes in weights:
        areas = [20 + 140 * size / max(sizes) for size in sizes]
        axes.scatter(x, y, areas, SERIES[1], edgecolors=PAPER, zorder=3)
    axes.plot([0, 1], dashed[1:], color=MUTED, linewidth=1.2, linestyle=(0, (4, 2)), label=dashed[0])
    axes.set(xlim=(0, 1), ylim=(0, 1))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    return _svg(axes, name)


def printable(text: str) -> str:
    """Return text without what XML cannot hold (control characters, lone surrogates)."""
    return re.sub("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", str(text))


def _label(text: str, longest: int = LABEL_LENGTH) -> str:
    text = " ".join(printable(text).split())
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "\u2026"


def _axes(height_in: float, xlabel: str, ylabel: str = "") -> Any:
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    return figure.add_subplot(xlabel=_label(xlabel, 60), ylabel=_label(ylabel))


def _svg(axes: Any, name: str) -> str:
    """Return the drawing with a legend of what has a label. Equal figures make equal text."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        columns = 2 if sum(map(len, labels[:2])) < LABEL_LENGTH else 1
        axes.figure.legend(handles, labels, loc="outside upper left", ncols=columns, frameon=False, handlelength=2.4)
    text, nothing = io.StringIO(), dict.fromkeys(("Date", "Creator", "Format", "Type"))
    # The salt makes the ids of markers and clips: those of two charts on one page differ.
    with matplotlib.rc_context({"svg.hashsalt": name}), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # glyphs that matplotlib's font lacks; the reader's has them
        axes.figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    svg = text.getvalue()
    # Groups are numbered in every drawing from 1, and an id may stand on the page only once.
    return re.sub(r'<g id="[^"]*"', "<g", svg[svg.index("<svg") :])
