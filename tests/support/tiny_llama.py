"""A random two-layer Llama that both transformers and llama.cpp load, and PEFT adapters of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from medical_assistant.models.gguf_lora import write_lora_gguf
from medical_assistant.models.presets import Preset
from medical_assistant.prompts import prompt_contract

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LAYERS, HIDDEN, WIDE, HEADS, KV_HEADS = 2, 128, 176, 4, 2  # 176 is no multiple of a block of 32


def byte_tokens() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return [*SPECIAL, *sorted(ByteLevel.alphabet()), "he"]


def make_base(folder: Path, chat_template: str = "{{ 'another' }}", **options) -> Preset:
    """Return a random Llama with a tokenizer of bytes, in `folder`; `base.gguf` in it is the same in Q4_1.

    `options` are those of `LlamaConfig`.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokens = byte_tokens()
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, [("h", "e")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=SPECIAL[1], eos_token=SPECIAL[2], chat_template=chat_template
    ).save_pretrained(folder)
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": len(tokens),
        "hidden_size": HIDDEN,
        "intermediate_size": WIDE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "initializer_range": 0.1,  # more than usual: probabilities that are far from equal
    }
    model = LlamaForCausalLM(LlamaConfig(**{**shape, **options}))
    model.save_pretrained(folder)
    write_base_gguf(folder / "base.gguf", model)
    return Preset(name="tiny", repository=str(folder))


def write_base_gguf(path: Path, model) -> None:
    """Written without the code under test: names and row order as in llama.cpp's convert_hf_to_gguf.py."""
    import gguf

    tokens, config = byte_tokens(), model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny base")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_1)
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(["h e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template("another template")
    layer = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj"}
    layer |= {"attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj"}
    layer |= {"ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    names |= {f"blk.{n}.{key}": f"model.layers.{n}.{value}" for n in range(LAYERS) for key, value in layer.items()}
    state = model.state_dict()
    for name, module in names.items():
        values = state[f"{module}.weight"].numpy()
        if name.endswith(("attn_q", "attn_k")):
            heads = HEADS if name.endswith("q") else KV_HEADS
            half = values.shape[0] // heads // 2
            values = values.reshape(heads, 2, half, HIDDEN).transpose(0, 2, 1, 3).reshape(values.shape)
        kind = gguf.GGMLQuantizationType.F32
        if values.ndim == 2 and values.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q4_1
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
    save_gguf(writer)


def save_gguf(writer) -> None:
    """Write all that a `gguf.GGUFWriter` holds."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make_peft_adapter(base: Preset, folder: Path, **options) -> Path:
    """Return `folder` with an adapter of random weights, large enough to change every answer."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base.repository)
    options = {"target_modules": "all-linear", **options}
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, task_type="CAUSAL_LM", **options))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
        if "magnitude" in name:
            parameter.data *= torch.rand_like(parameter) + 0.5
    model.save_pretrained(folder)
    if not options.get("use_dora"):
        write_lora_gguf(folder, model.config)
    contract = prompt_contract(TEMPLATE, {"bos_token": SPECIAL[1], "eos_token": SPECIAL[2]})
    (folder / "prompt.json").write_text(json.dumps(contract))
    return folder
