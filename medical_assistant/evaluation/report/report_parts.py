"""What a report is made of: sections of paragraphs, tables, charts and answers, and how numbers are written in them.

`report.py` and its rooms build the parts once; `report_html` and `report_markdown` write the same parts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from medical_assistant.evaluation.scoring.metrics import METRICS

MINUS, SPACE, DASH = "\u2212", "\u00a0", "\u2013"
# Scores that are a part of the questions, shown as percentages; the others with so many decimals.
PERCENT = ("exact_match", "ended", "repetition")
DECIMALS = {
    "bleu": 2, "chrf": 2, "mean_tokens": 1, "tokens_per_second": 1, "mean_seconds": 2, "readability_grade": 1,
    "length_ratio": 2, "perplexity": 2,
}  # fmt: skip
DIRECTIONS = {1: "higher", -1: "lower", 0: "neither"}
TONES = {"better": "good", "worse": "bad"}


@dataclass(frozen=True)
class Cell:
    """A table cell with a tone: "good", "bad" or "quiet"."""

    text: str
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """Rows under column names; the first cell of a row names it. `words` are the columns that are not numbers."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    words: Sequence[int] = (0,)


@dataclass(frozen=True)
class Paragraph:
    kind: ClassVar[str] = "paragraph"
    text: str
    quiet: bool = False


@dataclass(frozen=True)
class Bullets:
    kind: ClassVar[str] = "bullets"
    title: str
    items: Sequence[str]
    folded: bool = False


@dataclass(frozen=True)
class Chart:
    """A drawing, what it says in a sentence, and its figures as a table (None where a table stands beside it)."""

    kind: ClassVar[str] = "chart"
    title: str
    sentence: str
    svg: str
    figures: Table | None = None


@dataclass(frozen=True)
class Command:
    kind: ClassVar[str] = "command"
    text: str


@dataclass(frozen=True)
class Heading:
    kind: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True)
class Verdict:
    """The answer to "is `name` better?": `word`, `tone` ("good", "bad" or "even") and the figures in a sentence."""

    kind: ClassVar[str] = "verdict"
    name: str
    word: str
    tone: str
    sentence: str


@dataclass(frozen=True)
class KeyFigure:
    kind: ClassVar[str] = "figure"
    label: str
    values: Sequence[tuple[str, str]]  # (candidate or "", value)
    note: str = ""


@dataclass(frozen=True)
class KeyFigures:
    kind: ClassVar[str] = "figures"
    items: Sequence[KeyFigure]


@dataclass(frozen=True)
class Text:
    """Model or reference text for a reader: `shown` at once, `folded` on demand, `note` of what was cut."""

    label: str
    shown: str
    folded: str = ""
    note: str = ""
    facts: str = ""
    series: int | None = None


@dataclass(frozen=True)
class Example:
    kind: ClassVar[str] = "example"
    number: int
    question: Text
    reference: Text
    answers: Sequence[Text]
    summary: str


Block = Paragraph | Bullets | Table | Chart | Command | Heading | Verdict | KeyFigures | Example


@dataclass
class Section:
    """A titled part of the report. `not_run` is the reason why it has no figures."""

    id: str
    title: str
    blocks: list[Block] = field(default_factory=list)
    not_run: str = ""

    def add(self, *blocks: Block | None) -> None:
        self.blocks += [block for block in blocks if block is not None]


def start_section(
    id: str, title: str, content: Any, intro: str, missing: str = "This evaluation was not asked for it."
) -> tuple[Section, Mapping[str, Any]]:
    """Return (a section that opens with `intro`, the content of metrics.json, {} where it did not run)."""
    section = Section(id, title, [Paragraph(intro)])
    if not isinstance(content, Mapping) or not content:
        section.not_run = missing
        return section, {}
    if content.get("status", "done") != "done":
        section.not_run = str(content.get("reason") or "No reason was given.")
        return section, {}
    return section, content


def label_of(candidates: Mapping[str, Any], key: str) -> str:
    return str((candidates.get(key) or {}).get("label") or key)


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def pair_of(pair: str) -> tuple[str, str]:
    """Return (b, a) of "b vs a"."""
    b, _, a = pair.partition(" vs ")
    return b, a


def pair_label(candidates: Mapping[str, Any], pair: str) -> str:
    b, a = pair_of(pair)
    return f"{capital(label_of(candidates, b))} against {label_of(candidates, a)}"


def metric_name(metric: str) -> str:
    return METRICS[metric].name if metric in METRICS else capital(metric.replace("_", " "))


def direction(metric: str) -> str:
    """Which side of a metric is better: "higher", "lower" or "neither"."""
    return DIRECTIONS[METRICS[metric].better] if metric in METRICS else DIRECTIONS[0]


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any, decimals: int = 3, sign: bool = False) -> str:
    """`value` with a true minus sign; a dash for what is no number."""
    if not is_number(value):
        return DASH
    text = f"{abs(value):,.{decimals}f}"
    if float(text.replace(",", "")) == 0:
        return text
    return (MINUS if value < 0 else "+" if sign else "") + text


def percent(value: Any, decimals: int = 1, sign: bool = False) -> str:
    return f"{number(100 * value, decimals, sign)}{SPACE}%" if is_number(value) else DASH


def score(metric: str, value: Any) -> str:
    """A score of `metrics.METRICS` as a reader wants it: 0.171, or 71.4 %."""
    return percent(value) if metric in PERCENT else number(value, DECIMALS.get(metric, 3))


def change(metric: str, value: Any) -> str:
    """A difference of two scores with its sign; of percentages in points."""
    if metric in PERCENT:
        return points(value)
    return number(value, DECIMALS.get(metric, 3), sign=True)


def points(value: Any) -> str:
    """A difference of two parts (0-1) in percentage points."""
    return f"{number(100 * value, 1, sign=True)}{SPACE}points" if is_number(value) else DASH


def change_interval(metric: str, low: Any, high: Any) -> str:
    if not (is_number(low) and is_number(high)):
        return "not claimed"
    scale, decimals = (100, 1) if metric in PERCENT else (1, DECIMALS.get(metric, 3))
    return f"{number(scale * low, decimals, True)} to {number(scale * high, decimals, True)}"


def part_interval(low: Any, high: Any) -> str:
    """The interval of a part (0-1) in percent."""
    return f"{number(100 * low, 1)} to {percent(high)}" if is_number(low) and is_number(high) else "not claimed"


def p_value(value: Any) -> str:
    if not is_number(value):
        return "not claimed"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def record(difference: Mapping[str, Any]) -> str:
    """Wins, ties and losses of b."""
    return " / ".join(str(difference.get(key, DASH)) for key in ("wins", "ties", "losses"))


def verdict_cell(difference: Mapping[str, Any]) -> Cell:
    verdict = difference.get("verdict")
    return Cell(str(verdict), TONES.get(str(verdict), "quiet")) if verdict else Cell("no better side", "quiet")


def counted(n: Any, thing: str = "question") -> str:
    return f"{n:,} {thing}{'' if n == 1 else 's'}" if is_number(n) else f"an unknown number of {thing}s"
