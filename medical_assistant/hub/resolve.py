"""An adapter as a user names it (a folder, `user/repository` or `user/repository@revision`), as a local folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medical_assistant.errors import AdapterError
from medical_assistant.models.adapter import Adapter, load_adapter
from medical_assistant.models.presets import Preset


@dataclass(frozen=True)
class ResolvedAdapter:
    """Where the files of a named adapter lie. They are not checked yet: `models.adapter.load_adapter` does."""

    folder: Path
    name: str  # as it was asked for
    commit: str | None = None  # on the Hub; None for a local folder


def resolve_adapter(adapter: str | Path) -> ResolvedAdapter:
    """Return the folder of an adapter, downloaded where it is named as a Hub repository.

    Raises `AdapterError` for a folder that does not exist; failures of the Hub as `hub.pull.pull_adapter`.
    """
    name, folder = str(adapter), Path(adapter)
    if folder.is_dir():
        return ResolvedAdapter(folder, name)
    if isinstance(adapter, Path) or name.startswith((".", "/", "~")) or name.partition("@")[0].count("/") != 1:
        raise AdapterError(f"There is no adapter folder {name}: give a folder of train.py or a Hub repository.")
    from medical_assistant.hub.pull import pull_adapter  # not at the top: a local folder needs no huggingface_hub

    pulled = pull_adapter(name)
    return ResolvedAdapter(pulled.folder, name, pulled.commit)


def open_adapter(adapter: str | Path, preset: Preset) -> Adapter:
    """Return the checked adapter for `preset`. Raises as `resolve_adapter` and `models.adapter.load_adapter`."""
    found = resolve_adapter(adapter)
    return load_adapter(found.folder, preset, found.name, found.commit)
