from __future__ import annotations

import json
from pathlib import Path

import pytest

import train
from medical_assistant.adapter import ADAPTER_FILES, load_adapter
from medical_assistant.errors import AdapterError, UserError
from medical_assistant.presets import find_preset
from medical_assistant.prompts import SYSTEM_PROMPT
from medical_assistant.records import read_records
from medical_assistant.training_settings import TrainSettings, load_experiments, resolve_settings


def settings(**values):
    return resolve_settings(TrainSettings(**{"data": Path("d"), "output": Path("o"), **values}), cuda=False)


def run(data: Path, model: Path, output: Path, *more: str) -> Path:
    quick = ["--batch-size", "4", "--logging-steps", "1", "--max-validation-rows", "4"]
    train.main(["--data", str(data), "--model", str(model), "--output", str(output), *quick, *more])
    return output


@pytest.fixture(scope="module")
def trained(prepared_data: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(prepared_data, tiny_model, tmp_path_factory.mktemp("runs") / "tiny", "--learning-rate", "1e-2")


@pytest.fixture(scope="module")
def batch(prepared_data: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory):
    """(trainer, tokenizer, first batch, its answers) of an untrained run."""
    from medical_assistant import base_model, training

    preset = find_preset(str(tiny_model))
    tokenizer = base_model.load_tokenizer(preset)
    rows = read_records(prepared_data / "train.jsonl")
    rows[0]["completion"][0]["content"] *= 3  # rows of two lengths, so that there is padding
    resolved = settings(output=tmp_path_factory.mktemp("batch"), model=str(tiny_model))
    trainer = training.make_trainer(base_model.load_model(preset, "none"), tokenizer, resolved, rows, rows[:4])
    tensors = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    return trainer, tokenizer, tensors, [row["completion"][0]["content"] for row in rows[:4]]


def test_mistake_1_the_loss_is_on_the_answer_and_its_end_only(batch) -> None:
    _, tokenizer, tensors, answers = batch
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    for answer, labels in zip(answers, tensors["labels"], strict=True):
        # Neither prompt nor padding is learnt, and EOS is, though pad = EOS here.
        assert tokenizer.decode(labels[labels != -100]) == answer + tokenizer.eos_token + "\n"
    assert (tensors["attention_mask"] == 0).any()  # there was padding to get wrong


def test_mistake_2_training_and_serving_read_the_same_tokens(batch) -> None:
    trainer, tokenizer, _, _ = batch
    row = trainer.train_dataset[1]
    prompt = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label == -100]
    messages = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": "What is condition 1?"}]
    served = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert prompt == served


def test_the_cpu_trainer_has_trls_loss_and_gradients(batch) -> None:
    import torch
    from trl import SFTTrainer

    trainer, _, tensors, _ = batch
    trainer.model.float().eval()  # no bfloat16 rounding, no dropout
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    gradients = []
    for method in (type(trainer).compute_loss, SFTTrainer.compute_loss):
        loss = method(trainer, trainer.model, dict(tensors))
        gradients.append((loss.item(), *torch.autograd.grad(loss, parameters)))
    assert type(trainer) is not SFTTrainer
    assert gradients[0][0] == pytest.approx(gradients[1][0], rel=1e-4)
    for ours, theirs in zip(gradients[0][1:], gradients[1][1:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_rows_that_would_be_cut_are_left_out(prepared_data: Path, tiny_model: Path) -> None:
    from medical_assistant import base_model, training

    tokenizer = base_model.load_tokenizer(find_preset(str(tiny_model)))
    records = read_records(prepared_data / "train.jsonl")
    records[3]["completion"][0]["content"] *= 50
    kept, left_out = training.fit_records(records, tokenizer, 200)
    assert left_out == 1 and len(kept) == len(records) - 1
    with pytest.raises(UserError, match="max-length"):
        training.fit_records(records, tokenizer, 5)


def test_the_adapter_folder_is_whole_and_checked(trained: Path, tiny_model: Path) -> None:
    written = {path.name for path in trained.iterdir()}
    assert written == set(ADAPTER_FILES) - {"metrics.json"}
    adapter = load_adapter(trained, find_preset(str(tiny_model)))
    assert adapter.prompt["system_prompt"] == SYSTEM_PROMPT
    record = json.loads((trained / "training.json").read_text())
    assert record["settings"]["lora_alpha"] == 32 and record["settings"]["target_modules"][0] == "q_proj"
    # Rank 16 on q, k, v, o of two layers with hidden 64, 2 of 4 heads for k and v: 16 x (128 + 96 + 96 + 128) x 2.
    assert record["trainable_parameters"] == 16 * (128 + 96 + 96 + 128) * 2
    losses = [entry["loss"] for entry in record["history"] if "loss" in entry]
    assert losses[-1] < losses[0] and record["validation_loss"] > 0
    assert str(trained.parent) not in (trained / "training.json").read_text()


def test_the_gguf_holds_the_same_lora(trained: Path) -> None:
    import numpy
    from gguf import GGUFReader
    from safetensors.numpy import load_file

    tensors = {t.name: t.data for t in GGUFReader(trained / "adapter.gguf").tensors}
    peft = load_file(trained / "adapter_model.safetensors")
    assert len(tensors) == len(peft) == 16
    layer = "base_model.model.model.layers.1.self_attn."
    numpy.testing.assert_array_equal(tensors["blk.1.attn_q.weight.lora_a"], peft[layer + "q_proj.lora_A.weight"])
    numpy.testing.assert_array_equal(tensors["blk.1.attn_v.weight.lora_b"], peft[layer + "v_proj.lora_B.weight"])
    # q: head dimension 16, so row 1 of the file is row 8 of PEFT (rotary pairs interleaved).
    q = peft[layer + "q_proj.lora_B.weight"]
    numpy.testing.assert_array_equal(tensors["blk.1.attn_q.weight.lora_b"][:4], q[[0, 8, 1, 9]])


def test_mistake_8_a_run_is_not_overwritten(trained: Path, prepared_data: Path, tiny_model: Path) -> None:
    before = (trained / "adapter_model.safetensors").read_bytes()
    with pytest.raises(UserError, match="already holds"):
        run(prepared_data, tiny_model, trained)
    assert (trained / "adapter_model.safetensors").read_bytes() == before


def test_mistake_8_ctrl_c_keeps_a_checkpoint_and_resume_goes_on_as_if_uninterrupted(
    prepared_data: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import signal

    from trl import SFTTrainer

    step = SFTTrainer.training_step
    calls = []

    def interrupt_in_step_3(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *arguments, **options)

    monkeypatch.setattr(SFTTrainer, "training_step", interrupt_in_step_3)
    with pytest.raises(KeyboardInterrupt):
        run(prepared_data, tiny_model, tmp_path / "run")
    assert (tmp_path / "run/checkpoints/checkpoint-3").is_dir()
    with pytest.raises(UserError, match="learning_rate"):
        run(prepared_data, tiny_model, tmp_path / "run", "--resume", "--learning-rate", "9e-3")
    run(prepared_data, tiny_model, tmp_path / "run", "--resume")
    assert len(calls) == 6  # 24 rows in batches of 4: three steps before, three after
    monkeypatch.undo()
    run(prepared_data, tiny_model, tmp_path / "whole")
    resumed, whole = (json.loads((tmp_path / name / "training.json").read_text()) for name in ("run", "whole"))
    assert resumed["steps"] == whole["steps"] == 6
    losses = [[entry["loss"] for entry in record["history"] if "loss" in entry] for record in (resumed, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize(("has_bf16", "dtype"), [(True, "bfloat16"), (False, "float16")])
def test_mistake_8_no_bf16_on_a_gpu_that_has_none(monkeypatch: pytest.MonkeyPatch, has_bf16: bool, dtype: str) -> None:
    import torch

    from medical_assistant.base_model import compute_dtype

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bf16)
    assert compute_dtype() == getattr(torch, dtype)


def test_resume_without_a_run(prepared_data: Path, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint"):
        run(prepared_data, tiny_model, tmp_path / "new", "--resume")


def test_nf4_trains_on_a_cpu(prepared_data: Path, tiny_model: Path, tmp_path: Path) -> None:
    folder = run(prepared_data, tiny_model, tmp_path / "nf4", "--quantize", "nf4", "--max-steps", "2")
    assert json.loads((folder / "training.json").read_text())["settings"]["quantize"] == "nf4"


def test_an_adapter_of_another_base_is_refused(trained: Path) -> None:
    with pytest.raises(AdapterError, match="SmolLM2"):
        load_adapter(trained, find_preset("smollm2-135m"))


@pytest.mark.parametrize("name", ["adapter.gguf", "adapter_model.safetensors", "prompt.json"])
def test_a_truncated_adapter_is_refused(trained: Path, tiny_model: Path, tmp_path: Path, name: str) -> None:
    import shutil

    folder = shutil.copytree(trained, tmp_path / "broken")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(AdapterError, match=name.replace(".", r"\.")):
        load_adapter(folder, find_preset(str(tiny_model)))
    (folder / name).unlink()
    with pytest.raises(AdapterError, match=f"has no {name}"):
        load_adapter(folder, find_preset(str(tiny_model)))


def test_the_five_experiments_are_the_seeds() -> None:
    table = {
        n: (e["learning_rate"], e["batch_size"], e["lora_rank"], e["epochs"]) for n, e in load_experiments().items()
    }
    assert table == {
        "baseline": (2e-4, 4, 16, 1),
        "lower-lr": (1e-4, 4, 16, 1),
        "higher-rank": (2e-4, 4, 32, 1),
        "smaller-batch": (2e-4, 2, 16, 1),
        "more-epochs": (1.5e-4, 4, 16, 2),
    }
    for name in table:
        resolved = settings(experiment=name)
        assert resolved.lora_alpha == 2 * resolved.lora_rank and len(resolved.target_modules) == 4
    assert settings(experiment="higher-rank", learning_rate=1e-3).learning_rate == 1e-3


@pytest.mark.parametrize("values", [{"experiment": "none"}, {"epochs": 0.0}, {"lora_dropout": 1.0}, {"max_length": -1}])
def test_bad_settings(values) -> None:
    with pytest.raises(UserError):
        settings(**values)


@pytest.mark.parametrize("model", ["no-such-model", "a/b/c"])
def test_unknown_models(model: str, prepared_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Unknown model"):
        run(prepared_data, Path(model), tmp_path / "run")
