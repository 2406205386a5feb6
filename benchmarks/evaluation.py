"""How fast `evaluate.py` collects answers, side by side in one run: one by one, in batches, transformers.

    python benchmarks/evaluation.py --data data/wikidoc [--json FILE] [--questions 128] [--few 24]

The questions are the first of the validation set, the answers greedy, base and adapter. The slow ways answer the first
few questions, evaluate.py's batches all of them, batches of the weights as served a quarter; what is compared is the
time for 500 questions to both models at the speed of each way, with answers as long as those of evaluate.py.
"identical" is the part of the first few answers that are letter for letter those of the app's own engine asked one by
one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from medical_assistant.data.records import read_records  # noqa: E402
from medical_assistant.engines.base import Options  # noqa: E402
from medical_assistant.engines.llama_cpp import usable_cores  # noqa: E402
from medical_assistant.engines.load import find_gguf, load_batch_engine, load_engine  # noqa: E402
from medical_assistant.errors import UserError, run_script  # noqa: E402
from medical_assistant.models.presets import find_preset  # noqa: E402

MODEL = "smollm2-135m"
ADAPTER = ROOT / "assets" / "adapters" / MODEL
QUESTIONS = 500  # of the projection
REFERENCE, BATCHED, TRANSFORMERS = "engine, one by one", "evaluate.py, 8-bit copies", "transformers.generate"
ALL_CORES = "engine, one by one, all cores"
TARGETS = {REFERENCE: 3.0, TRANSFORMERS: 10.0}

Prompts = list[list[dict[str, str]]]
Reply = tuple[str, int]  # text, tokens
Way = Callable[[Prompts, bool], list[Reply]]  # prompts, adapter on


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    records = read_records(arguments.data / "validation.jsonl")
    prompts = [record["prompt"] for record in records[: arguments.questions]]
    few, quarter = prompts[: arguments.few], prompts[: -(-len(prompts) // 4)]
    tokens = arguments.max_new_tokens
    runs = {
        REFERENCE: measure_engine(few, tokens, None),
        ALL_CORES: measure_engine(few, tokens, usable_cores()),
        "batches, weights as served": measure_batches(quarter, tokens, arguments.parallel, False),
        BATCHED: measure_batches(prompts, tokens, arguments.parallel, True),
    }
    if not arguments.skip_transformers:
        runs[TRANSFORMERS] = measure_generate(few[: max(1, len(few) // 3)], tokens)
    report = summarise(runs, arguments)
    print(render(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of data_prep.py")
    parser.add_argument("--questions", type=int, default=128, help="of the batches (default: 128)")
    parser.add_argument("--few", type=int, default=24, help="of the slow ways (default: 24; transformers a third)")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="longest answer (default: 256)")
    parser.add_argument("--parallel", type=int, default=16, help="answers at a time in a batch (default: 16)")
    parser.add_argument("--skip-transformers", action="store_true", help="leave out transformers.generate")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args(argv)
    if not 1 <= arguments.few <= arguments.questions:
        raise UserError("--few must be at least 1, and at most --questions.")
    return arguments


def measure_engine(prompts: Prompts, tokens: int, threads: int | None) -> dict[str, Any]:
    """The app's engine asked as the app asks it, one question after the other; None is its own choice of threads."""
    with closing(load_engine(MODEL, ADAPTER, "llama_cpp", parallel=1, threads=threads)) as engine:

        def ask(some: Prompts, adapter: bool) -> list[Reply]:
            options = Options(adapter, tokens)
            replies = []
            for prompt in some:
                pieces = list(engine.stream(prompt, options))
                counted = sum(piece.logprob != 0.0 or bool(piece.text) for piece in pieces)
                replies.append(("".join(piece.text for piece in pieces).strip(), counted))
            return replies

        return time_both(ask, prompts)


def measure_batches(prompts: Prompts, tokens: int, parallel: int, eight_bit: bool) -> dict[str, Any]:
    settings: dict[str, Any] = {"parallel": parallel, "context_tokens": 768, "eight_bit": eight_bit}
    with closing(load_batch_engine(MODEL, ADAPTER, "llama_cpp", **settings)) as engine:

        def ask(some: Prompts, adapter: bool) -> list[Reply]:
            found = dict(engine.answer_all(some, Options(adapter, tokens)))
            return [(found[i].text.strip(), len(found[i].logprobs)) for i in range(len(some))]

        return time_both(ask, prompts)


def measure_generate(prompts: Prompts, tokens: int) -> dict[str, Any]:
    """`transformers.generate` with PEFT on the same weights, in the faster of bfloat16 and float32."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    gguf = find_gguf(find_preset(MODEL))
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    runs = []
    for dtype in (torch.bfloat16, torch.float32):
        dense: dict[str, Any] = {"dtype": dtype, "quantization_config": GgufConfig(dequantize=True)}
        base = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, **dense)
        model = PeftModel.from_pretrained(base, str(ADAPTER)).to(dtype).eval()

        def ask(some: Prompts, adapter: bool, model: Any = model) -> list[Reply]:
            (model.base_model.enable_adapter_layers if adapter else model.base_model.disable_adapter_layers)()
            replies = []
            for prompt in some:
                inputs = tokenizer.apply_chat_template(
                    prompt, add_generation_prompt=True, return_dict=True, return_tensors="pt"
                )
                ids = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)[
                    0, inputs["input_ids"].shape[1] :
                ]
                replies.append((tokenizer.decode(ids, skip_special_tokens=True).strip(), len(ids)))
            return replies

        runs.append({**time_both(ask, prompts), "dtype": str(dtype).removeprefix("torch.")})
    return max(runs, key=lambda run: run["base"]["tokens_per_s"])


def time_both(ask: Way, prompts: Prompts) -> dict[str, Any]:
    """Return {"base", "adapter"}: each {"tokens_per_s", "mean_tokens", "seconds", "questions", "answers"}."""
    ask(prompts[:1], False)  # loads what is loaded late
    result: dict[str, Any] = {}
    for name, adapter in (("base", False), ("adapter", True)):
        started_s = time.perf_counter()
        replies = ask(prompts, adapter)
        seconds = time.perf_counter() - started_s
        tokens = sum(count for _, count in replies)
        result[name] = {
            "tokens_per_s": tokens / seconds,
            "mean_tokens": tokens / len(replies),
            "seconds": seconds,
            "questions": len(replies),
            "answers": [text for text, _ in replies],
        }
    return result


def summarise(runs: dict[str, dict[str, Any]], arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the report: rows with tokens/s, the projected minutes and the ratio to `evaluate.py`; and the checks."""
    from medical_assistant.files import git_commit, package_versions

    lengths = {name: runs[BATCHED][name]["mean_tokens"] for name in ("base", "adapter")}
    projected_s = {
        way: sum(QUESTIONS * lengths[name] / run[name]["tokens_per_s"] for name in lengths) for way, run in runs.items()
    }
    rows = []
    for way, run in runs.items():
        same = [
            text == expected
            for name in lengths
            for text, expected in zip(run[name]["answers"], runs[REFERENCE][name]["answers"], strict=False)
        ]
        rows.append(
            {
                "way": way,
                "base_tokens_per_s": round(run["base"]["tokens_per_s"], 1),
                "adapter_tokens_per_s": round(run["adapter"]["tokens_per_s"], 1),
                "minutes": round(projected_s[way] / 60, 1),
                "evaluate_is_faster_by": round(projected_s[way] / projected_s[BATCHED], 2),
                "identical": round(sum(same) / len(same), 3),
                "questions": run["base"]["questions"],
                **({"dtype": run["dtype"]} if "dtype" in run else {}),
            }
        )
    checks = {
        way: {"value": rows_of["evaluate_is_faster_by"], "target": TARGETS[way]}
        for rows_of in rows
        if (way := rows_of["way"]) in TARGETS
    }
    return {
        "projected_questions": QUESTIONS,
        "mean_tokens": {name: round(value, 1) for name, value in lengths.items()},
        "max_new_tokens": arguments.max_new_tokens,
        "parallel": arguments.parallel,
        "cores": usable_cores(),
        "git_commit": git_commit(),
        "versions": package_versions(("xllamacpp", "torch", "transformers", "peft")),
        "rows": rows,
        "checks": {way: {**check, "met": check["value"] >= check["target"]} for way, check in checks.items()},
    }


def render(report: dict[str, Any]) -> str:
    lines = [f"{'':32}{'base tok/s':>11}{'adapter':>9}{'minutes':>9}{'ratio':>7}{'identical':>11}"]
    for row in report["rows"]:
        lines.append(
            f"{row['way']:32}{row['base_tokens_per_s']:>11.1f}{row['adapter_tokens_per_s']:>9.1f}{row['minutes']:>9.1f}"
            f"{row['evaluate_is_faster_by']:>7.2f}{row['identical']:>11.0%}"
        )
    for way, check in report["checks"].items():
        result = "met" if check["met"] else "MISSED"
        lines.append(f"evaluate.py is {check['value']:.2f} x {way}, target {check['target']:g}: {result}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main)
