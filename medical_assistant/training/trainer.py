"""TRL's SFTTrainer with whole checkpoints, a stop at NaN and on signals, LoRA+, and a cheap loss on a CPU."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from accelerate import PartialState
from safetensors import SafetensorError
from torch.nn.functional import cross_entropy
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl import SFTTrainer

from medical_assistant.errors import NO_SPACE, UserError
from medical_assistant.training.data import TrainingData
from medical_assistant.training.estimate import smaller_runs
from medical_assistant.training.settings import CHECKPOINTS, INITIAL_ADAPTER, WHOLE, Run

# What safetensors and torch.save say of a full disk in place of an error number.
NO_SPACE_TEXTS = ("no space left", "file too large", "failed writing file", "iostream error", "unexpected pos")


def make_trainer(model: Any, tokenizer: Any, run: Run, data: TrainingData) -> Any:
    """Return TRL's `SFTTrainer` with a PEFT LoRA on `model`; the loss is over the completions only."""
    arguments, settings = run.trainer, run.settings
    cuda = torch.cuda.is_available()
    # cpu: without it accelerate sees one process where torchrun started several on a CPU.
    steps_an_epoch = -(-len(data.train) // (run.rows_a_step * PartialState(cpu=not cuda).num_processes))
    arguments.eval_steps = arguments.save_steps = max(1, round(steps_an_epoch / settings.evaluations_per_epoch))
    stop = StopCallback()
    callbacks = [stop]
    if settings.early_stopping_patience:
        callbacks.append(EarlyStoppingCallback(settings.early_stopping_patience))
    trainer = (CheckpointedSFTTrainer if cuda else CpuSFTTrainer)(
        model=model,
        args=arguments,
        train_dataset=data.train,
        eval_dataset=data.validation,
        processing_class=tokenizer,
        peft_config=run.lora,
        callbacks=callbacks,
        loraplus_lr_ratio=settings.loraplus_lr_ratio,
    )
    stop.accelerator = trainer.accelerator
    if str(run.lora.init_lora_weights).startswith("pissa") and trainer.accelerator.is_main_process:
        # PiSSA moves a part of the base into the LoRA: to serve on the unchanged base, the start must be known.
        config = trainer.model.peft_config["default"]
        kind, config.init_lora_weights = config.init_lora_weights, True
        trainer.model.save_pretrained(run.output / CHECKPOINTS / INITIAL_ADAPTER)
        config.init_lora_weights = kind
    return trainer


class SeededLengthSampler(LengthGroupedSampler):
    """`LengthGroupedSampler` whose order follows from seed and epoch alone.

    The library's draws from the global generator, which differs between processes from the second epoch on
    (dropout draws as many numbers as a process has tokens): rows would then be trained on twice or never.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self.seed + self.epoch)
        return super().__iter__()


class CheckpointedSFTTrainer(SFTTrainer):
    """`SFTTrainer` that a practitioner can kill at any moment.

    A checkpoint that is written and flushed to the disk gets the file `WHOLE`; the one before it stays until then, and
    `record.check_resume` removes one without that file. A loss that is not a number stops the run before it reaches
    the weights.
    """

    def __init__(self, *arguments: Any, loraplus_lr_ratio: float = 1.0, **options: Any) -> None:
        self._loraplus_lr_ratio = loraplus_lr_ratio
        super().__init__(*arguments, **options)
        if self.args.fp16:
            # TRL keeps a QLoRA's adapter in bfloat16, which a GPU without it cannot scale gradients of.
            for parameter in self.model.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        lengths = [len(ids) for ids in (train_dataset or self.train_dataset)["input_ids"]]
        # Of a whole step: the same rows whatever the number of processes.
        rows_a_step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return SeededLengthSampler(rows_a_step, lengths, self.args.data_seed)

    def create_optimizer(self, model: Any = None) -> Any:
        if getattr(self, "optimizer", None) is None and self._loraplus_lr_ratio != 1.0:
            from peft.optimizers import create_loraplus_optimizer

            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = create_loraplus_optimizer(
                self.model, optimizer_class, loraplus_lr_ratio=self._loraplus_lr_ratio, **options
            )
        return super().create_optimizer(model)

    def training_step(self, model: Any, inputs: dict[str, Any], *arguments: Any, **options: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(model, inputs, *arguments, **options)
        if not torch.isfinite(loss):
            text = self.processing_class.decode(inputs["input_ids"][0], skip_special_tokens=True)
            raise UserError(
                f"The loss is {loss.item()} at step {self.state.global_step + 1}, in the batch that starts with "
                f"{' '.join(text.split())[-160:]!r}: lower --learning-rate or look at these rows; the last checkpoint "
                "in --output is good, --resume goes on from it."
            )
        return loss

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            folder = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}")
            for file in filter(Path.is_file, folder.rglob("*")):  # FSDP and DeepSpeed make folders
                with file.open("rb") as written:
                    os.fsync(written.fileno())
            (folder / WHOLE).touch()


class CpuSFTTrainer(CheckpointedSFTTrainer):
    """The same with logits for completion tokens only.

    The loss is TRL's: the mean negative log-likelihood of the completion tokens. TRL 1.16's chunked head, which on a
    CPU scores prompt tokens too and also finds entropy and accuracy, took 55 % of a step of SmolLM2-135M on two cores.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        base = self.model.get_base_model()
        # In `forward`, not beside it, so that DistributedDataParallel sees the call and shares the gradients.
        base.forward = MethodType(_completion_loss, base)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        names = ("input_ids", "attention_mask", "position_ids", "labels")
        total, tokens = model(**{name: inputs[name] for name in names if name in inputs})
        loss = total / torch.as_tensor(tokens if num_items_in_batch is None else num_items_in_batch).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP divides the sum of gradients by the processes
        return (loss, {"loss": loss}) if return_outputs else loss


def _completion_loss(
    base: Any, labels: torch.Tensor, input_ids: torch.Tensor | None = None, **inputs: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (sum of the negative log-likelihoods of the learnt tokens, their number)."""
    hidden = base.get_decoder()(input_ids=input_ids, use_cache=False, **inputs).last_hidden_state[:, :-1]
    learnt = labels[:, 1:] != -100
    logits = base.get_output_embeddings()(hidden[learnt]).float()
    return cross_entropy(logits, labels[:, 1:][learnt], reduction="sum"), learnt.sum()


class StopCallback(TrainerCallback):
    """Turns Ctrl-C and SIGTERM into: finish the step, save a checkpoint, stop."""

    accelerator: Any = None
    interrupted = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in self.before:
            signal.signal(number, self._interrupt)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.accelerator.num_processes > 1:
            # All must stop after the same step, and the signal reaches them at different moments.
            if self.interrupted:
                self.accelerator.set_trigger()
            self.interrupted = self.accelerator.check_trigger()
        if self.interrupted:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.interrupted:
            raise KeyboardInterrupt

    def _interrupt(self, signum: int, frame: object) -> None:
        # A second Ctrl-C does not wait for the step; torchrun sends each of its processes the first one again.
        if self.interrupted and self.accelerator.num_processes == 1:
            raise KeyboardInterrupt
        self.interrupted = True


@contextmanager
def explained_failures(run: Run) -> Iterator[None]:
    """Turn a full disk and a full memory into a `UserError` that says what to change; nothing is lost."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(f"The device's memory is full: {_smaller(run)}, then --resume.") from error
    except (OSError, SafetensorError, RuntimeError) as error:
        text = str(error).lower()
        if "not enough memory" in text or "defaultcpuallocator" in text:
            raise UserError(f"The memory is full: {_smaller(run)}.") from error
        full = isinstance(error, OSError) and error.errno in NO_SPACE
        if not full and not any(sign in text for sign in NO_SPACE_TEXTS):
            raise
        raise UserError(
            f"The disk of {run.output} is full: make room, then run the same command with --resume; it goes on "
            "from the last whole checkpoint."
        ) from error


def _smaller(run: Run) -> str:
    option = next((option for option, _ in smaller_runs(run)), None)
    return f"use {option} in a new --output" if option else "choose a smaller --model"
