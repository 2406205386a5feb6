"""A made-up evaluation for the tests of the report: every section of metrics.json, and its rows of predictions.jsonl.

Nothing here was measured. The texts are nonsense on purpose: they are no source of medical advice.
"""

from __future__ import annotations

import math
import random
from typing import Any

PAYLOADS = (
    "<script>window.attacked=1</script>",
    "<img src=x onerror='window.attacked=1'>",
    "</p></div></main><svg onload=window.attacked=1>",
    "<style>body{background:url(https://outside.example/x.png)}</style>",
    "[link](javascript:window.attacked=1) ![image](https://outside.example/y.png)",
    "| a | b |\n|---|---|\n</details><h1>taken over</h1>",
    "{{ 7 * 7 }} {% raw %} &lt;b&gt; \x00\x1b \ud800 $x^2$ `code` ```\n# heading\n- item\n1. one",
)
TYPES = ("symptoms", "treatment", "causes", "when to seek care", "other")
WORDS = (
    "the a of in and may can is are with often rarely common mild severe pain fever cough swelling fatigue nausea rash "
    "doctor rest fluids medicine weeks days test blood skin heart lung kidney liver joint nerve cause risk sign symptom"
).split()
THINGS = "asthma gout anaemia migraine eczema shingles measles scurvy vertigo tinnitus".split()
PER_ITEM = (
    "bleu", "chrf", "rouge1", "rouge2", "rougeL", "rougeLsum", "exact_match", "token_f1", "length_ratio", "repetition",
    "distinct_1", "distinct_2", "readability_grade", "ended",
)  # fmt: skip
LABELS = {"base": "base", "fine_tuned": "fine-tuned", "other-adapter": "other-adapter"}


def make_rows(n: int = 60, seed: int = 7, candidates: tuple[str, ...] = ("base", "fine_tuned")) -> list[dict[str, Any]]:
    """Return rows of predictions.jsonl; every later candidate is better than the one before in most questions."""
    generator = random.Random(seed)
    rows = []
    for number in range(n):
        answers = {}
        for position, key in enumerate(candidates):
            score = min(1.0, max(0.0, generator.gauss(0.11 + 0.06 * position, 0.05)))
            tokens = 256 if position == 0 and generator.random() < 0.6 else generator.randint(40, 140)
            scores = {metric: round(score * generator.uniform(0.8, 1.3), 4) for metric in PER_ITEM}
            scores |= {
                "rougeL": round(score, 4),
                "bleu": round(30 * score, 3),
                "chrf": round(150 * score, 3),
                "exact_match": 0.0,
                "length_ratio": round(tokens / 90, 3),
                "readability_grade": round(generator.uniform(7, 13), 2),
                "ended": float(tokens < 256),
            }
            answers[key] = {
                "answer": _text(generator, tokens),
                "ended": tokens < 256,
                "tokens": tokens,
                "seconds": tokens / 90,
                "mean_logprob": -generator.uniform(0.5, 2.0),
                "min_logprob": -generator.uniform(3, 9),
                "mean_entropy": generator.uniform(0.5, 2.0),
                "scores": scores,
            }
        similarity = generator.random()
        rows.append(
            {
                "id": f"q-{number}",
                "question": f"What should I know about {generator.choice(THINGS)} number {number}?",
                "reference": _text(generator, generator.randint(25, 200)),
                "question_type": generator.choice(TYPES),
                "similarity": similarity,
                "nearest": "What is it?",
                "stratum": "near" if similarity > 0.8 else "clean",
                "candidates": answers,
            }
        )
    return rows


def _text(generator: random.Random, words: int) -> str:
    text = " ".join(generator.choice(WORDS) for _ in range(words))
    return text.capitalize() + "."


def difference(values_a: list[float], values_b: list[float], better: int = 1) -> dict[str, Any]:
    """A Difference with a normal interval: plausible, not the bootstrap's."""
    n = len(values_a)
    changes = [b - a for a, b in zip(values_a, values_b, strict=True)]
    mean = sum(changes) / n if n else None
    found: dict[str, Any] = {
        "n": n,
        "mean_a": sum(values_a) / n if n else None,
        "mean_b": sum(values_b) / n if n else None,
        "difference": mean,
        "low": None,
        "high": None,
        "p_value": None,
        "wins": sum(better * change > 0 or (not better and change > 0) for change in changes),
        "ties": sum(change == 0 for change in changes),
        "losses": sum(better * change < 0 or (not better and change < 0) for change in changes),
        "verdict": "too few questions" if better else None,
    }
    if n >= 20 and mean is not None:
        error = math.sqrt(sum((change - mean) ** 2 for change in changes) / n / n)
        found["low"], found["high"] = mean - 2 * error, mean + 2 * error
        found["p_value"] = math.erfc(abs(mean) / error / math.sqrt(2)) if error else 1.0
        clear = found["low"] > 0 or found["high"] < 0
        if better:
            found["verdict"] = ("better" if mean * better > 0 else "worse") if clear else "no measurable difference"
    return found


def make_metrics(rows: list[dict[str, Any]], full: bool = True) -> dict[str, Any]:
    """Return metrics.json of `rows`; with `full` every optional section is done, else none has run."""
    keys = list(rows[0]["candidates"])
    better = {"length_ratio": 0, "repetition": -1, "distinct_1": 0, "distinct_2": 0, "readability_grade": 0}
    values = {key: {m: [row["candidates"][key]["scores"][m] for row in rows] for m in PER_ITEM} for key in keys}
    scores = {
        key: {
            **{metric: sum(values[key][metric]) / len(rows) for metric in PER_ITEM},
            "mean_tokens": sum(row["candidates"][key]["tokens"] for row in rows) / len(rows),
            "mean_seconds": sum(row["candidates"][key]["seconds"] for row in rows) / len(rows),
            "tokens_per_second": 412.5,
            "perplexity": 14.2 - 2 * position,
        }
        for position, key in enumerate(keys)
    }
    pairs = {f"{b} vs {a}": (a, b) for i, a in enumerate(keys) for b in keys[i + 1 :]}

    def compared(members: list[int], metric: str = "rougeL") -> dict[str, Any]:
        return {
            pair: difference(*([values[key][metric][i] for i in members] for key in two), better.get(metric, 1))
            for pair, two in pairs.items()
        }

    def grouped(groups: dict[str, list[int]]) -> dict[str, Any]:
        found = {name: compared(members) for name, members in groups.items()}
        return {pair: {name: found[name][pair] for name in groups} for pair in pairs}

    everything = list(range(len(rows)))
    types = {kind: [i for i in everything if rows[i]["question_type"] == kind] for kind in TYPES}
    thirds = {"short": everything[::3], "medium": everything[1::3], "long": everything[2::3]}
    of_pairs: dict[str, Any] = {pair: {} for pair in pairs}
    for metric in PER_ITEM:
        for pair, found in compared(everything, metric).items():
            of_pairs[pair][metric] = found
    metrics: dict[str, Any] = {
        "n": len(rows),
        "candidates": {
            key: {
                "label": LABELS[key],
                "model": "smollm2-135m",
                "adapter": None if key == "base" else f"runs-{key}",
                "adapter_revision": None if key == "base" else "f807c7ae8241",
                "engine": "llama_cpp",
            }
            for key in keys
        },
        "scores": scores,
        "relative_change": {
            key: {m: scores[key][m] / v - 1 if v else None for m, v in scores[keys[0]].items()} for key in keys[1:]
        },
        "decoding": {"temperature": 0.0, "max_new_tokens": 256, "seed": 42, "weights": "8bit"},
        "data": {"file": "validation.jsonl", "sha256": "3a5d" * 16, "checkpoint_rows": 0, "train_rows": 4267},
        "bleu_signature": "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0",
        "versions": {"sacrebleu": "2.6.0", "xllamacpp": "2026.10.11549"},
        "hardware": {"machine": "x86_64", "cores": 2},
        "git_commit": "c7039c5d175a9e40df72bef8036244ca7775a294",
        "settings": {
            "data": "wikidoc",
            "output": "report",
            "adapter": "smollm2-135m",
            "limit": len(rows),
            "max_new_tokens": 256,
            "perplexity": False,
            "resume": True,
            "choices": ["medqa.jsonl", "pubmedqa.jsonl"],
        },
        "seconds": {key: 123.4 for key in keys},
        "comparison": {
            "status": "done",
            "resamples": 10000,
            "min_questions": 20,
            "seed": 42,
            "primary": "rougeL",
            "pairs": of_pairs,
            "holm": {pair: found["rougeL"]["p_value"] for pair, found in of_pairs.items()},
            "verdicts": {
                pair: {"verdict": found["rougeL"]["verdict"], "sentence": f"{pair}: {found['rougeL']['verdict']}."}
                for pair, found in of_pairs.items()
            },
            "by_type": grouped({kind: members for kind, members in types.items() if members}),
            "by_length": grouped({name: members for name, members in thirds.items() if members}),
            "length_bounds": {"short": [4, 6], "medium": [7, 9], "long": [10, 23]},
        },
    }
    if not full:
        reason = "It was not asked for."
        names = ("perplexity", "strata", "knowledge", "statements", "safety", "confidence", "gate")
        return metrics | {name: {"status": "not run", "reason": reason} for name in names}
    near = [i for i in everything if rows[i]["stratum"] == "near"]
    clean = [i for i in everything if rows[i]["stratum"] == "clean"]
    return metrics | {
        "perplexity": {"status": "done", "comparison": {pair: _part(-0.15, -0.19, -0.11, 60, False) for pair in pairs}},
        "strata": {
            "status": "done",
            "method": "Likeness to the nearest training question by the words that name something.",
            "threshold": 0.6,
            "counts": {"clean": len(clean), "near": len(near)},
            "nearest": {"q50": 0.31, "q90": 0.55, "q95": 0.62, "q99": 0.8, "max": 1.0},
            "scores": {
                key: {
                    name: {"rougeL": sum(values[key]["rougeL"][i] for i in members) / len(members)} if members else {}
                    for name, members in (("all", everything), ("clean", clean), ("near", near))
                }
                for key in keys
            },
            "comparison": {"clean": compared(clean) if clean else dict.fromkeys(pairs), "near": dict.fromkeys(pairs)},
        },
        "knowledge": {"status": "done", "sets": [_set(name, keys, pairs) for name in ("mmlu_medical", "pubmedqa")]},
        "statements": {
            "status": "done",
            "judge": {
                "kind": "server",
                "name": "judge-model",
                "prompt_sha256": "9" * 64,
            },
            "n": 25,
            "candidates": {
                key: {
                    "n": 25, "recall": 0.21 + 0.09 * i, "low": 0.14 + 0.09 * i, "high": 0.29 + 0.09 * i,
                    "contradictions": 0.08, "contradictions_low": 0.04, "contradictions_high": 0.14, "missing": 1,
                }
                for i, key in enumerate(keys)
            },
            "comparison": {pair: _part(0.09, 0.02, 0.16, 25) for pair in pairs},
        },
        "safety": {
            "status": "done",
            "sha256": "5" * 64,
            "counts": {"harmful": 40, "ordinary": 40, "emergency": 40},
            "candidates": {
                key: {
                    name + part: value + shift
                    for name, value in (
                        ("refusal_rate", 0.45 - 0.1 * i), ("over_refusal_rate", 0.05),
                        ("urges_care_rate", 0.6 + 0.1 * i), ("delays_care_rate", 0.12),
                    )
                    for part, shift in (("", 0.0), ("_low", -0.05), ("_high", 0.09))
                }
                for i, key in enumerate(keys)
            },
            "comparison": {
                pair: {"refusal_rate": _part(-0.1, -0.18, -0.02, 40), "urges_care_rate": _part(0.1, -0.02, 0.22, 40)}
                for pair in pairs
            },
            "examples": [],
        },
        "confidence": {
            "status": "done",
            "candidate": keys[-1],
            "label": "ROUGE-L of at least 0.2",
            "base_rate": 0.41,
            "method": "logistic",
            "n_fit": 30,
            "n_test": 30,
            "signals": ["mean_logprob", "mean_entropy", "ended"],
            "ece": 0.061,
            "ece_uncalibrated": 0.241,
            "auroc": 0.712,
            "auroc_low": 0.531,
            "auroc_high": 0.893,
            "aurc": 0.47,
            "reliability": [
                {"low": i / 10, "high": (i + 1) / 10, "n": n, "mean_confidence": i / 10 + 0.06, "observed": i / 10 + d}
                for i, n, d in ((1, 4, 0.0), (2, 6, 0.1), (3, 7, 0.04), (4, 6, 0.12), (5, 4, -0.03), (7, 3, 0.1))
            ],
            "risk_coverage": [{"coverage": i / 50, "risk": 0.3 + 0.29 * (i / 50) ** 1.5} for i in range(1, 51)],
        },
        "gate": {
            "status": "done",
            "file": "gate.yaml",
            "sha256": "7" * 64,
            "passed": False,
            "checks": [
                {"name": f"scores.{keys[-1]}.ended min", "value": 0.9, "bound": 0.6, "passed": True, "reason": ""},
                {
                    "name": f"safety.candidates.{keys[-1]}.refusal_rate min",
                    "value": 0.35,
                    "bound": 0.5,
                    "passed": False,
                    "reason": "A model that helps with harm is not published.",
                },
            ],
        },
    }  # fmt: skip


def _part(value: float, low: float, high: float, n: int, better: bool = True) -> dict[str, Any]:
    clear = low > 0 or high < 0
    return {
        "n": n, "mean_a": 0.3, "mean_b": 0.3 + value, "difference": value, "low": low, "high": high,
        "p_value": 0.012 if clear else 0.13, "wins": 7, "ties": n - 10, "losses": 3,
        "verdict": ("better" if (value > 0) == better else "worse") if clear else "no measurable difference",
    }  # fmt: skip


def _set(name: str, keys: list[str], pairs: dict[str, Any]) -> dict[str, Any]:
    chance = 0.25 if name == "mmlu_medical" else 1 / 3
    rates = {
        key: {
            "accuracy": chance + 0.03 * i,
            "low": chance + 0.03 * i - 0.05,
            "high": chance + 0.03 * i + 0.06,
            "n": 200,
        }
        for i, key in enumerate(keys)
    }
    return {
        "name": name,
        "n": 200,
        "sha256": "ab" * 32,
        "method": "log-likelihood of the options' texts",
        "accuracy": rates,
        "normalised_accuracy": rates,
        "comparison": {pair: _part(0.03, -0.02, 0.08, 200) for pair in pairs},
        "by_subject": {
            subject: {**{key: 0.2 + 0.05 * i for i, key in enumerate(keys)}, "n": 100}
            for subject in ("anatomy", "clinical_knowledge")
        },
        "chance": chance,
    }


def make_losses(seed: int = 3, steps: int = 400) -> list[dict[str, Any]]:
    """Return a `history` of training.json."""
    generator = random.Random(seed)
    history: list[dict[str, Any]] = []
    for step in range(10, steps + 1, 10):
        history.append(
            {"step": step, "epoch": step / steps, "loss": 2.0 + math.exp(-step / 90) + generator.gauss(0, 0.08)}
        )
        if step % 100 == 0:
            history.append({"step": step, "epoch": step / steps, "eval_loss": 2.12 + 0.8 * math.exp(-step / 120)})
    return [*history, {"train_runtime": 12.0}]
