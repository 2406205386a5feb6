"""Loss curves as an image, and the colours of every plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Okabe and Ito's colours (https://jfly.uni-koeln.de/color/): told apart in every kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def points(history: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Return (steps, values) of the entries of a training.json's `history` that have a finite value under `key`."""
    found = [(entry["step"], entry[key]) for entry in history if key in entry and "step" in entry]
    found = [(step, value) for step, value in found if value is not None and math.isfinite(value)]
    return [step for step, _ in found], [value for _, value in found]


def write_loss_plot(histories: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> Path:
    """Return `path`, a PNG of the training (faint) and validation (strong) losses of one or more runs.

    `histories` maps a run's label to the `history` of its training.json: entries with `step` and `loss` or
    `eval_loss`. Runs of different lengths share the axis of steps. On white, so that it can be read on a
    dark page too. A run without losses has a name and no line.
    """
    # The object-oriented interface with Agg: no window, no state of pyplot's shared between callers.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="Optimiser step", ylabel="Loss on the answer (nats per token)")
    several = len(histories) > 1
    for number, (label, history) in enumerate(histories.items()):
        colour = COLOURS[number % len(COLOURS)]
        # Batches of similar length make the training loss jump: of several runs it is a background.
        name = f"_{label}" if several else "training"  # matplotlib leaves names with _ out of the legend
        axes.plot(*points(history, "loss"), color=colour, linewidth=1, alpha=0.2 if several else 0.55, label=name)
        name = label if several else "validation"
        axes.plot(*points(history, "eval_loss"), color=colour, linewidth=2.2, marker="o", label=name)
    title = None if several else f"Loss, {next(iter(histories), '')}"
    axes.set_title(title or "Validation loss (strong) and training loss (faint)", loc="left")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        figure.legend(loc="outside right upper", fontsize="small", frameon=False)
    # Without the date and version that matplotlib adds, equal losses make equal bytes.
    figure.savefig(path, format="png", metadata={"Software": None})
    return path
