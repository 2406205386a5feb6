from __future__ import annotations

from pathlib import Path

import pytest

from medical_assistant.data.records import make_record, read_records, write_records
from medical_assistant.errors import UserError
from medical_assistant.models.presets import find_preset
from medical_assistant.prompts import SYSTEM_PROMPT
from medical_assistant.training import preflight
from medical_assistant.training.data import MASKED
from tests.support.training_fixture import make_run


@pytest.fixture(scope="module")
def data(prepared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prepared data with one longer answer, so that a batch has padding."""
    import shutil

    folder = shutil.copytree(prepared_data, tmp_path_factory.mktemp("data") / "longer")
    rows = read_records(folder / "train.jsonl")
    rows[0]["completion"][0]["content"] *= 3
    write_records(rows, folder / "train.jsonl")
    return folder


@pytest.fixture(scope="module", params=[False, True], ids=["padded", "padding-free"])
def run(request, data: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory):
    output = tmp_path_factory.mktemp("run")
    return make_run(data, tiny_model, output, padding_free=request.param)


def batch_of(run):
    trainer = run[0]
    return trainer.data_collator([trainer.train_dataset[i] for i in range(4)])


def test_mistake_1_the_loss_is_on_the_answer_and_its_end_only(run) -> None:
    _, tokenizer, data, _ = run
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    batch = batch_of(run)
    preflight.check_batch(batch, tokenizer, data.answers)
    rows = preflight.batch_rows(batch)
    assert len(rows) == 4
    for answer, (_, labels, _) in zip(data.answers, rows, strict=False):
        learnt = [label for label in labels if label != MASKED]
        # Neither prompt nor padding is learnt, and EOS is, though pad = EOS here.
        assert tokenizer.decode(learnt) == answer + tokenizer.eos_token + "\n"
    assert any(any(padding) for _, _, padding in rows) != run[3].trainer.padding_free  # there was padding to get wrong


def test_mistake_2_training_and_serving_read_the_same_tokens(run) -> None:
    trainer, tokenizer, _, _ = run
    row = trainer.train_dataset[1]
    prompt = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label == MASKED]
    messages = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": "What is condition 1?"}]
    served = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert prompt == served


def _spoil(kind: str, batch, tokenizer) -> None:
    labels, ids = batch["labels"], batch["input_ids"]
    learnt = (labels[0] != MASKED).nonzero()[:, 0]
    first = int(learnt[0])
    if kind == "all masked":
        labels[:, :] = MASKED
    elif kind == "prompt":
        labels[0, 1:first] = ids[0, 1:first]
    elif kind == "padding":
        labels[-1, -1] = ids[-1, -1]
    elif kind == "no end":  # the bug of pad = EOS: every EOS is masked
        labels[labels == tokenizer.eos_token_id] = MASKED
    elif kind == "cut start":
        labels[0, first : first + 3] = MASKED


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("all masked", "no learnt token"),
        ("prompt", "prompt in the loss"),
        ("padding", "padding in the loss"),
        ("no end", "never stop"),
        ("cut start", "not an answer of the data"),
    ],
)
def test_wrong_batches_are_refused(run, kind: str, message: str) -> None:
    _, tokenizer, data, settings = run
    batch = batch_of(run)
    if kind == "padding" and settings.trainer.padding_free:
        pytest.skip("no padding to learn")
    _spoil(kind, batch, tokenizer)
    with pytest.raises(UserError, match=message):
        preflight.check_batch(batch, tokenizer, data.answers)


def test_the_mask_is_shown(run) -> None:
    _, tokenizer, data, _ = run
    text = preflight.show_batch(batch_of(run), tokenizer, colour=False)
    assert f"⟦{data.answers[1]}<|im_end|>\n⟧" in text and text.index("What is condition 1?") < text.index(
        data.answers[1]
    )
    coloured = preflight.show_batch(batch_of(run), tokenizer, colour=True)
    assert preflight.GREEN + data.answers[1] in coloured and "⟦" not in coloured


@pytest.mark.parametrize("padding_free", [False, True])
def test_batches_of_padded_and_joined_rows_have_the_loss_of_the_rows_alone(
    data: Path, tiny_model: Path, tmp_path: Path, padding_free: bool
) -> None:
    """No row reads another one: position ids start anew and attention stays within the row."""
    import torch

    trainer, _, _, _ = make_run(data, tiny_model, tmp_path, padding_free=padding_free)
    trainer.model.float().eval()
    rows = [trainer.train_dataset[i] for i in range(4)]
    with torch.no_grad():
        joined = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
        alone = [trainer.model(**_inputs(trainer.data_collator([row]))) for row in rows]
    expected = sum(total for total, _ in alone) / sum(tokens for _, tokens in alone)
    assert joined.item() == pytest.approx(expected.item(), rel=1e-5)


def _inputs(batch):
    return {key: batch[key] for key in ("input_ids", "labels", "attention_mask", "position_ids") if key in batch}


def test_packed_rows_do_not_read_each_other(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    import torch

    trainer, _, rows, _ = make_run(data, tiny_model, tmp_path, packing=True, max_length=300)
    trainer.model.float().eval()
    assert len(trainer.train_dataset) < len(rows.train) / 3
    with torch.no_grad():
        packs = [trainer.model(**_inputs(trainer.data_collator([pack]))) for pack in trainer.train_dataset]
        packed = sum(total for total, _ in packs) / sum(tokens for _, tokens in packs)
        single = make_run(data, tiny_model, tmp_path / "single")[0]
        single.model.float().eval()
        alone = [single.model(**_inputs(single.data_collator([row]))) for row in single.train_dataset]
    assert packed.item() == pytest.approx((sum(t for t, _ in alone) / sum(n for _, n in alone)).item(), rel=1e-5)


def test_dry_run_stops_before_weights(
    prepared_data: Path, tiny_model: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    import train
    from medical_assistant.models import loading

    monkeypatch.setattr(loading, "load_model", lambda *_: pytest.fail("weights were loaded"))
    output = tmp_path / "run"
    arguments = ["--data", str(prepared_data), "--model", str(tiny_model), "--output", str(output), "--dry-run"]
    assert train.main([*arguments, "--report-to", "none"]) == 0
    printed = capsys.readouterr().out
    # Rank 16 on q, k, v, o of two layers with hidden 64, 2 of 4 heads for k and v.
    assert "14,336 trained of 6,379,840 (0.22%)" in printed
    assert "24 train, 4 validation" in printed and "an epoch" in printed and "memory" in printed and "time" in printed
    assert not output.exists()


def test_rows_that_are_too_long(prepared_data: Path, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"24 of 24 rows are longer than --max-length 20 .*the longest row has"):
        make_run(prepared_data, tiny_model, tmp_path, max_length=20)


def test_one_long_row_in_two_hundred_is_left_out_whole(prepared_data: Path, tiny_model: Path, tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(prepared_data, tmp_path / "data")
    rows = [make_record(f"What is {i}?", f"It is {i}.", f"r-{i}", "test", i) for i in range(200)]
    rows[7]["completion"][0]["content"] *= 200
    write_records(rows, folder / "train.jsonl")
    _, _, data, _ = make_run(folder, tiny_model, tmp_path / "run")
    assert (len(data.train), data.too_long) == (199, 1)


@pytest.mark.parametrize("name", ["manifest.json", "train.jsonl", "validation.jsonl"])
def test_a_data_folder_that_is_not_whole(prepared_data: Path, tiny_model: Path, tmp_path: Path, name: str) -> None:
    import shutil

    folder = shutil.copytree(prepared_data, tmp_path / "data")
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"has no {name}"):
        make_run(folder, tiny_model, tmp_path / "run")


def test_rows_are_tokenised_once(prepared_data: Path, tiny_model: Path, tmp_path: Path, monkeypatch) -> None:
    from medical_assistant.models import loading
    from medical_assistant.training import data as training_data

    calls = []
    real = training_data._tokenized_rows
    monkeypatch.setattr(training_data, "_tokenized_rows", lambda **rows: calls.append(1) or real(**rows))
    tokenizer = loading.load_tokenizer(find_preset(str(tiny_model)))
    records = read_records(prepared_data / "train.jsonl")[:5]
    key = str(tmp_path)  # a hash that no other test used
    first = training_data.tokenize(records, tokenizer, key)
    again = training_data.tokenize(records, tokenizer, key)
    assert len(calls) == 1 and first["input_ids"][:] == again["input_ids"][:]
    training_data.tokenize(records, tokenizer, key + "changed")
    assert len(calls) == 2
