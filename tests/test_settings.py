from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from medical_assistant.errors import UserError
from medical_assistant.settings import parse_settings, required, setting
from tests.support.paths import ROOT


@dataclass(frozen=True)
class Example:
    output: Path = required("where to")
    learning_rate: float = setting(1e-4, "rate")
    rank: int | None = setting(None, "rank")
    resume: bool = setting(False, "go on")


def test_defaults_then_file_then_command_line(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("learning_rate: 2e-4\nrank: 8\noutput: from-file\n")
    found = parse_settings(Example, ["--config", str(config), "--rank", "16", "--resume"], None)
    assert found == Example(output=Path("from-file"), learning_rate=2e-4, rank=16, resume=True)


@pytest.mark.parametrize("text", ["ranks: 3", "rank: many", "- a", "rank: [", "resume: 1.5"])
def test_bad_files(tmp_path: Path, text: str) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(text)
    with pytest.raises(UserError, match="c.yaml"):
        parse_settings(Example, ["--config", str(config), "--output", "x"], None)


def test_a_mistyped_key_gets_the_nearest_name(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("learning_rat: 1e-3\n")
    with pytest.raises(UserError, match="did you mean learning_rate"):
        parse_settings(Example, ["--config", str(config), "--output", "x"], None)


def test_required() -> None:
    with pytest.raises(UserError, match="--output is missing"):
        parse_settings(Example, [], None)


@pytest.mark.parametrize("script", ["data_prep.py", "train.py", "evaluate.py", "app.py"])
def test_scripts_have_help_and_one_line_errors(script: str) -> None:
    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, script, *argv], cwd=ROOT, capture_output=True, text=True, timeout=60)

    shown = run("--help")
    assert shown.returncode == 0 and f"python {script}" in shown.stdout and len(shown.stdout.splitlines()) > 15
    unknown = run("--no-such-option")
    assert unknown.returncode == 2 and "Traceback" not in unknown.stderr


@pytest.mark.parametrize("script", ["data_prep.py", "train.py", "evaluate.py"])
def test_missing_settings_exit_with_2_and_one_line(script: str) -> None:
    done = subprocess.run([sys.executable, script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.startswith("error: --") and len(done.stderr.splitlines()) == 1


@dataclass(frozen=True)
class Several:
    names: tuple[str, ...] = setting((), "some names")


def test_several_words_after_one_option(tmp_path: Path) -> None:
    assert parse_settings(Several, [], None).names == ()
    assert parse_settings(Several, ["--names", "a", "b"], None).names == ("a", "b")
    config = tmp_path / "settings.yaml"
    config.write_text("names: [a, b]\n")
    assert parse_settings(Several, ["--config", str(config)], None).names == ("a", "b")
    config.write_text("names: [1, b]\n")
    with pytest.raises(UserError, match="a list of words"):
        parse_settings(Several, ["--config", str(config)], None)
