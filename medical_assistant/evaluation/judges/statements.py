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
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy

from medical_assistant.data.records import Record, make_record, read_source
from medical_assistant.errors import UserError
from medical_assistant.evaluation.answers import read_appended
from medical_assistant.evaluation.judges.server import LABELS, Claim, JudgeDown, ServerJudge, Verdict
from medical_assistant.evaluation.names import pair_name
from medical_assistant.evaluation.scoring.bootstrap import (
    CONFIDENCE,
    MIN_QUESTIONS,
    Resampler,
    paired_difference,
    proportion_interval,
)

CONTRADICTIONS = ("contradictions", "contradictions_low", "contradictions_high")
EXAMPLES = 5  # contradicted statements to show, for each candidate

Labels = Mapping[str, str]  # statements of one question that have a verdict -> label of `LABELS`


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
    empty. A file that is missing, broken or empty is a `UserError` too.
    """
    if not path.is_file():
        raise UserError(f"There is no file {path}: check the path.")
    rows = []
    for number, raw in enumerate(read_source(str(path)).rows, start=1):
        columns = {str(key).strip().lower(): value for key, value in raw.items()}
        where = f"{path.name}, row {number}"
        if not isinstance(columns.get("question"), str) or not columns["question"].strip():
            raise UserError(f"{where} has no question: add one or remove the row.")
        lists = [[] if columns.get(name) is None else columns[name] for name in ("must_have", "nice_to_have")]
        for name, found in zip(("must_have", "nice_to_have"), lists, strict=True):
            if not isinstance(found, list) or not all(isinstance(text, str) and text.strip() for text in found):
                raise UserError(f"{where}: {name} must be a list of sentences, none empty: correct the row.")
        if not lists[0]:
            raise UserError(f"{where} has no must_have statement: add one or remove the row.")
        row_id = str(number) if columns.get("id") in (None, "") else str(columns["id"])
        must_have, nice_to_have = (tuple(text.strip() for text in found) for found in lists)
        rows.append(StatementRow(row_id, columns["question"].strip(), must_have, nice_to_have))
    if not rows:
        raise UserError(f"{path} is empty: give a file with question and must_have.")
    return rows


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
    judge: ServerJudge | None,
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
    `statement`: some of what was contradicted). Intervals are of 95 %, over questions (see `_mean`).

    Without a judge, or when no statement got a verdict, `status` is "not run" with a `reason`. Raises `UserError` when
    the judge goes away: what it said is kept, and a rerun goes on from there.
    """
    if judge is None:
        return {"status": "not run", "reason": "No judge was named (--judge)."}
    claims = [
        Claim(row.question, answer, statement)
        for texts in answers.values()
        for row, answer in zip(rows, texts, strict=True)
        for statement in row.statements
    ]
    verdicts = collect_verdicts(judge, claims, verdicts_file)
    reasons = Counter(verdicts[claim].reason for claim in claims if verdicts[claim].label is None)
    if len(claims) == reasons.total():
        worst = reasons.most_common(1)[0][0]
        return {"status": "not run", "reason": f"The judge gave no verdict on any statement: {worst}"}
    labels: dict[str, list[Labels]] = {
        candidate: [
            {text: label for text in row.statements if (label := verdicts[Claim(row.question, answer, text)].label)}
            for row, answer in zip(rows, texts, strict=True)
        ]
        for candidate, texts in answers.items()
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


def collect_verdicts(judge: ServerJudge, claims: Sequence[Claim], path: Path) -> dict[Claim, Verdict]:
    """Return the verdict on each claim; those that `path` holds, by the same judge, are not asked for again.

    A row of the file: `key`, a hash of the judge and the claim's texts, and `label`; a claim without a verdict is not
    written, so that a rerun asks again. An empty answer says nothing: no judge is needed for it.
    """
    from tqdm import tqdm

    saved = {row.get("key"): row.get("label") for row in read_appended(path)}
    keys = {
        claim: hashlib.sha256(json.dumps([judge.name, judge.prompt_sha256, *astuple(claim)]).encode()).hexdigest()
        for claim in claims
    }
    found = {claim: Verdict(saved[key]) for claim, key in keys.items() if saved.get(key) in LABELS}
    found |= {claim: Verdict("neither") for claim in keys if not claim.answer.strip()}
    missing = [claim for claim in keys if claim not in found]
    try:
        with path.open("a", encoding="utf-8", newline="\n") as file:
            verdicts = tqdm(judge.verdicts(missing), total=len(missing), desc="judge", unit="statement")
            for claim, verdict in zip(missing, verdicts, strict=True):
                found[claim] = verdict
                if verdict.label:
                    file.write(json.dumps({"key": keys[claim], "label": verdict.label}) + "\n")
                    file.flush()
    except JudgeDown as error:
        kept = sum(verdict.label is not None for verdict in found.values())
        raise UserError(f"{error} {kept:,} verdicts are kept: go on with --resume.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): free the disk.") from error
    return found


def _shares(rows: Sequence[StatementRow], groups: Sequence[Labels]) -> tuple[list[float | None], list[float | None]]:
    """Return for each question the part of its must-have statements that is entailed, and that of all its statements
    that is contradicted; None where none of them has a verdict."""
    recall: list[float | None] = []
    contradictions: list[float | None] = []
    for row, group in zip(rows, groups, strict=True):
        must_have = [group[statement] for statement in row.must_have if statement in group]
        recall.append(must_have.count("entailed") / len(must_have) if must_have else None)
        contradictions.append(list(group.values()).count("contradicted") / len(group) if group else None)
    return recall, contradictions


def _measures(rows: Sequence[StatementRow], groups: Sequence[Labels], resampler: Resampler) -> dict[str, Any]:
    """Return the measures of one candidate; a question without any verdict does not count."""
    recall, contradictions = ([share for share in shares if share is not None] for shares in _shares(rows, groups))
    contradicted = sum(label == "contradicted" for group in groups for label in group.values())
    return {
        "n": len(recall),
        **dict(zip(("recall", "low", "high"), _mean(recall, resampler), strict=True)),
        **dict(zip(CONTRADICTIONS, _mean(contradictions, resampler), strict=True)),
        "contradictions_per_question": contradicted / len(contradictions) if contradictions else None,
        "missing": sum(len(row.statements) for row in rows) - sum(map(len, groups)),
    }


def _mean(shares: Sequence[float], resampler: Resampler) -> tuple[float | None, float | None, float | None]:
    """Return the mean of values from 0 to 1, one a question, and the bounds of its 95 % interval.

    By percentile bootstrap over questions; Wilson's interval where there are too few questions for that, or all
    have the same value. Wilson's is for values that are 0 or 1: for others it is wider than needed, never narrower.
    """
    n = len(shares)
    if not n:
        return None, None, None
    if n < MIN_QUESTIONS or len(set(shares)) == 1:
        return sum(shares) / n, *proportion_interval(sum(shares), n)  # the formula takes parts of a success
    means = resampler.sums(numpy.array(shares)[:, None])[:, 0] / n
    low, high = numpy.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return sum(shares) / n, float(low), float(high)


def _comparisons(
    rows: Sequence[StatementRow], labels: Mapping[str, Sequence[Labels]], resampler: Resampler
) -> dict[str, Any]:
    """Return both comparisons of each other candidate with the first, over statements judged for both."""
    reference, *others = labels
    found: dict[str, Any] = {"comparison": {}, "contradictions_comparison": {}}
    for other in others:
        both = [a.keys() & b.keys() for a, b in zip(labels[reference], labels[other], strict=True)]
        shares = [
            _shares(
                rows, [{key: group[key] for key in keys} for group, keys in zip(labels[candidate], both, strict=True)]
            )
            for candidate in (reference, other)
        ]
        for name, better, a, b in zip(found, (1, -1), *shares, strict=True):
            found[name][pair_name(reference, other)] = paired_difference(a, b, better, resampler)
    return found


def _examples(candidate: str, rows: Sequence[StatementRow], groups: Sequence[Labels]) -> list[dict[str, str]]:
    found = [
        {"candidate": candidate, "id": row.id, "question": row.question, "statement": statement}
        for row, group in zip(rows, groups, strict=True)
        for statement, label in group.items()
        if label == "contradicted"
    ]
    return found[:EXAMPLES]
