"""The merged weights are the base plus the adapter, in both of their forms."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy
import pytest

from medical_assistant.errors import AdapterError, UserError
from medical_assistant.models.adapter import load_adapter
from medical_assistant.models.chat_templates import CHOSEN
from medical_assistant.models.presets import Preset, find_preset
from medical_assistant.publish import merging
from medical_assistant.publish.adapter import publish_adapter
from medical_assistant.publish.merging import check_merge, merge_adapter, merged_ggufs
from tests.support.hub_server import HubServer
from tests.support.tiny_llama import SPECIAL, TEMPLATE, byte_tokens, make_base, make_peft_adapter


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Preset:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(autouse=True)
def tiny_gguf(base: Preset, monkeypatch: pytest.MonkeyPatch) -> None:
    """`find_gguf` of the toy preset, which no models.yaml names."""
    from medical_assistant.engines import load as engines

    find = engines.find_gguf
    path = Path(base.repository) / "base.gguf"
    monkeypatch.setattr(engines, "find_gguf", lambda preset: path if preset == base else find(preset))


@pytest.fixture(scope="module")
def adapter(base: Preset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_peft_adapter(base, tmp_path_factory.mktemp("runs") / "lora")


@pytest.fixture
def merged(adapter: Path, base: Preset, tiny_gguf: None) -> Path:
    """Made once: the folder is the module's."""
    return adapter / "merged" if (adapter / "merged").exists() else merge_adapter(adapter, base)


def logits(model, text: str = "the heart"):
    import torch

    ids = torch.tensor([[byte_tokens().index(letter) for letter in text.replace(" ", "Ġ")]])
    with torch.no_grad():
        return model.eval()(ids).logits[0]


def unmerged_logits(base: Preset, adapter: Path, text: str = "the heart"):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    return logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base.repository), adapter), text)


def test_the_safetensors_answer_as_base_with_adapter(merged: Path, adapter: Path, base: Preset) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(merged)
    wanted = unmerged_logits(base, adapter)
    torch.testing.assert_close(logits(model), wanted, rtol=1e-4, atol=1e-4)
    alone = logits(AutoModelForCausalLM.from_pretrained(base.repository))
    assert (alone - wanted).abs().max() > 1  # the adapter does something
    assert model.dtype == torch.float32  # the base's own
    assert AutoTokenizer.from_pretrained(merged).chat_template == TEMPLATE
    assert not [file for file in merged.iterdir() if "adapter" in file.name or file.name.startswith(".")]


@pytest.mark.parametrize("options", [{"use_dora": True}, {"use_rslora": True}, {"target_modules": ["q_proj"]}])
def test_every_kind_of_adapter(base: Preset, tmp_path: Path, options: dict[str, object]) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = make_peft_adapter(base, tmp_path / "run", **options)
    model = AutoModelForCausalLM.from_pretrained(merge_adapter(folder, base))
    torch.testing.assert_close(logits(model), unmerged_logits(base, folder), rtol=1e-3, atol=1e-3)
    assert [path.name for path in merged_ggufs(folder)] == ["merged-Q8_0.gguf"]


def read_gguf(path: Path):
    """Return (fields, {name: (type, float32 values)})."""
    import gguf

    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    dequantize = gguf.quants.dequantize
    return fields, {t.name: (t.tensor_type.name, dequantize(t.data, t.tensor_type)) for t in reader.tensors}


def test_the_gguf_is_the_same_weights_on_the_bases_metadata(merged: Path, adapter: Path, base: Preset) -> None:
    from safetensors.numpy import load_file

    fields, tensors = read_gguf(merged / "merged-Q8_0.gguf")
    before, old = read_gguf(Path(base.repository) / "base.gguf")
    changed = {key for key in before if not key.startswith("GGUF.") and fields.get(key) != before[key]}
    assert changed == {"general.name", "general.file_type", "tokenizer.chat_template"}
    assert fields["tokenizer.chat_template"] == TEMPLATE
    assert (fields["general.name"], fields["general.file_type"]) == ("tiny lora", 7)
    assert list(tensors) == list(old)
    kinds = {name: kind for name, (kind, _) in tensors.items()}
    assert {kinds[name] for name in kinds if "norm" in name} == {"F32"}
    assert kinds["blk.1.ffn_down.weight"] == "F16"  # rows of 176
    assert {kinds[name] for name in kinds if "norm" not in name and "down" not in name} == {"Q8_0"}
    weights = load_file(merged / "model.safetensors")
    up = weights["model.layers.1.mlp.up_proj.weight"]
    assert numpy.abs(tensors["blk.1.ffn_up.weight"][1] - up).max() < numpy.abs(up).max() / 200
    # q: head dimension 32, so rows 0, 1, 2 of the file are rows 0, 16, 1 of the safetensors.
    q = weights["model.layers.0.self_attn.q_proj.weight"]
    assert numpy.abs(tensors["blk.0.attn_q.weight"][1][:3] - q[[0, 16, 1]]).max() < numpy.abs(q).max() / 200


def test_llama_cpp_answers_from_the_gguf_as_peft_does(merged: Path, adapter: Path, base: Preset) -> None:
    import torch

    text = f"{SPECIAL[1]}user\nhe has a heart<|im_end|>\n{SPECIAL[1]}assistant\n"
    wanted = torch.log_softmax(unmerged_logits_of_prompt(base, adapter, text), -1)
    found = first_logprobs(merged / "merged-Q8_0.gguf", "he has a heart")
    difference = [abs(found[i] - wanted[i].item()) for i in found if wanted[i] > -5]
    assert len(difference) > 20 and max(difference) < 0.1
    assert max(found, key=lambda i: found[i]) == wanted.argmax()


def unmerged_logits_of_prompt(base: Preset, adapter: Path, text: str):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(base.repository)(text, return_tensors="pt", add_special_tokens=False).input_ids
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base.repository), adapter).eval()
    with torch.no_grad():
        return model(ids).logits[0, -1]


def first_logprobs(gguf: Path, question: str) -> dict[int, float]:
    """Log-probabilities of the first token of llama.cpp's answer, by token id."""
    from medical_assistant.engines.llama_cpp import LlamaCppEngine

    engine = LlamaCppEngine(gguf, threads=1, parallel=1, context_tokens=256)
    try:
        payload = {
            "messages": [{"role": "user", "content": question}],
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": 300,
        }
        answer = engine._child.client.request("POST", "/v1/chat/completions", payload)
        return {top["id"]: top["logprob"] for top in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]}
    finally:
        engine.close()


def test_a_chosen_template_becomes_the_models_own_with_its_end(adapter: Path, base: Preset, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    folder = shutil.copytree(adapter, tmp_path / "run", ignore=shutil.ignore_patterns("merged"))
    template = TEMPLATE.replace("<|im_end|>", "<|endoftext|>")
    prompt = json.loads((folder / "prompt.json").read_text())
    (folder / "prompt.json").write_text(json.dumps({**prompt, "chat_template": CHOSEN + template}))
    merged = merge_adapter(folder, base)
    fields, _ = read_gguf(merged / "merged-Q8_0.gguf")
    assert fields["tokenizer.chat_template"] == AutoTokenizer.from_pretrained(merged).chat_template == template
    assert (fields["tokenizer.ggml.eos_token_id"], fields["tokenizer.ggml.eot_token_id"]) == (2, 0)
    assert GenerationConfig.from_pretrained(merged).eos_token_id == [0, 2]


def test_q4_0(adapter: Path, base: Preset, tmp_path: Path) -> None:
    folder = shutil.copytree(adapter, tmp_path / "run", ignore=shutil.ignore_patterns("merged"))
    fields, tensors = read_gguf(merge_adapter(folder, base, "Q4_0") / "merged-Q4_0.gguf")
    kinds = {name: kind for name, (kind, _) in tensors.items()}
    assert fields["general.file_type"] == 2
    assert kinds["blk.0.attn_q.weight"] == "Q4_0" and kinds["token_embd.weight"] == kinds["output.weight"] == "Q8_0"


def test_what_cannot_be_merged_is_said_before_anything_is_written(
    merged: Path, adapter: Path, base: Preset, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="is there already"):
        merge_adapter(adapter, base)
    folder = shutil.copytree(adapter, tmp_path / "run", ignore=shutil.ignore_patterns("merged"))
    with pytest.raises(UserError, match="Unknown GGUF type 'Q2_K'"):
        merge_adapter(folder, base, "Q2_K")
    with pytest.raises(UserError, match="alice/model cannot be merged, there is no GGUF"):
        check_merge(find_preset("alice/model"), "Q8_0")
    with pytest.raises(AdapterError, match="belongs to"):
        merge_adapter(folder, find_preset("smollm2-135m"))
    assert not [path for path in folder.iterdir() if "merged" in path.name]


def test_a_gguf_of_another_model_is_refused_and_nothing_stays(
    adapter: Path, base: Preset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(adapter, tmp_path / "run", ignore=shutil.ignore_patterns("merged"))
    monkeypatch.setattr("tests.support.tiny_llama.WIDE", 208)
    other = Path(make_base(tmp_path / "other").repository) / "base.gguf"
    monkeypatch.setattr(merging, "check_merge", lambda preset, gguf_type: other)
    with pytest.raises(UserError, match="differs from the merged model in blk.0"):
        merge_adapter(folder, base)
    assert not [path for path in folder.iterdir() if "merged" in path.name]


def test_an_adapter_with_layers_that_the_base_lacks(adapter: Path, base: Preset, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = shutil.copytree(adapter, tmp_path / "run", ignore=shutil.ignore_patterns("merged"))
    tensors = load_file(folder / "adapter_model.safetensors")
    more = {key.replace("layers.1.", "layers.7."): value for key, value in tensors.items()}
    save_file({**tensors, **more}, folder / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="no layer model.layers.7"):
        merge_adapter(folder, base)


@pytest.mark.parametrize("fault", ["shape", "nan"])
def test_weights_that_cannot_be_merged(adapter: Path, base: Preset, tmp_path: Path, fault: str) -> None:
    from safetensors.numpy import load_file, save_file

    folder = shutil.copytree(adapter, tmp_path / "run", ignore=shutil.ignore_patterns("merged"))
    tensors = load_file(folder / "adapter_model.safetensors")
    key = next(key for key in tensors if "lora_B" in key)
    tensors[key] = tensors[key][:-1] if fault == "shape" else tensors[key] * numpy.float32("nan")
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="cannot be merged") as raised:
        merge_adapter(folder, base)
    assert "\n" not in str(raised.value)
    assert not [path for path in folder.iterdir() if "merged" in path.name]


def test_the_command(adapter: Path, base: Preset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(adapter, tmp_path / "run", ignore=shutil.ignore_patterns("merged"))
    with pytest.raises(UserError, match="there is no GGUF"):  # a folder is no preset of models.yaml
        merging.main([str(folder)])
    with pytest.raises(UserError, match="adapter_config.json cannot be read"):
        merging.main([str(tmp_path)])


def test_the_cards_peft_snippet_runs_on_what_was_published(
    adapter: Path,
    base: Preset,
    tmp_path: Path,
    hub_server: HubServer,
    signed_in: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The code block of the card on the Hub, pasted; the base, which is on no Hub, is filled in, the answer short."""
    folder = shutil.copytree(adapter, tmp_path / "run", ignore=shutil.ignore_patterns("merged"))
    (folder / "training.json").write_text("{}")
    publish_adapter(folder, "alice/medical")
    card = hub_server.repositories["models", "alice/medical"].files()["README.md"].decode()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", hub_server.endpoint)  # read at import, used by PEFT
    code = code.replace("BASE_MODEL", base.repository).replace("max_new_tokens=256", "max_new_tokens=8")
    exec(compile(code, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.strip()) > 0


QUESTIONS = [
    "How is asthma treated?",
    "What causes gout?",
    "What is anemia?",
    "Is the flu dangerous?",
    "Who gets gout?",
]


def answers_of(gguf: Path, adapter=None, scale: float = 1.0) -> list[numpy.ndarray]:
    """Return llama.cpp's probabilities of the first token of the answer to each question."""
    from medical_assistant.engines.llama_cpp import LlamaCppEngine
    from medical_assistant.prompts import build_messages

    engine = LlamaCppEngine(gguf, adapter, threads=1, parallel=1)
    try:
        payload = {"max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": 49152}
        if adapter:
            payload["lora"] = [{"id": 0, "scale": scale}]
        found = []
        for question in QUESTIONS:
            chat = {**payload, "messages": build_messages(question)}
            answer = engine._child.client.request("POST", "/v1/chat/completions", chat)
            tops = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
            found.append(numpy.zeros(49152))
            found[-1][[top["id"] for top in tops]] = numpy.exp([top["logprob"] for top in tops])
        return found
    finally:
        engine.close()


def exact_answers(model, tokenizer) -> list[numpy.ndarray]:
    import torch

    from medical_assistant.prompts import build_messages

    found = []
    for question in QUESTIONS:
        messages = build_messages(question)
        prompt = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        with torch.no_grad():
            found.append(torch.softmax(model.float().eval()(prompt["input_ids"]).logits[0, -1], -1).numpy())
    return found


def distance(one: list[numpy.ndarray], other: list[numpy.ndarray]) -> float:
    """The mean total variation distance (0 to 1) of the answers."""
    return float(numpy.mean([numpy.abs(a - b).sum() / 2 for a, b in zip(one, other, strict=True)]))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_embedded_model_merged_and_with_the_lora_at_run_time(tmp_path: Path) -> None:
    """Merged safetensors equal PEFT; the merged GGUF is as near to PEFT as llama.cpp with the LoRA is.

    llama.cpp rounds activations, keys and values to 8 bits, so that no two of its forms agree exactly.
    Measured distances from PEFT: LoRA at run time 0.043, merged Q8_0 0.040, base 0.208.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from medical_assistant.models.loading import load_model
    from tests.support.adapter_fixture import make_adapter

    preset = find_preset("smollm2-135m")
    embedded = preset.embedded_gguf()
    assert embedded
    folder = make_adapter(tmp_path / "run", scale=0.04)
    merged = merge_adapter(folder, preset)
    tokenizer = AutoTokenizer.from_pretrained(merged)
    exact = exact_answers(PeftModel.from_pretrained(load_model(preset, "none", torch.float32), folder), tokenizer)
    model = AutoModelForCausalLM.from_pretrained(merged)
    assert model.dtype == torch.float16
    assert distance(exact_answers(model, tokenizer), exact) < 0.005
    adapter = load_adapter(folder, preset)
    at_run_time, base = answers_of(embedded, adapter), answers_of(embedded, adapter, scale=0.0)
    whole = answers_of(merged / "merged-Q8_0.gguf")
    assert distance(whole, exact) < 1.5 * distance(at_run_time, exact) + 0.01
    assert distance(base, exact) > 3 * distance(whole, exact)
    assert (tmp_path / "run" / "merged" / "merged-Q8_0.gguf").stat().st_size < 1.1 * 135e6 * 34 / 32
