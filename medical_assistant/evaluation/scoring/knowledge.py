"""Knowledge: multiple-choice questions from local files, answered by the likelihood of the options.

No text is sampled and parsed: an answer in an unexpected form would count as wrong, and a small model gives many.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterator, Mapping, Sequence
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

COLUMNS = ("question", "options", "answer")
RULES = ("accuracy", "normalised_accuracy", "letter_accuracy")  # see `knowledge_section`
Points = Mapping[str, Sequence[float]]  # by candidate: 0 to 1 for each question
METHOD = "log-likelihood of the text of each option, given the question with its options"


@dataclass(frozen=True)
class ChoiceQuestion:
    """One question; `answer` is the index of the right option."""

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
    """What one model makes of one question: a value an option by each rule of `RULES`, the highest its choice."""

    values: Mapping[str, Sequence[float]]
    truncated: bool  # question and options were longer than the context


def read_questions(file: Path) -> QuestionSet:
    """Return the questions of a `.jsonl`, `.json`, `.csv` or `.parquet` file.

    Columns: `question`; `options`, a list or an object of letter to text (in CSV as JSON); `answer`, a letter, the
    index of the option from 0, or its text, understood in that order; if wanted `subject`. Options that are null are
    left out. Raises `UserError` with the number of the row for one that cannot be used.
    """
    if not file.is_file():
        raise UserError(f"There is no file {file}: give one with the columns question, options, answer.")
    source = read_source(str(file))
    questions = [_question(row, f"{file.name}, row {number}") for number, row in enumerate(source.rows, start=1)]
    if not questions:
        raise UserError(f"{file.name} has no questions: give a file with the columns question, options, answer.")
    return QuestionSet(source.name, source.revision, questions)


def _question(row: Mapping[str, Any], where: str) -> ChoiceQuestion:
    texts = {name: clean_text("" if row.get(name) is None else str(row[name])) for name in (*COLUMNS, "subject")}
    for column in COLUMNS:
        if not texts[column]:
            raise UserError(f"{where} has no {column}: it needs the columns question, options and answer.")
    options = _options(row["options"], where)
    labels, choices = tuple(options), tuple(options.values())
    answer = _answer(row["answer"], labels, choices, where)
    return ChoiceQuestion(texts["question"], labels, choices, answer, texts["subject"] or None)


def _options(value: Any, where: str) -> dict[str, str]:
    """Return {label: text}, cleaned."""
    if isinstance(value, str):  # CSV
        try:
            value = json.loads(value)
        except ValueError as error:
            raise UserError(f"{where}: the options are not JSON: write them as a list or an object.") from error
    if isinstance(value, list) and len(value) <= len(string.ascii_uppercase):
        value = dict(zip(string.ascii_uppercase, value, strict=False))
    if not isinstance(value, dict):
        raise UserError(f"{where}: the options are {value!r:.40}: write up to 26 as a list, or an object.")
    options = {str(label).strip(): clean_text(str(text)) for label, text in value.items() if text is not None}
    if len(options) < 2 or not all(options.values()):
        raise UserError(f"{where}: the options are {value!r:.40}: a choice needs two, and none may be empty.")
    return options


def _answer(value: Any, labels: Sequence[str], texts: Sequence[str], where: str) -> int:
    """Return the index of the right option."""
    text = str(value).strip()
    letters = [label.upper() for label in labels]
    if text.upper() in letters:
        return letters.index(text.upper())
    is_index = text.isdecimal() and int(text) < len(labels)
    if clean_text(text) in texts and not (isinstance(value, int) and is_index):
        return texts.index(clean_text(text))
    if is_index:
        return int(text)
    raise UserError(f"{where}: the answer {text!r:.40} is not among the options {', '.join(labels)}: correct the row.")


def score_choices(
    scorer: Scorer, questions: Sequence[ChoiceQuestion], adapters: Mapping[str, bool]
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
        scores = iter(scorer.score(pairs, adapter, f"multiple choice, {candidate}", end_of_turn=False))
        results[candidate] = [_choice_score(question, scores) for question in questions]
    return results


def _choice_score(question: ChoiceQuestion, scores: Iterator[CompletionScore]) -> ChoiceScore:
    texts, letters = ([next(scores) for _ in question.options] for _ in range(2))
    by_text = [score.logprob for score in texts]
    by_character = [logprob / len(option) for logprob, option in zip(by_text, question.options, strict=True)]
    values = zip(RULES, (by_text, by_character, [score.logprob for score in letters]), strict=True)
    return ChoiceScore(dict(values), any(score.truncated for score in (*texts, *letters)))


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
    with its adapter), none level texts.

    `comparison` (accuracy), `normalised_comparison` and `letter_comparison` hold the paired difference of each two
    candidates ("b vs a"); `by_subject` the accuracy of each subject and its `n`; `chance` what guessing gives;
    `truncated` the questions that did not fit in the context.
    """
    return {"status": "done", "sets": [_choice_set(questions, scores, resampler) for questions, scores in results]}


def _choice_set(
    questions: QuestionSet, scores: Mapping[str, Sequence[ChoiceScore]], resampler: Resampler | None
) -> dict[str, Any]:
    rows = questions.questions
    points = {
        rule: {
            candidate: [correctness(score.values[rule], row.answer) for score, row in zip(found, rows, strict=True)]
            for candidate, found in scores.items()
        }
        for rule in RULES
    }
    by_text, by_character, by_letter = points.values()
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
        "truncated": sum(score.truncated for score in next(iter(scores.values()))),
    }


def _rates(points: Points) -> dict[str, dict[str, Any]]:
    rates = {}
    for candidate, of_candidate in points.items():
        total, n = sum(of_candidate), len(of_candidate)
        low, high = proportion_interval(total, n)  # the total is not whole where options share a point
        rates[candidate] = {"accuracy": total / n, "low": low, "high": high, "n": n}
    return rates


def _by_subject(subjects: Sequence[str | None], points: Points) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for subject in sorted({subject for subject in subjects if subject}):
        rows = [number for number, other in enumerate(subjects) if other == subject]
        found[subject] = {candidate: sum(of[i] for i in rows) / len(rows) for candidate, of in points.items()}
        found[subject]["n"] = len(rows)
    return found


def _comparison(points: Points, resampler: Resampler | None) -> dict[str, Any]:
    return {
        pair_name(a, b): paired_difference(points[a], points[b], resampler=resampler)
        for a, b in combinations(points, 2)
    }
