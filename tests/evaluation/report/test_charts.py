"""The report's charts: well-formed, themed by the page, the right values at the right place."""

from __future__ import annotations

import re
import sys
from xml.etree import ElementTree

import pytest

from medical_assistant.evaluation.report import charts
from medical_assistant.evaluation.report.report_svg import VARIABLES
from medical_assistant.models.presets import ASSETS
from medical_assistant.plotting import COLOURS

HISTORY = [
    {"step": 10, "loss": 2.9},
    {"step": 20, "loss": 2.1},
    {"step": 20, "eval_loss": 2.25},
    {"step": 40, "eval_loss": 1.9},
    {"step": 40, "loss": float("nan")},
    {"train_runtime": 12.0},
]
ROWS = [
    charts.Row("clean \u00b7 40", 0.05, 0.01, 0.09, "+0.050", 1, True, heading="By likeness"),
    charts.Row("near \u00b7 12", -0.02, None, None, "\u22120.020", 1, False),
]
BINS = [{"low": 0.1, "high": 0.2, "n": 3, "mean_confidence": 0.15, "observed": 0.0}, {"low": 0.2, "high": 0.3, "n": 0}]
CURVE = [{"coverage": 0.5, "risk": 0.2}, {"coverage": 1.0, "risk": 0.4}]


def draw(name: str = "x", label: str = "base") -> dict[str, str]:
    words = (name, f"Title of {label}", f"Sentence of {label}.")
    return {
        "losses": charts.loss_curves(*words, {label: HISTORY}),
        "several": charts.loss_curves(*words, {label: HISTORY, "other": HISTORY[:3]}, {label: 2}),
        "histogram": charts.histogram(*words, {label: [0.1, 0.2, 0.2], "other": [0.3]}, label),
        "intervals": charts.intervals(*words, [charts.Row(label, 0.4, 0.3, 0.5, label), *ROWS], label, line=0.0),
        "reliability": charts.reliability(*words, BINS),
        "risk": charts.risk_coverage(*words, CURVE, 0.4),
    }


@pytest.fixture(scope="module")
def drawn() -> dict[str, str]:
    return draw()


def test_a_chart_has_no_colour_of_its_own_and_says_what_it_shows(drawn: dict[str, str]) -> None:
    css = (ASSETS / "evaluation" / "report.css").read_text(encoding="utf-8")
    for svg in drawn.values():
        root = ElementTree.fromstring(svg)
        assert root.get("role") == "img" and root.get("aria-labelledby") == "x-title x-text"
        assert root.find("title").text == "Title of base" and root.find("desc").text == "Sentence of base."
        assert not re.search(r"#[0-9a-f]{6}|rgb\(|https?:|font-family", svg)
        used = set(re.findall(r"var\((--[\w-]+)\)", svg))
        assert used <= set(VARIABLES.values()) and all(f"{variable}:" in css for variable in used)
        assert len(svg) < 40_000
    assert "--series-1" in drawn["losses"] and "--series-3" in drawn["several"]


def test_ids_are_the_charts_own_and_each_reference_has_its_target(drawn: dict[str, str]) -> None:
    for kind, svg in drawn.items():
        other = draw(f"other-{kind}")[kind] if kind == "losses" else None
        ids = set(re.findall(r'\bid="([^"]+)"', svg))
        assert set(re.findall(r'#([\w-]+)[)"]', svg)) <= ids
        if other:
            assert not ids & set(re.findall(r'\bid="([^"]+)"', other))


def test_equal_figures_make_equal_bytes(drawn: dict[str, str]) -> None:
    assert draw() == drawn
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


@pytest.mark.parametrize(
    "label", ["<script>alert(1)</script>", '"><b>', "$x^2$ & $", "\x00\x1b\ud800", "\u75c5" * 90, ""]
)
def test_any_label_is_text(label: str) -> None:
    for svg in draw(label=label).values():
        root = ElementTree.fromstring(svg)
        assert {element.tag for element in root.iter()} <= {
            "svg", "g", "path", "use", "text", "defs", "clipPath", "rect", "title", "desc",
        }  # fmt: skip


def test_intervals_stand_where_their_values_are() -> None:
    """-1 and 1 are as far from 0; a bar spans its bounds; without bounds there is none; a hollow mark has paper."""
    rows = [
        charts.Row("a", -1.0, None, None, series=0, filled=False),
        charts.Row("b", 1.0, 0.0, 1.0, series=1),
    ]
    svg = charts.intervals("x", "t", "s", rows, "axis", line=0.0)
    marks = {
        found[1]: float(found[0]) for found in re.findall(r'<use[^>]* x="([\d.]+)"[^>]*stroke: var\((--series-\d)', svg)
    }
    bars = re.findall(r'd="M ([\d.]+) [\d.]+ L ([\d.]+) [\d.]+"[^>]*stroke: var\((--series-\d)', svg)
    assert [bar[2] for bar in bars] == ["--series-2"]
    zero, one = float(bars[0][0]), float(bars[0][1])
    assert one == pytest.approx(marks["--series-2"], abs=0.02)
    assert marks["--series-1"] == pytest.approx(2 * zero - one, abs=0.02)
    at_minus_one = [tag for tag in re.findall(r"<use[^>]*>", svg) if f'x="{marks["--series-1"]:g}"' in tag]
    assert any("fill: var(--card)" in tag for tag in at_minus_one)


def test_little_to_draw() -> None:
    words = ("x", "t", "s")
    for svg in (
        charts.loss_curves(*words, {}),
        charts.loss_curves(*words, {"empty": [], "only training": HISTORY[:1]}),
        charts.histogram(*words, {"one": [0.5], "none": []}, "x"),
        charts.histogram(*words, {}, "x"),
        charts.intervals(*words, [], "x"),
        charts.intervals(*words, [charts.Row("a", None, None, None)], "x", line=0.0),
        charts.reliability(*words, []),
        charts.risk_coverage(*words, [], None),
    ):
        assert ElementTree.fromstring(svg).tag == "svg" and "nan" not in svg.lower()


def test_the_series_are_those_of_the_other_plots() -> None:
    assert [VARIABLES[colour.lower()] for colour in COLOURS[:6]] == [f"--series-{number}" for number in range(1, 7)]


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
