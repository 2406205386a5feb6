"""Is the fine-tuned model better than its base? Both answer the same held-back questions; a report says it in words.

    python evaluate.py --data data/wikidoc --adapter runs/baseline --output reports/baseline
    python evaluate.py --data data/wikidoc --adapter user/name@revision --limit 200 --output reports/hub
    python evaluate.py --data data/wikidoc --compare runs/sweep/baseline runs/sweep/more-epochs --output reports/sweep
    python evaluate.py --data data/wikidoc --adapter runs/baseline --output reports/baseline --resume \\
        --choices questions.jsonl --gate assets/evaluation/gate.yaml --push-to-hub user/name

Answers are greedy and computed in batches through the engine. Writes OUTPUT/report.html (one page, no outside host),
report.md, metrics.json, predictions.jsonl and calibration.json, and prints a table and the verdict. An interrupted
run goes on with --resume, which also scores a finished one again, with other options. --gate FILE makes the exit status
1 when a threshold fails. --update-adapter puts the results into the adapter's folder and card.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medical_assistant.errors import run_script
from medical_assistant.evaluation.settings import EvaluateSettings
from medical_assistant.settings import parse_settings


def main(argv: Sequence[str] | None = None) -> int:
    settings = parse_settings(EvaluateSettings, argv, __doc__)

    from medical_assistant.evaluation.gate import gate_table
    from medical_assistant.evaluation.results import run_evaluation, table, update_adapter

    run, metrics = run_evaluation(settings)
    if settings.update_adapter or settings.push_to_hub:
        from medical_assistant.publish.card import write_card

        write_card(update_adapter(run, metrics), settings.push_to_hub.partition("@")[0] or None)
    print(table(metrics))
    print(f"report: {settings.output / 'report.html'}")
    if settings.gate:
        print(gate_table(metrics["gate"]))
        if not metrics["gate"]["passed"]:
            return 1
    if settings.push_to_hub:
        from medical_assistant.publish.adapter import publish_adapter

        print(f"published: {publish_adapter(Path(settings.adapter), settings.push_to_hub)}")
    return 0


if __name__ == "__main__":
    run_script(main)
