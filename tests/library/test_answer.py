"""The quoted answer: word for word from its pages, numbered sources, and what it says where it knows nothing."""

from __future__ import annotations

import dataclasses

from medical_assistant.library.answer import URGENT, WHOM_TO_ASK, quoted_answer, source_list


def covered(library, question):
    return dataclasses.replace(library.find(question), coverage="covered")


def test_every_line_stands_in_its_page_and_in_the_text(shipped):
    for page in shipped.pages[::5]:
        answer = quoted_answer(covered(shipped, f"how is {page.title} treated"))
        assert answer.lines
        for cited, line in answer.lines:
            assert any(line in section.lines for section in cited.sections)
            assert line.text in answer.text
        numbers = [source.number for source in answer.sources]
        assert numbers == list(range(1, len(numbers) + 1))
        assert all(f"{number}" in answer.text for number in numbers)


def test_definition_first_then_what_was_asked_then_when_to_get_help(small):
    text = quoted_answer(covered(small, "how is malaria treated")).text
    order = [text.index(part) for part in ("mosquitoes spread", "Tablets treat malaria", URGENT, "a seizure")]
    assert order == sorted(order)


def test_lists_stay_whole_under_their_lead(small):
    text = quoted_answer(covered(small, "how do i prevent malaria")).text
    assert "To prevent malaria:\n\n- sleep under a net [1]\n- wear long sleeves [1]" in text


def test_two_topics_have_headings_and_common_numbers(small):
    answer = quoted_answer(covered(small, "how are gout and malaria treated"))
    assert "### Gout" in answer.text and "### Malaria" in answer.text and len(answer.sources) == 1


def test_what_is_not_covered_says_whom_to_ask(small):
    answer = quoted_answer(small.find("the price of flights to Mars"))
    assert WHOM_TO_ASK in answer.text and not answer.sources and not answer.lines


def test_sources_are_listed_with_link_and_date(small):
    answer = quoted_answer(covered(small, "what causes gout"))
    assert source_list(answer.sources) == "1. NHS: [A page](https://www.nhs.uk/a), 2024-01-02"
