"""Knowledge: multiple-choice questions from local files, answered by the likelihood of the options.

No text is sampled and parsed: an answer in an unexpected form would count as wrong, and a small model gives many.
"""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medical_assistant.data.records import read_source
from medical_assistant.errors import UserError
from medical_assistant.evaluation.names import pair_name
from medical_assistant.evaluation.scoring.bootstrap import Resampler, paired_difference, proportion_interval
from medical_assistant.prompts import build_messages, clean_text

if TYPE_CHECKING:
    from medical_assistant.evaluation.scoring.likelihood import CompletionScore, Scorer

METHOD = "log-likelihood of the text of each option, given the question with its options"


@dataclass(frozen=True)
class ChoiceQuestion:
    """One question; `answer` is the index of the right option."""

    id: str
    question: str
    labels: tuple[str, ...]  # "A", "B", ...
    options: tuple[str, ...]
    answer: int
    subject: str | None = None

    @property
    def text(self) -> str:
        """The user's message: the question, then its options, one a line, as in MMLU."""
        lines = [f"{label}. {option}" for label, option in zip(self.labels, self.options, strict=True)]
        return "\n".join([self.question, "", *lines])


@dataclass(frozen=True)
class QuestionSet:
    """The questions of a file."""

    name: str  # of the file
    sha256: str  # of the whole file
    questions: list[ChoiceQuestion]


@dataclass(frozen=True)
class ChoiceScore:
    """One model's scores of the options of one question, in their order: of their texts, and of their letters."""

    texts: tuple[CompletionScore, ...]
    letters: tuple[CompletionScore, ...]


def read_questions(file: Path) -> QuestionSet:
    """Return the questions of a `.jsonl`, `.json`, `.csv` or `.parquet` file.

    Columns: `question`; `options`, a list or an object of letter to text (in CSV as JSON); `answer`, a letter, the
    index of the option from 0, or its text, understood in that order; if wanted `id` and `subject`. Options that
    are null are left out. Raises `UserError` with the number of the row for one that cannot be used, and for an
    id given twice.
    """
    if not file.is_file():
        raise UserError(f"There is no file {file}: give one with the columns question, options, answer.")
    source = read_source(str(file))
    questions: list[ChoiceQuestion] = []
    rows_of: dict[str, int] = {}
    for number, row in enumerate(source.rows, start=1):
        where = f"{file.name}, row {number}"
        question = _question(row, where, default_id=f"{file.stem}-{number}")
        if question.id in rows_of:
            raise UserError(f"{where}: the id {question.id!r} is that of row {rows_of[question.id]}: make ids unique.")
        rows_of[question.id] = number
        questions.append(question)
    if not questions:
        raise UserError(f"{file.name} has no questions: give a file with the columns question, options, answer.")
    return QuestionSet(source.name, source.revision, questions)


def _question(row: Mapping[str, Any], where: str, default_id: str) -> ChoiceQuestion:
    for column in ("question", "options", "answer"):
        if row.get(column) in (None, ""):
            raise UserError(f"{where} has no {column}: it needs the columns question, options and answer.")
    question = clean_text(str(row["question"]))
    if not question:
        raise UserError(f"{where} has no question: write one, or remove the row.")
    options = _options(row["options"], where)
    labels = tuple(options)
    texts = tuple(options.values())
    subject = clean_text(str(row.get("subject") or "")) or None
    record_id = str(row["id"]) if row.get("id") not in (None, "") else default_id
    return ChoiceQuestion(record_id, question, labels, texts, _answer(row["answer"], labels, texts, where), subject)


def _options(value: Any, where: str) -> dict[str, str]:
    """Return {label: text}, cleaned."""
    if isinstance(value, str):  # CSV
        try:
            value = json.loads(value)
        except ValueError as error:
            raise UserError(f"{where}: the options are not JSON: write them as a list or an object.") from error
    if isinstance(value, list):
        if len(value) > len(string.ascii_uppercase):
            raise UserError(f"{where} has {len(value)} options: a list holds 26, one a letter.")
        value = dict(zip(string.ascii_uppercase, value, strict=False))
    if not isinstance(value, dict):
        raise UserError(f"{where}: the options are {value!r:.40}: write them as a list or an object.")
    options = {str(label).strip(): clean_text(str(text)) for label, text in value.items() if text is not None}
    empty = [label for label, text in options.items() if not text]
    if empty:
        raise UserError(f"{where}: option {empty[0]} is empty: write its text, or remove it.")
    if len(options) < 2:
        raise UserError(f"{where} has {len(options)} options: a choice needs two.")
    return options


def _answer(value: Any, labels: Sequence[str], texts: Sequence[str], where: str) -> int:
    """Return the index of the right option."""
    text = str(value).strip()
    if text.upper() in [label.upper() for label in labels]:
        return [label.upper() for label in labels].index(text.upper())
    is_index = text.isdecimal() and int(text) < len(labels)
    if isinstance(value, int) and not isinstance(value, bool) and is_index:
        return int(text)
    if clean_text(text) in texts:
        return list(texts).index(clean_text(text))
    if is_index:  # CSV has no numbers
        return int(text)
    raise UserError(f"{where}: the answer {text!r:.40} is not among the options {', '.join(labels)}: correct the row.")


def score_choices(
    scorer: Scorer, questions: Sequence[ChoiceQuestion], adapters: Mapping[str, bool], progress: bool = False
) -> dict[str, list[ChoiceScore]]:
    """Return each candidate's scores of all options, by candidate, in the order of `questions`.

    `adapters`: {candidate: whether the LoRA is on}. The question is the user's message (`ChoiceQuestion.text`), and
    what is scored is the answer's text without its end of turn. Both the options' texts and their letters are
    scored: the prompt, most of the work, is computed once for all.
    """
    pairs = [
        (messages, completion)
        for question in questions
        for messages in [build_messages(question.text)]
        for completion in (*question.options, *question.labels)
    ]
    results = {}
    for candidate, adapter in adapters.items():
        scores = iter(
            scorer.score(pairs, adapter, f"multiple choice, {candidate}" if progress else None, end_of_turn=False)
        )
        results[candidate] = [
            ChoiceScore(
                tuple(next(scores) for _ in question.options),
                tuple(next(scores) for _ in question.labels),
            )
            for question in questions
        ]
    return results


def correctness(values: Sequence[float], answer: int) -> float:
    """Return 1 when `values` is highest at `answer`, 0 when it is not; k equal highest values share the point.

    With the first of them, as in lm-evaluation-harness, a model that gives every option the same would be right
    as often as the right option stands first.
    """
    best = max(values)
    return 1 / list(values).count(best) if values[answer] == best else 0.0


def knowledge_section(
    results: Sequence[tuple[QuestionSet, Mapping[str, Sequence[ChoiceScore]]]], resampler: Resampler | None = None
) -> dict[str, Any]:
    """Return the `knowledge` section of metrics.json from sets and their scores by candidate (`score_choices`).

    A set has `name`, `sha256`, `method`, `n` and, by candidate, rates of 0 to 1 with their 95 % Wilson intervals:

    - `accuracy`: questions whose right option has the highest log-likelihood;
    - `normalised_accuracy`: the same for each character of the option, as a long option has more tokens to be
      improbable in: acc_norm of lm-evaluation-harness (Gao et al. 2024, doi:10.5281/zenodo.12608602, MIT);
    - `letter_accuracy`: the highest log-likelihood of the letters, the rule of MMLU (Hendrycks et al. 2021,
      arXiv:2009.03300).

    The first two score the options' texts, as ARC (Clark et al. 2018, arXiv:1803.05457) and HellaSwag (Zellers et
    al. 2019, arXiv:1905.07830) are scored: a small model may have no use for letters. The embedded one chose A in
    98 of 100 questions on anatomy, and 4 of the 100 had level bfloat16 letters (of 240 questions on all subjects, 24
    with its adapter), none level texts. Where letters count, load the `Scorer` with dtype float32.

    `comparison` (accuracy), `normalised_comparison` and `letter_comparison` hold the paired difference of each two
    candidates ("b vs a"); `by_subject` the accuracy of each subject and its `n`; `chance` what guessing gives;
    `truncated` the questions that did not fit in the context.
    """
    return {"status": "done", "sets": [_choice_set(questions, scores, resampler) for questions, scores in results]}


def _choice_set(
    questions: QuestionSet, scores: Mapping[str, Sequence[ChoiceScore]], resampler: Resampler | None
) -> dict[str, Any]:
    rows = questions.questions

    def points(values: Callable[[ChoiceScore], list[float]]) -> dict[str, list[float]]:
        return {
            candidate: [correctness(values(score), row.answer) for score, row in zip(found, rows, strict=True)]
            for candidate, found in scores.items()
        }

    by_text = points(lambda score: [one.logprob for one in score.texts])
    by_character = points(lambda score: [one.logprob / one.characters for one in score.texts])
    by_letter = points(lambda score: [one.logprob for one in score.letters])
    first = next(iter(scores.values()))
    return {
        "name": questions.name,
        "n": len(rows),
        "sha256": questions.sha256,
        "method": METHOD,
        "accuracy": _rates(by_text),
        "normalised_accuracy": _rates(by_character),
        "comparison": _comparison(by_text, resampler),
        "normalised_comparison": _comparison(by_character, resampler),
        "by_subject": _by_subject([row.subject for row in rows], by_text),
        "chance": sum(1 / len(row.options) for row in rows) / len(rows),
        "letter_accuracy": _rates(by_letter),
        "letter_comparison": _comparison(by_letter, resampler),
        "truncated": sum(any(score.truncated for score in (*item.texts, *item.letters)) for item in first),
    }


def _rates(points: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Any]]:
    rates = {}
    for candidate, of_candidate in points.items():
        total, n = sum(of_candidate), len(of_candidate)
        low, high = proportion_interval(total, n)  # the total is not whole where options share a point
        rates[candidate] = {"accuracy": total / n, "low": low, "high": high, "n": n}
    return rates


def _by_subject(subjects: Sequence[str | None], points: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    groups: dict[str, list[int]] = {}
    for number, subject in enumerate(subjects):
        if subject:
            groups.setdefault(subject, []).append(number)
    return {
        subject: {
            **{candidate: sum(values[i] for i in chosen) / len(chosen) for candidate, values in points.items()},
            "n": len(chosen),
        }
        for subject, chosen in sorted(groups.items())
    }


def _comparison(points: Mapping[str, Sequence[float]], resampler: Resampler | None) -> dict[str, Any]:
    return {
        pair_name(a, b): paired_difference(points[a], points[b], resampler=resampler)
        for a, b in combinations(points, 2)
    }
