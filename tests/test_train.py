from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import train
from medical_assistant.errors import AdapterError, EngineError, UserError
from medical_assistant.evaluation.gate import GateError
from medical_assistant.models.adapter import ADAPTER_FILES, load_adapter, weights_hash
from medical_assistant.models.presets import find_preset
from medical_assistant.prompts import SYSTEM_PROMPT
from tests.support.hub_server import HubServer

MEASURED = {"metrics.json", "calibration.json", "report.md"}  # what an evaluation adds to an adapter's folder
PUSH = ("--max-steps", "1", "--push-to-hub", "alice/adapter")


def run(data: Path, model: Path, output: Path, *more: str) -> Path:
    quick = ["--logging-steps", "1", "--max-validation-rows", "4", "--report-to", "none"]
    train.main(["--data", str(data), "--model", str(model), "--output", str(output), *quick, *more])
    return output


@pytest.fixture(scope="module")
def trained(prepared_data: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(prepared_data, tiny_model, tmp_path_factory.mktemp("runs") / "tiny", "--learning-rate", "1e-2")


def test_the_adapter_folder_is_whole_and_checked(trained: Path, tiny_model: Path) -> None:
    written = {path.name for path in trained.iterdir()}
    assert written == set(ADAPTER_FILES) - MEASURED
    adapter = load_adapter(trained, find_preset(str(tiny_model)))
    assert adapter.prompt["system_prompt"] == SYSTEM_PROMPT
    record = json.loads((trained / "training.json").read_text())
    assert record["settings"]["lora_alpha"] == 32 and record["settings"]["lora_target_modules"][0] == "q_proj"
    # Rank 16 on q, k, v, o of two layers with hidden 64, 2 of 4 heads for k and v: 16 x (128 + 96 + 96 + 128) x 2.
    assert record["trainable_parameters"] == 16 * (128 + 96 + 96 + 128) * 2
    losses = [entry["loss"] for entry in record["history"] if "loss" in entry]
    assert losses[-1] < losses[0] and record["validation_loss"] > 0
    assert record["data"]["license"] == "mit" and record["minutes"] > 0 and record["peak_memory_gib"] > 0.1
    assert record["hardware"] and record["versions"]["trl"] and len(record["git_commit"].partition("-")[0]) == 40
    assert (trained / "loss.png").read_bytes().startswith(b"\x89PNG")
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


@pytest.mark.parametrize(("has_bf16", "dtype"), [(True, "bfloat16"), (False, "float16")])
def test_mistake_8_no_bf16_on_a_gpu_that_has_none(monkeypatch: pytest.MonkeyPatch, has_bf16: bool, dtype: str) -> None:
    import torch

    from medical_assistant.models.loading import compute_dtype

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
    folder = shutil.copytree(trained, tmp_path / "broken")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(AdapterError, match=name.replace(".", r"\.")):
        load_adapter(folder, find_preset(str(tiny_model)))
    (folder / name).unlink()
    with pytest.raises(AdapterError, match=f"has no {name}"):
        load_adapter(folder, find_preset(str(tiny_model)))


@pytest.mark.slow
def test_an_upload_that_fails_is_finished_by_publish(
    prepared_data: Path, tiny_model: Path, tmp_path: Path, hub_server: HubServer, signed_in: None, capsys
) -> None:
    folder = tmp_path / "run"
    hub_server.fail_next(503, times=5_000)
    with pytest.raises(UserError, match=r"Nothing is lost: `python train.py --publish "):
        run(prepared_data, tiny_model, folder, *PUSH, "--gate", "none")
    hub_server.failures.clear()
    assert train.main(["--publish", str(folder), "--gate", "none"]) == 0
    assert "published: " in capsys.readouterr().out
    repository = hub_server.repositories["models", "alice/adapter"]
    assert repository.messages == ["initial commit", "Upload adapter"]  # one commit with everything
    assert set(repository.files()) == {*ADAPTER_FILES, ".gitattributes"} - MEASURED


def test_what_would_fail_after_hours_fails_before_them(
    prepared_data: Path, tiny_model: Path, tmp_path: Path, hub_server: HubServer
) -> None:
    with pytest.raises(UserError, match="No Hugging Face token"):
        run(prepared_data, tiny_model, tmp_path / "run", "--push-to-hub", "alice/adapter")
    with pytest.raises(UserError, match="is not a Hub repository"):
        run(prepared_data, tiny_model, tmp_path / "run", "--push-to-hub", "adapter")
    with pytest.raises(UserError, match=r"--gate nowhere\.yaml cannot be read"):
        run(prepared_data, tiny_model, tmp_path / "run", "--push-to-hub", "alice/adapter", "--gate", "nowhere.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("- value: n\n")
    with pytest.raises(UserError, match="check 1 has no bound"):
        run(prepared_data, tiny_model, tmp_path / "run", "--push-to-hub", "alice/adapter", "--gate", str(broken))
    with pytest.raises(UserError, match="cannot be merged"):
        run(prepared_data, tiny_model, tmp_path / "run", "--merge", "q8_0")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """A stand-in for the evaluation: writes `bleu` as it is at the time. The gate asks for 5.

    `calls` holds the arguments of each evaluation.
    """
    state: dict[str, Any] = {"bleu": 6.0, "calls": [], "gate": str(tmp_path / "gate.yaml")}
    Path(state["gate"]).write_text("- {value: scores.fine_tuned.bleu, min: 5, reason: It must be of use.}\n")

    def evaluate_adapter(folder: Path, data: Path, model: str, engine: str = "auto", limit: int = 0) -> dict[str, Any]:
        state["calls"].append((folder, data, model, engine))
        candidates = {"base": {}, "fine_tuned": {"adapter_revision": weights_hash(folder)}}
        scores = {"base": {"bleu": 1.0}, "fine_tuned": {"bleu": state["bleu"]}}
        metrics = {"n": 4, "candidates": candidates, "scores": scores}
        (folder / "metrics.json").write_text(json.dumps(metrics))
        return metrics

    monkeypatch.setattr("medical_assistant.evaluation.results.evaluate_adapter", evaluate_adapter)
    return state


def test_an_adapter_that_passes_the_gate_is_pushed_with_its_results(
    prepared_data: Path,
    tiny_model: Path,
    tmp_path: Path,
    hub_server: HubServer,
    signed_in: None,
    measured: dict[str, Any],
) -> None:
    folder = run(prepared_data, tiny_model, tmp_path / "run", *PUSH, "--gate", measured["gate"])
    assert measured["calls"] == [(folder, prepared_data, str(tiny_model), "auto")]
    repository = hub_server.repositories["models", "alice/adapter"]
    assert repository.messages == ["initial commit", "Upload adapter"]
    assert json.loads(repository.files()["metrics.json"])["scores"]["fine_tuned"]["bleu"] == 6
    assert "alice/adapter" in repository.files()["README.md"].decode()
    assert not (folder / "publish.json").exists()


def test_an_adapter_that_fails_the_gate_is_kept_and_not_pushed(
    prepared_data: Path,
    tiny_model: Path,
    tmp_path: Path,
    hub_server: HubServer,
    signed_in: None,
    measured: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    measured["bleu"] = 4.0
    folder = tmp_path / "run"
    with pytest.raises(GateError) as raised:  # a DoRA: llama.cpp cannot load it
        run(prepared_data, tiny_model, folder, *PUSH, "--use-dora", "--gate", measured["gate"])
    text = str(raised.value)
    assert "scores.fine_tuned.bleu min" in text and f"`train.py --publish {folder} --gate none`" in text
    assert "\n" not in text and measured["calls"][0][-1] == "transformers"
    assert ("models", "alice/adapter") not in hub_server.repositories
    assert (folder / "adapter_model.safetensors").is_file()
    with pytest.raises(GateError, match=r"scores\.fine_tuned\.bleu min"):  # by the same metrics.json
        train.main(["--publish", str(folder), "--gate", measured["gate"]])
    assert ("models", "alice/adapter") not in hub_server.repositories
    # The command of the message, as it stands there.
    assert train.main(["--publish", str(folder), "--gate", "none"]) == 0
    assert hub_server.repositories["models", "alice/adapter"].messages == ["initial commit", "Upload adapter"]
    assert len(measured["calls"]) == 1


def test_without_a_gate_nothing_is_measured_and_publish_asks_for_results(
    trained: Path,
    tiny_model: Path,
    prepared_data: Path,
    tmp_path: Path,
    hub_server: HubServer,
    signed_in: None,
    measured: dict[str, Any],
) -> None:
    folder = shutil.copytree(trained, tmp_path / "copy")
    publish = ["--publish", str(folder), "--push-to-hub", "alice/adapter"]
    with pytest.raises(
        GateError, match=r"is not evaluated: run `evaluate\.py --adapter .* --update-adapter`.*--gate none"
    ):
        train.main(publish)
    assert ("models", "alice/adapter") not in hub_server.repositories
    with pytest.raises(UserError, match="cannot be read"):
        train.main([*publish, "--gate", str(tmp_path / "nowhere.yaml")])
    assert train.main([*publish, "--gate", "none"]) == 0
    assert measured["calls"] == []


def test_an_evaluation_that_fails_loses_nothing(
    prepared_data: Path,
    tiny_model: Path,
    tmp_path: Path,
    hub_server: HubServer,
    signed_in: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*arguments: object) -> None:
        raise EngineError("The engine stopped: try again.")

    monkeypatch.setattr("medical_assistant.evaluation.results.evaluate_adapter", fail)
    with pytest.raises(
        UserError, match=r"The engine stopped: try again\. Nothing is lost: `python train\.py --publish"
    ):
        run(prepared_data, tiny_model, tmp_path / "run", *PUSH)
    assert json.loads((tmp_path / "run/publish.json").read_text())["repository"] == "alice/adapter"
    assert ("models", "alice/adapter") not in hub_server.repositories


def test_a_gated_base_names_the_page_to_open(prepared_data: Path, tmp_path: Path, hub_server: HubServer) -> None:
    hub_server.add_repository("alice/gated", {"config.json": b"{}", "tokenizer.json": b"{}"}, gated=True)
    with pytest.raises(UserError, match=r"open https://huggingface.co/alice/gated, accept it, then set HF_TOKEN"):
        run(prepared_data, Path("alice/gated"), tmp_path / "run")


@pytest.mark.parametrize("model", ["no-such-model", "a/b/c"])
def test_unknown_models(model: str, prepared_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Unknown model"):
        run(prepared_data, Path(model), tmp_path / "run")
