"""Recall of must-have statements, and contradictions, of each candidate's answers: the measures of K-QA.

Source: Manes et al. 2024, "K-QA: A Real-World Medical Q&A Benchmark", arXiv:2401.14493 (data and code under MIT).
Its "comprehensiveness" is the mean over questions of the part of must-have statements that the answer entails; its
"hallucination rate" is the number of statements, must-have or nice-to-have, that the answer contradicts, per question.
A judge (`judge.ServerJudge` or `entailment.NliJudge`) says which; without one nothing is measured, and nothing guessed.

How far a judge can be trusted is measured on `assets/evaluation/judge_check.jsonl`, whose labels are by the author of
this project, not by clinicians (see `judge_agreement`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medical_assistant.data.records import Record, make_record, read_source
from medical_assistant.errors import UserError
from medical_assistant.evaluation.judges.judge import Claim, Judge
from medical_assistant.evaluation.judges.judge_agreement import CHECK_FILE, agreement, read_check_set
from medical_assistant.evaluation.judges.verdict_log import VerdictLog

if TYPE_CHECKING:
    from medical_assistant.evaluation.scoring.bootstrap import Difference, Resampler

EXAMPLES = 5  # contradicted statements to show, for each candidate

Labels = dict[str, str | None]  # statements of one question -> label of `judge.LABELS`; None without a verdict


@dataclass(frozen=True)
class StatementRow:
    """A question with the statements that a good answer must, or may, contain."""

    id: str
    question: str
    must_have: tuple[str, ...]
    nice_to_have: tuple[str, ...] = ()

    @property
    def statements(self) -> tuple[str, ...]:
        """All statements once, must-have first."""
        return tuple(dict.fromkeys((*self.must_have, *self.nice_to_have)))


def read_statements(path: Path) -> list[StatementRow]:
    """Return the rows of a set with must-have statements (.jsonl, .json or .parquet; K-QA's own file serves).

    Columns, in any case: `question` (text), `must_have` (list of statements), optionally `nice_to_have` (list)
    and `id`; a row without an id gets its number.

    Raises `UserError` that names the row: no question, no must-have statement, a statement that is not text or is
    empty, an id that an earlier row has. A file that is missing, broken or empty is a `UserError` too.
    """
    if not path.is_file():
        raise UserError(f"There is no file {path}: check the path.")
    rows, seen = [], dict[str, int]()
    for number, raw in enumerate(read_source(str(path)).rows, start=1):
        columns = {str(key).strip().lower(): value for key, value in raw.items()}
        where = f"{path.name}, row {number}"
        question = columns.get("question")
        if not isinstance(question, str) or not question.strip():
            raise UserError(f"{where} has no question: add one or remove the row.")
        row_id = str(number) if columns.get("id") in (None, "") else str(columns["id"])
        if row_id in seen:
            raise UserError(f"{where} has the id {row_id} of row {seen[row_id]}: give each row an id of its own.")
        seen[row_id] = number
        must_have = _statement_list(columns.get("must_have"), "must_have", where)
        if not must_have:
            raise UserError(f"{where} has no must_have statement: add one or remove the row.")
        nice_to_have = _statement_list(columns.get("nice_to_have"), "nice_to_have", where)
        rows.append(StatementRow(row_id, question.strip(), must_have, nice_to_have))
    if not rows:
        raise UserError(f"{path} is empty: give a file with question and must_have.")
    return rows


def _statement_list(value: object, column: str, where: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(text, str) and text.strip() for text in value):
        raise UserError(f"{where}: {column} must be a list of sentences, none empty: mend the row.")
    return tuple(text.strip() for text in value)


def statement_records(rows: Sequence[StatementRow]) -> list[Record]:
    """Return the questions as records of `data_prep.py`, to be answered like any other.

    The completion is the must-have statements in a row; nothing is scored against it.
    """
    return [
        make_record(row.question, " ".join(row.must_have), row.id, "statements", cluster)
        for cluster, row in enumerate(rows)
    ]


def statements_section(
    rows: Sequence[StatementRow],
    answers_by_system: Mapping[str, Sequence[str]],
    judge: Judge | None,
    *,
    partial: Path | None = None,
    check_file: Path | None = CHECK_FILE,
    resampler: Resampler | None = None,
) -> dict[str, Any]:
    """Return the section `statements` of `metrics.json`.

    `answers_by_system` holds the answers in the order of `rows`; its first candidate is the reference. With `partial`
    every verdict is appended to that file at once, and verdicts that stand there, by the same judge on the same
    texts, are not asked for again. `check_file` None leaves out the agreement with human labels.

    Keys: `status`; `judge` (`kind`, `name`, `revision`, `prompt_sha256`, `agreement`); `n` (questions);
    `must_have`, `nice_to_have` (statements); `candidates`: for each `n` (questions that count), `recall` (0-1, mean of
    questions) with `low` and `high`, `contradictions` (0-1, mean over questions of the part of statements that is
    contradicted) with `contradictions_low` and `contradictions_high`, `contradictions_per_question` (K-QA's
    hallucination rate), `missing` (statements without a verdict: left out above and below the line);
    `missing_reasons` (reason -> count); `comparison` (pair -> Difference of recall) and `contradictions_comparison`
    (pair -> Difference of contradictions, where less is better), over statements judged for both candidates;
    `examples` (`candidate`, `id`, `question`, `statement`: some of what was contradicted).
    Intervals are of 95 %, over questions (see `_interval`). An empty answer entails and contradicts nothing.

    Without a judge, or when no statement got a verdict, `status` is "not run" with a `reason`.
    Raises `UserError` when the judge goes away: what it said is in `partial`, and a rerun goes on from there.
    """
    if judge is None:
        return {"status": "not run", "reason": "Neither a judge nor an NLI model was named."}
    log = VerdictLog.open(judge, partial)
    checked = None
    if check_file is not None:  # first: it is short, and shows at once whether the judge works
        claims, human = read_check_set(check_file)
        log.judge_all(claims)
        checked = agreement([log.verdict(claim).label for claim in claims], human)
    by_system: dict[str, list[Labels]] = {}
    reasons: Counter[str] = Counter()
    for candidate, answers in answers_by_system.items():
        groups = [
            {statement: Claim(row.question, answer, statement) for statement in row.statements}
            for row, answer in zip(rows, answers, strict=True)
        ]
        log.judge_all([claim for group in groups for claim in group.values()])
        verdicts = [{statement: log.verdict(claim) for statement, claim in group.items()} for group in groups]
        reasons.update(verdict.reason for group in verdicts for verdict in group.values() if verdict.label is None)
        by_system[candidate] = [
            {statement: verdict.label for statement, verdict in group.items()} for group in verdicts
        ]
    judged = sum(label is not None for groups in by_system.values() for group in groups for label in group.values())
    if not judged:
        worst = reasons.most_common(1)[0][0] if reasons else "there were no answers"
        return {"status": "not run", "reason": f"The judge gave no verdict on any statement: {worst}"}
    return {
        "status": "done",
        "judge": {
            "kind": judge.kind,
            "name": judge.name,
            "revision": judge.revision,
            "prompt_sha256": judge.prompt_sha256,
            "agreement": checked,
        },
        "n": len(rows),
        "must_have": sum(len(row.must_have) for row in rows),
        "nice_to_have": sum(len(row.nice_to_have) for row in rows),
        "candidates": {candidate: _measures(rows, groups, resampler) for candidate, groups in by_system.items()},
        "missing_reasons": dict(reasons.most_common()),
        **_comparisons(rows, by_system, resampler),
        "examples": [
            example for candidate, groups in by_system.items() for example in _examples(candidate, rows, groups)
        ],
    }


def _share(labels: Sequence[str | None], wanted: str) -> float | None:
    """Return the part of the verdicts that is `wanted`; None without a verdict."""
    judged = [label for label in labels if label is not None]
    return judged.count(wanted) / len(judged) if judged else None


def _recall(rows: Sequence[StatementRow], groups: Sequence[Labels]) -> list[float | None]:
    return [
        _share([group[statement] for statement in row.must_have], "entailed")
        for row, group in zip(rows, groups, strict=True)
    ]


def _contradictions(groups: Sequence[Labels]) -> list[float | None]:
    return [_share(list(group.values()), "contradicted") for group in groups]


def _measures(rows: Sequence[StatementRow], groups: Sequence[Labels], resampler: Resampler | None) -> dict[str, Any]:
    """Return the measures of one candidate; a question without any verdict does not count."""
    recall = [share for share in _recall(rows, groups) if share is not None]
    contradictions = [share for share in _contradictions(groups) if share is not None]
    labels = [label for group in groups for label in group.values()]
    low, high = _interval(recall, resampler)
    contradictions_low, contradictions_high = _interval(contradictions, resampler)
    return {
        "n": len(recall),
        "recall": _mean(recall),
        "low": low,
        "high": high,
        "contradictions": _mean(contradictions),
        "contradictions_low": contradictions_low,
        "contradictions_high": contradictions_high,
        "contradictions_per_question": labels.count("contradicted") / len(contradictions) if contradictions else None,
        "missing": labels.count(None),
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _interval(shares: Sequence[float], resampler: Resampler | None) -> tuple[float | None, float | None]:
    """Return the 95 % interval of the mean of values from 0 to 1, one a question.

    By percentile bootstrap over questions; Wilson's interval where there are too few questions for that, or all
    have the same value. Wilson's is for values that are 0 or 1: for others it is wider than needed, never narrower.
    """
    import numpy

    from medical_assistant.evaluation.scoring.bootstrap import CONFIDENCE, MIN_QUESTIONS, Resampler, proportion_interval

    n = len(shares)
    if not n:
        return None, None
    if n < MIN_QUESTIONS or len(set(shares)) == 1:
        return proportion_interval(sum(shares), n)  # the formula takes parts of a success
    means = (resampler or Resampler()).sums(numpy.array(shares)[:, None])[:, 0] / n
    low, high = numpy.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _comparisons(
    rows: Sequence[StatementRow], by_system: Mapping[str, Sequence[Labels]], resampler: Resampler | None
) -> dict[str, dict[str, Difference]]:
    """Return both comparisons of each other candidate with the first, over statements judged for both."""
    from medical_assistant.evaluation.scoring.bootstrap import paired_difference

    reference, *others = by_system
    recall, contradictions = {}, {}
    for other in others:
        a, b = _both(by_system[reference], by_system[other]), _both(by_system[other], by_system[reference])
        pair = f"{other} vs {reference}"
        recall[pair] = paired_difference(_recall(rows, a), _recall(rows, b), 1, resampler)
        contradictions[pair] = paired_difference(_contradictions(a), _contradictions(b), -1, resampler)
    return {"comparison": recall, "contradictions_comparison": contradictions}


def _both(own: Sequence[Labels], other: Sequence[Labels]) -> list[Labels]:
    """Return `own` without the verdicts on statements that have none in `other`."""
    return [
        {statement: label if theirs[statement] is not None else None for statement, label in group.items()}
        for group, theirs in zip(own, other, strict=True)
    ]


def _examples(candidate: str, rows: Sequence[StatementRow], groups: Sequence[Labels]) -> list[dict[str, str]]:
    found = [
        {"candidate": candidate, "id": row.id, "question": row.question, "statement": statement}
        for row, group in zip(rows, groups, strict=True)
        for statement, label in group.items()
        if label == "contradicted"
    ]
    return found[:EXAMPLES]
