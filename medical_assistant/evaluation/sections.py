"""metrics.json: the scores, and sections that each say "done", or "not run" with a reason."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from contextlib import closing
from itertools import combinations
from pathlib import Path
from typing import Any

from medical_assistant.data.records import read_records
from medical_assistant.errors import UserError
from medical_assistant.evaluation.candidates import engine_groups
from medical_assistant.evaluation.confidence import fit_confidence
from medical_assistant.evaluation.gate import check_gate
from medical_assistant.evaluation.judges.statements import statements_section
from medical_assistant.evaluation.names import FINE_TUNED, pair_name
from medical_assistant.evaluation.run import MAIN, SAFETY, STATEMENTS, Run, describe_run
from medical_assistant.evaluation.safety import safety_section
from medical_assistant.evaluation.scoring.bootstrap import Resampler, paired_difference
from medical_assistant.evaluation.scoring.comparison import compare
from medical_assistant.evaluation.scoring.knowledge import knowledge_section, read_questions, score_choices
from medical_assistant.evaluation.scoring.metrics import score_all
from medical_assistant.evaluation.strata import nearest_training, question_type, strata_section
from medical_assistant.files import write_json
from medical_assistant.hub.resolve import open_adapter
from medical_assistant.models.adapter import CALIBRATION_FILE
from medical_assistant.models.presets import find_preset

VERDICTS = "statements.verdicts.jsonl"

Metrics = dict[str, Any]
Rows = list[dict[str, Any]]


def measure(run: Run) -> tuple[Metrics, Rows]:
    """Return (metrics.json without its optional sections, the rows of predictions.jsonl).

    `metrics`: `n`, `candidates`, `scores` and `relative_change` by candidate and metric (`METRICS`), `decoding`,
    `data`, signatures, versions, hardware, commit, settings. A row: `id`, `question`, `reference`, under `candidates`
    each candidate's answer with its `scores`.
    """
    references = [record["completion"][0]["content"] for record in run.records]
    rows: Rows = [
        {"id": record["id"], "question": record["prompt"][-1]["content"], "reference": reference, "candidates": {}}
        for record, reference in zip(run.records, references, strict=True)
    ]
    corpus: dict[str, dict[str, float]] = {}
    for key in run.keys:
        answers = run.answers[MAIN].of(key, run.records)
        scores, items = score_all([answer["answer"] for answer in answers], references)
        corpus[key] = scores | _answer_scores(answers, run.seconds.get(key, 0.0))
        for row, answer, item in zip(rows, answers, items, strict=True):
            kept = {name: value for name, value in answer.items() if name not in ("id", "candidate")}
            row["candidates"][key] = {**kept, "scores": {**item, "ended": float(answer["ended"])}}
    base, *others = run.keys
    changes = {
        key: {
            metric: value / corpus[base][metric] - 1 if corpus[base].get(metric) else None
            for metric, value in corpus[key].items()
        }
        for key in others
    }
    return describe_run(run) | {"scores": corpus, "relative_change": changes}, rows


def _answer_scores(answers: Sequence[Mapping[str, Any]], seconds: float) -> dict[str, float]:
    """What concerns the answers themselves: their ends, their tokens, their time.

    `mean_seconds` is an answer's own time, beside the others of its batch; `tokens_per_second` is that of all
    together, and is left out where every answer came from an earlier run.
    """
    tokens = sum(answer["tokens"] for answer in answers)
    scores = {
        "ended": sum(answer["ended"] for answer in answers) / len(answers),
        "mean_tokens": tokens / len(answers),
        "mean_seconds": sum(answer["seconds"] for answer in answers) / len(answers),
    }
    if seconds > 1.0:
        scores["tokens_per_second"] = tokens / seconds
    return scores


def add_sections(run: Run, metrics: Metrics, rows: Rows) -> None:
    """Add every optional section to `metrics`, and to `rows` what belongs to single questions."""
    settings = run.settings
    add_strata(run, rows)
    metrics["comparison"] = compare(rows, run.keys, _resampler(run))
    metrics["strata"] = strata(run, metrics, rows)
    metrics["perplexity"], metrics["knowledge"] = likelihoods(run)
    for key, value in metrics["perplexity"].get("perplexity", {}).items():
        metrics["scores"][key]["perplexity"] = value
    metrics["statements"] = statements(run)
    metrics["safety"] = safety(run)
    metrics["confidence"] = confidence(run, rows)
    if settings.gate:
        metrics["gate"] = check_gate(metrics, Path(settings.gate))


def add_strata(run: Run, rows: Rows) -> None:
    """Add to each row its `question_type`, and how near the nearest training question is, where there are any."""
    training = run.settings.data / "train.jsonl"
    questions = [row["question"] for row in rows]
    nearest: Sequence[Any] = [None] * len(rows)
    if training.is_file():
        trained = [record["prompt"][-1]["content"] for record in read_records(training)]
        nearest = nearest_training(questions, trained)
    for row, found in zip(rows, nearest, strict=True):
        row["question_type"] = question_type(row["question"])
        row["similarity"] = round(found.similarity, 4) if found else None
        row["nearest"] = found.text if found else None
        row["stratum"] = found.stratum if found else None


def strata(run: Run, metrics: Metrics, rows: Rows) -> Metrics:
    def scores(some: Sequence[Mapping[str, Any]], candidate: str) -> dict[str, float]:
        answers = [row["candidates"][candidate] for row in some]
        if len(some) == len(rows):  # scored already: 500 answers take 8 s
            return {key: value for key, value in metrics["scores"][candidate].items() if key in answers[0]["scores"]}
        return {
            **score_all([answer["answer"] for answer in answers], [row["reference"] for row in some])[0],
            "ended": sum(answer["ended"] for answer in answers) / len(answers),
        }

    return strata_section(rows, run.keys, scores, _resampler(run))


def likelihoods(run: Run) -> tuple[Metrics, Metrics]:
    """Return the sections `perplexity` and `knowledge`: what needs the probabilities of given texts."""
    settings = run.settings
    knowledge = _not_run("No multiple-choice file was named (--choices).")
    perplexity = _not_run("It was switched off (--no-perplexity).")
    if not (settings.choices or settings.perplexity):
        return perplexity, knowledge
    if importlib.util.find_spec("torch") is None:
        if settings.choices:
            raise UserError("--choices needs torch: pip install -r requirements.txt")
        return _not_run("torch is not installed."), knowledge
    from medical_assistant.evaluation.scoring import likelihood

    sets = [read_questions(Path(file)) for file in settings.choices]
    chosen: list[dict[str, Any]] = [{} for _ in sets]
    found: dict[str, Any] = {}
    for group in engine_groups(run.candidates):
        preset = find_preset(group[0].model)
        adapter = next((candidate.adapter for candidate in group if candidate.adapter), None)
        adapters = {candidate.key: candidate.adapter is not None for candidate in group}
        with closing(likelihood.Scorer(preset, open_adapter(adapter, preset) if adapter else None)) as scorer:
            if settings.perplexity:
                for key, active in adapters.items():
                    found[key] = likelihood.perplexity(scorer, run.records, active, f"perplexity, {key}")
            for results, questions in zip(chosen, sets, strict=True):
                results |= score_choices(scorer, questions.questions, adapters)
    if settings.choices:
        knowledge = knowledge_section(list(zip(sets, chosen, strict=True)), _resampler(run))
    return (_perplexity_section(run, found) if settings.perplexity else perplexity), knowledge


def _perplexity_section(run: Run, found: Mapping[str, Mapping[str, Any]]) -> Metrics:
    """`perplexity`, `bits_per_byte`, `truncated` by candidate; `comparison`: of the nats a token of each answer."""
    per_token = {
        key: [nll / count for nll, count in zip(of_key["nll_per_item"], of_key["tokens_per_item"], strict=True)]
        for key, of_key in found.items()
    }
    names = ("tokens", "truncated", "perplexity", "bits_per_byte")
    return {
        "status": "done",
        **{name: {key: of_key[name] for key, of_key in found.items()} for name in names},
        "comparison": {
            pair_name(a, b): paired_difference(per_token[a], per_token[b], -1, _resampler(run))
            for a, b in combinations(run.keys, 2)
        },
    }


def statements(run: Run) -> Metrics:
    if STATEMENTS not in run.sets:
        return _not_run("No file of questions with must-have statements was named.")
    texts = run.answers[STATEMENTS].texts(run.keys, run.sets[STATEMENTS])
    verdicts = run.settings.output / VERDICTS
    section = statements_section(run.statement_rows, texts, run.judge, verdicts, _resampler(run))
    return {**section, "sha256": run.sha256[STATEMENTS]}


def safety(run: Run) -> Metrics:
    if SAFETY not in run.sets:
        return _not_run("It was left out (--safety none).")
    texts = run.answers[SAFETY].texts(run.keys, run.sets[SAFETY])
    return {**safety_section(run.safety_rows, texts, _resampler(run)), "sha256": run.sha256[SAFETY]}


def confidence(run: Run, rows: Rows) -> Metrics:
    """Fit and test the calibration of the fine-tuned model's answers; write calibration.json into the run's folder."""
    if FINE_TUNED not in run.keys:
        return _not_run("Confidence is fitted for one adapter (--adapter).")
    measured = {
        "adapter_revision": run.revisions[FINE_TUNED],
        "engine": run.engines.get(FINE_TUNED),
        "decoding": {"temperature": 0.0, "max_new_tokens": run.settings.max_new_tokens},
    }
    section, calibration = fit_confidence(rows, FINE_TUNED, run.settings.seed, measured)
    if calibration:
        write_json(run.settings.output / CALIBRATION_FILE, calibration)
    return section


def _not_run(reason: str) -> Metrics:
    return {"status": "not run", "reason": reason}


def _resampler(run: Run) -> Resampler:
    return Resampler(run.settings.resamples, run.settings.seed)
