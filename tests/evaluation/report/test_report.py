"""The report: complete, true to its figures, harmless whatever the answers hold. The evaluation in it is made up."""

from __future__ import annotations

import json
import re
import shutil
import unicodedata
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medical_assistant.evaluation.report.answers import example_groups
from medical_assistant.evaluation.report.evaluation import Evaluation
from medical_assistant.evaluation.report.format import PART, change, counted, interval, number, p_value, percent
from medical_assistant.evaluation.report.write import escape, escape_line, reproduce_command, write_report
from tests.support.report_fixture import PAYLOADS, make_losses, make_metrics, make_rows

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SECTIONS = (
    "Verdict", "Key figures", "All scores", "Training and validation loss", "Spread of the scores",
    "Effect by type and length of question", "Questions like the training data, and others", "Knowledge",
    "Safety regression", "Statements that an answer must make", "Confidence", "Gate",
    "Answers side by side", "How to measure this again",
)  # fmt: skip
OPTIONAL = ("strata", "knowledge", "safety", "statements", "confidence", "gate")
HTML_TAGS = set(
    "html head meta title style body header h1 h2 h3 h4 p nav ol ul li a main section div span dl dt dd table caption "
    "thead tbody tr th td figure figcaption details summary pre code strong footer svg desc g path use text defs "
    "clippath rect".split()
)


class Page(HTMLParser):
    """Tags, attributes and text of a page, as a browser reads them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.headings: list[tuple[str, str]] = []
        self.text = ""
        self._inside: str | None = None
        self.feed(html)
        self.text = " ".join(unicodedata.normalize("NFKC", self.text).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        self._inside = tag
        if re.fullmatch(r"h[1-4]", tag):
            self.headings.append((tag, ""))

    def handle_data(self, data: str) -> None:
        if self._inside != "style":
            self.text += data + " "
        if self.headings and self._inside == self.headings[-1][0]:
            self.headings[-1] = (self.headings[-1][0], self.headings[-1][1] + data.strip())
            self._inside = None


def plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).split())


def report(folder: Path, rows: list[dict[str, Any]], metrics: dict[str, Any], losses: Any = None) -> tuple[str, str]:
    folder.mkdir(exist_ok=True)
    path = write_report(folder, metrics, rows, losses)
    assert path == folder / "report.html"
    return path.read_text(encoding="utf-8"), (folder / "report.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return make_rows()


@pytest.fixture(scope="module")
def metrics(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return make_metrics(rows)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, rows: list, metrics: dict) -> tuple[str, str]:
    return report(tmp_path_factory.mktemp("report"), rows, metrics, {"fine-tuned": make_losses()})


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A report of three candidates whose every text is an attack."""
    rows = make_rows(candidates=("base", "fine_tuned", "other-adapter"))
    metrics = make_metrics(rows)
    for position, row in enumerate(rows):
        row["question"] = row["reference"] = PAYLOADS[position % len(PAYLOADS)]
        for candidate in row["candidates"].values():
            candidate["answer"] = PAYLOADS[(position + 1) % len(PAYLOADS)] + candidate["answer"]
    payload = "".join(PAYLOADS[:5])
    metrics["candidates"]["fine_tuned"] |= {"label": payload, "adapter": payload}
    metrics["statements"]["judge"]["name"] = metrics["gate"]["checks"][0]["reason"] = payload
    metrics["knowledge"]["sets"][0]["name"] = metrics["settings"]["adapter"] = payload
    metrics["strata"]["method"] = metrics["confidence"]["label"] = payload
    for found in metrics["comparison"]["by_type"].values():
        found[payload] = found.pop("symptoms")
    folder = tmp_path_factory.mktemp("hostile")
    html, markdown = report(folder, rows, metrics, {payload: make_losses()})
    return folder, html, markdown


def test_every_section_stands_in_order_in_both_files(full: tuple[str, str]) -> None:
    html, markdown = full
    page = Page(html)
    assert [text for tag, text in page.headings if tag == "h2"] == list(SECTIONS)
    assert [line[3:] for line in markdown.splitlines() if line.startswith("## ")] == list(SECTIONS)
    assert "Not run" not in html and "Not run" not in markdown
    assert page.text.index("Better") < page.text.index("Key figures")
    levels = [int(tag[1]) for tag, _ in page.headings]
    assert levels.count(1) == 1 and all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))
    for limit in ("is not truth", "No clinician has judged"):
        assert limit in page.text and limit in markdown
    for title in ("The biggest wins", "The biggest losses", "Drawn at random"):
        assert f"### {title}" in markdown and ("h3", title) in page.headings


def test_what_did_not_run_says_so_with_its_reason(tmp_path: Path, rows: list) -> None:
    metrics = make_metrics(rows, full=False)
    for name in OPTIONAL:
        metrics[name]["reason"] = f"Because of {name}."
    html, markdown = report(tmp_path, rows, metrics, None)
    page = Page(html)
    for name in OPTIONAL:
        assert f"Not run. Because of {name}." in page.text and f"**Not run.** Because of {name}." in markdown
    assert "Perplexity was not run. It was not asked for." in page.text
    assert "No loss history" in page.text and html.count('class="not-run"') == len(OPTIONAL) + 1
    assert [text for tag, text in page.headings if tag == "h2"] == list(SECTIONS)


def test_the_figures_are_those_of_metrics_json(full: tuple[str, str], metrics: dict) -> None:
    html, markdown = full
    page, markdown = Page(html).text, plain(markdown.replace("\\", ""))
    found = metrics["comparison"]["pairs"]["fine_tuned vs base"]["rougeL"]
    base, tuned = metrics["scores"]["base"], metrics["scores"]["fine_tuned"]
    interval = f"{found['low']:+.3f} to {found['high']:+.3f}"
    for text in (page, markdown):
        assert f"{base['rougeL']:.3f} for base, {tuned['rougeL']:.3f} for fine-tuned" in text
        assert f"a difference of {found['difference']:+.3f} (95 % interval {interval}, p < 0.001)" in text.replace(
            "&lt;", "<"
        )
        assert f"ahead in {found['wins']}, level in {found['ties']} and behind in {found['losses']}" in text
        assert "25 questions. The judge is a language model, judge-model." in text
        assert "No verdict: base 1, fine-tuned 1." in text and "an unknown number" not in text
        assert "1 of 2 checks passed" in text
        assert "\u22120.150 nats a token" in text and "(95 % interval \u22120.190 to \u22120.110)" in text
    table = re.search(r"<caption><span>Fine-tuned against base, every metric.*?</table>", html, re.DOTALL)
    assert table
    cells = {}
    for row in re.findall(r"<tr>(.*?)</tr>", table[0], re.DOTALL):
        texts = [
            plain(unescape(re.sub(r"<[^>]+>", "", cell))) for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL)
        ]
        cells[texts[0]] = texts[1:]
    for metric, name, decimals in (("bleu", "BLEU", 2), ("rougeL", "ROUGE-L", 3), ("token_f1", "Token F1", 3)):
        found = metrics["comparison"]["pairs"]["fine_tuned vs base"][metric]
        assert cells[name] == [
            "higher",
            f"{base[metric]:.{decimals}f}",
            f"{tuned[metric]:.{decimals}f}",
            f"+{100 * (tuned[metric] / base[metric] - 1):.0f} %",
            f"{found['difference']:+.{decimals}f}",
            f"{found['low']:+.{decimals}f} to {found['high']:+.{decimals}f}",
            "< 0.001",
            f"{found['wins']} / {found['ties']} / {found['losses']}",
            "better",
        ]
    assert cells["Ended by itself"][1] == f"{100 * base['ended']:.1f} %" and "points" in cells["Ended by itself"][4]
    assert cells["Distinct-1"][0] == "neither" and cells["Distinct-1"][-1] == "no better side"
    assert cells["Repetition"][0] == "lower" and cells["Repetition"][-1] == "worse"


def test_the_page_loads_nothing_and_runs_nothing(full: tuple[str, str], hostile: tuple[Path, str, str]) -> None:
    for html in (full[0], hostile[1]):
        page = Page(html)
        assert set(page.tags) <= HTML_TAGS
        for _, name, value in page.attributes:
            assert not name.startswith("on") and name not in ("src", "srcset", "action", "data", "poster")
            assert name not in ("href", "xlink:href") or str(value).startswith("#")
            assert name != "style" or not re.search(r"url\((?!#)", str(value))
        style = html[html.index("<style>") : html.index("</style>")]
        assert "url(" not in style and "@import" not in style and "http" not in style
        assert html.count("<style>") == 1 and "default-src 'none'" in html
    assert "<script" not in hostile[1] and "window.attacked=1" in Page(hostile[1]).text
    assert not re.search("[\x00-\x08\x0b-\x1f]", hostile[1])
    for target in re.findall(r'href="#([^"]+)"', full[0]):
        assert full[0].count(f'id="{target}"') == 1


def test_answers_are_no_html_in_markdown(hostile: tuple[Path, str, str]) -> None:
    markdown = re.sub(r"^(```+)bash\n.*?\n\1$", "", hostile[2], flags=re.DOTALL | re.MULTILINE)
    assert set(re.findall(r"<(/?\w+)", markdown)) == {"details", "/details", "summary", "/summary"}
    assert markdown.count("<details>") == markdown.count("\n</details>") == 30
    assert not re.search(r"(?<!\\)\](?:\(|\[)", re.sub("<summary>.*", "", markdown))
    assert not re.findall(r"^#+ (?:heading|taken)", markdown, re.MULTILINE)
    # Each row of a table has as many cells as its head.
    for block in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE):
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(counts) == 1, block[:300]


def test_a_markdown_reader_finds_tables_and_no_markup_of_answers(hostile: tuple[Path, str, str]) -> None:
    markdown_it = pytest.importorskip("markdown_it")
    page = Page(markdown_it.MarkdownIt("commonmark", {"html": True}).enable("table").render(hostile[2]))
    assert set(page.tags) == set(
        "h1 h2 h3 p strong ul li table thead tbody tr th td pre code details summary blockquote".split()
    )
    assert [text for tag, text in page.headings if tag == "h2"] == list(SECTIONS)
    assert page.tags.count("blockquote") == 30 * 4 and page.tags.count("table") > 20


@given(st.text())
def test_escaped_text_is_one_line_without_markup(text: str) -> None:
    found = escape_line(text)
    assert "\n" not in found and "<" not in found
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*_\[\]|~$]", found)
    assert not re.match(r"[-+=:#>]|\d+[.)]", found)
    unescaped = re.sub(r"\\([\\`*_\[\]|~$:.)=#>+-])", r"\1", found).replace("&lt;", "<").replace("&amp;", "&")
    assert unescaped == " ".join(text.split())


def test_escape_by_hand() -> None:
    assert escape("a | b <b> & *c* [d](e)") == "a \\| b &lt;b> &amp; \\*c\\* \\[d\\](e)"
    assert escape("see https://outside.example") == "see https\\://outside.example"
    assert escape_line("1. first") == "1\\. first" and escape_line("# x") == "\\# x" and escape_line("- x") == "\\- x"


def test_the_biggest_wins_and_losses_are_the_biggest(full: tuple[str, str], rows: list) -> None:
    changes = [
        round(row["candidates"]["fine_tuned"]["scores"]["rougeL"] - row["candidates"]["base"]["scores"]["rougeL"], 9)
        for row in rows
    ]
    shown = {
        title: [
            float(value.replace("\u2212", "-"))
            for value in re.findall(r'class="summary">ROUGE-L ([+\u2212]?[\d.]+)', part)
        ]
        for title, part in zip(
            ("", "wins", "losses", "random"), re.split(r"<h3>(?:The biggest|Drawn)", full[0])[-4:], strict=True
        )
    }
    wins = sorted((value for value in changes if value > 0), reverse=True)[:10]
    losses = sorted(value for value in changes if value < 0)[:10]
    assert shown["wins"] == pytest.approx(wins, abs=0.0006) and len(wins) == 10
    assert shown["losses"] == pytest.approx(losses, abs=0.0006) and 0 < len(losses) <= 10
    assert len(shown["random"]) == 10


def test_three_candidates_have_three_verdicts_and_three_columns(hostile: tuple[Path, str, str]) -> None:
    page = Page(hostile[1])
    assert page.text.count(", every metric") == 3
    assert sum(value == "verdict good" for _, name, value in page.attributes if name == "class") == 3
    assert "after Holm's correction" in page.text and "series-3" in hostile[1]


def test_one_question_claims_nothing(tmp_path: Path) -> None:
    rows = make_rows(1)
    html, markdown = report(tmp_path, rows, make_metrics(rows), None)
    page = Page(html)
    for text in (page.text, markdown):
        assert "Too few questions to say" in text and "not claimed" in text and "There are none." in text
    assert "Not run. It was" not in page.text and "over 1 question:" in page.text


def test_empty_answers_and_no_gain(tmp_path: Path) -> None:
    rows = make_rows(25)
    metrics = make_metrics(rows, full=False)
    for row in rows:
        row["candidates"]["fine_tuned"] |= {"answer": "", "tokens": 0}
        row["candidates"]["base"]["scores"]["rougeL"] = row["candidates"]["fine_tuned"]["scores"]["rougeL"]
    html, markdown = report(tmp_path, rows, metrics, {"fine-tuned": []})
    assert "Nothing was written." in html and "Nothing was written." in markdown
    assert Page(html).text.count("There are none.") == 2  # no win and no loss; ten at random all the same
    assert html.count('<details class="example"') == 10


def test_a_large_run_stays_small(tmp_path: Path) -> None:
    """Answers of 30,000 characters: thirty of them, cut, with a note."""
    rows = make_rows(200)
    for row in rows:
        row["reference"] = row["question"] = "<&\">'" * 6000
        for candidate in row["candidates"].values():
            candidate["answer"] = "\u75c5" * 30_000
    html, markdown = report(tmp_path, rows, make_metrics(rows), {"fine-tuned": make_losses(steps=20_000)})
    assert len(html.encode()) < 1_000_000 and len(markdown.encode()) < 500_000
    assert html.count('<details class="example"') == 30
    assert "more characters are in predictions.jsonl" in html and "The rest is in predictions.jsonl" in markdown


def test_equal_figures_make_equal_files(tmp_path: Path, full: tuple[str, str]) -> None:
    rows = make_rows()
    assert report(tmp_path, rows, json.loads(json.dumps(make_metrics(rows))), {"fine-tuned": make_losses()}) == full


def test_random_answers_are_drawn_by_the_seed(rows: list, metrics: dict) -> None:
    def drawn(seed: int) -> list[str]:
        run = Evaluation(metrics | {"comparison": metrics["comparison"] | {"seed": seed}}, rows, {})
        group = example_groups(run)[-1]
        assert f"with seed {seed};" in group["told"]
        return [example["question"]["text"] for example in group["examples"]]

    assert drawn(1) == drawn(1) != drawn(2)


def test_the_command_names_what_is_no_default(full: tuple[str, str]) -> None:
    command = "python evaluate.py --data wikidoc --output report --adapter smollm2-135m --limit 60 --no-perplexity "
    assert f"```bash\n{command}--choices medqa.jsonl pubmedqa.jsonl\n```" in full[1]
    given = {"data": "my data", "resume": True, "compare": ["a", "b"], "seed": 42, "gate": ""}
    assert reproduce_command(given) == "python evaluate.py --data 'my data' --compare a b"


def test_settings_hashes_and_versions_are_all_there(full: tuple[str, str], metrics: dict) -> None:
    for value in (
        metrics["data"]["sha256"], metrics["safety"]["sha256"], metrics["gate"]["sha256"], metrics["git_commit"],
        metrics["statements"]["judge"]["prompt_sha256"], metrics["knowledge"]["sets"][0]["sha256"],
        metrics["bleu_signature"], "f807c7ae8241", "2026.10.11549", "10000",
    ):  # fmt: skip
        assert value in full[0] and value.replace("|", "\\|").replace("_", "\\_") in full[1]


def test_tables_and_charts_have_names_for_a_screen_reader(full: tuple[str, str]) -> None:
    html = full[0]
    assert html.count("<table>") == html.count("<caption>") == html.count('role="region"') > 10
    assert not re.search(r"<th(?! scope=)[ >]", html)
    named = re.findall(r'role="img" aria-labelledby="([\w-]+) ([\w-]+)"><svg', html)
    assert len(named) == html.count("<svg") == 9
    for id in (id for pair in named for id in pair):
        assert re.search(rf'<p [^>]*id="{id}">[^<]{{10,}}', html)
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_numbers_by_hand() -> None:
    assert number(-0.0004) == "0.000" and number(-1234.5, 1) == "\u22121,234.5" and number(0.25, 2, True) == "+0.25"
    assert number(None) == number(float("nan")) == number(True) == "\u2013"
    assert percent(0.5) == "50.0\u00a0%" and change(PART, -0.012) == "\u22121.2\u00a0points"
    assert change("bleu", 1.005) == "+1.00" and change("ended", 0.1) == "+10.0\u00a0points"
    assert interval("bleu", -1, 2.5) == "\u22121.00 to +2.50" and interval("bleu", None, 1) == "not claimed"
    assert interval(PART, 0.1, 0.25, sign=False) == "10.0 to 25.0\u00a0%"
    assert p_value(0.0009) == "< 0.001" and p_value(0.001) == "0.001" and p_value(None) == "not claimed"
    assert counted(1) == "1 question" and counted(1200, "row") == "1,200 rows"


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)")
def test_in_a_browser_nothing_runs_and_nothing_sticks_out(
    full: tuple[str, str], hostile: tuple[Path, str, str]
) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    (hostile[0] / "full.html").write_text(full[0], encoding="utf-8")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        for name in ("report.html", "full.html"):
            for width in (390, 1280):
                page = browser.new_page(viewport={"width": width, "height": 844})
                requests: list[str] = []
                page.on("request", lambda request, requests=requests: requests.append(request.url))
                page.goto((hostile[0] / name).as_uri())
                assert page.evaluate("document.documentElement.scrollWidth") == width, (name, width)
                assert page.evaluate("window.attacked") is None and len(requests) == 1
                page.close()
        browser.close()
