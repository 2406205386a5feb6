"""One evaluation: what is asked, the answers, and what is needed to do it again."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medical_assistant.data.records import Record, read_records
from medical_assistant.engines.base import Options
from medical_assistant.engines.llama_cpp import usable_cores
from medical_assistant.engines.load import load_batch_engine
from medical_assistant.errors import UserError
from medical_assistant.evaluation.answers import AnswerStore, check_ids, open_run
from medical_assistant.evaluation.candidates import Candidate, check_candidates, engine_groups, plan_candidates
from medical_assistant.evaluation.judges.server import ServerJudge, load_judge
from medical_assistant.evaluation.judges.statements import StatementRow, read_statements, statement_records
from medical_assistant.evaluation.names import PREDICTIONS
from medical_assistant.evaluation.safety import SafetyRow, read_safety_set, safety_records
from medical_assistant.evaluation.scoring.metrics import signatures
from medical_assistant.evaluation.settings import NONE, EvaluateSettings, check_settings
from medical_assistant.files import file_sha256, git_commit, package_versions, read_json, write_json

PACKAGES = ("sacrebleu", "rouge-score", "evaluate", "textstat", "scikit-learn", "xllamacpp", "torch", "transformers")
MAIN, SAFETY, STATEMENTS = "main", "safety", "statements"
CONTEXT_STEP = 256  # tokens


@dataclass
class Run:
    """One evaluation: what `prepare` read and checked, and what `collect_answers` adds."""

    settings: EvaluateSettings
    candidates: list[Candidate]
    revisions: dict[str, str | None]
    sets: dict[str, list[Record]]  # records by the name of their set: MAIN, SAFETY, STATEMENTS
    safety_rows: list[SafetyRow]
    statement_rows: list[StatementRow]
    sha256: dict[str, str]  # of each set's file
    validation_rows: int  # in the whole validation file
    judge: ServerJudge | None  # of statements
    answers: dict[str, AnswerStore] = field(default_factory=dict)
    engines: dict[str, str] = field(default_factory=dict)  # by candidate
    weights: str = "as served"
    seconds: dict[str, float] = field(default_factory=dict)  # wall clock of the answers to MAIN, by candidate

    @property
    def records(self) -> list[Record]:
        return self.sets[MAIN]

    @property
    def keys(self) -> list[str]:
        return [candidate.key for candidate in self.candidates]

    @property
    def options(self) -> Options:
        return Options(max_new_tokens=self.settings.max_new_tokens, temperature=0.0)


def prepare(settings: EvaluateSettings) -> Run:
    """Return the run with all its questions read and all its candidates checked, its folder made or found.

    Raises `UserError` for whatever is wrong with settings, files, adapters or the output folder: before a model is
    loaded.
    """
    check_settings(settings)
    candidates = plan_candidates(settings.model, settings.adapter, settings.compare)
    revisions = check_candidates(candidates)
    files = {MAIN: settings.data / "validation.jsonl"}
    rows = read_records(files[MAIN])
    sets = {MAIN: rows[: settings.limit or None]}
    safety_rows: list[SafetyRow] = []
    statement_rows: list[StatementRow] = []
    if settings.safety != NONE:
        files[SAFETY] = Path(settings.safety)
        safety_rows = read_safety_set(files[SAFETY])
        sets[SAFETY] = safety_records(safety_rows)
    if settings.statements:
        files[STATEMENTS] = Path(settings.statements)
        statement_rows = read_statements(files[STATEMENTS])
        sets[STATEMENTS] = statement_records(statement_rows)
    for name, records in sets.items():
        check_ids(records, files[name])
    sha256 = {name: file_sha256(path) for name, path in files.items()}
    # Now: a judge that is down is found before hours of answers.
    judge = load_judge(settings.judge, settings.judge_model) if settings.judge else None
    run = Run(settings, candidates, revisions, sets, safety_rows, statement_rows, sha256, len(rows), judge)
    decoding = {key: value for key, value in asdict(run.options).items() if key != "adapter"}
    fingerprint = {
        "candidates": [{**asdict(candidate), "revision": revisions[candidate.key]} for candidate in candidates],
        "data": sha256,
        "decoding": {**decoding, "weights": settings.weights},
    }
    open_run(settings.output, fingerprint, settings.resume)
    for name in sets:
        path = settings.output / (PREDICTIONS if name == MAIN else f"{name}_{PREDICTIONS}")
        run.answers[name] = AnswerStore.open(path)
    return run


def collect_answers(run: Run) -> None:
    """Ask every candidate every question that has no answer yet, all sets of an engine while it is loaded."""
    settings = run.settings
    timing = settings.output / "timing.json"
    run.seconds = read_json(timing) if timing.is_file() else {}
    for group in engine_groups(run.candidates):
        adapter = next((candidate.adapter for candidate in group if candidate.adapter), None)
        engine = load_batch_engine(
            group[0].model,
            adapter,
            settings.engine,
            parallel=settings.parallel,
            context_tokens=_context_tokens(run),
            eight_bit=settings.weights == "8bit",
        )
        run.weights = engine.weights
        try:
            for candidate in group:
                run.engines[candidate.key] = engine.info.engine
                for name, records in run.sets.items():
                    options = Options(candidate.adapter is not None, run.options.max_new_tokens, 0.0)
                    seconds = run.answers[name].collect(engine, candidate, records, options)
                    if name == MAIN:
                        run.seconds[candidate.key] = run.seconds.get(candidate.key, 0.0) + seconds
                        write_json(timing, run.seconds)
        finally:
            engine.close()


def _context_tokens(run: Run) -> int:
    """Prompt and answer of the longest question: a token has at least one byte."""
    longest = max(
        sum(len(message["content"].encode()) for message in record["prompt"])
        for records in run.sets.values()
        for record in records
    )
    needed = longest + run.settings.max_new_tokens + 64  # 64: the template's own tokens
    return -(-needed // CONTEXT_STEP) * CONTEXT_STEP


def describe_run(run: Run) -> dict[str, Any]:
    """What was measured, and everything to measure it again."""
    settings = run.settings
    return {
        "n": len(run.records),
        "candidates": {
            candidate.key: {
                "label": candidate.label,
                "model": _name(candidate.model),
                "adapter": _name(candidate.adapter) if candidate.adapter else None,
                "adapter_revision": run.revisions[candidate.key],
                "engine": run.engines.get(candidate.key),
            }
            for candidate in run.candidates
        },
        "decoding": {
            "temperature": 0.0,
            "max_new_tokens": settings.max_new_tokens,
            "parallel": settings.parallel,
            "weights": run.weights,
        },
        "data": {
            "file": "validation.jsonl",
            "sha256": run.sha256[MAIN],
            "manifest_sha256": _hash_of(settings.data / "manifest.json"),
            "train_sha256": _hash_of(settings.data / "train.jsonl"),
            "checkpoint_rows": checkpoint_rows(settings.adapter, settings.data, run.validation_rows, len(run.records)),
        },
        **signatures(),
        "versions": package_versions(PACKAGES),
        "hardware": {"machine": platform.machine(), "cores": usable_cores()},
        "git_commit": git_commit(),
        "settings": settings.as_json(),
        "seconds": {key: round(value, 1) for key, value in run.seconds.items()},
    }


def _name(text: str) -> str:
    """A folder by its last part: where it lay tells a reader nothing."""
    return Path(text).name if Path(text).exists() else text


def _hash_of(path: Path) -> str | None:
    return file_sha256(path) if path.is_file() else None


def checkpoint_rows(adapter: str, data: Path, rows: int, used: int) -> int | None:
    """Return how many of the first `used` of `rows` validation rows also chose the adapter's checkpoint.

    `train.py` takes those from the end of the file. None when it cannot be known: an adapter that is
    not a local folder, or one that was trained on other data.
    """
    try:
        training = read_json(Path(adapter) / "training.json")
        if training["data"]["manifest_sha256"] != file_sha256(data / "manifest.json"):
            return None
        # Not data.validation_rows: rows that were too long are counted off there, wherever they stood.
        chose = training["settings"]["max_validation_rows"] or rows
    except (UserError, OSError, LookupError, TypeError):
        return None
    return max(0, used - (rows - min(chose, rows)))
