"""Choosing tokens from logits, and whole answers in batches, for the engine of `transformers`."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from medical_assistant.engines.base import Answer, Options

if TYPE_CHECKING:
    import torch


def generate_batch(
    model: Any,
    decode: Callable[[list[int]], str],
    prompts: Sequence[Sequence[int]],
    options: Options,
    stop_ids: Collection[int],
    device: str,
) -> list[Answer]:
    """Return the answers to `prompts` (token ids), computed together, in their order.

    Prompts are padded on the left and the padding is masked, so that each row ends where its answer begins; a row
    that has ended is computed on, and ignored, until all have. Every row has the seed of `options`, as a request
    alone would have.
    """
    import torch
    from transformers import DynamicCache

    started_s = time.perf_counter()
    longest = max(len(prompt) for prompt in prompts)
    padding = [longest - len(prompt) for prompt in prompts]
    ids = torch.tensor([[0] * pad + list(prompt) for pad, prompt in zip(padding, prompts, strict=True)], device=device)
    mask = torch.ones((len(prompts), longest + options.max_new_tokens), dtype=torch.long, device=device)
    for row, pad in enumerate(padding):
        mask[row, :pad] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    generators = [torch.Generator(device).manual_seed(options.seed) for _ in prompts]
    answers: list[list[tuple[int, float, float]]] = [[] for _ in prompts]
    ended_s: dict[int, float] = {}
    start, end = 0, longest
    with torch.inference_mode():
        for _ in range(options.max_new_tokens):
            output = model(
                input_ids=ids,
                attention_mask=mask[:, :end],
                position_ids=positions[:, start:end],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            logits = output.logits[:, -1].float()
            spread = entropy(logits).tolist()
            chosen = [0] * len(prompts)
            for row in range(len(prompts)):
                if row in ended_s:
                    continue
                token, logprob = choose(logits[row], options, generators[row])
                if token in stop_ids:
                    ended_s[row] = time.perf_counter() - started_s
                    continue
                chosen[row] = token
                answers[row].append((token, logprob, spread[row]))
            if len(ended_s) == len(prompts):
                break
            ids = torch.tensor([[token] for token in chosen], device=device)
            start, end = end, end + 1
    seconds = time.perf_counter() - started_s
    return [
        Answer(
            text=decode([token for token, _, _ in answer]),
            finish_reason="stop" if row in ended_s else "length",
            logprobs=tuple(logprob for _, logprob, _ in answer),
            entropies=tuple(value for _, _, value in answer),
            seconds=ended_s.get(row, seconds),
        )
        for row, answer in enumerate(answers)
    ]


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Return the Shannon entropy in nats over the last dimension of `logits`."""
    import torch

    with torch.inference_mode():
        logprobs = logits.log_softmax(-1)
        # An impossible token has -inf, and 0 * -inf is not a number.
        return -(logprobs.exp() * logprobs.clamp(min=-1e4)).sum(-1)


def choose(logits: torch.Tensor, options: Options, generator: torch.Generator) -> tuple[int, float]:
    """Return (token id, its natural-log probability at temperature 1).

    Temperature, then the smallest set of tokens that holds `top_p` of the probability (nucleus
    sampling, Holtzman et al. 2020). The logits are of shape (vocabulary,).
    """
    import torch

    with torch.inference_mode():
        logprobs = logits.log_softmax(-1)
        if options.temperature <= 0:
            token = int(logits.argmax())
        else:
            ordered, ids = (logits / options.temperature).softmax(-1).sort(descending=True)
            ordered[ordered.cumsum(-1) - ordered >= options.top_p] = 0.0  # the most probable always stays
            token = int(ids[torch.multinomial(ordered, 1, generator=generator)])
        return token, float(logprobs[token])
