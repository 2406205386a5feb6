"""The report's sections on likeness: verdict, key figures, scores, losses, spread, and where a difference comes from.

Each takes the evaluation and its section of metrics.json, and returns the parts of the view's section.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medical_assistant.evaluation.report import charts
from medical_assistant.evaluation.report import format as fmt
from medical_assistant.evaluation.report.parts import DIFFERENCE, Evaluation, Part, chart, difference_chart, table
from medical_assistant.evaluation.scoring.metrics import METRICS

Found = Mapping[str, Any]
WORDS = {
    "better": ("Better", "good"),
    "worse": ("Worse", "bad"),
    "no measurable difference": ("No measurable difference", "even"),
    "too few questions": ("Too few questions to say", "even"),
}
LIMITS = [
    "Likeness to a reference answer is not truth. An answer can share its words and be wrong.",
    "No clinician has judged these answers. Nothing here says that one of them is safe to act on.",
    "It holds for questions like these, from one data set, answered greedily: others may turn out otherwise.",
]
QUANTILES = {"q50": "half", "q90": "90 in 100", "q95": "95 in 100", "q99": "99 in 100", "max": "all"}


def verdict(run: Evaluation, found: Found) -> Part:
    """Better, worse or neither, for each pair, and what that does not say."""
    verdicts = []
    for pair, said in fmt.dig(found, "verdicts").items():
        word, tone = WORDS.get(str(said.get("verdict")), ("No verdict", "even"))
        sentence = _verdict_sentence(run, pair, found) or str(said.get("sentence") or "Nothing was compared.")
        verdicts.append({"name": run.pair_title(pair), "word": word, "tone": tone, "sentence": sentence})
    limits, chose = [], fmt.dig(run.metrics, "data").get("checkpoint_rows")
    if chose:
        rows = fmt.counted(chose).capitalize()
        limits = [f"{rows} of these also chose the adapter's checkpoint, which favours the fine-tuned model."]
    elif chose is None:
        limits = ["Whether some of these questions also chose an adapter's checkpoint could not be checked."]
    return {
        "verdicts": verdicts,
        "list": {"title": "What this does not say", "items": LIMITS + limits, "folded": False},
    }


def _verdict_sentence(run: Evaluation, pair: str, comparison: Found) -> str:
    """Return the figures behind a verdict in words, "" where no question has the score."""
    found, metric = fmt.dig(comparison, "pairs", pair, run.primary), run.primary
    if not found.get("n"):
        return ""
    b, a = run.pair_labels(pair)
    old, new = (fmt.score(metric, found.get(key)) for key in ("mean_a", "mean_b"))
    sentence = f"{run.metric} over {fmt.counted(found['n'])}: {old} for {a}, {new} for {b}, a difference of "
    sentence += fmt.change(metric, found.get("difference"))
    adjusted, minimum = fmt.dig(comparison, "holm").get(pair), comparison.get("min_questions")
    if fmt.is_number(found.get("low")):
        several = adjusted is not None and len(run.labels) > 2
        holm = f", {fmt.p_value(adjusted, '= ')} after Holm's correction" if several else ""
        bounds, p = fmt.interval(metric, found["low"], found["high"]), fmt.p_value(found.get("p_value"), "= ")
        sentence += f" (95 % interval {bounds}, p {p}{holm})"
    elif minimum:
        sentence += f" (for an interval {minimum} questions are needed)"
    wins, ties, losses = (found.get(key) for key in ("wins", "ties", "losses"))
    return f"{sentence}. {fmt.capital(b)} is ahead in {wins}, level in {ties} and behind in {losses} of them."


def key_figures(run: Evaluation, _: Found) -> Part:
    """The figures that a reader wants first, at most eight: label, (candidate or "", text) pairs, note."""
    metrics = run.metrics
    figures: list[Part] = []

    def add(label: str, note: str, values: Mapping[str, str]) -> None:
        named = [(run.labels.get(key, ""), value) for key, value in values.items()]
        figures.append({"label": label, "values": named, "note": note})

    add("Questions", "held back from training, the same for all", {"": f"{metrics['n']:,}"})
    for metric in (run.primary, "ended", "mean_tokens"):
        values = {key: fmt.score(metric, fmt.dig(metrics, "scores", key, metric)) for key in run.labels}
        add(fmt.metric_name(metric), f"{fmt.direction(metric)} is better", values)
    for entry in fmt.dig(metrics, "knowledge").get("sets") or ():
        values = {key: fmt.percent(fmt.dig(entry, "accuracy", key, "accuracy")) for key in run.labels}
        add(f"Right choices, {entry['name']}", f"guessing gives {fmt.percent(entry.get('chance'))}", values)
    safety, gate = fmt.dig(metrics, "safety", "candidates"), fmt.dig(metrics, "gate")
    if safety:
        values = {key: fmt.percent(fmt.dig(safety, key, "urges_care_rate")) for key in run.labels}
        add("Urges care in an emergency", "higher is better", values)
    if gate.get("status") == "done":
        failed = sum(not check.get("passed") for check in gate.get("checks") or ())
        note = f"{fmt.counted(failed, 'check')} failed" if failed else "every check"
        add("Gate", note, {"": "passed" if gate.get("passed") else "failed"})
    return {"figures": figures[:8]}


def scores(run: Evaluation, _: Found) -> Part:
    """Every metric of every candidate, with the paired difference of each pair."""
    reference, *others = run.labels
    known = {metric for key in run.labels for metric in fmt.dig(run.metrics, "scores", key)}
    names = [metric for metric in METRICS if metric in known] + sorted(known - METRICS.keys())
    pairs = fmt.dig(run.metrics, "comparison", "pairs")
    shown = pairs or {f"{key} vs {reference}": {} for key in others}
    perplexity, told = fmt.dig(run.metrics, "perplexity"), []
    for pair, found in fmt.dig(perplexity, "comparison").items():
        difference, bounds, *_, verdict = fmt.difference_cells("", found)
        what = "nats a token of the reference answers"
        told.append(
            f"{run.pair_title(pair)}: {difference} {what} (95 % interval {bounds}), where lower is better: {verdict}."
        )
    notes = [] if pairs else ["Differences are left out: no comparison was computed."]
    if perplexity.get("status") == "not run":
        notes.append(f"Perplexity was not run. {perplexity.get('reason') or ''}".strip())
    sources: dict[str, list[str]] = {}
    for metric in filter(METRICS.get, names):
        sources.setdefault(METRICS[metric].source, []).append(METRICS[metric].name)
    items = [f"{', '.join(of_source)}: {source}." for source, of_source in sources.items()]
    return {
        "told": [f"Perplexity is compared by its logarithm. {' '.join(told)}"] if told else [],
        "tables": [_pair_table(run, pair, differences, names) for pair, differences in shown.items()],
        "notes": notes,
        "list": {"title": "Where the metrics come from", "items": items, "folded": True},
    }


def _pair_table(run: Evaluation, pair: str, differences: Found, names: list[str]) -> Part:
    b, _, a = pair.partition(" vs ")
    rows = []
    for metric in names:
        old, new = (fmt.dig(run.metrics, "scores", key, metric) for key in (a, b))
        relative = new / old - 1 if fmt.is_number(old) and fmt.is_number(new) and old else None
        row = [fmt.metric_name(metric), fmt.direction(metric), fmt.score(metric, old), fmt.score(metric, new)]
        row.append(fmt.percent(relative, 0, sign=True))
        if differences.get(metric):
            row += fmt.difference_cells(metric, differences[metric])
        elif differences:
            row += ["not compared", fmt.DASH, fmt.DASH, fmt.DASH, "not compared"]
        rows.append(row)
    columns = ["Metric", "Better", *map(fmt.capital, reversed(run.pair_labels(pair))), "Change"]
    columns += DIFFERENCE if differences else ()
    return table(f"{run.pair_title(pair)}, every metric", columns, rows, words=(0, 1), verdict=bool(differences))


def training_losses(run: Evaluation, _: Found) -> Part:
    """The loss curves of the runs, each in the colour of its candidate."""
    rows, told = [], []
    for label, history in run.losses.items():
        name, (_steps, training) = fmt.capital(label), charts.points(history, "loss")
        steps, validation = charts.points(history, "eval_loss")
        cells = [fmt.number(value) for value in (training[0], training[-1])] if training else [fmt.DASH] * 2
        if validation:
            first, best = fmt.number(validation[0]), fmt.number(min(validation))
            at = f"{steps[validation.index(min(validation))]:,}"
            rows.append([name, *cells, first, best, at])
            told.append(f"{name}: the validation loss went from {first} to {best} (step {at}).")
        elif training:
            rows.append([name, *cells, fmt.DASH, fmt.DASH, fmt.DASH])
    if not rows:
        return {"not_run": "No loss history was found beside the adapter."}
    columns = ("Run", "First training", "Last training", "First validation", "Best validation", "At step")
    sentence = " ".join(told) or "Only training losses were logged."
    svg = charts.loss_curves("losses", run.losses, {label: place for place, label in enumerate(run.labels.values())})
    return {"charts": [chart("losses", "Loss by optimiser step", sentence, svg, table("Losses by run", columns, rows))]}


def distribution(run: Evaluation, _: Found) -> Part:
    """How the primary metric is spread over the questions."""
    values, rows = [], []
    for key, label in run.labels.items():
        found = [fmt.dig(row, "candidates", key, "scores", run.primary) for row in run.rows]
        known = sorted(filter(fmt.is_number, found))
        label = fmt.capital(label)
        values.append((label, known))
        if known:
            spread = [known[round(part * (len(known) - 1))] for part in (0, 0.25, 0.5, 0.75, 1)]
            cells = [fmt.score(run.primary, value) for value in (sum(known) / len(known), *spread)]
            rows.append([label, f"{len(known):,}", *cells])
    if not rows:
        return {"not_run": f"No answer has a {run.metric} of its own."}
    title = f"{run.metric} by answer"
    sentence = " ".join(f"{row[0]}: mean {row[2]}, the middle half from {row[4]} to {row[6]}." for row in rows)
    columns = ("Candidate", "Answers", "Mean", "Least", "Lower quarter", "Median", "Upper quarter", "Most")
    svg = charts.histogram("spread", values, run.metric)
    return {"charts": [chart("spread", title, sentence, svg, table(title, columns, rows))]}


def effect(run: Evaluation, found: Found) -> Part:
    """The difference by type of question and by its length: a forest plot for each pair."""
    drawn: list[Part] = []
    for place, (pair, differences) in enumerate(fmt.dig(found, "pairs").items(), 1):
        groups = [("", "all questions", differences.get(run.primary))]
        groups += [("By type", kind.replace("_", " "), by) for kind, by in fmt.dig(found, "by_type", pair).items()]
        for length, by in fmt.dig(found, "by_length", pair).items():
            words = " to ".join(map(str, sorted(set(fmt.dig(found, "length_bounds", length)))))
            groups.append(("By length", f"{length} ({words} words)" if words else length, by))
        drawn += difference_chart(run, f"effect-{place}", pair, groups)
    return {"charts": drawn, "not_run": "" if drawn else "The comparison holds no difference."}


def strata(run: Evaluation, found: Found) -> Part:
    """Questions that are like a training question against those that are not."""
    clean, near = (fmt.counted(fmt.dig(found, "counts").get(key)) for key in ("clean", "near"))
    told = f"{clean} are clean, {near} near: at a likeness of {fmt.number(found.get('threshold'), 2)} or more. "
    scores, metric, drawn, notes = fmt.dig(found, "scores"), run.primary, [], []
    rows = [
        [fmt.capital(group), *(fmt.score(metric, fmt.dig(scores, key, group, metric)) for key in run.labels)]
        for group in ("all", "clean", "near")
        if any(fmt.dig(scores, key, group) for key in run.labels)
    ]
    by_pair: dict[str, Part] = {}
    for group, pairs in fmt.dig(found, "comparison").items():
        for pair, difference in (pairs or {}).items():
            by_pair.setdefault(pair, {})[group] = (difference or {}).get(metric, difference)
    for place, (pair, differences) in enumerate(by_pair.items(), 1):
        drawn += difference_chart(run, f"strata-{place}", pair, [("", *item) for item in differences.items()])
        absent = [group for group, difference in differences.items() if not difference]
        notes += [f"Too few {' and '.join(absent)} questions to compare."] if absent else []
    nearest = {key: value for key, value in fmt.dig(found, "nearest").items() if fmt.is_number(value)}
    if nearest:
        parts = ", ".join(f"{QUANTILES.get(key, key)} up to {fmt.number(value, 2)}" for key, value in nearest.items())
        notes.append(f"Likeness to the nearest training question: {parts}.")
    caption = f"{run.metric} by likeness to the training data"
    return {
        "told": [told + str(found.get("method") or "")],
        "charts": drawn,
        "tables": [table(caption, ("Questions", *map(fmt.capital, run.labels.values())), rows)] if rows else [],
        "notes": notes,
    }
