"""The trainer of one run: TRL's arguments, PEFT's LoRA, and what stops it."""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from medical_assistant.errors import UserError
from medical_assistant.training.data import TrainingData

if TYPE_CHECKING:
    from medical_assistant.training.settings import ResolvedSettings

CHECKPOINTS, INITIAL_ADAPTER = "checkpoints", "initial-adapter"
# EFBIG: a file over the process's own limit, for instance of a container or a shared machine.
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What safetensors and torch.save say in place of an error number.
NO_SPACE_TEXTS = ("no space left", "file too large", "failed writing file", "iostream error", "unexpected pos")


def lora_config(settings: ResolvedSettings) -> Any:
    """Return PEFT's `LoraConfig` of a run (LoRA: Hu et al. 2021, arXiv:2106.09685)."""
    from peft import LoraConfig

    initialisation = settings.init_lora_weights
    return LoraConfig(
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=settings.lora_target_modules,
        use_rslora=settings.use_rslora,
        use_dora=settings.use_dora,
        init_lora_weights=True if initialisation == "default" else initialisation,
        task_type="CAUSAL_LM",
    )


def training_arguments(settings: ResolvedSettings, train_rows: int, dtype: Any) -> Any:
    """Return TRL's `SFTConfig` of a run on `train_rows` rows with a model of `dtype`."""
    import torch
    from accelerate import PartialState
    from trl import SFTConfig

    cuda = torch.cuda.is_available()
    # cpu: without it accelerate sees one process where torchrun started several on a CPU.
    steps_an_epoch = -(-train_rows // (settings.rows_a_step * PartialState(cpu=not cuda).num_processes))
    every = max(1, round(steps_an_epoch / settings.evaluations_per_epoch))
    return SFTConfig(
        output_dir=str(settings.output / CHECKPOINTS),
        num_train_epochs=settings.num_train_epochs,
        max_steps=settings.max_steps,
        per_device_train_batch_size=settings.per_device_train_batch_size,
        per_device_eval_batch_size=settings.per_device_train_batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.lr_scheduler_type,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        # The rows are tokenised and none is too long; only packing still needs to know the length.
        max_length=settings.max_length if settings.packing else None,
        packing=settings.packing,
        padding_free=settings.padding_free,
        completion_only_loss=True,
        # Batches of similar length: WikiDoc rows are 60-330 tokens, and padding costs as much as text.
        train_sampling_strategy="random" if settings.padding_free or settings.packing else "group_by_length",
        gradient_checkpointing=settings.gradient_checkpointing,
        use_cpu=not cuda,
        optim=settings.optim,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        neftune_noise_alpha=settings.neftune_noise_alpha or None,
        use_liger_kernel=settings.use_liger_kernel,
        torch_compile=settings.torch_compile,
        seed=settings.seed,
        data_seed=settings.seed,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        logging_steps=settings.logging_steps,
        report_to=settings.report_to,
        run_name=f"{settings.output.name}-{settings.experiment}",
        project="medical-assistant",
        trackio_space_id=settings.space_id,
        dataloader_pin_memory=cuda,
        ddp_find_unused_parameters=False,  # every step uses every LoRA weight: no need to search
    )


def make_trainer(
    model: Any, tokenizer: Any, settings: ResolvedSettings, data: TrainingData, arguments: Any = None
) -> Any:
    """Return TRL's `SFTTrainer` with a PEFT LoRA on `model`; the loss is over the completions only."""
    import torch
    from transformers import EarlyStoppingCallback

    from medical_assistant.training.trainer import CheckpointedSFTTrainer, CpuSFTTrainer

    stop = _stop_callback()
    callbacks = [stop]
    if settings.early_stopping_patience:
        callbacks.append(EarlyStoppingCallback(settings.early_stopping_patience))
    trainer_class = CheckpointedSFTTrainer if torch.cuda.is_available() else CpuSFTTrainer
    trainer = trainer_class(
        model=model,
        args=arguments or training_arguments(settings, len(data.train), model.dtype),
        train_dataset=data.train,
        eval_dataset=data.validation,
        processing_class=tokenizer,
        peft_config=lora_config(settings),
        callbacks=callbacks,
        loraplus_lr_ratio=settings.loraplus_lr_ratio,
    )
    stop.accelerator = trainer.accelerator
    if settings.init_lora_weights.startswith("pissa") and trainer.accelerator.is_main_process:
        # PiSSA moves a part of the base into the LoRA: to serve on the unchanged base, the start must be known.
        config = trainer.model.peft_config["default"]
        kind, config.init_lora_weights = config.init_lora_weights, True
        trainer.model.save_pretrained(settings.output / CHECKPOINTS / INITIAL_ADAPTER)
        config.init_lora_weights = kind
    return trainer


def _stop_callback() -> Any:
    """Return a callback that turns Ctrl-C and SIGTERM into: finish the step, save a checkpoint, stop."""
    from transformers import TrainerCallback

    class StopCallback(TrainerCallback):
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

    return StopCallback()


@contextmanager
def explained_failures(settings: ResolvedSettings) -> Iterator[None]:
    """Turn a full disk and a full memory into a `UserError` that says what to change; nothing is lost."""
    import torch
    from safetensors import SafetensorError

    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(f"The device's memory is full: {_lower_batch(settings)}, then --resume.") from error
    except (OSError, SafetensorError, RuntimeError) as error:
        text = str(error).lower()
        if "not enough memory" in text or "defaultcpuallocator" in text:
            raise UserError(f"The memory is full: {_lower_batch(settings)}.") from error
        full = isinstance(error, OSError) and error.errno in NO_SPACE
        if not full and not any(sign in text for sign in NO_SPACE_TEXTS):
            raise
        raise UserError(
            f"The disk of {settings.output} is full: make room, then run the same command with --resume; it goes on "
            "from the last whole checkpoint."
        ) from error


def _lower_batch(settings: ResolvedSettings) -> str:
    """Return which setting to lower, and to what."""
    batch = settings.per_device_train_batch_size
    if batch > 1:
        return (
            f"use --per-device-train-batch-size {batch // 2} --gradient-accumulation-steps "
            f"{settings.rows_a_step // (batch // 2)} in a new --output"
        )
    if settings.max_length > 256:
        return f"use --max-length {settings.max_length // 2} in a new --output"
    return "choose a smaller --model"
