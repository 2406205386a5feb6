"""What is checked and shown before the first step: the loss mask of a real batch, memory and time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from medical_assistant.errors import UserError
from medical_assistant.models.chat_templates import end_of_answer
from medical_assistant.models.loading import compute_dtype, load_config
from medical_assistant.models.presets import Preset
from medical_assistant.training.data import MASKED, TrainingData
from medical_assistant.training.estimate import (
    available_memory,
    check_fit,
    count_parameters,
    estimate_minutes,
    measure_speed,
)
from medical_assistant.training.settings import Run

DIM, GREEN, RED, END = "\x1b[2m", "\x1b[32m", "\x1b[31m", "\x1b[0m"
ROWS_SHOWN = 2
REPORT = "install the versions of requirements.txt, or open an issue with those of trl and transformers"


def check_run(
    run: Run, preset: Preset, tokenizer: Any, data: TrainingData, memory_gib: float | None, colour: bool
) -> str:
    """Return the text that a user sees before the first step: a batch with its loss mask, sizes, memory and time.

    No weights are loaded. `memory_gib` plans for a CUDA device of that size, which may be elsewhere. Raises `UserError`
    for a batch that teaches the wrong thing and for a run that does not fit.
    """
    import torch
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    arguments = run.trainer
    collate = DataCollatorForLanguageModeling(tokenizer.pad_token_id, padding_free=arguments.padding_free)
    batch = collate([data.train[i] for i in range(min(len(data.train), arguments.per_device_train_batch_size))])
    check_batch(batch, tokenizer, data.answers)

    cuda = memory_gib is not None or torch.cuda.is_available()
    bits = 32 if compute_dtype() == torch.float32 and not cuda else 16
    parameters = count_parameters(load_config(preset), run.lora)
    lengths = [len(ids) for ids in data.train["input_ids"]]
    available_gib = memory_gib or available_memory(cuda)
    need_gib = check_fit(parameters, run, lengths, available_gib, cuda, bits)
    trained, total = parameters.trainable, parameters.total
    lines = [
        f"rows            {len(data.train):,} train, {len(data.validation):,} validation, {data.too_long:,} too long",
        f"tokens          {sum(lengths):,} an epoch, {arguments.num_train_epochs:g} epoch(s)",
        f"parameters      {trained:,} trained of {total:,} ({trained / total:.2%})",
        f"a step          {run.rows_a_step} rows: {arguments.per_device_train_batch_size} at a time, "
        f"{arguments.gradient_accumulation_steps} time(s)",
        f"memory          about {need_gib:.1f} GiB, {available_gib:.1f} GiB free",
    ]
    if cuda == torch.cuda.is_available():  # the device is here
        epochs = arguments.num_train_epochs
        if arguments.max_steps > 0:
            epochs = arguments.max_steps * run.rows_a_step / len(lengths)
        speed = measure_speed(compute_dtype(), cuda)
        minutes = estimate_minutes(parameters, run, round(sum(lengths) * epochs), speed)
        lines.append(f"time            about {minutes:,.0f} min, validation not counted")
    return "\n".join([show_batch(batch, tokenizer, colour), "", *lines])


def batch_rows(batch: dict[str, Any]) -> list[tuple[list[int], list[int], list[bool]]]:
    """Return (token ids, labels, whether it is padding) of each record in a batch of TRL's collator.

    Padding-free batches are one row of several records, whose position ids start at 0.
    """
    ids, labels = batch["input_ids"].tolist(), batch["labels"].tolist()
    if "position_ids" not in batch:
        padding = (batch["attention_mask"] == 0).tolist()
        return list(zip(ids, labels, padding, strict=True))
    rows = []
    for row, row_labels, positions in zip(ids, labels, batch["position_ids"].tolist(), strict=True):
        starts = [i for i, position in enumerate(positions) if position == 0]
        for start, end in zip(starts, [*starts[1:], len(row)], strict=True):
            rows.append((row[start:end], row_labels[start:end], [False] * (end - start)))
    return rows


def check_batch(batch: dict[str, Any], tokenizer: Any, answers: Sequence[str]) -> None:
    """Raise `UserError` when the loss of `batch` is not on the whole answer and its end, and on nothing else.

    Refused are: a row without a learnt token, a learnt pad token, an end that is not learnt, and prompt tokens that
    are. `answers` are the texts that the rows may hold.
    """
    known = {answer.strip() for answer in answers}
    end = end_of_answer(tokenizer)
    for number, (_, labels, padding) in enumerate(batch_rows(batch), 1):
        learnt = [label for label in labels if label != MASKED]
        where = f"Row {number} of the first batch"
        if not learnt:
            raise UserError(f"{where} has no learnt token, so it teaches nothing: raise --max-length.")
        if any(pad and label != MASKED for pad, label in zip(padding, labels, strict=True)):
            raise UserError(f"{where} has padding in the loss, which teaches the model to repeat it: {REPORT}.")
        words = [i for i in learnt if tokenizer.decode([i]).strip()]
        if end is None or words[-1:] != [end]:
            name = repr(tokenizer.eos_token if end is None else tokenizer.decode([end]))
            raise UserError(
                f"{where} does not learn {name} at the end of its answer, so the model would never stop: raise "
                "--max-length, or give --chat-template one that ends the assistant's turn."
            )
        text = tokenizer.decode(learnt, skip_special_tokens=True).strip()
        if text not in known:
            raise UserError(f"{where} learns {text[:60]!r}…, which is not an answer of the data: prompt in the loss.")


def show_batch(batch: dict[str, Any], tokenizer: Any, colour: bool) -> str:
    """Return the first rows of a batch as text: learnt tokens green, or between ⟦ and ⟧, the others dim."""
    lines = []
    for row in batch_rows(batch)[:ROWS_SHOWN]:
        line = ""
        kinds = groupby(zip(*row, strict=True), key=lambda entry: (entry[1] != MASKED, entry[2]))
        for (learnt, padding), entries in kinds:
            ids = [token for token, _, _ in entries]
            text = f"<{len(ids)} x padding>" if padding else tokenizer.decode(ids)
            if colour:
                line += (RED if padding else GREEN if learnt else DIM) + text + END
            else:
                line += f"⟦{text}⟧" if learnt else text
        lines.append(line.rstrip())
    return "\n\n".join(lines)
