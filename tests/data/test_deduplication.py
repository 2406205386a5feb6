from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from medical_assistant.data.cleaning import load_rules
from medical_assistant.data.deduplication import cluster_pairs, near_duplicates, split_clusters


def test_near_duplicates_keep_the_first() -> None:
    text = "Gout is a kind of arthritis that is caused by crystals of uric acid in the joints of the foot and hand"
    pairs = [("What is gout?", text), ("What is asthma?", "Narrow airways."), ("What is gout?", text + " too")]
    assert near_duplicates(pairs) == {2: 0}


def test_paraphrases_share_a_cluster_and_templates_do_not() -> None:
    pairs = [
        ("What causes genitourinary syndrome of menopause?", "Low estradiol production."),
        ("What are the causes of genitourinary syndrome of menopause (atrophic vaginitis)?", "A fall of hormones."),
        ("What are the symptoms of asthma?", "Wheezing and cough."),
        ("What are the symptoms of gout?", "A red painful toe."),
        ("Why does a toe swell in hyperuricaemia?", "A red painful toe."),
    ]
    clusters = cluster_pairs(pairs, load_rules().generic_words)
    assert clusters[0] == clusters[1]
    assert clusters[3] == clusters[4]  # the same answer
    assert len(set(clusters)) == 3


@given(st.lists(st.integers(0, 20), min_size=1, max_size=200), st.integers(1, 50), st.integers())
def test_split_is_a_partition_that_keeps_clusters_whole(clusters: list[int], size: int, seed: int) -> None:
    train, validation = split_clusters(clusters, size, seed)
    assert sorted(train + validation) == list(range(len(clusters)))
    assert len(validation) <= size
    assert not {clusters[i] for i in train} & {clusters[i] for i in validation}
    assert (train, validation) == split_clusters(clusters, size, seed)
