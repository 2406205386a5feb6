"""An encoder that the user names, for BERTScore and for the similarity of questions."""

from __future__ import annotations

from typing import Any

from medical_assistant.errors import UserError


def load_encoder(model: str, purpose: str, example: str) -> tuple[Any, Any]:
    """Return (network, tokenizer) of a folder or a name on the Hub, in float32, on the GPU where there is one.

    Raises `UserError` that names the `purpose` ("BERTScore") and an `example` of a name where it cannot be loaded.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        network = AutoModel.from_pretrained(model, dtype=torch.float32, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"The {purpose} model {model} cannot be loaded ({reason}): "
            f"name a folder that holds a model, or one on the Hub such as {example}."
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return network.eval().to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer
