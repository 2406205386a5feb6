"""The model card of an adapter folder: README.md with the Hub's YAML metadata; its text is `assets/card.md.jinja`.

Every figure comes from the folder's adapter_config.json, training.json and metrics.json.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from medical_assistant.data.records import LOCAL_FORMATS
from medical_assistant.errors import AdapterError, UserError
from medical_assistant.evaluation.names import BASE, FINE_TUNED
from medical_assistant.evaluation.scoring.metrics import METRICS
from medical_assistant.files import ASSETS, read_json, write_whole
from medical_assistant.models.adapter import REPORT_FILE
from medical_assistant.models.presets import Preset, find_preset

TEMPLATE = ASSETS / "card.md.jinja"
# https://huggingface.co/docs/hub/repositories-licenses; any other text is "other" with its name.
LICENSES = {
    "apache-2.0", "mit", "cc0-1.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "odc-by", "gpl-3.0", "bsd-3-clause", "openrail", "llama3.1", "gemma",
    "unknown",
}  # fmt: skip
# Scores that the Hub's index gets, with the metric's name on https://huggingface.co/metrics.
INDEXED = {
    "bleu": "bleu", "chrf": "chrf", "rouge1": "rouge", "rouge2": "rouge", "rougeL": "rouge", "rougeLsum": "rouge",
    "token_f1": "f1", "exact_match": "exact_match", "perplexity": "perplexity",
}  # fmt: skip
# Settings that are said elsewhere in the card, or say where the run lay and how it was watched.
NOT_SHOWN = (
    "data", "output", "model", "experiment", "push_to_hub", "publish", "private", "merge", "gguf_type", "report_to",
    "logging_steps", "resume",
)  # fmt: skip
SECTIONS = ("comparison", "strata", "knowledge", "safety", "confidence")  # of metrics.json
Fields = Mapping[str, Any]


def write_card(folder: str | Path, repository: str | None = None, merged: Sequence[str] = ()) -> Path:
    """Return the path of `folder`/README.md, written from the folder's JSON files.

    Without metrics.json the card says that the adapter is not evaluated; with loss.png it shows it,
    with report.md it points there.
    `repository` is its Hub name (user/name), where it has one; `merged` names the merged GGUF files that
    are published beside the adapter. Raises `AdapterError` when adapter_config.json or training.json is
    missing, `UserError` when one is not JSON.
    """
    folder = Path(folder)
    for name in ("adapter_config.json", "training.json"):
        if not (folder / name).is_file():
            raise AdapterError(f"{folder} has no {name}: give a folder of train.py.")
    config, training = read_json(folder / "adapter_config.json"), read_json(folder / "training.json")
    metrics = read_json(folder / "metrics.json") if (folder / "metrics.json").is_file() else {}
    preset, data = _base_preset(config, training), training.get("data") or {}
    metadata = card_metadata(preset, training, metrics, repository, is_dora=bool(config.get("use_dora")))
    trainable, total = training.get("trainable_parameters"), training.get("total_parameters")
    settings = training.get("settings") or {}
    card = ModelCard.from_template(
        metadata,
        str(TEMPLATE),
        cell=cell,
        figure=figure,
        is_score=is_score,
        title=metadata.model_name,
        preset=preset,
        repository=repository,
        merged=merged,
        config=config,
        training=training,
        settings={key: value for key, value in settings.items() if key not in NOT_SHOWN},
        losses=[entry for entry in training.get("history") or () if "eval_loss" in entry],
        trainable=f"{trainable:,} of {total:,} ({trainable / total:.2%})" if trainable and total else trainable,
        metrics=metrics,
        scores=[(key, METRICS[key].name if key in METRICS else key, *pair) for key, *pair in _scores(metrics)],
        done={name: _section(metrics, name) for name in SECTIONS},
        data=data,
        source=_hub_source(data) or Path(str(data.get("source") or "")).name or None,  # no path of a machine
        has_plot=(folder / "loss.png").is_file(),
        report_file=REPORT_FILE if (folder / REPORT_FILE).is_file() else None,
    )
    path = folder / "README.md"
    write_whole(path, f"{str(card).rstrip()}\n")
    return path


def card_metadata(
    preset: Preset | None, training: Fields, metrics: Fields, repository: str | None, *, is_dora: bool = False
) -> ModelCardData:
    """Return the card's metadata; `model-index` holds the fine-tuned scores of `metrics`.

    Emissions are given only where training.json has a measurement (`co2_eq_grams`).
    Specification: https://github.com/huggingface/hub-docs/blob/main/modelcard.md
    """
    data = training.get("data") or {}
    source = _hub_source(data)
    # Any licence that the Hub does not list is "other" with a name.
    named = re.sub(r"[^a-z0-9.]+", "-", str(data.get("license") or "").lower()).strip("-")
    is_other = bool(data.get("license")) and named not in LICENSES
    grams = training.get("co2_eq_grams")
    # https://huggingface.co/docs/hub/model-cards-co2
    emissions = {"emissions": grams, "source": training.get("energy_method"), "training_type": "fine-tuning"}
    carbon: dict[str, Any] = {"co2_eq_emissions": {key: value for key, value in emissions.items() if value}}
    title = f"Medical adapter of {preset.name if preset else 'a model'}"
    return ModelCardData(
        base_model=preset.repository if preset else None,
        library_name="peft",
        pipeline_tag="text-generation",
        language="en",
        license="other" if is_other else named or None,
        license_name=named if is_other else None,
        datasets=[source] if source else None,
        tags=["medical", "lora", "peft", "trl", "sft", *(["dora"] if is_dora else ["gguf", "llama.cpp"])],
        model_name=repository.rpartition("/")[2] if repository else title,
        eval_results=_eval_results(metrics, data) or None,
        inference=False,  # no hosted widget: it would show answers without the application's safety layer
        **(carbon if is_score(grams) else {}),
    )


def _eval_results(metrics: Fields, data: Fields) -> list[EvalResult]:
    """The adapter's scores: those of the held-out questions that the Hub has a name for, and multiple choice."""
    file = Path(str(data.get("source") or "")).name or "validation set"
    held_out: dict[str, Any] = {
        "task_type": "text-generation",
        "dataset_type": _hub_source(data) or "local",
        "dataset_name": f"{file}, {metrics.get('n', '?')} held-out questions",
        "dataset_split": "validation",
    }
    results = [
        EvalResult(**held_out, metric_type=INDEXED[key], metric_name=METRICS[key].name, metric_value=fine_tuned)
        for key, _, fine_tuned in _scores(metrics)
        if key in INDEXED
    ]
    for found in _section(metrics, "knowledge").get("sets") or ():
        accuracy = ((found.get("accuracy") or {}).get(FINE_TUNED) or {}).get("accuracy")
        if is_score(accuracy):
            choice = EvalResult("multiple-choice", "local", found["name"], "accuracy", accuracy, metric_name="Accuracy")
            results.append(choice)
    return results


def _scores(metrics: Fields) -> list[tuple[str, float, float]]:
    """(metric, base, fine-tuned) for each score that both models have, in the order of the base's."""
    both = metrics.get("scores") or {}
    base, fine_tuned = both.get(BASE) or {}, both.get(FINE_TUNED) or {}
    shared = [key for key in base if is_score(base[key]) and is_score(fine_tuned.get(key))]
    return [(key, base[key], fine_tuned[key]) for key in shared]


def _section(metrics: Fields, name: str) -> Fields:
    """A section of metrics.json that was run, else {}."""
    found = metrics.get(name)
    return found if isinstance(found, Mapping) and found.get("status") == "done" else {}


def _base_preset(config: Fields, training: Fields) -> Preset | None:
    """The base model as a preset with a Hub id, or None when it has no Hub id."""
    for model in (config.get("base_model_name_or_path"), training.get("model")):
        with suppress(UserError):
            preset = find_preset(str(model))
            if _is_hub_id(preset.repository):
                return preset
    return None


def _hub_source(data: Fields) -> str | None:
    """The data set's Hub id, None for a local file."""
    source = str(data.get("source") or "")
    return source if _is_hub_id(source) else None


def _is_hub_id(text: str) -> bool:
    with suppress(HFValidationError):
        validate_repo_id(text)
        return text.count("/") == 1 and Path(text).suffix not in (*LOCAL_FORMATS, ".gguf")
    return False


def is_score(value: Any) -> bool:
    """Return whether `value` is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def figure(value: Any) -> str:
    """Return a number with four significant digits; other values as they are."""
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return f"{value:.4g}"


def cell(value: Any) -> str:
    """Return one line of Markdown in which `value` cannot end the cell of a table or open a tag."""
    if isinstance(value, (list, tuple)):
        value = ", ".join(str(item) for item in value)
    return " ".join(figure(value).split()).replace("|", "\\|").replace("<", "&lt;")
