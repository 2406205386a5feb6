"""The experiments side by side: table, curves, report, and the best by validation loss."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medical_assistant.card import write_card
from medical_assistant.errors import UserError
from medical_assistant.outputs import new_folder
from medical_assistant.plots import write_loss_plot

BEST, REPORT, TABLE, CURVES = "best", "report.md", "sweep.json", "loss.png"
# The user's seed project stated this gain in loss of its best experiment over its baseline, without its artefacts.
SEED_GAIN = 0.131
COLUMNS = {
    "experiment": "experiment",
    "learning_rate": "learning rate",
    "batch": "batch",
    "lora_r": "rank",
    "num_train_epochs": "epochs",
    "trainable_parameters": "trainable parameters",
    "final_train_loss": "final train loss",
    "validation_loss": "best validation loss",
    "minutes": "minutes",
    "peak_memory_gib": "peak memory (GiB)",
}


def sweep_rows(folders: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Return a row of `COLUMNS` for each experiment from its training.json; `folders` by experiment."""
    rows = []
    for name, folder in folders.items():
        record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
        settings = record["settings"]
        row = {key: settings.get(key, record.get(key)) for key in COLUMNS}
        row["experiment"] = name
        row["batch"] = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
        rows.append(row)
    return rows


def best_experiment(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the row of the lowest validation loss."""
    return min(rows, key=lambda row: row["validation_loss"])


def gain(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """Return by which part the best experiment's loss `key` is below that of `baseline`, None without one."""
    baseline = next((row[key] for row in rows if row["experiment"] == "baseline"), None)
    best = best_experiment(rows)[key]
    return 1 - best / baseline if baseline and best else None


def write_sweep(output: Path, folders: Mapping[str, Path]) -> tuple[Path, str]:
    """Return (folder of a copy of the best adapter, what to tell the user); write sweep.json, loss.png and report.md.

    The copy is `output/best`; it takes the place of an earlier one of this sweep. Raises `UserError` when no
    experiment has a validation loss.
    """
    rows = sweep_rows(folders)
    if any(row["validation_loss"] is None for row in rows):
        raise UserError("An experiment has no validation loss: give data with a validation.jsonl.")
    records = {
        name: json.loads((folder / "training.json").read_text(encoding="utf-8")) for name, folder in folders.items()
    }
    write_loss_plot({name: record["history"] for name, record in records.items()}, output / CURVES)
    best = best_experiment(rows)
    content = {
        "best": best["experiment"],
        "gain_validation_loss": gain(rows, "validation_loss"),
        "gain_final_train_loss": gain(rows, "final_train_loss"),
        "seed_gain": SEED_GAIN,
        "model": records[best["experiment"]]["model"],
        "hardware": records[best["experiment"]]["hardware"],
        "git_commit": records[best["experiment"]]["git_commit"],
        "data": records[best["experiment"]]["data"],
        "experiments": rows,
        "history": {name: record["history"] for name, record in records.items()},
    }
    (output / TABLE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    report = report_text(content)
    (output / REPORT).write_text(report, encoding="utf-8")
    if (output / BEST).is_dir():
        shutil.rmtree(output / BEST)
    with new_folder(output / BEST) as temporary:
        shutil.copytree(folders[best["experiment"]], temporary, dirs_exist_ok=True)
        write_card(temporary)
    place = f"{output / BEST}; curves and report: {output / REPORT}"
    named = f"{best['experiment']} has the lowest validation loss: {place}"
    return output / BEST, f"{table(rows)}\n\n{named}"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [list(COLUMNS.values()), ["---"] * len(COLUMNS)]
    lines += [[_cell(key, row[key]) for key in COLUMNS] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def report_text(content: Mapping[str, Any]) -> str:
    """Return report.md from the content of sweep.json."""
    data, rows = content["data"], content["experiments"]
    best = content["best"]
    text = f"""\
# Experiments

{content["model"]} on {data["source"]}: {data["train_rows"]:,} training rows, {data["validation_rows"]:,} validation
rows, {content["hardware"]}.

{table(rows)}

The losses are mean negative log-likelihoods of the answers' tokens, in nats. **{best}** has the lowest validation
loss; its adapter is in `{BEST}/`."""
    if content["gain_validation_loss"] is not None:
        text += (
            f" Against the baseline that is {content['gain_validation_loss']:.1%} less validation loss and "
            f"{content['gain_final_train_loss']:.1%} less training loss in the last logged steps; the seed project "
            f"stated a gain of {content['seed_gain']:.1%} in loss."
        )
    return f"{text}\n\n![Loss curves]({CURVES})\n"


def _cell(key: str, value: Any) -> str:
    if key in ("final_train_loss", "validation_loss"):
        return f"{value:.4f}"
    if key == "minutes":
        return f"{value:.1f}"
    if key == "learning_rate":
        return f"{value:.1e}"
    if key == "trainable_parameters":
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)
