from __future__ import annotations

import math

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medical_assistant.evaluation.scoring.bootstrap import (
    MIN_QUESTIONS,
    Resampler,
    corpus_statistics,
    holm,
    paired_corpus,
    paired_difference,
    proportion_interval,
    verdict,
)

QUICK = Resampler(2_000)


def test_means_wins_and_verdict_by_hand() -> None:
    a = [0.1, 0.2, 0.3, 0.4] * 10
    b = [0.3, 0.2, 0.2, 0.9] * 10
    found = paired_difference(a, b, 1, QUICK)
    assert found["n"] == 40
    assert found["mean_a"] == pytest.approx(0.25)
    assert found["mean_b"] == pytest.approx(0.40)
    assert found["difference"] == pytest.approx(0.15)
    assert (found["wins"], found["ties"], found["losses"]) == (20, 10, 10)
    assert found["low"] is not None and found["high"] is not None
    # Student's interval: spread of the changes (0.2, 0, -0.1, 0.5) is 0.2291, standard error 0.0362, t 2.02.
    assert found["low"] == pytest.approx(0.15 - 0.073, abs=0.015)
    assert found["high"] == pytest.approx(0.15 + 0.073, abs=0.015)
    assert found["verdict"] == "better"


def test_lower_is_better_turns_the_verdict_and_the_wins() -> None:
    a, b = [1.0, 1.1, 0.9] * 10, [0.5, 0.7, 0.3] * 10
    lower = paired_difference(a, b, -1, QUICK)
    assert (lower["verdict"], lower["wins"], lower["losses"]) == ("better", 30, 0)
    higher = paired_difference(a, b, 1, QUICK)
    assert (higher["verdict"], higher["wins"], higher["losses"]) == ("worse", 0, 30)
    neither = paired_difference(a, b, 0, QUICK)
    assert neither["verdict"] is None and neither["p_value"] == lower["p_value"]


def test_too_few_questions_claim_nothing() -> None:
    for n in (1, MIN_QUESTIONS - 1):
        found = paired_difference([0.1] * n, [0.9] * n)
        assert found["difference"] == pytest.approx(0.8)
        assert found["low"] is found["high"] is found["p_value"] is None
        assert found["verdict"] == "too few questions"
    nothing = paired_difference([None], [0.5])
    assert nothing["n"] == 0 and nothing["mean_a"] is None and nothing["verdict"] == "too few questions"


def test_a_question_that_misses_a_value_is_left_out() -> None:
    a: list[float | None] = [None, 0.5, math.nan, 0.1, math.inf] + [0.2, 0.4] * 10
    b: list[float | None] = [0.9, None, 0.9, 0.3, 0.9] + [0.3, 0.6] * 10
    found = paired_difference(a, b, 1, QUICK)
    assert found["n"] == 21
    assert found["mean_a"] == pytest.approx((0.1 + 6) / 21)
    assert found == paired_difference([0.1, *[0.2, 0.4] * 10], [0.3, *[0.3, 0.6] * 10], 1, QUICK)


def test_different_numbers_of_values_are_refused() -> None:
    with pytest.raises(ValueError, match="inhomogeneous"):
        paired_difference([1, 2, 3], [1, 2])


def test_the_same_answers_and_the_same_change_everywhere() -> None:
    scores = list(numpy.random.default_rng(0).random(50))
    same = paired_difference(scores, scores, 1, QUICK)
    assert (same["low"], same["high"], same["p_value"], same["ties"]) == (0, 0, 1, 50)
    assert same["verdict"] == "no measurable difference"
    moved = paired_difference(scores, [score + 0.25 for score in scores], 1, QUICK)
    assert moved["low"] == pytest.approx(0.25) and moved["high"] == pytest.approx(0.25)
    assert moved["p_value"] == 1 / 2001


def test_interval_and_p_value_agree_with_students_t_and_with_scipys_bootstrap() -> None:
    from scipy.stats import bootstrap, ttest_rel

    generator = numpy.random.default_rng(1)
    a = generator.normal(0.17, 0.09, 200)
    b = a + generator.normal(0.008, 0.06, 200)
    found = paired_difference(a, b, 1, Resampler(10_000))
    student = ttest_rel(b, a)
    assert found["p_value"] == pytest.approx(student.pvalue, abs=0.01)
    low, high = student.confidence_interval(0.95)
    percentile = bootstrap(
        (b - a,), numpy.mean, n_resamples=10_000, method="percentile", rng=numpy.random.default_rng(2)
    ).confidence_interval
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=5e-4)
    assert (found["low"], found["high"]) == pytest.approx((percentile.low, percentile.high), abs=5e-4)


def test_rare_events_do_not_become_certain() -> None:
    # Three wins of 100 and no loss: an exact sign test gives p = 2 / 2**3 = 0.25.
    for wins in (1, 2, 3, 4):
        found = paired_difference([0.0] * 100, [1.0] * wins + [0.0] * (100 - wins), 1, QUICK)
        assert found["verdict"] == "no measurable difference"
        assert found["low"] is not None and found["high"] is not None and found["p_value"] is not None
        # 1e-12: means of floats; on a CPU without AVX-512 a low end of 0 comes out as 1.4e-17
        assert found["low"] < 1e-12 < wins / 100 <= found["high"] < 0.2
        assert found["p_value"] > 0.05
    many = paired_difference([0.0] * 100, [1.0] * 12 + [0.0] * 88, 1, QUICK)
    assert many["verdict"] == "better"


def test_resamples_depend_on_seed_and_n_only() -> None:
    values = numpy.arange(30.0)[:, None]
    one, other = Resampler(500), Resampler(500)
    other.sums(numpy.ones((77, 1)))
    assert (one.sums(values) == other.sums(values)).all()
    assert (one.sums(values) != Resampler(500, seed=43).sums(values)).any()
    assert (one.sums(numpy.ones((30, 1))) == 30).all()  # each resample has n questions
    assert one.sums(values).mean() == pytest.approx(values.sum(), rel=0.02)


def test_large_sets_go_through_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = numpy.random.default_rng(3).random((40, 2))
    whole = Resampler(300).sums(values)
    monkeypatch.setattr("medical_assistant.evaluation.scoring.bootstrap._BLOCK_CELLS", 40 * 7)
    assert Resampler(300).sums(values) == pytest.approx(whole)


def _per_item(generator: numpy.random.Generator, n: int = 500) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Two candidates of equal quality: each question has its own difficulty, each answer its own noise."""
    difficulty = generator.normal(0.17, 0.08, n)
    return tuple(numpy.clip(difficulty + generator.normal(0, 0.04, n), 0, 1) for _ in range(2))  # type: ignore[return-value]


def test_null_base_against_base_shows_no_difference() -> None:
    generator = numpy.random.default_rng(7)
    quiet = swapped_quiet = 0
    for _ in range(100):
        a, b = _per_item(generator)
        quiet += paired_difference(a, b, 1, QUICK)["verdict"] == "no measurable difference"
        # Any two candidates whose labels are dealt by a coin for each question are equal too.
        b = b + 0.05
        swap = generator.random(500) < 0.5
        left, right = numpy.where(swap, b, a), numpy.where(swap, a, b)
        swapped_quiet += paired_difference(left, right, 1, QUICK)["verdict"] == "no measurable difference"
    assert quiet >= 93
    assert swapped_quiet >= 93


def test_injected_effect_of_five_percent_is_found() -> None:
    generator = numpy.random.default_rng(11)
    found = 0
    for _ in range(20):
        a, b = _per_item(generator)
        found += paired_difference(a, b + 0.05 * 0.17, 1, QUICK)["verdict"] == "better"
    # Standard error sqrt(2) * 0.04 / sqrt(500) = 0.0025, effect 0.0085: power 0.92.
    assert found >= 16


def test_interval_holds_the_true_difference_in_small_samples() -> None:
    generator = numpy.random.default_rng(5)
    held = 0
    for seed in range(300):
        changes = generator.exponential(1.0, MIN_QUESTIONS)
        found = paired_difference([0.0] * MIN_QUESTIONS, changes, 1, Resampler(500, seed))
        assert found["low"] is not None and found["high"] is not None
        held += found["low"] <= 1.0 <= found["high"]
    assert held / 300 >= 0.92


SCORES = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=25, max_size=40)


@given(SCORES, st.floats(-5, 5))
def test_adding_a_constant_to_both_changes_nothing(pairs: list[tuple[float, float]], constant: float) -> None:
    a, b = (numpy.array(side).round(6) for side in zip(*pairs, strict=True))
    plain, moved = paired_difference(a, b, 1, QUICK), paired_difference(a + constant, b + constant, 1, QUICK)
    assert [plain[key] for key in ("n", "wins", "ties", "losses", "verdict")] == [
        moved[key] for key in ("n", "wins", "ties", "losses", "verdict")
    ]
    for key in ("difference", "low", "high", "p_value"):
        assert moved[key] == pytest.approx(plain[key], abs=2e-3 if key == "p_value" else 1e-6)


@given(SCORES)
def test_swapping_the_candidates_negates(pairs: list[tuple[float, float]]) -> None:
    a, b = (numpy.array(side).round(6) for side in zip(*pairs, strict=True))
    forth, back = paired_difference(a, b, 1, QUICK), paired_difference(b, a, 1, QUICK)
    assert back["difference"] == pytest.approx(-forth["difference"], abs=1e-12)
    assert (back["low"], back["high"]) == pytest.approx((-forth["high"], -forth["low"]), abs=1e-9)
    assert back["p_value"] == pytest.approx(forth["p_value"], abs=2e-3)
    assert (back["wins"], back["losses"]) == (forth["losses"], forth["wins"])
    opposite = {"better": "worse", "worse": "better"}
    assert back["verdict"] == opposite.get(str(forth["verdict"]), forth["verdict"])


def test_verdict_needs_the_interval_and_the_p_value() -> None:
    assert verdict(0.1, 0.2, 0.01, 1) == "better"
    assert verdict(0.1, 0.2, 0.06, 1) == "no measurable difference"
    assert verdict(-0.1, 0.2, 0.01, 1) == "no measurable difference"
    assert verdict(-0.2, -0.1, 0.01, 1) == "worse"
    assert verdict(-0.2, -0.1, 0.01, -1) == "better"
    assert verdict(None, None, None, 0) == "too few questions"


WORDS = "fever cough rash pain rest fluids doctor aspirin days chest skin warm cold sleep drink water".split()


def _texts(seed: int, kept: float, n: int = 60) -> tuple[list[str], list[str]]:
    """References, and answers that keep each of their words with the chance `kept`."""
    generator = numpy.random.default_rng(99)
    references = [list(generator.choice(WORDS, generator.integers(6, 14))) for _ in range(n)]
    generator = numpy.random.default_rng(seed)
    answers = [[w if generator.random() < kept else str(generator.choice(WORDS)) for w in text] for text in references]
    return [" ".join(text) for text in references], [" ".join(text) for text in answers]


def paired_corpus_bleu(a, b, references: list[str], resampler: Resampler = QUICK):
    return paired_corpus("bleu", *(corpus_statistics("bleu", answers, references) for answers in (a, b)), resampler)


@pytest.mark.parametrize("metric", ["bleu", "chrf"])
def test_corpus_scores_are_sacrebleus(metric: str) -> None:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    references, a = _texts(1, 0.6)
    _, b = _texts(2, 0.8)
    b[0] = ""
    scorer = {"bleu": BLEU, "chrf": CHRF}[metric]()
    found = paired_corpus(
        metric, corpus_statistics(metric, a, references), corpus_statistics(metric, b, references), QUICK
    )
    assert found["mean_a"] == pytest.approx(scorer.corpus_score(a, [references]).score)
    assert found["mean_b"] == pytest.approx(scorer.corpus_score(b, [references]).score)
    assert found["verdict"] == "better"
    assert found["wins"] > found["losses"] and found["wins"] + found["ties"] + found["losses"] == 60


def test_corpus_bleu_agrees_with_sacrebleus_paired_tests() -> None:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.significance import PairedTest

    references, a = _texts(1, 0.70, 200)
    _, b = _texts(2, 0.75, 200)
    found = paired_corpus_bleu(a, b, references, Resampler(2_000))
    theirs = {}
    for kind in ("ar", "bs"):
        test = PairedTest([("a", a), ("b", b)], {"BLEU": BLEU()}, [references], test_type=kind, n_samples=1_000)
        theirs[kind] = test()[1]["BLEU"][1]
    assert found["mean_b"] == pytest.approx(theirs["ar"].score)
    assert 0.005 < theirs["ar"].p_value < 0.2
    assert found["p_value"] == pytest.approx(theirs["ar"].p_value, abs=0.03)  # approximate randomisation: two-sided
    assert theirs["bs"].p_value < found["p_value"]  # of absolute differences, shifted
    assert found["low"] is not None and found["high"] is not None and found["difference"] is not None
    assert found["low"] < found["difference"] < found["high"]


def test_corpus_bleu_of_the_same_answers() -> None:
    references, a = _texts(1, 0.6)
    same = paired_corpus_bleu(a, a, references, QUICK)
    assert (same["difference"], same["p_value"], same["verdict"]) == (0, 1, "no measurable difference")
    few = paired_corpus_bleu(a[:3], a[3:6], references[:3], QUICK)
    assert (few["n"], few["low"], few["verdict"]) == (3, None, "too few questions")


def test_corpus_bleu_of_equal_candidates_shows_no_difference() -> None:
    quiet = 0
    for seed in range(40):
        references, a = _texts(100 + seed, 0.7, 100)
        _, b = _texts(500 + seed, 0.7, 100)
        quiet += paired_corpus_bleu(a, b, references, Resampler(200, seed))["verdict"] == "no measurable difference"
    assert quiet >= 35


def test_wilsons_interval_by_hand() -> None:
    # Newcombe 1998 (doi:10.1002/(SICI)1097-0258(19980430)17:8), table I, method 3.
    assert proportion_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert proportion_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert proportion_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert proportion_interval(29, 29) == pytest.approx((0.8830, 1.0), abs=5e-5)
    assert proportion_interval(0, 0) == (0, 1)


def test_holm_by_hand() -> None:
    adjusted = holm({"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.005})
    # Sorted: 4 * 0.005, 3 * 0.01, 2 * 0.03, 1 * 0.04 raised to the one before.
    assert list(adjusted) == ["a", "b", "c", "d"]
    assert adjusted == pytest.approx({"a": 0.06, "b": 0.03, "c": 0.06, "d": 0.02})
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    assert holm({"only": 0.03}) == {"only": 0.03}
    assert holm({}) == {}
