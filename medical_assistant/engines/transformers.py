"""The engine for CUDA, ZeroGPU Spaces and any Hub model: torch, transformers, PEFT, bitsandbytes.

One model is resident; its LoRA layers are switched on or off for each step. The decode loop is our
own, so that closing the iterator stops at once and log-probabilities come with the tokens.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from medical_assistant.engines.base import Answer, EngineInfo, Options, Token
from medical_assistant.errors import EngineError, UserError
from medical_assistant.models.adapter import Adapter
from medical_assistant.models.chat_templates import TEMPLATE_ARGUMENTS, find_chat_template
from medical_assistant.models.loading import compute_dtype, has_zero_gpu, load_model, read_tokenizer, stop_tokens
from medical_assistant.models.presets import Preset
from medical_assistant.prompts import Message

if TYPE_CHECKING:
    import torch

PREFILL_TOKENS = 512  # of a prompt in one step; a stop waits for one step


class TransformersEngine:
    """A Hub model, a folder or a GGUF under `transformers`; an `Engine` of `engines.base`.

    `dtype` "auto": bfloat16 where the device has it, else float16 on a GPU (a T4) and float32 on a CPU.
    `quantize` "auto": NF4 with double quantisation (QLoRA, Dettmers et al. 2023) on CUDA, but not on
    ZeroGPU, which has the memory, nor for a GGUF, whose weights have lost their precision already;
    "nf4" and "none" decide. Concurrent requests take turns, token by token: on or off is a state of
    the model, so they are not batched. `answer_all` computes batches of `parallel`.

    Raises `EngineError` when the model cannot be loaded, `AdapterError` when the adapter was trained
    on another prompt than the model's tokenizer makes.
    """

    weights = "as served"

    def __init__(
        self,
        preset: Preset,
        adapter: Adapter | None = None,
        *,
        model: str | None = None,
        context_tokens: int = 2048,
        dtype: str = "auto",
        quantize: str = "auto",
        threads: int | None = None,
        parallel: int = 32,
    ) -> None:
        import torch

        self.info = EngineInfo.of("transformers", model or preset.name, adapter)
        self.restarts = 0  # it lives in the app's process: there is nothing to restart
        if threads:
            torch.set_num_threads(threads)
        self._device = "cuda" if has_zero_gpu() or torch.cuda.is_available() else "cpu"
        self._parallel = parallel
        self._lock = threading.Lock()
        self._tokenizer, self._model, self._stop_ids = load_weights(preset, adapter, self._device, dtype, quantize)
        self._adapter_on = adapter is not None  # PEFT's state after loading
        self.context_tokens = min(context_tokens, self._model.config.max_position_embeddings)
        self._decode: Callable[[list[int], Options], Iterator[Token | str]] = self._generate
        if has_zero_gpu():
            import spaces  # app.py has imported it first, before torch

            self._decode = spaces.GPU(self._generate, duration=_gpu_duration_s)

    def stream(self, messages: Sequence[Message], options: Options) -> Generator[Token, None, str]:
        self.info.check_adapter(options)
        prompt = self._encode(messages)
        if len(prompt) >= self.context_tokens:
            raise UserError("The question is too long for this model: shorten it or clear the chat.")
        return self._stream(prompt, options)

    def answer_all(self, conversations: Sequence[Sequence[Message]], options: Options) -> Iterator[tuple[int, Answer]]:
        """As `Engine.answer_all`: batches of prompts of similar length, the longest first, so that what does
        not fit into memory fails at once."""
        self.info.check_adapter(options)
        prompts = [self._encode(messages) for messages in conversations]
        limit = self.context_tokens - options.max_new_tokens
        if any(len(prompt) > limit for prompt in prompts):
            raise UserError(f"A question has more than {limit} tokens: raise the context or shorten it.")
        order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
        for start in range(0, len(order), self._parallel):
            batch = order[start : start + self._parallel]
            with _explained_failures():
                answers = self._answer_batch([prompts[i] for i in batch], options)
            yield from zip(batch, answers, strict=True)

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return len(self._encode(messages))

    def close(self) -> None:
        with self._lock:
            self._model = None

    def _encode(self, messages: Sequence[Message]) -> list[int]:
        from jinja2 import TemplateError

        try:
            return list(
                self._tokenizer.apply_chat_template(
                    list(messages), add_generation_prompt=True, return_dict=False, **TEMPLATE_ARGUMENTS
                )
            )
        except TemplateError as error:
            raise EngineError(
                f"{self.info.model}'s chat template refuses the chat ({error}): clear the chat."
            ) from error

    def _stream(self, prompt: list[int], options: Options) -> Generator[Token, None, str]:
        decode = self._decode(prompt, options)
        try:
            with _explained_failures():
                for item in decode:
                    if isinstance(item, str):
                        return item
                    yield item
        finally:
            close = getattr(decode, "close", None)
            if close:
                close()
        raise EngineError("The answer broke off: ask again.")

    def _generate(self, prompt: list[int], options: Options) -> Iterator[Token | str]:
        """Yield the tokens, then the finish reason. ZeroGPU runs this in a forked process."""
        answer: list[int] = []
        shown = pending = 0  # answer[:shown] is on the page; answer[pending:] is decoded as one text
        limit = min(options.max_new_tokens, self.context_tokens - len(prompt))
        for step in self._steps([prompt], limit, options):
            if not step:
                yield Token("", 0.0)  # keeps the stream alive, and is a chance to stop
                continue
            token, logprob, spread = step[0]
            answer.append(token)
            before, text = self._text(answer[pending:shown]), self._text(answer[pending:])
            if text.endswith("\ufffd"):  # the first bytes of a character: wait for the rest
                yield Token("", logprob, spread)
            else:
                yield Token(text[len(before) :], logprob, spread)
                pending, shown = shown, len(answer)
        yield "length" if len(answer) == limit else "stop"

    def _answer_batch(self, prompts: Sequence[list[int]], options: Options) -> list[Answer]:
        """Return the answers to `prompts`, computed together, in their order."""
        started_s = time.perf_counter()
        rows: list[list[tuple[int, float, float]]] = [[] for _ in prompts]
        seconds = [0.0] * len(prompts)
        for step in self._steps(prompts, options.max_new_tokens, options):
            for row, found in step.items():
                rows[row].append(found)
                seconds[row] = time.perf_counter() - started_s
        return [
            Answer(
                text=self._text([token for token, _, _ in row]),
                finish_reason="length" if len(row) == options.max_new_tokens else "stop",
                logprobs=tuple(logprob for _, logprob, _ in row),
                entropies=tuple(spread for _, _, spread in row),
                seconds=row_seconds or time.perf_counter() - started_s,
            )
            for row, row_seconds in zip(rows, seconds, strict=True)
        ]

    def _steps(
        self, prompts: Sequence[list[int]], limit: int, options: Options
    ) -> Iterator[dict[int, tuple[int, float, float]]]:
        """Yield {row of `prompts`: (next token, its log-probability, entropy)}, at most `limit` times, without the rows
        that have ended; between the pieces of long prompts {}.

        Prompts are padded on the left and the padding is masked, so that each row ends where its answer begins; a row
        that has ended is computed on, and ignored, until all have. Every row has the seed of `options`.
        """
        import torch
        from transformers import DynamicCache

        if self._model is None:
            raise EngineError("The engine is closed: load the model again.")
        cache = DynamicCache(config=self._model.config)
        generators = [torch.Generator(self._device).manual_seed(options.seed) for _ in prompts]
        longest = max(len(prompt) for prompt in prompts)
        ids = torch.zeros((len(prompts), longest), dtype=torch.long)
        mask = torch.ones((len(prompts), longest + limit), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, : longest - len(prompt)] = 0
        ids, mask = ids.to(self._device), mask.to(self._device)
        for start in range(0, longest, PREFILL_TOKENS):
            if start:
                yield {}
            piece = ids[:, start : start + PREFILL_TOKENS]
            logits = self._forward(piece, mask[:, : start + piece.shape[1]], cache, options.adapter)
        running = dict.fromkeys(range(len(prompts)), (0, 0.0, 0.0))
        for length in range(longest, longest + limit):
            if length > longest:
                ids = torch.tensor([[running[row][0] if row in running else 0] for row in range(len(prompts))])
                logits = self._forward(ids.to(self._device), mask[:, :length], cache, options.adapter)
            spreads = entropy(logits).tolist()
            chosen = {row: (*choose(logits[row], options, generators[row]), spreads[row]) for row in running}
            running = {row: found for row, found in chosen.items() if found[0] not in self._stop_ids}
            if not running:
                return
            yield running

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, cache: Any, adapter: bool) -> torch.Tensor:
        """Return the next token's logits, float32 of shape (rows, vocabulary), with the LoRA on or off."""
        import torch

        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        with self._lock, torch.inference_mode():
            self._switch(adapter)
            output = self._model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            logits: torch.Tensor = output.logits[:, -1].float()
        return logits

    def _switch(self, adapter: bool) -> None:
        """Turn the LoRA on or off; the caller holds the lock."""
        if self._model is None:
            raise EngineError("The engine was closed while it answered.")
        if self._adapter_on != adapter:
            layers = self._model.base_model
            layers.enable_adapter_layers() if adapter else layers.disable_adapter_layers()
            self._adapter_on = adapter

    def _text(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


@contextmanager
def _explained_failures() -> Iterator[None]:
    """CUDA and ZeroGPU raise a dozen classes; the user needs one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise EngineError(f"The model failed ({reason}): ask again, or choose a smaller model.") from error


def _gpu_duration_s(prompt: list[int], options: Options) -> int:
    """Return the GPU seconds to ask ZeroGPU for: moving the weights, then 20 tokens/s, a 7B model's pace."""
    return 15 + (options.max_new_tokens + len(prompt) // 50) // 20


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


def load_weights(
    preset: Preset, adapter: Adapter | None, device: str, dtype: str = "auto", quantize: str = "auto"
) -> tuple[Any, Any, frozenset[int]]:
    """Return (tokenizer, model with the adapter on, ids that end an answer).

    `device` is "cpu" or "cuda"; `dtype`, `quantize` and errors as of `TransformersEngine`.
    """
    if quantize == "auto":
        is_gguf = preset.own_gguf or preset.embedded_gguf()
        quantize = "nf4" if device == "cuda" and not has_zero_gpu() and not is_gguf else "none"
    torch_dtype = compute_dtype(dtype, decoding=True)
    try:
        tokenizer = read_tokenizer(preset)
        if adapter and (adapter.chosen_template or not tokenizer.chat_template):
            tokenizer.chat_template = adapter.prompt["chat_template"]
        elif not adapter and preset.chat_template:
            tokenizer.chat_template = find_chat_template(preset.chat_template)
        if not tokenizer.chat_template:
            raise EngineError(f"{preset.name} has no chat template: choose a chat or instruct model.")
        if adapter:
            tokens = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token}
            adapter.check_prompt(tokenizer.chat_template, tokens)
        model = load_model(preset, quantize, torch_dtype)
        if not getattr(model, "is_loaded_in_4bit", False):
            model = model.to(device)
        if adapter:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, str(adapter.folder), autocast_adapter_dtype=False)
            for name, parameter in model.named_parameters():
                if "lora_" in name:  # stored in half precision: one dtype in a layer saves the casts
                    parameter.data = parameter.data.to(torch_dtype)
    except UserError:
        raise
    except Exception as error:  # from_pretrained raises KeyError, ImportError, RuntimeError, … for a bad model
        reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
        raise EngineError(f"{preset.name} cannot be loaded ({reason}): check the name, network and memory.") from error
    model.eval()
    return tokenizer, model, stop_tokens(model, tokenizer)
