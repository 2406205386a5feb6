"""Which models answer in an evaluation, and the engines that run them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medical_assistant.errors import UserError
from medical_assistant.evaluation.names import BASE, FINE_TUNED
from medical_assistant.hub.resolve import open_adapter
from medical_assistant.models.presets import find_preset, load_presets


@dataclass(frozen=True)
class Candidate:
    """One model that answers: a base, or a base with an adapter on."""

    key: str  # in files and tables: "base", "fine_tuned", or a name made from an entry of --compare
    label: str
    model: str
    adapter: str | None = None  # folder or Hub repository; None for the model alone


def plan_candidates(model: str, adapter: str, compare: Sequence[str]) -> list[Candidate]:
    """Return the candidates, the base first: it is the reference of all comparisons.

    `adapter` alone gives "base" and "fine_tuned". Each entry of `compare` is an adapter of `model` (a folder with
    adapter_config.json, or a Hub repository), or a model of its own: a preset, a `.gguf` file, a folder of weights, or
    `model:user/name` on the Hub. Raises `UserError` for an entry given twice.
    """
    base = Candidate(BASE, "base", model)
    if not compare:
        return [base, Candidate(FINE_TUNED, "fine-tuned", model, adapter)]
    candidates = [base]
    for entry in compare:
        if entry in compare[: len(candidates) - 1]:
            raise UserError(f"--compare names {entry} twice: leave out one.")
        alone = _is_model(entry)
        name = entry.removeprefix("model:")
        label = Path(name).name if Path(name).exists() else name
        slug = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-") or "candidate"
        keys = (slug, *(f"{slug}-{number}" for number in range(2, len(candidates) + 2)))
        key = next(key for key in keys if key not in {candidate.key for candidate in candidates})
        candidates.append(Candidate(key, label, name if alone else model, None if alone else name))
    return candidates


def check_candidates(candidates: Sequence[Candidate]) -> dict[str, str | None]:
    """Return {key: revision of its adapter, None without one}.

    Raises `UserError` for an unknown model, `AdapterError` for an adapter that is missing, broken, or of another base
    or system prompt: before any answer is computed.
    """
    revisions: dict[str, str | None] = {}
    for candidate in candidates:
        preset = find_preset(candidate.model)
        revisions[candidate.key] = open_adapter(candidate.adapter, preset).revision if candidate.adapter else None
    return revisions


def engine_groups(candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """Return the candidates by engine: a base answers through the engine of the first adapter that is on it."""
    groups: list[list[Candidate]] = []
    for candidate in candidates:
        alone = (group for group in groups if len(group) == 1 and group[0].adapter is None)
        host = next((group for group in alone if candidate.adapter and group[0].model == candidate.model), None)
        if host:
            host.append(candidate)
        else:
            groups.append([candidate])
    return groups


def _is_model(entry: str) -> bool:
    if entry.startswith("model:") or entry in load_presets():
        return True
    path = Path(entry)
    return path.suffix == ".gguf" or (path.is_dir() and not (path / "adapter_config.json").is_file())
