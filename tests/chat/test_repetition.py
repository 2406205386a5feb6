"""An answer that repeats itself is noticed, one that only repeats a phrase is not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medical_assistant.chat.repetition import LONGEST_RUN, RepetitionDetector, without_repetition

PLAIN = (
    "Gout is a kind of arthritis. It comes from crystals of uric acid in the joints. The big toe is often the first. "
    "Drink enough water, rest the joint and cool it. A doctor can give a medicine that lowers the uric acid."
)
SENTENCE = "Pain in the joints is the most common symptom and it may last for several days or even weeks at a time. "


def repeats(text, size=5):
    detector = RepetitionDetector()
    return any([detector.feed(text[at : at + size]) for at in range(0, len(text), size)])


def test_an_ordinary_answer_passes():
    assert not repeats(PLAIN) and without_repetition(PLAIN) == PLAIN
    assert not repeats(PLAIN + " " + SENTENCE * 2)  # one sentence said twice is no repetition
    listed = "".join(
        f"- {name} may cause pain in the joints, and a doctor can help.\n" for name in sorted(set(PLAIN.split()))
    )
    assert not repeats(listed)


@pytest.mark.parametrize("loop", [SENTENCE, "pain in the joints, ", "very ", "One. Two. Three, four. Five.\n"])
def test_a_repetition_is_noticed_and_cut(loop):
    text = PLAIN + "\n\n" + loop * 40
    assert repeats(text) and repeats(text, 1) and repeats(text, 1000)
    assert without_repetition(text).startswith(PLAIN)
    assert len(without_repetition(text)) <= len(PLAIN) + len(loop) + 40


def test_a_repetition_without_a_sentence_before_it_leaves_one_round():
    assert without_repetition("pain in the joints, " * 40).startswith("pain in the joints")
    assert len(without_repetition("pain in the joints, " * 40)) < 60


@given(st.text(), st.integers(1, 20))
def test_any_text_is_read_the_same_in_any_pieces(text, size):
    assert repeats(text + " ", size) == repeats(text + " ", len(text) + 1)
    assert text.startswith(without_repetition(text))


@given(st.lists(st.integers(0, 10**6), unique=True, min_size=1))
def test_no_repetition_without_repeated_words(numbers):
    text = " ".join(map(str, numbers))
    assert not repeats(text) and without_repetition(text) == text
    assert repeats(f"{text} " * (2 + (LONGEST_RUN + 8) // len(numbers)) * 2)
