"""An evaluation as the report's templates ask for it: its names, and what takes more than a look into metrics.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from medical_assistant.evaluation.report import charts
from medical_assistant.evaluation.report import format as fmt
from medical_assistant.evaluation.scoring.metrics import METRICS

SIDES = {"higher": "right of the line", "lower": "left of the line", "neither": "neither side"}


@dataclass(frozen=True)
class Evaluation:
    """`metrics` is metrics.json, `rows` those of predictions.jsonl, `losses` the loss history of each run.

    A chart is a dict of `svg` (a function that draws it), `sentence` (what it says) and `rows`, its figures as cells of
    a table: [] without any.
    """

    metrics: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    losses: Mapping[str, Sequence[Mapping[str, Any]]]

    @property
    def labels(self) -> dict[str, str]:
        """Label of every candidate by its key; the first is the one that the others are compared with."""
        return {key: found["label"] for key, found in self.metrics["candidates"].items()}

    @property
    def primary(self) -> str:
        """The key of the metric that decides the verdict."""
        return str(self.metrics["comparison"]["primary"])

    @property
    def metric(self) -> str:
        return fmt.metric_name(self.primary)

    @property
    def title(self) -> str:
        reference, *others = self.labels.values()
        return f"{fmt.capital(', '.join(others))} against {reference}"

    @property
    def subtitle(self) -> str:
        """The questions and the candidates in a sentence or two."""
        names = [
            f"{found['label']} ({found['model']}{' with ' + found['adapter'] if found['adapter'] else ''})"
            for found in self.metrics["candidates"].values()
        ]
        n = fmt.counted(self.metrics["n"], "held-back question")
        return f"{n}, the same for every candidate, answered greedily. Candidates: {'; '.join(names)}."

    def pair_title(self, pair: str) -> str:
        """Return "B against a" of the pair "b vs a"."""
        b, a = (self.labels[key] for key in pair.split(" vs "))
        return f"{fmt.capital(b)} against {a}"

    def place(self, key: str) -> int:
        """Return which series of the charts a candidate is."""
        return list(self.labels).index(key)

    @property
    def known(self) -> list[str]:
        """The keys of all metrics that were computed."""
        return [metric for metric in METRICS if any(metric in found for found in self.metrics["scores"].values())]

    @property
    def sources(self) -> list[str]:
        """Where each metric comes from."""
        names: dict[str, list[str]] = {}
        for metric in self.known:
            names.setdefault(METRICS[metric].source, []).append(METRICS[metric].name)
        return [f"{', '.join(of_source)}: {source}." for source, of_source in names.items()]

    def by_candidate(self, found: Any, metric: str, *path: str) -> list[str]:
        """Return the score of each candidate under `path` in `found` (candidate -> its figures)."""
        return [fmt.score(metric, fmt.dig(found, key, *path)) for key in self.labels]

    def training_losses(self) -> dict[str, Any]:
        """Return the chart of the runs' losses, each run in the colour of its candidate."""
        rows, told = [], []
        for label, history in self.losses.items():
            name, (_steps, training) = fmt.capital(label), charts.points(history, "loss")
            steps, validation = charts.points(history, "eval_loss")
            cells = [name, *map(fmt.number, (training[0], training[-1]) if training else (None, None))]
            if validation:
                first, best = fmt.number(validation[0]), fmt.number(min(validation))
                at = f"{steps[validation.index(min(validation))]:,}"
                rows.append([*cells, first, best, at])
                told.append(f"{name}: the validation loss went from {first} to {best} (step {at}).")
            elif training:
                rows.append([*cells, fmt.DASH, fmt.DASH, fmt.DASH])
        series = {label: place for place, label in enumerate(self.labels.values())}
        svg = partial(charts.loss_curves, "losses", self.losses, series)
        return {"svg": svg, "sentence": " ".join(told) or "Only training losses were logged.", "rows": rows}

    def spread(self) -> dict[str, Any]:
        """Return the chart of how the primary metric is spread over the answers."""
        values, rows = [], []
        for key, label in self.labels.items():
            scores = sorted(row["candidates"][key]["scores"][self.primary] for row in self.rows)
            values.append((fmt.capital(label), scores))
            quarters = [scores[round(part * (len(scores) - 1))] for part in (0, 0.25, 0.5, 0.75, 1)]
            cells = [fmt.score(self.primary, value) for value in (sum(scores) / len(scores), *quarters)]
            rows.append([fmt.capital(label), f"{len(scores):,}", *cells])
        told = [f"{row[0]}: mean {row[2]}, the middle half from {row[4]} to {row[6]}." for row in rows]
        svg = partial(charts.histogram, "spread", values, self.metric)
        return {"svg": svg, "sentence": " ".join(told), "rows": rows}

    def groups(self, pair: str) -> list[tuple[str, str, Any]]:
        """Return the differences of the primary metric by type and by length of question, for `forest_plot`."""
        found = self.metrics["comparison"]
        groups = [("", "all questions", found["pairs"][pair][self.primary])]
        groups += [("By type", kind.replace("_", " "), by) for kind, by in found["by_type"][pair].items()]
        for length, by in found["by_length"][pair].items():
            words = " to ".join(map(str, sorted(set(found["length_bounds"][length]))))
            groups.append(("By length", f"{length} ({words} words)", by))
        return groups

    def strata(self, pair: str) -> list[tuple[str, str, Any]]:
        """Return the differences on questions that are like the training data and on others."""
        return [("", group, pairs[pair]) for group, pairs in self.metrics["strata"]["comparison"].items()]

    def forest_plot(self, id: str, pair: str, differences: Iterable[tuple[str, str, Any]]) -> dict[str, Any]:
        """Return the chart of `differences`: heading, label, Difference or None."""
        series = self.place(pair.split(" vs ")[0])
        drawn: list[dict[str, Any]] = []
        rows = []
        for heading, label, found in differences:
            if not found:
                continue
            difference, bounds, _, record, verdict = fmt.difference_cells(self.primary, found)
            rows.append([label, f"{found['n']:,}", difference, bounds, record, verdict])
            if heading and {"label": heading} not in drawn:
                drawn.append({"label": heading})
            low, high = found["low"], found["high"]
            drawn.append(
                _estimate(f"{label} \u00b7 {found['n']}", found["difference"], low, high, difference, bounds, series)
                | {"hollow": low is None or low <= 0 <= high}
            )
        side, n = SIDES[fmt.direction(self.primary)], fmt.counted(len(rows), "difference")
        clear, wide = sum(not row.get("hollow", True) for row in drawn), sum(row[3] == "not claimed" for row in rows)
        sentence = f"{clear} of {n} {'is' if clear == 1 else 'are'} measurable; {side} is better."
        sentence += f" {wide} {'has' if wide == 1 else 'have'} too few questions for an interval." if wide else ""
        axis, percent = f"Difference in {self.metric} ({side} is better)", self.primary in fmt.PERCENT
        svg = partial(charts.intervals, id, drawn, axis, line=0.0, percent=percent)
        return {"svg": svg, "sentence": sentence, "rows": rows}

    def measures_chart(self, id: str, axis: str, measures: Iterable[tuple[Any, ...]]) -> dict[str, Any]:
        """Return the chart of parts (0-1) by measure and candidate.

        `measures` are tuples: name, candidate -> its figures, key of the value, what stands before "low" and "high" in
        the keys of its bounds, and the part that chance would give, or None.
        """
        drawn: list[dict[str, Any]] = []
        rows, told = [], []
        for name, found, measure, prefix, chance in measures:
            known = [key for key in self.labels if found[key].get(measure) is not None]
            if not known:
                continue
            drawn.append({"label": name})
            for key in known:
                value, low, high = (found[key][name] for name in (measure, f"{prefix}low", f"{prefix}high"))
                label, shown = fmt.capital(self.labels[key]), fmt.percent(value)
                bounds = fmt.interval(fmt.PART, low, high, sign=False)
                rows.append([name, label, shown, bounds])
                drawn.append(_estimate(label, value, low, high, shown, bounds, self.place(key)) | {"mark": chance})
            parts = ", ".join(f"{self.labels[key]} {fmt.percent(found[key][measure])}" for key in known)
            told.append(f"{name}: {parts}.")
        svg = partial(charts.intervals, id, drawn, axis, percent=True)
        return {"svg": svg, "sentence": " ".join(told), "rows": rows}


def _estimate(
    label: str, value: float, low: float | None, high: float | None, text: str, bounds: str, series: int
) -> dict[str, Any]:
    """Return a row of `charts.intervals`."""
    text = text if low is None else f"{text} ({bounds})"
    return {"label": label, "value": value, "low": low, "high": high, "text": text, "series": series}
