"""The adapter folder is safetensors and JSON alone: nothing in it, or in a base model's repository, runs as code."""

from __future__ import annotations

import ast
import json
import pickle
import shutil
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medical_assistant.engines.load import ENGINES, load_engine
from medical_assistant.errors import AdapterError, UserError
from medical_assistant.models.adapter import load_adapter
from medical_assistant.models.chat_templates import CHOSEN
from medical_assistant.models.presets import Preset
from tests.support.hub_server import write_toy_adapter
from tests.support.paths import ROOT

TOY = Preset(name="base", repository="alice/base")
PICKLED_WEIGHTS = ("adapter_model.bin", "adapter_model.pt", "pytorch_model.bin")


class Attack:
    """Unpickled, it makes the file `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def write_pickles(folder: Path, marker: Path) -> None:
    """Hostile weights under every name, bare and in torch's form."""
    for number, name in enumerate(PICKLED_WEIGHTS):
        if number % 2:
            (folder / name).write_bytes(pickle.dumps(Attack(marker)))
        else:
            torch = pytest.importorskip("torch")
            torch.save({"weight": Attack(marker)}, folder / name)


def test_the_attack_works(tmp_path):
    write_pickles(tmp_path, tmp_path / "marker")
    pickle.loads((tmp_path / "adapter_model.pt").read_bytes()).close()
    assert (tmp_path / "marker").exists()


# Pickles


@pytest.mark.parametrize("engine", ENGINES)
def test_an_adapter_of_pickles_alone_reaches_no_engine(tmp_path, toy_adapter, monkeypatch, engine):
    def start(*arguments, **options):
        raise AssertionError("started")

    monkeypatch.setattr("medical_assistant.engines.llama_cpp.ChildProcess", start)
    monkeypatch.setattr("medical_assistant.engines.transformers.load_weights", start)
    monkeypatch.setattr("medical_assistant.engines.load.find_preset", lambda model: TOY)
    monkeypatch.setattr("medical_assistant.engines.load.choose_engine", lambda preset: "llama_cpp")
    (toy_adapter / "adapter_model.safetensors").unlink()
    write_pickles(toy_adapter, tmp_path / "marker")
    with pytest.raises(AdapterError, match=r"has no adapter_model\.safetensors"):
        load_engine("base", toy_adapter, engine)
    assert not (tmp_path / "marker").exists()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> tuple[Preset, Path]:
    """A base and its adapter that transformers loads."""
    pytest.importorskip("peft")
    from tests.support.tiny_llama import make_base, make_peft_adapter

    folder = tmp_path_factory.mktemp("tiny")
    base = make_base(folder / "base")
    return base, make_peft_adapter(base, folder / "adapter")


def test_pickles_beside_the_weights_are_not_read(tiny, tmp_path, monkeypatch):
    from medical_assistant.engines.base import Options
    from medical_assistant.engines.transformers import TransformersEngine
    from medical_assistant.publish import merging

    base, folder = tiny[0], shutil.copytree(tiny[1], tmp_path / "adapter")
    write_pickles(folder, tmp_path / "marker")
    prompt = json.loads((folder / "prompt.json").read_text())
    prompt["chat_template"] = CHOSEN + prompt["chat_template"]
    (folder / "prompt.json").write_text(json.dumps(prompt))
    engine = TransformersEngine(base, load_adapter(folder, base), quantize="none", dtype="float32")
    messages = [{"role": "user", "content": "he"}]
    assert list(engine.stream(messages, Options(adapter=True, max_new_tokens=2)))
    monkeypatch.setattr(merging, "check_merge", lambda preset, gguf_type: Path(base.repository) / "base.gguf")
    assert merging.merge_adapter(folder, base).is_dir()
    assert not (tmp_path / "marker").exists()


def test_a_base_of_pickles_runs_nothing(tiny, tmp_path):
    base = shutil.copytree(tiny[0].repository, tmp_path / "base")
    (base / "model.safetensors").unlink()
    write_pickles(base, tmp_path / "marker")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_engine(str(base), None, "transformers")
    assert not (tmp_path / "marker").exists()


# Code of a repository


def trap(tmp_path: Path, config: dict) -> Path:
    """A model's folder whose own code would make the file "marker"."""
    folder = tmp_path / "trap"
    folder.mkdir(exist_ok=True)
    lines = (
        f"open({str(tmp_path / 'marker')!r}, 'w')\nfrom transformers import LlamaConfig as X, LlamaForCausalLM as Y\n"
    )
    (folder / "modeling_x.py").write_text(lines + "from transformers import PreTrainedTokenizerFast as Z\n")
    kinds = {"AutoConfig": "X", "AutoTokenizer": ["Z", "Z"], "AutoTokenizerFast": "Z"}
    kinds |= dict.fromkeys(["AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification"], "Y")
    auto_map = {
        kind: [f"modeling_x.{n}" for n in name] if isinstance(name, list) else f"modeling_x.{name}"
        for kind, name in kinds.items()
    }
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
        (folder / name).write_text(json.dumps({**content, **config, "auto_map": auto_map}))
    return folder


@pytest.fixture
def nobody_asked(monkeypatch):
    """transformers would ask in the terminal; here whoever sits there would agree."""
    asked = []
    monkeypatch.setattr("builtins.input", lambda prompt="": asked.append(prompt) or "y")
    yield
    assert asked == []


def test_the_trap_works(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr("builtins.input", lambda prompt="": "y")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(transformers.LlamaConfig, "_auto_class", None)  # which loading sets for ever
    transformers.AutoConfig.from_pretrained(trap(tmp_path, {"model_type": "x"}))
    assert (tmp_path / "marker").exists()


def loaders():

    from medical_assistant.models import loading

    return {
        "engine": lambda folder: load_engine(str(folder), None, "transformers", quantize="none"),
        "tokenizer": lambda folder: loading.load_tokenizer(Preset("x", str(folder))),
        "model": lambda folder: loading.load_model(Preset("x", str(folder)), "none"),
        "nf4": lambda folder: loading.load_model(Preset("x", str(folder)), "nf4"),
        "config": lambda folder: loading.load_config(Preset("x", str(folder))),
    }


@pytest.mark.parametrize("way", ["engine", "tokenizer", "model", "nf4", "config"])
def test_a_models_own_code_is_not_run(tmp_path, nobody_asked, way):
    pytest.importorskip("peft")
    with pytest.raises(UserError):
        loaders()[way](trap(tmp_path, {"model_type": "x"}))
    assert not (tmp_path / "marker").exists()


def test_a_known_model_with_code_of_its_own_is_served_without_it(tiny, tmp_path, nobody_asked):
    shutil.copytree(tiny[0].repository, tmp_path / "trap")
    engine = load_engine(str(trap(tmp_path, {})), None, "transformers", quantize="none")
    assert engine.count_tokens([{"role": "user", "content": "he"}]) > 0
    assert not (tmp_path / "marker").exists()


def calls():
    """(where, name of what is called, its keywords) in all of this repository's own code."""
    for path in sorted([*ROOT.glob("*.py"), *ROOT.glob("medical_assistant/**/*.py"), *ROOT.glob("benchmarks/*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                keywords = {keyword.arg: keyword.value for keyword in node.keywords}
                yield f"{path.relative_to(ROOT)}:{node.lineno}", ast.unparse(node.func), keywords


def test_no_call_trusts_foreign_code():
    found = 0
    for where, name, keywords in calls():
        trust = keywords.get("trust_remote_code")
        assert trust is None or (isinstance(trust, ast.Constant) and trust.value is False), where
        if name.startswith("Auto") and name.endswith(".from_pretrained") and where.startswith("medical_assistant/"):
            assert trust is not None, f"{where}: without trust_remote_code=False transformers asks in the terminal"
            found += 1
        assert name.partition(".")[0] not in ("pickle", "cPickle", "dill", "joblib", "marshal", "shelve"), where
        assert name not in ("torch.load", "eval", "exec", "yaml.unsafe_load", "yaml.full_load"), where
    assert found >= 3


# Files that are broken on purpose


def safetensors(header: object) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\0" * 7, struct.pack("<Q", 2**63), struct.pack("<Q", 2**64 - 1) + b"{}", safetensors(b""),
        safetensors([]), safetensors("x"), safetensors(7), safetensors({}), safetensors({"__metadata__": {}}),
        safetensors({"x": 1}), safetensors({"x": {}}), safetensors({"x": {"data_offsets": []}}),
        safetensors({"x": {"data_offsets": [0, "9"]}}), safetensors({"x": {"data_offsets": [0, 1e999]}}),
        safetensors({"x": {"data_offsets": [0, 2**70]}}), safetensors({"x": {"data_offsets": [0, -5]}}),
        safetensors(b"[" * 200_000), safetensors(b"\xff\xfe"), pickle.dumps({"a": 1}),
    ],
)  # fmt: skip
def test_broken_safetensors_are_one_line(toy_adapter, content):
    (toy_adapter / "adapter_model.safetensors").write_bytes(content)
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors is (broken|truncated): ") as caught:
        load_adapter(toy_adapter, TOY)
    assert "\n" not in str(caught.value)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60), length=st.one_of(st.none(), st.integers(0, 2**64 - 1)))
def test_any_bytes_as_weights_are_one_line(shared_toy, content, length):
    begin = b"" if length is None else struct.pack("<Q", length)
    (shared_toy / "adapter_model.safetensors").write_bytes(begin + content)
    with pytest.raises(AdapterError):
        load_adapter(shared_toy, TOY)


@pytest.fixture(scope="module")
def shared_toy(tmp_path_factory):
    return write_toy_adapter(tmp_path_factory.mktemp("shared") / "adapter")


@pytest.mark.parametrize("name", ["adapter_config.json", "prompt.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 200_000, b'{"a":' * 100_000])
def test_broken_json_is_one_line(toy_adapter, name, content):
    (toy_adapter / name).write_bytes(content)
    with pytest.raises(AdapterError, match=f"{name} ") as caught:
        load_adapter(toy_adapter, TOY)
    assert "\n" not in str(caught.value)
