"""What every section needs: the evaluation with its names, and the plain dicts of tables and charts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medical_assistant.evaluation.report import charts
from medical_assistant.evaluation.report import format as fmt

Part = dict[str, Any]
DIFFERENCE = ("Difference", "95 % interval", "p", "Wins / ties / losses", "Verdict")
SIDES = {"higher": "right of the line", "lower": "left of the line", "neither": "neither side"}


@dataclass(frozen=True)
class Evaluation:
    """`metrics` is metrics.json, `rows` those of predictions.jsonl, `losses` the loss history of each run."""

    metrics: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    losses: Mapping[str, Sequence[Mapping[str, Any]]]

    @property
    def labels(self) -> dict[str, str]:
        """Label of every candidate by its key; the first is the one that the others are compared with."""
        return {key: str(fmt.dig(found, "label") or key) for key, found in self.metrics["candidates"].items()}

    @property
    def primary(self) -> str:
        """The key of the metric that decides the verdict."""
        return str(fmt.dig(self.metrics, "comparison", "primary") or "rougeL")

    @property
    def metric(self) -> str:
        return fmt.metric_name(self.primary)

    def place(self, key: str) -> int:
        """Return which series of the charts a candidate is."""
        return [*self.labels, key].index(key)

    def pair_labels(self, pair: str) -> tuple[str, str]:
        """Return the labels of b and a in "b vs a"."""
        b, _, a = pair.partition(" vs ")
        return self.labels.get(b, b), self.labels.get(a, a)

    def pair_title(self, pair: str) -> str:
        b, a = self.pair_labels(pair)
        return f"{fmt.capital(b)} against {a}"


def table(
    caption: str, columns: Sequence[str], rows: list[list[str]], words: Sequence[int] = (0,), verdict: bool = False
) -> Part:
    """Return a table whose first cell names its row. `words` are the columns that are not numbers.

    With `verdict` the last column says what is better or worse, passed or failed.
    """
    last = len(columns) - 1
    kinds = ["verdict" if verdict and i == last else "words" if i in words else "" for i in range(last + 1)]
    return {"caption": caption, "columns": columns, "kinds": kinds, "rows": rows}


def chart(id: str, title: str, sentence: str, svg: str, figures: Part, heading: str = "") -> Part:
    """Return a drawing with what it says in a sentence, and its figures as a table."""
    return {"id": id, "title": title, "sentence": sentence, "svg": svg, "table": figures, "heading": heading}


def difference_table(caption: str, first: str, differences: Iterable[tuple[str, Any]]) -> list[Part]:
    """Return one table of the differences of parts (label, Difference), none where there is nothing to compare."""
    rows = [[label, *fmt.difference_cells(fmt.PART, found)] for label, found in differences if found]
    return [table(caption, (first, *DIFFERENCE), rows, verdict=True)] if rows else []


def difference_chart(run: Evaluation, id: str, pair: str, differences: Iterable[tuple[str, str, Any]]) -> list[Part]:
    """Return one forest plot of `differences` (heading, label, Difference or None), none without a difference."""
    series = run.place(pair.partition(" vs ")[0])
    drawn: list[Part] = []
    rows = []
    for heading, label, found in differences:
        if not fmt.is_number(fmt.dig(found, "difference")):
            continue
        value, low, high = (found.get(key) for key in ("difference", "low", "high"))
        difference, bounds, _, record, verdict = fmt.difference_cells(run.primary, found)
        rows.append([label, f"{found['n']:,}", difference, bounds, record, verdict])
        if heading and {"label": heading} not in drawn:
            drawn.append({"label": heading})
        estimate = {"label": f"{label} \u00b7 {found['n']}", "value": value, "low": low, "high": high, "series": series}
        estimate |= {"text": f"{difference} ({bounds})" if low is not None else difference}
        drawn.append(estimate | {"hollow": low is None or low <= 0 <= high})
    if not rows:
        return []
    title, side = f"{run.pair_title(pair)}: difference in {run.metric}", SIDES[fmt.direction(run.primary)]
    measurable, unclaimed = (
        sum(not row.get("hollow", True) for row in drawn),
        sum(row[3] == "not claimed" for row in rows),
    )
    are, have = "is" if measurable == 1 else "are", "has" if unclaimed == 1 else "have"
    sentence = f"{measurable} of {fmt.counted(len(rows), 'difference')} {are} measurable; {side} is better."
    if unclaimed:
        sentence += f" {unclaimed} {have} too few questions for an interval."
    axis, percent = f"Difference in {run.metric} ({side} is better)", run.primary in fmt.PERCENT
    columns = ("Group", "Questions", *(name for name in DIFFERENCE if name != "p"))
    svg = charts.intervals(id, drawn, axis, line=0.0, percent=percent)
    return [chart(id, title, sentence, svg, table(title, columns, rows, verdict=True))]


def measures_chart(
    run: Evaluation, id: str, title: str, axis: str, measures: Iterable[tuple[Any, ...]], *more: str
) -> list[Part]:
    """Return one chart of parts (0-1) by measure and candidate, none without any.

    `measures` are tuples: measure, candidate, (value, low, high), chance or None, and the cells of the columns `more`.
    """
    drawn: list[Part] = []
    rows: list[list[str]] = []
    told: dict[str, list[str]] = {}
    for measure, key, (value, low, high), chance, *cells in measures:
        if not fmt.is_number(value):
            continue
        if measure not in told:
            drawn.append({"label": measure})
        label, shown, bounds = (
            fmt.capital(run.labels[key]),
            fmt.percent(value),
            fmt.interval(fmt.PART, low, high, False),
        )
        told.setdefault(measure, []).append(f"{run.labels[key]} {shown}")
        rows.append([measure, label, shown, bounds, *cells])
        estimate = {"label": label, "value": value, "low": low, "high": high, "mark": chance, "series": run.place(key)}
        drawn.append(estimate | {"text": f"{shown} ({bounds})" if fmt.is_number(low) else shown})
    if not rows:
        return []
    sentence = " ".join(f"{measure}: {', '.join(values)}." for measure, values in told.items())
    figures = table(title, ("Measure", "Candidate", "Value", "95 % interval", *more), rows, words=(0, 1))
    return [chart(id, title, sentence, charts.intervals(id, drawn, axis, percent=True), figures)]
