"""Verdicts that outlive an interruption: a judge that goes away in the middle loses nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from medical_assistant.errors import UserError
from medical_assistant.evaluation.judges.judge import LABELS, Claim, Judge, JudgeDown, Verdict

PARTIAL_NAME = "statements.partial.jsonl"


@dataclass
class VerdictLog:
    """Verdicts by claim and judge, appended to a file as they come.

    A row holds `key`, a hash of the judge and the claim's texts, and `label`. A claim without a verdict is not
    written, so that a rerun asks again.
    """

    judge: Judge
    path: Path | None
    labels: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)  # why a claim of this run has no verdict

    @classmethod
    def open(cls, judge: Judge, path: Path | None) -> VerdictLog:
        """Return the verdicts in `path`; a line that was cut off by a kill is dropped."""
        log = cls(judge, path)
        if path is None or not path.is_file():
            return log
        text = path.read_text(encoding="utf-8", errors="replace")
        for line in text.split("\n"):
            try:
                row = json.loads(line)
                if row["label"] in LABELS:
                    log.labels[row["key"]] = row["label"]
            except (ValueError, KeyError, TypeError):
                continue
        if text and not text.endswith("\n"):
            with path.open("a", encoding="utf-8", newline="\n") as file:
                file.write("\n")
        return log

    def verdict(self, claim: Claim) -> Verdict:
        """Return what is known of the claim. An empty answer says nothing: no judge is needed for it."""
        if not claim.answer.strip():
            return Verdict("neither")
        key = self._key(claim)
        return Verdict(self.labels.get(key), self.reasons.get(key, ""))

    def judge_all(self, claims: Sequence[Claim]) -> None:
        """Ask the judge for all verdicts that are not there yet, each text once.

        Raises `UserError` when the judge goes away; verdicts until then are kept.
        """
        from tqdm import tqdm

        missing = {self._key(claim): claim for claim in claims if self.verdict(claim).label is None}
        keys = list(missing)
        if not keys:
            return
        try:
            with closing(self.judge.verdicts(list(missing.values()))) as verdicts:
                for index, verdict in tqdm(verdicts, total=len(keys), desc="judge", unit="statement"):
                    if verdict.label is None:
                        self.reasons[keys[index]] = verdict.reason
                    else:
                        self.labels[keys[index]] = verdict.label
                        self.reasons.pop(keys[index], None)
                        self._append(keys[index], verdict.label)
        except JudgeDown as error:
            kept = f" {len(self.labels):,} verdicts are kept: go on with --resume." if self.path else ""
            raise JudgeDown(f"{error}{kept}") from error

    def _append(self, key: str, label: str) -> None:
        if self.path is None:
            return
        try:
            with self.path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(json.dumps({"key": key, "label": label}) + "\n")
        except OSError as error:
            raise UserError(f"{self.path} cannot be written ({error.strerror}): free the disk.") from error

    def _key(self, claim: Claim) -> str:
        judge = [self.judge.kind, self.judge.name, self.judge.revision, self.judge.prompt_sha256]
        texts = [claim.question, claim.answer, claim.statement]
        return hashlib.sha256(json.dumps([*judge, *texts]).encode()).hexdigest()
