"""The transformers engine on a tiny random model, and (slow) against the llama.cpp engine."""

from __future__ import annotations

import json
import math
import sys
import threading
import types
from contextlib import closing

import pytest

from medical_assistant.engines.base import Options, Token
from medical_assistant.engines.load import load_engine
from medical_assistant.errors import AdapterError, EngineError, UserError
from medical_assistant.files import ASSETS
from medical_assistant.models.adapter import Adapter, load_adapter
from medical_assistant.models.loading import compute_dtype
from medical_assistant.models.presets import Preset
from medical_assistant.prompts import build_messages
from tests.support.paths import ROOT
from tests.support.streams import read_stream, read_text
from tests.support.tiny_llama import TEMPLATE, make_base, make_peft_adapter

torch = pytest.importorskip("torch")

BUNDLED = ASSETS / "adapters" / "smollm2-135m"
MESSAGES = [{"role": "user", "content": "How is asthma treated?"}]
BASE, TUNED = Options(adapter=False, max_new_tokens=24), Options(adapter=True, max_new_tokens=24)


@pytest.fixture(scope="module")
def preset(tmp_path_factory) -> Preset:
    """A Llama of two layers over bytes: every character but ASCII is split over tokens."""
    # A flat distribution would make every choice a near tie; NF4's blocks have 64 weights.
    options = {"max_position_embeddings": 256, "initializer_range": 0.2, "intermediate_size": 256}
    return make_base(tmp_path_factory.mktemp("tiny"), TEMPLATE, **options)


@pytest.fixture(scope="module")
def adapter(preset, tmp_path_factory) -> Adapter:
    return load_adapter(make_peft_adapter(preset, tmp_path_factory.mktemp("adapter")), preset)


@pytest.fixture(scope="module")
def make_engine(preset):
    """Threads of such small sums would only wait for each other."""
    from medical_assistant.engines.transformers import TransformersEngine

    threads = torch.get_num_threads()
    yield lambda adapter=None, **settings: TransformersEngine(
        preset, adapter, **{"dtype": "float32", "threads": 1, **settings}
    )
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def engine(make_engine, adapter):
    return make_engine(adapter)


def run(engine, options, messages=MESSAGES):
    return read_stream(engine, options, messages)


def text(engine, options, messages=MESSAGES) -> str:
    return read_text(engine, options, messages)


def reference(engine, adapter_on: bool, count: int) -> tuple[str, list[float]]:
    """Return (text, log-probabilities) of `generate`, the library's own greedy decoding."""
    layers = engine._model.base_model
    (layers.enable_adapter_layers if adapter_on else layers.disable_adapter_layers)()
    engine._adapter_on = adapter_on
    ids = engine._encode(MESSAGES)
    with torch.inference_mode():
        whole = engine._model.generate(
            input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=count, do_sample=False
        )
        logits = engine._model(whole).logits[0].float()
    answer = whole[0, len(ids) :]
    logprobs = logits.log_softmax(-1)[len(ids) - 1 : -1].gather(1, answer[:, None])[:, 0]
    return engine._tokenizer.decode(answer, skip_special_tokens=True), logprobs.tolist()


@pytest.mark.parametrize("options", [BASE, TUNED])
def test_greedy_equals_generate(engine, options):
    tokens, _ = run(engine, options)
    expected, logprobs = reference(engine, options.adapter, options.max_new_tokens)
    got = "".join(token.text for token in tokens)
    assert got and expected.startswith(got)  # a character that was cut off is left out
    assert [t.logprob for t in tokens] == pytest.approx(logprobs[: len(tokens)], abs=1e-3)


def test_adapter_changes_the_answer_and_off_is_the_base(engine, make_engine):
    base = text(make_engine(), BASE)
    assert text(engine, TUNED) != base
    assert text(engine, BASE) == base


@pytest.mark.parametrize("options", [BASE, TUNED])
def test_batches_give_the_answers_of_single_requests(engine, options):
    """Prompts of different lengths, and more of them than a batch holds."""
    questions = ["How is asthma treated?", "What is gout?", "Why do I cough at night, and what helps against it?"] * 2
    conversations = [build_messages(question) for question in questions]
    engine._parallel = 4
    answers = dict(engine.answer_all(conversations, options))
    assert sorted(answers) == list(range(6))
    for index, messages in enumerate(conversations):
        tokens, reason = run(engine, options, messages)
        real = [token for token in tokens if token != Token("", 0.0)]
        # The first 8 tokens: from a near tie on, two sums in another order may go different ways.
        assert answers[index].logprobs[:8] == pytest.approx([token.logprob for token in real[:8]], abs=2e-2)
        assert answers[index].entropies[:8] == pytest.approx([token.entropy for token in real[:8]], abs=2e-2)
        assert answers[index].text and answers[index].finish_reason == reason and answers[index].seconds > 0
    assert answers[0] != answers[1] and answers[0].text == answers[3].text


def test_batch_with_a_question_that_is_too_long(engine):
    with pytest.raises(UserError, match="more than"):
        list(engine.answer_all([build_messages("word " * 3000)], BASE))


def test_entropy_by_hand():
    from medical_assistant.engines.transformers import entropy

    even, sure = torch.zeros(1, 4), torch.tensor([[0.0, float("-inf"), float("-inf"), float("-inf")]])
    assert entropy(even).item() == pytest.approx(math.log(4)) and entropy(sure).item() == pytest.approx(0.0)


def test_adapter_asked_of_a_base_engine(make_engine):
    with pytest.raises(AdapterError, match="No adapter"):
        make_engine().stream(MESSAGES, TUNED)


def test_seed_and_temperature(engine):
    hot = Options(adapter=False, max_new_tokens=24, temperature=2.0, seed=1)
    assert text(engine, hot) == text(engine, hot)
    others = {text(engine, Options(False, 24, 2.0, 1.0, seed)) for seed in range(4)}
    assert len(others) == 4
    assert text(engine, Options(False, 24, 2.0, top_p=1e-6)) == text(engine, BASE)


def test_nucleus_and_temperature_follow_their_definitions():
    from medical_assistant.engines.transformers import choose

    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    generator = torch.Generator().manual_seed(0)
    draws = [choose(logits, Options(temperature=1.0, top_p=0.7), generator) for _ in range(3000)]
    # 0.5 alone does not reach 0.7, so 0.3 is in; the two are drawn 5 to 3.
    assert {token for token, _ in draws} == {0, 1}
    assert sum(token == 0 for token, _ in draws) / 3000 == pytest.approx(0.625, abs=0.04)
    assert {round(logprob, 4) for _, logprob in draws} == {-0.6931, -1.204}  # of the whole distribution
    draws = [choose(logits, Options(temperature=0.5), generator) for _ in range(3000)]
    squares = 0.25 + 0.09 + 0.0225 + 0.0025
    assert sum(token == 0 for token, _ in draws) / 3000 == pytest.approx(0.25 / squares, abs=0.04)
    assert choose(logits, Options(temperature=0.0), generator)[0] == 0


def test_characters_split_over_tokens_stay_whole(engine, monkeypatch):
    """The model is made to say a fixed text, byte by byte."""
    said = "Fièvre 😀🩺 ماء 水!"
    ids = engine._tokenizer.encode(said, add_special_tokens=False)
    assert len(ids) == len(said.encode())
    queue = iter([*ids, engine._tokenizer.eos_token_id])
    monkeypatch.setattr("medical_assistant.engines.transformers.choose", lambda *_: (next(queue), -1.0))
    tokens, reason = run(engine, Options(adapter=False, max_new_tokens=200))
    assert "".join(t.text for t in tokens) == said and reason == "stop"
    assert len(tokens) == len(ids) and all("\ufffd" not in t.text for t in tokens)


def test_context_limits(engine):
    assert engine.context_tokens == 256  # the model's, below the default
    prompt = engine.count_tokens(MESSAGES)
    tokens, reason = run(engine, Options(adapter=False, max_new_tokens=1000, temperature=3.0))
    assert len(tokens) <= 256 - prompt and reason in ("length", "stop")
    with pytest.raises(UserError, match="too long"):
        engine.stream([{"role": "user", "content": "x" * 300}], BASE)


def test_prompt_in_pieces_gives_the_same_answer(engine, monkeypatch):
    whole, _ = run(engine, TUNED)
    monkeypatch.setattr("medical_assistant.engines.transformers.PREFILL_TOKENS", 16)
    pieces, _ = run(engine, TUNED)
    signs = -(-engine.count_tokens(MESSAGES) // 16) - 1
    assert pieces[:signs] == [Token("", 0.0)] * signs
    assert [t.text for t in pieces[signs:]] == [t.text for t in whole]


def test_closing_the_stream_stops_the_model(engine, monkeypatch):
    calls = []
    forward = engine._forward
    monkeypatch.setattr(engine, "_forward", lambda *args: calls.append(1) or forward(*args))
    stream = engine.stream(MESSAGES, Options(adapter=False, max_new_tokens=200, temperature=3.0))
    next(stream)
    stream.close()
    count = len(calls)
    assert count <= 2
    threading.Event().wait(0.3)
    assert len(calls) == count


def test_interleaved_requests_do_not_mix(engine):
    """Base and adapter turn by turn, each step in another thread, as Gradio runs generators."""
    expected = text(engine, BASE), text(engine, TUNED)
    streams = engine.stream(MESSAGES, BASE), engine.stream(MESSAGES, TUNED)
    got = ["", ""]

    def step(i: int) -> None:
        got[i] += next(streams[i], Token("", 0.0)).text

    for turn in range(50):
        thread = threading.Thread(target=step, args=(turn % 2,))
        thread.start()
        thread.join()
    assert tuple(got) == expected


def test_concurrent_threads(engine):
    options = [BASE, TUNED] * 3
    expected = [text(engine, o) for o in options]
    got = [""] * 6
    threads = [threading.Thread(target=lambda i=i: got.__setitem__(i, text(engine, options[i]))) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == expected


def test_abandoned_stream_blocks_nobody(engine):
    stream = engine.stream(MESSAGES, TUNED)
    next(stream)
    assert text(engine, BASE)
    stream.close()


def test_closed_engine(make_engine):
    engine = make_engine()
    stream = engine.stream(MESSAGES, BASE)
    next(stream)
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        list(stream)
    with pytest.raises(EngineError, match="closed"):
        run(engine, BASE)


def test_failure_of_the_model_is_one_line(engine, monkeypatch):
    def fail(*_):
        raise RuntimeError("CUDA out of memory.\nTried to allocate 2 GiB")

    monkeypatch.setattr(engine, "_forward", fail)
    with pytest.raises(EngineError, match="CUDA out of memory") as caught:
        run(engine, BASE)
    assert "\n" not in str(caught.value)


def test_adapter_of_another_prompt_is_refused(make_engine, adapter):
    from dataclasses import replace

    changed = replace(adapter, prompt={**adapter.prompt, "chat_template": "{{ messages }}"})
    with pytest.raises(AdapterError, match="chat template"):
        make_engine(changed)


def test_bad_models_and_settings(tmp_path, make_engine):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(EngineError, match="cannot be loaded"):
        load_engine(str(tmp_path), engine="transformers")
    with pytest.raises(UserError, match="dtype"):
        make_engine(dtype="float31")


def test_nf4(make_engine, adapter):
    pytest.importorskip("bitsandbytes")
    engine = make_engine(adapter, quantize="nf4")
    kinds = {type(module).__name__ for module in engine._model.modules()}
    assert "Linear4bit" in kinds
    assert text(engine, BASE) != text(engine, TUNED)


def test_zero_gpu_decorates_the_generation_only(make_engine, monkeypatch):
    """The package `spaces` is replaced: off a Space its decorator does nothing."""
    from medical_assistant.engines import transformers as module

    made = []

    def gpu(task, duration):
        made.append((task.__name__, duration))
        return task

    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    monkeypatch.setitem(sys.modules, "spaces", types.SimpleNamespace(GPU=gpu))
    load = module.load_weights
    asked = []

    def load_on_cpu(preset, adapter, device, dtype, quantize):
        asked.append((device, compute_dtype(dtype, decoding=True), quantize))
        return load(preset, adapter, "cpu", "float32", quantize)

    monkeypatch.setattr(module, "load_weights", load_on_cpu)
    engine = make_engine(dtype="auto")
    assert asked == [("cuda", torch.bfloat16, "auto")]
    ((name, duration),) = made
    assert name == "_generate"
    assert 15 < duration([1] * 100, Options(max_new_tokens=256)) < 60
    engine._device = "cpu"
    assert text(engine, BASE)


@pytest.fixture(scope="module")
def both_engines():
    """(llama.cpp, transformers) on the embedded model with the bundled adapter."""
    with closing(load_engine("smollm2-135m", BUNDLED, "llama_cpp", threads=1)) as llama:
        yield llama, load_engine("smollm2-135m", BUNDLED, "transformers", dtype="float32")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_both_engines_read_the_same_tokens(both_engines):
    llama, transformers = both_engines
    chat = build_messages(
        "And <|im_start|>system 😀 ماء?", [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    )
    for messages in (chat, build_messages("How is asthma treated?")):
        client = llama._child.client
        prompt = client.request("POST", "/apply-template", {"messages": messages})["prompt"]
        payload = {"content": prompt, "add_special": True, "parse_special": True}
        assert client.request("POST", "/tokenize", payload)["tokens"] == transformers._encode(messages)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("adapter_on", [False, True])
def test_both_engines_choose_the_same_next_token(both_engines, adapter_on):
    """Over 50 questions: 40 greedy tokens of llama.cpp, read again by transformers in one pass.

    llama.cpp multiplies 4-bit weights with activations rounded to 8 bits, so near ties may differ.
    """
    llama, transformers = both_engines
    fixture = ROOT / "tests" / "fixtures" / "agreement_prompts.jsonl"
    questions = [json.loads(line)["question"] for line in fixture.read_text(encoding="utf-8").splitlines()]
    assert len(questions) == 50
    layers = transformers._model.base_model
    (layers.enable_adapter_layers if adapter_on else layers.disable_adapter_layers)()
    transformers._adapter_on = adapter_on
    agree = positions = 0
    for question in questions:
        prompt = transformers._encode(build_messages(question))
        payload = {
            "prompt": prompt,
            "n_predict": 40,
            "temperature": 0,
            "samplers": ["top_k"],
            "top_k": 1,
            "n_probs": 1,
            "lora": [{"id": 0, "scale": float(adapter_on)}],
        }
        answer = llama._child.client.request("POST", "/completion", payload)
        chosen = [entry["id"] for entry in answer["completion_probabilities"]]
        with torch.inference_mode():
            ids = torch.tensor([prompt + chosen[:-1]])
            logits = transformers._model(input_ids=ids, logits_to_keep=len(chosen)).logits[0]
        agree += int((logits.argmax(-1) == torch.tensor(chosen)).sum())
        positions += len(chosen)
    assert positions > 1000
    assert agree / positions >= 0.95, f"{agree} of {positions} positions"
