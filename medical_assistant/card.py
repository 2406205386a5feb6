"""The model card of an adapter folder: README.md with the Hub's YAML metadata.

Every figure comes from the folder's training.json and metrics.json.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from medical_assistant.errors import AdapterError, UserError
from medical_assistant.presets import Preset, find_preset

METRICS = {  # key in metrics.json: (name, metric of https://huggingface.co/metrics)
    "bleu": ("BLEU", "bleu"),
    "rouge1": ("ROUGE-1", "rouge"),
    "rouge2": ("ROUGE-2", "rouge"),
    "rougeL": ("ROUGE-L", "rouge"),
}
# https://huggingface.co/docs/hub/repositories-licenses; any other text is "other" with its name.
LICENSES = {
    "apache-2.0", "mit", "cc0-1.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "odc-by", "gpl-3.0", "bsd-3-clause", "openrail", "llama3.1", "gemma",
    "unknown",
}  # fmt: skip

# Settings that are said elsewhere in the card, or say where the run lay and how it was watched.
NOT_SHOWN = ("data", "output", "model", "experiment", "push_to_hub", "report_to", "logging_steps", "resume")

INTENDED_USE = """\
It answers general health questions in English, in plain language, for learning and for research on small
medical models. It does not diagnose, prescribe, or decide on treatment or on how urgent a problem is, and it
is not a medical device. Nobody should act on an answer without a health professional."""

LIMITS = """\
- It can be wrong and sound sure: doses, interactions, contraindications and names are the likeliest errors.
- BLEU and ROUGE count words shared with a reference answer. They say nothing about whether an answer is
  correct or safe, and no clinician has judged these answers.
- It knows what its base model and its training answers knew, with no date, no source and no newer guideline.
- It was trained on single questions in English: other languages, long conversations and personal records are
  outside of what it has seen.
- The adapter has no safety layer. An application must catch emergencies, poisoning and thoughts of suicide
  before the model is asked, as the Medical Assistant application does, and must show a disclaimer."""


def write_card(folder: str | Path, repository: str | None = None) -> Path:
    """Return the path of `folder`/README.md, written from training.json and metrics.json.

    Without metrics.json the card says that the adapter is not evaluated. `repository` is its
    Hub name (user/name), where it has one. Raises `AdapterError` when adapter_config.json or training.json is missing
    or is not JSON.
    """
    folder = Path(folder)
    config = _read_json(folder / "adapter_config.json")
    training = _read_json(folder / "training.json")
    metrics = _read_json(folder / "metrics.json") if (folder / "metrics.json").is_file() else {}
    preset = _base_preset(config, training)
    metadata = card_metadata(preset, training, metrics, repository)
    path = folder / "README.md"
    body = _body(preset, training, metrics, repository)
    path.write_text(f"---\n{metadata.to_yaml()}\n---\n\n{body}", encoding="utf-8")
    return path


def card_metadata(
    preset: Preset | None, training: Mapping[str, Any], metrics: Mapping[str, Any], repository: str | None
) -> ModelCardData:
    """Return the card's metadata; `model-index` holds the fine-tuned scores of `metrics`.

    Specification: https://github.com/huggingface/hub-docs/blob/main/modelcard.md
    """
    data = training.get("data") or {}
    source = str(data.get("source") or "")
    license_id, license_name = _license(data.get("license"))
    dataset = Path(source).name or "validation set"
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=source if _is_hub_id(source) else "local",
            dataset_name=f"{dataset}, {metrics.get('n', '?')} held-out questions",
            dataset_split="validation",
            metric_type=METRICS[key][1],
            metric_name=METRICS[key][0],
            metric_value=fine_tuned,
        )
        for key, _, fine_tuned in _scores(metrics)
        if key in METRICS
    ]
    return ModelCardData(
        base_model=preset.repository if preset else None,
        library_name="peft",
        pipeline_tag="text-generation",
        language="en",
        license=license_id,
        license_name=license_name,
        datasets=[source] if _is_hub_id(source) else None,
        tags=["medical", "lora", "peft", "trl", "sft", "gguf", "llama.cpp"],
        model_name=_title(preset, repository),
        eval_results=results or None,
        inference=False,  # no hosted widget: it would show answers without the application's safety layer
    )


def _body(
    preset: Preset | None, training: Mapping[str, Any], metrics: Mapping[str, Any], repository: str | None
) -> str:
    base = f"[{preset.repository}](https://huggingface.co/{preset.repository})" if preset else "a local model"
    sections = [
        f"# {_title(preset, repository)}",
        f"A LoRA adapter for {base} that answers health questions. **It gives general information and is no "
        "substitute for a doctor. In an emergency call your local emergency number.**",
        f"## Intended use\n\n{INTENDED_USE}",
        f"## Limits and safety\n\n{LIMITS}",
        f"## Results\n\n{_results(metrics)}",
        f"## Data\n\n{_data(training.get('data') or {})}",
        f"## Training\n\n{_training(training)}",
        f"## How to use it\n\n{_usage(preset, repository or 'user/repository')}",
        f"## Licence\n\n{_license_text(preset, training.get('data') or {})}",
    ]
    return "\n\n".join(sections) + "\n"


def _title(preset: Preset | None, repository: str | None) -> str:
    return repository.rpartition("/")[2] if repository else f"Medical adapter of {preset.name if preset else 'a model'}"


def _results(metrics: Mapping[str, Any]) -> str:
    rows = []
    for key, base, fine_tuned in _scores(metrics):
        change = f"{(fine_tuned - base) / base:+.0%}" if base > 0 else "-"
        rows.append((METRICS.get(key, (key, key))[0], _figure(base), _figure(fine_tuned), change))
    if not rows:
        return "Not evaluated yet: `evaluate.py` writes metrics.json, from which this section is made."
    note = (
        f"{metrics.get('n', 'An unknown number of')} held-out questions, greedy decoding, both models "
        "through the same engine and prompt. BLEU is sacreBLEU's corpus BLEU (0 to 100), ROUGE the F-measure "
        "with stemming, both against the reference answer alone."
    )
    chose = (metrics.get("data") or {}).get("checkpoint_rows")
    if chose is not None:
        note += f" {chose or 'None'} of them also chose the checkpoint."
    return _table(("Score", "Base model", "With this adapter", "Change"), rows) + f"\n\n{note}"


def _data(data: Mapping[str, Any]) -> str:
    labels = {
        "source": "Source",
        "revision": "Revision",
        "train_rows": "Training rows",
        "validation_rows": "Validation rows",
        "license": "Licence",
        "attribution": "Attribution",
        "manifest_sha256": "SHA-256 of manifest.json",
    }
    source = str(data.get("source") or "")
    shown = {**data, "source": source if _is_hub_id(source) else Path(source).name}  # no path of a machine
    return _table(("Item", "Value"), [(label, shown[key]) for key, label in labels.items() if shown.get(key)])


def _training(training: Mapping[str, Any]) -> str:
    settings = training.get("settings") or {}
    trainable, total = training.get("trainable_parameters"), training.get("total_parameters")
    share = f"{trainable:,} of {total:,} ({trainable / total:.2%})" if trainable and total else trainable
    rows = {
        "Experiment": training.get("experiment"),
        "Trainable parameters": share,
        "Training loss": training.get("train_loss"),
        "Best validation loss": training.get("validation_loss"),
        "Steps": training.get("steps"),
        "Minutes": training.get("minutes"),
        "Hardware": training.get("hardware"),
        **{key.replace("_", " "): value for key, value in settings.items() if key not in NOT_SHOWN},
    }
    # An absolute path tells a reader nothing, and who trained it where.
    shown = [
        (label, value)
        for label, value in rows.items()
        if value is not None and not (isinstance(value, str) and Path(value).is_absolute())
    ]
    versions = ", ".join(f"{name} {version}" for name, version in (training.get("versions") or {}).items())
    losses = [entry for entry in training.get("history") or () if "eval_loss" in entry]
    text = _table(("Setting", "Value"), shown) + "\n\nLoss is computed on the answer only."
    if len(losses) > 1:
        ends = (losses[0], losses[-1])
        first, last = (f"{_figure(entry['eval_loss'])} (step {entry.get('step')})" for entry in ends)
        text += f" The validation loss went from {first} to {last}."
    return text + (f" Versions: {versions}." if versions else "")


def _usage(preset: Preset | None, repository: str) -> str:
    base = preset.repository if preset else "BASE_MODEL"
    return f"""\
In the Medical Assistant application, with its safety layer: set `MODEL={preset.name if preset else base}` and
`ADAPTER={repository}@REVISION`, where REVISION is a commit hash of this repository.

With llama.cpp, on the base model in GGUF:

```bash
hf download {repository} adapter.gguf --local-dir .
llama-server -m base.gguf --lora adapter.gguf
```

With PEFT:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{base}")
model = AutoModelForCausalLM.from_pretrained("{base}")
model = PeftModel.from_pretrained(model, "{repository}")
```

Ask with the system prompt and the chat template of `prompt.json`: the adapter was trained on them."""


def _license_text(preset: Preset | None, data: Mapping[str, Any]) -> str:
    text = f"The training data is under {_cell(data.get('license') or 'a licence that was not recorded')}"
    text += f" ({_cell(data['attribution'])})" if data.get("attribution") else ""
    if preset and preset.license != "unknown":
        text += f". The base model is under {preset.license}"
    return text + ". Who shares the adapter must respect both."


def _base_preset(config: Mapping[str, Any], training: Mapping[str, Any]) -> Preset | None:
    """The base model as a preset with a Hub id, or None when it has no Hub id."""
    for model in (config.get("base_model_name_or_path"), training.get("model")):
        try:
            preset = find_preset(str(model))
        except UserError:
            continue
        if _is_hub_id(preset.repository):
            return preset
    return None


def _license(text: Any) -> tuple[str | None, str | None]:
    """Return (Hub licence id, None), or ("other", a name) for a licence that the Hub does not list."""
    if not text:
        return None, None
    name = re.sub(r"[^a-z0-9.]+", "-", str(text).lower()).strip("-")
    return (name, None) if name in LICENSES else ("other", name)


def _is_hub_id(text: str) -> bool:
    if text.count("/") != 1 or Path(text).suffix in (".json", ".jsonl", ".csv", ".parquet", ".gguf"):
        return False
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True


def _scores(metrics: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """(metric, base, fine-tuned) for each score that both models have; the four of METRICS first."""
    base, fine_tuned = metrics.get("base") or {}, metrics.get("fine_tuned") or {}
    keys = [*METRICS, *(key for key in base if key not in METRICS)]
    shared = [key for key in keys if _is_score(base.get(key)) and _is_score(fine_tuned.get(key))]
    return [(key, base[key], fine_tuned[key]) for key in shared]


def _is_score(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _figure(value: Any) -> str:
    """A number with four significant digits; other values as they are."""
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return f"{value:.4g}"


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    """One line of Markdown in which `value` cannot end the cell or open a tag."""
    if isinstance(value, (list, tuple)):
        value = ", ".join(str(item) for item in value)
    return " ".join(_figure(value).split()).replace("|", "\\|").replace("<", "&lt;")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path} cannot be read ({error}): give a folder of train.py.") from error
    if not isinstance(content, dict):
        raise AdapterError(f"{path} is not a JSON object: give a folder of train.py.")
    return content
