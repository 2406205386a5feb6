"""Which questions are close to a training question, what a question asks about, and the strata section."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy
import yaml

from medical_assistant.data.cleaning import load_rules
from medical_assistant.evaluation.names import pair_name
from medical_assistant.evaluation.scoring.bootstrap import Difference, Resampler, paired_difference
from medical_assistant.evaluation.scoring.comparison import PRIMARY
from medical_assistant.evaluation.scoring.metrics import METRICS
from medical_assistant.files import ASSETS

# From here on a question is about the same thing as a training question: `data_prep.py` keeps such questions on
# one side (SAME_QUESTION in deduplication.py). On WikiDoc, prepared by it, no validation question of 500 reaches
# it (largest 0.59). In a random split of the same rows, 99 % of the questions whose cluster has training rows
# do, and none of the others. MedQuAD, 500 against 4,267 questions at random: 80 %.
NEAR = 0.6
STRATA = ("clean", "near")
QUANTILES = {"q50": 0.5, "q90": 0.9, "q95": 0.95, "q99": 0.99, "max": 1.0}
METHOD = (
    "Likeness to the nearest training question in words that name something: Jaccard similarity of candidates of "
    "MinHash, or TF-IDF cosine."
)
OTHER = "other"

_GENERIC_WEIGHT = 0.1  # "what", "symptoms" only decide between training questions that share nothing else
_PROPOSE_FROM = 0.5  # below NEAR: locality-sensitive hashing misses some pairs at its own threshold
_PERMUTATIONS = 128
_BLOCK = 500

_WORD = re.compile(r"[^\W_]+")
_POSSESSIVE = re.compile(r"['\u2019]s\b")

Row = Mapping[str, Any]
Words = tuple[list[str], list[str]]  # stems of a question: those that name something, and the generic ones
Found = tuple[float, int]  # similarity, index of the training question
CorpusScores = Callable[[Sequence[Row], str], Mapping[str, float]]  # rows and a candidate in, scores by metric out


class Nearest(NamedTuple):
    """The training question most like a question: how like (0 to 1), and its text, None where no word is shared."""

    similarity: float
    text: str | None

    @property
    def stratum(self) -> str:
        """Return "near" from `NEAR` on, else "clean"."""
        return "near" if self.similarity >= NEAR else "clean"


def nearest_training(questions: Sequence[str], training_questions: Sequence[str]) -> list[Nearest]:
    """Return the nearest training question of each question.

    Two measures of shared words, the larger counts. Words are stemmed (Porter), and generic words of
    `assets/cleaning.yaml` ("what", "symptoms") count little or not at all: questions on the same thing are
    alike, questions of the same form are not.

    - MinHash with locality-sensitive hashing proposes, the exact Jaccard similarity of the sets of words decides
      (Broder 1997, "On the resemblance and containment of documents")
    - the cosine of TF-IDF vectors, in which rare words count more (Salton and Buckley 1988,
      doi:10.1016/0306-4573(88)90021-0); every training question is looked at
    """
    words = _reader()
    own, training = [words(text) for text in questions], [words(text) for text in training_questions]
    nearest = []
    for found in zip(_minhash_nearest(own, training), _tfidf_nearest(own, training), strict=True):
        similarity, index = max(found, key=lambda one: one[0])  # the first of equals
        nearest.append(Nearest(min(1.0, similarity), training_questions[index] if similarity > 0 else None))
    return nearest


def _reader() -> Callable[[str], Words]:
    """Return the function that takes a question apart."""
    from nltk.stem.porter import PorterStemmer

    generic = load_rules().generic_words
    stem = functools.cache(PorterStemmer().stem)

    def read(text: str) -> Words:
        words = _WORD.findall(_POSSESSIVE.sub("", text.lower()))
        return [stem(word) for word in words if word not in generic], [stem(word) for word in words if word in generic]

    return read


def _tfidf_nearest(own: Sequence[Words], training: Sequence[Words]) -> list[Found]:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize

    # Fitted on both sides: a word that training never saw must count most, not be dropped.
    texts = [[*content, *(f"?{word}" for word in generic)] for content, generic in (*own, *training)]
    if not any(texts):
        return [(0.0, 0)] * len(own)
    vectorizer = TfidfVectorizer(analyzer=list, norm=None)
    counts = vectorizer.fit_transform(texts)
    weights = [_GENERIC_WEIGHT if word.startswith("?") else 1.0 for word in vectorizer.get_feature_names_out()]
    vectors = normalize(counts.multiply(weights).tocsr())
    ours, theirs = vectors[: len(own)], vectors[len(own) :].T
    best: list[Found] = []
    for start in range(0, len(own), _BLOCK):
        cosines = (ours[start : start + _BLOCK] @ theirs).toarray()
        best += zip(cosines.max(axis=1).tolist(), cosines.argmax(axis=1).tolist(), strict=True)
    return best


def _minhash_nearest(own: Sequence[Words], training: Sequence[Words]) -> list[Found]:
    """Return the nearest of those that hashing proposes, (0, 0) where it proposes none."""
    from datasketch import MinHash, MinHashLSH

    def sketch(words: frozenset[str]) -> Any:
        made = MinHash(num_perm=_PERMUTATIONS, seed=1)
        made.update_batch([word.encode() for word in sorted(words)])
        return made

    # Many training questions are about one thing: each set of words is hashed once.
    firsts: dict[frozenset[str], int] = {}
    for index, (content, generic) in enumerate(training):
        firsts.setdefault(frozenset(content or generic), index)
    hashed = MinHashLSH(threshold=_PROPOSE_FROM, num_perm=_PERMUTATIONS)
    for words in firsts:
        hashed.insert(words, sketch(words))
    nearest = []
    for content, generic in own:
        ours = frozenset(content or generic)
        proposed = hashed.query(sketch(ours)) if ours else []
        jaccard = [(len(ours & words) / len(ours | words), firsts[words]) for words in proposed]
        nearest.append(max(jaccard, key=lambda one: (one[0], -one[1]), default=(0.0, 0)))  # the earliest of equals
    return nearest


@functools.cache
def _type_rules() -> list[tuple[str, re.Pattern[str]]]:
    rules = yaml.safe_load((ASSETS / "evaluation" / "question_types.yaml").read_text(encoding="utf-8"))
    joined = [(rule["type"], "|".join(f"(?:{pattern})" for pattern in rule["patterns"])) for rule in rules]
    return [(name, re.compile(pattern, re.IGNORECASE)) for name, pattern in joined]


def question_type(question: str) -> str:
    """Return what a question asks about, by the first matching rule of `assets/evaluation/question_types.yaml`.

    "symptoms", "causes", "diagnosis", "treatment", ... ; "other" where no rule matches.
    """
    return next((name for name, pattern in _type_rules() if pattern.search(question)), OTHER)


def strata_section(
    rows: Sequence[Row], candidates: Sequence[str], corpus_scores: CorpusScores, resampler: Resampler
) -> dict[str, Any]:
    """Return scores and comparisons of questions far from training ("clean") and close to it ("near").

    `rows`: those of `predictions.jsonl`; without training questions their `stratum` and `similarity` are None.

    - `status`, `method`, `threshold` (`NEAR`), `primary`
    - `counts`: {"clean"|"near": questions}
    - `nearest`: quantiles of the similarity to the nearest training question, "q50" to "q99" and "max"
    - `scores`: {candidate: {"all"|"clean"|"near": what `corpus_scores(rows, candidate)` returns}}, {} where no row is
    - `comparison`: {"clean"|"near": {"b vs a": `Difference` of the primary metric}}, None where no row is; with
      too few questions it claims no interval

    Without a row that has a stratum: {"status": "not run", "reason"}.
    """
    groups = {name: [row for row in rows if row["stratum"] == name] for name in STRATA}
    similarities = [row["similarity"] for row in rows if row["similarity"] is not None]
    if not similarities:
        return {"status": "not run", "reason": "The training questions are not known, so none can be called near."}

    def difference(some: Sequence[Row], a: str, b: str) -> Difference:
        left, right = ([row["candidates"][name]["scores"][PRIMARY] for row in some] for name in (a, b))
        return paired_difference(left, right, METRICS[PRIMARY].better, resampler)

    return {
        "status": "done",
        "method": METHOD,
        "threshold": NEAR,
        "primary": PRIMARY,
        "counts": {name: len(some) for name, some in groups.items()},
        "nearest": {key: float(numpy.quantile(similarities, share)) for key, share in QUANTILES.items()},
        "scores": {
            candidate: {
                name: dict(corpus_scores(some, candidate)) if some else {}
                for name, some in {"all": rows, **groups}.items()
            }
            for candidate in candidates
        },
        "comparison": {
            name: {pair_name(a, b): difference(some, a, b) if some else None for a, b in combinations(candidates, 2)}
            for name, some in groups.items()
        },
    }
