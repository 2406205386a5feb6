"""Recall of must-have statements, and contradictions, of each candidate's answers: the measures of K-QA.

Source: Manes et al. 2024, "K-QA: A Real-World Medical Q&A Benchmark", arXiv:2401.14493 (data and code under MIT).
Its "comprehensiveness" is the mean over questions of the part of must-have statements that the answer entails; its
"hallucination rate" is the number of statements, must-have or nice-to-have, that the answer contradicts, per question.
A judge says which; without one nothing is measured, and nothing guessed.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy

from medical_assistant.data.records import Record, make_record, read_source
from medical_assistant.errors import UserError
from medical_assistant.evaluation.answers import read_appended
from medical_assistant.evaluation.judges.base import LABELS, Claim, Judge, JudgeDown, Verdict
from medical_assistant.evaluation.names import pair_name
from medical_assistant.evaluation.scoring.bootstrap import (
    CONFIDENCE,
    MIN_QUESTIONS,
    Difference,
    Resampler,
    paired_difference,
    proportion_interval,
)

EXAMPLES = 5  # contradicted statements to show, for each candidate

Labels = dict[str, str | None]  # statements of one question -> label of `LABELS`; None without a verdict


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
        raise UserError(f"{where}: {column} must be a list of sentences, none empty: correct the row.")
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
    answers: Mapping[str, Sequence[str]],
    judge: Judge | None,
    verdicts_file: Path,
    resampler: Resampler,
) -> dict[str, Any]:
    """Return the section `statements` of `metrics.json`.

    `answers` holds each candidate's in the order of `rows`; the first candidate is the reference. Every verdict is
    appended to `verdicts_file` at once, and those that stand there are not asked for again.

    Keys: `status`; `judge` (`kind`, `name`, `prompt_sha256`); `n` (questions); `must_have`, `nice_to_have`
    (statements); `candidates`: for each `n` (questions that count), `recall` (0-1, mean of questions) with `low` and
    `high`, `contradictions` (0-1, mean over questions of the part of statements that is contradicted) with
    `contradictions_low` and `contradictions_high`, `contradictions_per_question` (K-QA's hallucination rate),
    `missing` (statements without a verdict: left out above and below the line); `missing_reasons` (reason -> count);
    `comparison` (pair -> Difference of recall) and `contradictions_comparison` (pair -> Difference of contradictions,
    where less is better), over statements judged for both candidates; `examples` (`candidate`, `id`, `question`,
    `statement`: some of what was contradicted). Intervals are of 95 %, over questions (see `_interval`).

    Without a judge, or when no statement got a verdict, `status` is "not run" with a `reason`. Raises `UserError` when
    the judge goes away: what it said is kept, and a rerun goes on from there.
    """
    if judge is None:
        return {"status": "not run", "reason": "No judge was named (--judge)."}
    claims = {
        candidate: [
            {statement: Claim(row.question, answer, statement) for statement in row.statements}
            for row, answer in zip(rows, texts, strict=True)
        ]
        for candidate, texts in answers.items()
    }
    asked = [claim for groups in claims.values() for group in groups for claim in group.values()]
    verdicts = collect_verdicts(judge, asked, verdicts_file)
    reasons = Counter(verdicts[claim].reason for claim in asked if verdicts[claim].label is None)
    if len(asked) == reasons.total():
        worst = reasons.most_common(1)[0][0] if reasons else "there were no answers"
        return {"status": "not run", "reason": f"The judge gave no verdict on any statement: {worst}"}
    labels: dict[str, list[Labels]] = {
        candidate: [{statement: verdicts[claim].label for statement, claim in group.items()} for group in groups]
        for candidate, groups in claims.items()
    }
    return {
        "status": "done",
        "judge": {"kind": "server", "name": judge.name, "prompt_sha256": judge.prompt_sha256},
        "n": len(rows),
        "must_have": sum(len(row.must_have) for row in rows),
        "nice_to_have": sum(len(row.nice_to_have) for row in rows),
        "candidates": {candidate: _measures(rows, groups, resampler) for candidate, groups in labels.items()},
        "missing_reasons": dict(reasons.most_common()),
        **_comparisons(rows, labels, resampler),
        "examples": [example for candidate, groups in labels.items() for example in _examples(candidate, rows, groups)],
    }


def collect_verdicts(judge: Judge, claims: Sequence[Claim], path: Path) -> dict[Claim, Verdict]:
    """Return the verdict on each claim; those that `path` holds, by the same judge, are not asked for again.

    A row of the file: `key`, a hash of the judge and the claim's texts, and `label`; a claim without a verdict is not
    written, so that a rerun asks again. An empty answer says nothing: no judge is needed for it.
    """
    from tqdm import tqdm

    saved = {row.get("key"): row.get("label") for row in read_appended(path)}
    keys = {claim: _key(judge, claim) for claim in claims}
    found = {claim: Verdict(saved[key]) for claim, key in keys.items() if saved.get(key) in LABELS}
    found |= {claim: Verdict("neither") for claim in keys if not claim.answer.strip()}
    missing = [claim for claim in keys if claim not in found]
    if not missing:
        return found
    try:
        with path.open("a", encoding="utf-8", newline="\n") as file, closing(judge.verdicts(missing)) as verdicts:
            for index, verdict in tqdm(verdicts, total=len(missing), desc="judge", unit="statement"):
                found[missing[index]] = verdict
                if verdict.label:
                    file.write(json.dumps({"key": keys[missing[index]], "label": verdict.label}) + "\n")
                    file.flush()
    except JudgeDown as error:
        kept = sum(verdict.label is not None for verdict in found.values())
        raise JudgeDown(f"{error} {kept:,} verdicts are kept: go on with --resume.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): free the disk.") from error
    return found


def _key(judge: Judge, claim: Claim) -> str:
    return hashlib.sha256(json.dumps([judge.name, judge.prompt_sha256, *astuple(claim)]).encode()).hexdigest()


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


def _measures(rows: Sequence[StatementRow], groups: Sequence[Labels], resampler: Resampler) -> dict[str, Any]:
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


def _interval(shares: Sequence[float], resampler: Resampler) -> tuple[float | None, float | None]:
    """Return the 95 % interval of the mean of values from 0 to 1, one a question.

    By percentile bootstrap over questions; Wilson's interval where there are too few questions for that, or all
    have the same value. Wilson's is for values that are 0 or 1: for others it is wider than needed, never narrower.
    """
    n = len(shares)
    if not n:
        return None, None
    if n < MIN_QUESTIONS or len(set(shares)) == 1:
        return proportion_interval(sum(shares), n)  # the formula takes parts of a success
    means = resampler.sums(numpy.array(shares)[:, None])[:, 0] / n
    low, high = numpy.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _comparisons(
    rows: Sequence[StatementRow], labels: Mapping[str, Sequence[Labels]], resampler: Resampler
) -> dict[str, dict[str, Difference]]:
    """Return both comparisons of each other candidate with the first, over statements judged for both."""
    reference, *others = labels
    recall, contradictions = {}, {}
    for other in others:
        a, b = _both(labels[reference], labels[other]), _both(labels[other], labels[reference])
        pair = pair_name(reference, other)
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
