"""Building blocks of `evaluate.py`: collecting answers of base and fine-tuned, and scoring them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from medical_assistant.engines.base import Engine, EngineInfo, Options
from medical_assistant.errors import UserError
from medical_assistant.metrics import ROUGE_TYPES, bleu_signature, score_answers
from medical_assistant.outputs import check_new_folder
from medical_assistant.records import Record, file_sha256

SCORES = ("bleu", *ROUGE_TYPES)
NAMES = {False: "base", True: "fine_tuned"}


@dataclass
class Answers:
    """Answers by (model, record id), appended to `answers.partial.jsonl` as they come."""

    path: Path
    rows: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, resume: bool) -> Answers:
        """Return the answers of a new run, or of an interrupted one with `resume`.

        Raises `UserError` when `folder` holds a run and `resume` is off, or holds none and it is on.
        """
        path = folder / "answers.partial.jsonl"
        if not resume:
            check_new_folder(folder)
            folder.mkdir(exist_ok=True)
            return cls(path)
        if not path.is_file():
            raise UserError(f"There is no interrupted run in {folder}: leave out --resume.")
        answers = cls(path)
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            answers.rows[row["model"], row["id"]] = row
        return answers

    def collect(
        self, engine: Engine, records: Sequence[Record], adapter: bool, max_new_tokens: int, parallel: int
    ) -> None:
        """Add the greedy answers of one model to all records that have none yet."""
        from tqdm import tqdm

        name = NAMES[adapter]
        missing = [record for record in records if (name, record["id"]) not in self.rows]
        options = Options(adapter=adapter, max_new_tokens=max_new_tokens, temperature=0.0)
        with ThreadPoolExecutor(parallel) as pool, self.path.open("a", encoding="utf-8") as file:
            jobs = [pool.submit(_answer, engine, record, options) for record in missing]
            try:
                for job in tqdm(as_completed(jobs), total=len(jobs), desc=name, unit="answer"):
                    row = {"model": name, **job.result()}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                    file.flush()
                    self.rows[name, row["id"]] = row
            finally:
                pool.shutdown(cancel_futures=True)

    def of(self, name: str, records: Sequence[Record]) -> list[dict[str, Any]]:
        """Return the answers of one model in the order of `records`."""
        return [self.rows[name, record["id"]] for record in records]


def _answer(engine: Engine, record: Record, options: Options) -> dict[str, Any]:
    started = time.perf_counter()
    stream = engine.stream(record["prompt"], options)
    pieces: list[str] = []
    logprobs: list[float] = []
    while True:
        try:
            token = next(stream)
        except StopIteration as end:
            ended = end.value == "stop"
            break
        pieces.append(token.text)
        logprobs.append(token.logprob)
    return {
        "id": record["id"],
        "answer": "".join(pieces).strip(),
        "ended": ended,
        "tokens": len(logprobs),
        "mean_logprob": sum(logprobs) / len(logprobs) if logprobs else 0.0,
        "seconds": time.perf_counter() - started,
    }


def checkpoint_rows(adapter: str, data: Path, rows: int, used: int) -> int | None:
    """Return how many of the first `used` of `rows` validation rows also chose the adapter's checkpoint.

    `train.py` takes those from the end of the file. None when it cannot be known: an adapter that is
    not a local folder, or one that was trained on other data.
    """
    try:
        training = json.loads((Path(adapter) / "training.json").read_text(encoding="utf-8"))
        if training["data"]["manifest_sha256"] != file_sha256(data / "manifest.json"):
            return None
        # Not data.validation_rows: rows that were too long are counted off there, wherever they stood.
        chose = training["settings"]["max_validation_rows"] or rows
    except (OSError, ValueError, KeyError):
        return None
    return max(0, used - (rows - min(chose, rows)))


def measure(
    answers: Answers, records: Sequence[Record], info: EngineInfo, validation: Path, max_new_tokens: int
) -> dict[str, Any]:
    """Return the content of `metrics.json`.

    `n`; `base` and `fine_tuned` with `bleu` (0-100), `rouge1`, `rouge2`, `rougeL` (0-1), `ended` (part of the
    answers that end by themselves), `mean_tokens`; `relative_change` of each score (1.0 is +100 %);
    and what was measured: engine, model, adapter revision, data hash, sacreBLEU signature, versions.
    """
    references = [record["completion"][0]["content"] for record in records]
    metrics: dict[str, Any] = {"n": len(records)}
    for name in NAMES.values():
        rows = answers.of(name, records)
        metrics[name] = {
            **score_answers([row["answer"] for row in rows], references),
            "ended": sum(row["ended"] for row in rows) / len(rows),
            "mean_tokens": sum(row["tokens"] for row in rows) / len(rows),
        }
    base, tuned = metrics["base"], metrics["fine_tuned"]
    metrics["relative_change"] = {key: tuned[key] / base[key] - 1 if base[key] else None for key in SCORES}
    metrics["engine"] = info.engine
    metrics["model"] = info.model
    metrics["adapter_revision"] = info.adapter_revision
    metrics["decoding"] = {"temperature": 0.0, "max_new_tokens": max_new_tokens}
    metrics["data"] = {"file": validation.name, "sha256": file_sha256(validation)}
    metrics["bleu_signature"] = bleu_signature()
    metrics["versions"] = {name: version(name) for name in ("sacrebleu", "rouge-score", "evaluate", "xllamacpp")}
    return metrics


def write_results(folder: Path, metrics: Mapping[str, Any], answers: Answers, records: Sequence[Record]) -> None:
    """Write `metrics.json` and `predictions.jsonl`, then remove the partial answers."""
    by_name = {name: answers.of(name, records) for name in NAMES.values()}
    with (folder / "predictions.jsonl").open("w", encoding="utf-8", newline="\n") as file:
        for number, record in enumerate(records):
            row = {
                "id": record["id"],
                "question": record["prompt"][-1]["content"],
                "reference": record["completion"][0]["content"],
                **{
                    name: {k: v for k, v in by_name[name][number].items() if k not in ("id", "model")}
                    for name in by_name
                },
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    answers.path.unlink()


def update_adapter(folder: Path, metrics: Mapping[str, Any]) -> None:
    """Put `metrics.json` into the adapter folder and write its model card again."""
    from medical_assistant.card import write_card

    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    write_card(folder)


def table(metrics: Mapping[str, Any]) -> str:
    """Return base and fine-tuned side by side as a text table."""
    base, tuned, change = metrics["base"], metrics["fine_tuned"], metrics["relative_change"]
    lines = [f"{'n = ' + str(metrics['n']):<14}{'base':>10}{'fine-tuned':>12}{'change':>10}"]
    for key in base:
        relative = change.get(key)
        note = f"{relative:+.0%}" if relative is not None else ""
        lines.append(f"{key:<14}{base[key]:>10.3f}{tuned[key]:>12.3f}{note:>10}")
    return "\n".join(lines)
