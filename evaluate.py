"""Compare the fine-tuned model with its base on held-back questions.

    python evaluate.py --data data/wikidoc --adapter runs/baseline --output reports/baseline
    python evaluate.py --data data/wikidoc --adapter user/name@revision --limit 200 --output reports/hub

Both answer greedily through the same engine, with the adapter off and on. Writes OUTPUT/metrics.json (BLEU and ROUGE
against the reference answers), OUTPUT/predictions.jsonl (both answers to each question) and prints a table.
An interrupted run goes on with --resume. --update-adapter puts the metrics into the adapter's folder and card.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medical_assistant.errors import UserError, run_script
from medical_assistant.settings import parse_settings, required, setting


@dataclass(frozen=True)
class EvaluateSettings:
    data: Path = required("folder made by data_prep.py; its validation.jsonl is used")
    adapter: str = required("adapter folder, or Hub repository (user/name or user/name@revision)")
    output: Path = required("new folder for the results")
    model: str = setting("smollm2-135m", "preset of assets/models.yaml, Hub id or folder")
    engine: str = setting("auto", "what runs the model", ["auto", "llama_cpp", "transformers"])
    limit: int = setting(0, "questions to use, from the start of the file; 0 is all")
    max_new_tokens: int = setting(256, "longest answer in tokens")
    parallel: int = setting(4, "questions at a time")
    resume: bool = setting(False, "go on with an interrupted run in --output")
    update_adapter: bool = setting(False, "copy metrics.json into the adapter folder and rewrite its card")


def main(argv: Sequence[str] | None = None) -> int:
    settings = parse_settings(EvaluateSettings, argv, __doc__)
    if settings.limit < 0 or settings.max_new_tokens < 1 or settings.parallel < 1:
        raise UserError("--limit must be 0 or more, --max-new-tokens and --parallel 1 or more.")
    if settings.update_adapter and not Path(settings.adapter).is_dir():
        raise UserError("--update-adapter needs an adapter folder: download the adapter first.")

    from medical_assistant import evaluation
    from medical_assistant.engines import load_engine
    from medical_assistant.records import read_records

    validation = settings.data / "validation.jsonl"
    rows = read_records(validation)
    records = rows[: settings.limit or None]
    answers = evaluation.Answers.open(settings.output, settings.resume)
    engine = load_engine(settings.model, settings.adapter, settings.engine)
    try:
        for adapter in (False, True):
            answers.collect(engine, records, adapter, settings.max_new_tokens, settings.parallel)
    finally:
        engine.close()
    metrics = evaluation.measure(answers, records, engine.info, validation, settings.max_new_tokens)
    metrics["data"]["checkpoint_rows"] = evaluation.checkpoint_rows(
        settings.adapter, settings.data, len(rows), len(records)
    )
    evaluation.write_results(settings.output, metrics, answers, records)
    if settings.update_adapter:
        evaluation.update_adapter(Path(settings.adapter), metrics)
    print(evaluation.table(metrics))
    return 0


if __name__ == "__main__":
    run_script(main)
