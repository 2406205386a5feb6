"""Which questions are close to a training question, what a question asks about, and the strata section."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy
import yaml

from medical_assistant.data.cleaning import load_rules
from medical_assistant.errors import UserError
from medical_assistant.evaluation.names import pair_name
from medical_assistant.evaluation.scoring.bootstrap import RESAMPLES, SEED, Resampler
from medical_assistant.evaluation.scoring.comparison import PRIMARY, ScoreTable
from medical_assistant.evaluation.scoring.encoder import load_encoder
from medical_assistant.files import ASSETS

# From here on a question is about the same thing as a training question: `data_prep.py` keeps such questions on
# one side (SAME_QUESTION in deduplication.py). On WikiDoc, prepared by it, no validation question of 500 reaches
# it (largest 0.59). In a random split of the same rows, 99 % of the questions whose cluster has training rows
# do, and none of the others. MedQuAD, 500 against 4,267 questions at random: 80 %.
NEAR = 0.6
# Cosine of sentence embeddings. An assumption, since models differ: sentences of one form and two diseases are
# close in many models ("What are the symptoms of ..."), so look at the pairs just above it with your own.
NEAR_EMBEDDING = 0.9
STRATA = ("clean", "near")
QUANTILES = {"q50": 0.5, "q90": 0.9, "q95": 0.95, "q99": 0.99, "max": 1.0}
METHOD = (
    "Likeness to the nearest training question in words that name something: Jaccard similarity of candidates of "
    "MinHash, or TF-IDF cosine; with an embedding model also the cosine of embeddings, from its own threshold on."
)
OTHER = "other"

_GENERIC_WEIGHT = 0.1  # "what", "symptoms" only decide between training questions that share nothing else
_PROPOSE_FROM = 0.5  # below NEAR: locality-sensitive hashing misses some pairs at its own threshold
_PERMUTATIONS = 128
_BLOCK = 500
_EMBEDDED_AT_ONCE = 64
_LONGEST_EMBEDDED = 256  # tokens; questions are shorter

_WORD = re.compile(r"[^\W_]+")
_POSSESSIVE = re.compile(r"['\u2019]s\b")

Row = Mapping[str, Any]
Words = tuple[list[str], list[str]]  # stems of a question: those that name something, and the generic ones
CorpusScores = Callable[
    [Sequence[Row], str], Mapping[str, float]
]  # rows and a candidate in, a score for each metric out


@dataclass(frozen=True)
class Nearest:
    """The training question most like a question.

    similarity: 0 to 1. index, text: of the training question; None where not a word is shared. method: what
    found it, "minhash", "tfidf" or "embedding".
    """

    similarity: float
    index: int | None
    text: str | None
    method: str

    @property
    def stratum(self) -> str:
        """Return "near" from the method's threshold on (`NEAR`, `NEAR_EMBEDDING`), else "clean"."""
        return "near" if self.closeness >= 1 else "clean"

    @property
    def closeness(self) -> float:
        """Return the similarity as a multiple of the method's threshold, so that methods can be compared."""
        return self.similarity / (NEAR_EMBEDDING if self.method == "embedding" else NEAR)


def nearest_training(
    questions: Sequence[str], training_questions: Sequence[str], embeddings: str | None = None
) -> list[Nearest]:
    """Return the nearest training question of each question.

    Two measures of shared words, the larger counts. Words are stemmed (Porter), and generic words of
    `assets/cleaning.yaml` ("what", "symptoms") count little or not at all: questions on the same thing are
    alike, questions of the same form are not.

    - minhash: MinHash with locality-sensitive hashing proposes, the exact Jaccard similarity of the sets of
      words decides (Broder 1997, "On the resemblance and containment of documents")
    - tfidf: the cosine of TF-IDF vectors, in which rare words count more (Salton and Buckley 1988,
      doi:10.1016/0306-4573(88)90021-0); every training question is looked at
    - embedding: only with `embeddings`, the folder or Hub name of a model whose mean-pooled token vectors are
      sentence vectors (Reimers and Gurevych 2019, arXiv:1908.10084), the cosine of these. A question is near
      where either the words or the embedding reach their own threshold.

    Raises `UserError` where there are no training questions or the model cannot be loaded.
    """
    if not training_questions:
        raise UserError("There are no training questions to compare with: name the training file.")
    if not questions:
        return []
    read = _reader()
    own, training = [read(text) for text in questions], [read(text) for text in training_questions]
    found = [_nearest(training_questions, *best, "tfidf") for best in _tfidf_nearest(own, training)]
    for number, (similarity, index) in _minhash_nearest(own, training).items():
        if similarity >= found[number].similarity:
            found[number] = _nearest(training_questions, similarity, index, "minhash")
    if embeddings is not None:
        vectors = _embed([*questions, *training_questions], embeddings)
        ours, theirs = vectors[: len(questions)], vectors[len(questions) :]
        embedded = [_nearest(training_questions, *best, "embedding") for best in _best_of_products(ours, theirs)]
        found = [max(pair, key=lambda one: one.closeness) for pair in zip(found, embedded, strict=True)]
    return found


def _nearest(training_questions: Sequence[str], similarity: float, index: int, method: str) -> Nearest:
    if similarity <= 0:
        return Nearest(0.0, None, None, method)
    return Nearest(min(1.0, similarity), index, training_questions[index], method)


def _reader() -> Callable[[str], Words]:
    """Return the function that takes a question apart."""
    from nltk.stem.porter import PorterStemmer

    generic = load_rules().generic_words
    stem = functools.cache(PorterStemmer().stem)

    def read(text: str) -> Words:
        words = _WORD.findall(_POSSESSIVE.sub("", text.lower()))
        return [stem(word) for word in words if word not in generic], [stem(word) for word in words if word in generic]

    return read


def _tfidf_nearest(own: Sequence[Words], training: Sequence[Words]) -> list[tuple[float, int]]:
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize

    parts = []
    for kind, weight in ((0, 1.0), (1, _GENERIC_WEIGHT)):
        # Fitted on both sides: a word that training never saw must count most, not be dropped.
        texts = [words[kind] for words in (*own, *training)]
        if any(texts):
            parts.append(TfidfVectorizer(analyzer=list, norm=None).fit_transform(texts) * weight)
    if not parts:
        return [(0.0, 0)] * len(own)
    vectors = normalize(hstack(parts).tocsr())
    return _best_of_products(vectors[: len(own)], vectors[len(own) :])


def _best_of_products(ours: Any, theirs: Any) -> list[tuple[float, int]]:
    """Return for each row of `ours` the largest product with a row of `theirs`, and which row it is."""
    best: list[tuple[float, int]] = []
    for start in range(0, ours.shape[0], _BLOCK):
        products = ours[start : start + _BLOCK] @ theirs.T
        dense = products if isinstance(products, numpy.ndarray) else products.toarray()
        best += zip(dense.max(axis=1).tolist(), dense.argmax(axis=1).tolist(), strict=True)
    return best


def _minhash_nearest(own: Sequence[Words], training: Sequence[Words]) -> dict[int, tuple[float, int]]:
    """Return {index of a question: (Jaccard similarity, index)} for those that hashing has proposals for."""
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
    nearest: dict[int, tuple[float, int]] = {}
    for number, (content, generic) in enumerate(own):
        ours = frozenset(content or generic)
        if ours and (proposed := hashed.query(sketch(ours))):
            jaccard = [(len(ours & words) / len(ours | words), -firsts[words]) for words in proposed]
            similarity, index = max(jaccard)  # the earliest of equals
            nearest[number] = similarity, -index
    return nearest


def _embed(texts: Sequence[str], model: str) -> Any:
    """Return one unit vector a text: the mean of the model's token vectors."""
    import torch

    network, tokenizer = load_encoder(model, "embedding", "sentence-transformers/all-MiniLM-L6-v2")
    vectors = []
    for start in range(0, len(texts), _EMBEDDED_AT_ONCE):
        batch = tokenizer(
            list(texts[start : start + _EMBEDDED_AT_ONCE]),
            padding=True,
            truncation=True,
            max_length=_LONGEST_EMBEDDED,
            return_tensors="pt",
        ).to(network.device)
        with torch.inference_mode():
            tokens = network(**batch).last_hidden_state
        kept = batch["attention_mask"].unsqueeze(-1)
        means = (tokens * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)
        vectors.append(torch.nn.functional.normalize(means, dim=-1).cpu().numpy())
    return numpy.concatenate(vectors)


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
    rows: Sequence[Row],
    candidates: Sequence[str],
    corpus_scores: CorpusScores,
    metrics_better: Mapping[str, int],
    primary: str = PRIMARY,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> dict[str, Any]:
    """Return scores and comparisons of questions far from training ("clean") and close to it ("near").

    `rows`: those of `predictions.jsonl`, with `stratum` and `similarity`; a row without is in "all" only.

    - `status`, `method`, `threshold` (`NEAR`), `primary`
    - `counts`: {"clean"|"near": questions}
    - `nearest`: quantiles of the similarity to the nearest training question, "q50" to "q99" and "max"
    - `scores`: {candidate: {"all"|"clean"|"near": what `corpus_scores(rows, candidate)` returns}}, {} where no row is
    - `comparison`: {"clean"|"near": {"b vs a": `Difference` of the primary metric}}, None where no row is; with
      too few questions it claims no interval

    Without a row that has a stratum: {"status": "not run", "reason"}. Raises `UserError` as `compare` does.
    """
    names = list(candidates)
    members = {name: [i for i, row in enumerate(rows) if row.get("stratum") == name] for name in STRATA}
    if not any(members.values()):
        return {"status": "not run", "reason": "The training questions are not known, so none can be called near."}
    table = ScoreTable(rows, {primary: metrics_better.get(primary, 0)}, Resampler(resamples, seed))
    table.check_primary(primary, names)
    groups = {"all": list(range(len(rows))), **members}
    similarities = [row["similarity"] for row in rows if row.get("similarity") is not None]
    return {
        "status": "done",
        "method": METHOD,
        "threshold": NEAR,
        "primary": primary,
        "counts": {name: len(found) for name, found in members.items()},
        "nearest": {
            key: float(numpy.quantile(similarities, share)) for key, share in QUANTILES.items() if similarities
        },
        "scores": {
            candidate: {
                name: dict(corpus_scores([rows[i] for i in found], candidate)) if found else {}
                for name, found in groups.items()
            }
            for candidate in names
        },
        "comparison": {
            name: {
                pair_name(a, b): table.difference(a, b, primary, found) if found else None
                for a, b in combinations(names, 2)
            }
            for name, found in members.items()
        },
    }
