"""The benchmark of stored libraries: its arithmetic, and its reading of two corpora, on a handful of rows."""

from __future__ import annotations

import json
import math

import pytest

from medical_assistant.errors import UserError
from medical_assistant.library.store import StoredLibrary
from tests.support.paths import load_script

TOPIC = {"id": "1", "title": "Gout", "url": "https://a.example/g", "also_called": ["Podagra"]}
TEXT = "Gout is a pain.\n\nWhat causes gout?\nUric acid causes gout. It forms crystals.\n"


@pytest.fixture(scope="module")
def benchmark():
    return load_script("benchmarks/library_store")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    rows = [
        {"question": f"What are the {kind} of Zorbitis ?", "answer": answer, "focus": "Zorbitis", "question_type": kind,
         "source": "GARD", "url": "https://b.example/z"}
        for kind, answer in (("symptoms", "Zorbitis itches. It burns."), ("treatment", "Rest heals zorbitis."))
    ]  # fmt: skip
    (folder / "medlineplus_topics.jsonl").write_text(json.dumps({**TOPIC, "text": TEXT}) + "\n", encoding="utf-8")
    (folder / "medquad.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return folder


def test_documents_have_their_headings_and_no_questions(benchmark, sources):
    gout, zorbitis = benchmark.read_corpora(sources)
    assert [section.heading for section in gout.sections] == ["In short", "What causes gout?"]
    assert [line.text for line in gout.sections[1].lines] == ["Uric acid causes gout.", "It forms crystals."]
    assert [section.heading for section in zorbitis.sections] == ["Signs", "Treatment"]
    assert all("?" not in line.text for section in zorbitis.sections for line in section.lines)


def test_measures(benchmark):
    keys = [("a", "x"), ("b", "x"), ("c", "x")]
    assert benchmark.measures(keys, {keys[0]}) == {"ndcg_10": 1.0, "hit_1": 1.0, "hit_3": 1.0}
    found = benchmark.measures(keys, {keys[1], ("d", "x")})
    assert found["ndcg_10"] == pytest.approx((1 / math.log2(3)) / (1 + 1 / math.log2(3)))
    assert (found["hit_1"], found["hit_3"]) == (0.0, 1.0)
    assert benchmark.measures([], {keys[0]}) == {"ndcg_10": 0.0, "hit_1": 0.0, "hit_3": 0.0}


def test_both_ways_find_what_is_asked(benchmark, sources, tmp_path):
    pages = benchmark.read_corpora(sources)
    assert benchmark.build(tmp_path, pages)["passages"] == 4
    questions = benchmark.sample_questions(sources / "medquad.jsonl")
    report = benchmark.quality(StoredLibrary(tmp_path), pages, questions)
    assert report["store"] == {"ndcg_10": 1.0, "hit_1": 1.0, "hit_3": 1.0} and report["plain_bm25s"]["hit_3"] == 1.0


def test_repeated_pages_have_names_of_their_own(benchmark, sources):
    pages = list(benchmark.repeated(benchmark.read_corpora(sources), 6))
    assert len(pages) == 3 and len({page.id for page in pages}) == len({page.title for page in pages}) == 3


def test_missing_data_is_one_line(benchmark, tmp_path):
    with pytest.raises(UserError, match="--sources names a folder"):
        benchmark.read_rows(tmp_path / "medquad.jsonl")
