"""Reading question-answer rows, and reading and writing the one record that flows from end to end."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medical_assistant.errors import UserError
from medical_assistant.files import file_sha256
from medical_assistant.prompts import build_messages

# First match wins. Alpaca rows have `instruction` too, but there it is the same sentence in every row.
QUESTION_COLUMNS = ("question", "input", "instruction", "prompt", "query")
ANSWER_COLUMNS = ("answer", "output", "response", "completion", "long_answer")
LOCAL_FORMATS = (".json", ".jsonl", ".csv", ".parquet")

Record = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """Raw rows and where they are from."""

    rows: list[dict[str, Any]]
    name: str  # Hub id, or file name
    revision: str  # commit hash, or SHA-256 of the file


def read_source(source: str, config: str | None = None, revision: str | None = None) -> Source:
    """Return the rows of a local `.json/.jsonl/.csv/.parquet` file or of a Hub dataset's train split.

    Raises `UserError` when the file is missing, of another kind, broken (with the line), or when
    the Hub cannot be reached or does not know the dataset.
    """
    path = Path(source)
    if path.suffix.lower() in LOCAL_FORMATS or path.exists():
        return Source(list(_read_file(path)), path.name, file_sha256(path))
    if source.count("/") != 1:
        raise UserError(f"There is no file {source}: give a {'/'.join(LOCAL_FORMATS)} file or a Hub dataset id.")
    return _read_hub(source, config, revision)


def _read_file(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        raise UserError(f"There is no file {path}: check the path.")
    kind = path.suffix.lower()
    if kind not in LOCAL_FORMATS:
        raise UserError(f"{path} is not a data file: give one of {', '.join(LOCAL_FORMATS)}.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the file.") from error
    if kind == ".parquet":
        yield from parquet_rows(content, str(path))
        return
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}): convert it first.") from error
    yield from text_rows(text, kind, str(path))


def parquet_rows(content: bytes, where: str) -> Iterator[dict[str, Any]]:
    """Return the rows of a Parquet file. Raises `UserError`, which names `where`, when it is broken."""
    import pyarrow
    import pyarrow.parquet

    try:
        yield from pyarrow.parquet.read_table(pyarrow.BufferReader(content)).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # a ValueError where a column's name is not UTF-8
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{where} is not a readable Parquet file ({reason}): write it again.") from error


def text_rows(text: str, kind: str, where: str) -> Iterator[dict[str, Any]]:
    """Return the rows of a text of `kind` ".csv", ".jsonl" or ".json" (a list of objects).

    Raises `UserError`, which names `where` and the line, when it is broken.
    """
    if kind == ".csv":
        try:
            yield from csv.DictReader(text.splitlines(keepends=True))
        except csv.Error as error:
            raise UserError(f"{where} is not a readable CSV file ({error}): correct it.") from error
    elif kind == ".jsonl":
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                row = _parse_json(line, f"{where}, line {number}")
                if not isinstance(row, dict):
                    raise UserError(f"{where}, line {number}: expected a JSON object, found {type(row).__name__}.")
                yield row
    else:
        rows = _parse_json(text, where)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise UserError(f"{where} must hold a JSON list of objects.")
        yield from rows


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where} (column {error.colno}): broken JSON, {error.msg}: correct or remove the line."
        ) from error
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, 5,000 brackets
        raise UserError(f"{where}: JSON too large to read: correct or remove the line.") from error


def _read_hub(dataset: str, config: str | None, revision: str | None) -> Source:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        commit = HfApi().dataset_info(dataset, revision=revision).sha
        rows = load_dataset(dataset, config, split="train", revision=commit).to_list()
    except (HfHubHTTPError, DatasetNotFoundError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"Hub dataset {dataset} cannot be loaded ({reason}): check id, config, revision.") from error
    except (OSError, RuntimeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"The Hub cannot be reached for {dataset} ({reason}): use --source FILE offline.") from error
    return Source(rows, dataset, str(commit))


def question_answer(row: Mapping[str, Any]) -> tuple[str, str]:
    """Return (question, answer) of a raw row; an empty string stands for a missing value.

    A row has one of `QUESTION_COLUMNS` and one of `ANSWER_COLUMNS`. Raises `UserError` when the
    row has neither, naming the columns it has.
    """
    question = next((str(row[c]) for c in QUESTION_COLUMNS if row.get(c)), "")
    answer = next((str(row[c]) for c in ANSWER_COLUMNS if row.get(c)), "")
    for wanted in (QUESTION_COLUMNS, ANSWER_COLUMNS):
        if not any(column in row for column in wanted):
            raise UserError(f"No column {' or '.join(wanted)} in the data: it has {', '.join(map(str, row))}.")
    return question, answer


def make_record(question: str, answer: str, record_id: str, source: str, cluster: int) -> Record:
    """Return the record: `prompt`, `completion` (chat messages), `id`, `source`, `cluster`."""
    return {
        "id": record_id,
        "source": source,
        "cluster": cluster,
        "prompt": build_messages(question),
        "completion": [{"role": "assistant", "content": answer}],
    }


def write_records(records: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write one JSON object a line, UTF-8, `\\n` line ends on every system."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_records(path: Path) -> list[Record]:
    """Return the records of a `train.jsonl` or `validation.jsonl`.

    Raises `UserError` when the file is missing, broken (with the line), empty, or was not made by
    `data_prep.py`.
    """
    if not path.is_file():
        raise UserError(f"There is no {path}: run data_prep.py first.")
    records = list(_read_file(path))
    if not records:
        raise UserError(f"{path} is empty: run data_prep.py again.")
    for number, record in enumerate(records, start=1):
        if not ({"prompt", "completion"} <= record.keys()):
            raise UserError(f"{path}, line {number} has no prompt and completion: run data_prep.py first.")
    return records
