"""Records of data_prep.py as token ids for TRL, tokenised once and kept in the cache of `datasets`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medical_assistant.data.records import Record, read_records
from medical_assistant.errors import UserError
from medical_assistant.files import file_sha256
from medical_assistant.prompts import prompt_contract
from medical_assistant.training.settings import Run

MASKED = -100  # PyTorch's label for "not learnt"
MAX_CUT = 0.01  # part of the rows that may be too long


@dataclass(frozen=True)
class TrainingData:
    """Rows for one run. `train` and `validation` are `datasets.Dataset`s of `input_ids` and `labels`."""

    train: Any
    validation: Any
    too_long: int  # rows left out
    answers: list[str]  # of the first training rows, for the pre-flight
    sha256: str  # of `data_hash`


def data_hash(folder: Path) -> str:
    """Return the SHA-256 of the three files of data_prep.py together. Raises `UserError` when one is missing."""
    digest = hashlib.sha256()
    for name in ("manifest.json", "train.jsonl", "validation.jsonl"):
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}: give a folder that data_prep.py wrote.")
        digest.update(file_sha256(folder / name).encode())
    return digest.hexdigest()


def load_training_data(run: Run, tokenizer: Any) -> TrainingData:
    """Return the tokenised rows of a run.

    The last validation rows choose the checkpoint, so that the first ones are left for `evaluate.py --limit`.
    Rows longer than `max_length` are left out: a row that is cut loses its end-of-sequence token, and a model that
    never sees it never stops. Raises `UserError` when these are more than 1 %, or when the data folder is not whole.
    """
    sha256 = data_hash(run.data)
    settings, max_length = run.settings, run.values["max_length"]
    train = read_records(run.data / "train.jsonl")[: settings.max_train_rows or None]
    validation = read_records(run.data / "validation.jsonl")[-settings.max_validation_rows :]
    parts, too_long = [], 0
    for records in (train, validation):
        tokens = tokenize(records, tokenizer, sha256)
        kept = [i for i, ids in enumerate(tokens["input_ids"]) if len(ids) <= max_length]
        left_out = len(tokens) - len(kept)
        if left_out > MAX_CUT * len(tokens):
            longest = max(len(ids) for ids in tokens["input_ids"])
            raise UserError(
                f"{left_out:,} of {len(tokens):,} rows are longer than --max-length {max_length} tokens, over "
                f"{MAX_CUT:.0%}: raise it (the longest row has {longest:,}), or remove them with data_prep.py."
            )
        too_long += left_out
        parts.append(tokens.select(kept))
    answers = [record["completion"][0]["content"] for record in train]
    return TrainingData(parts[0], parts[1], too_long, answers, sha256)


def tokenize(records: list[Record], tokenizer: Any, sha256: str) -> Any:
    """Return a `Dataset` of `input_ids` and `labels` of `records`, from the cache when it was made before.

    The tokens are TRL's: the chat template over prompt and completion, learnt from the end of the prompt with its
    generation prompt on. Raises `UserError` when the template does not render the prompt as a prefix of the whole.
    """
    from datasets import Dataset, utils
    from datasets.exceptions import DatasetGenerationError

    contract = prompt_contract(tokenizer.chat_template, {"eos_token": str(tokenizer.eos_token)})["sha256"]
    ids = [record["id"] for record in records]
    tokenizer_state = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else repr(tokenizer)
    key = hashlib.sha256(json.dumps([sha256, contract, tokenizer_state, ids]).encode()).hexdigest()[:32]
    utils.disable_progress_bars()  # of a file that is written in milliseconds
    try:
        rows = {"records": tuple(records), "tokenizer": tokenizer}
        return Dataset.from_generator(_tokenized_rows, gen_kwargs=rows, fingerprint=key)
    except DatasetGenerationError as error:
        raise error.__cause__ or error from None
    finally:
        utils.enable_progress_bars()


def _tokenized_rows(records: Iterable[Record], tokenizer: Any) -> Iterator[dict[str, list[int]]]:
    for record in records:
        prompt = tokenizer.apply_chat_template(record["prompt"], add_generation_prompt=True, return_dict=True)
        whole = tokenizer.apply_chat_template(record["prompt"] + record["completion"], return_dict=True)
        prompt_ids, ids = prompt["input_ids"], whole["input_ids"]
        if ids[: len(prompt_ids)] != prompt_ids:
            raise UserError(
                f"The chat template renders the question of {record['id']} otherwise when the answer follows: the "
                "model would be served another prompt than it learnt. Give --chat-template one that does not."
            )
        yield {"input_ids": ids, "labels": [MASKED] * len(prompt_ids) + ids[len(prompt_ids) :]}
