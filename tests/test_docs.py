"""The documentation says what is there: tables, help texts and file list are what code and committed results give."""

from __future__ import annotations

import re

import pytest
import yaml

from tests.support.paths import ROOT

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]


@pytest.mark.parametrize("path", DOCUMENTS[:-1], ids=lambda path: path.name)
def test_mistake_10_generated_parts_are_what_the_code_gives(path, monkeypatch, capsys) -> None:
    """No figure, help text or file name can be edited by hand: `make docs` writes them."""
    pytest.importorskip("tomllib")  # Python 3.11; help texts differ between versions as well
    from cogapp import Cog

    monkeypatch.chdir(ROOT)
    prologue = "import cog; from docs.generate import *"
    assert Cog().main(["cog", "-I", ".", "-p", prologue, "--check", str(path)]) == 0, capsys.readouterr().out


def test_readme_is_one_page_and_starts_with_the_two_commands() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    text = lines[lines.index("---", 1) + 1 :]
    assert any("make run" in line for line in text[:10]) and any("make test" in line for line in text[:10])
    assert "OWNER" not in "\n".join(lines)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path) -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_are_named_exist(path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for name in re.findall(r"`((?:assets|benchmarks|docs|medical_assistant|tests|training_data)/[\w./-]*)`", text):
        assert (ROOT / name).exists(), name


def test_the_front_matter_is_a_spaces() -> None:
    matter = yaml.safe_load((ROOT / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert matter["sdk"] == "gradio" and (ROOT / matter["app_file"]).is_file()
    everything, cpu = ((ROOT / name).read_text().splitlines() for name in ("requirements.txt", "requirements-cpu.txt"))
    assert f"gradio=={matter['sdk_version']}" in cpu
    assert {line for line in cpu if not line.startswith("#")} <= set(everything)  # a Space's build sees one file
    assert not any(line.startswith("-r") for line in everything)
    assert len(matter["short_description"]) <= 60  # the Hub refuses more
