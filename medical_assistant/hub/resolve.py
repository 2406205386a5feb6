"""An adapter as a user names it: a folder, `user/repository` or `user/repository@revision`."""

from __future__ import annotations

from pathlib import Path

from medical_assistant.errors import AdapterError
from medical_assistant.models.adapter import Adapter, load_adapter
from medical_assistant.models.presets import Preset


def open_adapter(adapter: str | Path, preset: Preset) -> Adapter:
    """Return the checked adapter for `preset`, downloaded where it is named as a Hub repository.

    Raises `AdapterError` for a folder that does not exist, and as `models.adapter.load_adapter`; failures of the Hub
    as `hub.pull.pull_adapter`.
    """
    name, folder = str(adapter), Path(adapter)
    if folder.is_dir():
        return load_adapter(folder, preset, name)
    if isinstance(adapter, Path) or name.startswith((".", "/", "~")) or name.partition("@")[0].count("/") != 1:
        raise AdapterError(f"There is no adapter folder {name}: give a folder of train.py or a Hub repository.")
    from medical_assistant.hub.pull import pull_adapter  # not at the top: a local folder needs no huggingface_hub

    pulled = pull_adapter(name)
    return load_adapter(pulled.folder, preset, name, pulled.commit)
