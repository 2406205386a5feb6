"""The quoted answer: word for word from its pages, numbered sources, and what it says where it knows nothing."""

from __future__ import annotations

import dataclasses

from medical_assistant.library.answer import HELP_WITH_MANY, OFF_TOPIC, URGENT, WHOM_TO_ASK, quoted_answer, source_list
from medical_assistant.library.pages import Line, Page, Section, Source
from medical_assistant.library.passages import Found, Part, Passage


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


def found(*sections_of_pages, asked=(), **fields):
    """What is found of pages, each {heading: lines}; of each all sections named in `asked`, in that order."""
    parts = []
    for number, sections in enumerate(sections_of_pages):
        made = tuple(
            Section(
                heading,
                tuple(
                    Line(
                        text.lstrip("- "), () if text.endswith(":") else (0,), text.startswith("-"), text.endswith(":")
                    )
                    for text in texts
                ),
            )
            for heading, texts in sections.items()
        )
        source = Source("P", f"T{number}", f"https://p.example/{number}")
        page = Page(f"p{number}", f"Page {number}", "condition", (), (source,), made)
        passages = tuple(Passage(page, page.section(name), page.section(name).lines) for name in asked)
        parts.append(Part(page, "page", False, tuple(asked), passages))
    return Found("q", "covered", 1.0, tuple(parts), **fields)


ILLNESS = {
    "In short": ["It is an illness."],
    "Causes": ["A germ causes it."],
    "Treatment": ["Rest treats it."],
    "Get help now": ["Call an ambulance if you have:", "- a seizure", "- a rash"],
    "See a doctor today": ["See a doctor today if you have:", "- a fever"],
}


def test_what_was_asked_comes_first_and_the_urgent_lines_last():
    text = quoted_answer(found(ILLNESS, asked=("See a doctor today", "Treatment", "Causes"))).text
    order = [
        "### Page 0",
        "It is an illness",
        "**Treatment**",
        "**Causes**",
        "> **Get help now**",
        "**See a doctor today**",
    ]
    places = [text.index(words) for words in order]
    assert places == sorted(places) and text.count("Get help now") == 1
    assert (
        "> **Get help now**\n>\n> Call an ambulance if you have:\n>\n> - a seizure [1]\n> - a rash [1]\n\n**See" in text
    )


def test_two_topics_share_one_list_of_when_to_get_help():
    other = {**ILLNESS, "Get help now": ["Call an ambulance if you have:", "- a seizure", "- blue lips"]}
    answer = quoted_answer(found(ILLNESS, other, asked=("Treatment",)))
    assert answer.text.endswith(
        "> Call an ambulance if you have:\n>\n> - a seizure [1]\n> - a rash [1]\n> - blue lips [2]"
    )
    assert answer.text.index("### Page 1") < answer.text.index("Get help now")


def test_more_topics_are_short():
    answer = quoted_answer(
        found(ILLNESS, ILLNESS, ILLNESS, asked=("Treatment", "Causes"), unanswered=("*a*?",), left_out=1)
    )
    assert answer.text.count("Rest treats it") == 3 and "A germ" not in answer.text and "seizure" not in answer.text
    assert f"> **{URGENT}**\n>\n> {HELP_WITH_MANY}" in answer.text
    assert "I have nothing on \u201c\\*a\\*?\u201d." in answer.text and "1 more question." in answer.text


def test_the_numbers_of_a_line_are_in_order():
    sources = tuple(Source("P", str(number), "https://p.example") for number in range(3))
    lines = (Line("One.", (2,)), Line("Two.", (0, 2)))
    page = Page("p", "Page", "condition", (), sources, (Section("In short", lines),))
    part = Part(page, "page", False, (), (Passage(page, page.sections[0], lines),))
    assert quoted_answer(Found("q", "covered", 1.0, (part,))).text == "### Page\n\nOne. [1] Two. [1, 2]"


def test_what_is_not_covered_says_whom_to_ask(small):
    found = dataclasses.replace(small.find("what is stiff person syndrome"), coverage="not", off_topic=False)
    answer = quoted_answer(found)
    assert WHOM_TO_ASK in answer.text and not answer.sources and not answer.lines
    assert quoted_answer(dataclasses.replace(found, off_topic=True)).text == OFF_TOPIC


def test_sources_are_listed_with_link_and_date(small):
    answer = quoted_answer(covered(small, "what causes gout"))
    assert source_list(answer.sources) == "1. NHS: [A page](https://www.nhs.uk/a), 2024-01-02"
