"""Public benchmarks through EleutherAI's lm-evaluation-harness, by the harness's own task names.

`lm-eval` (MIT) is no requirement: its tasks are fetched from the Hub when they run, and everything here works
without a network. It scores the resident model, with the LoRA off or on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from medical_assistant.errors import UserError
from medical_assistant.evaluation.scoring.knowledge import summarise_set
from medical_assistant.models.chat_templates import TEMPLATE_ARGUMENTS
from medical_assistant.prompts import SYSTEM_PROMPT

if TYPE_CHECKING:
    from medical_assistant.evaluation.scoring.bootstrap import Resampler
    from medical_assistant.evaluation.scoring.likelihood import Scorer

MEDICAL_TASKS = (
    "medqa_4options",
    "medmcqa",
    "pubmedqa",
    "mmlu_anatomy",
    "mmlu_clinical_knowledge",
    "mmlu_college_biology",
    "mmlu_college_medicine",
    "mmlu_medical_genetics",
    "mmlu_nutrition",
    "mmlu_professional_medicine",
    "mmlu_virology",
)
BATCH_SIZE = 8


def run_harness(
    scorer: Scorer,
    adapters: Mapping[str, bool],
    tasks: Sequence[str],
    limit: int = 0,
    resampler: Resampler | None = None,
) -> list[dict[str, Any]]:
    """Return sets of the `knowledge` section (see `knowledge.knowledge_section`), one a task.

    `adapters`: {candidate: whether the LoRA is on}. `tasks`: names of the harness (`MEDICAL_TASKS` are the medical
    ones), groups of tasks, or YAML files; `limit`: questions of each, 0 is all. The prompts are the harness's, in
    the chat template and after the project's system prompt; its `acc` is the accuracy, its `acc_norm`, where a
    task has one, the normalised accuracy (Gao et al. 2024, doi:10.5281/zenodo.12608602). `sha256` is that of the
    hashes of the questions.

    Raises `UserError` when `lm-eval` is not installed, for a task that it does not know or that cannot be fetched,
    and for one that has no accuracy.
    """
    manager, evaluate, wrap = _import_harness()
    samples: dict[str, dict[str, list[Mapping[str, Any]]]] = {}  # by task and candidate
    methods: dict[str, str] = {}
    for candidate, adapter in adapters.items():
        with scorer.switched(adapter) as model:
            wrapped = wrap(
                pretrained=model,
                tokenizer=scorer.tokenizer,
                max_length=scorer.context_tokens,
                batch_size=BATCH_SIZE,
                softmax_dtype="float32",
                chat_template_args=TEMPLATE_ARGUMENTS,
            )
            for task in tasks:
                results = _evaluated(evaluate, wrapped, manager, task, limit)
                for name, rows in results["samples"].items():
                    samples.setdefault(name, {})[candidate] = rows
                    methods[name] = _method(results, name)
    return [_task_set(name, methods[name], of_candidate, resampler) for name, of_candidate in samples.items()]


def _import_harness() -> tuple[Any, Any, Any]:
    """Return (a task manager, `simple_evaluate`, `HFLM`)."""
    from medical_assistant.evaluation.scoring.metrics import import_evaluate

    import_evaluate()  # the harness imports that package; the project's evaluate.py would hide it
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(
            f"lm-evaluation-harness cannot be imported ({error}): run `pip install lm-eval`, or leave out --harness."
        ) from error
    return TaskManager(), simple_evaluate, HFLM


def _evaluated(evaluate: Any, model: Any, manager: Any, task: str, limit: int) -> Mapping[str, Any]:
    try:
        results: Mapping[str, Any] = evaluate(
            model=model,
            tasks=[task],
            limit=limit or None,
            bootstrap_iters=0,  # the intervals are ours
            log_samples=True,
            system_instruction=SYSTEM_PROMPT,
            apply_chat_template=True,
            task_manager=manager,
        )
    except (KeyError, ValueError, OSError, RuntimeError) as error:  # of the harness, `datasets` and the Hub
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(
            f"The harness's task {task} cannot be run ({reason}): check its name (`lm-eval ls tasks`) and the network."
        ) from error
    return results


def _method(results: Mapping[str, Any], name: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        release = version("lm-eval")
    except PackageNotFoundError:  # a checkout on the path
        release = "of unknown version"
    task_version = results.get("versions", {}).get(name)
    return f"lm-evaluation-harness {release}, task version {task_version}, {results['n-shot'][name]}-shot"


def _task_set(
    name: str, method: str, samples: Mapping[str, Sequence[Mapping[str, Any]]], resampler: Resampler | None
) -> dict[str, Any]:
    of_candidate = {candidate: _of_first_filter(rows) for candidate, rows in samples.items()}
    first = next(iter(of_candidate.values()))
    if not first or "acc" not in first[0]:
        raise UserError(f"The harness's task {name} has no accuracy: choose a multiple-choice task.")
    hashes = [row["doc_hash"] for row in first]
    if any([row["doc_hash"] for row in rows] != hashes for rows in of_candidate.values()):
        raise UserError(f"The harness's task {name} asked the candidates other questions: run it again.")
    normalised = of_candidate if "acc_norm" in first[0] else {}
    return {
        **summarise_set(
            name,
            method,
            {candidate: [float(row["acc"]) for row in rows] for candidate, rows in of_candidate.items()},
            {candidate: [float(row["acc_norm"]) for row in rows] for candidate, rows in normalised.items()},
            [None] * len(first),
            sum(1 / len(row["arguments"]) for row in first) / len(first),
            resampler,
        ),
        "sha256": hashlib.sha256("\n".join(hashes).encode()).hexdigest(),
    }


def _of_first_filter(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """A task may score its answers in several ways ("filters"); the first is its main one."""
    return sorted((row for row in rows if row["filter"] == rows[0]["filter"]), key=lambda row: row["doc_id"])
