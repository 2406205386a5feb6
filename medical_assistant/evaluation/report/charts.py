"""The report's charts, drawn by matplotlib as inline SVG (`report_svg`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medical_assistant.evaluation.report.report_svg import INK, MUTED, PAPER, SERIES, printable, themed_figure

# A series has a marker and a dash of its own beside its colour.
MARKERS = "osD^vP"
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), "-.", (0, (3, 1, 1, 1)), (0, (8, 2)))
LABEL_LENGTH = 34


@dataclass(frozen=True)
class Row:
    """One estimate of `intervals`: a value with its interval, a label on the left and words on the right."""

    label: str
    value: float | None
    low: float | None
    high: float | None
    text: str = ""
    series: int = 0
    filled: bool = True
    mark: float | None = None
    heading: str = ""


def loss_curves(
    name: str,
    title: str,
    sentence: str,
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    series: Mapping[str, int] | None = None,
) -> str:
    """Return SVG: training (thin) and validation (thick, with markers) loss by optimiser step of one or more runs.

    `series` is the place in `SERIES` of a run; without it runs take them in turn.
    """
    with themed_figure(name, title, sentence, 2.9) as (figure, done):
        axes = figure.add_subplot(xlabel="Optimiser step", ylabel="Loss (nats per token)")
        several = len(histories) > 1
        for place, (label, history) in enumerate(histories.items()):
            number = (series or {}).get(label, place)
            colour = SERIES[number % len(SERIES)]
            steps, losses = points(history, "loss")
            axes.plot(steps, losses, color=colour, linewidth=1, alpha=0.25 if several else 0.6)
            style = {"color": colour, "linewidth": 2, "marker": MARKERS[number % len(MARKERS)], "markersize": 4.5}
            axes.plot(*points(history, "eval_loss"), label=_label(label) if several else "validation", **style)
            if not several:
                axes.lines[0].set_label("training")
        _legend(figure, axes)
    return done[0]


def histogram(name: str, title: str, sentence: str, values: Mapping[str, Sequence[float]], xlabel: str) -> str:
    """Return SVG: how many questions have which score, one outline a candidate, a dotted line at each mean."""
    with themed_figure(name, title, sentence, 2.7) as (figure, done):
        axes = figure.add_subplot(xlabel=_label(xlabel, 60), ylabel="Questions")
        known = [value for scores in values.values() for value in scores]
        low, high = (min(known), max(known)) if known else (0.0, 1.0)
        if low == high:
            low, high = low - 0.5, high + 0.5
        edges = [low + (high - low) * step / 24 for step in range(25)]
        for number, (label, scores) in enumerate(values.items()):
            colour, dash = SERIES[number % len(SERIES)], DASHES[number % len(DASHES)]
            axes.hist(scores, edges, histtype="stepfilled", color=colour, alpha=0.18, linewidth=0)
            axes.hist(scores, edges, histtype="step", color=colour, linewidth=1.8, linestyle=dash)
            axes.plot([], [], color=colour, linewidth=1.8, linestyle=dash, label=_label(label))
            if scores:
                axes.axvline(sum(scores) / len(scores), color=colour, linewidth=1.2, linestyle=(0, (1, 1.5)))
        axes.yaxis.get_major_locator().set_params(integer=True)
        _legend(figure, axes)
    return done[0]


def intervals(
    name: str,
    title: str,
    sentence: str,
    rows: Sequence[Row],
    xlabel: str,
    line: float | None = None,
    percent: bool = False,
) -> str:
    """Return SVG: a row for each estimate, the words above it and the interval as a bar.

    `line` is a vertical line across all rows (0 for differences); a row's `mark` is a dashed one of its own (chance).
    An estimate that is not `filled` is drawn hollow. Words stand above the bars so that a phone's width is enough.
    """
    lines = sum(1.75 if row.heading else 1.0 for row in rows)
    with themed_figure(name, title, sentence, 0.6 + 0.4 * max(lines, 1)) as (figure, done):
        axes = figure.add_subplot(xlabel=_label(xlabel, 60))
        axes.spines["left"].set_visible(False)
        axes.set_yticks([])
        # x in parts of the axes, y in rows; on paper of their own, so that no line runs through them
        words = {"transform": axes.get_yaxis_transform(), "va": "center", "zorder": 4}
        words["bbox"] = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.2}
        y = 0.0
        for row in rows:
            if row.heading:
                y += 0.75
                axes.text(0, y - 0.8, _label(row.heading, 46), weight="bold", **words)
            axes.text(0, y - 0.3, _label(row.label, 28), color=INK if line == 0 else MUTED, **words)
            axes.text(1, y - 0.3, _label(row.text), ha="right", **words)
            _estimate(axes, row, y + 0.08)
            y += 1
        if line is not None:
            axes.axvline(line, color=INK, linewidth=1)
        axes.set_ylim(y - 0.55, -0.6)
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.06)
        if percent:
            _percent(axes.xaxis)
    return done[0]


def _estimate(axes: Any, row: Row, y: float) -> None:
    colour = SERIES[row.series % len(SERIES)]
    if row.low is not None and row.high is not None:
        axes.plot([row.low, row.high], [y, y], color=colour, linewidth=2.4, solid_capstyle="round")
    if row.value is not None:
        face = colour if row.filled else PAPER
        marker = MARKERS[row.series % len(MARKERS)]
        axes.plot([row.value], [y], marker, color=colour, markerfacecolor=face, markersize=6.5, markeredgewidth=1.8)
    if row.mark is not None:
        axes.plot([row.mark, row.mark], [y - 0.24, y + 0.24], color=INK, linewidth=1.3, linestyle=(0, (2, 1.2)))


def reliability(name: str, title: str, sentence: str, bins: Sequence[Mapping[str, Any]]) -> str:
    """Return SVG: observed part of good answers against stated confidence, a dot a bin, its area the bin's size.

    `bins` have `mean_confidence` and `observed` (0-1) and `n`. On the dashed diagonal the two are equal.
    """
    with themed_figure(name, title, sentence, 3.4) as (figure, done):
        axes = figure.add_subplot(xlabel="Stated confidence", ylabel="Part of good answers")
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1.2, linestyle=(0, (4, 2)), label="perfectly calibrated")
        full = [entry for entry in bins if entry.get("n")]
        x = [entry["mean_confidence"] for entry in full]
        y = [entry["observed"] for entry in full]
        most = max((entry["n"] for entry in full), default=1)
        axes.plot(x, y, color=SERIES[1], linewidth=1.6, label="measured")
        axes.scatter(x, y, [20 + 140 * entry["n"] / most for entry in full], SERIES[1], edgecolors=PAPER, zorder=3)
        axes.set(xlim=(0, 1), ylim=(0, 1))
        _percent(axes.xaxis)
        _percent(axes.yaxis)
        _legend(figure, axes)
    return done[0]


def risk_coverage(
    name: str, title: str, sentence: str, curve: Sequence[Mapping[str, float]], base_risk: float | None
) -> str:
    """Return SVG: part of bad answers (`risk`) among the most confident part (`coverage`), both 0-1.

    `base_risk` is the risk when every question is answered: a dashed line.
    """
    with themed_figure(name, title, sentence, 2.9) as (figure, done):
        axes = figure.add_subplot(xlabel="Part of questions answered", ylabel="Part of bad answers")
        coverage, risk = [point["coverage"] for point in curve], [point["risk"] for point in curve]
        axes.plot(coverage, risk, color=SERIES[1], linewidth=2, label="most confident answers first")
        if base_risk is not None:
            axes.axhline(base_risk, color=MUTED, linewidth=1.2, linestyle=(0, (4, 2)), label="all answers")
        axes.set(xlim=(0, 1), ylim=(0, 1))
        _percent(axes.xaxis)
        _percent(axes.yaxis)
        _legend(figure, axes)
    return done[0]


def points(history: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Return (steps, values) of the entries of a training.json's `history` that have a finite value under `key`."""
    found = [(entry["step"], entry[key]) for entry in history if key in entry and "step" in entry]
    found = [(step, value) for step, value in found if value is not None and math.isfinite(value)]
    return [step for step, _ in found], [value for _, value in found]


def _legend(figure: Any, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        columns = 2 if sum(len(label) for label in labels[:2]) < LABEL_LENGTH else 1
        figure.legend(handles, labels, loc="outside upper left", ncols=columns, frameon=False, handlelength=2.4)


def _percent(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))


def _label(text: str, longest: int = LABEL_LENGTH) -> str:
    text = " ".join(printable(text).split())
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "\u2026"
