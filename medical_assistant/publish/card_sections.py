"""The sections of a model card: each function returns Markdown made from the folder's JSON files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from medical_assistant.models.presets import Preset
from medical_assistant.publish.card_markdown import cell, figure, table

# Settings that are said elsewhere in the card, or say where the run lay and how it was watched.
NOT_SHOWN = (
    "data", "output", "model", "experiment", "push_to_hub", "publish", "private", "merge", "gguf_type", "report_to",
    "logging_steps", "resume",
)  # fmt: skip
VLLM_RANKS = (16, 32, 64, 128, 256, 320, 512)  # what vLLM's --max-lora-rank takes; 16 is its default

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


def data(data: Mapping[str, Any]) -> str:
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
    shown = {**data, "source": source if is_hub_id(source) else Path(source).name}  # no path of a machine
    return table(("Item", "Value"), [(label, shown[key]) for key, label in labels.items() if shown.get(key)])


def training(record: Mapping[str, Any], config: Mapping[str, Any], has_plot: bool) -> str:
    """The settings, the losses (as an image where there is one), and what the run took."""
    settings = record.get("settings") or {}
    trainable, total = record.get("trainable_parameters"), record.get("total_parameters")
    share = f"{trainable:,} of {total:,} ({trainable / total:.2%})" if trainable and total else trainable
    rows = {
        "Experiment": record.get("experiment"),
        "Adapter": _adapter_kind(config),
        "Trainable parameters": share,
        "Training loss": record.get("train_loss"),
        "Best validation loss": record.get("validation_loss"),
        "Steps": record.get("steps"),
        **{key.replace("_", " "): value for key, value in settings.items() if key not in NOT_SHOWN},
    }
    parts = [table(("Setting", "Value"), _shown(rows)), _losses(record)]
    if has_plot:
        parts.append("![Training and validation loss by step](loss.png)")
    return "\n\n".join([*parts, f"### Time and energy\n\n{_cost(record)}"])


def _losses(record: Mapping[str, Any]) -> str:
    text = "Loss is computed on the answer only."
    losses = [entry for entry in record.get("history") or () if "eval_loss" in entry]
    if len(losses) > 1:
        ends = (losses[0], losses[-1])
        first, last = (f"{figure(entry['eval_loss'])} (step {entry.get('step')})" for entry in ends)
        text += f" The validation loss went from {first} to {last}."
    versions = ", ".join(f"{name} {version}" for name, version in (record.get("versions") or {}).items())
    return text + (f" Versions: {versions}." if versions else "")


def _cost(record: Mapping[str, Any]) -> str:
    """What the run took, as far as it was measured; nothing is estimated here."""
    hardware = record.get("hardware")
    if isinstance(hardware, Mapping):
        hardware = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in hardware.items() if value)
    rows = {
        "Minutes": record.get("minutes"),
        "Hardware": hardware,
        "Peak memory (GiB)": record.get("peak_memory_gib"),
        "Training speed (tokens/s)": record.get("tokens_per_second"),
        "Energy (kWh)": record.get("energy_kwh"),
        "Measured by": record.get("energy_method") if record.get("energy_kwh") is not None else None,
        "Carbon (g CO2 equivalent)": record.get("co2_eq_grams"),
        "Commit of the code": record.get("git_commit"),
    }
    measured = table(("Item", "Value"), _shown(rows))
    if record.get("energy_kwh") is None:
        return f"{measured}\n\nEnergy and carbon were not measured."
    if record.get("co2_eq_grams") is None:
        return f"{measured}\n\nCarbon was not measured: it is the energy times the carbon intensity of the local grid."
    return measured


def _adapter_kind(config: Mapping[str, Any]) -> str | None:
    """The adapter in a phrase, from adapter_config.json: "rsLoRA, rank 16, alpha 32, on k_proj, q_proj"."""
    if not config.get("r"):
        return None
    kind = {(False, False): "LoRA", (True, False): "rsLoRA", (False, True): "DoRA", (True, True): "DoRA, rsLoRA"}[
        bool(config.get("use_rslora")), bool(config.get("use_dora"))
    ]
    parts = [kind, f"rank {config['r']}"]
    if config.get("lora_alpha") is not None:
        parts.append(f"alpha {config['lora_alpha']}")
    if isinstance(config.get("init_lora_weights"), str):
        parts.append(f"initialised by {config['init_lora_weights']}")
    targets = config.get("target_modules")
    if targets:
        parts.append("on " + (targets if isinstance(targets, str) else ", ".join(sorted(targets))))
    return ", ".join(parts)


def usage(preset: Preset | None, repository: str, config: Mapping[str, Any], merged: Sequence[str]) -> str:
    """How to load the adapter; `merged` names the merged GGUF files beside it."""
    base = preset.repository if preset else "BASE_MODEL"
    application = f"""\
In the Medical Assistant application, with its safety layer: set `MODEL={preset.name if preset else base}` and
`ADAPTER={repository}@REVISION`, where REVISION is a commit hash of this repository."""
    parts = [application, _peft_usage(base, repository)]
    if config.get("use_dora"):
        parts.append("Neither llama.cpp nor vLLM loads a DoRA adapter: merge it into the base first.")
    else:
        parts += [_llama_cpp_usage(preset, repository), _vllm_usage(base, repository, config.get("r"))]
    for name in merged:
        parts.append(
            f"With llama.cpp and no base model, from the merged weights:\n\n```bash\nhf download {repository} {name} "
            f"--local-dir .\nllama-server -m {name}\n```"
        )
    parts.append("Ask with the system prompt and the chat template of `prompt.json`: the adapter was trained on them.")
    return "\n\n".join(parts)


def _peft_usage(base: str, repository: str) -> str:
    return f"""\
With PEFT:

```python
import json

from huggingface_hub import hf_hub_download
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{base}")
model = AutoModelForCausalLM.from_pretrained("{base}")
model = PeftModel.from_pretrained(model, "{repository}")
with open(hf_hub_download("{repository}", "prompt.json"), encoding="utf-8") as file:
    prompt = json.load(file)
messages = [
    {{"role": "system", "content": prompt["system_prompt"]}},
    {{"role": "user", "content": "What are the symptoms of asthma?"}},
]
tokenizer.chat_template = prompt["chat_template"]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=256, do_sample=False)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```"""


def _llama_cpp_usage(preset: Preset | None, repository: str) -> str:
    base = ""
    if preset and preset.gguf and preset.gguf_repository:
        base = f"hf download {preset.gguf_repository} {preset.gguf} --local-dir . && mv {preset.gguf} base.gguf\n"
    return f"""\
With llama.cpp, on the base model in GGUF:

```bash
{base}hf download {repository} adapter.gguf --local-dir .
llama-server -m base.gguf --lora adapter.gguf
```"""


def _vllm_usage(base: str, repository: str, rank: Any) -> str:
    name = repository.rpartition("/")[2]
    limit = next((limit for limit in VLLM_RANKS if isinstance(rank, int) and limit >= rank), VLLM_RANKS[0])
    option = f" --max-lora-rank {limit}" if limit > VLLM_RANKS[0] else ""
    return f"""\
With vLLM, whose API then calls the adapter `{name}` and the base model by its own name:

```bash
vllm serve {base} --enable-lora --lora-modules {name}={repository}{option}
```"""


def license_text(preset: Preset | None, data: Mapping[str, Any]) -> str:
    text = f"The training data is under {cell(data.get('license') or 'a licence that was not recorded')}"
    text += f" ({cell(data['attribution'])})" if data.get("attribution") else ""
    if preset and preset.license != "unknown":
        text += f". The base model is under {preset.license}"
    return text + ". Who shares the adapter must respect both."


def is_hub_id(text: str) -> bool:
    if text.count("/") != 1 or Path(text).suffix in (".json", ".jsonl", ".csv", ".parquet", ".gguf"):
        return False
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True


def _shown(rows: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Rows that have a value, and none with an absolute path: it tells a reader nothing, and who trained where."""
    return [
        (label, value)
        for label, value in rows.items()
        if value is not None and not (isinstance(value, str) and Path(value).is_absolute())
    ]
