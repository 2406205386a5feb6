"""The adapter folder: the unit that is trained, bundled, pushed, pulled and served."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medical_assistant.errors import AdapterError, UserError
from medical_assistant.files import read_json
from medical_assistant.models.chat_templates import is_chosen
from medical_assistant.models.gguf_check import check_lora_gguf
from medical_assistant.models.presets import Preset
from medical_assistant.prompts import SYSTEM_PROMPT, contract_difference

ADAPTER_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter.gguf",
    "prompt.json",
    "training.json",
    "metrics.json",
    "calibration.json",
    "report.md",
    "README.md",
    "loss.png",
)
GGUF_FILE = "adapter.gguf"  # required as well, but for DoRA
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
REQUIRED_FILES = (CONFIG_FILE, WEIGHTS_FILE, "prompt.json")
MAX_HEADER_BYTES = 100_000_000  # of safetensors: the library's own limit
CALIBRATION_FILE = "calibration.json"  # optional: `medical_assistant.chat.confidence`
REPORT_FILE = "report.md"  # optional: of the evaluation behind metrics.json


@dataclass(frozen=True)
class Adapter:
    """A checked adapter folder."""

    folder: Path
    name: str  # folder or repository, as asked for
    revision: str  # commit hash on the Hub, or the first 12 hex digits of the weights' SHA-256
    base_model: str  # Hub id
    prompt: Mapping[str, Any]  # content of prompt.json

    @property
    def gguf(self) -> Path:
        """The path of the LoRA for llama.cpp. Raises `AdapterError` when there is none, as for DoRA."""
        path = self.folder / GGUF_FILE
        if not path.is_file():
            raise AdapterError(
                f"{self.name} has no {GGUF_FILE}, llama.cpp cannot load a DoRA: use the transformers engine, or "
                "the merged GGUF that `train.py --merge` writes."
            )
        return path

    @property
    def chosen_template(self) -> str | None:
        """The chat template to serve with in place of the model's own, None when it was trained with that."""
        template = str(self.prompt.get("chat_template") or "")
        return template if is_chosen(template) else None

    def check_prompt(self, chat_template: str, special_tokens: Mapping[str, str]) -> None:
        """Raise `AdapterError` that names the difference when the server's prompt is not the trained one."""
        tokens = dict(special_tokens)
        served = {"system_prompt": SYSTEM_PROMPT, "chat_template": chat_template, "special_tokens": tokens}
        difference = contract_difference(self.prompt, served)
        if difference:
            raise AdapterError(f"Adapter {self.name} was trained with another prompt ({difference}): retrain it.")


def load_adapter(folder: Path, preset: Preset, name: str | None = None, revision: str | None = None) -> Adapter:
    """Return the checked adapter in a folder; `hub.resolve.open_adapter` takes a Hub repository as well.

    `name` is what the user called it (default: the folder's path), `revision` its commit on the Hub (default: a hash
    of its weights). Raises `AdapterError` when a file is missing or broken, or when the adapter was trained on another
    base model than `preset` or under another system prompt; the message names the file and the fix.
    """
    name = name or str(folder)
    for file in REQUIRED_FILES:
        if not (folder / file).is_file():
            raise AdapterError(f"Adapter {name} has no {file}: train or download it again.")
    try:
        config, prompt = read_json(folder / CONFIG_FILE), read_json(folder / "prompt.json")
    except UserError as error:
        raise AdapterError(str(error)) from error
    is_dora = bool(config.get("use_dora"))  # llama.cpp cannot load one
    if is_dora == (folder / GGUF_FILE).is_file():
        fault = "is a DoRA and has an" if is_dora else "has no"
        raise AdapterError(f"Adapter {name} {fault} {GGUF_FILE}: train or download it again.")
    base_model = str(config.get("base_model_name_or_path"))
    if base_model != preset.repository:
        raise AdapterError(
            f"Adapter {name} belongs to {base_model}, not to {preset.repository}: choose the other model or adapter."
        )
    if prompt.get("system_prompt") != SYSTEM_PROMPT:
        raise AdapterError(f"Adapter {name} was trained with another system prompt: retrain it.")
    _check_safetensors(folder / WEIGHTS_FILE)
    if not is_dora:
        check_lora_gguf(folder / GGUF_FILE)
    return Adapter(folder, name, revision or weights_hash(folder), base_model, prompt)


def _check_safetensors(path: Path) -> None:
    """The header (safetensors format: 8 bytes of length, then JSON) must account for every byte."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length < min(path.stat().st_size, MAX_HEADER_BYTES) else {}
        end = max(int(entry["data_offsets"][1]) for key, entry in header.items() if key != "__metadata__")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError, OverflowError) as error:
        raise AdapterError(f"{path} is broken: train or download the adapter again.") from error
    if path.stat().st_size != 8 + length + end:
        raise AdapterError(f"{path} is truncated: train or download the adapter again.")


def weights_hash(folder: Path) -> str:
    """Return the first 12 hex digits of the SHA-256 of the weights in an adapter folder."""
    return hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()[:12]
