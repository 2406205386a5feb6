"""The Colab notebook: valid, without outputs or logic of its own, and its quick mode runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.support.paths import ROOT

PATH = ROOT / "assets" / "medical_assistant_colab.ipynb"


@pytest.fixture
def notebook() -> Any:
    return nbformat.read(PATH, as_version=4)


def tags(cell: Any) -> list[str]:
    return cell.metadata.get("tags", [])


def test_the_notebook_is_valid_and_has_no_outputs(notebook: Any) -> None:
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
    assert notebook.metadata.accelerator == "GPU"


def test_the_address_of_the_code_is_that_of_the_project_or_left_out(notebook: Any) -> None:
    """pyproject.toml's `[project.urls] Repository` is the one place; without it there is no badge to click in vain."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    known = re.search(r"^Repository = \"(https://github\.com/([^\"]+))\"", project, re.M)
    address, place = (known[1], known[2]) if known else ("", "")
    source = {cell.id: cell.source for cell in notebook.cells}
    assert f'REPOSITORY = "{address}"\n' in source["settings"]
    badge = f"https://colab.research.google.com/github/{place}/blob/main/assets/{PATH.name}"
    assert (badge in source["title"]) == bool(known) == ("colab-badge" in source["title"])
    assert "OWNER" not in "".join(source.values())


def test_cells_only_call_the_scripts(notebook: Any) -> None:
    """But for the settings: shell lines, %cd, one kind of `if`, and showing what a script wrote."""
    allowed = (
        r"if (not )?os\.path\.exists\(\"[./\w]+\"\):",
        r"if INSTALL:",
        r"(    )?[!%].+",
        r"from IPython\.display import .+",
        r"display\(.+\)",
        r"",
    )
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.id for cell in code if "parameters" in tags(cell)] == ["settings"]
    for cell in code:
        for line in cell.source.splitlines() if "parameters" not in tags(cell) else []:
            assert any(re.fullmatch(pattern, line) for pattern in allowed), line
    settings = next(cell.source for cell in code if cell.id == "settings")
    assert all(re.fullmatch(r"import os|[A-Z]+ = .+|", line) for line in settings.splitlines())


def test_every_option_is_one_of_its_script(notebook: Any) -> None:
    source = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    calls = re.findall(r"python (\w+\.py|-m [\w.]+)(.*)", source)
    assert [script for script, _ in calls] == [
        "data_prep.py",
        "train.py",
        "evaluate.py",
        "app.py",
        "-m medical_assistant.publish.adapter",
    ]
    for script, options in calls:
        for name in re.findall(r"{([A-Z]+)}", options):
            options += " " + " ".join(re.findall(rf"^{name} = (.+)", source, re.M))
        shown = subprocess.run(
            [sys.executable, *script.split(), "--help"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        for option in re.findall(r"--[a-z][a-z-]+", options):
            assert re.search(rf"{option}\b(?!-)", shown), f"{script} has no {option}"


@pytest.mark.slow
def test_the_quick_mode_runs(notebook: Any, question_file: Path, tiny_model: Path, tmp_path: Path) -> None:
    """With a random model, one experiment and 60 rows, opened where it lies in a clone."""
    from nbclient import NotebookClient

    clone = tmp_path / "clone"
    clone.mkdir()
    for name in ("medical_assistant", "assets"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.glob("*.py"):
        shutil.copy(path, clone)
    experiments = tmp_path / "experiments.yaml"
    experiments.write_text(
        "baseline: {learning_rate: 2.0e-4, per_device_train_batch_size: 4, lora_r: 4, num_train_epochs: 1}\n"
    )
    changes = {
        "SOURCE": str(question_file),
        "MODEL": str(tiny_model),
        "PREPARE": "--validation-size 8",
        "TRAIN": f"--max-train-rows 8 --max-validation-rows 4 --experiments {experiments} "
        "--logging-steps 1 --report-to none",
        "EVALUATE": "--limit 2 --max-new-tokens 4 --engine transformers --safety none --no-perplexity",
        "INSTALL": False,
    }
    settings = next(number for number, cell in enumerate(notebook.cells) if "parameters" in tags(cell))
    lines = "\n".join(f"{name} = {value!r}" for name, value in changes.items())
    notebook.cells.insert(settings + 1, nbformat.v4.new_code_cell(lines))
    client = NotebookClient(notebook, timeout=100, resources={"metadata": {"path": str(clone / "assets")}})
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    try:
        client.execute(env={**os.environ, "PATH": programs, "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "hf")})
    finally:  # what the scripts said: pytest shows it when the test fails
        sys.stdout.writelines(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))

    best = clone / "runs" / "colab" / "best"
    assert (best / "adapter_model.safetensors").is_file()
    metrics = json.loads((clone / "reports" / "colab" / "metrics.json").read_text())
    assert metrics["n"] == 2
    assert json.loads((best / "metrics.json").read_text()) == metrics
    skipped = {cell.id for cell in notebook.cells if "skip-execution" in tags(cell)}
    assert skipped == {"chat", "publish"}
