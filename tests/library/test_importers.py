"""Every format becomes pages: what a reader needs is kept, what surrounds it is not, and bad input is one line."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from medical_assistant.errors import UserError
from medical_assistant.library.importers import FORMATS, fetch, list_sources, read_pages
from medical_assistant.library.pages import Page
from tests.library.conftest import PAGES
from tests.support.documents import MEDLINEPLUS_XML, make_pdf, outline, web_server

MAX_FILE_BYTES = 10**6
NO_OUTPUT = Path("no such folder")


def pages_of(path: Path) -> list[Page]:
    """Return the pages of a file."""
    (source,) = list_sources(str(path), NO_OUTPUT, MAX_FILE_BYTES).sources
    return [page for _, page in read_pages(source, source.read(), Counter(), library="my pages") if page]


def read(tmp_path: Path, name: str, content: str | bytes) -> list[Page]:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return pages_of(path)


# Formats


def test_markdown_with_front_matter(tmp_path: Path) -> None:
    text = (
        "---\ntitle: Gout\nsource: https://clinic.example/gout\ndate: 3 March 2025\nlicence: CC BY 4.0\n"
        "publisher: Our clinic\nalso_called: [podagra]\n---\n\nGout is a *sudden* pain. [More](https://x.example).\n\n"
        "## Signs\n\nSigns are:\n\n- a **red** joint\n  - in the toe\n- pain <b>at night</b>\n\n![x](y.png)\n\n"
        "## Doses\n\n| age | dose |\n| --- | --- |\n| 5 | one |\n\n<div><script>x()</script><p>Ask first.</p></div>\n"
    )
    (page,) = read(tmp_path, "gout.md", text)
    (source,) = page.sources
    assert (page.title, page.kind, page.also_called) == ("Gout", "document", ("podagra",))
    assert (source.address, source.date, source.licence, source.publisher) == (
        "https://clinic.example/gout",
        "2025-03-03",
        "CC BY 4.0",
        "Our clinic",
    )
    assert outline(page) == {
        "In short": ["Gout is a sudden pain.", "More."],
        "Signs": ["> Signs are:", "- a red joint", "- in the toe", "- pain at night"],
        "Doses": ["- age | dose", "- 5 | one", "Ask first."],
    }


def test_plain_markdown_needs_no_front_matter(tmp_path: Path) -> None:
    (page,) = read(tmp_path, "my-notes.md", "# Sore knee\n\nRest it.\n\n---\n\nIce it.\n")
    assert page.title == "Sore knee" and outline(page) == {"In short": ["Rest it.", "Ice it."]}
    assert page.sources[0].address == "" and page.sources[0].publisher == "my pages"


def test_a_page_in_the_projects_form_stays_as_it_is(tmp_path: Path) -> None:
    (page,) = read(tmp_path, "malaria.md", PAGES["malaria"])
    assert page.kind == "condition" and page.section("Get help now") and page.sources[0].publisher == "NHS"
    with pytest.raises(UserError, match="names a source that the page does not have"):
        read(tmp_path, "gout.md", PAGES["gout"].replace("[1]", "[2]"))


def test_a_link_that_is_not_http_is_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("---\ntitle: A\naddress: javascript:alert(1)\n---\nText of it.\n")
    (source,), notes = list_sources(str(path), NO_OUTPUT, MAX_FILE_BYTES).sources, Counter[str]()
    ((_, page),) = read_pages(source, source.read(), notes)
    assert page and page.sources[0].address == "" and list(notes.values()) == [1]


HTML = """<html><head><title>Gout | Our clinic</title><link rel="canonical" href="https://clinic.example/gout">
<meta property="article:modified_time" content="2025-03-04"><style>p {color: red}</style><script>track()</script></head>
<body><nav><ul><li><a href="/">Home</a></li><li><a href="/b">About us</a></li></ul></nav>
<div class="cookie-banner"><p>We use cookies to make this site better for you. Accept all.</p></div>
<main><h1>Gout</h1><p>Gout is a sudden pain of a joint. It often begins at night, and it can wake you from sleep.</p>
<h2>Symptoms</h2><p>Signs of gout are:</p><ul><li>a <a href="/x">red</a> joint</li><li>severe <b>pain</b></li></ul>
<h3>In children</h3><p>Gout is rare in children, and a doctor should always look for another cause of the pain.</p>
</main><footer>Copyright 2025 <a href="/p">Privacy</a></footer></body></html>"""


def test_html_keeps_the_main_text_with_headings_and_lists(tmp_path: Path) -> None:
    (page,) = read(tmp_path, "gout.html", HTML)
    assert page.title == "Gout" and page.sources[0].address == "https://clinic.example/gout"
    assert page.sources[0].date == "2025-03-04"
    found = outline(page)
    assert found["Symptoms"] == ["> Signs of gout are:", "- a red joint", "- severe pain"]
    assert found["Symptoms: In children"][0].startswith("Gout is rare") and len(found["In short"]) == 2
    text = str(found)
    assert not any(word in text for word in ("cookies", "Home", "Copyright", "track", "color"))


def test_a_short_page_without_main_tags_loses_its_menu(tmp_path: Path) -> None:
    text = (
        '<title>Cold</title><div id="header"><a href="/">Home</a></div><ul class="nav menu"><li>Conditions</li></ul>'
        '<div class="content"><h1>Cold</h1><p>A cold is short. See <a href="/flu">flu</a>.</p><h2>Signs#</h2>'
        '<ul><li><a href="/a">sneezing</a></li></ul></div><div class="footer">All rights reserved.</div>'
    )
    (page,) = read(tmp_path, "cold.html", text)
    assert outline(page) == {"In short": ["A cold is short.", "See flu."], "Signs": ["- sneezing"]}


def test_html_of_50_000_nested_tags_is_read_or_one_line(tmp_path: Path) -> None:
    for inner in ("<div>", "<ul><li>", "<b>"):
        try:
            read(tmp_path, "deep.html", f"<html><body><p>Rest a sore knee.</p>{inner * 50_000}x</body></html>")
        except UserError as error:
            assert "\n" not in str(error)


def test_pdf_keeps_headings_joins_lines_and_drops_what_repeats(tmp_path: Path) -> None:
    body = [
        (20.0, "Treatment of gout"),
        (10.0, "Gout is treated with tablets that ease the inflam-"),
        (10.0, "mation of the joint. Most people feel better soon."),
        (16.0, "What you can do"),
        (10.0, "You can do these things at home:"),
        (10.0, "- rest the foot"),
        (10.0, "- drink water"),
    ]
    pages = [[(8.0, "Our clinic leaflet 7"), *body, (8.0, f"Page {number} of 3")] for number in (1, 2, 3)]
    pages[1][1], pages[1][-2] = (20.0, "Causes of gout"), (10.0, "- eat less meat")
    pages[2][1], pages[2][-2] = (20.0, "Who gets gout"), (10.0, "- move it later")
    (page,) = read(tmp_path, "gout.pdf", make_pdf(pages, title="Gout leaflet"))
    assert page.title == "Gout leaflet"
    found = outline(page)
    assert "Treatment of gout" in found and "Causes of gout" in found
    assert found["Treatment of gout"][0] == "Gout is treated with tablets that ease the inflammation of the joint."
    assert found["Treatment of gout: What you can do"] == [
        "> You can do these things at home:",
        "- rest the foot",
        "- drink water",
    ]
    assert not any("Page" in line or "leaflet" in line for lines in found.values() for line in lines)


def test_pdf_without_headings_has_its_pages_as_sections(tmp_path: Path) -> None:
    lines = [(10.0, "Rest a sore knee for two days and put ice on it."), (10.0, "See a doctor where it swells a lot.")]
    (page,) = read(tmp_path, "knee.pdf", make_pdf([lines, [(10.0, "A torn knee needs an operation in few people.")]]))
    assert list(outline(page)) == ["Page 1", "Page 2"]


def test_a_pdf_that_is_no_text_is_one_line_each(tmp_path: Path) -> None:
    import pypdf

    good = make_pdf([[(10.0, "Rest a sore knee for two days.")]])
    writer, encrypted = pypdf.PdfWriter(clone_from=io.BytesIO(good)), io.BytesIO()
    writer.encrypt("secret", algorithm="RC4-128")
    writer.write(encrypted)
    for content, words in (
        (good[: len(good) // 3], "broken PDF"),
        (b"%PDF-1.7\n" + b"\xff" * 500, "broken PDF"),
        (encrypted.getvalue(), "encrypted"),
        (make_pdf([[], []]), "OCR"),
    ):
        with pytest.raises(UserError, match=words) as error:
            read(tmp_path, "a.pdf", content)
        assert "\n" not in str(error.value)


def test_medlineplus_xml(tmp_path: Path) -> None:
    (page,) = read(tmp_path, "mplus_topics_2026-11-28.xml", MEDLINEPLUS_XML)  # the Spanish topic is left out
    (source,) = page.sources
    assert page.title == "Gout" and page.also_called == ("Gouty arthritis", "Podagra")
    assert (source.publisher, source.licence, source.date) == ("MedlinePlus", "Public domain", "2003-01-07")
    assert outline(page) == {
        "What is gout?": ["Gout is a type of arthritis.", "It hurts."],
        "What are the symptoms of gout?": ["> The symptoms may include:", "- Pain", "- Swelling"],
    }
    for text in ("<a><b></a>", "<a/>", '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>'):
        with pytest.raises(UserError):
            read(tmp_path, "other.xml", text)


def rows(*entries: dict[str, object]) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def test_medquad_rows_are_pages_by_focus_with_sections_by_type(tmp_path: Path) -> None:
    common = {"focus": "Gout", "source": "NHLBI", "url": "https://nih.example/gout"}
    text = rows(
        {
            **common,
            "question": "What causes Gout ?",
            "answer": "What causes gout? Uric acid.",
            "question_type": "causes",
        },
        {**common, "question": "What is Gout ?", "answer": "Gout hurts.", "question_type": "information"},
        {**common, "question": "Tests ?", "answer": "Tests are: - Blood. - Urine.", "question_type": "exams and tests"},
    )
    (page,) = read(tmp_path, "medquad.jsonl", text)
    assert page.title == "Gout" and page.sources[0].publisher.startswith("National Heart")
    assert outline(page) == {
        "In short": ["Gout hurts."],
        "Causes": ["Uric acid."],
        "How it is found": ["> Tests are:", "- Blood.", "- Urine."],
    }


def test_rows_with_fields_of_other_names(tmp_path: Path) -> None:
    text = rows(
        {
            "condition": "Hiccups",
            "page_type": "symptom",
            "symptoms": [],
            "self_care": [
                "Some things help, such as:",
                "sip cold water",
                "hold your breath",
                "Most hiccups pass soon.",
            ],
            "last_reviewed": "23 June 2023",
            "source_url": "https://www.nhs.uk/symptoms/hiccups/",
        },
        {"title": "A", "sections": {"Signs": "It itches.", "Causes": ["mites"]}, "licence": "MIT", "publisher": "Me"},
        {"title": "B", "section": "Signs", "text": "It hurts."},
        {"title": "B", "section": "Causes", "text": "<p>A <b>germ</b>.</p><ul><li>one</li></ul>"},
        {"title": "No text"},
    )
    hiccups, a, b = read(tmp_path, "rows.jsonl", text)
    assert outline(hiccups) == {
        "What you can do": [
            "> Some things help, such as:",
            "- sip cold water",
            "- hold your breath",
            "Most hiccups pass soon.",
        ]
    }
    assert (hiccups.sources[0].publisher, hiccups.sources[0].date) == ("NHS", "2023-06-23")
    assert outline(a) == {"Signs": ["It itches."], "Causes": ["- mites"]} and a.sources[0].licence == "MIT"
    assert outline(b) == {"Signs": ["It hurts."], "Causes": ["A germ.", "- one"]}


def test_plain_text_of_medlineplus_rows_has_headings_and_lists(tmp_path: Path) -> None:
    text = (
        "What is gout?\nGout is an arthritis. It hurts.\nWhat are the symptoms?\nThey include:\n\nPain\nSwelling\n\n"
        "Most flares pass.\nNIH: National Institute of Arthritis"
    )
    row = {"title": "Gout", "url": "https://medlineplus.gov/gout.html", "text": text, "also_called": ["Podagra"]}
    (page,) = read(tmp_path, "topics.jsonl", rows(row))
    assert page.sources[0].publisher == "MedlinePlus" and page.sources[0].licence == "Public domain"
    assert outline(page) == {
        "What is gout?": ["Gout is an arthritis.", "It hurts."],
        "What are the symptoms?": ["> They include:", "- Pain", "- Swelling", "Most flares pass."],
    }


def test_the_same_rows_as_csv_json_and_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    entries = [{"title": "Gout", "text": "It hurts.", "url": "https://x.example/a"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(entries), tmp_path / "a.parquet")
    (page,) = read(tmp_path, "a.jsonl", rows(*entries))
    assert [page] == read(tmp_path, "a.json", json.dumps(entries)) == pages_of(tmp_path / "a.parquet")
    assert [page] == read(tmp_path, "a.csv", "title,text,url\nGout,It hurts.,https://x.example/a\n")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"title": "A", "text": "B."}\n{"title": ', "line 2"),
        ("a.jsonl", b'{"other": 1}\n', "no rows with text"),
        ("a.txt", b"", "empty"),
        ("a.md", b" \n\t", "empty"),
        ("a.txt", b"\x7fELF\x00\x00\x01" * 50, "not text"),
        ("a.html", bytes(range(256)) * 20, "not text"),
        ("a.md", b"---\ntitle: [\n---\nx", "not YAML"),
        ("a.parquet", b"PAR1\xff\xff", "Parquet"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        read(tmp_path, name, content)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
def test_text_in_another_encoding_is_read(tmp_path: Path, encoding: str) -> None:
    (page,) = read(tmp_path, "a.txt", "Fi\u00e8vre\n\nIt\u2019s 38\u00b0C or more.\n".encode(encoding))
    assert page.title == "Fi\u00e8vre" and outline(page) == {"In short": ["It\u2019s 38\u00b0C or more."]}


def test_a_file_over_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.txt"
    with path.open("wb") as file:
        file.truncate(200 * 10**6)  # 200 MB that take no room
    with pytest.raises(UserError, match=r"200 MB, more than --max-file-mb 1"):
        pages_of(path)


WORDS = st.sampled_from(
    ["# ", "## A\n", "- ", "\n", "\n\n", "<p>", "</p>", "<li>", "---\n", "title: x\n", "a: [", "x.", "Y? ", ":",
     '{"title":', '"text": "a"}', "|", "[1]", "&amp;", "<!--", "\x00", "\ud7ff", "%PDF-1.4", "1. ", "<table><tr>", "https://x.y\n"]
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.lists(WORDS, max_size=25).map("".join).map(str.encode) | st.text(max_size=80).map(str.encode)
    | st.binary(max_size=80),
    kind=st.sampled_from(FORMATS),
)  # fmt: skip
@example(content=b"[" * 5000, kind=".json")
@example(content=b"<" * 5000, kind=".html")
@example(content=b"> " * 3000 + b"x", kind=".md")
@example(content=b"- " * 3000 + b"x", kind=".md")
@example(content=b"---\n" + b"[" * 5000 + b"\n---\nx", kind=".md")
@example(content=b"<?xml version='1.0' encoding='nonsense'?><a/>", kind=".html")
def test_any_file_gives_pages_or_one_line(tmp_path: Path, content: bytes, kind: str) -> None:
    path = tmp_path / f"any{kind}"
    path.write_bytes(content)
    try:
        found = list_sources(str(path), NO_OUTPUT, MAX_FILE_BYTES).sources
        pages = [] if found[0].key.startswith("http") else pages_of(path)
    except UserError as error:
        assert "\n" not in str(error)
        return
    for page in pages:
        assert page.title and page.sections and page.sources[0].title
        for section in page.sections:
            assert section.heading and section.lines
            for line, following in zip(section.lines, [*section.lines[1:], None], strict=True):
                assert line.text.strip() and line.text.encode() and (not line.leads or (following and following.item))


# Where the sources are


def test_a_folder_is_walked_sorted_without_what_does_not_belong(tmp_path: Path) -> None:
    outside = tmp_path / "outside.md"
    outside.write_text("Secret.")
    folder = tmp_path / "pages"
    for name in ("b.md", "a/c.md", "README.md", "picture.png", ".hidden.md", ".git/x.md", "library/own.md"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("Text.")
    (folder / "link.md").symlink_to(outside)
    (folder / "loop").symlink_to(folder)
    (folder / "inner.md").symlink_to(folder / "b.md")
    found = list_sources(str(folder), folder / "library", MAX_FILE_BYTES)
    assert [source.key for source in found.sources] == ["a/c.md", "b.md", "inner.md"]
    assert found.skipped == {"files in another format (.png)": 1, "links out of the folder": 1, "links to folders": 1}


def test_where_there_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no files that can be read"):
        list_sources(str(tmp_path / "empty"), NO_OUTPUT, MAX_FILE_BYTES)
    for name in (str(tmp_path / "missing"), "missing", "./a/b"):
        with pytest.raises(UserError, match="no file or folder"):
            list_sources(name, NO_OUTPUT, MAX_FILE_BYTES)


def test_a_list_of_addresses_is_fetched(tmp_path: Path) -> None:
    html = {"Content-Type": "text/html; charset=utf-8"}
    pages = {
        "/gout": (200, html, HTML.replace('<link rel="canonical" href="https://clinic.example/gout">', "").encode()),
        "/moved": (302, {"Location": "/gout"}, b""),
        "/loop": (302, {"Location": "/loop"}, b""),
        "/away": (302, {"Location": "file:///etc/passwd"}, b""),
        "/leaflet": (200, {"Content-Type": "application/pdf"}, make_pdf([[(10.0, "Rest a sore knee for two days.")]])),
        "/notes.md": (200, {"Content-Type": "text/plain"}, b"# Knee\n\nRest it."),
        "/large": (200, html, b"x" * 2 * 10**6),
        "/film": (200, {"Content-Type": "video/mp4"}, b"x"),
    }
    with web_server(pages) as server:
        path = tmp_path / "addresses.txt"
        path.write_text(
            f"# ours\n{server}/moved\n{server}/leaflet\nftp://x.example/a\n{server}/notes.md\n{server}/moved\n"
        )
        found = list_sources(str(path), NO_OUTPUT, MAX_FILE_BYTES)
        assert len(found.sources) == 3 and sum(found.skipped.values()) == 1
        read_all = [list(read_pages(source, source.read(), Counter())) for source in found.sources]
        gout, leaflet, notes = (page for ((_, page),) in read_all)
        assert gout and gout.title == "Gout" and gout.sources[0].address == f"{server}/gout"  # where it was found
        assert leaflet and notes and notes.title == "Knee" and notes.sources[0].publisher == "127.0.0.1"
        for name, words in (
            ("loop", "TooManyRedirects"),
            ("away", "cannot be fetched"),
            ("large", "--max-file-mb"),
            ("film", "video/mp4"),
            ("none", "404"),
        ):
            with pytest.raises(UserError, match=words) as error:
                fetch(f"{server}/{name}", MAX_FILE_BYTES)
            assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="cannot be fetched"):
        fetch(f"{server}/gout", MAX_FILE_BYTES)


def test_a_data_set_of_the_hub(hub_server) -> None:
    files = {
        "pages/gout.md": b"# Gout\n\nIt hurts.",
        "README.md": b"# Card",
        "x.bin": b"x",
        "t.jsonl": b'{"title": "A"}',
    }
    hub_server.add_repository("alice/pages", files, kind="datasets")
    found = list_sources("alice/pages", NO_OUTPUT, MAX_FILE_BYTES)
    assert found.name == "alice/pages" and [source.key for source in found.sources] == ["pages/gout.md", "t.jsonl"]
    assert found.sources[0].read().content == files["pages/gout.md"]
    with pytest.raises(UserError, match="does not exist"):
        list_sources("alice/nothing", NO_OUTPUT, MAX_FILE_BYTES)
