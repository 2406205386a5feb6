"""The experiments side by side: table, curves, report, and the best by validation loss."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medical_assistant.errors import UserError
from medical_assistant.files import new_folder, read_json, write_json, write_whole
from medical_assistant.plotting import write_loss_plot
from medical_assistant.training.settings import BEST

REPORT, TABLE, CURVES = "report.md", "sweep.json", "loss.png"
# Keys of a row, with their titles and formats in the table.
COLUMNS = {
    "experiment": ("experiment", ""),
    "learning_rate": ("learning rate", ".1e"),
    "batch": ("batch", ""),
    "lora_r": ("rank", ""),
    "num_train_epochs": ("epochs", "g"),
    "trainable_parameters": ("trainable parameters", ","),
    "final_train_loss": ("final train loss", ".4f"),
    "validation_loss": ("best validation loss", ".4f"),
    "minutes": ("minutes", ".1f"),
    "peak_memory_gib": ("peak memory (GiB)", "g"),
}


def sweep_rows(records: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row of `COLUMNS` for each experiment; `records` are the contents of training.json by experiment."""
    rows = []
    for name, record in records.items():
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

    The copy is `output/best`. It takes the place of an earlier best of this sweep; a copy of the same run stays, with
    the metrics and merged weights that were added to it. Raises `UserError` when an experiment has no validation loss.
    """
    records = {name: read_json(folder / "training.json") for name, folder in folders.items()}
    rows = sweep_rows(records)
    if any(row["validation_loss"] is None for row in rows):
        raise UserError("An experiment has no validation loss: give data with a validation.jsonl.")
    histories = {name: record["history"] for name, record in records.items()}
    write_loss_plot(histories, output / CURVES)
    best = best_experiment(rows)["experiment"]
    record = records[best]
    content = {
        "best": best,
        "gain_validation_loss": gain(rows, "validation_loss"),
        "gain_final_train_loss": gain(rows, "final_train_loss"),
        "model": record["model"],
        "hardware": record["hardware"],
        "git_commit": record["git_commit"],
        "data": record["data"],
        "experiments": rows,
        "history": histories,
    }
    write_json(output / TABLE, content)
    write_whole(output / REPORT, report_text(content))
    _copy_best(folders[best], output / BEST)
    place = f"{output / BEST}; curves and report: {output / REPORT}"
    return output / BEST, f"{table(rows)}\n\n{best} has the lowest validation loss: {place}"


def _copy_best(folder: Path, copy: Path) -> None:
    kept = copy / "training.json"
    if kept.is_file() and kept.read_bytes() == (folder / "training.json").read_bytes():
        return
    if copy.is_dir():
        shutil.rmtree(copy)
    with new_folder(copy) as temporary:
        shutil.copytree(folder, temporary, dirs_exist_ok=True)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [[title for title, _ in COLUMNS.values()], ["---"] * len(COLUMNS)]
    lines += [[format(row[key], kind) for key, (_, kind) in COLUMNS.items()] for row in rows]
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
            f"{content['gain_final_train_loss']:.1%} less training loss in the last logged steps."
        )
    return f"{text}\n\n![Loss curves]({CURVES})\n"
