"""Loss curves as a picture that a person can read."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy
import pytest
from PIL import Image

from medical_assistant.plotting import COLOURS, write_loss_plot

HISTORY = [
    {"step": 10, "epoch": 0.1, "loss": 2.9},
    {"step": 20, "loss": 2.1, "learning_rate": 1e-4},
    {"step": 20, "eval_loss": 2.25},
    {"step": 40, "loss": 1.9},
    {"step": 40, "eval_loss": 1.9},
    {"train_runtime": 12.0},
]


def pixels_of(path: Path, colour: str) -> int:
    image = numpy.asarray(Image.open(path).convert("RGB")).astype(int)
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((numpy.abs(image - wanted).max(axis=2) < 12).sum())


def test_both_losses_are_drawn_on_white(tmp_path: Path) -> None:
    path = write_loss_plot({"baseline": HISTORY}, tmp_path / "loss.png")
    image = Image.open(path)
    assert image.format == "PNG" and min(image.size) > 400
    assert image.convert("RGB").getpixel((2, 2)) == (255, 255, 255)
    assert pixels_of(path, COLOURS[0]) > 500
    training_only = write_loss_plot({"baseline": HISTORY[:2]}, tmp_path / "training.png")
    assert pixels_of(training_only, COLOURS[0]) < pixels_of(path, COLOURS[0])


def test_runs_of_a_sweep_have_colours_of_their_own(tmp_path: Path) -> None:
    runs = {f"run {n}": [{**entry, "eval_loss": 2 + n / 5} for entry in HISTORY[2:5]] for n in range(5)}
    path = write_loss_plot(runs, tmp_path / "sweep.png")
    assert all(pixels_of(path, colour) > 300 for colour in COLOURS[:5])


@pytest.mark.parametrize("histories", [{}, {"empty": []}, {"one": [{"step": 1, "loss": float("nan")}], "two": HISTORY}])
def test_little_to_draw(tmp_path: Path, histories: dict, recwarn: pytest.WarningsRecorder) -> None:
    assert write_loss_plot(histories, tmp_path / "loss.png").stat().st_size > 1000
    assert not [w for w in recwarn if "matplotlib" in str(w.filename)]


def test_equal_losses_make_equal_files_and_pyplot_stays_out(tmp_path: Path) -> None:
    one, two = (write_loss_plot({"a": HISTORY}, tmp_path / name).read_bytes() for name in ("1.png", "2.png"))
    assert one == two
    pyplot = sys.modules.get("matplotlib.pyplot")  # another library may have imported it
    assert pyplot is None or not pyplot.get_fignums()
