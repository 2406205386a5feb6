"""Fixtures that more than one test file uses."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import settings

# Two processes of tests share the machine: more threads in each only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch
# 0.2 s an example says only that the machine is busy or loads the rules; budgets of CPU are in tests/timing.py.
settings.register_profile("shared machine", deadline=None, max_examples=25)
settings.load_profile("shared machine")

pytest_plugins = ("tests.support.hub_server", "tests.support.served_app")


@pytest.fixture
def question_file(tmp_path: Path) -> Path:
    """60 usable pairs in the flashcards' form: 30 things, each asked in two ways."""
    organs = "heart liver kidney spleen lung stomach bladder thyroid pancreas retina".split()
    kinds = "itis oma osis".split()
    rows = []
    for i, organ in enumerate(organs):
        for j, kind in enumerate(kinds):
            name = f"{organ}{kind}"
            facts = f"alpha{i}{j} beta{i}{j} gamma{i}{j} delta{i}{j} epsilon{i}{j}"
            rows.append({"input": f"What are the symptoms of {name}?", "output": f"Signs of {name} include {facts}."})
            rows.append(
                {"input": f"Which signs does {name} have?", "output": f"It shows as zeta{i}{j} eta{i}{j} in {name}."}
            )
    path = tmp_path / "cards.jsonl"
    path.write_text("".join(json.dumps({"instruction": "Answer truthfully", **row}) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def prepared_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared data folder of 24 train and 4 validation records."""
    from medical_assistant.data.records import make_record, write_records

    folder = tmp_path_factory.mktemp("prepared")
    records = [
        make_record(f"What is condition {i}?", f"Condition {i} is a mild illness of number {i}.", f"r-{i}", "test", i)
        for i in range(28)
    ]
    write_records(records[:24], folder / "train.jsonl")
    write_records(records[24:], folder / "validation.jsonl")
    manifest = {"source": {"name": "test.jsonl", "revision": "0" * 40}, "license": "mit", "attribution": "Nobody"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer Llama and the embedded model's tokenizer: trains in seconds."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from medical_assistant.models.loading import load_tokenizer
    from medical_assistant.models.presets import find_preset

    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = load_tokenizer(find_preset("smollm2-135m"))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
