"""The settings of `evaluate.py`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medical_assistant.errors import UserError
from medical_assistant.files import ASSETS
from medical_assistant.settings import required, setting

NONE = "none"
SAFETY_SET = ASSETS / "evaluation" / "safety.jsonl"


@dataclass(frozen=True)
class EvaluateSettings:
    data: Path = required("folder made by data_prep.py; its validation.jsonl is used")
    output: Path = required("new folder for the results")
    adapter: str = setting("", "adapter folder, or Hub repository (user/name or user/name@revision)")
    compare: tuple[str, ...] = setting((), "adapters or models, each against the base and against each other")
    model: str = setting("smollm2-135m", "the base: preset of assets/models.yaml, Hub id or folder")
    engine: str = setting("auto", "what runs the model", ["auto", "llama_cpp", "transformers"])
    limit: int = setting(0, "questions to use, from the start of the file; 0 is all")
    max_new_tokens: int = setting(256, "longest answer in tokens")
    seed: int = setting(42, "of resampling and of the halves of the calibration; answers are greedy")
    parallel: int = setting(16, "answers computed at a time; a GPU takes more")
    weights: str = setting("8bit", "llama.cpp: 8-bit copies, faster in batches, or as served", ["8bit", "served"])
    resamples: int = setting(10_000, "bootstrap resamples of the questions")
    resume: bool = setting(False, "go on with an interrupted run in --output, or score a finished one again")
    perplexity: bool = setting(True, "perplexity of the reference answers (needs torch)")
    choices: tuple[str, ...] = setting((), "multiple-choice files: question, options, answer")
    statements: str = setting("", "file of questions with must-have statements: question, must_have")
    judge: str = setting("", "address of an OpenAI-compatible server that judges statements")
    judge_model: str = setting("", "the model that the judge serves")
    safety: str = setting(str(SAFETY_SET), "file of harmful, ordinary and emergency messages; none: leave out")
    gate: str = setting("", "YAML file of thresholds; one that fails makes the exit status 1")
    show_references: bool = setting(True, "print the reference answers in the reports")
    update_adapter: bool = setting(False, "copy results into the adapter folder and rewrite its card")
    push_to_hub: str = setting("", "then publish the adapter folder: user/name")

    def as_json(self) -> dict[str, Any]:
        """Return the settings as JSON values; a path outside of the folder it was run in by its last part."""
        return {key: _shown(value) for key, value in asdict(self).items()}


def check_settings(settings: EvaluateSettings) -> None:
    """Raise `UserError` for values that cannot be, and for what would fail only after the answers are collected."""
    if min(settings.max_new_tokens, settings.parallel) < 1 or settings.limit < 0:
        raise UserError("--limit must be 0 or more, --max-new-tokens and --parallel 1 or more.")
    if settings.resamples < 1000:
        raise UserError("--resamples must be 1000 or more: fewer make no 95 % interval.")
    if bool(settings.adapter) == bool(settings.compare):
        raise UserError("Give either --adapter ADAPTER or --compare A B ...: what is to be compared with the base.")
    if settings.judge and not settings.statements:
        raise UserError("--judge judges statements: add --statements FILE.")
    changes_folder = settings.update_adapter or settings.push_to_hub
    if changes_folder and not (settings.adapter and Path(settings.adapter).is_dir()):
        raise UserError("--update-adapter and --push-to-hub need --adapter FOLDER: download the adapter first.")
    if settings.push_to_hub:
        from medical_assistant.hub.push import require_token, split_revision

        split_revision(settings.push_to_hub)
        require_token()


def _shown(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_shown(item) for item in value]
    if isinstance(value, Path) or (isinstance(value, str) and Path(value).is_absolute()):
        path = Path(value)
        if path.is_relative_to(ASSETS.parent):
            return path.relative_to(ASSETS.parent).as_posix()
        return path.name if path.is_absolute() or ".." in path.parts else path.as_posix()
    return value
