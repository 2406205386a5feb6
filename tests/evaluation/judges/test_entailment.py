"""The NLI judge on a tiny random BERT: labels by name, windows, batches."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medical_assistant.errors import UserError
from medical_assistant.evaluation.judges.entailment import NliJudge, decide, find_columns, window_starts
from medical_assistant.evaluation.judges.judge import Claim, load_judge

WORDS = "is a cold flu caused by virus rest water drink yes no the and . ? one two three four five six".split()
STATEMENTS = ("flu is a virus", "no cold", "drink water .", "five six")
LIMIT = 64  # tokens that the tiny model reads


def make_model(folder: Path, names: list[str], seed: int = 6) -> Path:
    """Return `folder` with a random BERT classifier whose outputs are called `names`."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder.mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    tokenizer = BertTokenizerFast(vocab_file=str(folder / "vocab.txt"), model_max_length=LIMIT)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LIMIT,
        initializer_range=1.0,  # wide: verdicts that differ from text to text
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("nli") / "tiny-nli", ["contradiction", "entailment", "neutral"])


@pytest.fixture(scope="module")
def judge(model: Path) -> NliJudge:
    return NliJudge(str(model), batch_size=3)


def claims() -> list[Claim]:
    texts = [" ".join(WORDS[i : i + 5]) for i in range(0, 15, 2)]
    return [Claim("is flu a virus ?", text, statement) for text in texts for statement in STATEMENTS]


def test_labels_are_found_by_name_in_any_order_and_case(model: Path, tmp_path: Path, judge: NliJudge):
    """The same weights with the rows of the head permuted, and the names with them, say the same."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    network = AutoModelForSequenceClassification.from_pretrained(model)
    order = [2, 0, 1]  # NEUTRAL, Contradiction, ENTAILMENT
    with torch.no_grad():
        network.classifier.weight.copy_(network.classifier.weight[order].clone())
        network.classifier.bias.copy_(network.classifier.bias[order].clone())
    network.config.id2label = {0: "NEUTRAL", 1: "Contradiction", 2: "ENTAILMENT"}
    network.save_pretrained(tmp_path / "permuted")
    AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path / "permuted")
    permuted = NliJudge(str(tmp_path / "permuted"), batch_size=3)
    first = [verdict.label for _, verdict in judge.verdicts(claims())]
    assert [verdict.label for _, verdict in permuted.verdicts(claims())] == first
    assert len(set(first)) > 1  # or the test would show nothing


def test_verdict_is_the_greatest_probability(judge: NliJudge):
    """Against the model called by hand, one pair at a time."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = judge._model.config._name_or_path
    network, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    expected = []
    for claim in claims()[:10]:
        with torch.inference_mode():
            pair = tokenizer(f"{claim.question} {claim.answer}", claim.statement, return_tensors="pt")
            expected.append(["contradicted", "entailed", "neither"][int(network.eval()(**pair).logits.argmax())])
    found = list(judge.verdicts(claims()[:10]))
    assert [index for index, _ in found] == list(range(len(expected)))
    assert [verdict.label for _, verdict in found] == expected


def test_batch_size_changes_nothing(model: Path, judge: NliJudge):
    other = NliJudge(str(model), batch_size=32)
    assert list(other.verdicts(claims())) == list(judge.verdicts(claims()))


def test_name_is_no_path(model: Path, judge: NliJudge):
    assert (judge.kind, judge.name, judge.prompt_sha256) == ("nli", "tiny-nli", None)
    assert load_judge(None, None, str(model)).name == "tiny-nli"


@pytest.mark.parametrize("names", [["LABEL_0", "LABEL_1", "LABEL_2"], ["entailment", "not_entailment"], ["positive"]])
def test_model_without_the_labels_is_refused(tmp_path: Path, names):
    folder = make_model(tmp_path / "other", names)
    with pytest.raises(UserError, match=f"other has the labels {names[0]}"):
        NliJudge(str(folder))


def test_columns():
    names = {0: " Entailment", 1: "NEUTRAL", 2: "contradiction"}
    assert find_columns(names, "m") == {"entailed": 0, "neither": 1, "contradicted": 2}


def test_no_model(tmp_path: Path):
    with pytest.raises(UserError, match="cannot be loaded"):
        NliJudge(str(tmp_path))


# windows


@pytest.mark.parametrize(
    ("total", "size", "starts"),
    [(10, 4, [0, 2, 4, 6]), (11, 4, [0, 2, 4, 6, 7]), (5, 4, [0, 1]), (100, 60, [0, 30, 40])],
)
def test_window_starts_by_hand(total, size, starts):
    assert window_starts(total, size) == starts


@given(st.integers(2, 40), st.integers(1, 200))
def test_windows_cover_every_token_and_overlap(size, rest):
    total = size + rest
    starts = window_starts(total, size)
    assert {token for start in starts for token in range(start, start + size)} == set(range(total))
    assert all(0 < later - earlier <= size // 2 for earlier, later in zip(starts, starts[1:], strict=False))


def test_long_answer_is_read_to_its_end(judge: NliJudge):
    answer = " ".join(["water"] * 300 + ["virus", "."])
    windows = judge._windows(Claim("is it ?", answer, "flu is a virus"))
    assert all(premise.startswith("is it ? ") and hypothesis == "flu is a virus" for premise, hypothesis in windows)
    assert windows[-1][0].endswith("water virus .")
    lengths = [len(judge._tokenizer(*pair)["input_ids"]) for pair in windows]
    assert max(lengths) <= LIMIT and min(lengths) == max(lengths)
    assert sum(premise.count("water") for premise, _ in windows) > 300  # with overlap


def test_entailment_anywhere_in_a_long_answer_counts(judge: NliJudge):
    """The verdict over the windows is the one by hand: greatest entailment and contradiction, least neutral."""
    answer = " ".join(WORDS * 12)
    claim = Claim("is flu a virus ?", answer, "flu is a virus")
    rows = judge._probabilities(judge._windows(claim))
    assert len(rows) > 4 and all(abs(sum(row.values()) - 1) < 1e-5 for row in rows)
    [(_, verdict)] = judge.verdicts([claim])
    assert verdict == decide(rows)


def row(entailed: float, contradicted: float) -> dict[str, float]:
    return {"entailed": entailed, "contradicted": contradicted, "neither": 1 - entailed - contradicted}


@pytest.mark.parametrize(
    ("windows", "label"),
    [
        ([row(0.6, 0.1)], "entailed"),
        ([row(0.1, 0.6)], "contradicted"),
        ([row(0.1, 0.1)], "neither"),
        ([row(0.05, 0.05), row(0.9, 0.02), row(0.1, 0.1)], "entailed"),
        ([row(0.05, 0.05), row(0.02, 0.9), row(0.1, 0.1)], "contradicted"),
        ([row(0.9, 0.05), row(0.02, 0.8)], "entailed"),
        ([row(0.4, 0.1), row(0.1, 0.4)], "neither"),  # neutral is greatest in both
        ([row(0.2, 0.1), row(0.1, 0.1)], "neither"),
    ],
)
def test_decision_over_windows(windows, label):
    assert decide(windows).label == label


def test_long_question_is_cut_not_the_answer(judge: NliJudge):
    [(premise, _)] = judge._windows(Claim(" ".join(["cold"] * 500), "drink water .", "no cold"))
    assert premise == " ".join(["cold"] * (LIMIT // 4)) + " drink water ."


def test_statement_too_long_has_no_verdict_and_others_do(judge: NliJudge):
    found = dict(judge.verdicts([Claim("is it ?", "yes .", "no " * 60), Claim("is it ?", "yes .", "no cold")]))
    assert found[0].label is None and "too long" in found[0].reason
    assert found[1].label is not None


def test_nothing_to_judge(judge: NliJudge):
    assert list(judge.verdicts([])) == []


@pytest.mark.gpu
def test_cuda_says_the_same(model: Path, monkeypatch: pytest.MonkeyPatch):
    import torch

    on_gpu = NliJudge(str(model))
    assert on_gpu._device == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert list(NliJudge(str(model)).verdicts(claims())) == list(on_gpu.verdicts(claims()))
