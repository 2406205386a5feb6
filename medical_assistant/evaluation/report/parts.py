"""What every section needs: the evaluation with its names, and the plain dicts of tables and charts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medical_assistant.evaluation.report import charts
from medical_assistant.evaluation.report import format as fmt

Part = dict[str, Any]
DIFFERENCE = ("Difference", "95 % interval", "p", "Wins / ties / losses", "Verdict")
SIDES = {"higher": "right of the line is better", "lower": "left of the line is better"}


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
    def columns(self) -> list[str]:
        return [fmt.capital(label) for label in self.labels.values()]

    @property
    def primary(self) -> str:
        """The key of the metric that decides the verdict."""
        return str(fmt.dig(self.metrics, "comparison", "primary") or "rougeL")

    @property
    def metric(self) -> str:
        return fmt.metric_name(self.primary)

    def pair_labels(self, pair: str) -> tuple[str, str]:
        """Return the labels of b and a in "b vs a"."""
        b, _, a = pair.partition(" vs ")
        return self.labels.get(b, b), self.labels.get(a, a)

    def pair_title(self, pair: str) -> str:
        b, a = self.pair_labels(pair)
        return f"{fmt.capital(b)} against {a}"


def table(
    caption: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    words: Sequence[int] = (0,),
    verdict: bool = False,
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


def difference_chart(run: Evaluation, id: str, pair: str, groups: Mapping[str, Mapping[str, Any]]) -> list[Part]:
    """Return one forest plot of `groups` (heading -> {label: Difference or None}), none without a difference."""
    metric, b = run.primary, pair.partition(" vs ")[0]
    series = list(run.labels).index(b) if b in run.labels else 1
    drawn: list[Part] = []
    rows = []
    for heading, differences in groups.items():
        known = {label: found for label, found in differences.items() if fmt.is_number(fmt.dig(found, "difference"))}
        drawn += [{"label": heading}] if heading and known else []
        for label, found in known.items():
            value, low, high = (found.get(key) for key in ("difference", "low", "high"))
            difference, bounds, _, record, verdict = fmt.difference_cells(metric, found)
            text = f"{difference} ({bounds})" if low is not None else difference
            estimate = {"label": f"{label} \u00b7 {found['n']}", "value": value, "low": low, "high": high, "text": text}
            drawn.append(estimate | {"series": series, "hollow": low is None or low <= 0 <= high})
            rows.append([label, f"{found['n']:,}", difference, bounds, record, verdict])
    if not rows:
        return []
    title, side = f"{run.pair_title(pair)}: difference in {run.metric}", SIDES.get(fmt.direction(metric))
    side = side or "neither side is better"
    measurable, unclaimed = (
        sum(not row.get("hollow", True) for row in drawn),
        sum(row[3] == "not claimed" for row in rows),
    )
    sentence = (
        f"{measurable} of {fmt.counted(len(rows), 'difference')} {'is' if measurable == 1 else 'are'} measurable; "
    )
    sentence += f"{side}."
    if unclaimed:
        sentence += f" {unclaimed} {'has' if unclaimed == 1 else 'have'} too few questions for an interval."
    axis = f"Difference in {run.metric} ({side})"
    svg = charts.intervals(id, drawn, axis, line=0.0, percent=metric in fmt.PERCENT)
    columns = ("Group", "Questions", *(name for name in DIFFERENCE if name != "p"))
    return [chart(id, title, sentence, svg, table(title, columns, rows, verdict=True))]


def measures_chart(
    run: Evaluation, id: str, title: str, axis: str, measures: Mapping[str, Mapping[str, Any]], *more: str
) -> list[Part]:
    """Return one chart of parts (0-1) by measure and candidate, none without any.

    A measure maps a candidate to a dict of `value`, `low`, `high`, maybe `mark` (chance) and `more`, the cells of the
    columns `more`.
    """
    drawn: list[Part] = []
    rows, told = [], []
    for name, values in measures.items():
        known = {key: found for key, found in values.items() if fmt.is_number(found["value"])}
        drawn += [{"label": name}] if known else []
        for key, found in known.items():
            value, label = fmt.percent(found["value"]), fmt.capital(run.labels[key])
            bounds = fmt.interval(fmt.PART, found["low"], found["high"], sign=False)
            text = f"{value} ({bounds})" if fmt.is_number(found["low"]) else value
            drawn.append({**found, "label": label, "text": text, "series": list(run.labels).index(key)})
            rows.append([name, label, value, bounds, *found.get("more", ())])
        parts = ", ".join(f"{run.labels[key]} {fmt.percent(found['value'])}" for key, found in known.items())
        told += [f"{name}: {parts}."] if known else []
    if not rows:
        return []
    figures = table(title, ("Measure", "Candidate", "Value", "95 % interval", *more), rows, words=(0, 1))
    return [chart(id, title, " ".join(told), charts.intervals(id, drawn, axis, percent=True), figures)]
