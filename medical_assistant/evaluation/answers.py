"""The answers of an evaluation: collected in batches, written as they come, taken up again after an interrupt."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medical_assistant.chat.confidence import Signals
from medical_assistant.data.records import Record
from medical_assistant.engines.base import Answer, Engine, Options
from medical_assistant.errors import UserError
from medical_assistant.evaluation.candidates import Candidate
from medical_assistant.files import check_new_folder, read_json, write_json

RUN_FILE = "run.json"


@dataclass
class AnswerStore:
    """Answers by (candidate, record id) of one set of questions, appended to `path` as they come."""

    path: Path
    rows: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> AnswerStore:
        """Return the answers that `path` holds, of an interrupted run or of a finished one; none without a file.

        Errors: `read_appended`.
        """
        answers = cls(path)
        for row in read_appended(path):
            try:
                # A finished run has one row a question.
                for key, answer in row["candidates"].items() if "candidates" in row else [(row["candidate"], row)]:
                    answers.rows[key, row["id"]] = {"id": row["id"], "candidate": key, **answer}
            except (KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{path} has a row that is no answer: remove the row, or the folder.") from error
        return answers

    def collect(self, engine: Engine, candidate: Candidate, records: Sequence[Record], options: Options) -> float:
        """Add the answers of `candidate` to all records that have none yet; return the seconds that took."""
        from tqdm import tqdm

        missing = [record for record in records if (candidate.key, record["id"]) not in self.rows]
        if not missing:
            return 0.0  # an engine takes seconds to begin, which would count as the answers' time
        started_s = time.perf_counter()
        # closing: an error on the way must not leave the engine computing
        with (
            self.path.open("a", encoding="utf-8", newline="\n") as file,
            closing(
                engine.answer_all([record["prompt"] for record in missing], options)  # type: ignore[type-var]
            ) as done,
        ):
            for index, answer in tqdm(done, total=len(missing), desc=candidate.label, unit="answer", leave=False):
                row = {"id": missing[index]["id"], "candidate": candidate.key, **answer_row(answer)}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()
                self.rows[candidate.key, row["id"]] = row
        return time.perf_counter() - started_s

    def of(self, candidate: str, records: Sequence[Record]) -> list[dict[str, Any]]:
        """Return the answers of one candidate in the order of `records`."""
        return [self.rows[candidate, record["id"]] for record in records]

    def texts(self, candidates: Iterable[str], records: Sequence[Record]) -> dict[str, list[str]]:
        """Return {candidate: its answers' texts in the order of `records`}."""
        return {candidate: [row["answer"] for row in self.of(candidate, records)] for candidate in candidates}


def read_appended(path: Path) -> list[dict[str, Any]]:
    """Return the JSON objects of a file that is appended to line by line, [] without a file.

    A last line that was cut off by a kill is removed from the file. Raises `UserError` for another broken line.
    """
    content = path.read_bytes() if path.is_file() else b""
    whole, _, cut_off = content.rpartition(b"\n")
    if cut_off:
        with path.open("rb+") as file:
            file.truncate(len(content) - len(cut_off))
    rows = []
    # Not splitlines: an answer may hold U+2028 or U+0085, which JSON leaves as they are.
    for number, line in enumerate(whole.split(b"\n"), 1):
        try:
            row = json.loads(line) if line else None
        except ValueError:
            row = ""
        if isinstance(row, dict):
            rows.append(row)
        elif row is not None:
            raise UserError(f"{path}, line {number} is broken: remove the line, or the folder.")
    return rows


def answer_row(answer: Answer) -> dict[str, Any]:
    """Return an answer as it is written: `answer`, `ended`, `tokens`, `seconds`, and the signals of confidence.

    `mean_logprob`, `min_logprob` (natural logarithm), `mean_entropy` (nats): None where the engine sends none.
    """
    signals = Signals(list(answer.logprobs), list(answer.entropies)).values()
    rounded = {name: value if value is None else round(value, 6) for name, value in signals.items()}
    return {
        "answer": answer.text.strip(),
        "ended": answer.finish_reason == "stop",
        "tokens": len(answer.logprobs),
        "seconds": round(answer.seconds, 3),
        **{name: rounded[name] for name in ("mean_logprob", "min_logprob", "mean_entropy")},
    }


def open_run(folder: Path, fingerprint: Mapping[str, Any], resume: bool) -> None:
    """Make `folder` for a new run, or check that the run in it is this one.

    `fingerprint` is what the answers depend on; it is kept in run.json. With `resume` an interrupted run goes on and
    a finished one is scored again, also with a set of questions that it did not have (a key of `data`). Raises
    `UserError` when `folder` holds a run and `resume` is off, when it holds none and it is on, or when the run there
    was of another model, adapter, data or decoding (named).
    """
    path = folder / RUN_FILE
    if not resume:
        check_new_folder(folder)
        folder.mkdir(exist_ok=True)
        write_json(path, fingerprint)
        return
    if not path.is_file():
        raise UserError(f"There is no run in {folder}: leave out --resume.")
    found = read_json(path)
    kept = found.get("data", {})
    wanted = {**fingerprint, "data": {**kept, **fingerprint["data"]}}  # a set that is left out keeps its hash
    both = {**found, "data": {**fingerprint["data"], **kept}}
    differing = [key for key in wanted if both.get(key) != wanted[key]]
    if differing:
        raise UserError(
            f"{folder} holds answers of another run ({', '.join(differing)} differ): choose another --output."
        )
    write_json(path, wanted)


def check_ids(records: Sequence[Record], where: Path | str) -> None:
    """Raise `UserError` when two records share an id: the second one's answer would replace the first one's."""
    seen: dict[str, int] = {}
    for number, record in enumerate(records, 1):
        first = seen.setdefault(record["id"], number)
        if first != number:
            raise UserError(f"{where}: rows {first} and {number} have the same id {record['id']!r}: make ids unique.")
