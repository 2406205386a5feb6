"""Near-duplicates, clusters of questions on the same thing, and a split that keeps clusters whole."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable, Collection, Iterable, Sequence

# Jaccard similarity of word 3-gram sets from which two pairs are the same text (Broder 1997, "On the
# resemblance and containment of documents").
NEAR_DUPLICATE = 0.8
MINHASH_PERMUTATIONS = 128
# Cosine of TF-IDF vectors of stemmed words from which two questions (two answers) are kept on one side.
SAME_QUESTION = 0.6
SAME_ANSWER = 0.7

_WORD = re.compile(r"[^\W_]+")

Pair = tuple[str, str]  # question, answer
Progress = Callable[[Iterable[int]], Iterable[int]]


def near_duplicates(pairs: Sequence[Pair], progress: Progress = iter) -> dict[int, int]:
    """Return {index of a removed pair: index of the earlier pair it repeats}.

    MinHash with locality-sensitive hashing (`datasketch`) proposes candidates; the exact Jaccard
    similarity of their word 3-grams decides, at `NEAR_DUPLICATE`.
    """
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=NEAR_DUPLICATE, num_perm=MINHASH_PERMUTATIONS)
    shingles: dict[int, set[bytes]] = {}
    repeats: dict[int, int] = {}
    for number in progress(range(len(pairs))):
        own = _shingles(" ".join(pairs[number]))
        sketch = MinHash(num_perm=MINHASH_PERMUTATIONS, seed=1)
        sketch.update_batch(sorted(own))
        earlier = [i for i in sorted(index.query(sketch)) if _jaccard(own, shingles[i]) >= NEAR_DUPLICATE]
        if earlier:
            repeats[number] = earlier[0]
        else:
            index.insert(number, sketch)
            shingles[number] = own
    return repeats


def _shingles(text: str) -> set[bytes]:
    words = _WORD.findall(text.lower())
    return {" ".join(words[i : i + 3]).encode() for i in range(max(1, len(words) - 2))}


def _jaccard(left: set[bytes], right: set[bytes]) -> float:
    return len(left & right) / len(left | right)


def cluster_pairs(pairs: Sequence[Pair], generic_words: Collection[str] = (), progress: Progress = iter) -> list[int]:
    """Return a cluster number for each pair, in order of first appearance.

    Two pairs share a cluster when their questions or their answers are similar (TF-IDF cosine of
    stemmed words at least `SAME_QUESTION` or `SAME_ANSWER`), or through a chain of such pairs.
    `generic_words` ("what", "symptoms") are left out, so a cluster is about one thing: with them,
    "What are the symptoms of ..." chained 3,225 of 4,779 WikiDoc pairs into one cluster.
    """
    import numpy
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    questions, answers = (_tfidf(texts, generic_words) for texts in zip(*pairs, strict=True))
    lefts, rights = [], []
    block = 500
    for start in progress(range(0, len(pairs), block)):
        for vectors, threshold in ((questions, SAME_QUESTION), (answers, SAME_ANSWER)):
            similarity = (vectors[start : start + block] @ vectors.T).tocoo()
            similar = similarity.data >= threshold
            lefts.append(similarity.row[similar] + start)
            rights.append(similarity.col[similar])
    left, right = numpy.concatenate(lefts), numpy.concatenate(rights)
    graph = coo_matrix((numpy.ones(len(left)), (left, right)), shape=(len(pairs), len(pairs)))
    _, labels = connected_components(graph, directed=False)
    numbers: dict[int, int] = {}
    return [numbers.setdefault(int(label), len(numbers)) for label in labels]


def _tfidf(texts: Sequence[str], generic_words: Collection[str]):  # type: ignore[no-untyped-def]  # scipy's sparse types are private
    from nltk.stem.porter import PorterStemmer
    from sklearn.feature_extraction.text import TfidfVectorizer

    stemmer = PorterStemmer()
    stem = functools.cache(stemmer.stem)

    def analyse(text: str) -> list[str]:
        return [stem(word) for word in _WORD.findall(text.lower()) if word not in generic_words]

    return TfidfVectorizer(analyzer=analyse).fit_transform(texts)


def split_clusters(clusters: Sequence[int], validation_size: int, seed: int) -> tuple[list[int], list[int]]:
    """Return (train indices in ascending order, validation indices cluster by cluster in random order).

    Whole clusters go to validation as long as they fit in `validation_size`. A validation smaller
    than asked for (only large clusters left) is possible; larger is not. The order makes its first
    rows a fair sample, and keeps the clusters of its first rows apart from those of its last.
    """
    members: dict[int, list[int]] = {}
    for index, cluster in enumerate(clusters):
        members.setdefault(cluster, []).append(index)
    order = list(members)
    random.Random(seed).shuffle(order)
    validation: list[int] = []
    for cluster in order:
        if len(validation) + len(members[cluster]) <= validation_size:
            validation.extend(members[cluster])
    chosen = set(validation)
    return [i for i in range(len(clusters)) if i not in chosen], validation
