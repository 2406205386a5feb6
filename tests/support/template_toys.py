"""Toys of the families of models: no weights can be had here, but what tells their tokenizers apart can be made.

Each has two random layers, a vocabulary learnt from a few sentences, and the real family's control tokens, splitting,
spaces and metadata, as a folder for transformers and as a GGUF.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

from tests.support.tiny_llama import save_gguf

CORPUS = [
    "You are a medical information assistant. Answer health questions accurately and in plain language.",
    "You do not replace a doctor. How is asthma treated? What are the symptoms of influenza in 2024?",
    "Asthma is treated with inhaled medicines, and the dose of 125 mg depends on how severe it is.",
    "system user assistant model\n\nSee a doctor if the fever lasts more than 3 days:\n- café, naïve, Sjögren\n",
]
WIDTH, LAYERS, HEADS, CONTEXT = 64, 2, 2, 1024

# The split patterns of the models' tokenizer.json files; llama.cpp knows them as `pre`.
_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_2 = _LLAMA_3.replace("{1,3}", "")


@dataclass(frozen=True)
class Family:
    """What tells the tokenizer of one model family from another."""

    template: str  # name in assets/chat_templates
    control: tuple[str, ...]
    bos: str | None
    eos: str
    sentencepiece: bool = False
    space_prefix: bool = False  # SentencePiece: "▁" before the text
    user_defined: tuple[str, ...] = ()
    tokenizer_class: str = "PreTrainedTokenizerFast"  # of tokenizer_config.json
    pre: str = ""  # byte-level: llama.cpp's name of `pattern`
    pattern: str = ""
    adds_bos: bool = True


FAMILIES = [
    # TinyLlama-1.1B-Chat: `<|user|>` is no token; "legacy" is false.
    Family("zephyr", ("<unk>", "<s>", "</s>"), "<s>", "</s>", True, True, tokenizer_class="LlamaTokenizer"),
    Family("mistral", ("<unk>", "<s>", "</s>", "[INST]", "[/INST]"), "<s>", "</s>", True, True),
    Family(
        "gemma",
        ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"),
        "<bos>",
        "<eos>",
        True,
        user_defined=("\n\n", "\n\n\n", "<table>"),
        tokenizer_class="GemmaTokenizer",
    ),
    Family(
        "chatml",
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        None,
        "<|im_end|>",
        tokenizer_class="Qwen2Tokenizer",
        pre="qwen2",
        pattern=_QWEN_2,
        adds_bos=False,
    ),
    Family(
        "llama-3",
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|begin_of_text|>",
        "<|eot_id|>",
        pre="llama-bpe",
        pattern=_LLAMA_3,
    ),
]


def make_toy(folder: Path, family: Family, chat_template: str | None = None) -> Path:
    """Return `folder`, filled with a random model, its tokenizer and `model.gguf`; both carry `chat_template`."""
    tokenizer, scores = _sentencepiece(family) if family.sentencepiece else _byte_level(family)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": family.bos, "eos_token": family.eos, "unk_token": "<unk>" if family.sentencepiece else None}
    config = {
        "tokenizer_class": family.tokenizer_class,
        "legacy": False,
        "clean_up_tokenization_spaces": False,
        **names,
    }
    if chat_template:
        config["chat_template"] = chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    _write_model(folder, tokenizer.get_vocab_size())
    _write_gguf(folder / "model.gguf", family, tokenizer, scores, chat_template)
    return folder


def _sentencepiece(family: Family) -> tuple[Tokenizer, list[float]]:
    """Return (tokenizer, score of each token), in the form that transformers' converter gives a SentencePiece BPE."""
    from transformers.tokenization_utils_base import generate_merges

    fixed = [*family.control, *(f"<0x{byte:02X}>" for byte in range(256)), *family.user_defined]
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    learner.train_from_iterator(CORPUS, BpeTrainer(vocab_size=240, show_progress=False))
    learnt = sorted(learner.get_vocab(), key=learner.token_to_id)
    # SentencePiece numbers merged pieces first, then characters; a newline has no piece but its byte.
    learnt = [p for p in learnt if len(p) > 1] + [p for p in learnt if len(p) == 1]
    pieces = fixed + [p for p in learnt if "\n" not in p and p not in fixed]
    scores = [0.0] * len(fixed) + [-float(i) for i in range(len(pieces) - len(fixed))]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    merges = generate_merges(vocabulary, dict(zip(pieces, scores, strict=True)), skip_tokens=set(fixed))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    decoder: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if family.space_prefix:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        decoder.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(decoder)
    _add_control(tokenizer, family)
    return tokenizer, scores


def _byte_level(family: Family) -> tuple[Tokenizer, list[float]]:
    """Return (tokenizer, no scores)."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=family.pre == "llama-bpe"))
    split = pre_tokenizers.Split(Regex(family.pattern), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    _add_control(tokenizer, family)
    return tokenizer, []


def _add_control(tokenizer: Tokenizer, family: Family) -> None:
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in family.control])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in family.user_defined])
    if family.bos and family.adds_bos:
        ids = [(family.bos, tokenizer.token_to_id(family.bos))]
        tokenizer.post_processor = TemplateProcessing(f"{family.bos} $A", special_tokens=ids)


def _write_model(folder: Path, vocabulary: int) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=CONTEXT,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def _write_gguf(path: Path, family: Family, tokenizer: Tokenizer, scores: list[float], template: str | None) -> None:
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(2 * WIDTH)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama" if family.sentencepiece else "gpt2")
    writer.add_tokenizer_pre("default" if family.sentencepiece else family.pre)
    writer.add_token_list(tokens)
    writer.add_token_types([_token_type(token, family) for token in tokens])
    if family.sentencepiece:
        writer.add_token_scores(scores)
        writer.add_add_space_prefix(family.space_prefix)
        writer.add_unk_token_id(vocabulary["<unk>"])
    else:
        writer.add_token_merges([" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]])
    # A converter writes Qwen's padding token as BOS.
    writer.add_bos_token_id(vocabulary[family.bos or "<|endoftext|>"])
    writer.add_eos_token_id(vocabulary[family.eos])
    writer.add_add_bos_token(family.adds_bos)
    if template:
        writer.add_chat_template(template)
    random = numpy.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        values = numpy.ones(shape) if len(shape) == 1 else random.normal(0, WIDTH**-0.5, shape)
        writer.add_tensor(name, values.astype(numpy.float32))

    add("token_embd.weight", len(tokens), WIDTH)
    add("output.weight", len(tokens), WIDTH)
    add("output_norm.weight", WIDTH)
    for layer in range(LAYERS):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{part}.weight", WIDTH, WIDTH)
        add(f"blk.{layer}.attn_norm.weight", WIDTH)
        add(f"blk.{layer}.ffn_norm.weight", WIDTH)
        add(f"blk.{layer}.ffn_gate.weight", 2 * WIDTH, WIDTH)
        add(f"blk.{layer}.ffn_up.weight", 2 * WIDTH, WIDTH)
        add(f"blk.{layer}.ffn_down.weight", WIDTH, 2 * WIDTH)
    save_gguf(writer)


def _token_type(token: str, family: Family) -> gguf.TokenType:
    if token == "<unk>":
        return gguf.TokenType.UNKNOWN
    if token in family.control:
        return gguf.TokenType.CONTROL
    if token in family.user_defined:
        return gguf.TokenType.USER_DEFINED
    if family.sentencepiece and token.startswith("<0x"):
        return gguf.TokenType.BYTE
    return gguf.TokenType.NORMAL


def family_of(name: str) -> Family:
    return next(family for family in FAMILIES if family.template == name)
