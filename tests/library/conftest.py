"""The shipped library, opened once, and a small one whose pages the tests know."""

from __future__ import annotations

import pytest

from medical_assistant.library.index import FOLDER, EmbeddedLibrary, open_library

SOURCES = 'sources:\n- {publisher: NHS, title: A page, address: "https://www.nhs.uk/a", date: 2024-01-02}\n'


def page_text(title: str, kind: str, names: str, body: str, sources: str = SOURCES) -> str:
    """Return a page in the project's form."""
    return (
        f'---\ntitle: {title}\nkind: {kind}\nalso_called: [{names}]\n{sources}written: 2026-01-01\nchecked: ""\n---\n\n'
        f"{body}\n"
    )


PAGES = {
    "malaria": page_text(
        "Malaria",
        "condition",
        "paludism",
        "## In short\n\nMalaria is a disease that mosquitoes spread. [1]\n\n"
        "## Treatment\n\nTablets treat malaria. [1]\n\n"
        "## Prevention\n\nTo prevent malaria:\n\n- sleep under a net [1]\n- wear long sleeves [1]\n\n"
        "## Get help now\n\nGet help now if you have:\n\n- a seizure [1]",
    ),
    "gout": page_text(
        "Gout",
        "condition",
        "gouty arthritis, bad toe",
        "## In short\n\nGout is a sudden pain of a joint. [1]\n\n## Causes\n\nUric acid causes gout. [1]\n\n"
        "## Treatment\n\nTablets ease gout. [1]",
    ),
    "fever-in-children": page_text(
        "Fever in children",
        "symptom",
        "hot child, fever",
        "## In short\n\nA fever in a child is a temperature of 38°C or more. [1]\n\n"
        "## What you can do\n\nGive a child with a fever plenty to drink. [1]",
    ),
    "fever-in-adults": page_text(
        "Fever in adults",
        "symptom",
        "high temperature, fever",
        "## In short\n\nA fever in an adult is a temperature of 38°C or more. [1]\n\n"
        "## What you can do\n\nAn adult with a fever should rest. [1]",
    ),
    "ibuprofen": page_text(
        "Ibuprofen",
        "medicine",
        "Advil, Brufen",
        "## In short\n\nIbuprofen is a medicine for pain. [1]\n\n"
        "## Do not mix with\n\nDo not take ibuprofen with warfarin. [1]\n\n"
        "## Missed dose\n\nTake a missed dose of ibuprofen when you remember. [1]\n\n"
        "## Side effects\n\nIbuprofen can upset the stomach. [1]",
    ),
    "sore-throat": page_text(
        "Sore throat",
        "symptom",
        "throat pain",
        "## In short\n\nA sore throat is pain in the throat. [1]\n\n"
        "## Treatment\n\nAntibiotics seldom help a sore throat. [1]",
    ),
    "pulse-rate": page_text(
        "Pulse rate",
        "test",
        "resting pulse, heart rate",
        "## What it measures\n\nA pulse counts heart beats. [1]\n\n"
        "## Normal values\n\nA resting pulse of 60 to 100 is normal. [1]\n\n"
        "## High\n\nA fever can raise the pulse. [1]",
    ),
}


@pytest.fixture(scope="session")
def shipped() -> EmbeddedLibrary:
    return open_library()


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> EmbeddedLibrary:
    folder = tmp_path_factory.mktemp("library")
    for name, text in PAGES.items():
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
    return open_library(folder)


__all__ = ["FOLDER", "PAGES", "SOURCES", "page_text"]
