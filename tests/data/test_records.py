"""Whatever a file holds, the reader gives rows or says in one line what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from medical_assistant.data.records import LOCAL_FORMATS, question_answer, read_records, read_source
from medical_assistant.errors import UserError

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
)
NAMES = st.sampled_from(["question", "answer", "instruction", "input", "output", "prompt", "completion"])
ANY_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80)


def read(read_file, path: Path, content: bytes):
    path.write_bytes(content)
    try:
        return read_file(str(path) if read_file is read_source else path)
    except UserError as error:
        assert "\n" not in str(error) and str(error)
        return None


@ANY_FOLDER
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode), kind=st.sampled_from(LOCAL_FORMATS))
@example(content=b'"' + b"a" * 200_000 + b'",b\n1,2', kind=".csv")
@example(content=b"a\x00b,c\n1,2", kind=".csv")
@example(content=b"question,answer\n1,2,3,4\n", kind=".csv")
@example(content=b"[" * 5_000, kind=".json")
@example(content=b"[" + b"1" * 5_000 + b"]", kind=".json")
@example(content=b"PAR1" + b"\xff" * 60 + b"PAR1", kind=".parquet")
def test_any_bytes_are_rows_or_one_line(tmp_path, content, kind):
    found = read(read_source, tmp_path / f"rows{kind}", content)
    assert found is None or all(isinstance(row, dict) for row in found.rows)


@ANY_FOLDER
@given(rows=st.lists(st.dictionaries(NAMES | st.text(max_size=6), JSON, max_size=4), max_size=4))
def test_any_json_lines_are_rows_or_one_line(tmp_path, rows):
    content = "\n".join(map(json.dumps, rows)).encode()
    found = read(read_source, tmp_path / "rows.jsonl", content)
    for row in found.rows if found else ():
        try:
            question, answer = question_answer(row)
        except UserError:
            continue
        assert isinstance(question, str) and isinstance(answer, str)
    records = read(read_records, tmp_path / "train.jsonl", content)
    assert records is None or all({"prompt", "completion"} <= record.keys() for record in records)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"{}\n", b"[]\n", b"null\n"])
def test_files_of_nothing_are_no_records(tmp_path, content):
    assert read(read_records, tmp_path / "train.jsonl", content) is None
