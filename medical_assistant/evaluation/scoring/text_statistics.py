"""Scores of answers that need no model: SQuAD's match, repetition, diversity, length and reading level.

A word is a run of characters without white space, in lower case, unless a function says otherwise.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence

# One metric of a set of answers: its value for the whole set, then its value for each answer.
Score = tuple[float, list[float]]
REPETITION_WORDS = 4
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def mean_score(items: list[float]) -> Score:
    """Return the score whose value for the whole set is the mean of the items."""
    return sum(items) / len(items), items


def squad_scores(answers: list[str], references: list[str]) -> dict[str, Score]:
    """Return `exact_match` and `token_f1` (0 to 1) of all answers and of each."""
    return {
        "exact_match": mean_score(list(map(exact_match, answers, references))),
        "token_f1": mean_score(list(map(token_f1, answers, references))),
    }


def statistics_scores(answers: list[str], references: list[str]) -> dict[str, Score]:
    """Return length ratio, repetition, distinct-1, distinct-2 and reading grade of all answers and of each.

    The grade of the whole set is the mean over answers that have a word, 0.0 where none has.
    """
    grades = list(map(readability_grade, answers))
    graded = [grade for grade, answer in zip(grades, answers, strict=True) if has_words(answer)]
    pairs = zip(answers, references, strict=True)
    return {
        "length_ratio": (
            length_ratio(answers, references),
            [length_ratio([answer], [reference]) for answer, reference in pairs],
        ),
        "repetition": mean_score(list(map(repetition, answers))),
        "distinct_1": (distinct(answers, 1), [distinct([answer], 1) for answer in answers]),
        "distinct_2": (distinct(answers, 2), [distinct([answer], 2) for answer in answers]),
        "readability_grade": (sum(graded) / max(1, len(graded)), grades),
    }


def words(text: str) -> list[str]:
    """Return the words of `text` in lower case, punctuation left on."""
    return text.lower().split()


def split_sentences(text: str) -> list[str]:
    """Return the sentences of `text`: they end at a line's end, or at `.`, `!` or `?` before white space.

    No list of abbreviations: "e.g. this" becomes two. ROUGE-Lsum takes the union over all sentences, so
    a cut too many costs it little, and the same rule is used for answer and reference.
    """
    return [sentence.strip() for sentence in _SENTENCE_END.split(text) if sentence.strip()]


def squad_words(text: str) -> list[str]:
    """Return the words of `text` as SQuAD compares them: lower case, no ASCII punctuation, no a, an, the.

    The rules of the official script of Rajpurkar et al. 2016 (arXiv:1606.05250).
    """
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def exact_match(answer: str, reference: str) -> float:
    """Return 1.0 where answer and reference have the same SQuAD words in the same order, else 0.0.

    Rajpurkar et al. 2016, arXiv:1606.05250.
    """
    return float(squad_words(answer) == squad_words(reference))


def token_f1(answer: str, reference: str) -> float:
    """Return the F1 (0 to 1) of the SQuAD words that answer and reference share, order ignored.

    Rajpurkar et al. 2016 (arXiv:1606.05250). Where one text has no word left, 1.0 if the other has none
    either, else 0.0, as in SQuAD 2.0 (Rajpurkar et al. 2018, arXiv:1806.03822).
    """
    answered, expected = squad_words(answer), squad_words(reference)
    if not answered or not expected:
        return float(answered == expected)
    shared = sum((Counter(answered) & Counter(expected)).values())
    return 2 * shared / (len(answered) + len(expected))


def length_ratio(answers: Sequence[str], references: Sequence[str]) -> float:
    """Return the words of all answers over the words of all references; references of no word count as one."""
    expected = sum(len(words(reference)) for reference in references)
    return sum(len(words(answer)) for answer in answers) / max(1, expected)


def repetition(answer: str) -> float:
    """Return the share (0 to 1) of the answer's word 4-grams that repeat an earlier one.

    seq-rep-4 of Welleck et al. 2020 (arXiv:1908.04319), on words. 0.0 below four words.
    """
    grams = _ngrams(answer, REPETITION_WORDS)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct(answers: Iterable[str], n: int) -> float:
    """Return the share (0 to 1) of the word n-grams of all answers that are distinct; 0.0 if there are none.

    distinct-n of Li et al. 2016 (arXiv:1510.03055), over the number of n-grams instead of the number of
    words, as is usual since, so that 1.0 says that nothing is repeated. The value falls as text grows:
    compare only candidates that answered the same questions at about the same length.
    """
    grams = [gram for answer in answers for gram in _ngrams(answer, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def has_words(text: str) -> bool:
    """Return whether `text` holds a letter or a digit."""
    return any(character.isalnum() for character in text)


def readability_grade(answer: str) -> float:
    """Return the Flesch-Kincaid grade of an English answer: the years of US schooling that it asks for.

    0.39 words/sentences + 11.8 syllables/words - 15.59 (Kincaid et al. 1975, Research Branch Report 8-75),
    by textstat with the syllables of the CMU Pronouncing Dictionary. Very short sentences go below 0.
    A line of a list counts as a sentence, also without its full stop. 0.0 for an answer with no word.
    """
    if not has_words(answer):
        return 0.0
    import textstat

    sentences = split_sentences(answer)
    text = " ".join(sentence if sentence[-1] in ".!?" else f"{sentence}." for sentence in sentences)
    return float(textstat.textstat.flesch_kincaid_grade(text))


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    tokens = words(text)
    return list(zip(*(tokens[start:] for start in range(n)), strict=False))
