"""Training speed: this project's trainer against the common notebook recipe and plain TRL, in one run.

    python benchmarks/training.py --data data/wikidoc
    python benchmarks/training.py --data data/wikidoc --rows 96 --json benchmarks/results/training.json

Each row trains the same model with the same LoRA and learning rate on the same rows, once through, in a process of its
own. "Useful" tokens are those of prompts and answers, no padding. The loss after it is that of the answers of the same
validation rows, measured by the same code. Run it on a machine that does nothing else.

notebook  transformers.Trainer, rows padded to 512 tokens, batches of 4, loss on prompt and answer alike
TRL       SFTTrainer on prompt and completion with all its defaults (batches of 8, gradient checkpointing)
ours      train.py's defaults (batches of 4)
packed    the same with --packing

Prediction before the first run (two CPU cores, SmolLM2-135M): a row has 127 tokens of 512, so the notebook computes 4
tokens for a useful one, and logits of all of them: ours 4.5 x as fast. TRL's random batches of 8 are 60 % longer than
their text, checkpointing adds a third, and its head scores prompts too: ours 3 x as fast.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from medical_assistant.errors import run_script  # noqa: E402

NOTEBOOK_LENGTH, NOTEBOOK_BATCH = 512, 4
VARIANTS = ("notebook", "TRL", "ours", "packed")
TARGETS = {"notebook": 3.0, "TRL": 2.0}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of data_prep.py")
    parser.add_argument("--model", default="smollm2-135m", help="preset, Hub id or folder")
    parser.add_argument("--rows", type=int, default=96, help="training rows (default: 96)")
    parser.add_argument("--validation-rows", type=int, default=32, help="rows of the loss after it (default: 32)")
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    options = parser.parse_args(argv)
    results = []
    for variant in VARIANTS:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            results.append(process.submit(measure, variant, options).result())
    print(table(results))
    for name, target in TARGETS.items():
        ratio = speed(results, "ours") / speed(results, name)
        print(f"ours is {ratio:.2f} x {name} (target {target:g}): {'met' if ratio >= target else 'NOT MET'}")
    if options.json:
        from medical_assistant.files import git_commit, package_versions
        from medical_assistant.training.record import PACKAGES

        content = {
            "model": options.model,
            "rows": options.rows,
            "git_commit": git_commit(),
            "versions": package_versions(PACKAGES),
            "results": results,
        }
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0


def measure(variant: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the measurement of one variant: tokens/s, seconds, peak memory in GiB, losses before and after."""
    import torch

    from medical_assistant.data.records import read_records
    from medical_assistant.models import loading
    from medical_assistant.models.presets import find_preset
    from medical_assistant.training import data as training_data
    from medical_assistant.training import record
    from medical_assistant.training import trainer as training
    from medical_assistant.training.estimate import cuda_memory
    from medical_assistant.training.settings import plan_runs

    preset = find_preset(options.model)
    with tempfile.TemporaryDirectory() as folder:
        given = {
            "data": options.data,
            "output": Path(folder),
            "model": options.model,
            "learning_rate": options.learning_rate,
            "lr_scheduler_type": "constant",
            "warmup_steps": 0.0,
            "max_train_rows": options.rows,
            "max_validation_rows": options.validation_rows,
            "packing": variant == "packed",
            "quantize": "none",
            "report_to": "none",
        }
        run = plan_runs(given, preset, cuda_memory())[0]
        tokenizer = loading.load_tokenizer(preset)
        data = training_data.load_training_data(run, tokenizer)
        model = loading.load_model(preset, "none")
        if variant in ("ours", "packed"):
            trainer = training.make_trainer(model, tokenizer, run, data)
        else:
            records = read_records(options.data / "train.jsonl")[: options.rows]
            make = notebook_trainer if variant == "notebook" else trl_trainer
            trainer = make(model, tokenizer, records, run)
        trainer.args.eval_strategy = trainer.args.save_strategy = "no"
        trainer.args.load_best_model_at_end = False
        before = answer_loss(trainer.model, data.validation)
        record.reset_peak_memory()
        start = time.perf_counter()
        trainer.train()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        useful = sum(len(ids) for ids in data.train["input_ids"])
        if variant == "packed":
            useful = sum(len(ids) for ids in trainer.train_dataset["input_ids"])
        return {
            "variant": variant,
            "useful_tokens": useful,
            "seconds": round(seconds, 2),
            "useful_tokens_per_second": round(useful / seconds, 1),
            "peak_memory_gib": round(record.peak_memory(), 2),
            "steps": trainer.state.global_step,
            "loss_before": round(before, 4),
            "loss_after": round(answer_loss(trainer.model, data.validation), 4),
            "hardware": record.hardware(),
        }


def notebook_trainer(model: Any, tokenizer: Any, records: list[dict[str, Any]], run: Any) -> Any:
    """Return the recipe of most fine-tuning notebooks: rows padded to one length, loss on all their text."""
    import torch
    from datasets import Dataset
    from peft import get_peft_model
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

    rows = [
        tokenizer.apply_chat_template(
            record["prompt"] + record["completion"],
            return_dict=True,
            padding="max_length",
            max_length=NOTEBOOK_LENGTH,
            truncation=True,
        )
        for record in records
    ]
    return Trainer(
        model=get_peft_model(model, run.lora),
        args=TrainingArguments(
            output_dir=str(run.output / "notebook"),
            per_device_train_batch_size=NOTEBOOK_BATCH,
            num_train_epochs=1,
            learning_rate=run.trainer.learning_rate,
            lr_scheduler_type="constant",
            bf16=model.dtype == torch.bfloat16,
            fp16=model.dtype == torch.float16,
            use_cpu=not torch.cuda.is_available(),
            seed=run.trainer.seed,
            report_to="none",
        ),
        train_dataset=Dataset.from_list([{key: row[key] for key in ("input_ids", "attention_mask")} for row in rows]),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )


def trl_trainer(model: Any, tokenizer: Any, records: list[dict[str, Any]], run: Any) -> Any:
    """Return TRL's trainer as it is, for one epoch at the common learning rate."""
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    return SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(run.output / "trl"),
            num_train_epochs=1,
            learning_rate=run.trainer.learning_rate,
            lr_scheduler_type="constant",
            use_cpu=not torch.cuda.is_available(),
            seed=run.trainer.seed,
            report_to="none",
        ),
        train_dataset=Dataset.from_list([{key: record[key] for key in ("prompt", "completion")} for record in records]),
        processing_class=tokenizer,
        peft_config=run.lora,
    )


def answer_loss(model: Any, rows: Any) -> float:
    """Return the mean negative log-likelihood of the answers' tokens, row by row through the model's own layers."""
    import torch
    from torch.nn.functional import cross_entropy

    base = model.get_base_model()
    training, device = model.training, base.get_output_embeddings().weight.device
    model.eval()
    total, tokens = 0.0, 0
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor([row["input_ids"]], device=device)
            labels = torch.tensor(row["labels"], device=device)[1:]
            learnt = labels != -100
            hidden = base.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0, :-1][learnt]
            logits = base.get_output_embeddings()(hidden.to(base.get_output_embeddings().weight.dtype)).float()
            total += cross_entropy(logits, labels[learnt], reduction="sum").item()
            tokens += int(learnt.sum())
    model.train(training)
    return total / tokens


def speed(results: Sequence[dict[str, Any]], variant: str) -> float:
    """Return the useful tokens a second of `variant`."""
    return float(next(row for row in results if row["variant"] == variant)["useful_tokens_per_second"])


def table(results: Sequence[dict[str, Any]]) -> str:
    """Return the results as a Markdown table; the last column is the speed over the notebook's."""
    lines = [
        "| who trains | useful tokens/s | of notebook | peak memory (GiB) | steps | loss before | loss after |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    reference = speed(results, "notebook")
    for row in results:
        lines.append(
            f"| {row['variant']} | {row['useful_tokens_per_second']:.0f} "
            f"| {row['useful_tokens_per_second'] / reference:.2f} | {row['peak_memory_gib']:.2f} | {row['steps']} "
            f"| {row['loss_before']:.3f} | {row['loss_after']:.3f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main)
