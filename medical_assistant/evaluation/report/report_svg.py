"""A matplotlib figure as inline SVG whose colours are the page's.

matplotlib writes text as text and plain hex colours. Here each colour becomes a CSS variable, so that one drawing
serves the light and the dark page; what no page needs (metadata, fonts, unused ids) is left out.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

from medical_assistant.plotting import COLOURS

# Drawn colour -> variable of assets/evaluation/report.css. The series are Okabe and Ito's (plotting.py).
INK, MUTED, GRID, PAPER = "#111213", "#515253", "#d1d2d3", "#fdfeff"
SERIES = COLOURS[:6]
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    PAPER: "--card",
    **{colour.lower(): f"--series-{number}" for number, colour in enumerate(SERIES, 1)},
}
WIDTH_IN = 4.6  # 331 units: as wide as a phone's column, so that text keeps its size there


@contextmanager
def themed_figure(name: str, title: str, sentence: str, height_in: float) -> Iterator[tuple[Any, list[str]]]:
    """Yield (an empty figure, a list that holds its SVG when the block has ended)."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    done: list[str] = []
    with matplotlib.rc_context(_style(name)), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # glyphs that matplotlib's font lacks; the reader's has them
        figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure, done
        text = io.StringIO()
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    done.append(_themed(text.getvalue(), name, title, sentence))


def _style(name: str) -> Any:
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": name,  # equal figures make equal bytes; ids of two charts on one page differ
        "text.parse_math": False,  # a label with dollar signs is a label
        "font.size": 10.5,
        "text.color": INK,
        "axes.labelcolor": MUTED,
        "axes.edgecolor": MUTED,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelsize": 10,
        "ytick.labelsize": 10,
        "legend.fontsize": 10.5,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "grid.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }


def _themed(svg: str, name: str, title: str, sentence: str) -> str:
    root = ElementTree.fromstring(svg[svg.index("<svg") :])
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {key.rpartition("}")[2]: _attribute(key, value) for key, value in element.attrib.items()}
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in ("style", "metadata"):
                parent.remove(child)
        parent.tail = None
        if parent.tag != "text":
            parent.text = None
    used = set(re.findall(r"[\"(]#(\w+)", ElementTree.tostring(root, "unicode")))
    for element in root.iter():
        if element.get("id") not in used:
            element.attrib.pop("id", None)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-labelledby": f"{name}-title {name}-text"}
    for number, (tag, part, text) in enumerate((("title", "title", title), ("desc", "text", sentence))):
        element = ElementTree.Element(tag, {"id": f"{name}-{part}"})
        element.text = printable(text)
        root.insert(number, element)
    return ElementTree.tostring(root, "unicode")


def _attribute(key: str, value: str) -> str:
    if key == "style":
        value = re.sub(r"font-family:[^;]*;?\s*", "", value)
        return re.sub(r"#[0-9a-f]{6}", lambda found: f"var({VARIABLES.get(found[0], '--ink')})", value)
    if key in ("d", "x", "y", "transform", "width", "height"):
        value = re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), value)
        return " ".join(value.split())
    return value


def printable(text: str) -> str:
    """Text without what XML cannot hold (control characters, lone surrogates)."""
    return re.sub("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", str(text))
