"""Pages: what the reader refuses, and the form of every page that ships."""

from __future__ import annotations

import json

import pytest

from medical_assistant.errors import UserError
from medical_assistant.library.index import FOLDER
from medical_assistant.library.pages import SECTIONS, read_library, read_page
from medical_assistant.safety.screening import screen
from tests.library.conftest import PAGES, page_text
from tests.support.paths import ROOT


def write(folder, text, name="page"):
    path = folder / f"{name}.md"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_page_keeps_lines_lists_and_sources(tmp_path):
    page = read_page(write(tmp_path, PAGES["malaria"], "malaria"))
    assert (page.id, page.title, page.kind, page.also_called) == ("malaria", "Malaria", "condition", ("paludism",))
    prevention = page.section("Prevention")
    assert [(line.text, line.item, line.leads, line.sources) for line in prevention.lines] == [
        ("To prevent malaria:", False, True, ()),
        ("sleep under a net", True, False, (0,)),
        ("wear long sleeves", True, False, (0,)),
    ]
    assert page.sources[0].date == "2024-01-02" and page.section("Causes") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no front matter", "front matter"),
        ("---\n[\n---\n", "not YAML"),
        ("---\ntitle: x\n---\n", "fields"),
        (page_text("X", "nonsense", "", "## In short\n\nX is. [1]"), "unknown kind"),
        (page_text("X", "condition", "", "## In short\n\nX is. [1]", "sources: []\n"), "no sources"),
        (page_text("X", "condition", "", "## In short\n\nX is. [1]", "sources:\n- {title: a}\n"), "a source needs"),
        (
            page_text(
                "X", "condition", "", "## In short\n\nX is. [1]",
                "sources:\n- {publisher: a, title: b, address: 'javascript:alert(1)'}\n",
            ),
            "not a web address",
        ),
        (page_text("X", "condition", "", "## In short\n\nX is."), "no source"),
        (page_text("X", "condition", "", "## In short\n\nX is. [1] [1]"), "no source"),
        (page_text("X", "condition", "", "## In short\n\nX is. [2]"), "does not have"),
        (page_text("X", "condition", "", "X is. [1]"), "before the first"),
        (page_text("X", "condition", "", ""), "no sections"),
        (page_text("X", "condition", "", "## In short\n\n## Causes\n\nX. [1]"), "empty"),
        (page_text("X", "condition", "", "## In short\n\nCauses are:\n\nX is. [1]"), "leads into no list"),
    ],
)  # fmt: skip
def test_a_page_in_another_form_is_refused_with_its_path(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=message) as error:
        read_page(path)
    assert str(path) in str(error.value)


def test_two_pages_of_one_name_are_refused(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder, PAGES["gout"], "gout")
    with pytest.raises(UserError, match="same name"):
        read_library(tmp_path)


def test_every_shipped_page_is_in_form(shipped):
    assert len(shipped.pages) >= 290
    for page in shipped.pages:
        headings = [section.heading for section in page.sections]
        order = list(SECTIONS[page.kind])
        assert set(headings) <= set(order), page.id
        assert headings == sorted(headings, key=order.index) and headings[0] == order[0], page.id
        assert len(set(headings)) == len(headings), page.id
        assert page.path.startswith(str(FOLDER / page.kind)), page.id
        assert all(source.publisher and source.title for source in page.sources), page.id
        assert all(source.address.startswith(("https://", "http://")) for source in page.sources), page.id
        for section in page.sections:
            for line in section.lines:
                assert line.text and (line.leads or line.sources), (page.id, line.text)
                assert "<" not in line.text and "](" not in line.text, (page.id, line.text)


def test_items_under_get_help_now_stay_emergencies_for_the_triage(shipped):
    """The measured share is benchmarks/results/library.json's; it must not fall by more than 2 points."""
    measured = json.loads((ROOT / "benchmarks/results/library.json").read_text(encoding="utf-8"))["dev"]["get_help_now"]
    sections = (page.section("Get help now") for page in shipped.pages)
    items = sorted({line.text for section in sections if section for line in section.lines if line.item})[::3]
    levels = [screen(f"I have {item}").triage.level for item in items]
    assert sum(level in ("emergency", "urgent") for level in levels) / len(levels) >= measured["at_least_urgent"] - 0.02
