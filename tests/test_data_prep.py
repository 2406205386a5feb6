from __future__ import annotations

import json
from pathlib import Path

import pytest

import data_prep
from medical_assistant.data.records import read_records
from medical_assistant.errors import UserError
from medical_assistant.files import file_sha256

KINDS = ("itis", "oma", "osis")  # endings of the fixture's diseases


def prepare(source: Path, output: Path, *more: str) -> Path:
    data_prep.main(["--source", str(source), "--output", str(output), "--validation-size", "10", *more])
    return output


def test_outputs_and_manifest(question_file: Path, tmp_path: Path) -> None:
    extra = [
        {"input": "What are the risks?", "output": "Bleeding and infection are the risks."},
        {"input": "What is gout?", "output": "Pain."},
    ]
    with question_file.open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in extra))
        file.write(question_file.read_text().splitlines()[0] + "\n")
    folder = prepare(question_file, tmp_path / "out")
    train, validation = read_records(folder / "train.jsonl"), read_records(folder / "validation.jsonl")
    assert len(validation) == 10 and len(train) == 50
    manifest = json.loads((folder / "manifest.json").read_text())
    removed = {row["step"]: row["removed"] for row in manifest["removed"]}
    assert removed == {"names_nothing": 1, "too_short": 1, "exact_duplicate": 1}
    assert manifest["source"] == {"name": "cards.jsonl", "revision": file_sha256(question_file), "rows": 63}
    assert manifest["sha256"]["train.jsonl"] == file_sha256(folder / "train.jsonl")
    record = train[0]
    assert [m["role"] for m in record["prompt"]] == ["system", "user"] and record["completion"][0][
        "role"
    ] == "assistant"
    assert {"id", "source", "cluster"} <= record.keys()


def test_mistake_4_no_paraphrase_on_both_sides(question_file: Path, tmp_path: Path) -> None:
    folder = prepare(question_file, tmp_path / "out")
    names = [
        {word for r in records for word in r["prompt"][-1]["content"].rstrip("?").split() if word.endswith(KINDS)}
        for records in (read_records(folder / "train.jsonl"), read_records(folder / "validation.jsonl"))
    ]
    assert len(names[1]) == 5 and not names[0] & names[1]


def test_same_input_and_seed_give_the_same_bytes(question_file: Path, tmp_path: Path) -> None:
    first, second = (prepare(question_file, tmp_path / name, "--max-samples", "40") for name in ("a", "b"))
    other = prepare(question_file, tmp_path / "c", "--max-samples", "40", "--seed", "7")
    for name in ("train.jsonl", "validation.jsonl", "manifest.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert (first / "train.jsonl").read_bytes() != (other / "train.jsonl").read_bytes()


@pytest.mark.parametrize("suffix", [".json", ".csv", ".parquet"])
def test_every_local_format_gives_the_same_records(question_file: Path, tmp_path: Path, suffix: str) -> None:
    import pandas

    rows = [json.loads(line) for line in question_file.read_text().splitlines()]
    path = tmp_path / f"cards{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps(rows))
    elif suffix == ".csv":
        pandas.DataFrame(rows).to_csv(path, index=False)
    else:
        pandas.DataFrame(rows).to_parquet(path)
    expected = read_records(prepare(question_file, tmp_path / "a") / "train.jsonl")
    found = read_records(prepare(path, tmp_path / "b") / "train.jsonl")
    assert [r["prompt"] for r in found] == [r["prompt"] for r in expected]


def break_line_7(path: Path) -> None:
    lines = path.read_text().splitlines()
    lines[6] = lines[6][:-5]
    path.write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (break_line_7, "line 7"),
        (lambda path: path.write_text('{"text": "a"}\n'), "No column"),
        (lambda path: path.write_text('{"input": "What?", "output": "No."}\n' * 30), "0 usable pairs of 30"),
        (lambda path: path.write_text(""), "0 usable pairs"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "UTF-8"),
    ],
)
def test_bad_files_say_what_is_wrong_and_leave_nothing(question_file: Path, tmp_path: Path, spoil, words: str) -> None:
    spoil(question_file)
    with pytest.raises(UserError, match=words):
        prepare(question_file, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_a_folder_that_holds_a_run_is_not_overwritten(question_file: Path, tmp_path: Path) -> None:
    folder = prepare(question_file, tmp_path / "out")
    before = (folder / "train.jsonl").read_bytes()
    with pytest.raises(UserError, match="already holds"):
        prepare(question_file, folder, "--seed", "1")
    assert (folder / "train.jsonl").read_bytes() == before


def test_unknown_source(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file"):
        prepare(tmp_path / "missing.jsonl", tmp_path / "out")
