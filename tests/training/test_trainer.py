from __future__ import annotations

import json
from pathlib import Path

import pytest

import train
from medical_assistant.errors import AdapterError
from medical_assistant.models.adapter import load_adapter
from medical_assistant.models.presets import find_preset
from tests.support.training_fixture import make_run


def run(data: Path, model: Path, output: Path, *more: str) -> Path:
    options = ["--logging-steps", "1", "--max-validation-rows", "4", "--report-to", "none", "--max-steps", "4"]
    train.main(["--data", str(data), "--model", str(model), "--output", str(output), *options, *more])
    return output


def test_the_cpu_trainer_has_trls_loss_and_gradients(prepared_data: Path, tiny_model: Path, tmp_path: Path) -> None:
    import torch
    from trl import SFTTrainer
    from trl.trainer.utils import add_fused_lm_head

    trainer = make_run(prepared_data, tiny_model, tmp_path)[0]
    assert type(trainer) is not SFTTrainer
    trainer.model.float().eval()  # no bfloat16 rounding, no dropout
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    gradients = []
    for theirs in (False, True):
        if theirs:
            base = trainer.model.get_base_model()
            del base.forward  # ours
            add_fused_lm_head(base, outputs=("log_probs", "entropy", "is_top1"))
        compute_loss = SFTTrainer.compute_loss if theirs else type(trainer).compute_loss
        loss = compute_loss(trainer, trainer.model, dict(batch))
        gradients.append((loss.item(), *torch.autograd.grad(loss, parameters)))
    assert gradients[0][0] == pytest.approx(gradients[1][0], rel=1e-4)
    for ours, trls in zip(gradients[0][1:], gradients[1][1:], strict=True):
        torch.testing.assert_close(ours, trls, rtol=1e-3, atol=1e-5)


def test_options_reach_peft_and_trl(prepared_data: Path, tiny_model: Path, tmp_path: Path) -> None:
    trainer = make_run(
        prepared_data, tiny_model, tmp_path,
        use_rslora=True, lora_dropout=0.1, lora_target_modules="all-linear", neftune_noise_alpha=5.0, weight_decay=0.01,
        lr_scheduler_type="constant", early_stopping_patience=2, gradient_accumulation_steps=2, warmup_steps=0.5,
        loraplus_lr_ratio=16.0,
    )[0]  # fmt: skip
    config, arguments = trainer.model.peft_config["default"], trainer.args
    assert config.use_rslora and config.lora_dropout == 0.1 and len(config.target_modules) == 14
    assert (arguments.neftune_noise_alpha, arguments.warmup_steps, arguments.lr_scheduler_type) == (
        5.0,
        0.5,
        "constant",
    )
    assert "EarlyStoppingCallback" in [type(callback).__name__ for callback in trainer.callback_handler.callbacks]
    trainer.create_optimizer()
    rates = {round(group["lr"], 8) for group in trainer.optimizer.param_groups if group["params"]}
    assert rates == {2e-4, 32e-4}  # LoRA+: B learns 16 times as fast as A


@pytest.mark.slow
def test_early_stopping_stops(prepared_data: Path, tiny_model: Path, tmp_path: Path) -> None:
    # At a rate of almost zero no validation loss is better than the first.
    more = ["--max-steps", "-1", "--early-stopping-patience", "1", "--evaluations-per-epoch", "6"]
    folder = run(prepared_data, tiny_model, tmp_path / "run", *more, "--learning-rate", "1e-30")
    assert json.loads((folder / "training.json").read_text())["steps"] == 2


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["--use-rslora"], marks=pytest.mark.slow),
        pytest.param(["--init-lora-weights", "pissa"], marks=pytest.mark.slow),
        pytest.param(["--use-dora"], marks=pytest.mark.slow),
        [],
    ],
)
def test_the_adapter_on_the_unchanged_base_is_what_was_trained(
    options: list[str], prepared_data: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from medical_assistant.training import record

    trained = []
    write = record.write_adapter_folder
    ids = torch.arange(5, 45)[None]

    def keep(trainer, *arguments) -> None:
        with torch.no_grad():
            model = trainer.model.eval()
            trained.append(model.get_base_model().get_decoder()(ids).last_hidden_state.float())
        write(trainer, *arguments)

    monkeypatch.setattr(record, "write_adapter_folder", keep)
    folder = run(prepared_data, tiny_model, tmp_path / "run", "--learning-rate", "1e-2", *options)
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16)
    with torch.no_grad():
        before = base.get_decoder()(ids).last_hidden_state.float()
        served = PeftModel.from_pretrained(base, folder).eval().get_base_model().get_decoder()(ids).last_hidden_state
    moved = (trained[0] - before).abs().mean()
    assert (trained[0] - served.float()).abs().mean() < 0.1 * moved


def test_a_dora_has_no_gguf_and_says_so(prepared_data: Path, tiny_model: Path, tmp_path: Path) -> None:
    folder = run(prepared_data, tiny_model, tmp_path / "run", "--use-dora")
    adapter = load_adapter(folder, find_preset(str(tiny_model)))
    with pytest.raises(AdapterError, match="transformers engine"):
        adapter.gguf  # noqa: B018


def test_a_gpu_without_bfloat16_gets_an_adapter_in_float32(
    prepared_data: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL casts a QLoRA's adapter to bfloat16, whose gradients fp16's scaler cannot read on a T4."""
    import torch

    from medical_assistant.training.settings import Run

    run_arguments = Run.trainer.func

    def half(run):
        arguments = run_arguments(run)
        arguments.bf16, arguments.fp16 = False, True
        return arguments

    monkeypatch.setattr(Run, "trainer", property(lambda run: run.__dict__.setdefault("half", half(run))))
    monkeypatch.setattr("medical_assistant.models.loading.compute_dtype", lambda: torch.float16)
    trainer = make_run(prepared_data, tiny_model, tmp_path, quantize="nf4")[0]
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}


def test_two_evaluations_an_epoch(prepared_data: Path, tiny_model: Path, tmp_path: Path) -> None:
    arguments = make_run(prepared_data, tiny_model, tmp_path)[0].args
    assert (arguments.eval_steps, arguments.save_steps) == (3, 3)  # 24 rows are 6 steps
