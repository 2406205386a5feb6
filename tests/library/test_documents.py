"""Documents become pages: sentences, lists with their lead-in, sections that can be quoted, and nothing hidden."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medical_assistant.library.documents import MAX_SECTION_WORDS, Block, Document, page_of, sentences, web_address
from medical_assistant.library.formats.text import text_blocks
from tests.support.documents import outline
from tests.support.timing import growth


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Rest. Drink water.", 2),
        ("Dr. Smith gave 2.5 mg, e.g. Advil. It helped.", 2),
        ("Approx. 5 people vs. Ten others. Done!", 2),
        ("See fig. 3 and no. 7. Then stop.", 2),
        ("This is hepatitis B. It is a virus.", 2),
        ("Dr. J. Smith wrote it. Read on.", 2),
        ("1. Take the tablet. 2. Wait.", 2),
        ("The U.S. Food and Drug Administration says so.", 1),
        ('He said "stop." Then he left.', 2),
        ("Call 999 now? Yes! Do it.", 3),
        ("E. coli is a germ.", 1),
        ("", 0),
    ],
)
def test_sentences_are_split_but_not_after_abbreviations(text: str, expected: int) -> None:
    assert len(sentences(text)) == expected and " ".join(sentences(text)) == text


@given(st.text(alphabet="aB .!?\"'()1\n", max_size=200))
def test_sentences_lose_no_character(text: str) -> None:
    assert "".join("".join(sentences(text)).split()) == "".join(text.split())


def test_a_long_list_is_parted_between_items_and_its_lead_in_begins_each_part() -> None:
    items = tuple(Block("item", f"item {number} " + "word " * 20) for number in range(60))
    page = page_of(Document("Pages", (Block("heading", "Signs", 2), Block("paragraph", "They are:"), *items)))
    assert page and len(page.sections) > 3
    assert [section.heading for section in page.sections][:2] == ["Signs", "Signs (2)"]
    for section in page.sections:
        assert section.lines[0].leads and section.lines[0].text == "They are:"
        assert sum(len(line.text.split()) for line in section.lines) <= MAX_SECTION_WORDS + 5
    assert sum(line.item for section in page.sections for line in section.lines) == 60


def test_headings_without_text_stand_before_those_below_them() -> None:
    blocks = (
        Block("heading", "Gout", 1),
        Block("paragraph", "Gout hurts."),
        Block("heading", "Treatment", 2),
        Block("heading", "Tablets", 3),
        Block("paragraph", "They help.[3][4, 5] Normal is [70-99] mg/dL."),
        Block("heading", "Causes?", 2),
        Block("paragraph", "Which are:"),
    )
    page = page_of(Document("Gout", blocks))
    assert page and outline(page) == {
        "In short": ["Gout hurts."],
        "Treatment: Tablets": ["They help.", "Normal is [70-99] mg/dL."],
        "Causes?": ["Which are:"],  # leads into no list
    }


def test_a_text_of_one_endless_line_is_cut() -> None:
    page = page_of(Document("Long", (Block("paragraph", "x" * 5000), Block("paragraph", "word " * 3000))))
    assert page and max(len(line.text) for section in page.sections for line in section.lines) <= 800


@pytest.mark.parametrize("text", ["It hurts. ", "x", "A [1] ", "- a ", '."', "Dr. X ", "\n\nA: b\n", "<p>", "? "])
def test_the_time_grows_with_the_text_alone(text: str) -> None:
    def work(size: int) -> object:
        return page_of(Document("Long", tuple(text_blocks(text * size))))

    assert growth(work, 20_000 // len(text)) < 3.5


def test_control_characters_and_lone_surrogates_go() -> None:
    page = page_of(Document("A\x00B\ud800", (Block("paragraph", "x\x1b[31m \u202ey\ud800 z\x00."),)))
    assert page and not set("\x00\x1b\u202e\ud800") & set(page.title + page.sections[0].lines[0].text)


@pytest.mark.parametrize(
    "address", ["javascript:alert(1)", "ftp://a.b/c", "https://", "http://a b", "//x", "[", "http://[x"]
)
def test_what_is_no_web_address_is_none(address: str) -> None:
    assert web_address(address) == ""
