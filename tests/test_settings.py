from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from medical_assistant.errors import UserError
from medical_assistant.settings import options_of, parse_settings, read_options, required, setting
from tests.support.paths import ROOT, load_script


@dataclass(frozen=True)
class Example:
    output: Path = required("where to")
    learning_rate: float = setting(1e-4, "rate")
    rank: int | None = setting(None, "rank")
    resume: bool = setting(False, "go on")
    kind: str = setting("a", "one of two", ["a", "b"])


def test_defaults_then_file_then_command_line(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("learning_rate: 2e-4\nrank: 8\noutput: from-file\n")
    found = parse_settings(Example, ["--config", str(config), "--rank", "16", "--resume"], None)
    assert found == Example(output=Path("from-file"), learning_rate=2e-4, rank=16, resume=True)


@pytest.mark.parametrize(
    "text",
    ["ranks: 3", "rank: many", "rank: true", "rank: 1.5", "- a", "rank: [", "resume: 1.5", "kind: c", "output: null"],
)
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


SCRIPTS = ["data_prep", "train", "evaluate", "app"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_have_help_and_say_what_is_wrong(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    main = load_script(script).main
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    shown = capsys.readouterr().out
    assert f"python {script}.py" in shown and len(shown.splitlines()) > 15
    with pytest.raises(UserError, match="Unknown option --no-such-option"):
        main(["--no-such-option"])
    if script != "app":
        with pytest.raises(UserError, match="^--.* is missing"):
            main([])


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_error_is_one_line_and_status_2(script: str) -> None:
    command = [sys.executable, f"{script}.py", "--no-such-option"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--learning-rat", "1"], r"Unknown option --learning-rat: did you mean --learning-rate\?$"),
        (["--learning-rat=1"], "did you mean --learning-rate"),
        (["--no-resum"], "did you mean --no-resume"),
        (["--xyz"], r"Unknown option --xyz: see --help\.$"),
        (["stray"], "Unexpected 'stray'"),
        (["--rank", "many"], "Argument --rank: invalid int value"),
        (["--rank"], "expected one argument"),
        (["--kind", "c"], "invalid choice"),
    ],
)
def test_bad_command_lines(argv: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_settings(Example, ["--output", "x", *argv], None)


def test_only_what_was_given_is_read(tmp_path: Path) -> None:
    options = options_of(Example)
    assert read_options(options, [], None) == {}
    config = tmp_path / "c.yaml"
    config.write_text("learning_rate: 2e-4\nrank: 8\n")
    # Also the value of a default is something given.
    assert read_options(options, ["--no-resume", "--learning-rate", "1e-4"], None) == {
        "resume": False,
        "learning_rate": 1e-4,
    }
    found = read_options(options, ["--config", str(config), "--rank", "16", "--debug"], None)
    assert found == {"learning_rate": 2e-4, "rank": 16}


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
