"""The model card of an adapter folder: README.md with the Hub's YAML metadata.

Every figure comes from the folder's adapter_config.json, training.json and metrics.json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from medical_assistant.errors import AdapterError, UserError
from medical_assistant.files import write_whole
from medical_assistant.models.adapter import REPORT_FILE
from medical_assistant.models.presets import Preset, find_preset
from medical_assistant.publish import card_sections
from medical_assistant.publish.card_results import indexed, is_score, results
from medical_assistant.publish.card_sections import is_hub_id

# https://huggingface.co/docs/hub/repositories-licenses; any other text is "other" with its name.
LICENSES = {
    "apache-2.0", "mit", "cc0-1.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "odc-by", "gpl-3.0", "bsd-3-clause", "openrail", "llama3.1", "gemma",
    "unknown",
}  # fmt: skip


def write_card(folder: str | Path, repository: str | None = None, merged: Sequence[str] = ()) -> Path:
    """Return the path of `folder`/README.md, written from the folder's JSON files.

    Without metrics.json the card says that the adapter is not evaluated; with loss.png it shows it,
    with report.md it points there.
    `repository` is its Hub name (user/name), where it has one; `merged` names the merged GGUF files that
    are published beside the adapter. Raises `AdapterError` when adapter_config.json or training.json is
    missing or is not JSON.
    """
    folder = Path(folder)
    config = _read_json(folder / "adapter_config.json")
    training = _read_json(folder / "training.json")
    metrics = _read_json(folder / "metrics.json") if (folder / "metrics.json").is_file() else {}
    preset = _base_preset(config, training)
    metadata = card_metadata(preset, training, metrics, repository, is_dora=bool(config.get("use_dora")))
    data = training.get("data") or {}
    base = f"[{preset.repository}](https://huggingface.co/{preset.repository})" if preset else "a local model"
    report = f"\n\nAll of it: [{REPORT_FILE}]({REPORT_FILE})." if (folder / REPORT_FILE).is_file() else ""
    sections = [
        f"# {_title(preset, repository)}",
        f"A LoRA adapter for {base} that answers health questions. **It gives general information and is no "
        "substitute for a doctor. In an emergency call your local emergency number.**",
        f"## Intended use\n\n{card_sections.INTENDED_USE}",
        f"## Limits and safety\n\n{card_sections.LIMITS}",
        f"## Results\n\n{results(metrics)}{report}",
        f"## Data\n\n{card_sections.data(data)}",
        f"## Training\n\n{card_sections.training(training, config, (folder / 'loss.png').is_file())}",
        f"## How to use it\n\n{card_sections.usage(preset, repository or 'user/repository', config, merged)}",
        f"## Licence\n\n{card_sections.license_text(preset, data)}",
    ]
    path = folder / "README.md"
    body = "\n\n".join(sections)
    write_whole(path, f"---\n{metadata.to_yaml()}\n---\n\n{body}\n")
    return path


def card_metadata(
    preset: Preset | None,
    training: Mapping[str, Any],
    metrics: Mapping[str, Any],
    repository: str | None,
    *,
    is_dora: bool = False,
) -> ModelCardData:
    """Return the card's metadata; `model-index` holds the fine-tuned scores of `metrics`.

    Emissions are given only where training.json has a measurement (`co2_eq_grams`).
    Specification: https://github.com/huggingface/hub-docs/blob/main/modelcard.md
    """
    data = training.get("data") or {}
    source = str(data.get("source") or "")
    license_id, license_name = _license(data.get("license"))
    held_out = f"{Path(source).name or 'validation set'}, {metrics.get('n', '?')} held-out questions"
    entries = [
        EvalResult(
            task_type="text-generation" if not name else "multiple-choice",
            dataset_type=(source if is_hub_id(source) else "local") if not name else "local",
            dataset_name=name or held_out,
            dataset_split=None if name else "validation",
            metric_type=kind,
            metric_name=metric,
            metric_value=value,
        )
        for name, kind, metric, value in indexed(metrics)
    ]
    formats = ["dora"] if is_dora else ["gguf", "llama.cpp"]
    return ModelCardData(
        base_model=preset.repository if preset else None,
        library_name="peft",
        pipeline_tag="text-generation",
        language="en",
        license=license_id,
        license_name=license_name,
        datasets=[source] if is_hub_id(source) else None,
        tags=["medical", "lora", "peft", "trl", "sft", *formats],
        model_name=_title(preset, repository),
        eval_results=entries or None,
        inference=False,  # no hosted widget: it would show answers without the application's safety layer
        **_emissions(training),
    )


def _emissions(training: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata of https://huggingface.co/docs/hub/model-cards-co2, where carbon was measured."""
    grams = training.get("co2_eq_grams")
    if not is_score(grams):
        return {}
    entry = {"emissions": grams, "source": training.get("energy_method"), "training_type": "fine-tuning"}
    return {"co2_eq_emissions": {key: value for key, value in entry.items() if value}}


def _title(preset: Preset | None, repository: str | None) -> str:
    return repository.rpartition("/")[2] if repository else f"Medical adapter of {preset.name if preset else 'a model'}"


def _base_preset(config: Mapping[str, Any], training: Mapping[str, Any]) -> Preset | None:
    """The base model as a preset with a Hub id, or None when it has no Hub id."""
    for model in (config.get("base_model_name_or_path"), training.get("model")):
        try:
            preset = find_preset(str(model))
        except UserError:
            continue
        if is_hub_id(preset.repository):
            return preset
    return None


def _license(text: Any) -> tuple[str | None, str | None]:
    """Return (Hub licence id, None), or ("other", a name) for a licence that the Hub does not list."""
    if not text:
        return None, None
    name = re.sub(r"[^a-z0-9.]+", "-", str(text).lower()).strip("-")
    return (name, None) if name in LICENSES else ("other", name)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path} cannot be read ({error}): give a folder of train.py.") from error
    if not isinstance(content, dict):
        raise AdapterError(f"{path} is not a JSON object: give a folder of train.py.")
    return content
