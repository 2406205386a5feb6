"""What a run will need: parameters, memory and time, from the model's config alone, before weights are downloaded."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from medical_assistant.errors import UserError
from medical_assistant.training.settings import Run

GIB = 2**30
# Bytes a weight: NF4 with double quantisation is 4.127 bits (Dettmers et al. 2023, arXiv:2305.14314, section 3).
NF4_BYTES = 4.127 / 8
# Bytes that the backward pass keeps a layer and token, in 16 bits, by width of the layer: counted with
# torch.autograd.graph.saved_tensors_hooks on SmolLM2-135M, 24,000 bytes; gate, up, their product and its input are 8.
HIDDEN_BYTES, INTERMEDIATE_BYTES = 20, 8
# What a process holds besides: Python, torch, transformers and TRL on a CPU; the context and kernels on CUDA.
CPU_OVERHEAD_GIB, CUDA_OVERHEAD_GIB = 1.2, 0.8
# Batches of changing size leave holes: the first experiment of assets/experiments took 1.8 times its live tensors.
CPU_FRAGMENTATION = 1.8
# A training step reaches about this part of the speed of one large matrix product: SmolLM2-135M on two CPU cores took
# 6.7 minutes without validation where this foretold 7. It was not measured on a GPU.
EFFICIENCY = 0.35


@dataclass(frozen=True)
class Parameters:
    """Numbers of weights."""

    trainable: int
    linear: int  # of the base, in linear layers other than the head: what NF4 quantises
    other: int  # of the base: embeddings, head, norms
    hidden_size: int
    intermediate_size: int
    layers: int
    vocabulary: int

    @property
    def total(self) -> int:
        return self.trainable + self.linear + self.other


def count_parameters(config: Any, lora: Any) -> Parameters:
    """Return the weights of a model of `config` with PEFT's `lora`, counted on a model without memory ("meta")."""
    import copy

    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    lora = copy.copy(lora)
    lora.init_lora_weights, dora, lora.use_dora = False, lora.use_dora, False  # starting values need real weights
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        linear = sum(
            module.weight.numel()
            for module in model.modules()
            if isinstance(module, torch.nn.Linear) and module is not model.get_output_embeddings()
        )
        total = sum(parameter.numel() for parameter in model.parameters())
        model = get_peft_model(model, lora)
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    magnitudes = sum(p.shape[0] for name, p in trained if ".lora_B." in name) if dora else 0
    text = config.get_text_config()
    return Parameters(
        trainable=sum(p.numel() for _, p in trained) + magnitudes,
        linear=linear,
        other=total - linear,
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        layers=text.num_hidden_layers,
        vocabulary=text.vocab_size,
    )


def estimate_memory(parameters: Parameters, run: Run, tokens: int, cuda: bool, bits: int) -> float:
    """Return the GiB that a step on `tokens` tokens (padding included) takes, weights and process included.

    `bits` is the width of the unquantized weights, 16 or 32.
    """
    width = bits // 8
    weights = parameters.other * width + parameters.linear * (NF4_BYTES if run.settings.quantize == "nf4" else width)
    # Weight, gradient and AdamW's two moments: in 32 bits, or with a QLoRA in 16 and 8 bits.
    adapter = parameters.trainable * (6 if "8bit" in run.trainer.optim else 16)
    layer_bytes = HIDDEN_BYTES * parameters.hidden_size + INTERMEDIATE_BYTES * parameters.intermediate_size
    layer = tokens * layer_bytes * width / 2
    if run.trainer.gradient_checkpointing:  # one layer whole, of the others the input
        activations = layer + parameters.layers * tokens * parameters.hidden_size * width
    else:
        activations = layer * parameters.layers
    # Logits, their float copy, its logarithm and its gradient. On CUDA TRL makes them in pieces of the vocabulary.
    logits = tokens * (min(32_768, parameters.vocabulary) if cuda else parameters.vocabulary) * (width + 12)
    if cuda:
        return (weights + adapter + activations + logits) / GIB + CUDA_OVERHEAD_GIB
    return (weights + adapter + (activations + logits) * CPU_FRAGMENTATION) / GIB + CPU_OVERHEAD_GIB


def estimate_minutes(parameters: Parameters, run: Run, tokens: int, speed: float) -> float:
    """Return the minutes that `tokens` tokens take on a device of `speed` floating-point operations a second.

    A token costs 2 operations a weight forward and 2 backward, where the base is frozen (6 with weight gradients:
    Kaplan et al. 2020, arXiv:2001.08361), and 2 more with gradient checkpointing.
    """
    operations = 6 if run.trainer.gradient_checkpointing else 4
    return tokens * operations * (parameters.linear + parameters.trainable) / (speed * EFFICIENCY) / 60


def measure_speed(dtype: Any, cuda: bool) -> float:
    """Return the floating-point operations a second of a product of 1,024 x 1,024 matrices (8,192 on CUDA)."""
    import torch

    device, size = ("cuda", 8_192) if cuda else ("cpu", 1_024)
    left = torch.ones(size, size, dtype=dtype, device=device)
    right = torch.ones(size, size, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        (left @ right).sum().item()  # item waits for the device
        best = min(best, time.perf_counter() - start)
    return float(2 * size**3 / best)


def cuda_memory() -> float | None:
    """Return the GiB of the CUDA device, None without one."""
    import torch

    return float(torch.cuda.get_device_properties(0).total_memory / GIB) if torch.cuda.is_available() else None


def available_memory(cuda: bool) -> float:
    """Return the GiB that are free: of the CUDA device, or of the machine."""
    if cuda:
        import torch

        return float(torch.cuda.mem_get_info()[0] / GIB)
    import psutil

    return float(psutil.virtual_memory().available / GIB)


def longest_batch(lengths: list[int], run: Run) -> int:
    """Return the tokens of the largest batch, padding included."""
    rows = int(run.trainer.per_device_train_batch_size)
    if run.trainer.packing:
        return rows * int(run.trainer.max_length)
    longest = sorted(lengths, reverse=True)[:rows]
    return sum(longest) if run.trainer.padding_free else rows * longest[0]


def check_fit(
    parameters: Parameters, run: Run, lengths: list[int], available_gib: float, cuda: bool, bits: int
) -> float:
    """Return the GiB that the run needs for rows of `lengths` tokens, as `estimate_memory`.

    Raises `UserError` that says which setting to lower, and by how much, when that is more than `available_gib`.
    """
    need_gib = estimate_memory(parameters, run, longest_batch(lengths, run), cuda, bits)
    if need_gib <= available_gib:
        return need_gib
    advice = "choose a smaller --model"
    for option, smaller in smaller_runs(run):
        smaller_gib = estimate_memory(parameters, smaller, longest_batch(lengths, smaller), cuda, bits)
        if smaller_gib <= available_gib:
            advice = f"use {option} (about {smaller_gib:.1f} GiB)"
            break
    raise UserError(f"This run needs about {need_gib:.1f} GiB and {available_gib:.1f} GiB are free: {advice}.")


def smaller_runs(run: Run) -> Iterator[tuple[str, Run]]:
    """Yield (options, run) that need less memory, the least loss first: smaller batches, then NF4."""
    option, batch, rows_a_step = "", int(run.trainer.per_device_train_batch_size), run.rows_a_step
    while batch > 1:
        batch //= 2
        accumulation = max(1, rows_a_step // batch)
        option = f"--per-device-train-batch-size {batch} --gradient-accumulation-steps {accumulation}"
        run = run.changed(per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation)
        yield option, run
    if run.settings.quantize != "nf4":
        yield f"{option} --quantize nf4".strip(), run.changed(quantize="nf4")
