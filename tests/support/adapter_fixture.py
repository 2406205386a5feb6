"""A complete adapter folder without training: random LoRA weights on the embedded model."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy
from safetensors.numpy import save_file

from medical_assistant.models.gguf_header import HeaderReader
from medical_assistant.models.gguf_lora import write_lora_gguf
from medical_assistant.models.presets import Preset, find_preset
from medical_assistant.prompts import prompt_contract

SPECIAL_TOKENS = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
SCALE = 0.01  # of the B matrices: changes most answers, which stay fluent English


def make_adapter(folder: Path, seed: int = 0, *, scale: float = SCALE, rank: int = 16) -> Path:
    """Return `folder`, filled with an adapter that `load_adapter` accepts for `smollm2-135m`.

    Every seed gives other weights. `metrics.json` is left out: nothing has been measured.
    """
    preset = find_preset("smollm2-135m")
    chat_template, shape = _read_base(preset)
    folder.mkdir(parents=True, exist_ok=True)
    generator = numpy.random.default_rng(seed)
    head = shape.hidden_size // shape.num_attention_heads
    rows = {
        "q_proj": shape.hidden_size,
        "k_proj": head * shape.num_key_value_heads,
        "v_proj": head * shape.num_key_value_heads,
        "o_proj": shape.hidden_size,
    }
    tensors = {}
    for layer in range(shape.num_hidden_layers):
        for module, out in rows.items():
            key = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            a = generator.normal(0, shape.hidden_size**-0.5, (rank, shape.hidden_size))
            b = generator.normal(0, scale, (out, rank))
            tensors[f"{key}.lora_A.weight"] = a.astype(numpy.float16)
            tensors[f"{key}.lora_B.weight"] = b.astype(numpy.float16)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": preset.repository,
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": sorted(rows),
    }
    _write(folder / "adapter_config.json", config)
    _write(folder / "prompt.json", prompt_contract(chat_template, SPECIAL_TOKENS))
    _write(folder / "training.json", {"note": "random weights for tests", "seed": seed})
    (folder / "README.md").write_text("---\nlibrary_name: peft\n---\n# Random adapter for tests\n", encoding="utf-8")
    write_lora_gguf(folder, shape)
    return folder


def _read_base(preset: Preset) -> tuple[str, SimpleNamespace]:
    """Return (chat template, shape under transformers' names) of the embedded GGUF."""
    path = preset.embedded_gguf()
    assert path is not None, f"the embedded model is missing: {preset.install}"
    fields = HeaderReader(path).fields  # gguf-py's own takes 2.5 s

    def value(name: str):
        return fields[name].contents()

    shape = SimpleNamespace(
        model_type="llama",
        hidden_size=value("llama.embedding_length"),
        num_hidden_layers=value("llama.block_count"),
        num_attention_heads=value("llama.attention.head_count"),
        num_key_value_heads=value("llama.attention.head_count_kv"),
    )
    return value("tokenizer.chat_template"), shape


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
