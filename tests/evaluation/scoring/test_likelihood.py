"""Likelihoods of a tiny random model against plain forward passes, one text at a time."""

from __future__ import annotations

import math

import pytest

from medical_assistant.data.records import make_record
from medical_assistant.errors import UserError
from medical_assistant.evaluation.scoring.likelihood import Scorer, _batches, _groups, perplexity
from medical_assistant.prompts import build_messages
from tests.support.tiny_llama import TEMPLATE, make_base, make_peft_adapter

torch = pytest.importorskip("torch")

END = 2  # <|im_end|>; the template writes a newline after it
QUESTIONS = ["What is gout?", "How is asthma treated, and by whom?", "Why?"]
PAIRS = [
    (build_messages("What is gout?"), "A disease of joints."),
    (build_messages("What is gout?"), "B"),
    (build_messages("What is gout?"), "the heel hurts é"),
    (build_messages("How is asthma treated, and by whom?"), "With an inhaler. " * 4),
    (build_messages("Why?"), "he"),
    (build_messages("How?"), "Yes"),  # as long as the prompt before, so both can share a batch
    (build_messages("How?"), "Not at all"),
    (build_messages("Why?"), "No"),
]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """(preset, checked adapter) of a tiny model in float32."""
    from medical_assistant.models.adapter import load_adapter

    folder = tmp_path_factory.mktemp("likelihood")
    preset = make_base(folder / "base")
    (folder / "base" / "chat_template.jinja").write_text(TEMPLATE)
    return preset, load_adapter(make_peft_adapter(preset, folder / "adapter"), preset)


@pytest.fixture(scope="module")
def scorer(parts) -> Scorer:
    torch.set_num_threads(1)
    return exact_scorer(*parts)


def exact_scorer(*parts) -> Scorer:
    """A scorer in float32."""
    scorer = Scorer(*parts)
    scorer.model.float()
    scorer.batch_tokens = 300
    return scorer


def plain(scorer: Scorer, messages, text: str, adapter: bool, end_of_turn: bool = True) -> tuple[int, float]:
    """(tokens, log-likelihood) by one unbatched forward with log_softmax."""
    render = scorer.tokenizer.apply_chat_template
    prompt = render(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    ids = render([*messages, {"role": "assistant", "content": text}], return_dict=True)["input_ids"]
    if not end_of_turn:
        ids = ids[:-2]  # <|im_end|>, newline
    with scorer.switched(adapter), torch.no_grad():
        logprobs = scorer.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return len(ids) - len(prompt), sum(float(logprobs[i - 1, ids[i]]) for i in range(len(prompt), len(ids)))


@pytest.mark.parametrize("batch_tokens", [1, 300, 100_000])
@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("end_of_turn", [False, True])
def test_a_score_is_that_of_a_plain_forward_whatever_the_batch(scorer, batch_tokens, adapter, end_of_turn) -> None:
    scorer.batch_tokens = batch_tokens
    scores = scorer.score(PAIRS, adapter, "test", end_of_turn=end_of_turn)
    for (messages, text), score in zip(PAIRS, scores, strict=True):
        tokens, logprob = plain(scorer, messages, text, adapter, end_of_turn)
        assert score.tokens == tokens
        assert score.logprob == pytest.approx(logprob, abs=1e-4)
        assert not score.truncated


def test_only_the_completion_is_scored(scorer) -> None:
    short, long = (build_messages(question) for question in ("Why?", "Why does it hurt when I run uphill in winter?"))
    one, other = scorer.score([(short, "It is gout."), (long, "It is gout.")], adapter=False, label="test")
    # Bytes, "he" aside: 11 of the text, <|im_end|> and the newline of the template.
    assert one.tokens == other.tokens == 13
    assert one.logprob != pytest.approx(other.logprob, abs=1e-3)
    bare = scorer.score([(short, "It is gout.")], adapter=False, label="test", end_of_turn=False)[0]
    assert bare.tokens == 11
    accents = scorer.score([(short, "né")], adapter=False, label="test", end_of_turn=False)[0]
    assert accents.tokens == 3


def test_off_is_the_base_model_and_on_is_not(scorer, parts) -> None:
    base = exact_scorer(parts[0]).score(PAIRS, adapter=False, label="test")
    off, on, again = (scorer.score(PAIRS, adapter, "test") for adapter in (False, True, False))
    for alone, row_off, row_on in zip(base, off, on, strict=True):
        assert row_off.logprob == pytest.approx(alone.logprob, abs=1e-4)
        assert abs(row_on.logprob - row_off.logprob) > 1e-2
    assert off == again


@pytest.mark.parametrize("adapter", [False, True])
def test_perplexity_is_exp_of_the_loss_that_training_lowers(scorer, adapter) -> None:
    from medical_assistant.training.data import MASKED, _tokenized_rows

    records = [make_record(q, f"The answer to {q} is rest. " * n, f"r-{n}", "test", n) for n, q in enumerate(QUESTIONS)]
    records[0]["completion"][0]["content"] = "Rest."
    result = perplexity(scorer, records, adapter, "test")
    nll, tokens = [], []
    for row in _tokenized_rows(records, scorer.tokenizer):
        labels = torch.tensor([row["labels"]])
        with scorer.switched(adapter), torch.no_grad():
            loss = float(scorer.model(input_ids=torch.tensor([row["input_ids"]]), labels=labels).loss)
        tokens.append(int((labels[:, 1:] != MASKED).sum()))
        nll.append(loss * tokens[-1])
    assert result["tokens_per_item"] == tokens and result["tokens"] == sum(tokens)
    assert result["nll_per_item"] == pytest.approx(nll, abs=1e-3)
    assert result["perplexity"] == pytest.approx(math.exp(sum(nll) / sum(tokens)), rel=1e-5)
    text_bytes = sum(len(record["completion"][0]["content"].encode()) for record in records)
    assert result["bits_per_byte"] == pytest.approx(sum(nll) / math.log(2) / text_bytes, rel=1e-5)
    assert result["truncated"] == 0


def test_what_does_not_fit_is_cut_at_the_start_of_the_prompt_and_counted(parts) -> None:
    small = exact_scorer(*parts)
    small.context_tokens = 64
    records = [make_record("Why?", "x" * 20, "a", "test", 0), make_record("Why?", "y" * 100, "b", "test", 1)]
    result = perplexity(small, records[:1], adapter=False, label="test")
    assert result["truncated"] == 1 and result["tokens"] == 22  # the system prompt alone is longer than 64 bytes
    ids = [*small._encode(records[0]["prompt"], "x" * 20, True)[0][-42:]]
    completion = [*small._encode(records[0]["prompt"], "x" * 20, True)[1]]
    with small.switched(False), torch.no_grad():
        logprobs = small.model(input_ids=torch.tensor([ids + completion])).logits[0].log_softmax(-1)
    expected = sum(float(logprobs[41 + i, token]) for i, token in enumerate(completion))
    assert result["nll_per_item"][0] == pytest.approx(-expected, abs=1e-4)
    assert (
        perplexity(small, records[1:], adapter=False, label="test")["tokens"] == 63
    )  # one token of the prompt is left


def test_options_of_one_prompt_are_cut_alike() -> None:
    prompt = list(range(10, 20))
    (group,) = _groups([(prompt, [1]), (prompt, [1, 2, 3])], context_tokens=8)
    assert group.prompt == [15, 16, 17, 18, 19] and group.completions == [[1], [1, 2, 3]] and group.truncated


def test_batches_hold_the_budget_and_start_with_the_longest() -> None:
    encoded = [([number] * length, [7] * 5) for number, length in enumerate((10, 30, 20, 31, 3))]
    batches = list(_batches(_groups(encoded, 100), batch_tokens=75))
    assert [[len(group.prompt) for group in batch] for batch in batches] == [
        [31, 30],
        [20, 10, 3],
    ]  # 2 x 36 and 3 x 25 tokens
    shared = [([50 + number] * 10, [option] * 2) for number in range(3) for option in range(4)]
    sizes = [len(batch) for batch in _batches(_groups([*shared, *encoded], 100), batch_tokens=96)]
    assert sizes[:2] == [2, 1]  # 2 x 4 rows of 12 tokens


def test_a_thought_that_the_template_writes_is_no_part_of_an_option(scorer, monkeypatch) -> None:
    """As Qwen3: the thought is in the chat, but in the prompt only when `enable_thinking` is false."""
    opening = "{% if m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}"
    template = TEMPLATE.replace("{{ m.content }}", opening).replace(
        "<|im_start|>assistant\n",
        "<|im_start|>assistant\n{% if not enable_thinking|default(true) %}<think></think>{% endif %}",
    )
    monkeypatch.setattr(scorer.tokenizer, "chat_template", template)
    messages = build_messages("Why?")
    assert scorer.tokenizer.decode(scorer._encode(messages, "Rest", end_of_turn=False)[1]) == "Rest"
    assert scorer.tokenizer.decode(scorer._encode(messages, "Rest", end_of_turn=True)[1]).startswith("<think></think>")


def test_a_template_that_changes_the_question_is_refused(scorer, monkeypatch) -> None:
    template = "{{ messages|length }}" + TEMPLATE
    monkeypatch.setattr(scorer.tokenizer, "chat_template", template)
    with pytest.raises(UserError, match="otherwise when 'Rest' follows"):
        scorer.score([(build_messages("Why?"), "Rest")], adapter=False, label="test")


@pytest.mark.parametrize("template", ["{{ raise_exception('no candidate role') }}"])
def test_a_template_that_refuses_the_chat_is_one_line(scorer, monkeypatch, template) -> None:
    monkeypatch.setattr(scorer.tokenizer, "chat_template", template)
    with pytest.raises(UserError, match="no candidate role"):
        scorer.score([(build_messages("Why?"), "Rest")], adapter=False, label="test")


def test_the_bar_counts_every_token_once(scorer, capsys) -> None:
    scorer.batch_tokens = 300
    scorer.score(PAIRS[:2], adapter=False, label="perplexity, base")
    shown = capsys.readouterr().err
    assert "perplexity, base: 100%" in shown and "token/s" in shown
