"""The engine for CUDA, ZeroGPU Spaces and any Hub model: torch, transformers, PEFT, bitsandbytes.

One model is resident; its LoRA layers are switched on or off for each step. The decode loop is our
own, so that closing the iterator stops at once and log-probabilities come with the tokens.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medical_assistant.engines.base import Answer, EngineInfo, Options, Token
from medical_assistant.engines.transformers_batch import choose, entropy, generate_batch
from medical_assistant.errors import AdapterError, EngineError, UserError
from medical_assistant.models.adapter import Adapter
from medical_assistant.models.chat_templates import end_of_answer, find_chat_template, tokenize_as_llama_cpp
from medical_assistant.models.presets import Preset
from medical_assistant.prompts import Message

if TYPE_CHECKING:
    import torch

PREFILL_TOKENS = 512  # of a prompt in one step; a stop waits for one step
TEMPLATE_ARGUMENTS = {"enable_thinking": False}  # Qwen3 and its like; other templates ignore it


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

        self.info = EngineInfo(
            engine="transformers",
            model=model or preset.name,
            adapter=adapter.name if adapter else None,
            adapter_revision=adapter.revision if adapter else None,
        )
        self.restarts = 0  # it lives in the app's process: there is nothing to restart
        if threads:
            torch.set_num_threads(threads)
        zero_gpu = bool(os.environ.get("SPACES_ZERO_GPU"))
        self._device = "cuda" if zero_gpu or torch.cuda.is_available() else "cpu"
        self._parallel = parallel
        self._lock = threading.Lock()
        self._tokenizer, self._model, self._stop_ids = load_weights(
            preset, adapter, self._device, find_dtype(dtype, self._device, zero_gpu), quantize, zero_gpu
        )
        self._adapter_on = adapter is not None  # PEFT's state after loading
        self.context_tokens = min(context_tokens, self._model.config.max_position_embeddings)
        self._decode: Callable[[list[int], Options], Iterator[Token | str]] = self._generate
        if zero_gpu:
            import spaces  # app.py has imported it first, before torch

            self._decode = spaces.GPU(self._generate, duration=_gpu_duration_s)

    def stream(self, messages: Sequence[Message], options: Options) -> Generator[Token, None, str]:
        if options.adapter and self.info.adapter is None:
            raise AdapterError("No adapter is loaded: choose the base model, or load an adapter.")
        prompt = self._encode(messages)
        if len(prompt) >= self.context_tokens:
            raise UserError("The question is too long for this model: shorten it or clear the chat.")
        return self._stream(prompt, options)

    def answer_all(self, conversations: Sequence[Sequence[Message]], options: Options) -> Iterator[tuple[int, Answer]]:
        """As `Engine.answer_all`: batches of prompts of similar length, the longest first, so that what does
        not fit into memory fails at once."""
        if options.adapter and self.info.adapter is None:
            raise AdapterError("No adapter is loaded: choose the base model, or load an adapter.")
        prompts = [self._encode(messages) for messages in conversations]
        limit = self.context_tokens - options.max_new_tokens
        if any(len(prompt) > limit for prompt in prompts):
            raise UserError(f"A question has more than {limit} tokens: raise the context or shorten it.")
        order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
        for start in range(0, len(order), self._parallel):
            batch = order[start : start + self._parallel]
            try:
                with self._lock:
                    self._switch(options.adapter)
                    answers = generate_batch(
                        self._model, self._text, [prompts[i] for i in batch], options, self._stop_ids, self._device
                    )
            except UserError:
                raise
            except Exception as error:
                raise _explained(error) from error
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
            for item in decode:
                if isinstance(item, str):
                    return item
                yield item
        except UserError:
            raise
        except Exception as error:  # CUDA and ZeroGPU raise a dozen classes; the user needs one line
            raise _explained(error) from error
        finally:
            close = getattr(decode, "close", None)
            if close:
                close()
        raise EngineError("The answer broke off: ask again.")

    def _generate(self, prompt: list[int], options: Options) -> Iterator[Token | str]:
        """Yield the tokens, then the finish reason. ZeroGPU runs this in a forked process."""
        import torch
        from transformers import DynamicCache

        cache = DynamicCache(config=self._config())
        generator = torch.Generator(self._device).manual_seed(options.seed)
        for start in range(0, len(prompt), PREFILL_TOKENS):
            if start:
                yield Token("", 0.0)  # a sign of life, and a chance to stop
            logits = self._forward(prompt[start : start + PREFILL_TOKENS], cache, options.adapter)
        answer: list[int] = []
        shown = pending = 0  # answer[:shown] is on the page; answer[pending:] is decoded as one text
        limit = min(options.max_new_tokens, self.context_tokens - len(prompt))
        while len(answer) < limit:
            token, logprob = choose(logits, options, generator)
            if token in self._stop_ids:
                yield "stop"
                return
            answer.append(token)
            spread = float(entropy(logits))
            before, text = self._text(answer[pending:shown]), self._text(answer[pending:])
            if text.endswith("\ufffd"):  # the first bytes of a character: wait for the rest
                yield Token("", logprob, spread)
            else:
                yield Token(text[len(before) :], logprob, spread)
                pending, shown = shown, len(answer)
            if len(answer) < limit:
                logits = self._forward([token], cache, options.adapter)
        yield "length"

    def _config(self) -> Any:
        if self._model is None:
            raise EngineError("The engine is closed: load the model again.")
        return self._model.config

    def _forward(self, ids: list[int], cache: Any, adapter: bool) -> torch.Tensor:
        """Return the next token's logits, float32 of shape (vocabulary,), with the LoRA on or off."""
        import torch

        with self._lock, torch.inference_mode():
            self._switch(adapter)
            batch = torch.tensor([ids], device=self._device)
            output = self._model(input_ids=batch, past_key_values=cache, use_cache=True, logits_to_keep=1)
            logits: torch.Tensor = output.logits[0, -1].float()
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


def _explained(error: Exception) -> EngineError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
    return EngineError(f"The model failed ({reason}): ask again, or choose a smaller model.")


def _gpu_duration_s(prompt: list[int], options: Options) -> int:
    """Return the GPU seconds to ask ZeroGPU for: moving the weights, then 20 tokens/s, a 7B model's pace."""
    return 15 + (options.max_new_tokens + len(prompt) // 50) // 20


def find_dtype(name: str, device: str, zero_gpu: bool) -> torch.dtype:
    """Return the dtype called `name`; "auto" is 16 bits where the device computes with them, else float32."""
    import torch

    if name != "auto":
        dtype = getattr(torch, name, None)
        if not isinstance(dtype, torch.dtype):
            raise UserError(f"Unknown dtype {name!r}: use auto, float32, float16 or bfloat16.")
        return dtype
    if device == "cpu":
        # Where the CPU has AVX-512, bfloat16 halves the memory traffic: 21 against 15 tokens/s at 135M.
        return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32
    # ZeroGPU has no GPU yet while the model loads; its GPUs have bfloat16. A T4 only emulates it.
    if zero_gpu or torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float16


def load_weights(
    preset: Preset, adapter: Adapter | None, device: str, dtype: torch.dtype, quantize: str, zero_gpu: bool
) -> tuple[Any, Any, frozenset[int]]:
    """Return (tokenizer, model with the adapter on, ids that end an answer)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GgufConfig

    source, arguments = preset.repository, {"revision": preset.revision} if preset.revision else {}
    if quantize not in ("auto", "nf4", "none"):
        raise UserError(f"Unknown quantisation {quantize!r}: use auto, nf4 or none.")
    own_gguf = Path(preset.gguf) if preset.gguf and preset.gguf == preset.repository else None
    gguf = own_gguf or preset.embedded_gguf()
    if gguf is not None:
        source, arguments = str(gguf.parent), {"gguf_file": gguf.name}
    quantization: Any = GgufConfig(dequantize=True) if gguf is not None else None
    if gguf is not None and quantize == "nf4":
        raise UserError(f"{preset.name} is a GGUF, quantised already: use quantize none, or a Hub model.")
    if quantize == "nf4" or (quantize == "auto" and device == "cuda" and not zero_gpu and gguf is None):
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    try:
        # False, not nothing: without it transformers asks in the terminal whether to run a repository's own code.
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **arguments)
        tokenize_as_llama_cpp(tokenizer)
        if adapter and (adapter.chosen_template or not tokenizer.chat_template):
            tokenizer.chat_template = adapter.prompt["chat_template"]
        elif not adapter and preset.chat_template:
            tokenizer.chat_template = find_chat_template(preset.chat_template)
        if not tokenizer.chat_template:
            raise EngineError(f"{preset.name} has no chat template: choose a chat or instruct model.")
        if adapter:
            tokens = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token}
            adapter.check_prompt(tokenizer.chat_template, tokens)
        model: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, quantization_config=quantization, trust_remote_code=False, **arguments
        )
        if not getattr(model, "is_loaded_in_4bit", False):
            model = model.to(device)
        if adapter:
            model = _add_adapter(model, adapter, dtype)
    except UserError:
        raise
    except Exception as error:  # from_pretrained raises OSError, ValueError, KeyError, ImportError, … for a bad model
        reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
        raise EngineError(f"{preset.name} cannot be loaded ({reason}): check the name, network and memory.") from error
    model.eval()
    ends = model.generation_config.eos_token_id
    # Gemma's turns do not end with its EOS token.
    ends = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id, end_of_answer(tokenizer)} - {None}
    return tokenizer, model, frozenset(ends)


def _add_adapter(model: Any, adapter: Adapter, dtype: torch.dtype) -> Any:
    from peft import PeftModel

    model = PeftModel.from_pretrained(model, str(adapter.folder), autocast_adapter_dtype=False)
    for name, parameter in model.named_parameters():
        if "lora_" in name:  # stored in half precision: one dtype in a layer saves the casts
            parameter.data = parameter.data.to(dtype)
    return model
