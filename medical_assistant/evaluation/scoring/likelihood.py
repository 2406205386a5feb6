"""How probable a model finds given texts: base and adapter are the same resident weights, LoRA off or on.

Nothing is sampled. The chat template's prompt is context and never scored; the tokens are those of
`training/data.py`, so that a perplexity is the exponential of the loss that training lowers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from medical_assistant.data.records import Record
from medical_assistant.engines.transformers import load_weights
from medical_assistant.errors import EngineError, UserError
from medical_assistant.models.adapter import Adapter
from medical_assistant.models.chat_templates import TEMPLATE_ARGUMENTS, end_of_answer
from medical_assistant.models.presets import Preset
from medical_assistant.prompts import Message

if TYPE_CHECKING:
    import torch

# Tokens of one batch, padding included. With a vocabulary of 150,000, 2,048 of them have 0.6 GB of logits.
BATCH_TOKENS = {"cpu": 2048, "cuda": 8192}
CONTEXT_TOKENS = 2048  # or fewer, where the model has fewer

Pair = tuple[Sequence[Message], str]  # chat messages that end with a question, the text that follows


@dataclass(frozen=True)
class CompletionScore:
    """What a model makes of one completion."""

    tokens: int  # that were scored
    logprob: float  # sum of their natural-log probabilities
    truncated: bool  # prompt and completion were longer than the context


@dataclass(frozen=True)
class _Group:
    """Completions of one prompt; `indices` are their places in the list that was asked for."""

    prompt: list[int]
    completions: list[list[int]]
    indices: list[int]
    truncated: bool

    @property
    def width(self) -> int:
        return len(self.prompt) + max(map(len, self.completions))

    @property
    def tokens(self) -> int:
        return len(self.prompt) + sum(map(len, self.completions))


class Scorer:
    """A model under transformers and PEFT that scores texts, with the LoRA off or on.

    Weights are bfloat16 where the device has it, else float32 on a CPU; NF4 on CUDA for a model that is no GGUF.

    Raises `EngineError` when the model cannot be loaded, `AdapterError` when the adapter was trained on another
    prompt than the model's tokenizer makes.
    """

    def __init__(self, preset: Preset, adapter: Adapter | None = None) -> None:
        import torch

        self.name = preset.name
        self.has_adapter = adapter is not None
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer, self.model, _ = load_weights(preset, adapter, self.device)
        self.context_tokens = min(CONTEXT_TOKENS, self.model.config.max_position_embeddings)
        self.batch_tokens = BATCH_TOKENS[self.device]
        self._end = end_of_answer(self.tokenizer)

    def close(self) -> None:
        """Let go of the model."""
        self.model = None

    def switched(self, adapter: bool) -> AbstractContextManager[Any]:
        """Return the context in which the LoRA is on, as it is loaded, or off."""
        return self.model.disable_adapter() if self.has_adapter and not adapter else nullcontext()

    def score(
        self, pairs: Sequence[Pair], adapter: bool, label: str, *, end_of_turn: bool = True
    ) -> list[CompletionScore]:
        """Return the scores of the completions, in the order of `pairs`; `label` stands beside the progress bar.

        With `end_of_turn` all tokens count that training learns: what the chat template writes from the end of
        the prompt on, the end-of-turn token included. Without it only those of the text count, so that an option
        is not judged by how well an answer could stop there.

        Completions of one prompt share its computation. What does not fit in the context is cut at the start of
        the prompt, as in lm-evaluation-harness (Gao et al. 2024, zenodo.12608602); of a completion that is longer
        than the context, the first tokens are scored.

        Raises `UserError` when the chat template does not render a prompt as the start of the whole chat.
        """
        import torch
        from tqdm import tqdm

        groups = _groups([self._encode(*pair, end_of_turn) for pair in pairs], self.context_tokens)
        scores: dict[int, CompletionScore] = {}
        with (
            self.switched(adapter),
            torch.inference_mode(),
            tqdm(total=sum(group.tokens for group in groups), desc=label, unit="token", unit_scale=True) as bar,
        ):
            for batch in _batches(groups, self.batch_tokens):
                for group, sums in zip(batch, self._score_batch(batch), strict=True):
                    for index, ids, logprob in zip(group.indices, group.completions, sums, strict=True):
                        scores[index] = CompletionScore(len(ids), logprob, group.truncated)
                    bar.update(group.tokens)
        return [scores[index] for index in range(len(pairs))]

    def _encode(self, messages: Sequence[Message], text: str, end_of_turn: bool) -> tuple[list[int], list[int]]:
        """Return the ids of (prompt, completion), as `training/data.py` makes them."""
        prompt = self._render(messages)
        whole = self._render([*messages, {"role": "assistant", "content": text}], add_generation_prompt=False)
        if whole[: len(prompt)] != prompt:
            raise UserError(
                f"The chat template of {self.name} renders a question otherwise when {text!r:.40} follows: score a "
                "model whose template does not."
            )
        if end_of_turn:
            return prompt, whole[len(prompt) :]
        # Qwen3 writes an empty thought before the text: it is the server's prompt, so it is no part of an option.
        served = self._render(messages, **TEMPLATE_ARGUMENTS)
        if whole[: len(served)] == served:
            prompt = served
        completion = whole[len(prompt) :]
        if self._end in completion:
            completion = completion[: len(completion) - 1 - completion[::-1].index(self._end)]
        return prompt, completion

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool = True, **arguments: Any) -> list[int]:
        from jinja2 import TemplateError

        arguments |= {"add_generation_prompt": add_generation_prompt, "return_dict": False}
        try:
            return list(self.tokenizer.apply_chat_template(list(messages), **arguments))
        except TemplateError as error:
            raise UserError(f"The chat template of {self.name} refuses a question ({error}): use another.") from error

    def _score_batch(self, batch: list[_Group]) -> list[list[float]]:
        try:
            return self._score_shared(batch) if len(batch[0].completions) > 1 else self._score_single(batch)
        except RuntimeError as error:  # CUDA's are many; the user needs one line
            reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
            raise EngineError(f"The model failed ({reason}): choose a smaller model or shorter texts.") from error

    def _score_single(self, batch: list[_Group]) -> list[list[float]]:
        """Score groups of one completion. Padding stands on the right, where causal attention never looks."""
        import torch

        rows = [[*group.prompt, *group.completions[0]] for group in batch]
        ids = self._padded([row[:-1] for row in rows])
        first = min(len(group.prompt) for group in batch) - 1
        keep = torch.arange(first, ids.shape[1], device=self.device)  # no logits for what all prompts share in length
        logits = self.model(input_ids=ids, logits_to_keep=keep, use_cache=False).logits
        return [
            [_sum_logprobs(row[len(group.prompt) - 1 - first :], group.completions[0])]
            for row, group in zip(logits, batch, strict=True)
        ]

    def _score_shared(self, batch: list[_Group]) -> list[list[float]]:
        """Score groups of several completions each. The prompts, of one length, are computed once."""
        import torch
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        prompts = torch.tensor([group.prompt for group in batch], device=self.device)
        last = self.model(input_ids=prompts, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        rows = [(number, ids) for number, group in enumerate(batch) for ids in group.completions]
        logits = last[[number for number, _ in rows]]
        if max(len(ids) for _, ids in rows) > 1:
            cache.batch_select_indices(torch.tensor([number for number, _ in rows], device=self.device))
            ids = self._padded([ids[:-1] for _, ids in rows])
            after = self.model(input_ids=ids, past_key_values=cache, use_cache=True).logits
            logits = torch.cat([logits, after], dim=1)
        sums = iter([_sum_logprobs(row, ids) for row, (_, ids) in zip(logits, rows, strict=True)])
        return [[next(sums) for _ in group.completions] for group in batch]

    def _padded(self, rows: list[list[int]]) -> torch.Tensor:
        import torch

        width = max(map(len, rows))
        return torch.tensor([row + [0] * (width - len(row)) for row in rows], device=self.device)


def _groups(encoded: Sequence[tuple[list[int], list[int]]], context_tokens: int) -> list[_Group]:
    """Return the completions by prompt, cut to the context; see `Scorer.score`."""
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for index, (ids, _) in enumerate(encoded):
        by_prompt.setdefault(tuple(ids), []).append(index)
    groups = []
    for prompt, indices in by_prompt.items():
        completions = [encoded[index][1] for index in indices]
        longest = max(map(len, completions))
        kept = list(prompt[-max(1, context_tokens - longest) :])
        cut = [ids[: context_tokens - 1] for ids in completions]
        groups.append(_Group(kept, cut, indices, truncated=len(prompt) + longest > context_tokens))
    return groups


def _batches(groups: Sequence[_Group], batch_tokens: int) -> Iterator[list[_Group]]:
    """Yield groups of like length, the longest first: a batch that is too large fails at once, not at the end.

    A batch has either groups of one completion, or groups of several whose prompts have one length.
    """

    def kind(group: _Group) -> tuple[bool, int]:
        shared = len(group.completions) > 1
        return shared, len(group.prompt) if shared else 0

    for _, alike in groupby(sorted(groups, key=lambda group: (kind(group), group.width), reverse=True), kind):
        batch: list[_Group] = []
        rows = 0
        for group in alike:
            rows += len(group.completions)
            if batch and rows * batch[0].width > batch_tokens:
                yield batch
                batch, rows = [], len(group.completions)
            batch.append(group)
        yield batch


def _sum_logprobs(logits: torch.Tensor, ids: list[int]) -> float:
    """Return the sum of the log-probabilities of `ids`; the logits are of shape (at least len(ids), vocabulary)."""
    import torch

    targets = torch.tensor(ids, dtype=torch.long, device=logits.device)
    losses = torch.nn.functional.cross_entropy(logits[: len(ids)].float(), targets, reduction="none")
    return -float(losses.double().sum())


def perplexity(scorer: Scorer, records: Sequence[Record], adapter: bool, label: str) -> dict[str, Any]:
    """Return how surprised the model is by the reference answers, given their questions.

    `perplexity`: exp of the mean negative log-likelihood of a token, end of turn included (Jelinek et al. 1977,
    "Perplexity: a measure of the difficulty of speech recognition tasks"), 1 and up: it compares models of one
    tokenizer. `bits_per_byte`: the same sum in bits for each UTF-8 byte of text (Gao et al. 2020,
    arXiv:2101.00027), which compares any two. `tokens`: those scored. `nll_per_item`: negative log-likelihood
    of each answer in nats, `tokens_per_item`: its tokens, in the order of `records`. `truncated`: the number of
    answers that were longer than the context together with their question. `label`: of the progress bar.
    """
    pairs = [(record["prompt"], record["completion"][0]["content"]) for record in records]
    scores = scorer.score(pairs, adapter, label)
    tokens = sum(score.tokens for score in scores)
    nll = -math.fsum(score.logprob for score in scores)
    return {
        "perplexity": math.exp(nll / tokens),
        "bits_per_byte": nll / math.log(2) / max(1, sum(len(text.encode()) for _, text in pairs)),
        "tokens": tokens,
        "nll_per_item": [-score.logprob for score in scores],
        "tokens_per_item": [score.tokens for score in scores],
        "truncated": sum(score.truncated for score in scores),
    }
