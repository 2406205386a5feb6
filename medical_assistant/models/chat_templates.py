"""Chat templates that a model does not bring itself, and one way of tokenising for all engines.

Training records the template in the adapter's `prompt.json`. One that was chosen, by a preset or by the
user, starts with `CHOSEN` there; the engines then serve with it in place of the model's own.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from medical_assistant.errors import UserError
from medical_assistant.files import ASSETS

FOLDER = ASSETS / "chat_templates"
CHOSEN = "{#- chosen for training: serve with it in place of the model's own -#}"  # a comment: it renders as nothing
TEMPLATE_ARGUMENTS = {"enable_thinking": False}  # Qwen3 and its like; other templates ignore it
_WRITE_BOS = "{{- bos_token -}}"


def template_names() -> list[str]:
    """Return the names that `find_chat_template` knows."""
    return sorted(path.stem for path in FOLDER.glob("*.jinja"))


def find_chat_template(name_or_file: str) -> str:
    """Return the chat template, marked as `CHOSEN`, of a name in `assets/chat_templates` or of a file.

    A template that is marked already, from an adapter's `prompt.json`, is returned as it is. Raises `UserError`
    when there is none; the message has the nearest name, or all.
    """
    if is_chosen(name_or_file):
        return name_or_file
    names = template_names()
    path = FOLDER / f"{name_or_file}.jinja" if name_or_file in names else Path(name_or_file)
    try:
        return CHOSEN + path.read_text(encoding="utf-8").strip().removeprefix(CHOSEN)
    except (OSError, ValueError) as error:
        near = difflib.get_close_matches(name_or_file.lower(), names, n=1, cutoff=0.5)
        fix = f"did you mean {near[0]}?" if near else f"use one of {', '.join(names)}, or a file."
        raise UserError(f"There is no chat template {name_or_file!r}: {fix}") from error


def is_chosen(chat_template: str) -> bool:
    """Return whether the template was chosen for training, and is not the model's own."""
    return chat_template.startswith(CHOSEN)


def set_chat_template(tokenizer: Any, chosen: str | None, model: str) -> None:
    """Give `tokenizer` the template `chosen` (of `find_chat_template`), or check its own when that is None.

    A tokenizer that begins every text with BOS gets a template that writes it: TRL adds no BOS to a
    rendered chat, llama.cpp adds the missing one.

    Raises `UserError` when there is no template, when it writes the date into the prompt, when it
    cannot be rendered, or when a chosen one ends answers with a text that is no token of the model.
    """
    choose = f"choose one with --chat-template ({', '.join(template_names())})"
    own = tokenizer.chat_template
    template = chosen or (own.get("default") if isinstance(own, dict) else own)  # some bring one more for tools
    if not template:
        raise UserError(f"{model} has no chat template: {choose}.")
    if "strftime_now" in template:
        raise UserError(f"The chat template of {model} writes today's date into every prompt: {choose}.")
    tokenizer.chat_template = template
    try:
        prompt, answer = _probe(tokenizer)
        if _adds_bos(tokenizer) and prompt[:1] != [tokenizer.bos_token_id]:
            tokenizer.chat_template = CHOSEN + _WRITE_BOS + template.removeprefix(CHOSEN)
    except Exception as error:  # Jinja's, or what the template raises
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"The chat template of {model} cannot be rendered ({reason}): {choose}.") from error
    if chosen and _end(tokenizer, answer) is None:
        raise UserError(
            f"{model} would not stop: the chat template ends an answer with {tokenizer.decode(answer[1:])!r:.40}, "
            f"which is no token of it; {choose}."
        )


def end_of_answer(tokenizer: Any) -> int | None:
    """Return the id of the token with which the chat template ends an answer, None where it has no such token.

    None as well when the template cannot render a question and an answer alone.
    """
    from jinja2 import TemplateError

    try:
        return _end(tokenizer, _probe(tokenizer)[1])
    except (TemplateError, TypeError, ValueError):
        return None


def tokenize_as_llama_cpp(tokenizer: Any) -> None:
    """Make a SentencePiece `tokenizer` write a space before the text after each control token, as llama.cpp does.

    `transformers` 5 writes one at the start of the whole only (`legacy` false). TinyLlama was trained with the others:
    its own answers go on with "</s>", 29871 (the space), 13 (the newline). Tokenizers without that space (Gemma) or
    without SentencePiece (Llama 3, Qwen) stay as they are.
    """
    from tokenizers import normalizers, pre_tokenizers

    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    spaces = backend.pre_tokenizer if backend else None
    if not isinstance(spaces, pre_tokenizers.Metaspace) or spaces.prepend_scheme == "never" or spaces.split:
        return
    if backend.normalizer is None:
        # Metaspace's own "always" writes no space before a text that starts with one; llama.cpp does.
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.pre_tokenizer = None
        # A saved LlamaTokenizer (of a merged model) is built anew from this when it is loaded.
        tokenizer.legacy = tokenizer.init_kwargs["legacy"] = True


def _adds_bos(tokenizer: Any) -> bool:
    return tokenizer.bos_token_id is not None and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]


def _probe(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the ids of (a prompt, the completion that ends it)."""
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    prompt = tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template(chat, return_dict=False)
    return list(prompt), list(whole[len(prompt) :])


def _end(tokenizer: Any, completion: list[int]) -> int | None:
    """Return the last control token: one before the answer (Qwen's `<think>`) does not end it."""
    added = tokenizer.added_tokens_decoder
    return next((token for token in reversed(completion) if token in added and added[token].special), None)
