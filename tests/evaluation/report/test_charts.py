"""The report's charts: well-formed, themed by the page, the right values at the right place."""

from __future__ import annotations

import re
import sys
from typing import Any
from xml.etree import ElementTree

import pytest

from medical_assistant.evaluation.report import charts
from medical_assistant.files import ASSETS
from medical_assistant.plotting import COLOURS

HISTORY = [
    {"step": 10, "loss": 2.9},
    {"step": 20, "loss": 2.1},
    {"step": 20, "eval_loss": 2.25},
    {"step": 40, "eval_loss": 1.9},
    {"step": 40, "loss": float("nan")},
    {"train_runtime": 12.0},
]


def estimate(
    label: str, value: float | None, low: float | None, high: float | None, text: str = "", series: int = 0, **more: Any
) -> dict[str, Any]:
    return {"label": label, "value": value, "low": low, "high": high, "text": text, "series": series, **more}


ROWS = [
    {"label": "By likeness"},
    estimate("clean \u00b7 40", 0.05, 0.01, 0.09, "+0.050", 1, mark=0.02),
    estimate("near \u00b7 12", -0.02, None, None, "\u22120.020", 1, hollow=True),
]


def draw(name: str = "x", label: str = "base") -> dict[str, str]:
    words, entries = (label, label, "measured"), [{"x": 0.15, "y": 0.0, "n": 3}, {"x": 0.5, "y": 0.6, "n": 2}]
    return {
        "losses": charts.loss_curves(name, {label: HISTORY}, {}),
        "several": charts.loss_curves(name, {label: HISTORY, "other": HISTORY[:3]}, {label: 2}),
        "histogram": charts.histogram(name, [(label, [0.1, 0.2, 0.2]), ("other", [0.3])], label),
        "intervals": charts.intervals(name, [estimate(label, 0.4, 0.3, 0.5, label), *ROWS], label, line=0.0),
        "curve": charts.part_curve(name, words, entries, ["x", "y"], ["all", 0.4, 0.4]),
        "dots": charts.part_curve(name, words, entries, ["x", "y", "n"], ["even", 0, 1]),
    }


@pytest.fixture(scope="module")
def drawn() -> dict[str, str]:
    return draw()


def test_the_style_sheet_has_a_place_for_every_colour_of_a_chart(drawn: dict[str, str]) -> None:
    """In light and dark the page's colours stand instead of matplotlib's: one rule for each fill and each stroke."""
    css = (ASSETS / "evaluation" / "report.css").read_text(encoding="utf-8")
    rules = dict(re.findall(r"""\[style\*="([^"]+)"\] \{ (?:fill|stroke): var\((--[\w-]+)\) !important; \}""", css))
    assert all(f"{variable}:" in css for variable in rules.values())
    for svg in drawn.values():
        assert ElementTree.fromstring(svg).tag.endswith("svg") and len(svg) < 40_000
        assert set(re.findall(r"(?:fill|stroke): #[0-9a-f]{6}", svg)) <= set(rules)
        assert not re.search(r"rgb|#[0-9a-f]{3}[;\"]", svg) and "<text" in svg
    for number, colour in enumerate(charts.SERIES, 1):
        assert rules[f"fill: {colour}"] == rules[f"stroke: {colour}"] == f"--series-{number}"
    assert charts.SERIES[0] in drawn["losses"] and charts.SERIES[2] in drawn["several"]


def test_ids_are_the_charts_own_and_each_reference_has_its_target(drawn: dict[str, str]) -> None:
    for svg in drawn.values():
        ids = re.findall(r'\bid="([^"]+)"', svg)
        assert set(re.findall(r'(?:href="|url\()#([\w-]+)', svg)) == set(ids) and len(ids) == len(set(ids))
    other = charts.loss_curves("other", {"base": HISTORY}, {})
    assert not set(re.findall(r'\bid="[^"]+"', other)) & set(re.findall(r'\bid="[^"]+"', drawn["losses"]))


def test_equal_figures_make_equal_bytes_and_no_figure_stays_open(drawn: dict[str, str]) -> None:
    assert charts.histogram("x", [("base", [0.1, 0.2, 0.2]), ("other", [0.3])], "base") == drawn["histogram"]
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_any_label_is_text() -> None:
    labels = ["<script>alert(1)</script>", '"><b>', "$x^2$ & $", "\x00\x1b\ud800", "\u75c5" * 90, ""]
    for svg in (
        charts.loss_curves("x", {label: HISTORY for label in labels}, {}),
        charts.histogram("x", [(label, [0.1, 0.3]) for label in labels], labels[0]),
        charts.intervals(
            "x", [{"label": labels[0]}, *(estimate(label, 1, 0, 2, label) for label in labels)], labels[1]
        ),
    ):
        root = ElementTree.fromstring(svg)
        assert {element.tag.rpartition("}")[2] for element in root.iter()} <= {
            "svg", "g", "path", "use", "text", "defs", "clipPath", "rect", "style",
        }  # fmt: skip


def test_intervals_stand_where_their_values_are() -> None:
    """-1 and 1 are as far from 0; a bar spans its bounds; without bounds there is none; a hollow mark has paper."""
    rows = [estimate("a", -1.0, None, None, hollow=True), estimate("b", 1.0, 0.0, 1.0, series=1)]
    svg = charts.intervals("x", rows, "axis", line=0.0)
    blue, red = charts.SERIES[:2]
    found = re.findall(r'<use [^>]* x="([\d.]+)"[^>]*fill: (#\w+); stroke: (#\w+)', svg)
    marks = {stroke: (float(x), fill) for x, fill, stroke in found}
    bars = re.findall(r'd="M ([\d.]+) [\d.]+ \nL ([\d.]+) [\d.]+ \n"[^>]*stroke: (#\w+); stroke-width: 2.4', svg)
    assert [bar[2] for bar in bars] == [red]
    zero, one = float(bars[0][0]), float(bars[0][1])
    assert marks[red] == (pytest.approx(one, abs=0.02), red)
    assert marks[blue] == (pytest.approx(2 * zero - one, abs=0.02), charts.PAPER)


def test_little_to_draw() -> None:
    for svg in (
        charts.loss_curves("x", {}, {}),
        charts.loss_curves("x", {"empty": [], "only training": HISTORY[:1]}, {}),
        charts.histogram("x", [("one", [0.5]), ("none", [])], "x"),
        charts.histogram("x", [], "x"),
        charts.intervals("x", [], "x"),
        charts.intervals("x", [estimate("a", None, None, None)], "x", line=0.0),
        charts.part_curve("x", ("x", "y", "curve"), [], ["x", "y"], ["all", None, None]),
    ):
        assert ElementTree.fromstring(svg).tag.endswith("svg") and "nan" not in svg.lower()


def test_a_loss_of_zero_is_a_loss_and_what_is_not_finite_is_none() -> None:
    assert charts.points([{"step": 1, "loss": 0.0}, *HISTORY], "loss") == ([1, 10, 20], [0.0, 2.9, 2.1])
    assert charts.points([{"step": 1, "loss": None}, {"loss": 2.0}], "loss") == ([], [])


def test_the_series_are_those_of_the_other_plots() -> None:
    assert charts.SERIES == tuple(colour.lower() for colour in COLOURS[:6])


def contrast(one: str, other: str) -> float:
    """WCAG 2.2, contrast ratio of two colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_the_style_sheet_has_contrast_in_light_and_dark() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    css = (ASSETS / "evaluation" / "report.css").read_text(encoding="utf-8")
    light, dark = css.split("prefers-color-scheme: dark", 1)
    for part in (light, dark[: dark.index("* {")]):
        colours = dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6});", part))
        for text, papers in {
            "--ink": ("--page", "--card", "--good-paper", "--bad-paper", "--even-paper"),
            "--muted": ("--page", "--card"),
            "--accent": ("--page", "--card"),
            "--good": ("--card", "--good-paper"),
            "--bad": ("--card", "--bad-paper"),
            "--even": ("--even-paper",),
        }.items():
            for paper in papers:
                assert contrast(colours[text], colours[paper]) >= 4.5, (text, paper)
        for number in range(1, 7):
            assert contrast(colours[f"--series-{number}"], colours["--card"]) >= 3, number
